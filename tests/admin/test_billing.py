"""Meters, prices and billing accounts from the staff admin, and the page of usage."""

from datetime import timedelta
from decimal import Decimal
from urllib.parse import urlencode

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import accounts, meters, prices
from billing.models import BillingAccount, Meter, MeterRevision, Price, PriceRevision, Statement, UsageEvent
from licensing import catalog
from licensing.catalog import Grant
from licensing.models import AuditEntry, Counter, CreditGrant
from tests.admin.conftest import act, adding, last_entry, page, sign_in, text_of
from tests.factories import AT, BY, make_customer, make_license, make_meter, make_plan, make_price, make_usage

pytestmark = pytest.mark.django_db
USAGE = reverse("admin:usage")
FLAT = [{"kind": "flat", "amount": "49.00"}]


def counting(**values: str) -> dict[str, str]:
    return {"aggregation": "sum", "unit": "calls", "dimensions": "", "filters": "", "unique_by": ""} | values


# --- meters ---


def test_makes_and_describes_a_meter(staff: Client) -> None:
    staff.post(adding(Meter), {"code": "calls", "name": "Calls", "description": ""})
    meter = Meter.objects.get()
    staff.post(page(meter), {"code": "other", "name": "API calls", "description": "Of the API"})

    meter.refresh_from_db()
    assert (meter.code, meter.name, meter.description) == ("calls", "API calls", "Of the API")
    assert last_entry().action == "meter.described"
    assert last_entry().actor_label == staff.user.email  # type: ignore[attr-defined]


def test_drafts_edits_and_publishes_how_a_meter_counts(staff: Client) -> None:
    meter = meters.create(code="people", name="People", by=BY, at=AT)

    staff.post(act(meter, "draft"))
    draft = MeterRevision.objects.get()
    edited = staff.post(
        page(draft),
        counting(
            aggregation="unique",
            dimensions="person\nregion",
            filters="region = eu, us",
            unique_by="person",
            unit="people",
        ),
    )
    published = staff.post(act(draft, "publish"), {"reason": "Go"})

    draft.refresh_from_db()
    assert (edited.status_code, published.status_code) == (302, 302)
    assert (draft.aggregation, draft.dimensions, draft.filters, draft.unique_by, draft.state) == (
        "unique",
        ["person", "region"],
        {"region": ["eu", "us"]},
        "person",
        "published",
    )
    assert (last_entry().action, last_entry().reason) == ("meter_revision.published", "Go")


def test_shows_lists_as_lines_and_keeps_them(staff: Client) -> None:
    meter = meters.create(code="calls", name="Calls", by=BY, at=AT)
    draft = meters.draft(
        meter=meter, by=BY, at=AT, dimensions=["region", "tier"], filters={"region": ["eu", "us"]}, unit="calls"
    )

    shown = text_of(staff.get(page(draft)))
    staff.post(page(draft), counting(dimensions="region\r\ntier", filters="region = eu, us"))

    assert "region\ntier</textarea>" in shown
    assert "region = eu, us</textarea>" in shown
    assert not AuditEntry.objects.filter(action="meter_revision.edited").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"aggregation": "unique"}, "To count different values, name one of the dimensions."),
        ({"dimensions": "region\nA b"}, "No. 2: A dimension is named in lower case letters"),
        ({"filters": "region = eu"}, "Region: &#x27;region&#x27; is none of the meter&#x27;s dimensions."),
        ({"filters": "region"}, "Write a dimension, = and the values that count"),
        ({"dimensions": "region", "filters": "region ="}, "Region: A filter names 1 to 50 values that count."),
    ],
)
def test_what_a_meter_cannot_be_is_said_beside_its_field(staff: Client, values: dict[str, str], said: str) -> None:
    draft = meters.draft(meter=meters.create(code="calls", name="Calls", by=BY, at=AT), by=BY, at=AT)

    response = staff.post(page(draft), counting(**values))

    assert response.status_code == 200
    assert said in text_of(response)
    draft.refresh_from_db()
    assert draft.unit == ""


def test_a_published_meter_revision_is_only_read_and_says_what_differs(staff: Client) -> None:
    first = make_meter(code="calls")
    second = meters.draft(meter=first.meter, by=BY, at=AT, aggregation="count")

    assert staff.post(page(first), counting()).status_code == 403
    assert 'name="unit"' not in text_of(staff.get(page(first)))
    assert "Different from" in text_of(staff.get(page(second)))
    assert staff.post(act(first, "retire"), {"reason": "Gone"}).status_code == 302
    assert staff.post(act(first, "retire"), {"reason": "Gone"}).status_code == 422
    assert staff.post(act(second, "discard")).status_code == 302


def test_a_meters_page_says_which_plans_it_cannot_serve(staff: Client) -> None:
    meter = make_meter(code="storage", aggregation="max").meter
    grant = Grant("space", kind="allowance", meter="storage", amount=Decimal(5), overage="refuse")
    revision = catalog.draft(plan=make_plan(code="pro"), by=BY, at=AT, grants=[grant])
    catalog.publish(revision=revision, by=BY, at=AT)

    assert "is counted afterwards, so more cannot be refused" in text_of(staff.get(page(meter)))


# --- prices ---


def test_prices_a_plan_and_publishes_for_later(staff: Client) -> None:
    plan = make_plan(code="pro", name="Pro")

    staff.post(adding(Price), {"plan": plan.pk, "currency": "EUR"})
    price = Price.objects.get()
    staff.post(act(price, "draft"))
    draft = PriceRevision.objects.get()
    staff.post(page(draft), {"components": '[{"kind": "flat", "amount": "49.00"}]'})
    asked = text_of(staff.get(act(draft, "publish")))
    staff.post(act(draft, "publish"), {"effective_at_0": "2099-01-01", "effective_at_1": "00:00", "reason": "New year"})

    draft.refresh_from_db()
    assert "Flat fee: 49.00 EUR a month." in asked
    assert (draft.components, draft.state, draft.effective_at and draft.effective_at.year) == (FLAT, "published", 2099)
    assert "Flat fee: 49.00 EUR a month." in text_of(staff.get(page(draft)))
    assert staff.post(act(draft, "retire"), {"reason": "Not yet"}).status_code == 302
    assert last_entry().action == "price_revision.retired"


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ("[{", "This is no JSON"),
        ('[{"kind": "gift"}]', "No. 1, kind: Give one of flat, seats, usage, minimum, discount."),
        ('[{"kind": "flat", "amount": "1"}, {"kind": "flat"}]', "No. 2, amount: &#x27;amount&#x27; is missing."),
        (
            '[{"kind": "usage", "meter": "nobody", "model": "per_unit", "amount": "1"}]',
            "No. 1, meter: There is no meter &#x27;nobody&#x27;. Make it first.",
        ),
    ],
)
def test_what_a_price_cannot_be_is_said_with_its_place(staff: Client, components: str, said: str) -> None:
    price = prices.create(plan=make_plan(), currency="EUR", by=BY, at=AT)
    draft = prices.draft(price=price, components=FLAT, by=BY, at=AT)

    response = staff.post(page(draft), {"components": components})

    assert response.status_code == 200
    assert said in text_of(response)
    draft.refresh_from_db()
    assert draft.components == FLAT


def test_a_price_in_effect_is_not_taken_back(staff: Client) -> None:
    revision = make_price(plan=make_plan(), components=FLAT)

    assert act(revision, "retire") not in text_of(staff.get(page(revision)))
    assert staff.post(act(revision, "retire"), {"reason": "x"}).status_code == 422
    assert "&lt;dl" not in text_of(staff.get(page(revision)))
    assert staff.post(page(revision), {"components": "[]"}).status_code == 403


# --- accounts ---


def test_opens_and_changes_a_billing_account(staff: Client) -> None:
    customer = make_customer()
    values = {"currency": "EUR", "tax_rate": "19", "tax_id": "DE1", "address": "Main Street 1"}

    staff.post(adding(BillingAccount), {"customer": customer.pk, **values})
    account = BillingAccount.objects.get()
    staff.post(page(account), values | {"tax_rate": "7.5"})
    refused = staff.post(page(account), values | {"currency": "euros"})

    account.refresh_from_db()
    assert (account.customer, account.tax_rate, account.currency) == (customer, Decimal("7.5"), "EUR")
    assert last_entry().action == "billing_account.changed"
    assert "Main Street" not in str(last_entry().after)
    assert refused.status_code == 200


def test_viewing_allows_no_change() -> None:
    account = accounts.describe(customer=make_customer(), currency="EUR", by=BY, at=AT)
    meter, price = make_meter(), make_price(plan=make_plan(), components=FLAT)
    client = sign_in(
        "billing.view_billingaccount", "billing.view_meter", "billing.view_meterrevision", "billing.view_pricerevision"
    )

    assert client.get(page(account)).status_code == 200
    assert client.post(page(account), {"currency": "USD"}).status_code == 403
    assert client.post(act(meter.meter, "draft")).status_code == 403
    for row, name in ((meter, "retire"), (price, "retire"), (meter, "discard")):
        assert client.get(act(row, name)).status_code == 403
        assert client.post(act(row, name), {"reason": "x"}).status_code == 403
    for model in (Meter, Price, BillingAccount):
        assert client.get(adding(model)).status_code == 403


# --- usage ---


def test_shows_counters_totals_and_events_of_a_license(staff: Client) -> None:
    license, meter = make_license(), make_meter(code="calls")
    make_usage(license=license, revision=meter, at=AT, quantity=5, event_id="first", dimensions={"region": "eu"})
    make_usage(license=license, revision=meter, at=AT + timedelta(hours=1), quantity=7, event_id="second")
    Counter.objects.create(
        license=license, meter="calls", starts_at=AT, ends_at=AT + timedelta(days=9), allowance=1000, used=1234
    )

    shown = text_of(staff.get(USAGE, {"license": str(license.pk)}))
    one = text_of(staff.get(USAGE, {"license": str(license.pk), "event": "first"}))

    assert "1,234" in shown
    assert shown.index("second") < shown.index("first")
    assert "region" in one
    assert "second" not in one
    assert f"?license={license.pk}" in text_of(staff.get(page(license)))


@pytest.mark.parametrize("asked", ["", "no id", "01890000-0000-7000-8000-000000000000"])
def test_asks_for_a_license_it_does_not_know(staff: Client, asked: str) -> None:
    response = staff.get(USAGE, {"license": asked, "before": "nonsense"})

    assert response.status_code == 200
    assert ("There is no license with this id." in text_of(response)) is bool(asked)


@pytest.mark.parametrize("minutes", [1, 0], ids=["one after the other", "all at one instant"])
def test_pages_through_many_events(staff: Client, minutes: int) -> None:
    license, meter = make_license(), make_meter()
    for number in range(60):
        make_usage(
            license=license,
            revision=meter,
            at=AT + timedelta(minutes=minutes * number),
            event_id=f"number-{number:02d}",
        )

    first = text_of(staff.get(USAGE, {"license": str(license.pk)}))
    older = first.partition("Older events")[0].rpartition('href="')[2].partition('"')[0].replace("&amp;", "&")
    second = text_of(staff.get(USAGE + older))

    assert "number-59" in first
    assert "number-09" not in first
    assert "number-09" in second
    assert "number-10" not in second


def test_usage_is_for_who_may_see_it() -> None:
    license = make_license()

    assert sign_in("licensing.view_license").get(USAGE, {"license": str(license.pk)}).status_code == 403
    assert sign_in("billing.view_usageevent").get(USAGE, {"license": str(license.pk)}).status_code == 200
    assert Client().get(USAGE).status_code == 302


def test_the_sidebar_leads_to_what_one_may_see() -> None:
    text = text_of(sign_in("billing.view_statement", "billing.view_usageevent").get(reverse("admin:index")))

    assert USAGE in text
    assert reverse("admin:billing_statement_changelist") in text
    assert reverse("admin:billing_meter_changelist") not in text


def test_the_overview_shows_what_is_open_and_what_is_near_its_limit(staff: Client) -> None:
    now = timezone.now()
    license = make_license(at=now)
    for state, days in (("draft", 0), ("draft", 40)):
        Statement.objects.create(
            created_at=now, customer=license.customer, currency="EUR", state=state, subtotal_minor=1250,
            total_minor=1250, starts_at=now - timedelta(days=days + 30), ends_at=now - timedelta(days=days),
        )  # fmt: skip
    for meter, used, reserved in (("calls", 750, 60), ("renders", 70, 0), ("exports", 1000, 0)):
        Counter.objects.create(
            license=license, meter=meter, starts_at=now - timedelta(days=1), ends_at=now + timedelta(days=1),
            allowance=1000, used=used, reserved=reserved,
        )  # fmt: skip

    text = text_of(staff.get(reverse("admin:index")))
    hidden = text_of(sign_in("licensing.view_license").get(reverse("admin:index")))

    assert "Drafts" in text
    assert "25.00 EUR" in text
    assert "81 %" in text
    assert text.index("exports") < text.index("calls")
    assert "renders" not in text
    assert "statement-refresh" in text
    assert "Open statements" not in hidden
    assert "Usage near its limit" not in hidden


def correction_of(event: UsageEvent) -> str:
    query = {"license": event.license_id, "at": event.occurred_at.isoformat(), "event": event.event_id}
    return f"{reverse('admin:correct_usage')}?{urlencode(query)}"


def test_corrects_an_event_by_another_with_a_reason(staff: Client) -> None:
    license, meter = make_license(), make_meter(code="calls", dimensions=["region"])
    event = make_usage(license=license, revision=meter, at=AT, quantity=5, dimensions={"region": "eu"})
    page_of_it = text_of(staff.get(USAGE, {"license": str(license.pk)}))

    shown = staff.get(correction_of(event))
    done = staff.post(correction_of(event), {"quantity": "-2", "reason": "Sent for a test"})

    made = UsageEvent.objects.get(kind="correction")
    assert "Correct…" in page_of_it
    assert event.event_id in text_of(shown)
    assert done.status_code == 302
    assert (made.license_id, made.quantity, made.occurred_at, made.dimensions, made.reason) == (
        license.pk, Decimal(-2), AT, {"region": "eu"}, "Sent for a test",
    )  # fmt: skip
    assert UsageEvent.objects.get(event_id=event.event_id).quantity == 5
    assert "correction: Sent for a test" in text_of(staff.get(USAGE, {"license": str(license.pk)}))


@pytest.mark.parametrize("values", [{"quantity": ""}, {"quantity": "x"}, {"reason": ""}, {"quantity": "1.0000001"}])
def test_corrects_nothing_without_a_number_and_a_reason(staff: Client, values: dict[str, str]) -> None:
    event = make_usage(license=make_license(), revision=make_meter(), at=AT)

    response = staff.post(correction_of(event), {"quantity": "1", "reason": "x"} | values)

    assert response.status_code == 422
    assert UsageEvent.objects.count() == 1


def test_correcting_is_for_who_may() -> None:
    event = make_usage(license=make_license(), revision=make_meter(), at=AT)
    client = sign_in("billing.view_usageevent")

    assert client.get(correction_of(event)).status_code == 403
    assert client.post(correction_of(event), {"quantity": "1", "reason": "x"}).status_code == 403
    assert "Correct…" not in text_of(client.get(USAGE, {"license": str(event.license_id)}))
    assert UsageEvent.objects.count() == 1


def test_there_is_no_correcting_what_is_not_there(staff: Client) -> None:
    event = make_usage(license=make_license(), revision=make_meter(), at=AT)

    for wrong in ({"event": "other"}, {"at": "yesterday"}, {"license": "x"}, {"at": "2026-13-01T00:00:00Z"}):
        query = {"license": event.license_id, "at": event.occurred_at.isoformat(), "event": event.event_id} | wrong
        assert staff.get(f"{reverse('admin:correct_usage')}?{urlencode(query)}").status_code == 404


# --- credit ---


def test_grants_credit_with_a_reason(staff: Client) -> None:
    license = make_license()
    values = {"license": license.pk, "meter": "calls", "amount": "500", "priority": "100", "reason": "Goodwill"}

    refused = staff.post(adding(CreditGrant), values | {"reason": ""})
    backwards = staff.post(adding(CreditGrant), values | {"expires_at_0": "2020-01-01", "expires_at_1": "00:00"})
    staff.post(adding(CreditGrant), values)

    made = CreditGrant.objects.get()
    assert (refused.status_code, backwards.status_code) == (200, 200)
    assert (made.license, made.amount, made.reason) == (license, Decimal(500), "Goodwill")
    assert last_entry().actor_label == staff.user.email  # type: ignore[attr-defined]
    assert str(license.pk) in text_of(staff.get(adding(CreditGrant), {"license": str(license.pk)}))
