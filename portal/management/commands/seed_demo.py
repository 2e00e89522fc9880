"""Fill the database with a small vendor to look around in: a product, plans, two customers, licenses in every
state.

Made through the rule functions, as the product makes things. It may run again: what exists stays, passwords and
API credentials are replaced. It refuses in production.
"""

import json
import random
import secrets
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from billing import accounts, metering, meters, prices, rollups, statements
from billing.metering import Sent
from billing.models import BillingAccount, Meter, MeterRevision, Price, Statement, UsageEvent
from licensing import (
    activations,
    audit,
    catalog,
    credentials,
    crypto,
    customers,
    keys,
    leases,
    lifecycle,
    proofs,
    seats,
    snapshots,
    sweeps,
)
from licensing.catalog import Grant
from licensing.decision import Scope
from licensing.ids import uuid7
from licensing.keyformat import generate, parse
from licensing.models import Credential, Customer, Lease, License, LicenseKey, Member, Plan, PlanRevision, Product, Term
from licensing.states import EntitlementKind, HoldReason, RevisionState, SeatKind, SeatState

BY = audit.system("seed-demo")
DAY = timedelta(days=1)
EXPORT = Grant("export")
CALLS = Grant("api_calls", kind="allowance", meter="api_calls", amount=Decimal(10_000), overage="charge")
STORAGE = Grant("storage", kind="allowance", meter="storage", amount=Decimal(10), overage="charge")
PEOPLE_USING = Grant("active_users", kind="allowance", meter="active_users", amount=Decimal(25), overage="charge")

# How each meter counts.
METERS: dict[str, tuple[str, dict[str, Any]]] = {
    "api_calls": ("API calls", {"aggregation": "sum", "unit": "calls", "dimensions": ["region", "endpoint"]}),
    "storage": ("Storage", {"aggregation": "max", "unit": "GiB"}),
    "active_users": (
        "Active users",
        {"aggregation": "unique", "unit": "people", "dimensions": ["person"], "unique_by": "person"},
    ),
}
# What each plan costs in euros a month.
PRICES: dict[str, list[dict[str, Any]]] = {
    "team": [{"kind": "seats", "amount": "12.00"}],
    "floating": [{"kind": "flat", "amount": "149.00", "name": "Floating seats"}],
    "metered": [
        {"kind": "flat", "amount": "29.00", "name": "Base fee"},
        {
            "kind": "usage",
            "meter": "api_calls",
            "model": "graduated",
            "tiers": [{"up_to": "20000", "amount": "0.004"}, {"amount": "0.0025"}],
        },
        {"kind": "usage", "meter": "storage", "model": "per_unit", "amount": "0.35"},
        {"kind": "usage", "meter": "active_users", "model": "per_unit", "amount": "1.50"},
        {"kind": "minimum", "amount": "49.00"},
    ],
    "hybrid": [
        {"kind": "seats", "amount": "9.00"},
        {"kind": "usage", "meter": "api_calls", "model": "package", "size": "1000", "amount": "3.20"},
        {"kind": "discount", "percent": "5", "name": "Early customer"},
    ],
}
TAX = {"acme": Decimal(19), "globex": Decimal("7.7")}
USAGE_DAYS = 90

# The type of a license is nothing but its revision's terms.
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "team": (
        "Atlas Team",
        {
            "seat_limit": 10,
            "activation_limit": 30,
            "duration": 365 * DAY,
            "grace_period": 14 * DAY,
            "grants": [EXPORT, Grant("support", kind="value", value="business hours")],
        },
    ),
    "floating": (
        "Atlas Floating",
        {
            "seat_kind": "floating",
            "seat_limit": 5,
            "activation_limit": None,
            "duration": 365 * DAY,
            "grants": [EXPORT],
        },
    ),
    "metered": (
        "Atlas Metered",
        {
            "scheme": "usage",
            "seat_limit": None,
            "activation_limit": None,
            "duration": 365 * DAY,
            "grants": [CALLS, STORAGE, PEOPLE_USING],
        },
    ),
    "hybrid": (
        "Atlas Hybrid",
        {
            "scheme": "both",
            "seat_limit": 25,
            "activation_limit": 50,
            "duration": 365 * DAY,
            "grace_period": 7 * DAY,
            "grants": [EXPORT, CALLS],
        },
    ),
    "trial": (
        "Atlas Trial",
        {"trial": True, "seat_limit": 3, "activation_limit": 3, "duration": 30 * DAY, "grants": []},
    ),
}
# customer, plan, how many days ago it was issued, what has happened to it since
LICENSES: tuple[tuple[str, str, int, str], ...] = (
    ("acme", "team", 20, "active"),
    ("acme", "floating", 40, "active"),
    ("acme", "hybrid", 60, "active"),
    ("globex", "metered", 90, "active"),
    ("globex", "team", 370, "in_grace"),
    ("globex", "trial", 45, "expired"),
    ("globex", "hybrid", 30, "held"),
    ("globex", "team", 100, "revoked"),
)
PEOPLE: dict[str, tuple[tuple[str, str], ...]] = {
    "acme": (
        ("olivia@acme.example", "owner"),
        ("liam@acme.example", "license_manager"),
        ("vera@acme.example", "viewer"),
    ),
    "globex": (("owen@globex.example", "owner"), ("bea@globex.example", "billing")),
}
STAFF: tuple[tuple[str, str], ...] = (
    ("admin@licentia.example", "admin"),
    ("support@licentia.example", "support"),
    ("sales@licentia.example", "sales"),
    ("finance@licentia.example", "finance"),
)
# What staff groups may do in the admin, besides looking at everything.
RIGHTS: dict[str, tuple[str, ...]] = {
    "support": ("hold_license", "manage_seats", "issue_license", "reveal_key", "change_anomaly"),
    "sales": ("issue_license", "add_customer", "change_customer", "add_member", "change_member"),
    "finance": (
        *("add_billingaccount", "change_billingaccount", "change_statement", "add_payment"),
        *("add_usageevent", "add_creditgrant"),
        *(f"{verb}_{model}" for model in ("price", "pricerevision") for verb in ("add", "change", "delete")),
    ),
}
WORDS = [
    "amber",
    "basil",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "jolly",
    "kelp",
    "lunar",
    "maple",
    "north",
    "ochre",
    "pearl",
]


class Command(BaseCommand):
    help = "Fill the database with demo data; may run again. --json prints what to sign in and call with."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of words")
        parser.add_argument("--scale", type=int, default=0, metavar="N", help="add N more licenses, for measuring")

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.PRODUCTION:
            raise CommandError("The demo is not for production: it makes people with printed passwords.")
        at = timezone.now()
        with transaction.atomic():
            seeded = seed(at)
        sweeps.run(sweeps.EXPIRATION, at=at)
        for done in add_licenses(options["scale"], at) if options["scale"] else ():
            if not options["json"]:
                self.stdout.write(f"{done} of {options['scale']} licenses added")
        if options["json"]:
            self.stdout.write(json.dumps(seeded, indent=1))
            return
        for person in [*seeded["staff"], *(user for row in seeded["customers"] for user in row["users"])]:
            self.stdout.write(f"{person['role']:16} {person['email']:28} {person['password']}")
        self.stdout.write(f"{'license key':16} {seeded['licenses'][0]['key']}")
        self.stdout.write(f"{'API credential':16} {seeded['credentials'][0]['secret']}")


def seed(at: datetime) -> dict[str, Any]:
    """Make what is missing of the demo and return what the contract says `seed_demo --json` prints."""
    product = _product(at)
    _sell_by_use(product, at)
    people = {code: [_person(email, role) for email, role in people] for code, people in PEOPLE.items()}
    owned = {code: _customer(code, people[code], at) for code in PEOPLE}
    if not License.objects.filter(product=product, customer__in=owned.values()).exists():
        for code, plan, days, state in LICENSES:
            _license(owned[code], product, plan, at - days * DAY, state, at)
    rows = (
        License.objects.filter(product=product, customer__in=owned.values())
        .select_related("plan_revision__plan")
        .prefetch_related("holds", "plan_revision__entitlements")
        .order_by("id")[: len(LICENSES)]
    )
    if not UsageEvent.objects.filter(license_id__in=[row.pk for row in rows]).exists():
        for row in rows:
            _use(row, at)
        rollups.roll_up(at=at)
        for customer in owned.values():
            _bill(customer, at)
    for row in rows:
        if row.plan_revision.seat_kind == SeatKind.FLOATING:
            _work(row, at)
    return {
        "base_url": settings.PUBLIC_URL,
        "staff": [_person(email, role, staff=True) for email, role in STAFF],
        "customers": [
            {"id": str(row.pk), "code": code, "name": row.name, "users": people[code]} for code, row in owned.items()
        ],
        "products": [{"id": str(product.pk), "code": product.code, "name": product.name, "plans": list(PLANS)}],
        "licenses": [
            {
                "id": str(row.pk),
                "key": keys.reveal(license=row, by=BY, reason="printed by seed_demo", at=at),
                "customer": next(code for code, customer in owned.items() if customer.pk == row.customer_id),
                "plan": row.plan_revision.plan.code,
                "scheme": row.scheme,
                "status": str(lifecycle.status_of(row, at)),
                "seat_limit": row.seat_limit,
                "activation_limit": row.activation_limit,
                "meters": sorted(
                    right.meter
                    for right in row.plan_revision.entitlements.all()
                    if right.kind == EntitlementKind.ALLOWANCE
                ),
            }
            for row in rows
        ],
        "credentials": [_credential("demo server", None, at), _credential("acme server", owned["acme"], at)],
        "meters": [
            {"id": str(row.meter_id), "code": row.meter.code, "aggregation": row.aggregation, "unit": row.unit}
            for row in MeterRevision.objects.filter(state=RevisionState.PUBLISHED).select_related("meter")
        ],
        "statements": [
            {
                "id": str(row.pk),
                "customer": row.customer.code,
                "state": row.state,
                "number": row.number,
                "currency": row.currency,
                "total_minor": row.total_minor,
            }
            for row in Statement.objects.filter(customer__in=owned.values()).select_related("customer")
        ],
    }


def add_licenses(count: int, at: datetime) -> Iterator[int]:
    """Add many active team licenses, for measuring; yield how many are there after each batch."""
    revision = PlanRevision.objects.get(plan__code="team", plan__product__code="atlas", state="published")
    customer = Customer.objects.get(code="acme")
    for start in range(0, count, 2_000):
        size = min(2_000, count - start)
        rows = [
            License(
                id=uuid7(),
                created_at=at,
                updated_at=at,
                customer=customer,
                product_id=revision.plan.product_id,
                plan_revision=revision,
                scheme=revision.scheme,
                issued_at=at,
                starts_at=at,
                expires_at=at + 365 * DAY,
                due_at=at + 365 * DAY,
                seat_limit=10,
                seats_ceiling=10,
                activation_limit=30,
                activations_ceiling=30,
            )
            for _ in range(size)
        ]
        for row in rows:
            proofs.seal(row, holds=[])
        with transaction.atomic():
            License.objects.bulk_create(rows)
            Term.objects.bulk_create(
                Term(
                    license=row,
                    created_at=at,
                    starts_at=at,
                    scheme=row.scheme,
                    plan_revision=revision,
                    reason="seed",
                )
                for row in rows
            )
            LicenseKey.objects.bulk_create(_key(row, at) for row in rows)
        yield start + size


def _key(row: License, at: datetime) -> LicenseKey:
    text = generate()
    kid, digest = crypto.digest(parse(text).encode(), kind="license-key")
    key = LicenseKey(id=uuid7(), license=row, created_at=at, digest_kid=kid, digest=digest, last5=text[-5:])
    key.sealed = crypto.seal(parse(text).encode(), keys.place_of(key))
    return key


def _product(at: datetime) -> Product:
    product = Product.objects.filter(code="atlas").first()
    if product is not None:
        return product
    product = catalog.create_product(
        code="atlas", name="Atlas", description="Maps for people who plan.", by=BY, at=at - 400 * DAY
    )
    for code, (name, terms) in PLANS.items():
        plan = catalog.create_plan(product=product, code=code, name=name, by=BY, at=at - 400 * DAY)
        revision = catalog.draft(plan=plan, by=BY, at=at - 400 * DAY, **terms)
        catalog.publish(revision=revision, by=BY, at=at - 400 * DAY)
    for version, days in (("1.0.0", 399), ("2.0.0", 120), ("2.1.0", 15)):
        catalog.add_release(product=product, version=version, released_at=at - days * DAY, by=BY, at=at)
    return product


def _customer(code: str, people: list[dict[str, str]], at: datetime) -> Customer:
    customer = Customer.objects.filter(code=code).first()
    if customer is None:
        customer = customers.create(code=code, name=code.capitalize(), by=BY, at=at - 400 * DAY)
    if not BillingAccount.objects.filter(customer=customer).exists():
        accounts.describe(
            customer=customer,
            currency="EUR",
            tax_rate=TAX[code],
            tax_id=f"DE{len(code)}00{len(code)}00{len(code)}",
            address=f"{code.capitalize()}\n1 Main Street\n10115 Berlin",
            by=BY,
            at=at - 400 * DAY,
        )
    for person in people:
        if not Member.objects.filter(customer=customer, user__email=person["email"]).exists():
            customers.invite(customer=customer, email=person["email"], role=person["role"], by=BY, at=at)
    return customer


def _sell_by_use(product: Product, at: datetime) -> None:
    """Make what is missing of meters and prices; all of them as old as the plans."""
    begun = at - 400 * DAY
    for code, (name, terms) in METERS.items():
        if not Meter.objects.filter(code=code).exists():
            meter = meters.create(code=code, name=name, by=BY, at=begun)
            meters.publish(revision=meters.draft(meter=meter, by=BY, at=begun, **terms), by=BY, at=begun)
    for code, components in PRICES.items():
        plan = Plan.objects.get(product=product, code=code)
        if not Price.objects.filter(plan=plan).exists():
            price = prices.create(plan=plan, currency="EUR", by=BY, at=begun)
            revision = prices.draft(price=price, components=components, by=BY, at=begun)
            prices.publish(revision=revision, by=BY, at=begun)


def _use(license: License, at: datetime) -> None:
    """Report what a license used each day of the last 90, as its program would have: in batches, then."""
    wanted = {right.meter for right in license.plan_revision.entitlements.all() if right.meter}
    if not wanted or license.revoked_at is not None:
        return
    chance = random.Random(f"{license.plan_revision.plan.code} {license.customer_id}")  # noqa: S311  no secret
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    events: list[Sent] = []
    for ago in range(USAGE_DAYS, -1, -1):
        day = midnight - ago * DAY
        busy = Decimal("0.25") if day.weekday() >= 5 else Decimal(1)
        for hour in (8, 11, 14, 17):
            quantity = (chance.randint(60, 220) * busy).to_integral_value()
            region, endpoint = chance.choice(("eu", "eu", "us")), chance.choice(("tiles", "routes"))
            events.append(_event("api_calls", day + timedelta(hours=hour), quantity, region=region, endpoint=endpoint))
        events.append(_event("storage", day + timedelta(hours=3), Decimal(6 + (USAGE_DAYS - ago) // 9)))
        if busy == 1:
            for number in chance.sample(range(40), 4):
                events.append(
                    _event("active_users", day + timedelta(hours=9), Decimal(1), person=f"person-{number:02}")
                )
    since = max(license.starts_at, midnight - USAGE_DAYS * DAY)
    reported = [
        each for each in events if each.meter in wanted and each.occurred_at and since <= each.occurred_at <= at
    ]
    reported.sort(key=lambda each: each.occurred_at or at)
    picture = snapshots.by_id(license.pk, Scope())
    assert picture is not None
    for start in range(0, len(reported), 200):
        part = [(picture.picture.snapshot, each) for each in reported[start : start + 200]]
        metering.consume_batch(sent=part, source="license:demo", at=part[-1][1].occurred_at or at)


def _event(meter: str, occurred_at: datetime, quantity: Decimal, **dimensions: str) -> Sent:
    person = f"-{dimensions['person']}" if "person" in dimensions else ""
    return Sent(f"demo-{meter}-{occurred_at:%Y%m%d%H}{person}", meter, quantity, occurred_at, dimensions)


def _bill(customer: Customer, at: datetime) -> None:
    """Make the customer's statements: final and, but for the last of these, paid for the months that are over."""
    statements.open_months(customer=customer, at=at)
    over = [each for each in statements.due(at=at) if each.customer_id == customer.pk]
    for number, draft in enumerate(over):
        closed = statements.close(statement=draft, by=BY, at=draft.ends_at + settings.STATEMENT_GRACE_DAYS * DAY)
        if number + 1 < len(over):
            statements.mark_paid(statement=closed, by=BY, at=closed.ends_at + 10 * DAY, reason="Bank transfer")


def _license(customer: Customer, product: Product, plan: str, issued_at: datetime, state: str, at: datetime) -> None:
    revision = PlanRevision.objects.get(plan__product=product, plan__code=plan, state=RevisionState.PUBLISHED)
    license, _ = lifecycle.issue(customer=customer, plan_revision=revision, by=BY, at=issued_at)
    if plan in ("team", "hybrid") and state in ("active", "in_grace"):
        for name in ("olivia", "liam", "vera", "noah"):
            seats.assign(license=license, holder=f"{name}@{customer.code}.example", by=BY, at=issued_at + DAY)
        seats.reserve(license=license, holder=f"new.hire@{customer.code}.example", by=BY, at=issued_at + DAY)
        row = license.seats.filter(state=SeatState.ASSIGNED).order_by("id").last()
        if row is not None:
            seats.block(seat=row, by=BY, at=issued_at + 2 * DAY, reason="on leave")
    if state == "held":
        lifecycle.hold(license=license, reason=HoldReason.UNPAID, by=BY, at=at - DAY, note="Invoice overdue.")
    if state == "revoked":
        lifecycle.revoke(license=license, by=BY, at=at - 2 * DAY, reason="Refunded.")


def _work(license: License, at: datetime) -> None:
    """Have a few machines at work on a floating license right now, one of them borrowed for a journey."""
    if Lease.objects.filter(license=license, ended_at=None, expires_at__gt=at).exists():
        return
    for name, ago, offline in (("Drawing office 1", 95, False), ("Drawing office 2", 12, False), ("Van 3", 180, True)):
        since = at - timedelta(minutes=ago)
        machine = activations.activate(
            license=license, fingerprint=f"demo-machine-{name.lower().replace(' ', '-')}", name=name, by=BY, at=since
        ).activation
        lease = leases.check_out(
            license=license, fingerprint=machine.fingerprint, activation=machine, offline=offline, by=BY, at=since
        ).lease
        if not offline:
            leases.renew(lease=lease, at=at, ttl=timedelta(hours=8))


def _person(email: str, role: str, *, staff: bool = False) -> dict[str, str]:
    users: Any = get_user_model().objects
    password = "-".join(secrets.choice(WORDS) for _ in range(4)) + f"-{secrets.randbelow(9000) + 1000}"
    user = users.filter(email=email).first() or users.create_user(email=email)
    user.set_password(password)
    user.is_staff, user.is_superuser = staff, staff and role == "admin"
    user.save()
    if staff and role in RIGHTS:
        group, _ = Group.objects.get_or_create(name=role)
        ours = ("licensing", "billing") if role != "sales" else ("licensing",)
        views = Permission.objects.filter(content_type__app_label__in=ours, codename__startswith="view_")
        group.permissions.set([*views, *Permission.objects.filter(codename__in=RIGHTS[role])])
        user.groups.set([group])
    return {"email": email, "password": password, "role": role}


def _credential(name: str, customer: Customer | None, at: datetime) -> dict[str, Any]:
    for old in Credential.objects.filter(name=name, customer=customer, revoked_at=None):
        credentials.revoke(credential=old, by=BY, at=at, reason="replaced by seed_demo")
    scopes = [scope for scope, shared in credentials.SCOPES.items() if shared or customer is None]
    row, secret = credentials.create(name=name, scopes=scopes, customer=customer, by=BY, at=at)
    return {
        "id": str(row.pk),
        "name": name,
        "customer": customer.code if customer else None,
        "secret": secret,
        "scopes": row.scopes,
    }
