"""The change feed: every process learns at once that what it keeps of a row is old.

`announce(row, revision)` is called by the rule in its transaction, after the revision rose and **before** it commits:
it leaves a tombstone in Redis ("nothing below this revision") and an entry in a stream that each process follows. From
then on nobody keeps or believes a copy with a lower revision, so a reader that read before the commit and
fills a cache after it cannot bring the old state back. If the commit then fails, the only loss is slower reads.

`Kept` is what a process keeps. A copy counts while it is younger than `FRESH_SECONDS` since it was read from the
database (the hard bound, when a message and a tombstone were both lost) and while the feed was heard within
`ALIVE_SECONDS`. Without Redis there is one web process, and a copy counts for `FRESH_ALONE_SECONDS`. With Redis
configured but away nothing kept counts: every question goes to the database.

It does not know what is kept. Source: reference design "verdict cache and revocation", ADR 0013.
"""

import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import redis
import structlog
from django.conf import settings
from django.utils import timezone

from licensing import anomalies
from licensing.background import Periodic
from licensing.states import Severity

log = structlog.get_logger(__name__)

FRESH_SECONDS = 8.0
FRESH_ALONE_SECONDS = 1.0
ALIVE_SECONDS = 1.0
TOMBSTONE_SECONDS = 60
PATIENT_SECONDS = 0.5  # a change waits so long to be announced; a question only a tenth of it
ALWAYS = 2**62  # the revision of a row that has none: no copy from before the change counts
_AGAIN_SECONDS = 1.0
_STREAM_LENGTH = 20_000

Value = TypeVar("Value")


@dataclass(slots=True)
class Copy(Generic[Value]):
    """A kept value: whose row it is about and at which revision, when (monotonic) it was read, whether it was used."""

    value: Value
    row: str
    revision: int
    read_at: float
    used: bool = True


class Kept(Generic[Value]):
    """What this process keeps of one kind, by whatever it was asked with; the oldest goes when there is no room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._copies: dict[Hashable, Copy[Value]] = {}
        self._by_row: dict[str, set[Hashable]] = {}
        self._lock = threading.Lock()
        _everything.append(self)

    def get(self, key: Hashable) -> Copy[Value] | None:
        """Return the copy if it counts right now."""
        found = self._copies.get(key)
        if found is None or time.monotonic() - found.read_at > fresh_seconds():
            return None
        found.used = True
        return found

    def aging(self, seconds: float) -> list[tuple[Hashable, Copy[Value]]]:
        """Return the copies that were used since they were last looked through and are older than this."""
        now = time.monotonic()
        with self._lock:
            old = [(key, copy) for key, copy in self._copies.items() if copy.used and now - copy.read_at > seconds]
        for _, copy in old:
            copy.used = False
        return old

    def confirm(self, key: Hashable, copy: Copy[Value], read_at: float) -> None:
        """Note that the copy's row still has its revision, as read at `read_at`; a copy dropped meanwhile stays so."""
        with self._lock:
            if self._copies.get(key) is copy and copy.revision >= _floor(copy.row):
                copy.read_at = read_at

    def last(self, key: Hashable, within_seconds: float) -> Copy[Value] | None:
        """Return the last copy, fresh or not, unless a later change was announced: for when nothing better is there."""
        found = self._copies.get(key)
        if found is None or time.monotonic() - found.read_at > within_seconds:
            return None
        return found

    def put(self, key: Hashable, copy: Copy[Value]) -> None:
        """Keep a copy, unless a later revision was announced since it was read."""
        with self._lock:
            if copy.revision < _floor(copy.row):
                return
            if len(self._copies) >= self.capacity:
                for oldest in list(self._copies)[: self.capacity // 20 + 1]:
                    self._forget(oldest)
            self._forget(key)
            self._copies[key] = copy
            self._by_row.setdefault(copy.row, set()).add(key)

    def drop(self, row: str) -> None:
        """Forget every copy of a row."""
        with self._lock:
            for key in tuple(self._by_row.get(row, ())):
                self._forget(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._copies.clear()
            self._by_row.clear()

    def _forget(self, key: Hashable) -> None:
        gone = self._copies.pop(key, None)
        if gone is not None:
            keys = self._by_row.get(gone.row)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._by_row[gone.row]


_everything: list[Kept[Any]] = []
_floors: dict[str, tuple[int, float]] = {}
_floors_lock = threading.Lock()
_heard_at = float("-inf")
_follower: threading.Thread | None = None
_away_until = 0.0
_unsaid: dict[str, int] = {}
_mute_until = 0.0
_local = threading.local()


def fresh_seconds() -> float:
    """Return how old a copy in this process may be right now; negative when none counts."""
    if not settings.REDIS_URL:
        return FRESH_ALONE_SECONDS
    if time.monotonic() - _heard_at > ALIVE_SECONDS:
        return -1.0
    return FRESH_SECONDS


def announce(row: object, revision: int = ALWAYS) -> None:
    """Say that the row has this revision once the caller's transaction commits. Never raises.

    Redis away does not stop the change: other processes then see it within `FRESH_SECONDS`.
    """
    name = str(row)
    _heard(name, revision)
    if not settings.REDIS_URL:
        return
    if time.monotonic() >= _mute_until and _say(name, revision):
        return
    log.error("change_not_announced", row=name)
    with _floors_lock:
        _unsaid[name] = max(revision, _unsaid.get(name, 0))
    announcing.wake()


def _say(name: str, revision: int) -> bool:
    """Tell Redis; return whether it heard. More patient than a question: a copy that stays costs more than a wait."""
    global _mute_until
    try:
        _patient(settings.REDIS_URL).eval(
            _ANNOUNCE,
            2,
            _key(f"tombstone:{name}"),
            _key("changes"),
            name,
            revision,
            TOMBSTONE_SECONDS,
            _STREAM_LENGTH,
            _key(f"last:{name}"),
        )
    except redis.RedisError:
        _mute_until = time.monotonic() + _AGAIN_SECONDS
        return False
    return True


def say_again() -> int:
    """Announce what could not be announced before; return how many changes."""
    done = 0
    for name, revision in list(_unsaid.items()):
        if time.monotonic() < _mute_until or not _say(name, revision):
            return done
        with _floors_lock:
            if _unsaid.get(name) == revision:
                del _unsaid[name]
        done += 1
    return done


announcing = Periodic("announcements", 0.1, say_again)


@lru_cache(maxsize=2)
def _patient(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=PATIENT_SECONDS, socket_connect_timeout=PATIENT_SECONDS)


# One step: a tombstone never falls, whoever comes first.
_ANNOUNCE = """
local floor = tonumber(redis.call('GET', KEYS[1]) or '-1')
if tonumber(ARGV[2]) > floor then redis.call('SET', KEYS[1], ARGV[2]) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('DEL', ARGV[5])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'r', ARGV[1], 'n', ARGV[2])
return 1
"""


def _key(name: str) -> str:
    return f"{settings.REDIS_KEY_PREFIX}:{name}"


def _heard(row: str, revision: int) -> None:
    now = time.monotonic()
    with _floors_lock:
        if len(_floors) > 50_000:
            for name in [name for name, (_, until) in _floors.items() if until < now]:
                del _floors[name]
        known = _floors.get(row)
        _floors[row] = (max(revision, known[0] if known and known[1] > now else 0), now + TOMBSTONE_SECONDS)
    for kept in _everything:
        kept.drop(row)


def _floor(row: str) -> int:
    known = _floors.get(row)
    if known is None or known[1] < time.monotonic():
        return 0
    return known[0]


# --- Redis, as the hot path uses it -----------------------------------------------------------------


def call(*command: Any) -> Any:
    """Run one Redis command on this thread's own connection: a tenth of what the high-level client costs.

    Raises:
        redis.RedisError: it is not configured or away; then without asking again for a second.
    """
    global _away_until
    if not settings.REDIS_URL or time.monotonic() < _away_until:
        raise redis.ConnectionError("Redis is away.")
    connection: Any = getattr(_local, "connection", None)
    if connection is None or _local.url != settings.REDIS_URL:
        pool = redis.ConnectionPool.from_url(settings.REDIS_URL, socket_timeout=0.05, socket_connect_timeout=0.05)
        connection = _local.connection = pool.make_connection()
        _local.url = settings.REDIS_URL
    try:
        connection.send_command(*command, check_health=False)
        return connection.read_response()
    except redis.ResponseError:
        raise
    except redis.RedisError as error:
        connection.disconnect()
        _away_until = time.monotonic() + _AGAIN_SECONDS
        log.error("redis_away", error=type(error).__name__)
        anomalies.flag_later(
            rule="redis_away",
            severity=Severity.HIGH,
            object_kind="service",
            object_id="redis",
            at=timezone.now(),
            evidence={"error": type(error).__name__},
        )
        raise


class Script:
    """A Lua script run by its digest, sent whole where Redis does not know it yet."""

    def __init__(self, text: str) -> None:
        import hashlib

        self.text = text
        self.digest = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  Redis names scripts so

    def __call__(self, keys: list[str], *arguments: Any) -> Any:
        """Run it. Raises as `call` does."""
        try:
            return call("EVALSHA", self.digest, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return call("EVAL", self.text, len(keys), *keys, *arguments)


# --- following --------------------------------------------------------------------------------------


def follow() -> None:
    """Make sure this process follows the feed; costs two comparisons when it does. Also after a fork."""
    global _follower
    if (_follower is not None and _follower.is_alive()) or not settings.REDIS_URL:
        return
    with _floors_lock:
        if _follower is None or not _follower.is_alive():
            _follower = threading.Thread(target=_follow_forever, name="change-feed", daemon=True)
            _follower.start()


def _follow_forever() -> None:
    while True:
        try:
            _follow()
        except Exception as error:  # whatever it was: nothing kept counts until the feed is heard again
            log.error("change_feed_lost", error=type(error).__name__)
            time.sleep(0.2)


def _follow() -> None:
    global _heard_at
    with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2.0, socket_connect_timeout=0.5) as client:
        stream = _key("changes")
        newest: Any = client.xrevrange(stream, count=1)
        last = newest[0][0] if newest else b"0-0"
        for kept in _everything:  # what was kept before may be old; what is read from here on is heard of
            kept.clear()
        while True:
            _heard_at = time.monotonic()
            answer: Any = client.xread({stream: last}, count=1_000, block=300)
            for _, entries in answer or ():
                for last, fields in entries:  # noqa: B007  the last one is where the next read begins
                    _heard(fields[b"r"].decode(), int(fields[b"n"]))


def forget() -> None:
    """Forget what is kept and what was heard, and connect anew: for tests, and after settings changed."""
    global _away_until, _mute_until
    for kept in _everything:
        kept.clear()
    _floors.clear()
    _unsaid.clear()
    _away_until = _mute_until = 0.0
    _local.__dict__.clear()
