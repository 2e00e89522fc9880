"""Django's cache on Redis that goes on in this process while Redis is away.

What sign-in limits and pages keep there is counted per process then, never dropped. Nothing that decides about
licenses lives in it.
"""

import time
from collections.abc import Callable
from typing import Any

import redis
import structlog
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache

log = structlog.get_logger(__name__)

AWAY_SECONDS = 1.0


class RedisOrHere(RedisCache):
    """Redis, or this process's memory for a second after Redis failed."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._here = LocMemCache("redis-is-away", {})
        self._again_at = 0.0


def _either(name: str) -> Callable[..., Any]:
    there, here = getattr(RedisCache, name), getattr(LocMemCache, name)

    def call(cache: RedisOrHere, *args: Any, **options: Any) -> Any:
        if time.monotonic() >= cache._again_at:
            try:
                return there(cache, *args, **options)
            except redis.RedisError as error:
                cache._again_at = time.monotonic() + AWAY_SECONDS
                log.error("cache_without_redis", error=type(error).__name__)
        return here(cache._here, *args, **options)

    call.__doc__ = there.__doc__
    return call


NAMES = ("add", "get", "set", "touch", "delete", "get_many", "has_key", "incr", "set_many", "delete_many", "clear")
for _name in NAMES:
    setattr(RedisOrHere, _name, _either(_name))
