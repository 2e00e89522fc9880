"""Anomalies: suspicions recorded at once, resolved by a person.

`flag` may be called from anywhere, also where there is no transaction or the one there is fails: it never
raises into the request it observes, and says loudly in the log when it cannot write. People are told of what it wrote
by `watching`, within seconds.
"""

import os
import threading
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import F
from django.utils import timezone

from licensing import audit, events, rules
from licensing.audit import Actor
from licensing.background import Periodic
from licensing.errors import Invalid, Refused
from licensing.models import Anomaly
from licensing.states import AnomalyState, Severity

log = structlog.get_logger(__name__)


LONGEST_SNOOZE = timedelta(days=90)


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
    """Record a suspicion: one row per rule, object and hour, with a count. `evidence` holds no secrets.

    The row says by which version of the rule, and by which thresholds, it was judged first.
    """
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
                    made = Anomaly.objects.create(
                        **same,
                        **_judged_by(rule),
                        created_at=at,
                        severity=severity,
                        license_id=license_id,
                        first_at=at,
                        last_at=at,
                        evidence=kept,
                    )
                    events.emit(
                        event_type=events.ANOMALY,
                        at=at,
                        data={"anomaly": str(made.pk), "rule": rule, "severity": str(severity), "object": object_kind},
                        license_id=license_id,
                    )
                return
            except IntegrityError as error:
                why = error  # somebody else was first: count up instead
    except DatabaseError as error:
        why = error
    log.error("anomaly_not_recorded", rule=rule, object_id=object_id, error=str(why))


def _judged_by(rule_id: str) -> dict[str, Any]:
    rule = rules.get(rule_id)
    if rule is None:  # a test of the tree keeps it from happening; better a row than an error
        log.error("rule_not_registered", rule=rule_id)
        return {}
    now = rules.current(rule_id)
    return {"rule_version": rule.version, "revision": now.number, "thresholds": now.thresholds}


_later: deque[dict[str, Any]] = deque(maxlen=10_000)
_recording = threading.Lock()
os.register_at_fork(after_in_child=_later.clear)  # what waits is the parent's to record


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


def service_away(*, name: str, error: BaseException) -> None:
    """Say that a service we need cannot be used right now, off the request: for whoever just found out."""
    log.error(f"{name}_away", error=type(error).__name__)
    flag_later(
        rule=f"{name}_away",
        severity=Severity.CRITICAL if name == "database" else Severity.HIGH,
        object_kind="service",
        object_id=name,
        at=timezone.now(),
        evidence={"error": type(error).__name__},
    )


def record_waiting() -> int:
    """Record the suspicions that wait; return how many. What the database does not take now waits on."""
    with _recording:
        return _record_waiting()


def _record_waiting() -> int:
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


recording = Periodic("anomalies", 1.0, record_waiting, left=lambda: len(_later))


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
        row.state, row.snoozed_until = AnomalyState.ACKNOWLEDGED, None
        row.save()
    return row


def snooze(*, anomaly: Anomaly, until: datetime, by: Actor, at: datetime, reason: str = "") -> Anomaly:
    """Let it rest until an instant within the next 90 days; until then what its rule says of the same object is
    recorded and alerts nobody. Raises `AlreadyResolved`; `Invalid` for another instant."""
    if not at < until <= at + LONGEST_SNOOZE:
        raise Invalid("Snooze it for at most 90 days, to an instant yet to come.", pointer="/until")
    with transaction.atomic():
        row = _open(anomaly)
        audit.record(
            action="anomaly.snoozed",
            by=by,
            on=row,
            at=at,
            before={"state": row.state, "snoozed_until": row.snoozed_until},
            after={"state": AnomalyState.SNOOZED, "snoozed_until": until},
            reason=reason,
        )
        row.state, row.snoozed_until = AnomalyState.SNOOZED, until
        row.save()
    return row


def wake(*, at: datetime) -> int:
    """Open what was snoozed until now; return how many."""
    done = 0
    for pk in list(
        Anomaly.objects.filter(state=AnomalyState.SNOOZED, snoozed_until__lte=at).values_list("pk", flat=True)
    ):
        with transaction.atomic():
            row = Anomaly.objects.select_for_update(no_key=True).get(pk=pk)
            if row.state != AnomalyState.SNOOZED or row.snoozed_until is None or row.snoozed_until > at:
                continue
            audit.record(
                action="anomaly.woken",
                by=audit.system("anomaly-rules"),
                on=row,
                at=at,
                before={"state": row.state},
                after={"state": AnomalyState.OPEN},
            )
            row.state, row.snoozed_until = AnomalyState.OPEN, None
            row.save()
            done += 1
    return done


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
        row.snoozed_until = None
        row.save()
    return row


def _open(anomaly: Anomaly) -> Anomaly:
    row = Anomaly.objects.select_for_update(no_key=True).get(pk=anomaly.pk)
    if row.state == AnomalyState.RESOLVED:
        raise AlreadyResolved()
    return row
