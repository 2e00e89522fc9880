"""The jobs of billing: each translates a beat into one call and keeps the job's row.

A message lost costs one beat; a job run twice or at the same time does nothing twice.
"""

from celery import shared_task
from django.utils import timezone

from billing import jobs
from licensing import sweeps


@shared_task(name="billing.refresh_statements")
def refresh_statements() -> int:
    """Compute every open statement anew."""
    return sweeps.beat(jobs.STATEMENT_REFRESH, at=timezone.now())


@shared_task(name="billing.close_statements")
def close_statements() -> int:
    """Make final what is over."""
    return sweeps.beat(jobs.STATEMENT_CLOSE, at=timezone.now())


@shared_task(name="billing.roll_up")
def roll_up() -> int:
    """Total the hours that usage came in for."""
    return sweeps.beat(jobs.ROLL_UP, at=timezone.now())


@shared_task(name="billing.reconcile")
def reconcile() -> int:
    """Compare counters, events and roll-ups."""
    return sweeps.beat(jobs.RECONCILE, at=timezone.now())


@shared_task(name="billing.make_partitions")
def make_partitions() -> int:
    """Make the partitions of the months to come."""
    return sweeps.beat(jobs.PARTITIONS, at=timezone.now())


@shared_task(name="billing.forget_usage_ids")
def forget_usage_ids() -> int:
    """Delete the ids whose events could not be sent again any more."""
    return sweeps.beat(jobs.USAGE_IDS, at=timezone.now())


@shared_task(name="billing.follow_up_usage")
def follow_up_usage() -> int:
    """Tell of thresholds and draw credit where whoever counted did not come to it."""
    return sweeps.beat(jobs.FOLLOW_UP, at=timezone.now())


@shared_task(name="billing.send_invoices")
def send_invoices() -> int:
    """Bring to the payment gateway what it does not know."""
    return sweeps.beat(jobs.GATEWAY_INVOICES, at=timezone.now())


@shared_task(name="billing.reconcile_payments")
def reconcile_payments() -> int:
    """Compare statements with the invoices of the payment gateway."""
    return sweeps.beat(jobs.GATEWAY_RECONCILIATION, at=timezone.now())


@shared_task(name="billing.dun")
def dun() -> int:
    """Take the dunning steps that are due."""
    return sweeps.beat(jobs.DUNNING, at=timezone.now())
