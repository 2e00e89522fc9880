"""Periodic jobs as reconcilers: each looks at what the database says is due and does it, however late it comes.

The job's row holds its watermark (everything due up to there is done), when it ran and how it went. Its lag is
the age of the oldest work still due. A failing item is counted, kept and tried again; the others go on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import F

from licensing import anomalies, audit, decisions, idempotency, keyformat, leases, lifecycle, nonces, notices, outbox
from licensing.models import JobState, License
from licensing.states import Severity

log = structlog.get_logger(__name__)

BATCH = 500


@dataclass(frozen=True, slots=True)
class Job:
    """A periodic job: `work(at)` returns how much it did and how much failed, `lag(at)` how late it is."""

    name: str
    every: timedelta
    work: Callable[[datetime], tuple[int, int]]
    lag: Callable[[datetime], timedelta]


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


def run(job: Job, *, at: datetime) -> int:
    """Do what is due for the job up to `at`; return how much. May run twice and concurrently.

    Raises whatever the work as a whole raises, after keeping it on the job's row.
    """
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
    return done


def standing(job: Job, *, at: datetime) -> Standing:
    """Return how the job stands."""
    row = JobState.objects.filter(name=job.name).first()
    finished = row.last_finished_at if row else None
    since = finished or _installed_at()
    return Standing(
        name=job.name,
        lag=job.lag(at),
        last_finished_at=finished,
        watermark_at=row.watermark_at if row else None,
        overdue=since is not None and at - since > 3 * job.every,
        failures=row.failures if row else 0,
        last_error=row.last_error if row else "",
    )


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
    by = audit.system("expiration-sweep")
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


def _relay(at: datetime) -> tuple[int, int]:
    delivered, given_up = outbox.relay(handlers={notices.KIND: notices.send}, at=at)
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


def _forget(at: datetime) -> tuple[int, int]:
    done = 0
    for forget in (decisions.forget, idempotency.forget):
        while gone := forget(at=at):  # in batches, so that no lock is held for long
            done += gone
    return done, 0


def _forget_nonces(at: datetime) -> tuple[int, int]:
    done = 0
    while gone := nonces.forget(at=at):
        done += gone
    return done, 0


EXPIRATION = Job("expiration-sweep", timedelta(seconds=30), _expire, _expiry_lag)
LEASES = Job("lease-reclaim", timedelta(seconds=30), _reclaim, lambda at: leases.lag(at=at))
OUTBOX = Job("outbox-relay", timedelta(seconds=10), _relay, lambda at: outbox.lag(at=at))
RETENTION = Job("retention", timedelta(days=1), _forget, lambda at: timedelta())
NONCES = Job("nonces", timedelta(minutes=1), _forget_nonces, lambda at: timedelta())
JOBS = (EXPIRATION, LEASES, OUTBOX, RETENTION, NONCES)
