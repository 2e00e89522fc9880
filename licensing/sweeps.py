"""Periodic jobs as reconcilers: each looks at what the database says is due and does it, however late it comes.

The job's row holds its watermark (everything due up to there is done), when it ran and how it went. Its lag is
the age of the oldest work still due. A failing item is counted, kept and tried again; the others go on.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import F, Min, Q
from django.utils import timezone

from licensing import (
    activations,
    alerts,
    allowances,
    anomalies,
    audit,
    chain,
    checkpoints,
    decisions,
    events,
    idempotency,
    keyformat,
    keyring,
    leases,
    lifecycle,
    nonces,
    notices,
    observations,
    outbox,
    reminders,
    switches,
    verifying,
    watching,
    webhooks,
)
from licensing.audit import Actor
from licensing.background import Periodic
from licensing.errors import Missing, Refused
from licensing.ids import uuid7
from licensing.models import (
    DecisionRecord,
    IdempotencyRecord,
    JobState,
    License,
    OutboxMessage,
    RequestNonce,
    WebhookDelivery,
)
from licensing.states import Severity

log = structlog.get_logger(__name__)

BATCH = 500
NIGHTLY = 1_000_000  # audit entries verified each night, the newest: a minute or two


@dataclass(frozen=True, slots=True)
class Job:
    """A periodic job: `work(at)` returns how much it did and how much failed, `lag(at)` how late it is.

    Its runs are for stretches of `every`, counted from midnight UTC and `offset`; each is done once. Of a job `shared`
    by several runs at once each does a part.
    """

    name: str
    every: timedelta
    work: Callable[[datetime], tuple[int, int]]
    lag: Callable[[datetime], timedelta]
    offset: timedelta = timedelta()
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands: `lag` is the age of the oldest due work, `overdue` that it ran too long ago."""

    name: str
    lag: timedelta
    last_finished_at: datetime | None
    watermark_at: datetime | None
    overdue: bool
    failures: int
    last_error: str
    next_at: datetime


class JobFailed(Refused):
    """The job was run and failed."""

    code = "job_failed"


# How long a run may take, and keep others of the same stretch away: Celery ends it before that.
CLAIM = timedelta(minutes=11)
# A job that runs every few seconds is not overdue while a worker has a longer one in hand.
SLACK = timedelta(seconds=45)
LATE_AFTER = timedelta(seconds=60)  # a message that waits longer than this, though nothing failed


def beat(job: Job, *, at: datetime) -> int:
    """Run the job if its present stretch of time is not done and nobody else is at it; return how much was done.

    However many beats there are and however often a task is delivered, a stretch is done once. One that fails, in part
    or as a whole, is tried again by the next beat; the claim of a worker that was killed lapses. After days without a
    beat there is one run, which does what is due. Raises what `run` raises.
    """
    if job.shared:
        return run(job, at=at)
    JobState.objects.get_or_create(name=job.name)
    key, ahead = run_key(job, at), run_key(job, at + 2 * job.every)
    token = uuid7()
    # A key far ahead is from a clock that was wrong: it holds nobody up.
    due = Q(finished_key__lt=key) | Q(finished_key__gt=ahead)
    free = Q(run_key__lt=key) | Q(run_key__gt=ahead) | Q(claimed_until=None) | Q(claimed_until__lte=at)
    free |= Q(claimed_until__gt=at + 2 * CLAIM)
    row = JobState.objects.filter(name=job.name)
    if not row.filter(due, free).update(run_key=key, run_token=token, claimed_until=at + CLAIM):
        return 0
    ours = row.filter(run_token=token)
    try:
        done, failed = _run(job, at)
    except BaseException:
        ours.update(claimed_until=None)
        raise
    ours.update(claimed_until=None, **({} if failed else {"finished_key": key}))
    return done


def run_key(job: Job, at: datetime) -> str:
    """Return the name of the stretch of time a run at this instant is for."""
    return f"{_stretch(job, at):%Y-%m-%dT%H:%M:%SZ}"


def _stretch(job: Job, at: datetime) -> datetime:
    since = at - _EPOCH - job.offset
    return _EPOCH + job.offset + since // job.every * job.every


_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


def run(job: Job, *, at: datetime) -> int:
    """Do what is due for the job up to `at`, whatever was done before; return how much. May run twice and concurrently.

    Raises whatever the work as a whole raises, after keeping it on the job's row.
    """
    return _run(job, at)[0]


def run_by_hand(
    *, job: JobState, by: Actor, at: datetime, reason: str = "", queue: Callable[[str], object] | None = None
) -> int | None:
    """Run a job now because somebody asks for it, and record who and why; return how much was done.

    Where workers are at work it is given to `queue` by its name, and the answer is None.

    Raises:
        Missing: it is no longer run.
        JobFailed: it was run here, and failed.
    """
    asked = named(job.name)
    with transaction.atomic():
        audit.record(action="job.run_by_hand", by=by, on=job, at=at, after={"job": job.name}, reason=reason)
    if queue is not None and at_work(at=at):
        queue(job.name)
        return None
    try:
        return run(asked, at=at)
    except Exception as error:
        raise JobFailed(f"The job failed: {type(error).__name__}. See its last error.") from error


def named(name: str) -> Job:
    """Return the job of this name. Raises `Missing`."""
    for job in every():
        if job.name == name:
            return job
    raise Missing("There is no such job.")


def at_work(*, at: datetime) -> bool:
    """Return whether a worker runs jobs: one was finished within the last minute."""
    return JobState.objects.filter(
        name__in=[job.name for job in every()], last_finished_at__gte=at - timedelta(minutes=1)
    ).exists()


def _run(job: Job, at: datetime) -> tuple[int, int]:
    JobState.objects.get_or_create(name=job.name)
    row = JobState.objects.filter(name=job.name)
    row.update(last_started_at=at)
    try:
        done, failed = job.work(at)
    except Exception as error:
        row.update(failures=F("failures") + 1, last_error=keyformat.redact(f"{type(error).__name__}: {error}")[:2000])
        _flag(job, at, {"error": type(error).__name__})
        raise
    row.update(last_finished_at=at, last_count=done)
    if failed:
        row.update(failures=F("failures") + failed)
        _flag(job, at, {"failed": failed})
    elif job.lag(at) <= timedelta():  # what another run holds right now is not done yet
        row.exclude(watermark_at__gte=at).update(watermark_at=at, last_error="")
    return done, failed


def chain_now(*, at: datetime) -> int:
    """Link the audit entries that wait, and make the checkpoint that is due; return how many were linked.

    What runs each second keeps its row only when there was something to do, and every ten seconds.
    """
    last = JobState.objects.filter(name=CHAIN.name).values_list("last_finished_at", flat=True).first()
    if last and timedelta() <= at - last < CHAIN.every and not chain.lag(at=at) and not checkpoints.due(at=at):
        return 0
    return run(CHAIN, at=at)


def standing(job: Job, *, at: datetime) -> Standing:
    """Return how the job stands."""
    row = JobState.objects.filter(name=job.name).first()
    finished = row.last_finished_at if row else None
    next_at = at
    if row is not None and not job.shared and row.finished_key >= run_key(job, at):
        next_at = _stretch(job, at) + job.every
    elif finished is not None and job.shared:
        next_at = max(finished + job.every, at)
    return Standing(
        name=job.name,
        lag=job.lag(at),
        last_finished_at=finished,
        watermark_at=row.watermark_at if row else None,
        overdue=_overdue(job, finished, _installed_at() if finished is None else None, at),
        failures=row.failures if row else 0,
        last_error=row.last_error if row else "",
        next_at=next_at,
    )


def _overdue(job: Job, finished: datetime | None, installed: datetime | None, at: datetime) -> bool:
    """Return whether two runs were missed. A last run in the future is of a clock that was wrong and counts as none."""
    late = max(2 * job.every, SLACK)
    if finished is not None:
        return abs(at - finished) > late
    return installed is not None and at - installed > late


def watch(*, at: datetime) -> list[str]:
    """Raise an anomaly for each job that is overdue, and for messages that wait; return the overdue jobs' names.

    It asks the database alone: whoever calls it needs no worker, beat or broker.
    """
    finished = dict(JobState.objects.values_list("name", "last_finished_at"))
    if new := [JobState(name=job.name) for job in every() if job.name not in finished]:
        JobState.objects.bulk_create(new, ignore_conflicts=True)  # staff see also what never ran
    installed = _installed_at()
    overdue = [job for job in every() if _overdue(job, finished.get(job.name), installed, at)]
    for job in overdue:
        last = finished.get(job.name)
        evidence = {"every_seconds": job.every.total_seconds(), "last_finished_at": last}
        _flag_once(rule="job_overdue", severity=Severity.CRITICAL, object_id=job.name, at=at, evidence=evidence)
    late = outbox.lag(at=at)
    if late > LATE_AFTER:
        evidence = {"oldest_seconds": int(late.total_seconds())}
        _flag_once(rule="delivery_late", severity=Severity.HIGH, object_id="outbox-relay", at=at, evidence=evidence)
    return [job.name for job in overdue]


_flagged: dict[tuple[str, str], datetime] = {}


def _flag_once(*, rule: str, object_id: str, at: datetime, **more: Any) -> None:
    """Flag it, but not again within five minutes: several processes look every few seconds."""
    last = _flagged.get((rule, object_id))
    if last is not None and timedelta() <= at - last < timedelta(minutes=5):
        return
    _flagged[rule, object_id] = at
    anomalies.flag(rule=rule, object_kind="job", object_id=object_id, at=at, **more)


def _look() -> None:
    watch(at=timezone.now())


# Woken by every web and worker process: one of them is alive to say that the others are not.
looking = Periodic("job-watch", 15.0, _look)


def _installed_at() -> datetime | None:
    """Return since when jobs could have run here: a job that never did is late only after that."""
    applied = MigrationRecorder.Migration.objects.filter(app="licensing").order_by("applied")
    return applied.values_list("applied", flat=True).first()


def _flag(job: Job, at: datetime, evidence: dict[str, object]) -> None:
    anomalies.flag(
        rule="job_failed",
        severity=Severity.CRITICAL,
        object_kind="job",
        object_id=job.name,
        at=at,
        evidence=evidence,
    )


def _expire(at: datetime) -> tuple[int, int]:
    by = lifecycle.EXPIRY
    done, failed = 0, set[UUID]()
    due = License.objects.filter(due_at__lte=at).order_by("due_at", "pk")
    while True:
        batch = list(due.exclude(pk__in=failed).values_list("pk", flat=True)[:BATCH])
        if not batch:
            return done, len(failed)
        before = done, len(failed)
        for license_id in batch:
            try:
                done += lifecycle.pass_time(license_id=license_id, by=by, at=at)
            except Exception as error:  # one broken license must not stop the others
                failed.add(license_id)
                log.exception("expiration_failed", license_id=str(license_id), error=type(error).__name__)
        if (done, len(failed)) == before:
            return done, len(failed)  # another sweep holds these: it does them, or the next beat does


def _expiry_lag(at: datetime) -> timedelta:
    oldest = License.objects.filter(due_at__lte=at).order_by("due_at").values_list("due_at", flat=True).first()
    return at - oldest if oldest else timedelta()


def _reclaim(at: datetime) -> tuple[int, int]:
    done, failed = 0, set[UUID]()
    while licenses := leases.due(at=at, leaving_out=failed, limit=BATCH):
        before = done, len(failed)
        for license_id in licenses:
            try:
                done += leases.reclaim(license_id=license_id, at=at)
            except Exception as error:  # one broken license must not keep the units of the others
                failed.add(license_id)
                log.exception("reclaim_failed", license_id=str(license_id), error=type(error).__name__)
        if (done, len(failed)) == before:
            break  # another sweep did these
    return done, len(failed)


def _switch(at: datetime) -> tuple[int, int]:
    done, failed = 0, set[UUID]()
    while changes := switches.due(at=at, leaving_out=failed, limit=BATCH):
        before = done, len(failed)
        for change_id in changes:
            try:
                done += switches.carry_out(change_id=change_id, at=at)
            except Exception as error:  # one broken license must not keep the others under their former terms
                failed.add(change_id)
                log.exception("change_failed", change_id=str(change_id), error=type(error).__name__)
        if (done, len(failed)) == before:
            break  # another sweep did these
    return done, len(failed)


OUR_HANDLERS = {
    notices.KIND: notices.send,
    notices.TO_CUSTOMER: notices.send_to_customer,
    events.KIND: webhooks.send,
    alerts.KIND: alerts.send,
}


def _relay(at: datetime) -> tuple[int, int]:
    delivered, given_up = outbox.relay(handlers={**outbox.handlers(), **OUR_HANDLERS}, at=at)
    for message in given_up:
        anomalies.flag(
            rule="delivery_given_up",
            severity=Severity.CRITICAL,
            object_kind="outboxmessage",
            object_id=str(message.pk),
            license_id=message.license_id,
            at=at,
            evidence={"kind": message.kind, "attempts": message.attempts},
        )
    return delivered, 0


def _lapse(at: datetime) -> tuple[int, int]:
    done = 0
    while lapsed := allowances.lapse(at=at):
        done += lapsed
    return done, 0


def _forget(at: datetime) -> tuple[int, int]:
    done = 0
    for forget in (decisions.forget, idempotency.forget, outbox.forget, webhooks.forget, observations.forget):
        while gone := forget(at=at):  # in batches, so that no lock is held for long
            done += gone
    return done, 0


def _forget_nonces(at: datetime) -> tuple[int, int]:
    done = 0
    while gone := nonces.forget(at=at):
        done += gone
    return done, 0


def _watch(at: datetime) -> tuple[int, int]:
    return watching.run(at=at)


def _verify(at: datetime) -> tuple[int, int]:
    file = Path(settings.AUDIT_CHECKPOINT_FILE) if settings.AUDIT_CHECKPOINT_FILE else None
    report = verifying.verify(at=at, files=[file] if file and file.exists() else [], newest=NIGHTLY)
    if report.first:
        anomalies.flag(
            rule="audit_altered",
            severity=Severity.CRITICAL,
            object_kind="auditlink",
            object_id=str(report.first.number or report.first.entry or "checkpoint"),
            at=at,
            evidence={"found": [problem.text for problem in report.problems[:5]], "of": len(report.problems)},
        )
    return report.size - report.since + 1, 0


def _retention_lag(at: datetime) -> timedelta:
    """Return how long the oldest row has been kept beyond its time."""
    kept: list[tuple[Any, str, timedelta]] = [
        (DecisionRecord.objects, "at", decisions.KEPT),
        (IdempotencyRecord.objects, "expires_at", timedelta()),
        (OutboxMessage.objects, "delivered_at", outbox.KEPT_FOR),
        (WebhookDelivery.objects, "at", webhooks.KEPT_FOR),
    ]
    beyond = [timedelta()]
    for rows, instant, span in kept:
        oldest = rows.filter(**{f"{instant}__isnull": False}).aggregate(oldest=Min(instant))["oldest"]
        if oldest is not None:
            beyond.append(at - span - oldest)
    return max(beyond)


def _nonces_lag(at: datetime) -> timedelta:
    oldest = RequestNonce.objects.aggregate(oldest=Min("seen_at"))["oldest"]
    return max(at - timedelta(seconds=nonces.REMEMBERED_SECONDS) - oldest, timedelta()) if oldest else timedelta()


def since_due(name: str, every: timedelta) -> Callable[[datetime], timedelta]:
    """Return the lag of a job that looks at everything anew each time: how long it has been due again."""

    def lag(at: datetime) -> timedelta:
        row = JobState.objects.filter(name=name).first()
        since = (row.last_finished_at if row else None) or _installed_at()
        return max(at - since - every, timedelta()) if since else timedelta()

    return lag


def _remind(at: datetime) -> tuple[int, int]:
    done, failed = 0, set[UUID]()
    while licenses := reminders.due(at=at, leaving_out=failed, limit=BATCH):
        before = done, len(failed)
        for license_id in licenses:
            try:
                done += reminders.remind(license_id=license_id, at=at)
            except Exception as error:  # one broken license must not keep the others from being told
                failed.add(license_id)
                log.exception("reminder_failed", license_id=str(license_id), error=type(error).__name__)
        if (done, len(failed)) == before:
            break  # another run reminded these
    return done, len(failed)


def _let_dead_go(at: datetime) -> tuple[int, int]:
    done, failed = 0, set[UUID]()
    while machines := activations.dead(at=at, leaving_out=failed, limit=BATCH):
        before = done, len(failed)
        for activation_id in machines:
            try:
                done += activations.let_dead_go(activation_id=activation_id, at=at)
            except Exception as error:  # one broken license must not keep the places of the others
                failed.add(activation_id)
                log.exception("dead_machine_failed", activation_id=str(activation_id), error=type(error).__name__)
        if (done, len(failed)) == before:
            break  # another run let these go
    return done, len(failed)


def _check_ring(at: datetime) -> tuple[int, int]:
    problems = keyring.examine()
    made = JobState.objects.filter(name=keyring.BACKUP).values_list("last_finished_at", flat=True).first()
    since = made or _installed_at()
    if since is not None and at - since > keyring.BACKUP_AGE:
        problems.append(f"The key ring was last backed up: {made:%Y-%m-%d}." if made else "The key ring has no backup.")
    for problem in problems:
        anomalies.flag(
            rule="key_ring",
            severity=Severity.CRITICAL,
            object_kind="key_ring",
            object_id=hashlib.sha256(problem.encode()).hexdigest()[:16],
            at=at,
            evidence={"problem": problem},
        )
    return len(problems), 0


SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
EXPIRATION = Job("expiration-sweep", 30 * SECOND, _expire, _expiry_lag)
LEASES = Job("lease-reclaim", 30 * SECOND, _reclaim, lambda at: leases.lag(at=at))
RESERVATIONS = Job("reservations", 30 * SECOND, _lapse, allowances.lapse_lag)
CHANGES = Job("scheduled-changes", 10 * SECOND, _switch, lambda at: switches.lag(at=at))
OUTBOX = Job("outbox-relay", 10 * SECOND, _relay, lambda at: outbox.lag(at=at), shared=True)
REMINDERS = Job("expiry-reminders", HOUR, _remind, lambda at: reminders.lag(at=at))
DEAD = Job("dead-installations", HOUR, _let_dead_go, since_due("dead-installations", HOUR))
RETENTION = Job("retention", DAY, _forget, _retention_lag, offset=timedelta(hours=3, minutes=17))
NONCES = Job("nonces", MINUTE, _forget_nonces, _nonces_lag)
KEY_RING = Job("key-ring-check", DAY, _check_ring, since_due("key-ring-check", DAY), offset=timedelta(hours=4))
CHAIN = Job("audit-chain", 10 * SECOND, lambda at: (chain.turn(at=at), 0), lambda at: chain.lag(at=at))
VERIFY = Job("audit-verify", DAY, _verify, since_due("audit-verify", DAY), offset=timedelta(hours=4, minutes=7))
RULES = Job("anomaly-rules", 20 * SECOND, _watch, since_due("anomaly-rules", 20 * SECOND))
JOBS = (
    EXPIRATION,
    LEASES,
    RESERVATIONS,
    CHANGES,
    OUTBOX,
    REMINDERS,
    DEAD,
    RETENTION,
    NONCES,
    KEY_RING,
    CHAIN,
    VERIFY,
    RULES,
)
_others: dict[str, Job] = {}


def include(jobs: Iterable[Job]) -> None:
    """Have another app's jobs looked at wherever ours are: by health, doctor, the staff site and `manage.py sweep`."""
    _others.update({job.name: job for job in jobs})


def every() -> tuple[Job, ...]:
    """Return every periodic job of this installation."""
    return (*JOBS, *_others.values())
