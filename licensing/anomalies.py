"""Anomalies: suspicions recorded at once, resolved by a person.

`flag` may be called from anywhere, also where there is no transaction or the one there is fails: it never
raises into the request it observes, and says loudly in the log when it cannot write.
"""

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import F

from licensing import audit
from licensing.audit import Actor
from licensing.background import Periodic
from licensing.errors import Invalid, Refused
from licensing.models import Anomaly
from licensing.states import AnomalyState, Severity

log = structlog.get_logger(__name__)


class AlreadyResolved(Refused):
    """This anomaly was resolved before."""

    code = "anomaly_already_resolved"


def flag(
    *,
    rule: str,
    severity: Severity,
    object_kind: str,
    object_id: str,
    at: datetime,
    evidence: dict[str, Any],
    license_id: UUID | None = None,
) -> None:
    """Record a suspicion: one row per rule, object and hour, with a count. `evidence` holds no secrets."""
    log.warning("anomaly", rule=rule, severity=str(severity), object_kind=object_kind, object_id=object_id)
    hour_at = at.replace(minute=0, second=0, microsecond=0)
    same = {"rule": rule, "object_kind": object_kind, "object_id": object_id, "hour_at": hour_at}
    kept = _kept(evidence)
    why: DatabaseError | None = None
    try:
        for _ in range(2):
            with transaction.atomic():  # a failure must leave the caller's transaction usable
                if Anomaly.objects.filter(**same).update(count=F("count") + 1, last_at=at, evidence=kept):
                    return
            try:
                with transaction.atomic():
                    Anomaly.objects.create(
                        **same,
                        created_at=at,
                        severity=severity,
                        license_id=license_id,
                        first_at=at,
                        last_at=at,
                        evidence=kept,
                    )
                return
            except IntegrityError as error:
                why = error  # somebody else was first: count up instead
    except DatabaseError as error:
        why = error
    log.error("anomaly_not_recorded", rule=rule, object_id=object_id, error=str(why))


_later: deque[dict[str, Any]] = deque(maxlen=10_000)


def flag_later(**suspicion: Any) -> None:
    """Record a suspicion off the request, as soon as the database takes it; takes what `flag` takes.

    The same suspicion of the same hour waits only once.
    """
    hour = suspicion["at"].replace(minute=0, second=0, microsecond=0)
    same = (suspicion["rule"], suspicion["object_id"], hour)
    if any((other["rule"], other["object_id"], other["hour"]) == same for other in list(_later)):
        return
    log.warning("anomaly_waits", rule=suspicion["rule"], object_id=suspicion["object_id"])
    _later.append({**suspicion, "hour": hour})
    recording.wake()


def record_waiting() -> int:
    """Record the suspicions that wait; return how many. What the database does not take now waits on."""
    done = 0
    while _later:
        suspicion = {name: value for name, value in _later[0].items() if name != "hour"}
        try:
            connection.ensure_connection()
        except DatabaseError:
            return done
        if not connection.is_usable():
            connection.close()
            return done
        flag(**suspicion)
        _later.popleft()
        done += 1
    return done


recording = Periodic("anomalies", 1.0, record_waiting, at_stop=True)


def _kept(value: Any) -> Any:
    """Return evidence as a JSON column holds it: what is foreign to it is kept in words, not refused."""
    match value:
        case Mapping():
            return {str(name): _kept(item) for name, item in value.items()}
        case list() | tuple():
            return [_kept(item) for item in value]
        case str():
            return value.replace("\x00", "\ufffd")
    try:
        return audit.plain({"": value})[""]
    except TypeError:
        return repr(value)


def acknowledge(*, anomaly: Anomaly, by: Actor, at: datetime) -> Anomaly:
    """Say that a person looks at it. Raises `AlreadyResolved`."""
    with transaction.atomic():
        row = _open(anomaly)
        audit.record(
            action="anomaly.acknowledged",
            by=by,
            on=row,
            at=at,
            before={"state": row.state},
            after={"state": AnomalyState.ACKNOWLEDGED},
        )
        row.state = AnomalyState.ACKNOWLEDGED
        row.save()
    return row


def resolve(*, anomaly: Anomaly, resolution: str, by: Actor, at: datetime) -> Anomaly:
    """Close it with a person's words. Raises `AlreadyResolved`; `Invalid` without words."""
    if not resolution.strip():
        raise Invalid("Say what was found.", pointer="/resolution")
    with transaction.atomic():
        row = _open(anomaly)
        audit.record(
            action="anomaly.resolved",
            by=by,
            on=row,
            at=at,
            before={"state": row.state},
            after={"state": AnomalyState.RESOLVED},
            reason=resolution,
        )
        row.state, row.resolution, row.resolved_at = AnomalyState.RESOLVED, resolution, at
        row.save()
    return row


def _open(anomaly: Anomaly) -> Anomaly:
    row = Anomaly.objects.select_for_update().get(pk=anomaly.pk)
    if row.state == AnomalyState.RESOLVED:
        raise AlreadyResolved()
    return row
