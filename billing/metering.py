"""Metering: count each usage event exactly once.

An event that was acknowledged is committed, and counted once however often it is sent, for as long as it may be sent at
all: its id is remembered, with a digest of what it said, in the transaction that counts it. The same id with the same
content is a duplicate and gets the same receipt; with other content it is a conflict, and an anomaly.

On PostgreSQL an event, or a batch of them, is one statement in one round trip: the counters first, the rows only if
they moved, so a duplicate id undoes all of it (measured: A7, "update first, insert only if it moved"). Everything else
(SQLite, whatever that statement did not count) goes the one other way: lock the counters in the order of their keys,
read the known ids, decide here, write what was accepted. Totals are `billing.rollups`.
"""

import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from itertools import groupby
from typing import Any
from uuid import UUID

import msgspec
import orjson
from django.db import DatabaseError, IntegrityError, OperationalError, connection, transaction
from django.db.models import Sum

from billing import rollups
from billing.models import MeterRevision, UsageEvent
from billing.states import COUNTED_LIVE, Aggregation, EventKind
from billing.windows import ACCEPTED_AHEAD, ACCEPTED_BACK
from licensing import allowances, anomalies, audit, live, prepared
from licensing.allowances import AllowanceExhausted, Live
from licensing.audit import Actor
from licensing.decision import Snapshot
from licensing.errors import Invalid, LicensingError, Refused
from licensing.ids import uuid7_text
from licensing.models import Hold, License, Term
from licensing.models.allowances import Reservation
from licensing.states import ReservationState, Severity

MOST_AT_ONCE = 1_000
LONGEST_ID, MOST_DIMENSIONS, LONGEST_VALUE = 200, 20, 200
_STEP = Decimal("0.000001")
_CODE = re.compile(r"[\w-]{1,64}", re.ASCII)
_ONE = Decimal(1)
_REVISIONS_KNOWN_SECONDS = 2.0
_TRIES = 8


class EventConflict(Refused):
    """An event with this id was counted already, with other content."""

    code = "event_conflict"


class UnknownMeter(Invalid):
    """There is no such meter."""

    code = "unknown_meter"


class UnknownDimension(Invalid):
    """The meter has no such dimension."""

    code = "unknown_dimension"


class DimensionMissing(Invalid):
    """The meter counts the different values of a dimension that this event does not name."""

    code = "dimension_missing"


class FilteredOut(Invalid):
    """The meter's filters leave such events out."""

    code = "filtered_out"


class BadQuantity(Invalid):
    """A quantity is a decimal number from 0, with at most 6 decimal places."""

    code = "bad_quantity"


class TooOld(Invalid):
    """The event occurred longer ago than events are accepted."""

    code = "too_old"


class TooEarly(Invalid):
    """The event lies further in the future than clocks may differ."""

    code = "too_far_ahead"


class NotUsable(Refused):
    """The license could not be used when the event occurred."""

    code = "license_not_usable"


class Sent(msgspec.Struct, frozen=True, gc=False):
    """An event as somebody reports it. Without `occurred_at` it occurred when it is received."""

    event_id: str
    meter: str
    quantity: Decimal = _ONE
    occurred_at: datetime | None = None
    dimensions: dict[str, str] | None = None
    sequence: int | None = None


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What became of an event: `status` is counted, duplicate or rejected (then `error` says why).

    `remaining` is what is left of a hard allowance right after it was counted; None where nothing is refused, and for
    duplicates, of which only what was counted is said again.
    """

    status: str
    license_id: UUID
    event_id: str
    meter: str = ""
    quantity: Decimal | None = None
    occurred_at: datetime | None = None
    received_at: datetime | None = None
    remaining: Decimal | None = None
    error: LicensingError | None = None

    @property
    def code(self) -> str | None:
        return self.error.code if self.error else None


class _Event(msgspec.Struct, gc=False):
    """An event on its way. `error` is why it is refused, unless it turns out to be known already."""

    license_id: UUID
    event_id: str
    meter: str
    revision_id: str | None
    live: bool
    quantity: Decimal
    occurred_at: datetime
    digest: bytes
    dimensions: dict[str, str] | None
    sequence: int | None
    source: str
    kind: EventKind = EventKind.USAGE
    reason: str = ""
    error: LicensingError | None = None
    bounded: bool = True  # a correction is counted beyond a hard allowance too

    @property
    def hour(self) -> datetime:
        return self.occurred_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


# --- what may be counted ----------------------------------------------------------------------------


class _Counts(msgspec.Struct, frozen=True):
    """A published meter revision as events are checked against it."""

    id: str
    aggregation: str
    dimensions: frozenset[str]
    filters: dict[str, frozenset[str]]
    unique_by: str


_known: dict[str, tuple[float, _Counts | None]] = {}


def forget() -> None:
    """Look the meters up anew: for tests, and for whoever has just published one."""
    _known.clear()


def _revision(code: str) -> _Counts | None:
    """Return the published revision of a meter; a new one is seen within two seconds."""
    if not _CODE.fullmatch(code):
        return None
    kept = _known.get(code)
    now = time.monotonic()
    if kept is not None and now - kept[0] < _REVISIONS_KNOWN_SECONDS:
        return kept[1]
    row = MeterRevision.objects.filter(meter__code=code, state="published").first()
    found = None
    if row is not None:
        filters = {name: frozenset(map(str, values)) for name, values in row.filters.items()}
        found = _Counts(str(row.pk), row.aggregation, frozenset(row.dimensions), filters, row.unique_by)
    if len(_known) > 10_000:
        _known.clear()
    _known[code] = (now, found)
    return found


_id = lru_cache(20_000)(UUID)


def _checked(license: Snapshot, sent: Sent, source: str, at: datetime) -> _Event:
    counts = _revision(sent.meter)
    error: LicensingError | None = None
    quantity = sent.quantity
    try:
        quantity = _quantity(quantity, counts, EventKind.USAGE)
        _fits(sent, counts)
        _in_time(license, sent.occurred_at or at, at)
    except LicensingError as refused:
        error = refused
    return _Event(
        license_id=_id(license.license_id),
        event_id=sent.event_id,
        meter=sent.meter,
        revision_id=counts.id if counts else None,
        live=counts is not None and counts.aggregation in COUNTED_LIVE,
        quantity=quantity,
        occurred_at=sent.occurred_at or at,
        digest=_digest(sent, EventKind.USAGE),
        dimensions=sent.dimensions or None,
        sequence=sent.sequence,
        source=source,
        error=error,
    )


def _quantity(quantity: Decimal, counts: _Counts | None, kind: EventKind) -> Decimal:
    """Return the quantity as it is counted. Raises `BadQuantity`."""
    if not quantity.is_finite() or (quantity < 0 and kind == EventKind.USAGE):
        raise BadQuantity(pointer="/quantity")
    if abs(quantity) >= allowances.MOST:
        raise BadQuantity("A quantity has at most 15 digits before the point.", pointer="/quantity")
    exact = quantity.quantize(_STEP)
    if exact != quantity:
        raise BadQuantity("A quantity has at most 6 decimal places.", pointer="/quantity")
    if counts is not None and counts.aggregation == Aggregation.COUNT and kind == EventKind.USAGE:
        return _ONE
    return exact


def _fits(sent: Sent, counts: _Counts | None) -> None:
    """Raise what speaks against an event of this meter."""
    if counts is None:
        raise UnknownMeter(f"There is no meter '{sent.meter[:64]}'.", pointer="/meter")
    dimensions = sent.dimensions or {}
    for name, value in dimensions.items():
        if name not in counts.dimensions:
            names = ", ".join(sorted(counts.dimensions)) or "none"
            raise UnknownDimension(
                f"'{name[:64]}' is no dimension of this meter; it has: {names}.", pointer="/dimensions"
            )
        if len(value) > LONGEST_VALUE or "\x00" in value:
            raise Invalid(f"A dimension's value has at most {LONGEST_VALUE} characters.", pointer="/dimensions")
    for name, values in counts.filters.items():
        if dimensions.get(name) not in values:
            raise FilteredOut(
                f"This meter counts only events whose {name} is one of its values.", pointer="/dimensions"
            )
    if counts.unique_by and counts.unique_by not in dimensions:
        raise DimensionMissing(f"This meter needs the dimension '{counts.unique_by}'.", pointer="/dimensions")


def _in_time(license: Snapshot, occurred_at: datetime, at: datetime) -> None:
    if occurred_at < at - ACCEPTED_BACK:
        raise TooOld(
            f"Events are accepted until {ACCEPTED_BACK.days} days after they occurred.", pointer="/occurred_at"
        )
    if occurred_at > at + ACCEPTED_AHEAD:
        raise TooEarly("Events are accepted up to 5 minutes ahead of the clock here.", pointer="/occurred_at")
    if occurred_at < license.starts_at:
        raise allowances.NotStarted()
    until = license.usable_until()
    if license.issued and not license.revoked and not license.holds and (until is None or occurred_at < until):
        return
    code, stopped_at = _stopped(license)
    if stopped_at is None or occurred_at >= stopped_at:
        error = NotUsable(f"The license was {code.replace('_', ' ')} when this event occurred.")
        error.code = code
        raise error


def _stopped(license: Snapshot) -> tuple[str, datetime | None]:
    """Return why a license cannot be used, as verdicts say it, and since when. Lifted holds do not count."""
    row = License.objects.filter(pk=license.license_id).first()
    if row is None or row.issued_at is None:
        return "not_found", None
    held_at = Hold.objects.filter(license=row, lifted_at=None).order_by("placed_at").values_list("placed_at", flat=True)
    since = {"revoked": row.revoked_at, "held": held_at.first(), "expired": row.grace_until or row.expires_at}
    stops = {code: instant for code, instant in since.items() if instant is not None}
    return next(iter(stops), "expired"), min(stops.values(), default=datetime.max.replace(tzinfo=UTC))


def _digest(sent: Sent, kind: EventKind) -> bytes:
    """Return what tells an event's content, as it was sent, from another's, however its quantity is spelled."""
    quantity = sent.quantity
    shown = allowances.text(quantity) if quantity.is_finite() and abs(quantity.adjusted()) < 30 else str(quantity)
    when = sent.occurred_at.astimezone(UTC).isoformat() if sent.occurred_at else None
    content = [sent.meter, shown, when, sent.dimensions or {}, sent.sequence, str(kind)]
    return blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


# --- counting ---------------------------------------------------------------------------------------


def consume(*, license: Snapshot, sent: Sent, source: str, at: datetime) -> Receipt:
    """Count one event; return its receipt, counted or duplicate.

    Raises:
        EventConflict: its id was counted with other content.
        AllowanceExhausted: it does not fit a hard allowance.
        NotUsable, NotStarted: the license could not be used when it occurred.
        Invalid: meter, dimensions, quantity or time are not what can be counted.
    """
    event = _checked(license, sent, source, at)
    receipt = None
    if event.error is None and connection.vendor == "postgresql":
        receipt = _at_once(event, at)
    if receipt is None:
        receipt = _settled([event], at)[0]
    if live.wanted:
        _tell(license, event, receipt)
    if receipt.error is not None:
        raise receipt.error
    return receipt


def consume_batch(*, sent: Sequence[tuple[Snapshot, Sent]], source: str, at: datetime) -> list[Receipt]:
    """Count up to a thousand events, of any licenses, in one transaction; return their receipts in order.

    One that is rejected does not sink the rest: its receipt says why.
    """
    assert len(sent) <= MOST_AT_ONCE
    events = [_checked(license, one, source, at) for license, one in sent]
    receipts = _all_at_once(events, source, at) if connection.vendor == "postgresql" else None
    if receipts is None:
        receipts = _settled(events, at)
    if live.wanted:
        for (license, _), event, receipt in zip(sent, events, receipts, strict=True):
            _tell(license, event, receipt)
    return receipts


class Used(msgspec.Struct, frozen=True, gc=False):
    """A live event, as `licensing.live` tells of it: `code` is counted, allowance_exhausted or expired."""

    snapshot: Snapshot
    meter: str
    quantity: Decimal
    occurred_at: datetime
    code: str


def _tell(license: Snapshot, event: _Event, receipt: Receipt) -> None:
    """Tell whoever listens of an event that other terms might have answered otherwise: a duplicate is none."""
    code = receipt.code or receipt.status
    if event.live and code in ("counted", AllowanceExhausted.code, "expired"):
        live.tell(license, Used(license, event.meter, event.quantity, event.occurred_at, code))


_INSERTS = """
 id AS (
   INSERT INTO billing_usageid (license_id, event_id, digest, occurred_at, received_at)
   SELECT $1::uuid, $4::text, decode($6::text, 'hex'), $3::timestamptz, $7::timestamptz FROM moved),
 event AS (
   INSERT INTO billing_usageevent (license_id, occurred_at, event_id, meter_revision_id, quantity, dimensions, sequence,
                                   received_at, source, kind, reason)
   SELECT $1::uuid, $3::timestamptz, $4::text, $8::uuid, $5::numeric, $9::jsonb, $10::bigint, $7::timestamptz,
          $11::text, 'usage', '' FROM moved),
 change AS (
   INSERT INTO billing_usagechange (license_id, meter_revision_id, hour)
   SELECT $1::uuid, $8::uuid, date_trunc('hour', $3::timestamptz, 'UTC') FROM moved)
"""
_COUNT_ONE = f"""
WITH moved AS (
   UPDATE licensing_counter SET used = used + $5::numeric
    WHERE license_id = $1::uuid AND meter = $2::text AND starts_at <= $3::timestamptz AND ends_at > $3::timestamptz
      AND (ceiling IS NULL OR used + reserved + $5::numeric <= ceiling)
   RETURNING starts_at, ends_at, allowance, ceiling, used, reserved, credit, notified_percent, exhausted),
{_INSERTS}
SELECT json_build_array(starts_at, ends_at, allowance::text, ceiling::text, used::text, reserved::text, credit::text,
                        notified_percent, exhausted) FROM moved
"""  # noqa: S608  our own words
_RECORD_ONE = f"""
WITH moved AS (SELECT 1 WHERE $2::text IS NOT NULL),
{_INSERTS}
SELECT '[]'::json FROM moved
"""  # noqa: S608  our own words


def _at_once(event: _Event, at: datetime) -> Receipt | None:
    """Count an event by one statement; return None where that did not: there is no window yet, the allowance is used
    up, or the id is known."""
    values = [
        str(event.license_id),
        event.meter,
        event.occurred_at.isoformat(),
        event.event_id,
        str(event.quantity),
        event.digest.hex(),
        at.isoformat(),
        event.revision_id,
        orjson.dumps(event.dimensions) if event.dimensions else None,
        None if event.sequence is None else str(event.sequence),
        event.source,
    ]
    row = _unless_known(_COUNT_ONE if event.live else _RECORD_ONE, values)
    if row is None:
        return None
    if not event.live:
        return _counted(event, None, at)
    live = _live(event.license_id, event.meter, row)
    allowances.follow([live], at)
    return _counted(event, live.room, at)


def _unless_known(query: str, values: list[Any]) -> list[Any] | None:
    """Return the row of a statement that counts; None where it gave none, or an id is known."""
    try:
        if connection.in_atomic_block:
            with transaction.atomic():  # a known id must leave the caller's transaction usable
                return prepared.one(query, values)
        return prepared.one(query, values)
    except IntegrityError:
        return None
    except OperationalError as error:
        if not _may_pass(error):
            raise
        return None


def _live(license_id: UUID, meter: str, row: list[Any]) -> Live:
    numbers = [None if value is None else Decimal(value) for value in row[2:7]]
    instants = [datetime.fromisoformat(value) for value in row[:2]]
    return Live(license_id, meter, *instants, *numbers, row[7], row[8])  # type: ignore[call-arg, arg-type]


def _counted(event: _Event, remaining: Decimal | None, at: datetime) -> Receipt:
    return Receipt(
        "counted", event.license_id, event.event_id, event.meter, event.quantity, event.occurred_at, at, remaining
    )


# Batches of the same licenses queue for their first counter: one that waited begins with the others as they are now.
# Within a statement it would look at each row that changed since twice more (measured: a quarter of its time).
_QUEUE = """
SELECT FROM licensing_counter WHERE license_id = %s AND meter = %s AND starts_at <= %s AND ends_at > %s
   FOR NO KEY UPDATE
"""
# All locks are taken, in the order of the keys, before `fits` says whether anything moves; then all of it does.
_COUNT_ALL = """
WITH sent AS MATERIALIZED (
   SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::text[], $6::numeric[], $7::text[],
                        $8::text[], $9::bigint[])
       AS s(license_id, occurred_at, event_id, meter_revision_id, meter, quantity, digest, dimensions, sequence)),
 asked AS MATERIALIZED (
   SELECT license_id, meter, min(occurred_at) AS first, max(occurred_at) AS last, sum(quantity) AS quantity
     FROM sent WHERE meter IS NOT NULL GROUP BY license_id, meter),
 locked AS MATERIALIZED (
   SELECT c.license_id, c.meter, c.starts_at, a.quantity,
          c.ceiling IS NULL OR c.used + c.reserved + a.quantity <= c.ceiling AS fits
     FROM asked a JOIN licensing_counter c
       ON c.license_id = a.license_id AND c.meter = a.meter AND c.starts_at <= a.first AND c.ends_at > a.last
    ORDER BY c.license_id, c.meter, c.starts_at
      FOR NO KEY UPDATE OF c),
 fits AS MATERIALIZED (
   SELECT 1 FROM locked HAVING count(*) = (SELECT count(*) FROM asked) AND coalesce(bool_and(fits), true)),
 moved AS (
   UPDATE licensing_counter c SET used = c.used + l.quantity FROM locked l
    WHERE EXISTS (SELECT FROM fits)
      AND c.license_id = l.license_id AND c.meter = l.meter AND c.starts_at = l.starts_at
   RETURNING c.*),
 accepted AS MATERIALIZED (
   SELECT * FROM sent WHERE EXISTS (SELECT FROM fits) AND (SELECT count(*) FROM moved) >= 0),
 id AS (
   INSERT INTO billing_usageid (license_id, event_id, digest, occurred_at, received_at)
   SELECT license_id, event_id, decode(digest, 'hex'), occurred_at, $10::timestamptz FROM accepted),
 change AS (
   INSERT INTO billing_usagechange (license_id, meter_revision_id, hour)
   SELECT DISTINCT license_id, meter_revision_id, date_trunc('hour', occurred_at, 'UTC') FROM accepted),
 event AS (
   INSERT INTO billing_usageevent (license_id, occurred_at, event_id, meter_revision_id, quantity, dimensions, sequence,
                                   received_at, source, kind, reason)
   SELECT license_id, occurred_at, event_id, meter_revision_id, quantity, dimensions::jsonb, sequence,
          $10::timestamptz, $11::text, 'usage', '' FROM accepted)
SELECT (SELECT coalesce(json_agg(json_build_array(
                 starts_at, ends_at, allowance::text, ceiling::text, used::text, reserved::text, credit::text,
                 notified_percent, exhausted, license_id, meter)), '[]')
          FROM moved WHERE allowance IS NOT NULL OR ceiling IS NOT NULL OR exhausted)
  FROM fits
"""


def _all_at_once(events: list[_Event], source: str, at: datetime) -> list[Receipt] | None:
    """Count a batch by one statement; return None, with nothing counted, where not all of it can be, or an id comes
    twice or is known."""
    keys = {(event.license_id, event.event_id) for event in events}
    if len(keys) < len(events) or any(event.error is not None for event in events):
        return None
    rows = sorted(events, key=_place)
    ids = [event.event_id for event in rows]
    if not "".join(ids).isprintable():  # an array is spelled like JSON but for what is not
        return None
    shown = orjson.dumps([event.dimensions and orjson.dumps(event.dimensions).decode() for event in rows])
    numbers = [event.sequence for event in rows]
    values = [
        _array(str(event.license_id) for event in rows),
        _array(event.occurred_at.isoformat() for event in rows),
        _array([orjson.dumps(ids)[1:-1].decode()]),
        _array(str(event.revision_id) for event in rows),
        _array(f'"{event.meter}"' if event.live else "NULL" for event in rows),
        _array(str(event.quantity) for event in rows),
        _array(event.digest.hex() for event in rows),
        _array([shown[1:-1].decode()]),
        _array("NULL" if number is None else str(number) for number in numbers),
        at.isoformat(),
        source,
    ]
    first = min(events, key=lambda event: (not event.live, event.license_id.int, event.meter))
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(_QUEUE, [first.license_id, first.meter, first.occurred_at, first.occurred_at])
            found = prepared.one(_COUNT_ALL, values)
    except IntegrityError:
        return None
    except OperationalError as error:
        if not _may_pass(error):
            raise
        return None
    if found is None:
        return None
    lives = [_live(_id(row[9]), row[10], row) for row in found]
    allowances.follow(lives, at)
    left = {(live.license_id, live.meter): live.room for live in lives if live.room is not None}
    receipts = []
    for event in reversed(events):
        room = left.get((event.license_id, event.meter)) if left and event.live else None
        receipts.append(_counted(event, room, at))
        if room is not None:
            left[event.license_id, event.meter] = room + event.quantity
    return receipts[::-1]


def _array(items: Iterable[str]) -> str:
    return f"{{{','.join(items)}}}"


def _place(event: _Event) -> tuple[int, str]:
    """Return where an event's rows are written: always in the order of their ids, so that no two wait in a ring."""
    return event.license_id.int, event.event_id


class _Again(Exception):
    """The transaction found that something must be there, or be locked, before it begins."""

    def __init__(self, windows: Iterable[tuple[UUID, str, datetime]] = (), licenses: Iterable[UUID] = ()) -> None:
        self.windows, self.licenses = list(windows), list(licenses)


def _settled(events: list[_Event], at: datetime) -> list[Receipt]:
    """Count events in one transaction; return their receipts in order.

    Raises `DatabaseError` where others were in the way again and again: an id can be in it only once for each event.
    """
    licenses: set[UUID] = set()
    nowhere: set[tuple[UUID, str, datetime]] = set()
    tries = _TRIES + len(events)
    for attempt in range(tries):
        try:
            with transaction.atomic():
                receipts, lives = _settle(events, sorted(licenses, key=str), nowhere, at)
        except _Again as again:
            if again.licenses:  # all at once: one by one a batch of many licenses would never come to its end
                licenses.update(event.license_id for event in events if event.live)
            if again.windows:  # one that a change of terms cuts meanwhile is opened once more
                nowhere |= allowances.open_windows(again.windows)
            continue
        except IntegrityError:  # another transaction counted one of these ids: it is known now
            if attempt == tries - 1:
                raise
            continue
        except OperationalError as error:
            if attempt == tries - 1 or not _may_pass(error):
                raise
            continue
        allowances.follow(lives, at)
        _suspect(events, receipts, at)
        return receipts
    raise DatabaseError("Usage could not be counted: its windows changed again and again.")


def _may_pass(error: OperationalError) -> bool:
    """Return whether the transaction met another and may be tried again."""
    return getattr(error.__cause__, "sqlstate", None) in ("40P01", "40001")


def _settle(
    events: list[_Event], licenses: list[UUID], nowhere: set[tuple[UUID, str, datetime]], at: datetime
) -> tuple[list[Receipt], list[Live]]:
    if licenses:
        list(License.objects.select_for_update(no_key=True).filter(pk__in=licenses).order_by("pk").values_list("pk"))
    counters = _counters(events, nowhere)
    known = _known_ids(events)
    accepted: list[_Event] = []
    receipts: list[Receipt] = []
    touched: dict[int, Live] = {}
    for event in events:
        key = (event.license_id, event.event_id)
        before = known.get(key)
        if before is not None:
            receipts.append(_again_sent(event, before))
            continue
        live = _live_of(counters, event) if event.live and event.error is None else None
        error = event.error
        if error is None and event.live:
            error = _take(event, live, event.license_id in licenses, at)
            if live is not None:
                touched[id(live)] = live
        if error is not None:
            receipts.append(Receipt("rejected", event.license_id, event.event_id, event.meter, error=error))
            continue
        accepted.append(event)
        known[key] = event.digest, event.occurred_at, at, event.quantity
        receipts.append(_counted(event, live.room if live else None, at))
    if accepted:
        _insert(accepted, at)
        allowances.write(touched.values())
    return receipts, list(touched.values())


def _counters(events: list[_Event], nowhere: set[tuple[UUID, str, datetime]]) -> dict[tuple[UUID, str], list[Live]]:
    """Lock the counters of the events. Raises `_Again` where one is missing that can be opened."""
    spans: dict[tuple[UUID, str], tuple[datetime, datetime]] = {}
    live = [event for event in events if event.live and event.error is None]
    for event in live:
        key, when = (event.license_id, event.meter), event.occurred_at
        first, last = spans.get(key, (when, when))
        spans[key] = min(first, when), max(last, when)
    found: dict[tuple[UUID, str], list[Live]] = {key: [] for key in spans}
    for counter in allowances.locked([(*key, *span) for key, span in spans.items()]):
        found[counter.license_id, counter.meter].append(counter)
    missing = {
        (event.license_id, event.meter, event.occurred_at)
        for event in live
        if _live_of(found, event) is None and (event.license_id, event.meter, event.occurred_at) not in nowhere
    }
    if missing:
        raise _Again(windows=missing)
    return found


def _live_of(counters: dict[tuple[UUID, str], list[Live]], event: _Event) -> Live | None:
    for counter in counters[event.license_id, event.meter]:
        if counter.starts_at <= event.occurred_at < counter.ends_at:
            return counter
    return None


def _take(event: _Event, live: Live | None, license_locked: bool, at: datetime) -> LicensingError | None:
    """Count an event on its counter; return why not, if it cannot be. Raises `_Again` if the license must be locked."""
    if live is None:
        return allowances.NotStarted()
    if live.room is not None and event.quantity > live.room:
        if not event.bounded:
            live.ceiling = live.used + live.reserved + event.quantity
        elif not license_locked and allowances.may_gain(live.license_id, live.meter, at):
            raise _Again(licenses=[live.license_id])
        elif not license_locked or not allowances.make_room(live, event.quantity, at):
            left = allowances.text(live.room)
            return AllowanceExhausted(f"{left} is left of '{live.meter}' until {live.ends_at:%Y-%m-%d %H:%M} UTC.")
    live.used += event.quantity
    return None


# What is remembered of an event: digest, when it occurred and was received, and as how much it was counted.
_Before = tuple[bytes, datetime, datetime, Decimal | None]


def _again_sent(event: _Event, before: _Before) -> Receipt:
    digest, occurred_at, received_at, quantity = before
    if digest != event.digest:
        error = EventConflict()
        return Receipt("rejected", event.license_id, event.event_id, event.meter, error=error)
    if quantity is None:  # archived since
        quantity = event.quantity
    return Receipt("duplicate", event.license_id, event.event_id, event.meter, quantity, occurred_at, received_at)


def _suspect(events: list[_Event], receipts: list[Receipt], at: datetime) -> None:
    """Flag the conflicts among the receipts: where a transaction is open, which they may end, off it."""
    flag = anomalies.flag_later if connection.in_atomic_block else anomalies.flag
    conflicts = [
        (event, receipt) for event, receipt in zip(events, receipts, strict=True) if receipt.code == EventConflict.code
    ]
    for license_id, some in groupby(sorted(conflicts, key=lambda pair: str(pair[0].license_id)), _license_of):
        pairs = list(some)
        flag(
            rule="usage_event_conflict",
            severity=Severity.MEDIUM,
            object_kind="license",
            object_id=str(license_id),
            license_id=license_id,
            at=at,
            evidence={"event_ids": [event.event_id for event, _ in pairs[:20]], "source": pairs[0][0].source},
        )


def _license_of(pair: tuple[_Event, Receipt]) -> UUID:
    return pair[0].license_id


# --- rows -------------------------------------------------------------------------------------------

# Of few of them it is asked, each by its key: a join could be planned as a look at every event.
_AS_COUNTED = """(
   SELECT e.quantity FROM billing_usageevent e
    WHERE e.license_id = u.license_id AND e.occurred_at = u.occurred_at AND e.event_id = u.event_id)
"""
_IDS = f"""
SELECT u.license_id, u.event_id, u.digest, u.occurred_at, u.received_at, {_AS_COUNTED} FROM billing_usageid u
  JOIN json_to_recordset(%s::json) AS w(license_id uuid, event_id text)
    ON u.license_id = w.license_id AND u.event_id = w.event_id
"""  # noqa: S608  our own words
_IDS_SQLITE = f"""
SELECT u.license_id, u.event_id, u.digest, u.occurred_at, u.received_at, {_AS_COUNTED} FROM json_each(%s) w
  JOIN billing_usageid u
    ON u.license_id = json_extract(w.value, '$[0]') AND u.event_id = json_extract(w.value, '$[1]')
"""  # noqa: S608  our own words
_INSERT = """
WITH sent AS MATERIALIZED (
   SELECT * FROM json_to_recordset(%s::json) AS s(
          license_id uuid, occurred_at timestamptz, event_id text, meter_revision_id uuid, quantity numeric,
          dimensions jsonb, sequence bigint, source text, kind text, reason text, digest text)),
 id AS (
   INSERT INTO billing_usageid (license_id, event_id, digest, occurred_at, received_at)
   SELECT license_id, event_id, decode(digest, 'hex'), occurred_at, %s::timestamptz FROM sent),
 change AS (
   INSERT INTO billing_usagechange (license_id, meter_revision_id, hour)
   SELECT DISTINCT license_id, meter_revision_id, date_trunc('hour', occurred_at, 'UTC') FROM sent)
INSERT INTO billing_usageevent (license_id, occurred_at, event_id, meter_revision_id, quantity, dimensions, sequence,
                                received_at, source, kind, reason)
SELECT license_id, occurred_at, event_id, meter_revision_id, quantity, dimensions, sequence, %s::timestamptz,
       source, kind, reason FROM sent
"""


def _known_ids(events: list[_Event]) -> dict[tuple[UUID, str], _Before]:
    """Return what is remembered of the events' ids."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            shown = ({"license_id": event.license_id, "event_id": event.event_id} for event in events)
            cursor.execute(_IDS, [allowances.as_json(shown)])
            return {(row[0], row[1]): (bytes(row[2]), *row[3:]) for row in cursor.fetchall()}
        asked = [[event.license_id.hex, event.event_id] for event in events]
        cursor.execute(_IDS_SQLITE, [orjson.dumps(asked).decode()])
        return {
            (UUID(row[0]), row[1]): (bytes(row[2]), _instant(row[3]), _instant(row[4]), allowances.number(row[5]))
            for row in cursor.fetchall()
        }


def _instant(value: str) -> datetime:
    return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)


def _insert(accepted: list[_Event], at: datetime) -> None:
    """Write the rows of events that were counted."""
    rows = sorted(accepted, key=_place)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            shown = (
                {
                    "license_id": event.license_id,
                    "occurred_at": event.occurred_at,
                    "event_id": event.event_id,
                    "meter_revision_id": event.revision_id,
                    "quantity": str(event.quantity),
                    "dimensions": event.dimensions,
                    "sequence": event.sequence,
                    "source": event.source,
                    "kind": event.kind.value,
                    "reason": event.reason,
                    "digest": event.digest.hex(),
                }
                for event in rows
            )
            cursor.execute(_INSERT, [allowances.as_json(shown), at, at])
            return
        received = allowances.sqlite_instant(at)
        cursor.executemany(
            "INSERT INTO billing_usageid (license_id, event_id, digest, occurred_at, received_at)"
            " VALUES (%s, %s, %s, %s, %s)",
            [
                (e.license_id.hex, e.event_id, e.digest, allowances.sqlite_instant(e.occurred_at), received)
                for e in rows
            ],
        )
        cursor.executemany(
            "INSERT INTO billing_usageevent (license_id, occurred_at, event_id, meter_revision_id, quantity,"
            " dimensions, sequence, received_at, source, kind, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    e.license_id.hex,
                    allowances.sqlite_instant(e.occurred_at),
                    e.event_id,
                    _hex(e.revision_id),
                    str(e.quantity),
                    orjson.dumps(e.dimensions).decode() if e.dimensions else None,
                    e.sequence,
                    received,
                    e.source,
                    e.kind.value,
                    e.reason,
                )
                for e in rows
            ],
        )
        hours = {(e.license_id.hex, _hex(e.revision_id), e.hour) for e in rows}
        cursor.executemany(
            "INSERT INTO billing_usagechange (license_id, meter_revision_id, hour) VALUES (%s, %s, %s)",
            [(license_id, revision, allowances.sqlite_instant(hour)) for license_id, revision, hour in sorted(hours)],
        )


def _hex(revision_id: str | None) -> str:
    assert revision_id is not None  # without a meter an event has an error
    return revision_id.replace("-", "")


# --- corrections and reservations -------------------------------------------------------------------


def correct(
    *,
    license: License,
    meter: str,
    quantity: Decimal,
    occurred_at: datetime,
    reason: str,
    by: Actor,
    at: datetime,
    event_id: str = "",
    dimensions: dict[str, str] | None = None,
) -> Receipt:
    """Correct what was counted by an event of its own, plus or minus; what was counted stays. However old, as long as
    the events of its time are here, and also beyond a hard allowance: what is true is not refused.

    Raises:
        Invalid: no reason, no such meter, or a quantity or time that cannot be.
        EventConflict: the id was counted with other content.
        EventsArchived: the events of its hour are archived, so no total would ever hold it.
    """
    if not reason.strip():
        raise Invalid("Say why it is corrected.", pointer="/reason")
    if len(event_id) > LONGEST_ID or not event_id.isprintable():
        raise Invalid(f"An event_id has 1 to {LONGEST_ID} printable characters.", pointer="/event_id")
    if occurred_at > at + ACCEPTED_AHEAD:
        raise TooEarly(pointer="/occurred_at")
    first = Term.objects.in_force().filter(license=license).order_by("starts_at").first()
    if first is None or occurred_at < first.starts_at:
        raise allowances.NotStarted()
    counts = _revision(meter)
    sent = Sent(event_id or f"correction-{uuid7_text()}", meter, quantity, occurred_at, dimensions)
    quantity = _quantity(quantity, counts, EventKind.CORRECTION)
    _fits(sent, counts)
    assert counts is not None
    event = _Event(
        license_id=license.pk,
        event_id=sent.event_id,
        meter=meter,
        revision_id=counts.id,
        live=counts.aggregation in COUNTED_LIVE,
        quantity=quantity,
        occurred_at=occurred_at,
        digest=_digest(sent, EventKind.CORRECTION),
        dimensions=dimensions or None,
        sequence=None,
        source=f"{by.kind}:{by.id}"[:80],
        kind=EventKind.CORRECTION,
        reason=reason,
        bounded=False,
    )
    with transaction.atomic():
        License.objects.select_for_update(no_key=True).get(pk=license.pk)
        receipt = _settled([event], at)[0]
        if receipt.error is not None:
            raise receipt.error  # nothing is kept but the anomaly
        if receipt.status == "counted":
            # After the insert, which waits for an archive of its month: before it, the mark could come in between.
            floor = rollups.archived_before()
            if floor is not None and event.hour < floor:
                raise rollups.EventsArchived(
                    f"Events before {floor:%Y-%m-%d} are archived, so nothing of then is counted any more. Date the"
                    " correction to now, and say in its reason which time it is for."
                )
            audit.record(
                action="usage.corrected",
                by=by,
                on=license,
                at=at,
                after={"event_id": event.event_id, "meter": meter, "quantity": quantity, "occurred_at": occurred_at},
                reason=reason,
            )
    return receipt


def reserve(
    *, license: Snapshot, meter: str, quantity: Decimal, ttl: timedelta, holder: str, at: datetime
) -> Reservation:
    """Hold part of a meter's allowance before costly work. Raises as `allowances.reserve`, and what speaks against
    using the license or counting on the meter."""
    counts = _revision(meter)
    if counts is None or counts.aggregation not in COUNTED_LIVE:
        raise UnknownMeter("Only meters that sum or count can be reserved from.", pointer="/meter")
    quantity = _quantity(quantity, counts, EventKind.USAGE)
    _in_time(license, at, at)
    row = License.objects.get(pk=license.license_id)
    return allowances.reserve(license=row, meter=meter, quantity=quantity, ttl=ttl, holder=holder, at=at)


def commit(
    *,
    reservation: Reservation,
    quantity: Decimal | None,
    event_id: str,
    dimensions: dict[str, str] | None,
    source: str,
    at: datetime,
) -> Receipt:
    """Count what was held, or the quantity given; the rest is free again. It occurred when it was reserved, so it
    counts in the window that held it. Committing the same again returns the same receipt.

    Raises:
        ReservationEnded: it was released, has lapsed or was committed otherwise.
        EventConflict: its event was counted with other content.
        AllowanceExhausted: more than was held, and more than is left.
    """
    if len(event_id) > LONGEST_ID or not event_id.isprintable():
        raise Invalid(f"An event_id has 1 to {LONGEST_ID} printable characters.", pointer="/event_id")
    sent = Sent(
        event_id or f"reservation-{reservation.pk}",
        reservation.meter,
        reservation.quantity if quantity is None else quantity,
        reservation.created_at,
        dimensions,
    )
    counts = _revision(sent.meter)
    amount, error = sent.quantity, None
    try:
        amount = _quantity(amount, counts, EventKind.USAGE)
        _fits(sent, counts)
    except Invalid as refused:  # unless it turns out to be committed already
        error = refused
    event = _Event(
        license_id=reservation.license_id,
        event_id=sent.event_id,
        meter=sent.meter,
        revision_id=counts.id if counts else None,
        live=True,
        quantity=amount,
        occurred_at=reservation.created_at,
        digest=_digest(sent, EventKind.USAGE),
        dimensions=dimensions or None,
        sequence=None,
        source=source,
        error=error,
    )
    for attempt in range(_TRIES):
        try:
            with transaction.atomic():
                row, live = allowances.hold_of(reservation)
                receipt = _committed(row, live, event, at)
                _suspect([event], [receipt], at)
            break
        except IntegrityError:  # another transaction counted its id, on another counter: it is known now
            if attempt == _TRIES - 1:
                raise
    if receipt.error is not None:
        raise receipt.error
    if receipt.status == "counted":
        allowances.follow([live], at)
    return receipt


def _committed(row: Reservation, live: Live, event: _Event, at: datetime) -> Receipt:
    """Count the event of a reservation; return its receipt, rejected or a duplicate where its id is known."""
    open_still = row.state == ReservationState.OPEN and row.expires_at > at
    if not open_still and (row.state != ReservationState.COMMITTED or row.event_id != event.event_id):
        state = "lapsed" if row.state == ReservationState.OPEN else row.state
        raise allowances.ReservationEnded(f"This reservation is {state}.")
    before = _known_ids([event]).get((event.license_id, event.event_id))
    if before is not None:
        receipt = _again_sent(event, before)
        if receipt.error is None and open_still:  # it was counted before it was committed: nothing is held for it
            allowances.end(row, live, ReservationState.COMMITTED, at, event.event_id)
            allowances.write([live])
        return receipt
    if event.error is not None:
        raise event.error
    if not open_still:  # its id is forgotten
        raise allowances.ReservationEnded(f"This reservation is {row.state}.")
    allowances.end(row, live, ReservationState.COMMITTED, at, event.event_id)  # what it held fits, whatever is left
    error = _take(event, live, True, at)
    if error is not None:
        raise error
    _insert([event], at)
    allowances.write([live])
    return _counted(event, live.room, at)


def counted(license_id: UUID, meter: str, starts_at: datetime, ends_at: datetime) -> Decimal:
    """Return the sum of what was counted live for events from `starts_at` on and before `ends_at`."""
    rows = UsageEvent.objects.filter(
        license_id=license_id,
        meter_revision__meter__code=meter,
        meter_revision__aggregation__in=COUNTED_LIVE,
        occurred_at__gte=starts_at,
        occurred_at__lt=ends_at,
    )
    return rows.aggregate(total=Sum("quantity"))["total"] or Decimal()
