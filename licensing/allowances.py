"""Allowances: the live counters, what is reserved, prepaid credit, and telling the customer in time.

A counter is one row per license, meter and window: the calendar month in UTC, cut where a term begins. It is moved by
one conditional update, so a hard allowance is never oversold, however many take from it at once, with
`CHECK (used + reserved <= ceiling)` as the last word. Windows are opened under the license's lock when they are first
needed, and ended by `reopen` when the terms change. Locks: license, then counter.

It knows no events: `billing.metering` records what is counted, in the same transaction. Source: performance
measurements A7 ("update first, insert only if it moved"), safety 5.9.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson
import structlog
from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, Q

from licensing import audit, events, notices, seats
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import Entitlement, License, Term
from licensing.models.allowances import Counter, CreditGrant, Reservation
from licensing.states import EntitlementKind, Overage, ReservationState

log = structlog.get_logger(__name__)

THRESHOLDS = (50, 80, 100)  # in percent of the allowance
LONGEST_RESERVATION = timedelta(hours=24)
MOST = Decimal(10) ** 15  # quantities are below it, so that sums of them are exact
_STEP = Decimal("0.000001")
_NONE = Decimal()

# Returns what was counted for events of a license and meter that occurred from the first instant to before the second.
Counted = Callable[[UUID, str, datetime, datetime], Decimal]


class AllowanceExhausted(Refused):
    """Nothing, or not enough, is left of this allowance."""

    code = "allowance_exhausted"


class NotStarted(Refused):
    """The license had not started then."""

    code = "not_started"


class ReservationEnded(Refused):
    """This reservation was committed, released or has lapsed."""

    code = "reservation_ended"


@dataclass(slots=True)
class Live:
    """A counter as its transaction works on it: locked by it, written back by `write`."""

    license_id: UUID
    meter: str
    starts_at: datetime
    ends_at: datetime
    allowance: Decimal | None
    ceiling: Decimal | None
    used: Decimal
    reserved: Decimal
    credit: Decimal
    notified_percent: int
    exhausted: bool

    @property
    def room(self) -> Decimal | None:
        """What may still be used or reserved; None where nothing is refused."""
        return None if self.ceiling is None else self.ceiling - self.used - self.reserved

    @property
    def over(self) -> Decimal:
        """What was used beyond a soft allowance and not drawn from credit."""
        if self.allowance is None or self.ceiling is not None:
            return _NONE
        return max(self.used - self.allowance - self.credit, _NONE)

    def reached(self) -> int:
        """Return the highest threshold that what was used has reached, in percent; 0 for none."""
        if not self.allowance:
            return 0
        return max((one for one in THRESHOLDS if self.used * 100 >= self.allowance * one), default=0)


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left of a meter's allowance in the window of an instant; `remaining` None where nothing is refused."""

    meter: str
    starts_at: datetime
    ends_at: datetime
    allowance: Decimal | None
    used: Decimal
    reserved: Decimal
    credit: Decimal
    remaining: Decimal | None


# --- windows ----------------------------------------------------------------------------------------


def month_of(at: datetime) -> tuple[datetime, datetime]:
    """Return the calendar month in UTC that an instant lies in: its start, and its end, which is not in it."""
    start = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, (start + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class _Window:
    starts_at: datetime
    ends_at: datetime
    allowance: Decimal | None
    ceiling: Decimal | None


def _window(terms: list[Term], entitlements: dict[UUID, list[Entitlement]], meter: str, at: datetime) -> _Window | None:
    """Return the window of an instant; None before the first term. `terms` come in the order they start."""
    start, end = month_of(at)
    current: Term | None = None
    for term in terms:
        if term.starts_at <= at:
            current, start = term, max(start, term.starts_at)
        else:
            end = min(end, term.starts_at)
            break
    if current is None:
        return None
    rights = [right for right in entitlements.get(current.plan_revision_id, []) if right.meter == meter]
    allowance = sum((right.amount or _NONE for right in rights), _NONE) if rights else None
    hard = any(right.overage == Overage.REFUSE for right in rights)
    return _Window(start, end, allowance, allowance if hard else None)


def _terms_of(license_ids: Iterable[UUID]) -> tuple[dict[UUID, list[Term]], dict[UUID, list[Entitlement]]]:
    terms: dict[UUID, list[Term]] = {}
    for term in Term.objects.in_force().filter(license_id__in=list(license_ids)).order_by("license_id", "starts_at"):
        terms.setdefault(term.license_id, []).append(term)
    rights: dict[UUID, list[Entitlement]] = {}
    revisions = {term.plan_revision_id for some in terms.values() for term in some}
    for right in Entitlement.objects.filter(plan_revision_id__in=revisions, kind=EntitlementKind.ALLOWANCE):
        rights.setdefault(right.plan_revision_id, []).append(right)
    return terms, rights


def open_windows(wanted: Iterable[tuple[UUID, str, datetime]]) -> set[tuple[UUID, str, datetime]]:
    """See to it that there is a counter for each license, meter and instant. Return those for which none can be: they
    are before the license's first term.

    Takes the locks of the licenses, in order: no term can begin meanwhile.
    """
    asked = sorted(set(wanted), key=lambda one: (str(one[0]), one[1], one[2]))
    with transaction.atomic():
        ids = sorted({one[0] for one in asked}, key=str)
        rows = License.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk")
        list(rows.values_list("pk"))
        terms, rights = _terms_of(ids)
        there: dict[tuple[UUID, str], list[Counter]] = {}
        for one in Counter.objects.filter(license_id__in=ids, meter__in={one[1] for one in asked}):
            there.setdefault((one.license_id, one.meter), []).append(one)
        new: dict[tuple[UUID, str, datetime], Counter] = {}
        nowhere: set[tuple[UUID, str, datetime]] = set()
        for license_id, meter, at in asked:
            if any(one.starts_at <= at < one.ends_at for one in there.get((license_id, meter), [])):
                continue
            found = _window(terms.get(license_id, []), rights, meter, at)
            if found is None:
                nowhere.add((license_id, meter, at))
                continue
            new[license_id, meter, found.starts_at] = _counter(license_id, meter, found)
        Counter.objects.bulk_create(new.values(), ignore_conflicts=True)
    return nowhere


def _counter(license_id: UUID, meter: str, window: _Window, **more: Any) -> Counter:
    return Counter(
        license_id=license_id,
        meter=meter,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        allowance=window.allowance,
        ceiling=window.ceiling,
        **more,
    )


# --- counters under a lock --------------------------------------------------------------------------

_COLUMNS = (
    "c.license_id, c.meter, c.starts_at, c.ends_at, c.allowance, c.ceiling, c.used, c.reserved, c.credit, "
    "c.notified_percent, c.exhausted"
)
_LOCK = f"""
SELECT {_COLUMNS} FROM licensing_counter c
  JOIN json_to_recordset(%s::json) AS w(license_id uuid, meter text, first timestamptz, last timestamptz)
    ON c.license_id = w.license_id AND c.meter = w.meter AND c.starts_at <= w.last AND c.ends_at > w.first
 ORDER BY c.license_id, c.meter, c.starts_at
   FOR NO KEY UPDATE OF c
"""  # noqa: S608  our own words
_READ_SQLITE = f"""
SELECT {_COLUMNS} FROM json_each(%s) w JOIN licensing_counter c
    ON c.license_id = json_extract(w.value, '$[0]') AND c.meter = json_extract(w.value, '$[1]')
   AND c.starts_at <= json_extract(w.value, '$[3]') AND c.ends_at > json_extract(w.value, '$[2]')
"""  # noqa: S608  our own words
_WRITE = """
UPDATE licensing_counter c SET used = v.used, reserved = v.reserved, credit = v.credit, ceiling = v.ceiling
  FROM json_to_recordset(%s::json) AS v(
       license_id uuid, meter text, starts_at timestamptz, used numeric, reserved numeric, credit numeric,
       ceiling numeric)
 WHERE c.license_id = v.license_id AND c.meter = v.meter AND c.starts_at = v.starts_at
"""
_WRITE_SQLITE = (
    "UPDATE licensing_counter SET used = %s, reserved = %s, credit = %s, ceiling = %s"
    " WHERE license_id = %s AND meter = %s AND starts_at = %s"
)


def locked(wanted: Iterable[tuple[UUID, str, datetime, datetime]]) -> list[Live]:
    """Lock and return the counters whose windows hold instants from the first to the last given, in the order of their
    keys, in the caller's transaction. On SQLite the transaction itself is the lock."""
    pairs = list(wanted)
    if not pairs:
        return []
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            names = ("license_id", "meter", "first", "last")
            cursor.execute(_LOCK, [as_json(dict(zip(names, pair, strict=True)) for pair in pairs)])
            return [Live(*row) for row in cursor.fetchall()]
        asked = [[one[0].hex, one[1], sqlite_instant(one[2]), sqlite_instant(one[3])] for one in pairs]
        cursor.execute(_READ_SQLITE, [orjson.dumps(asked).decode()])
        return sorted(map(_from_sqlite, cursor.fetchall()), key=lambda one: (str(one.license_id), one.meter))


def write(lives: Iterable[Live]) -> None:
    """Write back what the caller's transaction, which holds the locks, made of counters. A ceiling that was raised over
    the allowance, because more was in use already, falls with the use: what is given back there is not granted anew."""
    rows = list(lives)
    if not rows:
        return
    for one in rows:
        if one.ceiling is not None:
            one.ceiling = max((one.allowance or _NONE) + one.credit, one.used + one.reserved)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            shown = (
                {
                    "license_id": one.license_id,
                    "meter": one.meter,
                    "starts_at": one.starts_at,
                    "used": str(one.used),
                    "reserved": str(one.reserved),
                    "credit": str(one.credit),
                    "ceiling": None if one.ceiling is None else str(one.ceiling),
                }
                for one in rows
            )
            cursor.execute(_WRITE, [as_json(shown)])
            return
        cursor.executemany(
            _WRITE_SQLITE,
            [
                (
                    *(str(value) for value in (one.used, one.reserved, one.credit)),
                    None if one.ceiling is None else str(one.ceiling),
                    one.license_id.hex,
                    one.meter,
                    sqlite_instant(one.starts_at),
                )
                for one in rows
            ],
        )


def as_json(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as one value for `json_to_recordset`: a fifth of what arrays of psycopg's cost (measured)."""
    return orjson.dumps(list(rows)).decode()


@lru_cache(4_096)
def sqlite_instant(at: datetime) -> str:
    """Return an instant as Django keeps it on SQLite: naive, in UTC."""
    return str(at.astimezone(UTC).replace(tzinfo=None))


def _from_sqlite(row: tuple[Any, ...]) -> Live:
    instants = [value.replace(tzinfo=UTC) for value in row[2:4]]
    numbers = map(number, row[4:9])
    return Live(UUID(row[0]), row[1], *instants, *numbers, row[9], bool(row[10]))  # type: ignore[call-arg]


@lru_cache(4_096)
def number(value: float | str | None) -> Decimal | None:
    """Return a quantity as SQLite keeps it, as what it is: exact to six places."""
    return None if value is None else Decimal(str(value)).quantize(_STEP)


def make_room(live: Live, needed: Decimal, at: datetime) -> bool:
    """Raise a hard ceiling so that `needed` fits, by what lapsed and by credit; return whether it does now.

    The caller holds the locks of the license and the counter. Nothing is drawn if it would not be enough.
    """
    if live.room is None:
        return True
    if live.room < needed:
        _lapse_of(live, at)
    missing = needed - live.room
    if missing <= 0:
        return True
    grants = _open_credit(live.license_id, live.meter, at)
    if sum((one.amount - one.drawn for one in grants), _NONE) < missing:
        return False
    _draw(live, grants, missing)
    live.ceiling = (live.ceiling or _NONE) + missing
    return True


def may_gain(license_id: UUID, meter: str, at: datetime) -> bool:
    """Return whether `make_room` may find something: open credit, or reservations that have lapsed."""
    due = Reservation.objects.filter(
        license_id=license_id, meter=meter, state=ReservationState.OPEN, expires_at__lte=at
    )
    return _credit(license_id, meter, at).exists() or due.exists()


def _credit(license_id: UUID, meter: str, at: datetime) -> Any:
    running = Q(expires_at=None) | Q(expires_at__gt=at)
    return CreditGrant.objects.filter(
        running, license_id=license_id, meter=meter, starts_at__lte=at, drawn__lt=F("amount")
    )


def _open_credit(license_id: UUID, meter: str, at: datetime) -> list[CreditGrant]:
    """Return the grants in the order they are drawn on: priority, then what expires first."""
    return list(_credit(license_id, meter, at).order_by("priority", F("expires_at").asc(nulls_last=True), "pk"))


def _draw(live: Live, grants: list[CreditGrant], quantity: Decimal) -> Decimal:
    """Draw up to `quantity` from the grants for a counter; return how much. The caller holds the license's lock."""
    left = quantity
    for grant in grants:
        part = min(left, grant.amount - grant.drawn)
        if part > 0:
            grant.drawn += part
            grant.save(update_fields=["drawn"])
            left -= part
    live.credit += quantity - left
    return quantity - left


# --- what follows from a count ----------------------------------------------------------------------


def follow(lives: Iterable[Live], at: datetime) -> None:
    """Do what follows once counts are committed: tell of thresholds, draw credit for soft overage, show exhaustion.

    Each step finds out anew under its lock whether it is due, so that it happens once; and if it was not done (killed
    in between), the next count does it, or `catch_up`.
    """
    for live in lives:
        _follow(live, at, at)


def _follow(live: Live, at: datetime, credit_at: datetime) -> None:
    if live.reached() > live.notified_percent:
        _notify(live, at)
    if live.over > 0 and _credit(live.license_id, live.meter, credit_at).exists():
        settle(license_id=live.license_id, meter=live.meter, at=credit_at, window_at=live.starts_at)
    if live.exhausted != (live.room is not None and live.room <= 0):
        show(license_id=live.license_id, meter=live.meter, window_at=live.starts_at, at=at)


def catch_up(*, at: datetime, since: datetime, limit: int = 500) -> tuple[int, int]:
    """Do what should have followed counts in windows that end after `since`, where whoever counted was killed before;
    return for how many counters it was done, and for how many it failed.

    May run twice and next to counts: each step happens once. A window that is over draws only on credit that ran at its
    end. What it looks through is one index of the windows that have an allowance and end after `since`.
    """
    done = failed = 0
    last: Counter | None = None
    while rows := _left_undone(at, since, last, limit):
        for row in rows:
            live = Live(row.license_id, *(getattr(row, name) for name in Live.__slots__[1:]))
            try:
                _follow(live, at, min(at, live.ends_at - timedelta(microseconds=1)))
                done += 1
            except Exception as error:  # one broken license must not keep the others from it
                failed += 1
                log.exception("follow_up_failed", license_id=str(live.license_id), error=type(error).__name__)
        last = rows[-1]
    return done, failed


def _left_undone(at: datetime, since: datetime, last: Counter | None, limit: int) -> list[Counter]:
    """Return the next counters, in the order of their ends, of which something that follows was not done."""
    untold = Q()
    for percent in THRESHOLDS:
        untold |= Q(used__gte=F("allowance") * percent / 100, notified_percent__lt=percent)
    open_credit = CreditGrant.objects.filter(
        Q(expires_at=None) | Q(expires_at__gt=at) | Q(expires_at__gte=OuterRef("ends_at")),
        license_id=OuterRef("license_id"),
        meter=OuterRef("meter"),
        starts_at__lte=at,
        drawn__lt=F("amount"),
    )
    undrawn = Q(ceiling=None, used__gt=F("allowance") + F("credit")) & Exists(
        open_credit.filter(starts_at__lt=OuterRef("ends_at"))
    )
    full = Q(ceiling__lte=F("used") + F("reserved"))
    unshown = Q(full, ~Exists(open_credit), exhausted=False) | Q(~full, exhausted=True)
    rows = Counter.objects.filter(
        Q(untold, allowance__gt=0) | undrawn | Q(unshown, ends_at__gt=at), allowance__isnull=False, ends_at__gt=since
    )
    if last is not None:
        same, more = {"ends_at": last.ends_at}, Q(ends_at__gt=last.ends_at)
        more |= Q(license_id__gt=last.license_id, **same)
        more |= Q(license_id=last.license_id, meter__gt=last.meter, **same)
        rows = rows.filter(more, ends_at__gte=last.ends_at)
    return list(rows.order_by("ends_at", "license_id", "meter")[:limit])


def _notify(live: Live, at: datetime) -> None:
    """Tell the customer of each threshold newly reached, once: whoever moves `notified_percent` tells."""
    with transaction.atomic():
        row = _key(live)
        for percent in THRESHOLDS:
            if percent > live.reached():
                break
            if not row.filter(notified_percent__lt=percent).update(notified_percent=percent):
                continue
            notices.enqueue(
                template=notices.ALLOWANCE,
                license=License(pk=live.license_id),
                at=at,
                meter=live.meter,
                percent=percent,
                allowance=text(live.allowance),
                used=text(live.used),
                ends_at=live.ends_at.isoformat(),
            )
            events.emit(
                event_type=events.THRESHOLD,
                at=at,
                data={
                    "meter": live.meter,
                    "percent": percent,
                    "allowance": text(live.allowance),
                    "used": text(live.used),
                    "ends_at": live.ends_at.isoformat().replace("+00:00", "Z"),
                },
                license_id=live.license_id,
            )


def _key(live: Live) -> Any:
    return Counter.objects.filter(license_id=live.license_id, meter=live.meter, starts_at=live.starts_at)


def settle(*, license_id: UUID, meter: str, window_at: datetime, at: datetime) -> Decimal:
    """Draw credit for what was used beyond a soft allowance in the window of `window_at`; return how much. May run
    twice: what was drawn for the window is kept with it."""
    with transaction.atomic():
        seats.lock(license_id)
        for live in locked([(license_id, meter, window_at, window_at)]):
            drawn = _draw(live, _open_credit(license_id, meter, at), live.over) if live.over > 0 else _NONE
            write([live])
            return drawn
    return _NONE


def settle_all(*, license_ids: Iterable[UUID], starts_at: datetime, ends_at: datetime, at: datetime) -> int:
    """Draw the credit that is due to windows from `starts_at` to `ends_at`, where whoever counted did not come to it;
    return how many windows. A window that is over draws only on credit that ran at its end."""
    over = Counter.objects.filter(
        license_id__in=list(license_ids),
        starts_at__gte=starts_at,
        starts_at__lt=ends_at,
        ceiling=None,
        used__gt=F("allowance") + F("credit"),
    )
    done = 0
    for row in over.order_by("license_id", "meter", "starts_at"):
        ran_at = min(at, row.ends_at - timedelta(microseconds=1))
        if _credit(row.license_id, row.meter, ran_at).exists():
            settle(license_id=row.license_id, meter=row.meter, window_at=row.starts_at, at=ran_at)
            done += 1
    return done


def drawn(
    *, license_ids: Iterable[UUID], starts_at: datetime, ends_at: datetime
) -> dict[UUID, dict[datetime, dict[str, Decimal]]]:
    """Return what the windows that begin from `starts_at` to `ends_at` drew from credit: by license, by their start, by
    meter. One query."""
    rows = Counter.objects.filter(
        license_id__in=list(license_ids), starts_at__gte=starts_at, starts_at__lt=ends_at, credit__gt=0
    )
    found: dict[UUID, dict[datetime, dict[str, Decimal]]] = {}
    for license_id, start, meter, credit in rows.values_list("license_id", "starts_at", "meter", "credit"):
        found.setdefault(license_id, {}).setdefault(start, {})[meter] = credit
    return found


def show(*, license_id: UUID, meter: str, window_at: datetime, at: datetime) -> None:
    """Have validations see whether a counter is exhausted, if that has changed."""
    with transaction.atomic():
        seats.lock(license_id)
        for live in locked([(license_id, meter, window_at, window_at)]):
            _show(live, at)


def _show(live: Live, at: datetime) -> None:
    """As `show`, for a counter that the caller has locked, and its license before it."""
    full = live.room is not None and live.room <= 0
    now = full and not _credit(live.license_id, live.meter, at).exists()
    if now != live.exhausted:
        _key(live).update(exhausted=now)
        live.exhausted = now
        seats.touch(live.license_id, at)


# --- reservations -----------------------------------------------------------------------------------


def reserve(
    *, license: License, meter: str, quantity: Decimal, ttl: timedelta, holder: str, at: datetime
) -> Reservation:
    """Hold a quantity of a meter until it is committed or released, or lapses after `ttl`.

    Raises:
        AllowanceExhausted: less is left.
        NotStarted: the license has no term yet.
        Invalid: nothing is to be held, or for longer than a day.
    """
    if not 0 < quantity < MOST:
        raise Invalid("Reserve more than nothing.", pointer="/quantity")
    if not timedelta() < ttl <= LONGEST_RESERVATION:
        raise Invalid("A reservation runs for 1 to 86400 seconds.", pointer="/ttl_seconds")
    open_windows([(license.pk, meter, at)])
    with transaction.atomic():
        seats.lock(license.pk)
        lives = locked([(license.pk, meter, at, at)])
        if not lives:
            raise NotStarted()
        live = lives[0]
        if not make_room(live, quantity, at):
            raise AllowanceExhausted(f"Only {text(live.room)} is left of '{meter}'.")
        live.reserved += quantity
        write([live])
        made = Reservation.objects.create(
            license=license,
            created_at=at,
            meter=meter,
            counter_starts_at=live.starts_at,
            quantity=quantity,
            expires_at=at + ttl,
            holder=holder,
        )
        _show(live, at)
    return made


def release(*, reservation: Reservation, at: datetime) -> Reservation:
    """Give back what is held. Releasing twice changes nothing.

    Raises:
        ReservationEnded: it was committed, or has lapsed.
    """
    with transaction.atomic():
        row, live = hold_of(reservation)
        if row.state == ReservationState.OPEN:
            end(row, live, ReservationState.RELEASED, at)
            write([live])
            _show(live, at)
        elif row.state != ReservationState.RELEASED:
            raise ReservationEnded(f"This reservation is {row.state}.")
    return row


def hold_of(reservation: Reservation) -> tuple[Reservation, Live]:
    """Return a reservation and its counter, locked, and the license before them, in the caller's transaction."""
    seats.lock(reservation.license_id)
    row = Reservation.objects.select_for_update(no_key=True).get(pk=reservation.pk)
    window_at = row.counter_starts_at
    return row, locked([(row.license_id, row.meter, window_at, window_at)])[0]


def end(row: Reservation, live: Live, state: ReservationState, at: datetime, event_id: str = "") -> None:
    """End an open reservation that the caller has locked, with its counter, and writes that back."""
    live.reserved -= row.quantity
    row.state, row.ended_at, row.event_id = state, at, event_id
    row.save(update_fields=["state", "ended_at", "event_id"])


def lapse(*, at: datetime, limit: int = 500) -> int:
    """Give back what is held by reservations that ran out; return how many."""
    due = Reservation.objects.filter(state=ReservationState.OPEN, expires_at__lte=at).order_by("expires_at")[:limit]
    done = 0
    for reservation in due:
        with transaction.atomic():
            row, live = hold_of(reservation)
            if row.state == ReservationState.OPEN:
                end(row, live, ReservationState.LAPSED, at)
                write([live])
                _show(live, at)
                done += 1
    return done


def lapse_lag(at: datetime) -> timedelta:
    """Return how long the oldest reservation that ran out has waited."""
    due = Reservation.objects.filter(state=ReservationState.OPEN, expires_at__lte=at).order_by("expires_at")
    oldest = due.values_list("expires_at", flat=True).first()
    return max(at - oldest, timedelta()) if oldest else timedelta()


def _lapse_of(live: Live, at: datetime) -> None:
    due = Reservation.objects.select_for_update(no_key=True).filter(
        license_id=live.license_id,
        meter=live.meter,
        counter_starts_at=live.starts_at,
        state=ReservationState.OPEN,
        expires_at__lte=at,
    )
    for row in due.order_by("pk"):
        end(row, live, ReservationState.LAPSED, at)
    write([live])


# --- credit -----------------------------------------------------------------------------------------


def grant(
    *,
    license: License,
    meter: str,
    amount: Decimal,
    by: Actor,
    at: datetime,
    priority: int = 100,
    starts_at: datetime | None = None,
    expires_at: datetime | None = None,
    reason: str = "",
) -> CreditGrant:
    """Give prepaid credit of a meter: it is drawn on where the allowance is used up, in any window while it runs.

    Raises:
        Invalid: it is not positive, or expires before it starts.
    """
    if not 0 < amount < MOST or amount != amount.quantize(_STEP):
        raise Invalid("Credit is more than nothing, with at most 6 decimal places.", pointer="/amount")
    if expires_at is not None and expires_at <= (starts_at or at):
        raise Invalid("Credit expires after it starts.", pointer="/expires_at")
    with transaction.atomic():
        row = seats.lock(license.pk)
        made = CreditGrant.objects.create(
            license=row,
            created_at=at,
            meter=meter,
            amount=amount,
            priority=priority,
            starts_at=starts_at or at,
            expires_at=expires_at,
            reason=reason,
        )
        audit.record(
            action="credit.granted",
            by=by,
            on=row,
            at=at,
            after={"grant": made.pk, "meter": meter, "amount": amount, "expires_at": expires_at},
            reason=reason,
        )
        for live in locked([(row.pk, meter, at, at)]):
            if live.over > 0:
                _draw(live, _open_credit(row.pk, meter, at), live.over)
                write([live])
            _show(live, at)
    return made


def void(*, grant: CreditGrant, reason: str, by: Actor, at: datetime) -> CreditGrant:
    """Let nothing more be drawn from a grant from now on; what was drawn stays drawn. Of one that has expired, or was
    voided before, nothing changes.

    Raises:
        Invalid: nobody says why.
    """
    if not reason.strip():
        raise Invalid("Say why it is voided.", pointer="/reason")
    with transaction.atomic():
        license = seats.lock(grant.license_id)
        row = CreditGrant.objects.select_for_update(no_key=True).get(pk=grant.pk)
        if row.expires_at is not None and row.expires_at <= at:
            return row
        before, row.expires_at = row.expires_at, at
        row.save(update_fields=["expires_at"])
        audit.record(
            action="credit.voided",
            by=by,
            on=license,
            at=at,
            before={"grant": row.pk, "expires_at": before},
            after={"grant": row.pk, "expires_at": at, "left": row.amount - row.drawn},
            reason=reason,
        )
        for live in locked([(license.pk, row.meter, at, at)]):
            _show(live, at)
    return row


# --- what is left -----------------------------------------------------------------------------------


def remaining(*, license: License, at: datetime, meter: str | None = None) -> dict[str, Remaining]:
    """Return what is left at an instant of each meter's allowance, also where nothing was counted yet, and of meters
    without one that were counted."""
    terms, rights = _terms_of([license.pk])
    counters = Counter.objects.filter(license=license, starts_at__lte=at, ends_at__gt=at)
    there = {one.meter: one for one in counters}
    running = [term for term in terms.get(license.pk, []) if term.starts_at <= at]
    meters = set(there)
    if running:
        meters |= {right.meter for right in rights.get(running[-1].plan_revision_id, [])}
    found: dict[str, Remaining] = {}
    for one in sorted(meters if meter is None else meters & {meter}):
        counter = there.get(one)
        if counter is None:
            window = _window(terms[license.pk], rights, one, at)
            assert window is not None
            counter = _counter(license.pk, one, window)
        credit = sum((grant.amount - grant.drawn for grant in _open_credit(license.pk, one, at)), _NONE)
        left = None
        if counter.ceiling is not None:
            left = Decimal(counter.ceiling) - Decimal(counter.used) - Decimal(counter.reserved) + credit
        found[one] = Remaining(
            one,
            counter.starts_at,
            counter.ends_at,
            counter.allowance,
            Decimal(counter.used),
            Decimal(counter.reserved),
            credit,
            left,
        )
    return found


def text(quantity: Decimal | None) -> str | None:
    """Return a quantity as answers spell it: a decimal string without trailing zeros."""
    if quantity is None:
        return None
    shown = f"{quantity:f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


# --- a change of terms ------------------------------------------------------------------------------

_counted: list[Counted] = []


def count_by(counted: Counted) -> None:
    """Say who knows what was counted for events: billing does, which this app must not import."""
    _counted[:] = [counted]


def reopen(*, license: License, at: datetime) -> None:
    """End the license's windows at `at` and go on in new ones, under the terms in force from then on.

    The caller has locked the license and written the new term. What was counted for events that occurred from `at` on
    moves to the new windows, exactly: whoever counts at the same time waits for the counter, and then finds its window
    ended. A ceiling below what is moved stays at that, so nothing more is granted and nobody is thrown out.
    """
    for live in locked([(license.pk, meter, at, at) for meter in _meters(license)]):
        if live.starts_at == at:  # nothing came between: the window itself is now under the new terms
            _renew(live, license, at)
            continue
        moved = _counted[0](license.pk, live.meter, at, live.ends_at) if _counted else _NONE
        held = _move_reservations(license, live.meter, live.starts_at, at, at)
        ended_at = live.ends_at
        live.used, live.reserved = live.used - moved, live.reserved - held
        write([live])
        _key(live).update(ends_at=at, exhausted=False)
        terms, rights = _terms_of([license.pk])
        window = _window(terms[license.pk], rights, live.meter, at)
        assert window is not None
        opened = _counter(license.pk, live.meter, window, used=moved, reserved=held)
        opened.starts_at, opened.ends_at = at, min(ended_at, window.ends_at)
        if opened.ceiling is not None:
            opened.ceiling = max(opened.ceiling, moved + held)
        opened.save(force_insert=True)
    _renew_later(license, at)
    _show_all(license, at)


def rejoin(*, license: License, at: datetime) -> None:
    """Undo `reopen`: the window of `at` is again the one of the former terms, with all that was counted in the parts it
    was cut into, also where only one of them was ever opened. The caller has locked the license. Ceilings and
    allowances are those of before, or what is used."""
    terms, rights = _terms_of([license.pk])
    for meter in _meters(license):
        window = _window(terms[license.pk], rights, meter, at)
        assert window is not None
        there = locked([(license.pk, meter, window.starts_at, window.ends_at)])
        parts = [one for one in there if one.starts_at < window.ends_at]
        if not parts:
            continue
        whole = Counter(
            license_id=license.pk,
            meter=meter,
            starts_at=window.starts_at,
            ends_at=window.ends_at,
            allowance=window.allowance,
            used=sum((one.used for one in parts), _NONE),
            reserved=sum((one.reserved for one in parts), _NONE),
            credit=sum((one.credit for one in parts), _NONE),
            notified_percent=parts[0].notified_percent,
            exhausted=any(one.exhausted for one in parts),
        )
        if window.ceiling is not None:
            whole.ceiling = max(window.ceiling + whole.credit, whole.used + whole.reserved)
        for one in parts:
            Reservation.objects.filter(license=license, meter=meter, counter_starts_at=one.starts_at).update(
                counter_starts_at=window.starts_at
            )
            _key(one).delete()
        whole.save(force_insert=True)
    _renew_later(license, at)
    _show_all(license, at)


def _renew_later(license: License, at: datetime) -> None:
    """Put the windows that began after `at` (a change made late, or undone months later) under the terms in force."""
    later = Counter.objects.filter(license=license, starts_at__gt=at).order_by("meter", "starts_at")
    for live in locked([(license.pk, one.meter, one.starts_at, one.starts_at) for one in later]):
        _renew(live, license, live.starts_at)


def _renew(live: Live, license: License, at: datetime) -> None:
    terms, rights = _terms_of([license.pk])
    window = _window(terms[license.pk], rights, live.meter, at)
    assert window is not None
    ceiling = window.ceiling
    if ceiling is not None:
        ceiling = max(ceiling + live.credit, live.used + live.reserved)
    _key(live).update(allowance=window.allowance, ceiling=ceiling)


def _meters(license: License) -> list[str]:
    return sorted(set(Counter.objects.filter(license=license).values_list("meter", flat=True)))


def _move_reservations(license: License, meter: str, since: datetime, to: datetime, at: datetime) -> Decimal:
    """Move the open reservations made from `at` on to the window that begins then; return how much they hold."""
    rows = Reservation.objects.filter(
        license=license, meter=meter, counter_starts_at=since, state=ReservationState.OPEN, created_at__gte=at
    )
    held = sum((row.quantity for row in rows), _NONE)
    rows.update(counter_starts_at=to)
    return held


def _show_all(license: License, at: datetime) -> None:
    for live in locked([(license.pk, meter, at, at) for meter in _meters(license)]):
        _show(live, at)
