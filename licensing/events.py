"""Events for webhooks: what of a change others are told, enqueued in the transaction of the change.

`audit.record` calls `told` for every entry, so no rule can forget to; what leaves no entry calls `emit` itself (ADR
0020). It only writes outbox rows, one for each endpoint that wants the type; `webhooks` sends them.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Q

from licensing import outbox
from licensing.models import AuditEntry, License, WebhookEndpoint
from licensing.states import EndpointState, status_at

KIND = "webhook"
TEST = "webhook.test"

# Which audited acts are events, and of what type. A customer's endpoint is told of what is theirs.
OF_ACTIONS = {
    "license.issued": "license.issued",
    "license.renewed": "license.renewed",
    "license.held": "license.held",
    "license.lifted": "license.lifted",
    "license.revoked": "license.revoked",
    "license.entered_grace": "license.entered_grace",
    "license.expired": "license.expired",
    "license.transferred": "license.transferred",
    "license.limits_changed": "license.limits_changed",
    "license.validity_started": "license.validity_started",
    "license.plan_changed": "license.plan_changed",
    "license.change_scheduled": "license.change_scheduled",
    "license.change_cancelled": "license.change_cancelled",
    "license.change_refused": "license.change_refused",
    "license.change_undone": "license.change_undone",
    "key.rotated": "license.key_rotated",
    "seat.assigned": "seat.assigned",
    "seat.released": "seat.released",
    "activation.created": "activation.created",
    "activation.ended": "activation.ended",
    "statement.closed": "statement.final",
    "statement.paid": "statement.paid",
    "statement.voided": "statement.voided",
}
THRESHOLD = "allowance.threshold_reached"
ANOMALY = "anomaly.raised"
FOR_CUSTOMERS = (*OF_ACTIONS.values(), THRESHOLD)
TYPES = (*FOR_CUSTOMERS, ANOMALY)

# Of what an entry says, what goes along: no address, no person, no key.
_FACTS = (
    "hold",
    "number",
    "currency",
    "total_minor",
    "due_at",
    "paid_at",
    "starts_at",
    "ends_at",
    "occurred_at",
    "term_starts_at",
    "key_last5",
)


def told(entry: AuditEntry) -> None:
    """Enqueue what an audit entry is an event of, if it is one, in the transaction of the entry."""
    event_type = OF_ACTIONS.get(entry.action)
    if event_type is None:
        return
    data: dict[str, Any] = {name: entry.after[name] for name in _FACTS if name in entry.after}
    if "hold" in entry.before:
        data["hold"] = entry.before["hold"]
    if entry.object_kind != "license":
        data[entry.object_kind] = entry.object_id
    customers = {entry.customer_id}
    if event_type == "license.transferred" and entry.before.get("customer"):
        customers.add(UUID(entry.before["customer"]))
    emit(
        event_type=event_type,
        at=entry.at,
        data=data,
        license_id=entry.license_id,
        customers=customers - {None},  # type: ignore[arg-type]  # what is left is ids
    )


def emit(
    *,
    event_type: str,
    at: datetime,
    data: Mapping[str, Any],
    license_id: UUID | None = None,
    customers: set[UUID] | None = None,
) -> int:
    """Enqueue an event for every endpoint that wants its type; return for how many.

    It goes to the vendor's endpoints and, unless its type is the vendor's alone, to those of `customers`, by default
    whoever has the license. The license goes along as the API shows it.
    """
    whose = Q(customer=None)
    if event_type in FOR_CUSTOMERS:
        if customers is None:
            whose |= Q(customer__licenses=license_id) if license_id else Q()
        else:
            whose |= Q(customer__in=customers)
    endpoints = [
        endpoint
        for endpoint in WebhookEndpoint.objects.filter(whose, state=EndpointState.ENABLED).order_by("id")
        if not endpoint.event_types or event_type in endpoint.event_types
    ]
    if not endpoints:
        return 0
    shown = license_shown(license_id, at) if license_id else None
    for endpoint in endpoints:
        # Whoever had a license is told that it went, not what became of it.
        theirs = shown is None or endpoint.customer_id in (None, UUID(shown["customer"]))
        about: dict[str, Any] = {"license": shown if theirs else {"id": str(license_id)}} if shown else {}
        if not shown and customers and len(customers) == 1:
            about = {"customer": str(next(iter(customers)))}
        enqueue(endpoint=endpoint, event_type=event_type, at=at, data={**about, **data}, license_id=license_id)
    return len(endpoints)


def enqueue(
    *, endpoint: WebhookEndpoint, event_type: str, at: datetime, data: dict[str, Any], license_id: UUID | None = None
) -> UUID:
    """Write one message for one endpoint; return its id, which the receiver sees as webhook-id."""
    message = outbox.enqueue(
        kind=KIND,
        target=target_of(endpoint),
        payload={"type": event_type, "timestamp": _instant(at), "data": data},
        license_id=license_id,
        customer_id=endpoint.customer_id,
        at=at,
    )
    return message.pk


def target_of(endpoint: WebhookEndpoint) -> str:
    """Return the outbox target of an endpoint's messages."""
    return f"webhook:{endpoint.pk}"


def license_shown(license_id: UUID, at: datetime) -> dict[str, Any]:
    """Return a license as the API shows it, as it is in this transaction, without secrets."""
    row = License.objects.select_related("plan_revision").get(pk=license_id)
    held = row.holds.filter(lifted_at=None).exists()
    return {
        "id": str(row.pk),
        "created_at": _instant(row.created_at),
        "customer": str(row.customer_id),
        "product": str(row.product_id),
        "plan": str(row.plan_revision.plan_id),
        "plan_revision": str(row.plan_revision_id),
        "scheme": row.scheme,
        "status": str(
            status_at(
                at=at,
                issued=row.issued_at is not None,
                revoked=row.revoked_at is not None,
                held=held,
                expires_at=row.expires_at,
                grace_until=row.grace_until,
            )
        ),
        "starts_at": _instant(row.starts_at),
        "expires_at": _instant(row.expires_at),
        "grace_until": _instant(row.grace_until),
        "maintenance_until": _instant(row.maintenance_until),
        "seat_limit": row.seat_limit,
        "seats_used": row.seats_used,
        "activation_limit": row.activation_limit,
        "activations_used": row.activations_used,
        "key_last5": row.keys.filter(retired_at=None).values_list("last5", flat=True).first(),
    }


def _instant(at: datetime | None) -> str | None:
    return at.isoformat().replace("+00:00", "Z") if at else None
