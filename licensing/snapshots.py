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
from uuid import UUID

import msgspec
import orjson
import redis
import structlog
from django.db import InterfaceError, OperationalError, connection
from django.utils import timezone

from licensing import anomalies, crypto, feed, installation, pictures, proofs
from licensing.background import Periodic
from licensing.decision import Scope
from licensing.errors import LicensingError, Unavailable
from licensing.feed import Copy, Kept
from licensing.models import License
from licensing.pictures import Picture, Question
from licensing.states import Severity

log = structlog.get_logger(__name__)

CAPACITY = 20_000
NOT_FOUND_SECONDS = 0.001  # what is not there, or not theirs who ask, is said to be so after this time (T11)


class Found(msgspec.Struct, frozen=True, gc=False):
    """A picture and where it comes from: `memory`, `redis`, `database`, or `outage` when it is the last known."""

    picture: Picture
    source: str
    age_seconds: float = 0.0


_kept: Kept[Picture] = Kept(CAPACITY)
_decoder = msgspec.msgpack.Decoder(Picture)


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
        if copy.uses == 1:  # what is asked about twice is worth telling the other processes
            _share_soon(question, copy.value, copy.read_at)
        return Found(copy.value, "memory", time.monotonic() - copy.read_at)
    found = _from_redis(question)
    if found is not None and _running(found.picture):
        return found
    read_at = time.monotonic()
    try:
        picture = pictures.read(question)
    except proofs.TermsAltered:  # nothing is away: an earlier state is no answer
        raise
    except Unavailable:
        last = _last_known(question)
        if last is None:
            raise
        return last
    if picture is not None:
        _keep(question, picture, read_at)
        confirming.wake()
        return Found(picture, "database")
    # Finding another customer's license and passing it over takes some microseconds longer than finding nothing.
    time.sleep(max(read_at + NOT_FOUND_SECONDS - time.monotonic(), 0.0))
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
# Of each: KEYS: the value, the license's tombstone, where the last known states of the license lie, the way to them.
# ARGV: the value, its revision, how long it counts, how long it is a last known state (both in ms), its name.
_PUT = feed.Script("""
for i = 0, #KEYS / 4 - 1 do
  local value, tombstone, last, way = unpack(KEYS, 4 * i + 1, 4 * i + 4)
  local picture, revision, fresh, tolerance, name = unpack(ARGV, 5 * i + 1, 5 * i + 5)
  local floor = redis.call('GET', tombstone)
  if not (floor and tonumber(floor) > tonumber(revision)) then
    redis.call('SET', value, picture, 'PX', fresh)
    if tonumber(tolerance) > 0 then
      redis.call('SET', way, string.sub(picture, 1, 36), 'PX', tolerance)
      redis.call('HSET', last, name, picture)
      redis.call('PEXPIRE', last, tolerance)
    end
  end
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
    return f"{installation.here.redis_key_prefix}:"


def _keep(question: Question, picture: Picture, read_at: float) -> None:
    """Keep a picture in this process, unless a later one was announced since it was read; also in Redis at once if its
    plan wants a last known state."""
    snapshot = picture.snapshot
    _kept.put(question, Copy(picture, snapshot.license_id, snapshot.revision, read_at))
    if snapshot.lenient_seconds:
        _share_soon(question, picture, read_at)


def _share_soon(question: Question, picture: Picture, read_at: float) -> None:
    if feed.near() and len(_unshared) < CAPACITY:
        _unshared[question] = picture, read_at
        sharing.wake()


def share() -> int:
    """Write what was read lately to Redis, for the other processes; return how many pictures. Off the request: there it
    would cost as much as the query. What Redis does not take is dropped: the next who asks reads it again."""
    done = 0
    while _unshared:
        keys: list[str] = []
        arguments: list[object] = []
        prefix = _prefix()
        for _ in range(min(_SHARED_AT_ONCE, len(_unshared))):
            question, (picture, read_at) = _unshared.popitem()
            snapshot, age = picture.snapshot, time.monotonic() - read_at
            name = _name(question)
            payload = msgspec.msgpack.encode(picture)
            head = f"{snapshot.license_id}{snapshot.revision:020d}{int((time.time() - age) * 1000):016d}".encode()
            value = head + crypto.mac(name.encode() + head + payload, kind="snapshot") + payload
            fresh_ms = max(int((feed.FRESH_SECONDS - age) * 1000), 1)
            tolerance_ms = int((snapshot.lenient_seconds or 0) * 1000)
            keys += [f"{prefix}snapshot:{name}", f"{prefix}tombstone:{snapshot.license_id}",
                     f"{prefix}last:{snapshot.license_id}", f"{prefix}way:{name}"]  # fmt: skip
            arguments += [value, snapshot.revision, fresh_ms, tolerance_ms, name]
            done += 1
        try:
            _PUT(keys, *arguments)
        except redis.RedisError:  # said where it happened; no answer depends on it
            _unshared.clear()
    return done


_SHARED_AT_ONCE = 20
_unshared: dict[Question, tuple[Picture, float]] = {}
sharing = Periodic("snapshots-shared", 0.05, share)
_misses = 0
_HOPELESS, _ONE_IN = 32, 64


def _worth_asking() -> bool:
    """Return whether Redis may know more than this process: a look-up costs nearly what the query does, so after many
    in vain only some questions ask."""
    return feed.near() and (_misses < _HOPELESS or _misses % _ONE_IN == 0)


def _from_redis(question: Question) -> Found | None:
    global _misses
    if not _worth_asking():
        _misses += 1
        return None
    try:
        name = _name(question)
        value = _GET([f"{_prefix()}snapshot:{name}"], f"{_prefix()}tombstone:")
    except redis.RedisError:
        return None
    _misses = 0 if value else _misses + 1
    found = _opened(name, value, within_seconds=feed.FRESH_SECONDS) if value else None
    if found is not None:
        snapshot = found.picture.snapshot
        read_at = time.monotonic() - found.age_seconds
        _kept.put(question, Copy(found.picture, snapshot.license_id, snapshot.revision, read_at, uses=1))
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
    if found is None and installation.here.redis_url:
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
    """Look up at once whether the licenses in use still have the revision kept here; return how many were looked up.
    So a copy in use stays fresh without a request paying for it.

    What a release of a version or a lapsing lease changes has no revision: such copies run out.
    """
    fresh = feed.fresh_seconds()
    if fresh < min(feed.FRESH_SECONDS, feed.FRESH_ALONE_SECONDS):  # the feed is silent: nothing kept counts
        return 0
    old = [
        (key, copy)
        for key, copy in _kept.aging(fresh / 2)
        if isinstance(key, Question) and key.version is None and copy.value.facts.leased_until is None
    ]
    for start in range(0, len(old), _CONFIRMED_AT_ONCE):
        some = old[start : start + _CONFIRMED_AT_ONCE]
        read_at = time.monotonic()
        try:
            revisions = _revisions([copy.row for _, copy in some])
        except (OperationalError, InterfaceError):  # said where a request meets it; the copies run out
            return start
        for key, copy in some:
            if revisions.get(copy.row) == copy.revision:
                _kept.confirm(key, copy, read_at)
        time.sleep(0.001)  # requests go first
    return len(old)


def _revisions(rows: list[str]) -> dict[str, int]:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT id::text, revision FROM licensing_license WHERE id = ANY(%s::uuid[])", [rows])
            return dict(cursor.fetchall())
        names = {row.replace("-", ""): row for row in rows}
        cursor.execute(
            "SELECT id, revision FROM licensing_license WHERE id IN (SELECT value FROM json_each(%s))",
            [orjson.dumps(list(names)).decode()],
        )
        return {names[row]: revision for row, revision in cursor.fetchall()}


_CONFIRMED_AT_ONCE = 200
confirming = Periodic("snapshots", 0.2, confirm)
