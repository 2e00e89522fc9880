"""This machine's clock, compared with that of the database server or of Redis: expiry, signatures and bills go by it.

On one machine with SQLite and without Redis there is no second clock to ask.
"""

import time

import redis
import structlog
from django.conf import settings
from django.db import DatabaseError, connection
from django.utils import timezone

from licensing import anomalies
from licensing.background import Periodic
from licensing.states import Severity

log = structlog.get_logger(__name__)

LOOKS_SECONDS = 5.0
TOLERATED_SECONDS = 5.0  # a signed request may be 300 s off; what is billed by the second should not be

_ahead = 0.0


def ahead_seconds() -> float:
    """Return how far this clock was ahead of the other one at the last look; negative behind, 0 when they agree."""
    return _ahead


def look() -> bool:
    """Compare; flag what is more than `TOLERATED_SECONDS` apart."""
    global _ahead
    before = time.time()
    other = _other()
    if other is None:
        return False
    ahead = (before + time.time()) / 2 - other
    _ahead = ahead if abs(ahead) > TOLERATED_SECONDS + (time.time() - before) else 0.0
    if _ahead:
        log.error("clock_skewed", ahead_seconds=round(_ahead, 1))
        anomalies.flag_later(
            rule="clock_skewed",
            severity=Severity.CRITICAL,
            object_kind="service",
            object_id="clock",
            at=timezone.now(),
            evidence={"ahead_seconds": round(_ahead, 1)},
        )
    return True


def _other() -> float | None:
    try:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
                return float(cursor.fetchone()[0])
        if settings.REDIS_URL:
            with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1) as client:
                seconds, micros = client.time()
                return seconds + micros / 1e6
    except (DatabaseError, redis.RedisError):
        return None  # away: said by who needs it
    return None


watching = Periodic("clock", LOOKS_SECONDS, look)
