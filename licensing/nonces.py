"""The memory that keeps a signed request from being accepted twice, and tells a copied installation.

`accept` checks and remembers nonce and counter of a request in one atomic step: in Redis, or in the database when a
process has no Redis. It is never skipped: where neither is there, the request is refused with 503.

A counter may come up to `WINDOW` behind the highest, once. Under the nonce it was used with it is a replay, under
another one two installations use one key. Further behind it is refused, so what is remembered is bounded.

What is remembered can be lost, and nothing that was accepted before may be accepted after:

- Redis restarted or flushed: an activation without memory starts at its `counter_floor`, the highest counter that is
  written in the database, at most `stamps.INTERVAL_SECONDS` behind. For `GAP_SECONDS` after Redis is found empty, those
  without memory are refused, until every process has written its floors.
- One process without Redis (a partition): two memories must not be used at once. It writes a marker into the database,
  writes its floors, and refuses for `GAP_SECONDS`; every process looks for the marker once a second and uses the
  database while there is one. The marker is renewed while any process has no Redis, and ends `REMEMBERED_SECONDS` after
  the last renewal, at one instant for all; memory in Redis of before then is not used again.

Without a Redis configured there is the database alone. Source: CONTRACT "Who calls", ADR 0014.
"""

import time
from datetime import datetime, timedelta
from uuid import UUID

import redis
import structlog
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import Max
from django.utils import timezone

from licensing import anomalies, feed, installation, stamps
from licensing.background import Periodic
from licensing.errors import Unauthenticated, Unavailable
from licensing.models import Activation, JobState, RequestNonce
from licensing.signatures import REMEMBERED_SECONDS, WINDOW
from licensing.states import Severity

log = structlog.get_logger(__name__)

GAP_SECONDS = 3.0
LOOKS_SECONDS = 1.0
MARKER = "nonces-in-database"  # a row of its own among the jobs': how long the database remembers for all

# KEYS: the activation's memory, the epoch. ARGV: counter, nonce, floor or '', window, seconds kept, gap in ms.
_ACCEPT = feed.Script("""
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local epoch = redis.call('GET', KEYS[2])
if not epoch then
  epoch = now
  redis.call('SET', KEYS[2], string.format('%.0f', now))
end
local counter, window = tonumber(ARGV[1]), tonumber(ARGV[4])
local known = redis.call('HMGET', KEYS[1], 'high', 'base', 'c' .. ARGV[1], 'n' .. ARGV[2])
local high, base = tonumber(known[1]), tonumber(known[2])
if not high then
  if ARGV[3] == '' then return 'floor' end
  if now - tonumber(epoch) < tonumber(ARGV[6]) then return 'gap' end
  high = tonumber(ARGV[3])
  base = high
  redis.call('HSET', KEYS[1], 'base', string.format('%.0f', base), 'high', string.format('%.0f', high))
end
if known[4] or known[3] == ARGV[2] then return 'replayed' end
if known[3] then return 'cloned' end
if counter <= base or counter <= high - window or counter >= 9007199254740992 then return 'stale' end
redis.call('HSET', KEYS[1], 'c' .. ARGV[1], ARGV[2], 'n' .. ARGV[2], ARGV[1])
if counter > high then
  redis.call('HSET', KEYS[1], 'high', ARGV[1])
  local first = math.max(high - window + 1, base + 1)
  local last = math.min(counter - window, high)
  for gone = first, last do
    local name = 'c' .. string.format('%.0f', gone)
    local nonce = redis.call('HGET', KEYS[1], name)
    if nonce then redis.call('HDEL', KEYS[1], name, 'n' .. nonce) end
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 'ok'
""")


class Replayed(Unauthenticated):
    """This request was accepted before."""

    code = "request_replayed"


class CounterStale(Unauthenticated):
    """The counter is behind what was accepted before. Use a higher one."""

    code = "counter_stale"


class CounterReused(Unauthenticated):
    """This counter was used before, by another request: the installation seems to have been copied."""

    code = "counter_reused"


class _Memory:
    """Where this process remembers right now, as it learned from the marker."""

    def __init__(self) -> None:
        self.database_until: datetime | None = None  # what the marker says
        self.looked_at = float("-inf")
        self.refused_until = 0.0  # monotonic: this process has just lost Redis


_memory = _Memory()


def accept(*, activation_id: UUID, nonce: str, counter: int, at: datetime) -> None:
    """Accept the request with this nonce and counter, once and never again.

    Raises:
        Replayed, CounterStale, CounterReused: it was accepted before, or cannot be told from one that was.
        Unavailable: it cannot be known right now; try again in a few seconds.
    """
    said = _in_redis(activation_id, nonce, counter) if installation.here.redis_url else None
    written = 0 if said is None else counter  # the database, where it remembers by itself, knows its own floor
    if said is None:
        said = _in_database(activation_id, nonce, counter, at)
    match said:
        case "ok":
            stamps.seen(activation_id, at, written)
            return
        case "replayed":
            raise Replayed()
        case "cloned":
            _note(activation_id, counter, at, "cloned_installation", Severity.CRITICAL)
            raise CounterReused()
        case "gap":
            raise Unavailable("The memory of requests is being moved. Try again.", retry_after_seconds=3)
        case _:  # the signature fits: a copy that was restored, or one that fell behind the other
            _note(activation_id, counter, at, "counter_behind", Severity.MEDIUM)
            raise CounterStale()


def _in_redis(activation_id: UUID, nonce: str, counter: int) -> str | None:
    """Return what Redis says, None when the database is to be asked."""
    looking.wake()
    if time.monotonic() - _memory.looked_at > GAP_SECONDS - LOOKS_SECONDS:
        look()
    if time.monotonic() < _memory.refused_until:
        return "gap"
    now, until = timezone.now(), _memory.database_until
    if until is not None and now < until:
        return None
    if until is not None and now < until + timedelta(seconds=GAP_SECONDS):
        return "gap"  # clocks of hosts differ a little: nobody uses either memory while they change over
    generation = int(until.timestamp()) if until else 0
    keys = [_key(f"nonces:{generation}:{activation_id}"), _key("nonces:epoch")]
    more = (WINDOW, 3 * REMEMBERED_SECONDS, int(GAP_SECONDS * 1000))
    try:
        said = _ACCEPT(keys, counter, nonce, "", *more)
        if said == b"floor":
            said = _ACCEPT(keys, counter, nonce, floor_of(activation_id), *more)
    except redis.RedisError:
        _lost_redis()
        return "gap"
    return str(said.decode())


def floor_of(activation_id: UUID) -> int:
    """Return the highest counter the database knows of."""
    try:
        floor = Activation.objects.filter(pk=activation_id).values_list("counter_floor", flat=True).first() or 0
        highest = RequestNonce.objects.filter(activation_id=activation_id).aggregate(highest=Max("counter"))["highest"]
    except DatabaseError as error:
        raise Unavailable("The database is away.") from error
    return max(floor, highest or 0)


def _in_database(activation_id: UUID, nonce: str, counter: int, at: datetime) -> str:
    vendor = connection.vendor
    name = activation_id.hex if vendor == "sqlite" else activation_id
    try:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO licensing_requestnonce (activation_id, nonce, counter, seen_at)"
                    " SELECT id, %s, %s, %s FROM licensing_activation a WHERE id = %s AND counter_floor < %s"
                    " AND NOT EXISTS (SELECT 1 FROM licensing_requestnonce n"
                    " WHERE n.activation_id = a.id AND n.counter >= %s)",
                    [nonce, counter, at, name, counter, counter + WINDOW],
                )
                return "ok" if cursor.rowcount == 1 else "stale"
        except IntegrityError:
            used = RequestNonce.objects.filter(activation_id=activation_id)
            if used.filter(nonce=nonce).exists():
                return "replayed"
            return "cloned" if used.filter(counter=counter).exists() else "stale"
    except IntegrityError:
        raise
    except DatabaseError as error:
        raise Unavailable("The database is away.") from error


def _note(activation_id: UUID, counter: int, at: datetime, rule: str, severity: Severity) -> None:
    activation = Activation.objects.filter(pk=activation_id)
    if severity == Severity.CRITICAL:
        activation.filter(cloned_at=None).update(cloned_at=at)
    anomalies.flag(
        rule=rule,
        severity=severity,
        object_kind="activation",
        object_id=str(activation_id),
        license_id=activation.values_list("license_id", flat=True).first(),
        at=at,
        evidence={"counter": counter},
    )


# --- one memory at a time ---------------------------------------------------------------------------


def prepare() -> None:
    """Begin this process's life with Redis found, so that a quiet start costs no client a refusal."""
    if installation.here.redis_url:
        try:
            feed.call("SET", _key("nonces:epoch"), int(time.time() * 1000), "NX")
        except redis.RedisError:
            log.warning("nonces_without_redis")


def look() -> int:
    """Learn from the marker whether all remember in the database; renew it while this process has no Redis."""
    if not installation.here.redis_url:
        return 0
    try:
        feed.call("PING")
    except redis.RedisError:
        _mark()
    try:
        row = JobState.objects.filter(name=MARKER).values_list("watermark_at", flat=True).first()
    except DatabaseError:
        connection.close()
        return 0  # without a look the memory in Redis is not used either: see `_in_redis`
    _memory.database_until = row
    _memory.looked_at = time.monotonic()
    return 1


def _lost_redis() -> None:
    """Change over to the database, as everybody will who looks for the marker within the gap."""
    if time.monotonic() >= _memory.refused_until and (
        _memory.database_until is None or timezone.now() >= _memory.database_until
    ):
        _memory.refused_until = time.monotonic() + GAP_SECONDS
    _mark()
    stamps.flush()


def _mark() -> None:
    until = timezone.now() + timedelta(seconds=REMEMBERED_SECONDS)
    try:
        JobState.objects.get_or_create(name=MARKER)
        JobState.objects.filter(name=MARKER).exclude(watermark_at__gt=until).update(watermark_at=until)
    except DatabaseError as error:
        connection.close()
        raise Unavailable("Neither Redis nor the database answers.") from error


looking = Periodic("nonces", LOOKS_SECONDS, look)


def forget(*, at: datetime, limit: int = 10_000) -> int:
    """Delete what no acceptance can reach back to, its counters becoming the floor; return how many rows."""
    with transaction.atomic():
        old = RequestNonce.objects.filter(seen_at__lt=at - timedelta(seconds=REMEMBERED_SECONDS)).order_by("id")[:limit]
        rows = list(old.values_list("id", "activation_id", "counter"))
        floors: dict[UUID, int] = {}
        for _, activation_id, counter in rows:
            floors[activation_id] = max(counter, floors.get(activation_id, 0))
        for activation_id in sorted(floors):
            floor = floors[activation_id]
            Activation.objects.filter(pk=activation_id, counter_floor__lt=floor).update(counter_floor=floor)
        return RequestNonce.objects.filter(id__in=[row[0] for row in rows]).delete()[0]


def _key(name: str) -> str:
    return f"{installation.here.redis_key_prefix}:{name}"
