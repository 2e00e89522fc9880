"""Snapshots: the frozen picture of a license, with what a scope asks about it, in one query or less.

A question is answered from this process's memory, else from Redis, else by one query; each of the first two may be
absent. What `feed` says no longer counts is not believed, and never comes back: a copy is kept only at the revision
that was last announced, or above. What lies in Redis is authenticated, so that whoever can write there cannot make a
license valid. No ORM object is made: this is the hot path (PERFORMANCE "What follows").

It decides nothing. Source: reference design "verdict cache and revocation", ADR 0013.
"""

import hashlib
import hmac
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import orjson
import redis
import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.utils import timezone

from licensing import anomalies, crypto, feed
from licensing.background import Periodic
from licensing.decision import Right, Scope, Snapshot
from licensing.errors import LicensingError, Unavailable
from licensing.feed import Copy, Kept
from licensing.models import License
from licensing.states import OutagePolicy, Scheme, SeatKind, Severity

log = structlog.get_logger(__name__)

CAPACITY = 20_000
_QUERY = """
SELECT l.id, l.customer_id, product.code, plan.code, r.number, l.scheme, l.revision,
       l.issued_at IS NOT NULL, l.revoked_at IS NOT NULL,
       (SELECT {strings}(h.reason, ',') FROM licensing_hold h WHERE h.license_id = l.id AND h.lifted_at IS NULL),
       l.starts_at, l.expires_at, l.grace_until, l.maintenance_until,
       r.seat_required, l.seat_limit, l.seats_used, r.activation_required, l.activation_limit, l.activations_used,
       (SELECT {objects}(e.key, {array}(e.kind, e.value, e.meter, {text}, e.overage))
          FROM licensing_entitlement e WHERE e.plan_revision_id = r.id),
       r.seat_kind, r.require_signed_clients, r.outage_policy, {tolerance}, l.updated_at,
       (SELECT a.id FROM licensing_activation a
         WHERE a.license_id = l.id AND a.fingerprint = {fingerprint} AND a.deactivated_at IS NULL),
       (SELECT a.key_thumbprint <> '' FROM licensing_activation a
         WHERE a.license_id = l.id AND a.fingerprint = {fingerprint} AND a.deactivated_at IS NULL),
       (SELECT CASE WHEN le.ended_at IS NULL OR le.ended_at >= le.expires_at THEN le.expires_at END
          FROM licensing_lease le WHERE le.license_id = l.id AND le.fingerprint = {fingerprint} AND le.fingerprint <> ''
         ORDER BY le.id DESC LIMIT 1),
       (SELECT s.state FROM licensing_seat s
         WHERE s.license_id = l.id AND s.holder = %s AND s.released_at IS NULL),
       (SELECT v.released_at FROM licensing_release v WHERE v.product_id = l.product_id AND v.version = %s),
       {machine}
  FROM {source}
  JOIN licensing_planrevision r ON r.id = l.plan_revision_id
  JOIN licensing_plan plan ON plan.id = r.plan_id
  JOIN licensing_product product ON product.id = l.product_id
 WHERE {where}
"""
_BY_KEY = "licensing_licensekey k JOIN licensing_license l ON l.id = k.license_id"
_BY_MACHINE = "licensing_activation m JOIN licensing_license l ON l.id = m.license_id"
_WORDS = {
    "postgresql": {
        "strings": "string_agg",
        "objects": "json_object_agg",
        "array": "json_build_array",
        "text": "e.amount::text",
        "tolerance": "extract(epoch FROM r.outage_tolerance)",
    },
    "sqlite": {
        "strings": "group_concat",
        "objects": "json_group_object",
        "array": "json_array",
        "text": "CAST(e.amount AS TEXT)",
        "tolerance": "r.outage_tolerance / 1000000.0",
    },
}


class Machine(msgspec.Struct, frozen=True):
    """An activation as a signed request is checked against it."""

    id: str
    fingerprint: str
    public_key: bytes
    active: bool


class Facts(msgspec.Struct, frozen=True):
    """What is known about a scope; `keyed`: its machine signs its requests."""

    activation_id: str | None
    keyed: bool
    leased_until: datetime | None
    seat_state: str | None
    version_released_at: datetime | None


class Picture(msgspec.Struct, frozen=True):
    """A license as it was read: its snapshot, the facts about what was asked, and the machine that was asked by."""

    snapshot: Snapshot
    facts: Facts
    machine: Machine | None = None


class Found(msgspec.Struct, frozen=True):
    """A picture and where it comes from: `memory`, `redis`, `database`, or `outage` when it is the last known."""

    picture: Picture
    source: str
    age_seconds: float = 0.0


class Question(msgspec.Struct, frozen=True):
    """What is looked up: by which value, and about which machine, holder and version."""

    by: str
    value: str
    fingerprint: str | None = None
    seat_holder: str | None = None
    version: str | None = None

    @classmethod
    def of(cls, by: str, value: str, scope: Scope) -> "Question":
        return cls(by, value, scope.fingerprint, scope.seat_holder, scope.version)


_kept: Kept[Picture] = Kept(CAPACITY)
_decoder = msgspec.msgpack.Decoder(Picture)
_database_again_at = 0.0


def by_key(digests: Sequence[bytes], scope: Scope) -> Found | None:
    """Return the license that has a live key with one of these digests. Raises `Unavailable`."""
    return get(Question.of("key", ",".join(digest.hex() for digest in digests), scope))


def by_id(license_id: UUID | str, scope: Scope) -> Found | None:
    """Return the license with this id. Raises `Unavailable`."""
    return get(Question.of("id", str(license_id), scope))


def by_machine(activation_id: UUID | str, scope: Scope) -> Found | None:
    """Return the license this activation is bound to, with the activation; a scope's own fingerprint is not asked
    about: the machine's is. Raises `Unavailable`."""
    return get(Question("machine", str(activation_id), None, scope.seat_holder, scope.version))


def get(question: Question) -> Found | None:
    """Return the newest picture that counts.

    Raises:
        Unavailable: the database is away, and the license's plan allows no answer from the last known state, or none
            is known.
    """
    feed.follow()
    copy = _kept.get(question)
    if copy is not None and _running(copy.value):
        return Found(copy.value, "memory", time.monotonic() - copy.read_at)
    found = _from_redis(question)
    if found is not None and _running(found.picture):
        return found
    read_at = time.monotonic()
    try:
        picture = read(question)
    except Unavailable:
        last = _last_known(question)
        if last is None:
            raise
        return last
    if picture is not None:
        _keep(question, picture, read_at)
        if connection.vendor == "postgresql":
            confirming.wake()
        return Found(picture, "database")
    return None


def scoped(found: Found, scope: Scope) -> Scope:
    """Return the scope with what is known about it filled in."""
    picture = found.picture
    activated = picture.facts.activation_id is not None
    fingerprint = scope.fingerprint
    if picture.machine is not None:  # a machine that proved who it is speaks for its own fingerprint, for no other
        activated = picture.machine.active and fingerprint in (None, picture.machine.fingerprint)
        fingerprint = fingerprint or picture.machine.fingerprint
    return msgspec.structs.replace(
        scope,
        fingerprint=fingerprint,
        fingerprint_activated=activated,
        leased_until=picture.facts.leased_until,
        seat_state=picture.facts.seat_state,
        version_released_at=picture.facts.version_released_at,
    )


def _running(picture: Picture) -> bool:
    """Return whether the lease in the picture still runs: one that lapsed may have been renewed meanwhile, and a
    renewal changes no license."""
    until = picture.facts.leased_until
    return until is None or until > timezone.now()


# --- keeping ----------------------------------------------------------------------------------------

# The first 36 characters of a value are the license's id, the next 20 its revision.
_GET = feed.Script("""
local value = redis.call('GET', KEYS[1])
if not value then return false end
local floor = redis.call('GET', ARGV[1] .. string.sub(value, 1, 36))
if floor and tonumber(floor) > tonumber(string.sub(value, 37, 56)) then return false end
return value
""")
# KEYS: the value, the license's tombstone, where the last known states of the license lie, the way to them.
_PUT = feed.Script("""
local floor = redis.call('GET', KEYS[2])
if floor and tonumber(floor) > tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
local tolerance = tonumber(ARGV[4])
if tolerance > 0 then
  redis.call('SET', KEYS[4], string.sub(ARGV[1], 1, 36), 'PX', tolerance)
  redis.call('HSET', KEYS[3], ARGV[5], ARGV[1])
  redis.call('PEXPIRE', KEYS[3], tolerance)
end
return 1
""")
_LAST = feed.Script("""
local row = redis.call('GET', KEYS[1])
if not row then return false end
local value = redis.call('HGET', ARGV[1] .. 'last:' .. row, ARGV[2])
if not value then return false end
local floor = redis.call('GET', ARGV[1] .. 'tombstone:' .. row)
if floor and tonumber(floor) > tonumber(string.sub(value, 37, 56)) then return false end
return value
""")


def _name(question: Question) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(question)).hexdigest()


def _prefix() -> str:
    return f"{settings.REDIS_KEY_PREFIX}:"


def _keep(question: Question, picture: Picture, read_at: float) -> None:
    """Keep a picture in this process and in Redis, unless a later one was announced since it was read."""
    snapshot = picture.snapshot
    _kept.put(question, Copy(picture, snapshot.license_id, snapshot.revision, read_at))
    if not settings.REDIS_URL:
        return
    try:
        name = _name(question)
        payload = msgspec.msgpack.encode(picture)
        read_ms = int((time.time() - (time.monotonic() - read_at)) * 1000)
        head = f"{snapshot.license_id}{snapshot.revision:020d}{read_ms:016d}".encode()
        value = head + crypto.mac(name.encode() + head + payload, kind="snapshot") + payload
        prefix = _prefix()
        _PUT(
            [f"{prefix}snapshot:{name}", f"{prefix}tombstone:{snapshot.license_id}",
             f"{prefix}last:{snapshot.license_id}", f"{prefix}way:{name}"],
            value, snapshot.revision, int(feed.FRESH_SECONDS * 1000), int((snapshot.lenient_seconds or 0) * 1000), name,
        )  # fmt: skip
    except (redis.RedisError, LicensingError):
        return  # said where it happened; the answer does not depend on it


def _from_redis(question: Question) -> Found | None:
    if not settings.REDIS_URL:
        return None
    try:
        name = _name(question)
        value = _GET([f"{_prefix()}snapshot:{name}"], f"{_prefix()}tombstone:")
    except redis.RedisError:
        return None
    found = _opened(name, value, within_seconds=feed.FRESH_SECONDS) if value else None
    if found is not None:
        snapshot = found.picture.snapshot
        read_at = time.monotonic() - found.age_seconds
        _kept.put(question, Copy(found.picture, snapshot.license_id, snapshot.revision, read_at))
    return found


def _opened(name: str, value: bytes, *, within_seconds: float) -> Found | None:
    """Return what a value from Redis says, if it is ours, about this question, and not too old."""
    head, proof, payload = value[:72], value[72:104], value[104:]
    try:
        if not hmac.compare_digest(crypto.mac(name.encode() + head + payload, kind="snapshot"), proof):
            raise crypto.NotAuthentic("A snapshot in Redis is not ours.")
        picture = _decoder.decode(payload)
    except (LicensingError, msgspec.DecodeError) as error:
        log.error("snapshot_not_believed", error=type(error).__name__)
        anomalies.flag_later(
            rule="snapshot_not_believed",
            severity=Severity.CRITICAL,
            object_kind="service",
            object_id="redis",
            at=timezone.now(),
            evidence={"error": type(error).__name__},
        )
        return None
    age = time.time() - int(head[56:72]) / 1000
    if not -1.0 <= age <= within_seconds:
        return None
    return Found(picture, "redis", max(age, 0.0))


def _last_known(question: Question) -> Found | None:
    """Return the last picture there is, if its plan allows an answer from one of that age."""
    now = time.monotonic()
    copy = _kept.last(question, float("inf"))
    found = Found(copy.value, "outage", now - copy.read_at) if copy is not None else None
    if found is None and settings.REDIS_URL:
        try:
            name = _name(question)
            value = _LAST([f"{_prefix()}way:{name}"], _prefix(), name)
        except redis.RedisError:
            value = None
        if value and (there := _opened(name, value, within_seconds=float("inf"))) is not None:
            found = Found(there.picture, "outage", there.age_seconds)
    if found is None or found.age_seconds > (found.picture.snapshot.lenient_seconds or -1.0):
        return None
    return found


def changed(license_id: UUID | str, revision: int | None = None) -> None:
    """Say that the license has a new revision, once the caller's transaction, which has raised it, commits.

    Every rule that changes what a snapshot shows ends so. See `feed.announce`.
    """
    if revision is None:
        revision = License.objects.filter(pk=license_id).values_list("revision", flat=True).first()
    feed.announce(license_id, feed.ALWAYS if revision is None else revision)


def confirm() -> int:
    """Look up at once whether the licenses asked about lately still have the revision kept here; return how many were
    looked up. So a copy in use stays fresh without a request paying for it.

    What a release of a version or a lapsing lease changes has no revision: such copies run out.
    """
    if feed.fresh_seconds() < feed.FRESH_SECONDS:  # without Redis a copy lives a second, whatever happens
        return 0
    old = [
        (key, copy)
        for key, copy in _kept.aging(feed.FRESH_SECONDS / 2)
        if isinstance(key, Question) and key.version is None and copy.value.facts.leased_until is None
    ]
    for start in range(0, len(old), 2_000):
        some = old[start : start + 2_000]
        read_at = time.monotonic()
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT id, revision FROM licensing_license WHERE id = ANY(%s)",
                    [[UUID(copy.row) for _, copy in some]],
                )
                revisions = {str(row[0]): row[1] for row in cursor.fetchall()}
        except (OperationalError, InterfaceError):  # said where a request meets it; the copies run out
            return start
        for key, copy in some:
            if revisions.get(copy.row) == copy.revision:
                _kept.confirm(key, copy, read_at)
    return len(old)


confirming = Periodic("snapshots", 1.0, confirm)


# --- reading ----------------------------------------------------------------------------------------


def read(question: Question) -> Picture | None:
    """Return what the database says right now.

    Raises:
        Unavailable: it is away. After that nobody asks it for a second, so that no request waits for a dead one.
    """
    global _database_again_at
    if time.monotonic() < _database_again_at:
        raise Unavailable("The database is away.")
    try:
        try:
            row = _row(question)
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block:
                raise
            connection.close()  # it may just be a connection that did not survive a restart
            row = _row(question)
    except (OperationalError, InterfaceError) as error:
        _database_again_at = time.monotonic() + 1.0
        log.error("database_away", error=type(error).__name__)
        anomalies.flag_later(
            rule="database_away",
            severity=Severity.CRITICAL,
            object_kind="service",
            object_id="database",
            at=timezone.now(),
            evidence={"error": type(error).__name__},
        )
        raise Unavailable("The database is away.") from error
    return _picture(row) if row is not None else None


def _row(question: Question) -> Any:
    vendor = connection.vendor
    parts = {"source": "licensing_license l", "where": "l.id = %s", "fingerprint": "%s"}
    parts["machine"] = "NULL, NULL, NULL, NULL"
    asked: list[object] = [*[question.fingerprint] * 3, question.seat_holder, question.version]
    match question.by:
        case "key":
            values: list[object] = [bytes.fromhex(digest) for digest in question.value.split(",")]
            marks = ", ".join(["%s"] * len(values))
            parts |= {"source": _BY_KEY, "where": f"k.digest IN ({marks}) AND k.retired_at IS NULL"}
        case "machine":
            values = [_id(question.value)]
            parts |= {"source": _BY_MACHINE, "where": "m.id = %s", "fingerprint": "m.fingerprint"}
            parts["machine"] = "m.id, m.fingerprint, m.public_key, m.deactivated_at IS NULL"
            asked = asked[3:]
        case _:
            values = [_id(question.value)]
    with _cursor() as cursor:
        cursor.execute(_QUERY.format(**_WORDS[vendor], **parts), [*asked, *values])
        return cursor.fetchone()


def _id(value: str) -> object:
    return UUID(value).hex if connection.vendor == "sqlite" else UUID(value)


def _picture(row: Any) -> Picture:
    lenient = row[23] == OutagePolicy.LENIENT
    snapshot = Snapshot(
        license_id=_uuid(row[0]),
        customer_id=_uuid(row[1]),
        product=row[2],
        plan=row[3],
        plan_revision=row[4],
        scheme=row[5],
        revision=row[6],
        issued=bool(row[7]),
        revoked=bool(row[8]),
        holds=tuple(sorted(row[9].split(","))) if row[9] else (),
        starts_at=_instant(row[10]) or datetime.max.replace(tzinfo=UTC),
        expires_at=_instant(row[11]),
        grace_until=_instant(row[12]),
        maintenance_until=_instant(row[13]),
        seat_required=bool(row[14]),
        seat_limit=row[15],
        seats_used=row[16],
        activation_required=bool(row[17]),
        activation_limit=row[18],
        activations_used=row[19],
        entitlements=_rights(row[20]),
        floating=row[21] == SeatKind.FLOATING and row[5] != Scheme.USAGE,
        require_signed_clients=bool(row[22]),
        lenient_seconds=float(row[24]) if lenient else None,
        updated_at=_instant(row[25]),
    )
    facts = Facts(
        activation_id=_uuid(row[26]) if row[26] is not None else None,
        keyed=bool(row[27]),
        leased_until=_instant(row[28]),
        seat_state=row[29],
        version_released_at=_instant(row[30]),
    )
    machine = None
    if row[31] is not None:
        machine = Machine(_uuid(row[31]), row[32], bytes(row[33] or b""), bool(row[34]))
    return Picture(snapshot, facts, machine)


def _cursor() -> Any:
    """Return a cursor that lets PostgreSQL keep the statement prepared: planning this query costs it ten times what
    running it does. Elsewhere, Django's own."""
    if connection.vendor != "postgresql":
        return connection.cursor()
    from django.db.backends.postgresql.base import ServerBindingCursor

    server: Any = connection
    server.ensure_connection()
    server.connection.prepare_threshold = 2
    binding: Any = ServerBindingCursor
    return server._prepare_cursor(binding(server.connection))


def _uuid(value: object) -> str:
    """Return an id as answers spell it: SQLite keeps it without hyphens."""
    text = str(value)
    return text if len(text) == 36 else f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _instant(value: datetime | str | None) -> datetime | None:
    """Return an instant as both databases mean it: SQLite's driver gives it without its time zone."""
    if value is None:
        return None
    instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _rights(value: Any) -> dict[str, Right]:
    document = orjson.loads(value) if isinstance(value, str) else value
    return {
        key: Right(kind, text, meter, _decimal(amount), overage)
        for key, (kind, text, meter, amount, overage) in sorted((document or {}).items())
    }


def _decimal(amount: str | None) -> str | None:
    """Return a decimal string without trailing zeros, the same from both databases."""
    if amount is None:
        return None
    return amount.rstrip("0").rstrip(".") if "." in amount else amount
