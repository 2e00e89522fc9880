"""What is wrong with this installation, and how to mend it. It changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import redis
from django.conf import settings
from django.core.checks import run_checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Model
from django.utils import timezone

from licensing import sweeps
from licensing.models import Activation, Lease, License, Seat
from portal import checks


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: fine when `wrong` is empty, else with the mend."""

    subject: str
    wrong: str = ""
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything; return a finding for each thing, in the order a person would mend them."""
    findings = [_configuration(), _key_ring(), _database()]
    if findings[-1].wrong:
        return findings
    findings.append(_migrations())
    if findings[-1].wrong:
        return findings
    return [*findings, _guards(), _redis(), *_jobs(), *_seat_counters()]


def _configuration() -> Finding:
    problems = run_checks(include_deployment_checks=settings.PRODUCTION)
    if not problems:
        return Finding("configuration")
    first = problems[0]
    more = f" (and {len(problems) - 1} more: manage.py check)" if len(problems) > 1 else ""
    return Finding("configuration", f"{first.msg}{more}", str(first.hint or "See manage.py check."))


def _key_ring() -> Finding:
    problems = checks.key_ring_is_readable()
    return Finding("key ring", problems[0].msg, str(problems[0].hint)) if problems else Finding("key ring")


def _database() -> Finding:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return Finding("database", f"It does not answer: {str(error).splitlines()[0]}", "Start it; see DATABASE_URL.")
    return Finding(f"database ({connection.vendor})")


def _migrations() -> Finding:
    executor = MigrationExecutor(connection)
    waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if waiting:
        return Finding("migrations", f"{len(waiting)} are not applied.", "manage.py migrate")
    return Finding("migrations")


def _guards() -> Finding:
    problems = checks.guards_stand()
    return Finding("guards", problems[0].msg, str(problems[0].hint)) if problems else Finding("guards")


def _redis() -> Finding:
    if not settings.REDIS_URL:
        return Finding("redis (not configured: throttles count per process)")
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1) as client:
            client.ping()
    except redis.RedisError as error:
        return Finding("redis", f"It does not answer: {type(error).__name__}", "Start it; see REDIS_URL.")
    return Finding("redis")


def _jobs() -> list[Finding]:
    at = timezone.now()
    findings = []
    for job in sweeps.JOBS:
        standing = sweeps.standing(job, at=at)
        if standing.overdue:
            last = f"{standing.last_finished_at:%Y-%m-%d %H:%M} UTC" if standing.last_finished_at else "never"
            mend = "Start a worker and the beat: celery -A portal worker, celery -A portal beat"
            findings.append(Finding(f"job {job.name}", f"It last finished: {last}.", mend))
        else:
            findings.append(Finding(f"job {job.name} (lag {standing.lag.total_seconds():.0f} s)"))
    return findings


def _seat_counters() -> list[Finding]:
    counters: list[tuple[str, Callable[[], int]]] = [
        ("seat counters", lambda: _differing("seats_used", (Seat, "released_at"), (Lease, "ended_at"))),
        ("machine counters", lambda: _differing("activations_used", (Activation, "deactivated_at"))),
    ]
    findings = []
    for subject, count in counters:
        wrong = count()
        text = f"{wrong} licenses count other than they hold." if wrong else ""
        findings.append(Finding(subject, text, "Report it: nothing of ours lets these differ." if wrong else ""))
    return findings


def _differing(counter: str, *held: tuple[type[Model], str]) -> int:
    """Return how many licenses count other than the live rows of these tables: seats and leases share a counter."""
    live = " UNION ALL ".join(
        f"SELECT license_id FROM {model._meta.db_table} WHERE {ended} IS NULL"  # noqa: S608  names of ours only
        for model, ended in held
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM {License._meta.db_table} l LEFT JOIN "  # noqa: S608  names of ours only
            f"(SELECT license_id, count(*) n FROM ({live}) live GROUP BY license_id) held "
            f"ON held.license_id = l.id WHERE l.{counter} <> COALESCE(held.n, 0)"
        )
        return int(cursor.fetchone()[0])
