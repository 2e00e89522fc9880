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

import os
import socket
import struct
import threading
import time
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Generic, TypeVar

import hiredis
import msgspec
import redis
import structlog
from django.utils import timezone

from licensing import anomalies, installation
from licensing.background import Periodic
from licensing.states import Severity

log = structlog.get_logger(__name__)

FRESH_SECONDS = 8.0
FRESH_ALONE_SECONDS = 1.0
ALIVE_SECONDS = 1.0
IN_USE_SECONDS = 10.0
OLDEST_SECONDS = 60.0  # what raises no revision, such as a hand in the database, is seen after this at the latest
TOMBSTONE_SECONDS = 60
PATIENT_SECONDS = 0.5  # a change waits so long to be announced
IMPATIENT_SECONDS = 0.2  # a question only so long: then the database is asked
ALWAYS = 2**62  # the revision of a row that has none: no copy from before the change counts
_AGAIN_SECONDS = 1.0
_STREAM_LENGTH = 20_000

Value = TypeVar("Value")


class Copy(msgspec.Struct, Generic[Value], gc=False):
    """A kept value: whose row it is about and at which revision; when (monotonic) it was read or last confirmed, when
    last used and how often, and when it was made."""

    value: Value
    row: str
    revision: int
    read_at: float
    used_at: float = 0.0
    uses: int = 0
    born_at: float = 0.0


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
        if found is None:
            return None
        now = time.monotonic()
        if now - found.read_at > fresh_seconds():
            return None
        found.used_at = now
        found.uses += 1
        return found

    def aging(self, seconds: float) -> list[tuple[Hashable, Copy[Value]]]:
        """Return the copies in use that are older than this, but for those so old that they are better read whole."""
        now = time.monotonic()
        return [
            (key, copy)
            for key, copy in list(self._copies.items())
            if now - copy.read_at > seconds
            and now - copy.used_at < IN_USE_SECONDS
            and now - copy.born_at < OLDEST_SECONDS
        ]

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
            if copy.revision < _floor(copy.row) or copy.read_at < _followed_since:
                return
            if len(self._copies) >= self.capacity:
                for oldest in list(self._copies)[: self.capacity // 20 + 1]:
                    self._forget(oldest)
            self._forget(key)
            copy.used_at = copy.born_at = copy.read_at
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
_following = False
_ending = threading.Event()
_followed_since = float("-inf")  # what was read before may have changed unheard
_away_until = 0.0
_unsaid: dict[str, int] = {}
_mute_until = 0.0
_local = threading.local()


def fresh_seconds() -> float:
    """Return how old a copy in this process may be right now; negative when none counts."""
    if not installation.here.redis_url:
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
    if not installation.here.redis_url:
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
        _patient(installation.here.redis_url).eval(
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
    return f"{installation.here.redis_key_prefix}:{name}"


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


# What Redis says when it answers, but keeps nothing: full, or no longer the primary.
_USELESS = (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError)


def call(*command: Any) -> Any:
    """Run one Redis command on this thread's own connection: a tenth of what the high-level client costs.

    Raises:
        redis.RedisError: it is not configured or away; then without asking again for a second.
    """
    global _away_until
    if not installation.here.redis_url or time.monotonic() < _away_until:
        raise redis.ConnectionError("Redis is away.")
    try:
        connection: Any = getattr(_local, "connection", None)
        if connection is None or _local.url != installation.here.redis_url:
            connection = _connected(installation.here.redis_url)
        connection.send_packed_command((hiredis.pack_command(command),), check_health=False)
        return connection.read_response()
    except redis.RedisError as error:
        if isinstance(error, redis.ResponseError) and not isinstance(error, _USELESS):
            raise
        _local.connection = None
        _away_until = time.monotonic() + _AGAIN_SECONDS
        anomalies.service_away(name="redis", error=error)
        raise


def _connected(url: str) -> Any:
    """Return a new connection of this thread's."""
    _local.connection = None
    pool = redis.ConnectionPool.from_url(
        url, socket_timeout=IMPATIENT_SECONDS, socket_connect_timeout=IMPATIENT_SECONDS
    )
    connection: Any = pool.make_connection()
    connection.connect()
    if not isinstance(connection, redis.SSLConnection):
        # The kernel keeps the time: Python would ask it before every send and receive whether that may be done.
        wait = struct.pack("ll", int(IMPATIENT_SECONDS), int(IMPATIENT_SECONDS % 1 * 1e6))
        connection._sock.settimeout(None)
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
    _local.connection, _local.url = connection, url
    return connection


def near() -> bool:
    """Return whether there is a Redis that may be asked right now."""
    return bool(installation.here.redis_url) and time.monotonic() >= _away_until


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
    """Make sure this process follows the feed; costs a comparison when it does. Also after a fork."""
    global _following
    if _following or not installation.here.redis_url:
        return
    with _floors_lock:
        if not _following:
            threading.Thread(target=_follow_forever, name="change-feed", daemon=True).start()
            _following = True


def stop() -> None:
    """Follow no more, as at the end of the process: from then on nothing kept counts, and no loss is worth a word."""
    _ending.set()


def _forked() -> None:
    """Take note that this is a new process: its parent's thread is not here, nor are its connections ours."""
    global _following
    _following = False
    _local.__dict__.clear()


os.register_at_fork(after_in_child=_forked)


def _follow_forever() -> None:
    while not _ending.is_set():
        try:
            _follow()
        except Exception as error:  # whatever it was: nothing kept counts until the feed is heard again
            if _ending.is_set():
                return
            log.error("change_feed_lost", error=type(error).__name__)
            time.sleep(0.2)


def _follow() -> None:
    global _heard_at, _followed_since
    with redis.Redis.from_url(installation.here.redis_url, socket_timeout=2.0, socket_connect_timeout=0.5) as client:
        stream = _key("changes")
        _followed_since = time.monotonic()
        newest: Any = client.xrevrange(stream, count=1)
        last = newest[0][0] if newest else b"0-0"
        for kept in _everything:  # what was kept before may be old; what is read from here on is heard of
            kept.clear()
        here = _key("feed:here")
        client.set(here, 1)
        while not _ending.is_set():
            _heard_at = time.monotonic()
            answer: Any = client.xread({stream: last}, count=1_000, block=300)
            if not answer and client.set(here, 1, nx=True):
                _emptied()
            for _, entries in answer or ():
                for last, fields in entries:  # noqa: B007  the last one is where the next read begins
                    _heard(fields[b"r"].decode(), int(fields[b"n"]))


def _emptied() -> None:
    """Say that Redis lost what it held while it went on answering: flushed, or it evicts what must stay."""
    log.error("redis_emptied")
    anomalies.flag_later(
        rule="redis_emptied",
        severity=Severity.HIGH,
        object_kind="service",
        object_id="redis",
        at=timezone.now(),
        evidence={},
    )


def forget() -> None:
    """Forget what is kept and what was heard, and connect anew: for tests, and after settings changed."""
    global _away_until, _mute_until
    for kept in _everything:
        kept.clear()
    _floors.clear()
    _unsaid.clear()
    _away_until = _mute_until = 0.0
    _local.__dict__.clear()
