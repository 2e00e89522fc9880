"""The jobs of licensing: each translates a beat into one call and keeps the job's row.

A message lost costs one beat; a job run twice or at the same time does nothing twice.
"""

from celery import shared_task
from django.utils import timezone

from licensing import sweeps


@shared_task(name="licensing.sweep")
def sweep() -> int:
    """Record what time has made of licenses."""
    return sweeps.run(sweeps.EXPIRATION, at=timezone.now())


@shared_task(name="licensing.reclaim_leases")
def reclaim_leases() -> int:
    """Take back the units of leases that lapsed."""
    return sweeps.run(sweeps.LEASES, at=timezone.now())


@shared_task(name="licensing.relay_outbox")
def relay_outbox() -> int:
    """Send what waits in the outbox."""
    return sweeps.run(sweeps.OUTBOX, at=timezone.now())


@shared_task(name="licensing.forget_nonces")
def forget_nonces() -> int:
    """Delete the nonces that no acceptance can reach back to."""
    return sweeps.run(sweeps.NONCES, at=timezone.now())


@shared_task(name="licensing.apply_retention")
def apply_retention() -> int:
    """Delete what is kept for a time only."""
    return sweeps.run(sweeps.RETENTION, at=timezone.now())
