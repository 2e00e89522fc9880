"""What is wrong with this installation, and how to mend it. It changes nothing."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import redis
from django.conf import settings
from django.core.checks import run_checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Model
from django.utils import timezone

from billing import meters
from licensing import chain, checkpoints, keyring, pictures, proofs, sweeps, watching
from licensing.crypto import KeyRingError
from licensing.decision import Scope
from licensing.models import Activation, Lease, License, Seat
from licensing.pictures import Question
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
    return [*findings, _guards(), _redis(), *_jobs(), *_audit(), _rules(), *_seat_counters(), _terms(), _meters()]


def _configuration() -> Finding:
    problems = run_checks(include_deployment_checks=settings.PRODUCTION)
    if not problems:
        return Finding("configuration")
    first = problems[0]
    more = f" (and {len(problems) - 1} more: manage.py check)" if len(problems) > 1 else ""
    return Finding("configuration", f"{first.msg}{more}", str(first.hint or "See manage.py check."))


def _key_ring() -> Finding:
    with contextlib.suppress(DatabaseError, KeyRingError):  # said by the next lines, or by the next finding
        if lacking := keyring.examine():
            return Finding("key ring", " ".join(lacking), "manage.py keyring status")
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
    for job in sweeps.every():
        standing = sweeps.standing(job, at=at)
        if standing.overdue:
            last = f"{standing.last_finished_at:%Y-%m-%d %H:%M} UTC" if standing.last_finished_at else "never"
            mend = "Start a worker and the beat: celery -A portal worker, celery -A portal beat"
            findings.append(Finding(f"job {job.name}", f"It last finished: {last}.", mend))
        else:
            findings.append(Finding(f"job {job.name} (lag {standing.lag.total_seconds():.0f} s)"))
    return findings


def _audit() -> list[Finding]:
    at = timezone.now()
    problems, sinks = checkpoints.problems(at=at), checkpoints.sinks(at=at)
    mends = {
        "audit_chain": "Start a worker and the beat; then: manage.py audit checkpoint",
        "audit_checkpoint": "manage.py audit checkpoint",
    }
    findings = [
        Finding(
            name.replace("_", " "),
            text,
            mends.get(name, "Mend the place; see docs/audit.md. What it lacks is sent again."),
        )
        for name, text in problems.items()
    ]
    if settings.PRODUCTION and len(sinks) < 2:
        findings.append(
            Finding(
                "audit checkpoints",
                f"They go to {len(sinks)} place besides the database: whoever owns that one too can forge the record.",
                "Set AUDIT_CHECKPOINT_FILE to a file on another machine's disk, and AUDIT_CHECKPOINT_MAIL or "
                "AUDIT_CHECKPOINT_WEBHOOK.",
            )
        )
    stands = chain.standing(at=at)
    said = (
        f"audit chain ({stands.size} entries, lag {stands.lag.total_seconds():.0f} s; verify: manage.py audit verify)"
    )
    return findings or [Finding(said)]


def _rules() -> Finding:
    silent = [one.rule.id for one in watching.standings(at=timezone.now()) if one.silent]
    if not silent:
        return Finding("anomaly rules")
    return Finding(
        "anomaly rules",
        f"{len(silent)} have not looked for more than an hour: {', '.join(silent)}",
        "Start a worker and the beat, or see why they fail: the staff site, 'Rules'.",
    )


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


def _terms() -> Finding:
    altered = [str(license_id) for license_id in proofs.doubtful() if _altered(license_id)]
    if not altered:
        return Finding("license terms")
    return Finding(
        "license terms",
        f"{len(altered)} licenses have terms no rule wrote, and are refused: {', '.join(altered[:5])}",
        "Find out who did it. Then put the values right, or take them: the license's staff page, 'Accept terms'.",
    )


def _meters() -> Finding:
    doubts = meters.doubts()
    if not doubts:
        return Finding("meters of plans on sale")
    more = f" (and {len(doubts) - 1} more)" if len(doubts) > 1 else ""
    return Finding(
        "meters of plans on sale", f"{doubts[0]}{more}", "Publish the meter, or a plan revision without the allowance."
    )


def _altered(license_id: UUID) -> bool:
    try:
        pictures.read(Question.of("id", str(license_id), Scope()))
    except proofs.TermsAltered:
        return True
    return False
