"""Rules about usage: more than ever, none although it is used, and numbers missing from the row of its events.

What is usual is the license's own history, by median and median absolute deviation of the same hour of the week; both
are the standard library's. Judges are pure; each look is one or two statements over totals already made.

Source: reference design 5.18 A7-A9; Iglewicz and Hoaglin 1993 for the constant 1.4826.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Max, Min, Sum

from billing.models import Rollup, UsageEvent, UsageId
from billing.states import Aggregation, Window
from licensing import rules
from licensing.models import Activation
from licensing.rules import Case, Facts, Rule, Subject, Thresholds
from licensing.states import Severity

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)
HISTORY = 9 * WEEK  # two ends of month, whichever day it is
CONSTANT = 1.4826  # what makes of the median absolute deviation of a normal distribution its standard deviation
GAPS = 50


def deviation(value: float, usual: list[float]) -> float:
    """Return how many robust standard deviations a value is above what is usual. Source: A7."""
    middle = median(usual)
    spread = median(abs(one - middle) for one in usual)
    return (value - middle) / (CONSTANT * max(spread, 0.05 * middle, 1.0))


def _usage_spike(facts: Facts, by: Thresholds) -> bool:
    usual = facts["usual"]
    return (
        len(usual) >= by["weeks"]
        and facts["quantity"] - median(usual) >= by["least"]
        and facts["quantity"] > by["times_highest"] * facts["highest"]
        and deviation(facts["quantity"], usual) > by["deviations"]
    )


def _usage_silence(facts: Facts, by: Thresholds) -> bool:
    return facts["weeks"] >= by["weeks"] and facts["missed_hours"] >= by["hours"] and facts["machines_seen"] > 0


def _sequence_gap(facts: Facts, by: Thresholds) -> bool:
    return facts["missing"] >= by["missing"]


USAGE_SPIKE = Rule(
    "usage_spike",
    "A license used far more within an hour than it ever did, and than it does at this hour of the week.",
    Severity.MEDIUM,
    "the hour's total, and those of the same hour in the weeks before",
    kind="job",
    thresholds={"deviations": 6, "times_highest": 1.5, "least": 50, "weeks": 4},
    judge=_usage_spike,
    cases=(
        Case(True, "ten times as much as ever", {"quantity": 1000.0, "usual": [90.0, 100, 110, 95], "highest": 120.0}),
        Case(False, "the end of the month, as before", {"quantity": 400.0, "usual": [100.0] * 4, "highest": 390.0}),
        Case(False, "too young to have habits", {"quantity": 1000.0, "usual": [100.0] * 3, "highest": 100.0}),
        Case(False, "much of nearly nothing", {"quantity": 40.0, "usual": [1.0] * 4, "highest": 2.0}),
    ),
)
USAGE_SILENCE = Rule(
    "usage_silence",
    "A license reports no usage at hours it always does, although its machines still ask whether it is valid.",
    Severity.HIGH,
    "when usage was last reported, and when machines were seen after that",
    kind="job",
    thresholds={"hours": 6, "regular": 0.75, "weeks": 4},
    judge=_usage_silence,
    cases=(
        Case(True, "a working day long", {"missed_hours": 8, "machines_seen": 2, "weeks": 9}),
        Case(False, "a holiday: nobody is there", {"missed_hours": 30, "machines_seen": 0, "weeks": 9}),
        Case(False, "a weekend: it never reports then", {"missed_hours": 0, "machines_seen": 2, "weeks": 9}),
        Case(False, "two weeks old", {"missed_hours": 9, "machines_seen": 2, "weeks": 2}),
    ),
)
SEQUENCE_GAPS = Rule(
    "sequence_gaps",
    "Numbers are missing among the events an installation sent, and did not come later.",
    Severity.HIGH,
    "the numbers that are missing, by who sent the others",
    kind="job",
    thresholds={"missing": 1, "patience_hours": 12},
    judge=_sequence_gap,
    cases=(
        Case(True, "one", {"missing": 1}),
        Case(False, "none", {"missing": 0}),
    ),
)


def _rule(name: str, severity: Severity, says: str, evidence: str, proved_by: str) -> Rule:
    return Rule(name, says, severity, evidence, proved_by=(f"tests/billing/{proved_by}",))


_PAID = "test_payments.py"
AT_ONCE = (
    _rule(
        "usage_event_conflict",
        Severity.MEDIUM,
        "An event came again under the same id with other content.",
        "the events' ids and who sent them",
        "test_metering.py",
    ),
    _rule(
        "counter_differs_from_events",
        Severity.CRITICAL,
        "A counter is not what its events add up to.",
        "both figures",
        "test_rollups.py",
    ),
    _rule(
        "rollup_differs_from_events",
        Severity.CRITICAL,
        "A total is not what its events add up to.",
        "both figures",
        "test_rollups.py",
    ),
    _rule(
        "usage_of_archived_time",
        Severity.MEDIUM,
        "Usage waits for a total of a time that is archived.",
        "how many hours",
        "test_partitions.py",
    ),
    _rule(
        "usage_in_default_partition",
        Severity.MEDIUM,
        "Usage came for a month that no partition was made for.",
        "how many events",
        "test_partitions.py",
    ),
    _rule("hold_not_lifted", Severity.HIGH, "A hold for payment could not be lifted.", "the hold", "test_dunning.py"),
    _rule("nobody_to_remind", Severity.MEDIUM, "A reminder has no recipient.", "the statement", "test_dunning.py"),
    _rule("gateway_failed", Severity.HIGH, "The payment gateway refuses or fails.", "its words", "test_payments.py"),
    _rule("payment_failed", Severity.MEDIUM, "A payment failed at the gateway.", "the invoice", "test_payments.py"),
    _rule("invoice_missing", Severity.CRITICAL, "The gateway lost an invoice.", "its words", "test_payments.py"),
    _rule(
        "invoice_unknown",
        Severity.HIGH,
        "The gateway has an invoice of ours that we did not send.",
        "the invoice",
        "test_payments.py",
    ),
    _rule("second_invoice", Severity.CRITICAL, "A statement has two invoices.", "both", "test_payments.py"),
    _rule("invoice_differs", Severity.CRITICAL, "An invoice is not what was sent.", "both figures", "test_payments.py"),
    _rule("invoice_given_up", Severity.HIGH, "The gateway gave an invoice up.", "the invoice", "test_payments.py"),
    _rule("paid_although_void", Severity.CRITICAL, "A void statement was paid.", "the invoice", "test_payments.py"),
    _rule("paid_too_much", Severity.HIGH, "More was paid than is owed.", "both figures", "test_payments.py"),
    _rule("paid_too_little", Severity.HIGH, "Less was paid than is owed.", "both figures", "test_payments.py"),
    _rule("paid_less_than_before", Severity.HIGH, "An invoice says that less came in than it said.", "both", _PAID),
    _rule("invoice_asks_otherwise", Severity.HIGH, "An invoice asks for another sum than is open.", "both", _PAID),
    _rule("refunded", Severity.MEDIUM, "Money was given back at the gateway.", "the refund", _PAID),
    _rule("refund_failed", Severity.HIGH, "A refund did not arrive.", "the refund", _PAID),
    _rule("credited", Severity.MEDIUM, "A credit note was made at the gateway.", "the note", _PAID),
    _rule("credit_withdrawn", Severity.MEDIUM, "A credit note was made void.", "the note", _PAID),
    _rule("disputed", Severity.HIGH, "A customer disputes a payment.", "the dispute", _PAID),
    _rule("dispute_lost", Severity.CRITICAL, "A dispute was lost: the money is gone.", "the dispute", _PAID),
)
RULES = (USAGE_SPIKE, USAGE_SILENCE, SEQUENCE_GAPS, *AT_ONCE)


# --- looking ----------------------------------------------------------------------------------------


def _hourly(**of: Any) -> Any:
    """Return the totals of whole hours of meters whose hours can be compared."""
    return Rollup.objects.filter(
        window=Window.HOUR,
        meter_revision__aggregation__in=(Aggregation.SUM, Aggregation.COUNT),
        **of,
    )


def _hour_of(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def spikes(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    """Look at the hours that were not over when this rule last looked, this one included."""
    hour = min(_hour_of(since - HOUR), _hour_of(at))
    while hour <= at:
        yield from _spikes_of(hour, by)
        hour += HOUR


def _spikes_of(hour: datetime, by: Thresholds) -> Iterator[Subject]:
    totals = _hourly(starts_at=hour, quantity__gte=by["least"]).values_list("license_id", "meter_revision__meter__code")
    now = {(license_id, meter): float(total) for license_id, meter, total in totals.annotate(total=Sum("quantity"))}
    weeks = [hour - week * WEEK for week in range(1, int(HISTORY / WEEK) + 1)]
    same: dict[tuple[UUID, str], dict[datetime, float]] = defaultdict(dict)
    licenses = sorted({license_id for license_id, _ in now})
    of = ("license_id", "meter_revision__meter__code")
    for some in _slices(licenses):
        rows = _hourly(license_id__in=some, starts_at__in=weeks).values_list(*of, "starts_at", "quantity")
        for license_id, meter, starts_at, quantity in rows:
            key = (license_id, meter)
            same[key][starts_at] = same[key].get(starts_at, 0.0) + float(quantity)
    # What is not far above the same hour of other weeks needs no look at all the hours between.
    odd = {
        key: total
        for key, total in now.items()
        if total - median([same[key].get(week, 0.0) for week in weeks]) >= by["least"]
        and deviation(total, [same[key].get(week, 0.0) for week in weeks]) > by["deviations"]
    }
    for some in _slices(sorted({license_id for license_id, _ in odd})):
        before = _hourly(license_id__in=some, starts_at__gte=hour - HISTORY, starts_at__lt=hour)
        found = before.values_list(*of).annotate(highest=Max("quantity"), first=Min("starts_at"))
        for license_id, meter, highest, first in found:
            key = (license_id, meter)
            lived = [week for week in weeks if week >= _hour_of(first)]
            if key not in odd or not lived:
                continue
            usual = [same[key].get(week, 0.0) for week in lived]
            facts = {"meter": meter, "hour": hour, "quantity": odd[key], "usual": usual, "highest": float(highest)}
            listed = [{"hour": week, "quantity": total} for week, total in zip(lived, usual, strict=True)]
            yield Subject("license", str(license_id), facts, listed, license_id)


def _slices(ids: list[UUID], size: int = 200) -> Iterator[list[UUID]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def silences(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    """Look at the licenses whose machines were seen lately and that reported usage before, but not lately."""
    hour = _hour_of(at)
    if _hour_of(since + rules.OVERLAP) == hour:
        return  # whole hours are missed, so once an hour is enough
    patience = timedelta(hours=by["hours"])
    reported = dict(
        _hourly(starts_at__gte=hour - HISTORY, starts_at__lt=at, quantity__gt=0)
        .values_list("license_id")
        .annotate(last=Max("starts_at"))
        .filter(last__lt=hour - patience, last__gte=hour - 2 * WEEK)
    )
    for silent in _slices(sorted(reported)):
        latest = (
            Activation.objects.filter(license_id__in=silent).values_list("license_id").annotate(Max("last_seen_at"))
        )
        some = [license_id for license_id, seen_at in latest if seen_at >= reported[license_id] + 2 * HOUR]
        hours: dict[UUID, set[datetime]] = defaultdict(set)
        first: dict[UUID, datetime] = {}
        for license_id, starts_at in _hourly(
            license_id__in=some, starts_at__gte=hour - HISTORY, quantity__gt=0
        ).values_list("license_id", "starts_at"):
            hours[license_id].add(starts_at)
            first[license_id] = min(first.get(license_id, starts_at), starts_at)
        for license_id in some:
            last = reported[license_id]
            weeks = [week for week in range(1, int(HISTORY / WEEK) + 1) if last - week * WEEK >= first[license_id]]
            missed = [
                one
                for one in (last + number * HOUR for number in range(1, int((hour - last) / HOUR)))
                if weeks and sum(one - week * WEEK in hours[license_id] for week in weeks) >= by["regular"] * len(weeks)
            ]
            if len(missed) < by["hours"]:
                continue
            # Asked for in the hours it should have reported in, not just before.
            seen = list(
                Activation.objects.filter(license_id=license_id, last_seen_at__gte=missed[0] + HOUR)
                .order_by("-last_seen_at")
                .values_list("pk", "last_seen_at")[:GAPS]
            )
            facts = {
                "last_usage_hour": last,
                "missed_hours": len(missed),
                "machines_seen": len(seen),
                "weeks": len(weeks),
            }
            rows = [{"activation": str(pk), "last_seen_at": seen_at} for pk, seen_at in seen]
            yield Subject("license", str(license_id), facts, rows, license_id)


_GAPS = """
SELECT license_id, source, before, sequence, received_at FROM (
   SELECT e.license_id, e.source, e.sequence, e.received_at,
          LAG(e.sequence) OVER (PARTITION BY e.license_id, e.source ORDER BY e.sequence) AS before
     FROM {ids} u JOIN {events} e
       ON e.license_id = u.license_id AND e.occurred_at = u.occurred_at AND e.event_id = u.event_id
    WHERE u.license_id IN ({places}) AND u.received_at > %s AND u.received_at <= %s AND e.sequence IS NOT NULL) numbered
 WHERE (before IS NULL OR sequence > before + 1) AND received_at > %s AND received_at <= %s
 ORDER BY license_id, source, sequence
"""


def gaps(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    """Look, every six hours, at the events whose time to be followed has run out: what should come before each, and did
    not. Read are the events of that time by license, through the memory of their ids, never the whole table."""
    this, that = _step_of(at), _step_of(since + rules.OVERLAP)
    if this == that:
        return
    patience = timedelta(hours=by["patience_hours"])
    until, after = this - patience, that - patience
    active = Rollup.objects.filter(window=Window.DAY, starts_at__gte=after - 40 * DAY)
    for some in _slices(sorted(active.values_list("license_id", flat=True).distinct())):
        query = _GAPS.format(
            ids=UsageId._meta.db_table, events=UsageEvent._meta.db_table, places=", ".join(["%s"] * len(some))
        )
        with connection.cursor() as cursor:
            cursor.execute(query, [*map(_sql_id, some), *map(_sql, (after - patience, at, after, until))])
            found = cursor.fetchall()
        missing: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
        for given, source, before, sequence, _ in found:
            license_id = given if isinstance(given, UUID) else UUID(given)
            if before is None:  # the first of this source in that time: what came before it is older
                before = _before(license_id, source, sequence)
            if before is not None:
                missing[license_id] += _lacking(license_id, source, before + 1, sequence - 1)
        for license_id, ranges in missing.items():
            facts = {"missing": sum(gap["last"] - gap["first"] + 1 for gap in ranges), "gaps": len(ranges)}
            yield Subject("license", str(license_id), facts, ranges, license_id)


def _before(license_id: UUID, source: str, sequence: int) -> int | None:
    """Return the highest number below this one that the source ever sent, of what is not archived."""
    rows = UsageEvent.objects.filter(license_id=license_id, source=source, sequence__lt=sequence)
    highest: int | None = rows.aggregate(highest=Max("sequence"))["highest"]
    return highest


def _lacking(license_id: UUID, source: str, first: int, last: int) -> list[dict[str, Any]]:
    """Return which of these numbers never came: some may have come long before the others."""
    if first > last:
        return []
    rows = UsageEvent.objects.filter(license_id=license_id, source=source, sequence__range=(first, last))
    there = sorted({number for number in rows.values_list("sequence", flat=True) if number is not None})
    edges = [first - 1, *there, last + 1]
    return [
        {"source": source, "first": before + 1, "last": after - 1}
        for before, after in pairwise(edges)
        if after > before + 1
    ]


def _step_of(at: datetime) -> datetime:
    hour = _hour_of(at)
    return hour - timedelta(hours=hour.hour % 6)


def _sql_id(license_id: UUID) -> Any:
    return license_id if connection.vendor == "postgresql" else license_id.hex


def _sql(at: datetime) -> Any:
    if connection.vendor == "postgresql":
        return at
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ")


def begin() -> None:
    """Take these rules into the register."""
    rules.register(*RULES)
    rules.look_by("usage_spike", spikes)
    rules.look_by("usage_silence", silences)
    rules.look_by("sequence_gaps", gaps)
