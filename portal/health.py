"""Liveness, readiness and metrics.

Live: this process answers. Ready: it can do its work; what is degraded is named. Metrics: Prometheus, refused to
whoever came through the public proxy.
"""

from datetime import datetime
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from django_prometheus.exports import ExportToDjangoView
from prometheus_client import Gauge

from licensing import chain, checkpoints, crypto, guards, sweeps, watching
from licensing.errors import LicensingError
from portal import clock

JOB_LAG = Gauge("licentia_job_lag_seconds", "Age of the oldest work that is due", ["job"])
JOB_OVERDUE = Gauge("licentia_job_overdue", "1 when the job ran too long ago", ["job"])
CHAIN_LAG = Gauge("licentia_audit_chain_lag_seconds", "Age of the oldest audit entry without a number in the chain")
CHAIN_SIZE = Gauge("licentia_audit_chain_entries", "Audit entries in the chain")
CHECKPOINT_AGE = Gauge("licentia_audit_checkpoint_age_seconds", "Since the last checkpoint of the audit chain")
UNCOVERED = Gauge("licentia_audit_uncovered_seconds", "Age of the oldest entry of the chain without a checkpoint")
SINK_BEHIND = Gauge("licentia_audit_sink_behind_seconds", "How long a place lacks a checkpoint", ["sink"])
SINK_FAILING = Gauge("licentia_audit_sink_failing", "1 when a place did not take a checkpoint", ["sink"])


@never_cache
@require_safe
def live(request: HttpRequest) -> HttpResponse:
    """Say that the process answers."""
    return JsonResponse({"status": "live"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> HttpResponse:
    """Say what works: 503 when no validation can be answered, else 200 with what is degraded."""
    broken, degraded = _database(), []
    try:
        crypto.ring()
    except (LicensingError, OSError):
        broken.append("key_ring")
    if crypto.incomplete():
        degraded.append("key_ring")
    if settings.REDIS_URL and not _redis_answers():
        degraded.append("redis")
    if clock.ahead_seconds():
        degraded.append("clock")
    if "database" not in broken:
        degraded += [f"job:{name}" for name in sweeps.watch(at=timezone.now())]
        degraded += checkpoints.problems(at=timezone.now())
        degraded += [f"rule:{one.rule.id}" for one in watching.standings(at=timezone.now()) if one.silent]
    status = "broken" if broken else "degraded" if degraded else "ready"
    return JsonResponse({"status": status, "broken": broken, "degraded": degraded}, status=503 if broken else 200)


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer Prometheus, from inside only: a request that a proxy forwarded is told there is nothing here."""
    if request.headers.get("X-Forwarded-For") or request.headers.get("Forwarded"):
        raise Http404
    for job in sweeps.every():
        standing = sweeps.standing(job, at=timezone.now())
        JOB_LAG.labels(job.name).set(standing.lag.total_seconds())
        JOB_OVERDUE.labels(job.name).set(standing.overdue)
    _chain_metrics(timezone.now())
    answer: Any = ExportToDjangoView(request)
    return answer


def _chain_metrics(at: datetime) -> None:
    stands, last = chain.standing(at=at), checkpoints.latest()
    CHAIN_LAG.set(stands.lag.total_seconds())
    CHAIN_SIZE.set(stands.size)
    CHECKPOINT_AGE.set((at - last.at).total_seconds() if last else 0)
    UNCOVERED.set(checkpoints.uncovered(at=at).total_seconds())
    for sink in checkpoints.sinks(at=at):
        SINK_BEHIND.labels(sink.name).set(sink.behind.total_seconds())
        SINK_FAILING.labels(sink.name).set(bool(sink.error))


def _database() -> list[str]:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return ["guards"] if guards.missing() else []
    except DatabaseError:
        return ["database"]


def _redis_answers() -> bool:
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=0.5, socket_connect_timeout=0.5) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
