"""The billing app: what is counted and owed."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils import timezone


class BillingConfig(AppConfig):
    name = "billing"
    verbose_name = "Billing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from billing import dunning, metering, rollout, shadow, statements, suspicions
        from billing.guards import expected
        from billing.jobs import JOBS
        from licensing import allowances, guards, live, outbox, sweeps

        guards.include(expected)
        suspicions.begin()
        sweeps.include(JOBS)
        outbox.deliver(kind=dunning.KIND, by=dunning.send)
        allowances.count_by(metering.counted)
        live.listen(plans=shadow.plans, hear=shadow.compare)
        statements.BLOCKERS.append(rollout.holds_open)
        post_migrate.connect(_make_partitions, sender=self)


def _make_partitions(using: str, **_: Any) -> None:
    # A new installation takes usage at once; later the job makes them ahead. Licensing has put its guards up before.
    from billing import partitions

    if using == "default":
        partitions.ahead(at=timezone.now())
