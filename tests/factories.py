"""Valid things with as little said as possible: a test states only what it is about.

Everything is made through the rule functions, as the product makes it.
"""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from django.contrib.auth import get_user_model

from licensing import audit, catalog, credentials, customers, lifecycle
from licensing.audit import Actor
from licensing.models import Credential, Customer, License, Member, Plan, PlanRevision, Product

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BY = audit.system("tests")
PASSWORD = "correct horse battery staple"
_numbers = count(1)


def make_actor(**overrides: Any) -> Actor:
    return Actor(**{"kind": "staff", "id": "1", "label": "staff@example.com", "role": "superuser"} | overrides)


def make_customer(**overrides: Any) -> Customer:
    number = next(_numbers)
    values = {"code": f"customer-{number}", "name": f"Customer {number}"} | overrides
    return customers.create(by=BY, at=AT, **values)


def make_product(**overrides: Any) -> Product:
    number = next(_numbers)
    return catalog.create_product(
        by=BY, at=AT, **{"code": f"product-{number}", "name": f"Product {number}"} | overrides
    )


def make_plan(**overrides: Any) -> Plan:
    number = next(_numbers)
    values = {"code": f"plan-{number}", "name": f"Plan {number}"} | overrides
    product = values.pop("product", None) or make_product()
    return catalog.create_plan(product=product, by=BY, at=AT, **values)


def make_revision(*, plan: Plan | None = None, publish: bool = True, **terms: Any) -> PlanRevision:
    """Return a published revision (10 named seats, 5 machines, a year) under the terms given."""
    defaults = {"seat_limit": 10, "activation_limit": 5, "duration": timedelta(days=365)}
    if "validity_basis" in terms:
        defaults.pop("duration")
    revision = catalog.draft(plan=plan or make_plan(), by=BY, at=AT, **defaults | terms)
    return catalog.publish(revision=revision, by=BY, at=AT) if publish else revision


def make_license(**overrides: Any) -> License:
    """Return an issued license; `customer`, `plan_revision`, `at` and the issue's own terms as given, else the
    rest are terms of its revision."""
    return make_license_and_key(**overrides)[0]


def make_license_and_key(**overrides: Any) -> tuple[License, str]:
    """Return an issued license and its key."""
    customer = overrides.pop("customer", None) or make_customer()
    revision = overrides.pop("plan_revision", None)
    at = overrides.pop("at", AT)
    issue = {name: overrides.pop(name) for name in ("starts_at", "expires_at") if name in overrides}
    if revision is not None:
        issue |= overrides
    revision = revision or make_revision(**overrides)
    return lifecycle.issue(customer=customer, plan_revision=revision, by=BY, at=at, **issue)


def make_credential(**overrides: Any) -> tuple[Credential, str]:
    """Return a credential of the vendor's with every scope, valid for a year from now, and its secret."""
    at = overrides.pop("at", None) or datetime.now(UTC)
    customer = overrides.get("customer")
    scopes = [scope for scope, shared in credentials.SCOPES.items() if shared or customer is None]
    return credentials.create(by=BY, at=at, **{"name": "tests", "scopes": scopes} | overrides)


def make_user(**overrides: Any) -> Any:
    number = next(_numbers)
    values = {"email": f"person-{number}@example.com", "password": PASSWORD} | overrides
    return get_user_model().objects.create_user(**values)


def make_member(**overrides: Any) -> Member:
    """Return a member, owner unless said otherwise."""
    customer = overrides.pop("customer", None) or make_customer()
    user = overrides.pop("user", None) or make_user()
    return customers.add_member(customer=customer, user=user, by=BY, at=AT, **{"role": "owner"} | overrides)
