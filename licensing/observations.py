"""What rules judge by and no other table says: who asked for what from where, counted off the request, in batches.

A request costs one look-up in a dictionary: what was noted within the last minutes is not noted again, and failures,
which are counted, are off the fast path. It is written every second in one statement, a row per kind, subject, value
and slot of time, and at an orderly stop. What cannot be written waits; what there is no room for is counted and said.

Nothing here identifies a person by itself: networks instead of addresses, keyed digests instead of keys.
"""

import ipaddress
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import orjson
import structlog
from django.db import DatabaseError, connection

from licensing import anomalies, crypto
from licensing.background import Periodic
from licensing.models import Observation
from licensing.states import Severity

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 1.0
CAPACITY = 100_000
BATCH = 1_000
AGAIN_SECONDS = 600.0  # after that long, what is in use is noted as seen again
VALUES = 200  # different values of one failing subject between two writes; the rest are one more value
MORE = "+"

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Kind(NamedTuple):
    """How long a slot is, and how long its rows are kept. `bounded`: a stranger chooses the values."""

    slot: timedelta
    kept: timedelta
    bounded: bool = False


KINDS: Mapping[str, Kind] = {
    "machine": Kind(DAY, 3 * DAY),  # a license, and the fingerprint that asked for it
    "network": Kind(HOUR, 3 * DAY),  # a license, and the network that asked for it
    "attempt": Kind(MINUTE, 32 * DAY),  # a license, and the fingerprint that asked to be activated
    "revoked": Kind(HOUR, 3 * DAY),  # a revoked license, and the fingerprint that asked for it
    "signature": Kind(
        MINUTE, 2 * DAY, bounded=True
    ),  # an activation whose signature did not fit, and the network it came from
    "signature_from": Kind(MINUTE, 2 * DAY, bounded=True),  # the same the other way round
    "unknown_key": Kind(
        MINUTE, 2 * DAY, bounded=True
    ),  # a network or credential, and the digest of a well-formed key nobody has
    "mistyped_key": Kind(MINUTE, 2 * DAY, bounded=True),  # a network, and the digest of what is no key
    "opened": Kind(HOUR, 32 * DAY),  # one of the staff, and the customer whose page was opened
}

_Key = tuple[str, str, str, int]  # kind, subject, value, slot


class Seen(NamedTuple):
    """How often within a slot, and the seconds of the first and last time."""

    times: int
    first: float
    last: float


_waiting: dict[_Key, Seen] = {}
_values: Counter[tuple[str, str]] = Counter()
_lately: dict[tuple[str, str | None, str | None], float] = {}
_dropped = 0
_lock = threading.Lock()
_writing = threading.Lock()


def used(license_id: str, fingerprint: str | None, address: str | None, at: datetime) -> None:
    """Note who asked for a license from where. Costs a look-up when that was noted within ten minutes."""
    now = at.timestamp()
    until = _lately.get((license_id, fingerprint, address))
    if until is not None and now < until and until - now <= AGAIN_SECONDS:
        return
    if len(_lately) >= CAPACITY:
        _lately.clear()
    _lately[license_id, fingerprint, address] = now + AGAIN_SECONDS
    if fingerprint is not None:
        note("machine", license_id, fingerprint, at)
    if address is not None and (network := wide(address)):
        note("network", license_id, network, at)


def note(kind: str, subject: str, value: str, at: datetime) -> None:
    """Note one observation; costs no query."""
    global _dropped
    now = at.timestamp()
    span = KINDS[kind].slot.total_seconds()
    slot = int(now // span * span)
    with _lock:
        if (kind, subject, value, slot) not in _waiting:
            if len(_waiting) >= CAPACITY:
                _dropped += 1
                return
            if KINDS[kind].bounded and _values[kind, subject] >= VALUES:
                value = MORE
            _values[kind, subject] += 1
        before = _waiting.get((kind, subject, value, slot))
        _waiting[kind, subject, value, slot] = (
            Seen(before.times + 1, min(before.first, now), max(before.last, now)) if before else Seen(1, now, now)
        )
    writing.wake()


def secretly(text: str) -> str:
    """Return what tells one key from another without saying either: 16 characters of a keyed digest."""
    return crypto.mac(text.encode("utf-8", "replace"), kind="tried-key").hex()[:16]


def flush() -> int:
    """Write what waits; return how many rows. On a database error it goes on waiting."""
    global _dropped
    with _writing:
        with _lock:
            rows = sorted(_waiting.items())
            _waiting.clear()
            _values.clear()
            dropped, _dropped = _dropped, 0
        written = 0
        try:
            for start in range(0, len(rows), BATCH):
                write(rows[start : start + BATCH])
                written = min(start + BATCH, len(rows))
        except DatabaseError as error:
            connection.close()
            log.error("observations_not_written", waiting=len(rows) - written, error=type(error).__name__)
            with _lock:
                for key, seen in rows[written:]:
                    newer = _waiting.get(key, Seen(0, seen.first, seen.last))
                    _waiting[key] = Seen(
                        seen.times + newer.times, min(seen.first, newer.first), max(seen.last, newer.last)
                    )
        if dropped:
            anomalies.flag_later(
                rule="observations_dropped",
                severity=Severity.MEDIUM,
                object_kind="observation",
                object_id="",
                at=datetime.fromtimestamp(rows[-1][1].last, UTC),
                evidence={"dropped": dropped},
            )
        return written


def write(rows: Iterable[tuple[_Key, Seen]]) -> None:
    """Write rows in one statement, in the order of their keys: what is there already is counted on."""
    said = [
        [kind, subject, value, _instant(slot), _instant(seen.first), _instant(seen.last), seen.times]
        for (kind, subject, value, slot), seen in rows
    ]
    with connection.cursor() as cursor:
        cursor.execute(_POSTGRESQL if connection.vendor == "postgresql" else _SQLITE, [orjson.dumps(said).decode()])


_INTO = (
    "INSERT INTO licensing_observation (kind, subject, value, slot_at, first_at, last_at, count) SELECT {columns}"
    " ON CONFLICT (kind, subject, slot_at, value) DO UPDATE SET count = licensing_observation.count + EXCLUDED.count,"
    " first_at = {least}(licensing_observation.first_at, EXCLUDED.first_at),"
    " last_at = {greatest}(licensing_observation.last_at, EXCLUDED.last_at)"
)
_POSTGRESQL = _INTO.format(
    columns="r->>0, r->>1, r->>2, (r->>3)::timestamptz, (r->>4)::timestamptz, (r->>5)::timestamptz, (r->>6)::int"
    " FROM jsonb_array_elements(%s::jsonb) AS r",
    least="LEAST",
    greatest="GREATEST",
)
_SQLITE = _INTO.format(
    columns=", ".join(f"json_extract(value, '$[{place}]')" for place in range(7)) + " FROM json_each(%s) WHERE true",
    least="min",
    greatest="max",
)


def _instant(seconds: float) -> str:
    """Return an instant as both databases keep it: SQLite compares them as text, as Django writes them."""
    at = datetime.fromtimestamp(seconds, UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S" + (".%f" if at.microsecond else "")) + (
        "+00:00" if connection.vendor == "postgresql" else ""
    )


def forget(*, at: datetime, limit: int = 10_000) -> int:
    """Delete observations that no rule looks at any more, at most `limit`; return how many."""
    for name, kind in KINDS.items():
        old = Observation.objects.filter(kind=name, last_at__lt=at - kind.kept).values_list("id", flat=True)[:limit]
        if gone := Observation.objects.filter(id__in=list(old)).delete()[0]:
            return gone
    return 0


def waiting() -> int:
    """Return how many rows are not written yet."""
    return len(_waiting)


def clear() -> None:
    """Forget what this process has noted and not written."""
    global _dropped
    with _lock:
        _waiting.clear()
        _values.clear()
        _lately.clear()
        _dropped = 0


@lru_cache(maxsize=10_000)
def wide(address: str) -> str:
    """Return the network an address is in as providers have them: /16, or /32 of IPv6; empty when it is no address."""
    return _network(address, 16, 32)


@lru_cache(maxsize=10_000)
def block(address: str | None) -> str:
    """Return the block of addresses one attacker commands: /24, or /48 of IPv6; empty when it is no address."""
    return _network(address or "", 24, 48)


def _network(address: str, v4: int, v6: int) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((found, v6), strict=False))
        found = found.ipv4_mapped
    return str(ipaddress.ip_network((found, v4), strict=False))


writing = Periodic("observations", INTERVAL_SECONDS, flush, left=waiting)
