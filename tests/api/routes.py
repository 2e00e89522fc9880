"""Every route of the API: what it needs, and how each kind of caller is answered.

The world is the one of conftest: callers ask for what belongs to the first customer, with that customer's key
and server ("own") and with another customer's ("other").
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from licensing import leases, license_files
from licensing.models import Lease, License, LicenseFile
from tests.api.conftest import World
from tests.factories import BY, make_license

_numbers = count(1)


def _new(prefix: str) -> str:
    return f"{prefix}-{next(_numbers)}"


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
            "plan": world.plan.pk,
            "product": world.product.pk,
            "revision": world.revision.pk,
            "seat": world.seat.pk,
        }
        if "lease" in self.template:  # made here, before a test counts what is written
            names["lease"] = _lease(world).pk
        if "{license_file}" in self.template:
            names["license_file"] = _license_file(world).pk
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


def _license_file(world: World) -> LicenseFile:
    made = LicenseFile.objects.filter(license=world.license).first()
    at = datetime.now(UTC)
    return made or license_files.issue(license=world.license, activation=world.activation, by=BY, at=at).record


def _read(template: str, scope: str, own: int, other: int, **more: Any) -> Route:
    return Route("GET", template, scope, vendor=200, own=own, other=other, **more)


def _act(template: str, body: Callable[[World], Any], vendor: int = 200, **more: Any) -> Route:
    return Route("POST", template, "licenses:write", vendor=vendor, own=403, other=403, body=body, once=True, **more)


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
    _read("/audit-entries", "audit:read", own=403, other=403),
    _read("/audit-entries/{audit_entry}", "audit:read", own=403, other=403),
    # what says how to call us
    Route("GET", "/schema", None, vendor=200, own=200, other=200, key=200, other_key=200),
]
GUARDED = [route for route in ROUTES if route.scope is not None]
WRITING = [route for route in GUARDED if route.body is not None]
