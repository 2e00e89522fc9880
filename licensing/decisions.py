"""The decision record: why a validation or another call was refused, kept 30 days, written in batches.

A request only puts a row into a bounded buffer. It is written every second, and at an orderly stop. When the
buffer is full or the database away, what could not be kept is counted and flagged as an anomaly: nothing is lost
in silence.
"""

import threading
from collections import deque
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.db import InterfaceError, OperationalError, transaction
from django.utils import timezone

from licensing import anomalies
from licensing.background import Periodic
from licensing.models import DecisionRecord
from licensing.states import Severity

log = structlog.get_logger(__name__)

KEPT = timedelta(days=30)
CAPACITY = 50_000
BATCH = 1_000
INTERVAL_SECONDS = 1.0

_buffer: deque[DecisionRecord] = deque()
_dropped = 0
_lock = threading.Lock()
_writing = threading.Lock()


def remember(
    *,
    request_id: str,
    at: datetime,
    license_id: UUID | None,
    caller: str,
    code: str,
    looked_at: tuple[str, ...],
) -> None:
    """Put one refusal into the buffer; costs no query."""
    global _dropped
    row = DecisionRecord(
        created_at=at,
        request_id=request_id,
        at=at,
        license_id=license_id,
        caller=caller,
        code=code,
        looked_at=list(looked_at),
    )
    with _lock:
        if len(_buffer) >= CAPACITY:
            _dropped += 1
            return
        _buffer.append(row)
    writing.wake()


def flush() -> int:
    """Write what is buffered; return how many. On a database error the rows stay buffered."""
    global _dropped
    written = 0
    with _writing:
        while True:
            with _lock:
                batch = [_buffer.popleft() for _ in range(min(BATCH, len(_buffer)))]
                dropped, _dropped = _dropped, 0
            if dropped:
                anomalies.flag(
                    rule="decision_records_dropped",
                    severity=Severity.HIGH,
                    object_kind="decisionrecord",
                    object_id="buffer",
                    at=timezone.now(),
                    evidence={"dropped": dropped},
                )
            if not batch:
                return written
            try:
                written += _write(batch)
            except (OperationalError, InterfaceError) as error:  # the database is away: they wait
                with _lock:
                    _buffer.extendleft(reversed(batch))
                log.error("decision_records_not_written", waiting=len(_buffer), error=str(error))
                return written


def waiting() -> int:
    """Return how many refusals are not written yet."""
    return len(_buffer)


def _write(batch: list[DecisionRecord]) -> int:
    """Write the rows at once; if one of them cannot be written, the others one by one. Return how many were."""
    global _dropped
    try:
        with transaction.atomic():
            return len(DecisionRecord.objects.bulk_create(batch))
    except (OperationalError, InterfaceError):
        raise
    except Exception:  # one of them is bad: which, the next lines find out
        log.exception("decision_records_refused", rows=len(batch))
    written = 0
    for row in batch:
        try:
            with transaction.atomic():
                row.save(force_insert=True)
            written += 1
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:  # counted here, flagged as an anomaly by `flush`
            log.error("decision_record_dropped", request_id=row.request_id, code=row.code, error=type(error).__name__)
            with _lock:
                _dropped += 1
    return written


def forget(*, at: datetime, limit: int = 10_000) -> int:
    """Delete records older than 30 days, at most `limit`; return how many."""
    old = DecisionRecord.objects.filter(at__lt=at - KEPT).values_list("id", flat=True)[:limit]
    return DecisionRecord.objects.filter(id__in=list(old)).delete()[0]


writing = Periodic("decision-records", INTERVAL_SECONDS, flush, left=waiting)
