"""The gate for usage: who calls, which license, count, answer. Doors only carry requests to it, as to `licensing.gate`.

A rule of counting never stands here: that is `metering`.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import orjson

from billing import cloudevents, metering
from billing.metering import Receipt, Sent
from licensing import decisions, gate, snapshots
from licensing.allowances import text
from licensing.credentials import Caller
from licensing.decision import Scope, Snapshot
from licensing.errors import Forbidden, Invalid, LicensingError, Missing, Refused
from licensing.gate import Answer, Malformed, Request
from licensing.pictures import Question
from licensing.snapshots import Found
from licensing.throttles import Allowed


class UsageBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /usage, and of each event of a batch. `license` is for a server."""

    event_id: str
    meter: str
    quantity: Decimal = Decimal(1)
    occurred_at: datetime | None = None
    dimensions: dict[str, str] | None = None
    sequence: int | None = None
    license: UUID | None = None


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /usage/batch. `license` is that of the events that name none."""

    events: list[UsageBody]
    license: UUID | None = None


class _LooseBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose events are looked at one by one, for one at least is not as it should be."""

    events: list[msgspec.Raw]
    license: UUID | None = None


_usage = msgspec.json.Decoder(UsageBody)
_batch = msgspec.json.Decoder(BatchBody)
_loose = msgspec.json.Decoder(_LooseBatch)


class Licenses:
    """The licenses a caller may count for, each looked up once a request."""

    def __init__(self, caller: Caller, own: Found | None) -> None:
        self._caller, self._own = caller, own
        self._known: dict[UUID, Snapshot | None] = {}

    def of(self, license_id: UUID | None) -> Snapshot:
        """Return the license an event is about.

        Raises:
            Malformed: a server does not say which.
            Missing: there is none, it is not the caller's, or only a draft.
        """
        own = self._own.picture.snapshot if self._own else None
        if own is not None:
            if license_id is not None and str(license_id) != own.license_id:
                raise Missing("There is no such license.")
            return own
        if license_id is None:
            raise Malformed("Say which license.", pointer="/license")
        if license_id not in self._known:
            found = snapshots.get(Question.of("id", str(license_id), Scope(), self._caller.customer_id))
            self._known[license_id] = found.picture.snapshot if found else None
        snapshot = self._known[license_id]
        if snapshot is None or not snapshot.issued:
            raise Missing("There is no such license.")
        return snapshot


def usage(request: Request, at: datetime) -> Answer:
    """Answer POST /usage: 201 for a counted event, 200 for one that was counted before, else a problem."""
    return _answered(request, at, _one)


def usage_batch(request: Request, at: datetime) -> Answer:
    """Answer POST /usage/batch: 200 with what became of each event."""
    return _answered(request, at, _many)


def events(request: Request, at: datetime) -> Answer:
    """Answer POST /events, usage as CloudEvents: one as POST /usage, a batch as POST /usage/batch."""
    return _answered(request, at, _cloud_events)


def _answered(
    request: Request, at: datetime, act: Callable[[Request, Caller, Licenses, datetime], tuple[int, Any]]
) -> Answer:
    allowed: Allowed | None = None
    try:
        caller, allowed, own = gate.recognize(request, at)
        if "usage" not in caller.scopes:
            raise Forbidden("This credential lacks the scope 'usage'.")
        status, body = act(request, caller, Licenses(caller, own), at)
        answer = Answer(status, orjson.dumps(body, option=orjson.OPT_UTC_Z), {"content-type": "application/json"})
    except LicensingError as error:
        answer = gate.problem(error, request_id=request.request_id)
    if allowed is not None:
        answer.headers = gate.rate_headers(allowed) | answer.headers
    return answer


def _one(request: Request, caller: Caller, licenses: Licenses, at: datetime) -> tuple[int, dict[str, Any]]:
    return _count_one(request, caller, licenses, at, gate.decoded(request, _usage))


def _count_one(
    request: Request, caller: Caller, licenses: Licenses, at: datetime, body: UsageBody
) -> tuple[int, dict[str, Any]]:
    license = licenses.of(body.license)
    try:
        receipt = metering.consume(license=license, sent=sent_of(body), source=source_of(caller), at=at)
    except Refused as error:
        decisions.remember(
            request_id=request.request_id,
            at=at,
            license_id=UUID(license.license_id),
            caller=source_of(caller),
            code=error.code,
            looked_at=(f"meter {body.meter[:64]}",),
        )
        raise
    return (201 if receipt.status == "counted" else 200), shown(receipt)


def _many(request: Request, caller: Caller, licenses: Licenses, at: datetime) -> tuple[int, dict[str, Any]]:
    events, default = _events(request)
    if not 0 < len(events) <= metering.MOST_AT_ONCE:
        raise Malformed(f"A batch has 1 to {metering.MOST_AT_ONCE} events.", pointer="/events")
    return _count_many(caller, licenses, at, events, default)


def _cloud_events(request: Request, caller: Caller, licenses: Licenses, at: datetime) -> tuple[int, dict[str, Any]]:
    if len(request.body) > gate.LONGEST_BODY:
        raise gate.TooLarge()
    try:
        reading = cloudevents.read(request.headers, request.body)
    except cloudevents.FormatUnknown as error:
        raise gate.WrongMediaType(error.detail) from None
    bodies = [
        _Broken(None, event)
        if isinstance(event, cloudevents.NotACloudEvent)
        else UsageBody(
            event.event_id,
            event.meter,
            event.quantity,
            event.occurred_at,
            event.dimensions,
            event.sequence,
            event.license_id,
        )
        for event in reading.events
    ]
    if reading.batch:
        return _count_many(caller, licenses, at, bodies, None)
    (body,) = bodies
    assert isinstance(body, UsageBody)  # of a single event what is wrong was raised
    return _count_one(request, caller, licenses, at, body)


def _count_many(
    caller: Caller,
    licenses: Licenses,
    at: datetime,
    events: Sequence["UsageBody | _Broken"],
    default: UUID | None,
) -> tuple[int, dict[str, Any]]:
    results: list[Any] = [None] * len(events)
    sent: list[tuple[Snapshot, Sent]] = []
    places: list[int] = []
    for place, event in enumerate(events):
        try:
            if isinstance(event, _Broken):
                raise event.error
            sent.append((licenses.of(event.license or default), sent_of(event)))
            places.append(place)
        except (Invalid, Missing) as error:
            results[place] = _rejected(event.event_id, error)
    receipts = metering.consume_batch(sent=sent, source=source_of(caller), at=at) if sent else []
    counts = {"counted": 0, "duplicate": 0, "rejected": len(events) - len(receipts)}
    for place, receipt in zip(places, receipts, strict=True):
        counts[receipt.status] += 1
        if receipt.error is not None:
            results[place] = _rejected(receipt.event_id, receipt.error)
        else:
            results[place] = {"event_id": receipt.event_id, "status": receipt.status}
    return 200, {
        "counted": counts["counted"],
        "duplicates": counts["duplicate"],
        "rejected": counts["rejected"],
        "results": results,
    }


class _Broken(msgspec.Struct, frozen=True):
    """An event of a batch that cannot be read."""

    event_id: str | None
    error: LicensingError


def _events(request: Request) -> tuple[list[UsageBody | _Broken], UUID | None]:
    try:
        whole: BatchBody = gate.decoded(request, _batch)
    except Malformed:
        loose: _LooseBatch = gate.decoded(request, _loose)
        if len(loose.events) > metering.MOST_AT_ONCE:
            raise
        return [_read(one) for one in loose.events], loose.license
    return list(whole.events), whole.license


def _read(raw: msgspec.Raw) -> UsageBody | _Broken:
    try:
        return gate.read(raw, _usage)
    except Malformed as error:
        try:
            found = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        event_id = found.get("event_id") if isinstance(found, dict) else None
        return _Broken(event_id[:200] if isinstance(event_id, str) else None, error)


def _rejected(event_id: str | None, error: LicensingError) -> dict[str, Any]:
    return {"event_id": event_id, "status": "rejected", "code": error.code, "detail": error.detail}


def sent_of(body: UsageBody) -> Sent:
    """Return the event a body tells of. Raises `Malformed`."""
    if not 0 < len(body.event_id) <= metering.LONGEST_ID or not body.event_id.isprintable():
        raise Malformed(f"An event_id has 1 to {metering.LONGEST_ID} printable characters.", pointer="/event_id")
    if body.occurred_at is not None and body.occurred_at.tzinfo is None:
        raise Malformed("Say the time with its zone, as in 2026-03-01T12:00:00Z.", pointer="/occurred_at")
    try:
        body.occurred_at and body.occurred_at.astimezone(UTC)
    except OverflowError:
        raise Malformed("In UTC this time is of no year from 1 to 9999.", pointer="/occurred_at") from None
    if body.sequence is not None and not 0 <= body.sequence < 2**63:
        raise Malformed("A sequence is a whole number from 0.", pointer="/sequence")
    if body.dimensions and len(body.dimensions) > metering.MOST_DIMENSIONS:
        raise Malformed(f"An event has at most {metering.MOST_DIMENSIONS} dimensions.", pointer="/dimensions")
    return Sent(body.event_id, body.meter, body.quantity, body.occurred_at, body.dimensions, body.sequence)


def source_of(caller: Caller) -> str:
    """Return who reports, as events keep it."""
    return f"{caller.actor.kind}:{caller.id}"[:80]


def shown(receipt: Receipt) -> dict[str, Any]:
    """Return a receipt as answers show it."""
    body: dict[str, Any] = {
        "status": receipt.status,
        "license": str(receipt.license_id),
        "event_id": receipt.event_id,
        "meter": receipt.meter,
        "quantity": text(receipt.quantity),
        "occurred_at": receipt.occurred_at,
        "received_at": receipt.received_at,
    }
    if receipt.status == "counted":
        body["remaining"] = text(receipt.remaining)
    return body
