"""Identifiers: UUIDv7, made here so that a row's id exists before the row does.

Ids name things; they are never secrets (OWASP ASVS 11.5.1).
"""

import os
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """Return a new UUIDv7. Ids made by one process sort in the order they were made.

    48 bits of Unix milliseconds, 12 bits of the fraction of that millisecond, 62 random bits.
    Source: RFC 9562 section 5.7 and section 6.2, method 3.
    """
    global _last
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    ticks = milliseconds << 12 | rest * 4096 // 1_000_000
    with _lock:
        _last = ticks = max(ticks, _last + 1)
    random = int.from_bytes(os.urandom(8), "big") & (1 << 62) - 1
    return uuid.UUID(int=(ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | random)
