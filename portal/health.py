"""Liveness, readiness and metrics.

Live: this process answers. Ready: it can do its work; what is degraded is named. Metrics: Prometheus, refused to
whoever came through the public proxy.
"""

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

from licensing import crypto, guards, sweeps
from licensing.errors import LicensingError

JOB_LAG = Gauge("licentia_job_lag_seconds", "Age of the oldest work that is due", ["job"])
JOB_OVERDUE = Gauge("licentia_job_overdue", "1 when the job ran too long ago", ["job"])


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
    if "database" not in broken:
        for job in sweeps.JOBS:
            standing = sweeps.standing(job, at=timezone.now())
            if standing.overdue:
                degraded.append(f"job:{job.name}")
    status = "broken" if broken else "degraded" if degraded else "ready"
    return JsonResponse({"status": status, "broken": broken, "degraded": degraded}, status=503 if broken else 200)


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer Prometheus, from inside only: a request that a proxy forwarded is told there is nothing here."""
    if request.headers.get("X-Forwarded-For") or request.headers.get("Forwarded"):
        raise Http404
    for job in sweeps.JOBS:
        standing = sweeps.standing(job, at=timezone.now())
        JOB_LAG.labels(job.name).set(standing.lag.total_seconds())
        JOB_OVERDUE.labels(job.name).set(standing.overdue)
    answer: Any = ExportToDjangoView(request)
    return answer


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
