"""When a machine was last seen and the highest counter it used: written in batches, off the request.

A request only notes it in a bounded dictionary, one entry a machine. It is written every second in one statement, and
at an orderly stop. A value in the database only ever rises. What cannot be written now waits; what there is no room for
is counted and said.
"""

import threading
from datetime import datetime
from uuid import UUID

import structlog
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from django.db.models.functions import Greatest

from licensing import anomalies
from licensing.background import Periodic
from licensing.models import Activation
from licensing.states import Severity

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 1.0
CAPACITY = 200_000
BATCH = 1_000

_waiting: dict[UUID, tuple[datetime, int]] = {}
_dropped = 0
_lock = threading.Lock()
_writing = threading.Lock()


def seen(activation_id: UUID, at: datetime, counter: int = 0) -> None:
    """Note that the machine was seen, and with which counter; costs no query."""
    global _dropped
    with _lock:
        known = _waiting.get(activation_id)
        if known is None and len(_waiting) >= CAPACITY:
            _dropped += 1
            return
        _waiting[activation_id] = (max(at, known[0]), max(counter, known[1])) if known else (at, counter)
    writing.wake()


def flush() -> int:
    """Write what waits; return how many machines. On a database error it goes on waiting."""
    global _dropped
    with _writing:
        with _lock:
            rows = sorted(_waiting.items())
            _waiting.clear()
            dropped, _dropped = _dropped, 0
        written = 0
        try:
            for start in range(0, len(rows), BATCH):
                _write(rows[start : start + BATCH])
                written = min(start + BATCH, len(rows))
        except DatabaseError as error:
            connection.close()
            log.error("stamps_not_written", waiting=len(rows) - written, error=type(error).__name__)
            with _lock:
                for activation_id, (at, counter) in rows[written:]:
                    newer = _waiting.get(activation_id, (at, counter))
                    _waiting[activation_id] = (max(at, newer[0]), max(counter, newer[1]))
        if dropped:
            anomalies.flag_later(
                rule="stamps_dropped",
                severity=Severity.MEDIUM,
                object_kind="activation",
                object_id="",
                at=max(row[1][0] for row in rows),
                evidence={"dropped": dropped},
            )
        return written


def waiting() -> int:
    """Return of how many machines something is not written yet."""
    return len(_waiting)


def _write(rows: list[tuple[UUID, tuple[datetime, int]]]) -> None:
    if connection.vendor == "postgresql":
        ids = [row[0] for row in rows]
        with connection.cursor() as cursor:
            cursor.execute(
                # Locked in one order, as every process does: two that write at once do not wait for each other.
                "WITH locked AS (SELECT id FROM licensing_activation WHERE id = ANY(%s::uuid[]) ORDER BY id"
                " FOR NO KEY UPDATE)"
                " UPDATE licensing_activation a SET last_seen_at = GREATEST(a.last_seen_at, s.at),"
                " counter_floor = GREATEST(a.counter_floor, s.counter)"
                " FROM locked, unnest(%s::uuid[], %s::timestamptz[], %s::bigint[]) AS s(id, at, counter)"
                " WHERE a.id = locked.id AND locked.id = s.id",
                [ids, ids, [row[1][0] for row in rows], [row[1][1] for row in rows]],
            )
        return
    with transaction.atomic():
        for activation_id, (at, counter) in rows:
            Activation.objects.filter(pk=activation_id).update(
                last_seen_at=Greatest(F("last_seen_at"), at), counter_floor=Greatest(F("counter_floor"), counter)
            )


writing = Periodic("stamps", INTERVAL_SECONDS, flush, left=waiting)
