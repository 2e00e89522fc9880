"""What this installation is set to, as the hot path reads it: plain attributes, read once per process.

A look-up in Django's settings costs about a microsecond, and a request would make a dozen. Whoever needs a setting
outside a request reads `django.conf.settings` as ever.
"""

from typing import Any

import msgspec
from django.conf import settings
from django.core.signals import setting_changed


class Installation(msgspec.Struct, frozen=True):
    """The settings of the same names; `throttles` by kind: rate a second, burst."""

    public_url: str
    redis_url: str
    redis_key_prefix: str
    throttles: dict[str, tuple[float, int]]
    production: bool
    allowed_hosts: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    hsts_seconds: int


def _read() -> Installation:
    return Installation(
        public_url=settings.PUBLIC_URL,
        redis_url=settings.REDIS_URL,
        redis_key_prefix=settings.REDIS_KEY_PREFIX,
        throttles=dict(settings.THROTTLES),
        production=settings.PRODUCTION,
        allowed_hosts=tuple(settings.ALLOWED_HOSTS),
        trusted_proxies=tuple(settings.TRUSTED_PROXIES),
        hsts_seconds=settings.SECURE_HSTS_SECONDS,
    )


here = _read()


def read_again(**_: Any) -> None:
    """Take over settings that were changed: what only a process under test does, by Django's own signal."""
    global here
    here = _read()


setting_changed.connect(read_again)
