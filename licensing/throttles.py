"""How often somebody may call: a token bucket per caller, in Redis when there is one, else in this process.

Redis away is not "no limit": a bucket in the process takes over. Each process then counts alone, so a caller
may get its rate once per web process, never an unlimited one.
"""

import math
import threading
import time
from dataclasses import dataclass
from typing import Any

import redis
import structlog
from django.conf import settings

log = structlog.get_logger(__name__)

# Generic cell rate: one number per caller, the instant at which its bucket is full again.
_SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local full = tonumber(redis.call('GET', KEYS[1]) or now)
if full < now then full = now end
local next = full + 1 / ARGV[1]
local wait = next - now - ARGV[2] / ARGV[1]
if wait > 0 then return {0, tostring(wait), 0} end
redis.call('SET', KEYS[1], tostring(next), 'PX', math.ceil((next - now) * 1000) + 1000)
return {1, '0', math.floor((ARGV[2] / ARGV[1] - (next - now)) * ARGV[1])}
"""


@dataclass(frozen=True, slots=True)
class Allowed:
    """The bucket's answer: `wait_seconds` is 0 when the call may go on; `limit` is the burst."""

    limit: int
    remaining: int
    wait_seconds: int
    reset_seconds: int
    window_seconds: int


class Throttle:
    """Token buckets of one kind of caller: `rate` calls a second, `burst` at once."""

    def __init__(self, kind: str, rate: float, burst: int) -> None:
        self.kind, self.rate, self.burst = kind, rate, burst
        self._full: dict[str, float] = {}
        self._blocked: dict[str, float] = {}
        self._lock = threading.Lock()
        self._redis_again_at = 0.0

    def take(self, caller: str) -> Allowed:
        """Take one token of `caller`'s bucket."""
        client = _redis()
        if client is not None and time.monotonic() >= self._redis_again_at:
            try:
                ok, wait, remaining = client[1](
                    keys=[f"{settings.REDIS_KEY_PREFIX}:throttle:{self.kind}:{caller}"],
                    args=[self.rate, self.burst],
                )
                return self._answer(bool(ok), float(wait), int(remaining))
            except redis.RedisError as error:
                self._redis_again_at = time.monotonic() + 1.0
                log.error("throttle_without_redis", kind=self.kind, error=str(error))
        return self._take_here(caller)

    def _take_here(self, caller: str) -> Allowed:
        now = time.monotonic()
        with self._lock:
            if len(self._full) > 100_000:
                self._full = {name: full for name, full in self._full.items() if full > now}
            following = max(self._full.get(caller, now), now) + 1 / self.rate
            wait = following - now - self.burst / self.rate
            if wait > 0:
                return self._answer(False, wait, 0)
            self._full[caller] = following
        return self._answer(True, 0.0, int((self.burst / self.rate - (following - now)) * self.rate))

    def _answer(self, ok: bool, wait: float, remaining: int) -> Allowed:
        remaining = max(remaining, 0)
        return Allowed(
            limit=self.burst,
            remaining=remaining,
            wait_seconds=0 if ok else max(math.ceil(wait), 1),
            reset_seconds=math.ceil((self.burst - remaining) / self.rate),
            window_seconds=math.ceil(self.burst / self.rate),
        )

    def penalize(self, caller: str) -> None:
        """Take a token for a failure; once there is none left, `blocked_for` says so in this process."""
        taken = self.take(caller)
        if taken.wait_seconds:
            with self._lock:
                self._blocked[caller] = time.monotonic() + taken.wait_seconds

    def blocked_for(self, caller: str) -> int:
        """Return for how many seconds `caller` is refused after failures; 0 when it is not. Costs no look-up."""
        until = self._blocked.get(caller)
        if until is None:
            return 0
        left = until - time.monotonic()
        if left <= 0:
            self._blocked.pop(caller, None)
            return 0
        return math.ceil(left)

    def clear(self) -> None:
        """Forget every bucket kept in this process."""
        with self._lock:
            self._full.clear()
            self._blocked.clear()


_throttles: dict[str, Throttle] = {}
_client: tuple[Any, Any] | None = None


def throttle(kind: str) -> Throttle:
    """Return the throttle of a kind named in settings.THROTTLES: address, license or credential."""
    found = _throttles.get(kind)
    rate, burst = settings.THROTTLES[kind]
    if found is None or (found.rate, found.burst) != (rate, burst):
        found = _throttles[kind] = Throttle(kind, rate, burst)
    return found


def _redis() -> tuple[Any, Any] | None:
    global _client
    if not settings.REDIS_URL:
        return None
    if _client is None:
        connection = redis.Redis.from_url(
            settings.REDIS_URL, socket_timeout=0.05, socket_connect_timeout=0.05, retry=None
        )
        _client = (connection, connection.register_script(_SCRIPT))
    return _client
