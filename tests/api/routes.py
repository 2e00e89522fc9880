"""Every route of the API: what it needs, and how each kind of caller is answered.

The world is the one of conftest: callers ask for what belongs to the first customer, with that customer's key
and server ("own") and with another customer's ("other").
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

from billing import accounts, metering
from billing.models import Statement
from licensing import allowances, leases, license_files, webhooks
from licensing.models import Lease, License, LicenseFile, OutboxMessage, WebhookEndpoint
from licensing.models.allowances import CreditGrant, Reservation
from tests.api.conftest import World
from tests.factories import AT, BY, make_final_statement, make_license, make_statement

_numbers = count(1)


def _new(prefix: str) -> str:
    return f"{prefix}-{next(_numbers)}"


JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `scope` is None where nobody is asked who they are."""

    method: str
    template: str
    scope: str | None
    vendor: int
    own: int
    other: int
    key: int = 403
    other_key: int = 403
    body: Callable[[World], Any] | None = None
    optional_body: bool = False
    once: bool = False  # heeds Idempotency-Key
    media: str = JSON

    def __str__(self) -> str:
        return f"{self.method} {self.template}"

    def path(self, world: World, **instead: Any) -> str:
        names = {
            "activation": world.activation.pk,
            "against": world.revision.pk,
            "anomaly": world.anomaly.pk,
            "audit_entry": world.audit_entry.pk,
            "credential": world.credential_id,
            "customer": world.customer.pk,
            "draft": world.draft.pk,
            "license": world.license.pk,
            "member": world.member.pk,
            "meter": world.meter.meter_id,
            "meter_draft": world.meter_draft.pk,
            "meter_revision": world.meter.pk,
            "plan": world.plan.pk,
            "price": world.price.price_id,
            "price_draft": world.price_draft.pk,
            "price_planned": world.price_planned.pk,
            "price_revision": world.price.pk,
            "product": world.product.pk,
            "revision": world.revision.pk,
            "seat": world.seat.pk,
        }
        if "lease" in self.template:  # made here, before a test counts what is written
            names["lease"] = _lease(world).pk
        if "{reservation}" in self.template:
            names["reservation"] = _reservation(world).pk
        if "{credit_grant}" in self.template:
            names["credit_grant"] = _credit(world).pk
        if "{license_file}" in self.template:
            names["license_file"] = _license_file(world).pk
        if "{statement}" in self.template:
            names["statement"] = _statement(world).pk
        if "{final_statement}" in self.template:
            names["final_statement"] = make_final_statement(customer=world.customer).pk
        if "{account}" in self.template:
            names["account"] = accounts.describe(customer=world.customer, currency="EUR", by=BY, at=AT).pk
        if "{endpoint}" in self.template:
            names["endpoint"] = _endpoint(world).pk
        if "{message}" in self.template:
            names["message"] = _message(world)
        return self.template.format(**names | instead)

    def payload(self, world: World) -> Any:
        return self.body(world) if self.body else None


def _floating(world: World) -> License:
    """Return the first customer's license whose seats float; its key is nobody's in the table."""
    found = License.objects.filter(customer=world.customer, plan_revision__seat_kind="floating").first()
    return found or make_license(customer=world.customer, seat_kind="floating", at=datetime.now(UTC))


def _lease(world: World) -> Lease:
    license = _floating(world)
    return license.leases.first() or leases.check_out(license=license, by=BY, at=datetime.now(UTC)).lease


def _meter(world: World) -> str:
    metering.forget()
    return str(world.meter.meter.code)


def _reservation(world: World) -> Reservation:
    return allowances.reserve(
        license=world.license,
        meter=_meter(world),
        quantity=Decimal(1),
        ttl=timedelta(hours=1),
        holder="",
        at=datetime.now(UTC),
    )


def _credit(world: World) -> CreditGrant:
    at, amount = datetime.now(UTC), Decimal(5)
    return allowances.grant(license=world.license, meter=_meter(world), amount=amount, by=BY, at=at)


def _license_file(world: World) -> LicenseFile:
    made = LicenseFile.objects.filter(license=world.license).first()
    at = datetime.now(UTC)
    return made or license_files.issue(license=world.license, activation=world.activation, by=BY, at=at).record


def _statement(world: World) -> Statement:
    return Statement.objects.filter(customer=world.customer).first() or make_statement(customer=world.customer)


def _endpoint(world: World) -> WebhookEndpoint:
    found = WebhookEndpoint.objects.filter(customer=world.customer).first()
    return found or webhooks.create(url=HOOK, customer=world.customer, by=BY, at=datetime.now(UTC))[0]


def _message(world: World) -> UUID:
    """Return a dead letter of the endpoint's."""
    at = datetime.now(UTC)
    message_id = webhooks.test(endpoint=_endpoint(world), by=BY, at=at)
    OutboxMessage.objects.filter(pk=message_id).update(given_up_at=at)
    return message_id


def _hook(method: str, rest: str, ok: int, body: Callable[[World], Any] | None = None, **more: Any) -> Route:
    own = more.pop("own", ok)
    once = method == "POST"
    path = f"/webhook-endpoints{rest}"
    return Route(method, path, "webhooks:write", vendor=ok, own=own, other=404, body=body, once=once, **more)


HOOK = "https://hooks.example.com/licentia"


def _read(template: str, scope: str, own: int, other: int, **more: Any) -> Route:
    return Route("GET", template, scope, vendor=200, own=own, other=other, **more)


def _act(template: str, body: Callable[[World], Any], vendor: int = 200, **more: Any) -> Route:
    return Route("POST", template, "licenses:write", vendor=vendor, own=403, other=403, body=body, once=True, **more)


FLAT = {"kind": "flat", "amount": "1.00"}


def _because(world: World) -> dict[str, str]:
    return {"reason": "Go"}


def _sell(
    method: str, template: str, body: Callable[[World], Any] | None = None, vendor: int = 200, **more: Any
) -> Route:
    """Return a route that changes what is for sale: the vendor's only."""
    once = method == "POST"
    return Route(method, template, "catalog:write", vendor=vendor, own=403, other=403, body=body, once=once, **more)


def _bill(method: str, template: str, body: Callable[[World], Any], **more: Any) -> Route:
    """Return a route that changes what is billed: the vendor's only."""
    once = method == "POST"
    return Route(method, template, "billing:write", vendor=200, own=403, other=403, body=body, once=once, **more)


ROUTES = [
    Route(
        "POST",
        "/validate",
        "validate",
        vendor=200,
        own=200,
        other=200,  # a verdict is data: `not_found`
        key=200,
        other_key=404,
        body=lambda world: {"license": str(world.license.pk)},
    ),
    # activations: also with a license key
    _read("/activations", "activations", own=200, other=200, key=200, other_key=200),
    _read("/activations/{activation}", "activations", own=200, other=404, key=200, other_key=404),
    Route(
        "POST",
        "/activations",
        "activations",
        vendor=201,
        own=201,
        other=404,
        key=201,
        other_key=404,
        body=lambda world: {"license": str(world.license.pk), "fingerprint": _new("fingerprint-0123456789")},
        once=True,
    ),
    Route(
        "POST",
        "/activations/{activation}/heartbeat",
        "activations",
        vendor=200,
        own=200,
        other=404,
        key=200,
        other_key=404,
        body=lambda world: {},
        optional_body=True,
        once=True,
    ),
    Route(
        "DELETE",
        "/activations/{activation}",
        "activations",
        vendor=204,
        own=204,
        other=404,
        key=204,
        other_key=404,
    ),
    _read("/entitlements?license={license}", "validate", own=200, other=404, key=200, other_key=404),
    _read(
        "/usage?license={license}&from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z",
        "usage:read",
        own=200,
        other=404,
        key=200,
        other_key=404,
    ),
    # leases, and license files: also with a license key
    _read("/leases", "leases", own=200, other=200, key=200, other_key=200),
    _read("/leases/{lease}", "leases", own=200, other=404, key=404, other_key=404),
    Route(
        "POST",
        "/leases",
        "leases",
        vendor=201,
        own=201,
        other=404,
        key=404,
        other_key=404,
        body=lambda world: {"license": str(_floating(world).pk)},
        once=True,
    ),
    Route(
        "POST",
        "/leases/{lease}/renew",
        "leases",
        vendor=200,
        own=200,
        other=404,
        key=404,
        other_key=404,
        body=lambda world: {"ttl_seconds": 60},
        optional_body=True,
        once=True,
    ),
    Route("DELETE", "/leases/{lease}", "leases", vendor=204, own=204, other=404, key=404, other_key=404),
    Route(
        "POST",
        "/usage",
        "usage",
        vendor=201,
        own=201,
        other=404,
        key=201,
        other_key=404,
        body=lambda world: {"license": str(world.license.pk), "event_id": _new("event"), "meter": _meter(world)},
    ),
    Route(
        "POST",
        "/usage/batch",
        "usage",
        vendor=200,
        own=200,
        other=200,  # each event has its own result: `not_found`
        key=200,
        other_key=200,
        body=lambda world: {
            "license": str(world.license.pk),
            "events": [{"event_id": _new("event"), "meter": _meter(world)}],
        },
    ),
    Route(
        "POST",
        "/events",
        "usage",
        vendor=201,
        own=201,
        other=404,
        key=201,
        other_key=404,
        body=lambda world: {
            "specversion": "1.0",
            "id": _new("event"),
            "source": "/table",
            "type": _meter(world),
            "subject": str(world.license.pk),
        },
        media="application/cloudevents+json",
    ),
    # corrections and credit: the vendor's to make; credit is seen by whose license it is
    Route(
        "POST",
        "/usage/corrections",
        "usage:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {
            "license": str(world.license.pk),
            "meter": _meter(world),
            "quantity": "1",
            "occurred_at": datetime.now(UTC).isoformat(),
            "reason": "Forgotten",
        },
        once=True,
    ),
    _read("/credit-grants", "usage:read", own=200, other=200, key=200, other_key=200),
    _read("/credit-grants/{credit_grant}", "usage:read", own=200, other=404, key=200, other_key=404),
    Route(
        "POST",
        "/credit-grants",
        "usage:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {"license": str(world.license.pk), "meter": _meter(world), "amount": "5"},
        once=True,
    ),
    Route(
        "POST",
        "/credit-grants/{credit_grant}/void",
        "usage:write",
        vendor=200,
        own=403,
        other=403,
        body=_because,
        once=True,
    ),
    Route(
        "POST",
        "/reservations",
        "usage",
        vendor=201,
        own=201,
        other=404,
        key=201,
        other_key=404,
        body=lambda world: {"license": str(world.license.pk), "meter": _meter(world), "quantity": "1"},
        once=True,
    ),
    Route(
        "POST",
        "/reservations/{reservation}/commit",
        "usage",
        vendor=200,
        own=200,
        other=404,
        key=200,
        other_key=404,
        body=lambda world: {},
        optional_body=True,
        once=True,
    ),
    Route(
        "POST",
        "/reservations/{reservation}/release",
        "usage",
        vendor=200,
        own=200,
        other=404,
        key=200,
        other_key=404,
        once=True,
    ),
    _read("/license-files", "activations", own=200, other=200, key=200, other_key=200),
    _read("/license-files/{license_file}", "activations", own=200, other=404, key=200, other_key=404),
    Route(
        "POST",
        "/license-files",
        "activations",
        vendor=201,
        own=201,
        other=404,
        key=201,
        other_key=404,
        body=lambda world: {"license": str(world.license.pk), "fingerprint": world.activation.fingerprint},
        once=True,
    ),
    # seats
    _read("/seats", "seats:read", own=200, other=200),
    _read("/seats/{seat}", "seats:read", own=200, other=404),
    Route(
        "POST",
        "/seats",
        "seats:write",
        vendor=201,
        own=201,
        other=404,
        body=lambda world: {"license": str(world.license.pk), "holder": f"{_new('holder')}@example.com"},
        once=True,
    ),
    Route(
        "POST",
        "/seats/{seat}/transfer",
        "seats:write",
        vendor=200,
        own=409,  # the vendor's call, before, has let the seat go
        other=404,
        body=lambda world: {"holder": f"{_new('heir')}@example.com"},
        once=True,
    ),
    Route("DELETE", "/seats/{seat}", "seats:write", vendor=204, own=204, other=404),
    # webhooks
    _read("/webhook-endpoints", "webhooks:read", own=200, other=200),
    _read("/webhook-endpoints/{endpoint}", "webhooks:read", own=200, other=404),
    _read("/webhook-endpoints/{endpoint}/deliveries", "webhooks:read", own=200, other=404),
    _hook("POST", "", 201, lambda world: {"url": HOOK, "customer": str(world.customer.pk)}),
    _hook("PATCH", "/{endpoint}", 200, lambda world: {"description": _new("Renamed")}),
    _hook("POST", "/{endpoint}/rotate-secret", 200, _because, optional_body=True),
    _hook("POST", "/{endpoint}/disable", 200, _because, optional_body=True),
    _hook("POST", "/{endpoint}/enable", 200, _because, optional_body=True),
    _hook("POST", "/{endpoint}/test", 202, lambda world: {}, optional_body=True),
    # the vendor's call, before, has it waiting
    _hook("POST", "/{endpoint}/deliveries/{message}/replay", 202, lambda world: {"reason": "Mended"}, own=409),
    _hook("DELETE", "/{endpoint}", 204, own=404),
    # catalog: what is for sale is no secret among customers, drafts are
    _read("/products", "catalog:read", own=200, other=200),
    _read("/products/{product}", "catalog:read", own=200, other=200),
    _read("/plans", "catalog:read", own=200, other=200),
    _read("/plans/{plan}", "catalog:read", own=200, other=200),
    _read("/plan-revisions", "catalog:read", own=200, other=200),
    _read("/plan-revisions/{revision}", "catalog:read", own=200, other=200),
    _read("/plan-revisions/{draft}", "catalog:read", own=404, other=404),
    _read("/plan-revisions/{revision}/diff?against={against}", "catalog:read", own=200, other=200),
    _read("/plan-revisions/{revision}/diff?against={draft}", "catalog:read", own=404, other=404),
    Route(
        "POST",
        "/products",
        "catalog:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {"code": _new("product-by-api"), "name": "Product"},
        once=True,
    ),
    Route(
        "PATCH",
        "/products/{product}",
        "catalog:write",
        vendor=200,
        own=403,
        other=403,
        body=lambda world: {"name": _new("Renamed")},
    ),
    Route(
        "POST",
        "/plans",
        "catalog:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {"product": str(world.product.pk), "code": _new("plan-by-api"), "name": "Plan"},
        once=True,
    ),
    Route(
        "PATCH",
        "/plans/{plan}",
        "catalog:write",
        vendor=200,
        own=403,
        other=403,
        body=lambda world: {"name": _new("Renamed")},
    ),
    Route(
        "POST",
        "/plan-revisions",
        "catalog:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {"plan": str(world.plan.pk), "seat_limit": 20},
        once=True,
    ),
    Route(
        "PATCH",
        "/plan-revisions/{draft}",
        "catalog:write",
        vendor=200,
        own=403,
        other=403,
        body=lambda world: {"seat_limit": next(_numbers)},
    ),
    Route(
        "POST",
        "/plan-revisions/{draft}/publish",
        "catalog:write",
        vendor=200,
        own=403,
        other=403,
        body=lambda world: {"reason": "Go"},
        optional_body=True,
        once=True,
    ),
    Route(
        "POST",
        "/plan-revisions/{revision}/retire",
        "catalog:write",
        vendor=200,
        own=403,
        other=403,
        body=lambda world: {"reason": "Off sale"},
        optional_body=True,
        once=True,
    ),
    Route("DELETE", "/plan-revisions/{draft}", "catalog:write", vendor=204, own=403, other=403),
    # meters and prices: drafts are the vendor's only, and prices also those who hold a license of the plan
    _read("/meters", "catalog:read", own=200, other=200),
    _read("/meters/{meter}", "catalog:read", own=200, other=200),
    _read("/meters/{meter}/revisions", "catalog:read", own=200, other=200),
    _read("/meters/{meter}/revisions/{meter_revision}", "catalog:read", own=200, other=200),
    _read("/meters/{meter}/revisions/{meter_draft}", "catalog:read", own=404, other=404),
    _sell("POST", "/meters", lambda world: {"code": _new("meter-by-api"), "name": "Meter"}, vendor=201),
    _sell("PATCH", "/meters/{meter}", lambda world: {"name": _new("Renamed")}),
    _sell("POST", "/meters/{meter}/revisions", lambda world: {"unit": "calls"}, vendor=201, optional_body=True),
    _sell("PATCH", "/meters/{meter}/revisions/{meter_draft}", lambda world: {"unit": _new("unit")}),
    _sell("POST", "/meters/{meter}/revisions/{meter_draft}/publish", _because, optional_body=True),
    _sell("POST", "/meters/{meter}/revisions/{meter_revision}/retire", _because, optional_body=True),
    _sell("DELETE", "/meters/{meter}/revisions/{meter_draft}", vendor=204),
    _read("/prices", "catalog:read", own=200, other=200),
    _read("/prices/{price}", "catalog:read", own=200, other=200),
    _read("/prices/{price}/revisions", "catalog:read", own=200, other=200),
    _read("/prices/{price}/revisions/{price_revision}", "catalog:read", own=200, other=200),
    _read("/prices/{price}/revisions/{price_draft}", "catalog:read", own=404, other=404),
    _sell("POST", "/prices", lambda world: {"plan": str(world.plan.pk), "currency": "USD"}, vendor=201),
    _sell("POST", "/prices/{price}/revisions", lambda world: {"components": []}, vendor=201, optional_body=True),
    _sell("PATCH", "/prices/{price}/revisions/{price_draft}", lambda world: {"components": [FLAT]}),
    _sell(
        "POST",
        "/prices/{price}/revisions/{price_draft}/publish",
        lambda world: {"effective_at": "2099-01-01T00:00:00Z"},
    ),
    _sell("POST", "/prices/{price}/revisions/{price_planned}/retire", _because, optional_body=True),
    _sell("DELETE", "/prices/{price}/revisions/{price_draft}", vendor=204),
    # customers and members
    _read("/customers", "customers:read", own=200, other=200),
    _read("/customers/{customer}", "customers:read", own=200, other=404),
    _read("/members", "customers:read", own=200, other=200),
    _read("/members/{member}", "customers:read", own=200, other=404),
    Route(
        "POST",
        "/customers",
        "customers:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {"code": _new("customer-by-api"), "name": "Customer"},
        once=True,
    ),
    Route(
        "PATCH",
        "/customers/{customer}",
        "customers:write",
        vendor=200,
        own=403,
        other=403,
        body=lambda world: {"name": _new("Renamed")},
    ),
    Route(
        "POST",
        "/members",
        "customers:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {
            "customer": str(world.customer.pk),
            "email": f"{_new('member')}@example.com",
            "role": "viewer",
        },
        once=True,
    ),
    Route(
        "PATCH",
        "/members/{member}",
        "customers:write",
        vendor=200,
        own=403,
        other=403,
        body=lambda world: {"role": "billing"},
    ),
    Route("DELETE", "/members/{member}", "customers:write", vendor=204, own=403, other=403),
    # licenses
    _read("/licenses", "licenses:read", own=200, other=200),
    _read("/licenses/{license}", "licenses:read", own=200, other=404),
    _act("/licenses", lambda world: {"customer": str(world.customer.pk), "plan": str(world.plan.pk)}, vendor=201),
    _act("/licenses/{license}/hold", lambda world: {"reason": "unpaid"}),
    _act("/licenses/{license}/lift", lambda world: {"reason": "unpaid"}, vendor=409),
    _act("/licenses/{license}/renew", lambda world: {}, optional_body=True),
    _act("/licenses/{license}/revoke", lambda world: {"reason": "Refunded"}),
    _act(
        "/licenses/{license}/transfer",
        lambda world: {"customer": str(world.third_customer.pk), "reason": "Sold"},
    ),
    _act("/licenses/{license}/rotate-key", lambda world: {"reason": "Leaked"}),
    _act("/licenses/{license}/change-limits", lambda world: {"seat_limit": 12}, optional_body=True),
    _act("/licenses/{license}/change-plan", lambda world: {"plan_revision": str(world.revision.pk)}),
    _act("/licenses/{license}/change-scheme", lambda world: {"scheme": "usage", "reason": "Asked"}, vendor=409),
    _act("/licenses/{license}/undo-change", lambda world: {}, vendor=409, optional_body=True),
    _read("/licenses/{license}/changes", "licenses:read", own=200, other=404),
    # credentials, anomalies, audit entries: the vendor's alone
    _read("/credentials", "credentials:read", own=403, other=403),
    _read("/credentials/{credential}", "credentials:read", own=403, other=403),
    Route(
        "POST",
        "/credentials",
        "credentials:write",
        vendor=201,
        own=403,
        other=403,
        body=lambda world: {"name": "CI", "scopes": ["credentials:write"]},
        once=True,
    ),
    Route("DELETE", "/credentials/{credential}", "credentials:write", vendor=204, own=403, other=403),
    _read("/anomalies", "anomalies:read", own=403, other=403),
    _read("/anomalies/{anomaly}", "anomalies:read", own=403, other=403),
    _read("/statements", "billing:read", own=200, other=200),
    _read("/statements/{statement}", "billing:read", own=200, other=404),
    _read("/statements/{statement}/pdf", "billing:read", own=200, other=404),
    _read("/statements/{statement}/csv", "billing:read", own=200, other=404),
    _bill("POST", "/statements/{statement}/close", lambda world: {}, optional_body=True),
    _bill("POST", "/statements/{final_statement}/void", _because),
    _bill("POST", "/statements/{final_statement}/mark-paid", _because),
    _read("/billing-accounts", "billing:read", own=200, other=200),
    _read("/billing-accounts/{account}", "billing:read", own=200, other=404),
    _bill("PATCH", "/billing-accounts/{account}", lambda world: {"tax_id": _new("DE")}),
    _read("/audit-entries", "audit:read", own=403, other=403),
    _read("/audit-entries/{audit_entry}", "audit:read", own=403, other=403),
    # what says how to call us
    Route("GET", "/schema", None, vendor=200, own=200, other=200, key=200, other_key=200),
]
GUARDED = [route for route in ROUTES if route.scope is not None]
# Of CloudEvents, which carry what else they like, tests/api/test_events.py says what is refused.
WRITING = [route for route in GUARDED if route.body is not None and route.media == JSON]
