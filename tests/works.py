"""Something due for the periodic jobs, and what a database holds after them, whatever its ids."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

from django.apps import apps

from billing.models import UsageId
from licensing import activations, allowances, idempotency, leases, lifecycle, notices, outbox, switches
from licensing.catalog import Grant
from licensing.models import AuditCheckpoint, DecisionRecord, JobState
from tests import factories
from tests.factories import (
    AT,
    BY,
    make_customer,
    make_final_statement,
    make_license,
    make_meter,
    make_plan,
    make_price,
    make_revision,
    make_statement,
    make_usage,
)

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
# When everything is due: a license has expired, another ends in five days, March's statement is to be closed.
THEN = AT + 70 * DAY


def make_due_work() -> None:
    """Leave each job something to do at `THEN`, named alike each time."""
    factories._numbers = count(1)
    customer = make_customer(email="notices@example.com")
    for days in (10, 65, 75, 200):
        make_license(customer=customer, duration=days * DAY, grace_period=6 * DAY)
    floating = make_license(customer=customer, seat_kind="floating")
    for _ in range(3):
        leases.check_out(license=floating, by=BY, at=AT, ttl=HOUR)
    meter = make_meter(code="calls")
    grant = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(100), overage="refuse")
    metered = make_license(customer=customer, scheme="usage", seat_limit=None, grants=[grant])
    allowances.reserve(license=metered, meter="calls", quantity=Decimal(5), ttl=HOUR, holder="", at=THEN - 2 * HOUR)
    for hour in range(5):
        make_usage(license=metered, revision=meter, at=AT + hour * HOUR, quantity=3)
    wanting = make_license(customer=customer, activation_dead_after=30 * DAY)
    for number in range(2):
        activations.activate(license=wanting, fingerprint=f"machine-{number:0>16}", by=BY, at=AT)
    plan = make_plan()
    changing = make_license(customer=customer, plan_revision=make_revision(plan=plan))
    later = make_revision(plan=plan, seat_limit=3)
    switches.schedule(license=changing, plan_revision=later, starts_at=AT + 5 * DAY, by=BY, at=AT)
    priced = make_plan()
    make_price(plan=priced, components=[{"kind": "flat", "amount": "5.00"}])
    make_license(plan_revision=make_revision(plan=priced))
    make_statement()
    owing = make_license(customer=make_customer(email="owing@example.com"))
    make_final_statement(license=owing)
    for number in range(3):
        DecisionRecord.objects.create(created_at=AT, at=AT, request_id=f"{number}", caller="c", code="expired")
    idempotency.once(principal="p", key="k", request=b"", at=AT, act=lambda: (200, b"{}"))
    lifecycle.hold(license=floating, reason="unpaid", by=BY, at=AT)
    outbox.enqueue(kind=notices.KIND, payload={"template": "held", "facts": {}}, license_id=floating.pk, at=AT)
    UsageId.objects.create(
        license_id=metered.pk, event_id="old", digest=b"x" * 16, occurred_at=AT - 90 * DAY, received_at=AT - 90 * DAY
    )


def held() -> dict[str, Any]:
    """Return what the database holds, without ids and instants of running: two that were worked on alike are equal."""
    found: dict[str, Any] = {}
    for app in ("licensing", "billing"):
        for model in apps.get_app_config(app).get_models():
            # A checkpoint is made of whatever is chained when it is due.
            if model in (JobState, AuditCheckpoint) or model.__name__.startswith("Historical"):
                continue
            found[model._meta.label] = sorted(_row(row) for row in model._default_manager.all())
    return found


# Drawn or measured anew each time, or made of ids.
_ONES_OWN = ("hash", "mac", "digest", "sealed", "last5", "kid", "nonce", "signature", "token", "due_at", "tried_at")
_MADE_OF_IDS = ("before", "after", "payload", "evidence")


def _row(row: Any) -> str:
    kept = {}
    for field in row._meta.concrete_fields:
        value = getattr(row, field.attname)
        foreign = field.is_relation or field.primary_key or field.attname.endswith("_id")
        now = isinstance(value, datetime) and abs(value - datetime.now(UTC)) < DAY
        drawn = any(part in field.name for part in _ONES_OWN) or field.name in _MADE_OF_IDS
        if not (foreign or now or drawn or isinstance(value, bytes | memoryview | UUID)):
            kept[field.name] = value
    return json.dumps(kept, default=str, sort_keys=True)
