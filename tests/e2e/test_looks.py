"""Every page of the portal, wide and on a phone, light and dark: accessible, and never wider than the screen."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.urls import reverse

from billing.models import Statement, StatementLine
from licensing import activations, lifecycle, seats, webhooks
from licensing.catalog import Grant
from licensing.models import Counter, OutboxMessage, WebhookDelivery
from tests import factories
from tests.e2e.conftest import PHONE, WIDE

pytestmark = pytest.mark.django_db(transaction=True)
LONG = "somebody.with-a-rather-long-name.of-the-department-for-everything@subsidiary.example.com"


@pytest.fixture
def shown():
    """Return a member who owns a license in every state, and the paths of their pages."""
    now = datetime.now(UTC)
    member = factories.make_member(customer=factories.make_customer(name="Acme " + "and Sons " * 6))
    revision = factories.make_revision(grace_period=timedelta(days=14), seat_limit=40)

    def make(**values):
        days_ago = values.pop("days_ago", 30)
        return factories.make_license(
            customer=member.customer, plan_revision=revision, at=now - timedelta(days=days_ago), **values
        )

    plain, over, held, revoked = make(), make(seat_limit=3), make(), make()
    grace, expired = make(days_ago=370), make(days_ago=400)
    for number in range(30):
        seats.assign(license=plain, holder=f"person{number}@example.com", by=factories.BY, at=now)
    seat = seats.assign(license=plain, holder=LONG, by=factories.BY, at=now).seat
    seats.reserve(license=plain, holder="new@example.com", by=factories.BY, at=now)
    blocked = seats.assign(license=plain, holder="a.blocked@example.com", by=factories.BY, at=now).seat
    seats.block(seat=blocked, by=factories.BY, at=now, reason="shared")
    activations.activate(license=plain, fingerprint="f" * 32, name="m" * 80, by=factories.BY, at=now)
    for number in range(3):
        seats.assign(license=over, holder=f"p{number}@example.com", by=factories.BY, at=now)
    lifecycle.change_limits(license=over, by=factories.BY, at=now, seat_limit=1)
    lifecycle.hold(license=held, reason="unpaid", by=factories.BY, at=now)
    lifecycle.revoke(license=revoked, by=factories.BY, at=now, reason="ended")
    floating = factories.make_license(customer=member.customer, at=now, seat_kind="floating", duration=None)
    metered, statement = _in_use_and_billed(member, now)
    licenses = (plain, over, held, revoked, grace, expired, floating)
    paths = [
        "/",
        "/?status=revoked",
        "/?product=nonsense",
        *(reverse("portal:license", args=[license.pk]) for license in licenses),
        reverse("portal:license", args=[plain.pk]) + "?q=nobody",
        reverse("portal:license", args=[plain.pk]) + "?page=2",
        reverse("portal:release-seat", args=[seat.pk]),
        reverse("portal:transfer-seat", args=[seat.pk]),
        reverse("portal:download-key", args=[plain.pk]),
        reverse("portal:license", args=[metered.pk]),
        reverse("portal:usage", args=[metered.pk]) + "?days=90&by=region",
        reverse("portal:usage", args=[plain.pk]),
        reverse("portal:statements"),
        reverse("portal:statement", args=[statement.pk]),
        reverse("portal:webhooks"),
        *_webhooks(member, now),
        reverse("account_change_password"),
        reverse("account_logout"),
        "/nowhere/",
    ]
    return member, paths, over


def _webhooks(member, now):
    """Return the pages of an endpoint with a long address that fails, and of what can be done to it."""
    url = "https://hooks.example.com/" + "a-rather-long-path/" * 8
    endpoint, _ = webhooks.create(url=url, customer=member.customer, by=factories.BY, at=now)
    message = webhooks.test(endpoint=endpoint, by=factories.BY, at=now)
    WebhookDelivery.objects.create(
        created_at=now,
        endpoint=endpoint,
        message_id=message,
        event_type="webhook.test",
        attempt=1,
        at=now,
        status=500,
        duration_ms=12,
        answer="<html>" + "x" * 400,
    )
    OutboxMessage.objects.filter(pk=message).update(given_up_at=now, attempts=22)
    return [
        reverse("portal:webhook", args=[endpoint.pk]),
        reverse("portal:change-webhook", args=[endpoint.pk]),
        reverse("portal:webhook-act", args=[endpoint.pk, "rotate"]),
        reverse("portal:replay-webhook", args=[endpoint.pk, message]),
    ]


def _in_use_and_billed(member, now):
    """Return a license with an allowance that is used up, and a statement with a line for it and one against it."""
    meter = factories.make_meter(code="calls", unit="calls", dimensions=["region"])
    grant = Grant("calls", kind="allowance", meter="calls", amount=Decimal(100), overage="refuse")
    license = factories.make_license(
        customer=member.customer, at=now - timedelta(days=90), scheme="usage", grants=[grant]
    )
    for days in range(1, 40):
        factories.make_usage(
            license=license,
            revision=meter,
            at=now - timedelta(days=days),
            quantity=1_000_000 + days,
            dimensions={"region": "a-region-with-a-rather-long-name-" * 4},
        )
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    Counter.objects.create(
        license=license,
        meter="calls",
        starts_at=month,
        ends_at=(month + timedelta(days=32)).replace(day=1),
        allowance=100,
        ceiling=100,
        used=99,
        reserved=1,
    )
    statement = Statement.objects.create(
        created_at=now, customer=member.customer, currency="EUR", starts_at=month - timedelta(days=30), ends_at=month,
        subtotal_minor=123_456_789_00, tax_rate=19, tax_minor=23_456_789_91, total_minor=146_913_578_91,
    )  # fmt: skip
    for position, amount in ((1, 123_456_789_00), (2, -5)):
        StatementLine.objects.create(
            created_at=now, statement=statement, position=position, kind="adjustment", license=license,
            description="calls, 12,345,678 used, 10,000 included " * 3, reason="A client sent it twice.",
            starts_at=statement.starts_at, ends_at=statement.ends_at, quantity=Decimal("12345678.123456"),
            unit_amount=Decimal("0.000123456789"), amount_minor=amount,
        )  # fmt: skip
    return license, statement


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_every_page_is_accessible_and_fits(open_page, sign_in, shown, assert_accessible, assert_fits, scheme, size):
    member, paths, over = shown
    page = open_page(viewport=size, color_scheme=scheme)
    for path in (
        "/accounts/login/",
        "/accounts/password/reset/",
        "/accounts/password/reset/done/",
        "/accounts/signup/",
    ):
        page.goto(path)
        assert_accessible(page)
        assert_fits(page)

    sign_in(page, member)
    for path in paths:
        page.goto(path)
        assert_accessible(page)
        assert_fits(page)

    page.goto(reverse("portal:license", args=[over.pk]))
    page.get_by_label("Email address of the person").fill(LONG)
    page.get_by_role("button", name="Assign a seat").click()
    page.get_by_role("alert").wait_for()
    assert_accessible(page)
    assert_fits(page)

    page.goto(reverse("portal:download-key", args=[over.pk]))
    page.get_by_label("Password").fill(factories.PASSWORD)
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Reason").wait_for()
    assert_accessible(page)
    assert_fits(page)


def test_dark_mode_is_dark(open_page):
    page = open_page(color_scheme="dark")
    page.goto("/accounts/login/")

    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )

    assert max(red, green, blue) < 60


def test_a_narrow_phone_and_large_text_still_fit(open_page, sign_in, shown, assert_fits):
    member, paths, _ = shown
    page = open_page(viewport={"width": 320, "height": 640})
    sign_in(page, member)

    for path in paths[:5]:
        page.goto(path)
        assert_fits(page)


def test_what_has_the_focus_can_be_seen(open_page, sign_in, shown):
    member, paths, _ = shown
    page = open_page()
    sign_in(page, member)
    page.goto(paths[3])

    for _ in range(12):
        page.keyboard.press("Tab")
        width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 2, page.evaluate("document.activeElement.outerHTML")
