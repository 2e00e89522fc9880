"""What the customer's pages show: frozen values, read in a fixed number of queries however large the license is.

It puts states, dates and terms into plain words. It changes nothing, and it never decides who may look:
the views hand it what `access` allowed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from django.core.paginator import Paginator
from django.db.models import Model, Prefetch, QuerySet
from django.http import QueryDict

from licensing import customers, lifecycle
from licensing.models import (
    Activation,
    Entitlement,
    Hold,
    Lease,
    License,
    LicenseKey,
    Member,
    PlanRevision,
    Product,
    Seat,
)
from licensing.states import (
    EntitlementKind,
    FingerprintScope,
    HoldReason,
    LicenseStatus,
    MemberRole,
    Overage,
    RenewalBasis,
    Scheme,
    SeatKind,
    SeatState,
    ValidityBasis,
)

LICENSES_A_PAGE = 25
SEATS_A_PAGE = 25
MACHINES_A_PAGE = 10
LEASES_A_PAGE = 25

Found = TypeVar("Found", bound=Model)

HOLD_WORDS = {
    HoldReason.UNPAID: "An invoice is unpaid.",
    HoldReason.ABUSE: "Use of the license is being looked into.",
    HoldReason.DISPUTE: "A payment is disputed.",
    HoldReason.SECURITY: "There is a security concern.",
    HoldReason.STAFF: "The vendor stopped it.",
}
ROLE_WORDS = {
    MemberRole.OWNER: "You are an owner: you manage seats and keys, and see statements.",
    MemberRole.LICENSE_MANAGER: "You are a license manager: you manage seats and keys.",
    MemberRole.BILLING: "You are here for billing: you see statements, but cannot change seats or download keys.",
    MemberRole.VIEWER: "You are a viewer: you can look, but not change seats or download keys.",
}


@dataclass(frozen=True, slots=True)
class Pages:
    """Where in a long list we are, and the addresses of what comes before and after."""

    number: int
    last: int
    count: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Status:
    """A license's status: its code, its name, the next date in few words, and all of it in a sentence."""

    code: str
    label: str
    brief: str
    sentence: str


@dataclass(frozen=True, slots=True)
class SeatUse:
    """How many seats are taken, of how many; `limit` is None when there is no limit. A bar never overflows."""

    named: bool
    used: int
    limit: int | None

    @property
    def over(self) -> int:
        return max(self.used - self.limit, 0) if self.limit is not None else 0

    @property
    def full(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    @property
    def bar_value(self) -> int:
        return min(self.used, self.bar_limit)

    @property
    def bar_limit(self) -> int:
        return self.limit or 1

    @property
    def level(self) -> str:
        return "over" if self.over else "full" if self.full else "free"


@dataclass(frozen=True, slots=True)
class LicenseLine:
    """A license in the list."""

    id: UUID
    product: str
    plan: str
    customer: str
    key_last5: str
    status: Status
    seats: SeatUse | None


@dataclass(frozen=True, slots=True)
class LicenseList:
    """One page of the licenses a person may see."""

    lines: list[LicenseLine]
    pages: Pages


@dataclass(frozen=True, slots=True)
class SeatLine:
    """A seat in the list; `at_hand` says that it can be released or handed over."""

    id: UUID
    holder: str
    state: str
    label: str
    since: datetime
    at_hand: bool


@dataclass(frozen=True, slots=True)
class MachineLine:
    """A machine. `borrowed_until` is how long it may work offline with a floating seat, where that was read."""

    id: UUID
    name: str
    platform: str
    activated_at: datetime
    last_seen_at: datetime
    borrowed_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class LeaseLine:
    """Somebody at work on floating capacity. `lapsed` says that their time is over and the unit is about to be free."""

    id: UUID
    machine: str
    since: datetime
    until: datetime
    offline: bool
    lapsed: bool


@dataclass(frozen=True, slots=True)
class Clause:
    """One of the terms: what it is about, and what it says."""

    name: str
    words: str


@dataclass(frozen=True, slots=True)
class HoldLine:
    """One open reason why the license is stopped."""

    words: str
    placed_at: datetime


@dataclass(frozen=True, slots=True)
class LicensePage:
    """Everything the page of one license shows."""

    id: UUID
    product: str
    plan: str
    customer: str
    key_last5: str
    status: Status
    holds: list[HoldLine]
    seats: SeatUse | None
    seat_lines: list[SeatLine]
    seat_pages: Pages
    lease_lines: list[LeaseLine]
    lease_pages: Pages
    machines_used: int
    machine_limit: int | None
    machine_lines: list[MachineLine]
    machine_pages: Pages
    clauses: list[Clause]
    role_words: str
    may_manage_seats: bool
    may_assign_seats: bool
    may_reveal_key: bool
    may_activate_offline: bool
    counts_usage: bool


def list_of_licenses(*, user: Any, asked: QueryDict, path: str, status: str, product: str, at: datetime) -> LicenseList:
    """Return a page of the issued licenses of every customer `user` is a member of."""
    found = (
        _licenses_of(user)
        .select_related("customer", "product", "plan_revision__plan")
        .prefetch_related("holds", _live_keys())
        .order_by("product__name", "-id")
    )
    if status:
        found = found.with_status(status, at)
    if product:
        found = found.filter(product__code=product)
    rows, pages = one_page(found, LICENSES_A_PAGE, asked, "page", path)
    lines = [
        LicenseLine(
            id=row.pk,
            product=row.product.name,
            plan=row.plan_revision.plan.name,
            customer=row.customer.name,
            key_last5=_last5(row),
            status=status_words(row, at),
            seats=_seat_use(row),
        )
        for row in rows
    ]
    return LicenseList(lines, pages)


def products_of(user: Any) -> list[tuple[str, str]]:
    """Return code and name of every product a person has a license of."""
    owned = Product.objects.filter(pk__in=_licenses_of(user).order_by().values("product"))
    return list(owned.order_by("name").values_list("code", "name"))


def customers_of(user: Any) -> list[str]:
    """Return the names of the customers a person may act for."""
    members = Member.objects.filter(user_id=user.pk).order_by("customer__name")
    return list(members.values_list("customer__name", flat=True))


def page_of_license(
    *, license: License, member: Member, asked: QueryDict, path: str, search: str, state: str, at: datetime
) -> LicensePage:
    """Return what the page of a license shows, with one page of its seats and one of its machines."""
    terms = license.plan_revision
    seats = Seat.objects.filter(license=license)
    if state == SeatState.RELEASED:
        seats = seats.filter(state=state).order_by("-released_at", "-id")
    else:
        seats = seats.filter(released_at=None).order_by("holder")
        seats = seats.filter(state=state) if state else seats
    if search:
        seats = seats.filter(holder__icontains=search)
    machines = Activation.objects.filter(license=license, deactivated_at=None).order_by("-last_seen_at", "-id")
    seat_rows, seat_pages = one_page(seats, SEATS_A_PAGE, asked, "page", path)
    out = Lease.objects.filter(license=license, ended_at=None).select_related("activation").order_by("-id")
    lease_rows, lease_pages = one_page(out, LEASES_A_PAGE, asked, "leases", path)
    machine_rows, machine_pages = one_page(machines, MACHINES_A_PAGE, asked, "machines", path)
    key = LicenseKey.objects.filter(license=license, retired_at=None).only("last5").first()
    status = status_words(license, at)
    may_manage_seats = member.role in customers.MAY_MANAGE_SEATS
    return LicensePage(
        id=license.pk,
        product=license.product.name,
        plan=terms.plan.name,
        customer=license.customer.name,
        key_last5=key.last5 if key else "",
        status=status,
        holds=[_hold_line(hold) for hold in license.holds.all() if hold.lifted_at is None],
        seats=_seat_use(license),
        seat_lines=[seat_line(row) for row in seat_rows],
        seat_pages=seat_pages,
        lease_lines=[lease_line(row, at) for row in lease_rows],
        lease_pages=lease_pages,
        machines_used=license.activations_used,
        machine_limit=license.activation_limit,
        machine_lines=[machine_line(row) for row in machine_rows],
        machine_pages=machine_pages,
        clauses=clauses(license),
        role_words=ROLE_WORDS[MemberRole(member.role)],
        may_manage_seats=may_manage_seats,
        # Only spares a form that must fail; the rule is the one to say so.
        may_assign_seats=may_manage_seats and status.code not in (LicenseStatus.EXPIRED, LicenseStatus.REVOKED),
        may_reveal_key=member.role in customers.MAY_REVEAL_KEYS,
        may_activate_offline=may_manage_seats
        and terms.offline_period > timedelta()
        and status.code in (LicenseStatus.ACTIVE, LicenseStatus.IN_GRACE),
        counts_usage=license.scheme != Scheme.SEATS,
    )


def seat_line(seat: Seat) -> SeatLine:
    """Return what a page about one seat shows."""
    return SeatLine(
        id=seat.pk,
        holder=seat.holder,
        state=seat.state,
        label=SeatState(seat.state).label.capitalize(),
        since=seat.released_at or seat.assigned_at or seat.created_at,
        # A blocked seat was taken from its holder on purpose: that is the vendor's to undo.
        at_hand=seat.state in (SeatState.ASSIGNED, SeatState.RESERVED),
    )


def lease_line(lease: Lease, at: datetime) -> LeaseLine:
    """Return what a page about one lease shows."""
    named = lease.activation.name if lease.activation else ""
    return LeaseLine(
        id=lease.pk,
        machine=named or (f"Machine {lease.fingerprint[:16]}" if lease.fingerprint else "Machine not said"),
        since=lease.checked_out_at,
        until=lease.expires_at,
        offline=lease.offline,
        lapsed=lease.expires_at <= at,
    )


def machine_line(machine: Activation, *, borrowed_until: datetime | None = None) -> MachineLine:
    """Return what a list of machines shows of one."""
    return MachineLine(
        id=machine.pk,
        name=machine.name,
        platform=machine.platform,
        activated_at=machine.activated_at,
        last_seen_at=machine.last_seen_at,
        borrowed_until=borrowed_until,
    )


def machine_alone(machine: Activation, at: datetime) -> MachineLine:
    """Return what a page about one machine shows: also whether it borrowed a floating seat."""
    borrowed = Lease.objects.filter(
        license_id=machine.license_id,
        fingerprint=machine.fingerprint,
        ended_at=None,
        offline=True,
        expires_at__gt=at,
    )
    return machine_line(machine, borrowed_until=borrowed.values_list("expires_at", flat=True).first())


def offline_words(license: License) -> str:
    """Return how long a license works without a network; empty when not at all."""
    period = license.plan_revision.offline_period
    if not period:
        return ""
    words = f"The license file works for {span(period)} without a network"
    if (ends := license.grace_until or license.expires_at) is not None:
        words += f", and never beyond {moment(ends)}"
    seat = _seat_use(license)
    return f"{words}." + ("" if seat is None or seat.named else " It takes one of the license's seats for as long.")


def status_words(license: License, at: datetime) -> Status:
    """Return a license's status at the instant `at` in words a customer understands."""
    status = lifecycle.status_of(license, at)
    ends, grace = license.expires_at, license.grace_until
    brief, sentence = "", ""
    match status:
        case LicenseStatus.ACTIVE if at < license.starts_at:
            brief = f"Starts {day(license.starts_at)}"
            sentence = f"It can be used from {moment(license.starts_at)}."
        case LicenseStatus.ACTIVE if ends is None and _waits_for_activation(license):
            brief = "Time starts with first use"
            sentence = "Its time starts when the first machine is activated."
        case LicenseStatus.ACTIVE if ends is None:
            brief, sentence = "Does not expire", "It does not expire."
        case LicenseStatus.ACTIVE if ends is not None:
            brief = f"Expires {day(ends)}"
            sentence = f"It expires on {moment(ends)}, {_left(ends - at)}."
            if grace is not None:
                sentence += f" After that, it can still be used until {moment(grace)}."
        case LicenseStatus.IN_GRACE if ends is not None and grace is not None:
            brief = f"Stops {day(grace)}"
            sentence = (
                f"It expired on {moment(ends)} and can still be used until {moment(grace)}, "
                f"{_left(grace - at)}. Renew it before then."
            )
        case LicenseStatus.EXPIRED if ends is not None:
            brief = f"Expired {day(ends)}"
            sentence = f"It expired on {moment(ends)}. It can be used again once it is renewed."
        case LicenseStatus.HELD:
            brief = "Use is stopped for now"
            sentence = "Use is stopped until every reason below is settled. Nothing is lost meanwhile."
            if ends is not None:
                sentence += f" Its time runs on: it {'expires' if at < ends else 'expired'} on {moment(ends)}."
        case LicenseStatus.REVOKED if license.revoked_at is not None:
            brief = f"Revoked {day(license.revoked_at)}"
            sentence = f"It was ended for good on {moment(license.revoked_at)}. To go on, ask for a new license."
    return Status(status.value, status.label.capitalize(), brief, sentence)


def clauses(license: License) -> list[Clause]:
    """Return the terms of a license as sentences: its plan revision's, with the limits of its own."""
    terms = license.plan_revision
    found = [
        ("Plan", _plan(terms)),
        ("Seats", _seats(license, terms)),
        ("Machines", _machines(license, terms)),
        ("Duration", _duration(terms)),
        ("After expiry", _grace(terms)),
        ("Versions", _versions(license)),
    ]
    found += [(right.key.replace("_", " ").replace("-", " ").capitalize(), _right(right)) for right in _rights(terms)]
    return [Clause(name, words) for name, words in found if words]


def day(at: datetime) -> str:
    """Return a day as people write it: 1 March 2026."""
    return f"{at.day} {at:%B %Y}"


def moment(at: datetime) -> str:
    """Return an instant as people write it, in UTC: 1 March 2026, 12:00 UTC."""
    return f"{day(at)}, {at:%H:%M} UTC"


def between(starts_at: datetime, ends_at: datetime) -> str:
    """Return a half-open stretch as people write one, with its last day; with a time only where it is cut in a day."""
    starts_at, ends_at = starts_at.astimezone(UTC), ends_at.astimezone(UTC)
    last = ends_at - timedelta(microseconds=1)
    cut_before, cut_after = starts_at.time() != time(), ends_at.time() != time()
    same_month = (starts_at.year, starts_at.month) == (last.year, last.month)
    if starts_at.date() == last.date() and not cut_before and not cut_after:
        return day(last)
    first = f"{starts_at.day}" if same_month and not cut_before else f"{starts_at.day} {starts_at:%B}"
    if starts_at.year != last.year:
        first += f" {starts_at.year}"
    first += f", {starts_at:%H:%M}" if cut_before else ""
    return f"{first} to {day(ends_at)}, {ends_at:%H:%M}" if cut_after else f"{first} to {day(last)}"


def amount(quantity: Decimal) -> str:
    """Return a quantity as people write it: in groups of three digits, without zeros at its end."""
    text = f"{quantity:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def span(length: timedelta) -> str:
    """Return a length of time in its largest whole unit: 30 days, 12 hours, 90 minutes."""
    seconds = int(length.total_seconds())
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds % size == 0 and seconds >= size:
            return _many(seconds // size, unit)
    return _many(seconds, "second")


def _licenses_of(user: Any) -> Any:
    return License.objects.filter(customer__members__user_id=user.pk, issued_at__isnull=False)


def _live_keys() -> "Prefetch[str, QuerySet[LicenseKey], str]":
    # Only what may be shown: a list of licenses has no business with digests and sealed keys.
    live = LicenseKey.objects.filter(retired_at=None).only("license_id", "last5")
    return Prefetch("keys", queryset=live)


def _last5(license: License) -> str:
    return next((key.last5 for key in license.keys.all()), "")


def one_page(found: "QuerySet[Found]", size: int, asked: QueryDict, name: str, path: str) -> tuple[list[Found], Pages]:
    page = Paginator(found, size).get_page(asked.get(name))

    def address(number: int) -> str:
        query = asked.copy()
        query[name] = str(number)
        return f"{path}?{query.urlencode()}"

    return list(page.object_list), Pages(
        number=page.number,
        last=page.paginator.num_pages,
        count=page.paginator.count,
        before=address(page.number - 1) if page.has_previous() else "",
        after=address(page.number + 1) if page.has_next() else "",
    )


def _seat_use(license: License) -> SeatUse | None:
    if license.scheme == Scheme.USAGE:
        return None
    named = license.plan_revision.seat_kind == SeatKind.NAMED
    return SeatUse(named, license.seats_used, license.seat_limit)


def _hold_line(hold: Hold) -> HoldLine:
    return HoldLine(HOLD_WORDS[HoldReason(hold.reason)], hold.placed_at)


def _waits_for_activation(license: License) -> bool:
    terms = license.plan_revision
    return (
        terms.validity_basis == ValidityBasis.FROM_FIRST_ACTIVATION
        and license.first_activated_at is None
        and terms.duration is not None
    )


def _left(length: timedelta) -> str:
    if length >= timedelta(days=1):
        return f"in {_many(round(length / timedelta(days=1)), 'day')}"
    return f"in {_many(max(round(length / timedelta(hours=1)), 1), 'hour')}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _plan(terms: PlanRevision) -> str:
    words = {
        Scheme.SEATS: "Limited by seats.",
        Scheme.USAGE: "Limited and charged by use.",
        Scheme.BOTH: "Limited by seats; use is counted too.",
    }[Scheme(terms.scheme)]
    trial = " This is a trial." if terms.trial else ""
    return f"{terms.plan.name}, revision {terms.number}. {words}{trial}"


def _seats(license: License, terms: PlanRevision) -> str:
    if license.scheme == Scheme.USAGE:
        return ""
    limit = license.seat_limit
    if terms.seat_kind == SeatKind.FLOATING:
        words = (
            "Any number of people can work at the same time."
            if limit is None
            else f"Up to {limit:,} can work at the same time, whoever they are."
        )
    else:
        words = "Any number of seats" if limit is None else _many(limit, "seat")
        words += ", each for one named person."
    if terms.seat_required:
        words += " The program works only for people with a seat."
    if terms.seat_churn_limit is not None and terms.churn_window is not None:
        words += (
            f" {_many(terms.seat_churn_limit, 'seat')} can be released or transferred "
            f"within {span(terms.churn_window)}."
        )
    return words


def _machines(license: License, terms: PlanRevision) -> str:
    limit = license.activation_limit
    words = "Any number of machines." if limit is None else f"Up to {_many(limit, 'machine')}."
    if terms.activation_required:
        words += " The program works only on activated machines."
    if terms.fingerprint_scope == FingerprintScope.PRODUCT:
        words += " A machine can be active on one license of the product only."
    if terms.activation_churn_limit is not None and terms.churn_window is not None:
        words += f" {_many(terms.activation_churn_limit, 'machine')} can be let go within {span(terms.churn_window)}."
    if terms.activation_dead_after is not None:
        words += f" A machine that was not seen for {span(terms.activation_dead_after)} is let go by itself."
    return words


def _duration(terms: PlanRevision) -> str:
    if terms.validity_basis == ValidityBasis.FIXED_DATE and terms.fixed_expires_at is not None:
        return f"Until {moment(terms.fixed_expires_at)}."
    if terms.duration is None:
        return "It does not expire."
    start = {
        ValidityBasis.FROM_ISSUE: "from its start",
        ValidityBasis.FROM_FIRST_ACTIVATION: "from the first activation",
    }.get(ValidityBasis(terms.validity_basis), "")
    renewal = {
        RenewalBasis.FROM_EXPIRY: "A renewal counts from the expiry.",
        RenewalBasis.FROM_NOW: "A renewal counts from the day of renewal.",
        RenewalBasis.FROM_NOW_IF_EXPIRED: "A renewal counts from the expiry, or from its own day when that has passed.",
    }[RenewalBasis(terms.renewal_basis)]
    return f"{span(terms.duration)} {start}. {renewal}"


def _grace(terms: PlanRevision) -> str:
    if not terms.grace_period:
        return ""
    return f"It can still be used for {span(terms.grace_period)}, so that there is time to renew."


def _versions(license: License) -> str:
    if license.maintenance_until is None:
        return "All versions are covered."
    return f"Versions released until {moment(license.maintenance_until)} are covered."


def _rights(terms: PlanRevision) -> list[Entitlement]:
    return list(Entitlement.objects.filter(plan_revision=terms).order_by("key"))


def _right(right: Entitlement) -> str:
    match right.kind:
        case EntitlementKind.FLAG:
            return "Included."
        case EntitlementKind.VALUE:
            return right.value
        case _:
            beyond = "more is charged" if right.overage == Overage.CHARGE else "more is refused"
            return f"{amount(right.amount or Decimal())} {right.meter} a period; {beyond}."
