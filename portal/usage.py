"""What the page of a license's usage shows: frozen values, in a number of queries that does not grow with use.

What is allowed and counted comes from counters and totals; this module puts it into words and columns. It changes
nothing, and it decides nothing about who may look.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from django.db.models import F, Min, Q, Sum

from billing import rollups
from billing.models import MeterRevision
from billing.states import Aggregation, Window
from licensing.models import Counter, CreditGrant, Entitlement, License, Term
from licensing.states import EntitlementKind, Overage, RevisionState
from portal.overview import amount, between, day

SPANS = (30, 90)
GROUPS_SHOWN = 50
NEAR = Decimal("0.8")


@dataclass(frozen=True, slots=True)
class MeterUse:
    """How much of a meter was used in the current stretch of the period, of what is included. A bar never overflows."""

    code: str
    name: str
    used: str
    included: str
    bar_value: str
    bar_limit: str
    level: str
    sentences: list[str]

    @property
    def has_bar(self) -> bool:
        return bool(self.bar_limit)


@dataclass(frozen=True, slots=True)
class Column:
    """One day of a chart, in the chart's own units: a day is 10 wide, the scale 100 high."""

    x: int
    y: str
    height: str
    words: str
    today: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns by day under a round scale, and the words for who does not see them."""

    columns: list[Column]
    width: int
    scale: list[str]
    days: list[str]
    words: str


@dataclass(frozen=True, slots=True)
class DayLine:
    """What was used on one day."""

    date: date
    quantity: str


@dataclass(frozen=True, slots=True)
class GroupLine:
    """What was used under one value of a dimension, and its share in percent where shares make sense."""

    value: str
    quantity: str
    percent: str


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Everything the page shows. `chosen` is the meter the history is of, None where nothing is counted."""

    id: UUID
    product: str
    plan: str
    customer: str
    period: str
    uses: list[MeterUse]
    chosen: str
    chosen_name: str
    unit: str
    chart: Chart | None
    days: list[DayLine]
    dimension: str
    groups: list[GroupLine]
    more_groups: int


@dataclass(frozen=True, slots=True)
class Counted:
    """A meter of a license: its newest published or retired revision."""

    code: str
    name: str
    unit: str
    aggregation: str
    dimensions: list[str]


def counted(license: License) -> list[Counted]:
    """Return the meters a license has to do with: those its plan includes, and those it has counters of."""
    granted = Entitlement.objects.filter(plan_revision=license.plan_revision_id, kind=EntitlementKind.ALLOWANCE)
    had = Counter.objects.filter(license=license)
    rows = (
        MeterRevision.objects.filter(
            Q(meter__code__in=granted.values("meter")) | Q(meter__code__in=had.values("meter"))
        )
        .exclude(state=RevisionState.DRAFT)
        .select_related("meter")
        .order_by("meter__code", "number")
    )
    newest = {row.meter.code: row for row in rows}
    return [
        Counted(code, row.meter.name, row.unit, row.aggregation, list(row.dimensions)) for code, row in newest.items()
    ]


def page_of_usage(
    *, license: License, meters: list[Counted], meter: str, days: int, dimension: str, at: datetime
) -> UsagePage:
    """Return what the page shows: this period of every meter, and the history of one, by day and by a dimension."""
    starts_at, ends_at = _stretch(license, at)
    chosen = next((each for each in meters if each.code == meter), meters[0] if meters else None)
    chart, lines, groups = None, list[DayLine](), list[GroupLine]()
    if chosen is not None:
        first = (at - timedelta(days=days - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
        by_day = _by_day(license, chosen, first, at)
        chart = _chart(by_day, chosen, first.date(), days)
        lines = [DayLine(each, amount(by_day[each])) for each in sorted(by_day, reverse=True)]
        groups = _groups(license, chosen, dimension, first, at) if dimension else []
    return UsagePage(
        id=license.pk,
        product=license.product.name,
        plan=license.plan_revision.plan.name,
        customer=license.customer.name,
        period=between(starts_at, ends_at),
        uses=_uses(license, meters, starts_at, ends_at, at),
        chosen=chosen.code if chosen else "",
        chosen_name=chosen.name if chosen else "",
        unit=chosen.unit if chosen else "",
        chart=chart,
        days=lines,
        dimension=dimension.replace("_", " "),
        groups=groups[:GROUPS_SHOWN],
        more_groups=max(len(groups) - GROUPS_SHOWN, 0),
    )


def _stretch(license: License, at: datetime) -> tuple[datetime, datetime]:
    """Return the part of the current billing period, the month in UTC, that the license's present term covers."""
    first = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = (first + timedelta(days=32)).replace(day=1)
    cuts = list(Term.objects.filter(license=license, starts_at__lt=after).values_list("starts_at", flat=True))
    begun, coming = [each for each in cuts if each <= at], [each for each in cuts if each > at]
    return max([first, *begun]), min([after, *coming])


def _uses(
    license: License, meters: list[Counted], starts_at: datetime, ends_at: datetime, at: datetime
) -> list[MeterUse]:
    counters = {row.meter: row for row in Counter.objects.filter(license=license, starts_at__lte=at, ends_at__gt=at)}
    granted: dict[str, list[Entitlement]] = {}
    for right in Entitlement.objects.filter(plan_revision=license.plan_revision_id, kind=EntitlementKind.ALLOWANCE):
        granted.setdefault(right.meter, []).append(right)
    running = Q(expires_at=None) | Q(expires_at__gt=at)
    left, soonest = Sum(F("amount") - F("drawn")), Min("expires_at")
    credit: dict[str, tuple[Decimal, datetime | None]] = {
        meter: (amount_left, ends)
        for meter, amount_left, ends in CreditGrant.objects.filter(running, license=license, starts_at__lte=at)
        .order_by()
        .values("meter")
        .annotate(left=left, ends=soonest)
        .values_list("meter", "left", "ends")
    }
    measured: dict[str, Decimal] = {}
    if any(each.code not in counters for each in meters):
        for total in rollups.totals(license_id=license.pk, starts_at=starts_at, ends_at=ends_at):
            measured[total.meter] = measured.get(total.meter, Decimal()) + total.quantity
    found = []
    for each in meters:
        counter, rights = counters.get(each.code), granted.get(each.code, [])
        promised = sum((right.amount or Decimal() for right in rights), Decimal()) if rights else None
        included = counter.allowance if counter else promised
        used = counter.used if counter else measured.get(each.code, Decimal())
        held = counter.reserved if counter else Decimal()
        prepaid, prepaid_until = credit.get(each.code, (Decimal(), None))
        refuses = any(right.overage == Overage.REFUSE for right in rights)
        found.append(_use(each, used, included, held, prepaid, prepaid_until, refuses, ends_at))
    return found


def _use(
    meter: Counted,
    used: Decimal,
    included: Decimal | None,
    held: Decimal,
    prepaid: Decimal,
    prepaid_until: datetime | None,
    refuses: bool,
    ends_at: datetime,
) -> MeterUse:
    unit = f" {meter.unit}" if meter.unit else ""
    left = (included or Decimal()) - used - held
    sentences, level = list[str](), "free"
    if included is None:
        sentences.append("Your plan sets no limit.")
    elif included == 0 and not refuses:
        sentences.append("All of it is charged.")
    elif left > 0:
        beyond = "more is refused" if refuses else "more is charged"
        level = "full" if used + held >= NEAR * included else "free"
        sentences.append(f"{amount(left)}{unit} left until {day(ends_at)}; then {beyond}.")
    elif not refuses:
        level = "full"
        over = f"{amount(-left)}{unit} more than is included, which is charged." if left < 0 else ""
        sentences.append(over or "All that is included is used; more is charged.")
    elif prepaid > 0:
        level = "full"
        sentences.append("All that is included is used; prepaid credit is used now.")
    else:
        level = "over"
        sentences.append(f"All of it is used. Nothing more is accepted until {day(ends_at)}.")
    if held:
        sentences.append(f"Reserved for work that has begun: {amount(held)}{unit}.")
    if prepaid:
        until = f" Some of it expires on {day(prepaid_until)}." if prepaid_until else ""
        sentences.append(f"Prepaid credit left: {amount(prepaid)}{unit}.{until}")
    bar = included if included else Decimal()
    return MeterUse(
        code=meter.code,
        name=meter.name,
        used=amount(used),
        included=f"{amount(included)}{unit}" if included is not None and included > 0 else unit.strip(),
        bar_value=f"{min(max(used + held, Decimal()), bar):f}" if bar else "",
        bar_limit=f"{bar:f}" if bar else "",
        level=level,
        sentences=sentences,
    )


def _by_day(license: License, meter: Counted, first: datetime, at: datetime) -> dict[date, Decimal]:
    """Return what each day came to; where a day has two revisions of a meter, the larger one, or both together."""
    found: dict[date, Decimal] = {}
    for each in rollups.series(license_id=license.pk, starts_at=first, ends_at=at, window=Window.DAY, meter=meter.code):
        on, quantity = each.starts_at.astimezone(UTC).date(), each.total.quantity
        before = found.get(on, Decimal())
        found[on] = max(before, quantity) if meter.aggregation in _NOT_ADDED else before + quantity
    return found


_NOT_ADDED = (Aggregation.MAX, Aggregation.LATEST)
_PARTS_OF_A_WHOLE = (Aggregation.SUM, Aggregation.COUNT, Aggregation.TIME_WEIGHTED_SUM)


def _groups(license: License, meter: Counted, dimension: str, first: datetime, at: datetime) -> list[GroupLine]:
    found: dict[str, Decimal] = {}
    for each in rollups.totals(license_id=license.pk, starts_at=first, ends_at=at, meter=meter.code, by=(dimension,)):
        value = each.group.get(dimension, "")
        found[value] = found.get(value, Decimal()) + each.quantity
    whole = sum(found.values(), Decimal()) if meter.aggregation in _PARTS_OF_A_WHOLE else Decimal()
    return [
        GroupLine(value or "not said", amount(quantity), f"{quantity / whole * 100:.0f} %" if whole > 0 else "")
        for value, quantity in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]


def _chart(by_day: dict[date, Decimal], meter: Counted, first: date, days: int) -> Chart | None:
    if not by_day:
        return None
    most = max(by_day.values())
    top = _round_above(most)
    unit = f" {meter.unit}" if meter.unit else ""
    columns = []
    for number in range(days):
        on = first + timedelta(days=number)
        quantity = by_day.get(on, Decimal())
        height = max(quantity, Decimal()) / top * 100
        words = f"{on.day} {on:%B}: {amount(quantity)}{unit}"
        columns.append(Column(number * 10, f"{100 - height:.2f}", f"{height:.2f}", words, number == days - 1))
    busiest = max(by_day, key=lambda each: by_day[each])
    middle, last = first + timedelta(days=days // 2), first + timedelta(days=days - 1)
    return Chart(
        columns=columns,
        width=days * 10,
        scale=[amount(top), amount(top / 2), "0"],
        days=[f"{each.day} {each:%b}" for each in (first, middle, last)],
        words=(
            f"{meter.name} by day, from {first.day} {first:%B} to {last.day} {last:%B}. "
            f"Most on {busiest.day} {busiest:%B}: {amount(most)}{unit}. The table below has every day."
        ),
    )


def _round_above(most: Decimal) -> Decimal:
    """Return the next round number that is not below `most`: the top of a scale people read at a glance."""
    if most <= 0:
        return Decimal(1)
    size = Decimal(10) ** most.adjusted()
    return next(step * size for step in (1, 2, 4, 6, 8, 10) if step * size >= most)
