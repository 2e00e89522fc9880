"""Valid things with as little said as possible: a test states only what it is about.

Everything is made through the rule functions, as the product makes it.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import transaction

from billing import statements
from billing.models import (
    BillingAccount,
    Meter,
    MeterRevision,
    Price,
    PriceRevision,
    Statement,
    StatementLine,
    UsageChange,
    UsageEvent,
)
from licensing import audit, catalog, credentials, customers, lifecycle
from licensing.audit import Actor
from licensing.models import AuditEntry, Credential, Customer, License, Member, Plan, PlanRevision, Product

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BY = audit.system("tests")
PASSWORD = "correct horse battery staple"
_numbers = count(1)


def make_actor(**overrides: Any) -> Actor:
    return Actor(**{"kind": "staff", "id": "1", "label": "staff@example.com", "role": "superuser"} | overrides)


def opened(entry: AuditEntry) -> AuditEntry:
    """Return an audit entry as one who may read it sees it."""
    return audit.opened([entry])[0]


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


def make_meter(**overrides: Any) -> MeterRevision:
    """Return a published revision of a new meter: a sum, unless said otherwise."""
    number = next(_numbers)
    code = overrides.pop("code", f"meter-{number}")
    meter = overrides.pop("meter", None) or Meter.objects.create(code=code, name=code, created_at=AT)
    return MeterRevision.objects.create(
        **{"meter": meter, "number": 1, "state": "published", "published_at": AT, "created_at": AT} | overrides
    )


def make_price(*, plan: Plan, components: list[dict[str, Any]], **overrides: Any) -> PriceRevision:
    """Return a published revision of the plan's price in euros, effective from the beginning."""
    currency = overrides.pop("currency", "EUR")
    price, _ = Price.objects.get_or_create(plan=plan, currency=currency, defaults={"created_at": AT})
    return PriceRevision.objects.create(
        **{
            "price": price,
            "number": price.revisions.count() + 1,
            "state": "published",
            "published_at": AT,
            "effective_at": datetime(2020, 1, 1, tzinfo=UTC),
            "components": components,
            "created_at": AT,
        }
        | overrides
    )


def make_statement(**overrides: Any) -> Statement:
    """Return a customer's draft for March 2026, in euros, with one adjustment of 12.34 on it."""
    customer = overrides.pop("customer", None) or make_customer()
    month = statements.month_of(AT)
    draft = Statement.objects.create(
        **{
            "customer": customer,
            "currency": "EUR",
            "starts_at": month.starts_at,
            "ends_at": month.ends_at,
            "created_at": AT,
        }
        | overrides
    )
    statements.adjust(customer=customer, amount_minor=1234, description="Setup", reason="Agreed", by=BY, at=AT)
    return Statement.objects.get(pk=draft.pk)


def make_final_statement(
    *, amounts: tuple[int, ...] = (100_00,), license: License | None = None, **overrides: Any
) -> Statement:
    """Return a final statement over March 2026 with a line of each amount, on `license` if given; 19 % tax, due on the
    18th of April 2026."""
    customer = overrides.pop("customer", None) or (license.customer if license else make_customer())
    account, _ = BillingAccount.objects.get_or_create(customer=customer, defaults={"created_at": AT})
    start, end = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
    starts_at, ends_at = overrides.pop("starts_at", start), overrides.pop("ends_at", end)
    account.last_number += 1
    account.save()
    statement = Statement.objects.create(
        created_at=AT,
        customer=customer,
        currency=overrides.pop("currency", "EUR"),
        starts_at=starts_at,
        ends_at=ends_at,
    )
    for position, amount in enumerate(amounts, start=1):
        StatementLine.objects.create(
            created_at=AT,
            statement=statement,
            position=position,
            kind="usage",
            meter="calls",
            quantity=Decimal(position * 10),
            license=license,
            description=f"Thing {position}",
            starts_at=starts_at,
            ends_at=ends_at,
            amount_minor=amount,
        )
    subtotal = sum(amounts)
    tax = round(subtotal * 19 / 100)
    values = {
        "state": "final",
        "number": account.last_number,
        "final_at": end + timedelta(days=3),
        "due_at": end + timedelta(days=17),
        "subtotal_minor": subtotal,
        "tax_rate": Decimal("19"),
        "tax_minor": tax,
        "total_minor": subtotal + tax,
    }
    for name, value in (values | overrides).items():
        setattr(statement, name, value)
    statement.save()
    return Statement.objects.get(pk=statement.pk)


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


def make_usage(
    *, license: License | UUID, revision: MeterRevision, at: datetime, quantity: Any = 1, **overrides: Any
) -> UsageEvent:
    """Return a usage event, counted as the metering counts it but with no allowance: with the change that says so."""
    license_id = license.pk if isinstance(license, License) else license
    hour = at.replace(minute=0, second=0, microsecond=0)
    values = {"event_id": f"event-{next(_numbers)}", "received_at": at, "source": "tests"} | overrides
    with transaction.atomic():
        event = UsageEvent.objects.create(
            license_id=license_id, meter_revision=revision, occurred_at=at, quantity=Decimal(quantity), **values
        )
        UsageChange.objects.create(license_id=license_id, meter_revision_id=revision.pk, hour=hour)
    return event
