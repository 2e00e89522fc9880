"""The jobs of licensing: each translates a beat into one call and keeps the job's row.

A message lost costs one beat; a job run twice or at the same time does nothing twice.
"""

from celery import shared_task
from django.utils import timezone

from licensing import sweeps


@shared_task(name="licensing.sweep")
def sweep() -> int:
    """Record what time has made of licenses."""
    return sweeps.beat(sweeps.EXPIRATION, at=timezone.now())


@shared_task(name="licensing.reclaim_leases")
def reclaim_leases() -> int:
    """Take back the units of leases that lapsed."""
    return sweeps.beat(sweeps.LEASES, at=timezone.now())


@shared_task(name="licensing.lapse_reservations")
def lapse_reservations() -> int:
    """Give back what reservations held that lapsed."""
    return sweeps.beat(sweeps.RESERVATIONS, at=timezone.now())


@shared_task(name="licensing.carry_out_changes")
def carry_out_changes() -> int:
    """Make the scheduled changes of scheme whose instant has come."""
    return sweeps.beat(sweeps.CHANGES, at=timezone.now())


@shared_task(name="licensing.relay_outbox")
def relay_outbox() -> int:
    """Send what waits in the outbox."""
    return sweeps.beat(sweeps.OUTBOX, at=timezone.now())


@shared_task(name="licensing.chain_audit")
def chain_audit() -> int:
    """Give numbers to the audit entries that wait."""
    return sweeps.chain_now(at=timezone.now())


@shared_task(name="licensing.verify_audit")
def verify_audit() -> int:
    """Compare the audit record with its chain and checkpoints."""
    return sweeps.beat(sweeps.VERIFY, at=timezone.now())


@shared_task(name="licensing.forget_nonces")
def forget_nonces() -> int:
    """Delete the nonces that no acceptance can reach back to."""
    return sweeps.beat(sweeps.NONCES, at=timezone.now())


@shared_task(name="licensing.apply_retention")
def apply_retention() -> int:
    """Delete what is kept for a time only."""
    return sweeps.beat(sweeps.RETENTION, at=timezone.now())


@shared_task(name="licensing.remind")
def remind() -> int:
    """Tell customers of licenses that end soon."""
    return sweeps.beat(sweeps.REMINDERS, at=timezone.now())


@shared_task(name="licensing.let_dead_go")
def let_dead_go() -> int:
    """Let machines go that were not seen for longer than their plans allow."""
    return sweeps.beat(sweeps.DEAD, at=timezone.now())


@shared_task(name="licensing.check_key_ring")
def check_key_ring() -> int:
    """Look whether every key is there, itself, and backed up."""
    return sweeps.beat(sweeps.KEY_RING, at=timezone.now())


@shared_task(name="licensing.run_job")
def run_job(name: str) -> int:
    """Run the job of this name now: somebody asked for it, which is recorded already."""
    return sweeps.run(sweeps.named(name), at=timezone.now())


@shared_task(name="licensing.evaluate_rules")
def evaluate_rules() -> int:
    """Have the rules look, and people told of what they find."""
    return sweeps.beat(sweeps.RULES, at=timezone.now())
