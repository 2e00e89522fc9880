"""How often somebody may call: a token bucket per caller, counted in this process and settled through Redis.

A call costs no round trip. Several times a second each process tells Redis what callers of some appetite took, and
hears what they took elsewhere: between two settlements every process may let a caller through once more than it would
have, and no further. Redis away is not "no limit": each process then counts alone, so a caller may get its rate
once per web process.
"""

import ipaddress
import math
import threading
import time
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from licensing import feed, installation
from licensing.background import Periodic

log = structlog.get_logger(__name__)

SETTLED_SECONDS = 0.2
_AT_ONCE = 500
_ROUNDING_SECONDS = 1e-6  # what floats make of sums of instants: a full bucket must give its last token

# Generic cell rate: one number per caller, the instant at which its bucket is full again. ARGV: the rate, then how many
# were taken by each caller. Returns for each in how many milliseconds its bucket is full.
_SETTLE = feed.Script("""
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local answers = {}
for i, key in ipairs(KEYS) do
  local full = tonumber(redis.call('GET', key) or now)
  if full < now then full = now end
  full = full + ARGV[i + 1] / ARGV[1]
  local left = math.ceil((full - now) * 1000)
  redis.call('SET', key, string.format('%.6f', full), 'PX', left + 1000)
  answers[i] = left
end
return answers
""")


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
        self._taken: dict[str, int] = {}
        self._blocked: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, caller: str) -> Allowed:
        """Take one token of `caller`'s bucket."""
        now = time.monotonic()
        with self._lock:
            if len(self._full) > 100_000:
                self._full = {name: full for name, full in self._full.items() if full > now}
            following = max(self._full.get(caller, now), now) + 1 / self.rate
            wait = following - now - self.burst / self.rate
            if wait > _ROUNDING_SECONDS:
                return self._answer(0, math.ceil(wait))
            self._full[caller] = following
            if installation.here.redis_url:
                self._taken[caller] = self._taken.get(caller, 0) + 1
                _settling.wake()
        return self._answer(int(self.burst - (following - now) * self.rate + 1e-6), 0)

    def _answer(self, remaining: int, wait_seconds: int) -> Allowed:
        remaining = max(remaining, 0)
        return Allowed(
            limit=self.burst,
            remaining=remaining,
            wait_seconds=wait_seconds,
            reset_seconds=math.ceil((self.burst - remaining) / self.rate),
            window_seconds=math.ceil(self.burst / self.rate),
        )

    def settle(self) -> int:
        """Tell Redis what was taken here, and learn what was taken elsewhere; return how many callers it was about.

        Raises:
            redis.RedisError: it is away; what was taken is told next time.
        """
        now = time.monotonic()
        with self._lock:
            # Whoever is far from any limit is nobody's business elsewhere: their bucket fills again by itself.
            hungry = {
                caller: count
                for caller, count in self._taken.items()
                if count > 1 or (self._full.get(caller, now) - now) * self.rate > self.burst / 4
            }
            self._taken = {}
        callers = list(hungry)
        for start in range(0, len(callers), _AT_ONCE):
            some = callers[start : start + _AT_ONCE]
            keys = [f"{installation.here.redis_key_prefix}:throttle:{self.kind}:{caller}" for caller in some]
            try:
                answers = _SETTLE(keys, self.rate, *(hungry[caller] for caller in some))
            except redis.RedisError:
                with self._lock:
                    for caller in callers[start:]:
                        self._taken[caller] = self._taken.get(caller, 0) + hungry[caller]
                raise
            now = time.monotonic()
            with self._lock:
                for caller, left_ms in zip(some, answers, strict=True):
                    self._full[caller] = max(self._full.get(caller, now), now + left_ms / 1000)
        return len(callers)

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
            self._taken.clear()
            self._blocked.clear()


_throttles: dict[str, Throttle] = {}


def throttle(kind: str) -> Throttle:
    """Return the throttle of a kind named in settings.THROTTLES: address, license or credential."""
    found = _throttles.get(kind)
    rate, burst = installation.here.throttles[kind]
    if found is None or found.rate != rate or found.burst != burst:
        found = _throttles[kind] = Throttle(kind, rate, burst)
    return found


def settle() -> int:
    """Settle every throttle of this process; return how many callers it was about. Redis away: they count alone."""
    done = 0
    try:
        for each in list(_throttles.values()):
            done += each.settle()
    except redis.RedisError as error:
        log.warning("throttles_count_alone", error=type(error).__name__)
    return done


_settling = Periodic("throttles", SETTLED_SECONDS, settle)


def origin(address: str | None) -> str:
    """Return what an address is counted as: itself, or the /64 of an IPv6 one, which is one customer's line."""
    if address is None or ":" not in address:
        return address or ""
    try:
        found: Any = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
