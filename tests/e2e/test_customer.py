"""What a customer does in the portal, in a real browser."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from playwright.sync_api import expect

from licensing import seats
from licensing.catalog import Grant
from licensing.models import AuditEntry, Seat
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)


def make_license(member, **terms):
    now = datetime.now(UTC)
    return factories.make_license_and_key(customer=member.customer, at=now, **terms)


def test_a_manager_assigns_seats_until_refused_and_hands_them_on(page, sign_in):
    member = factories.make_member(role="license_manager")
    license, _ = make_license(member, seat_limit=2)
    sign_in(page, member)
    page.get_by_role("link", name=license.product.name).click()

    for holder in ("ada@example.com", "grace@example.com"):
        page.get_by_label("Email address of the person").fill(holder)
        page.get_by_role("button", name="Assign a seat").click()
        expect(page.get_by_role("status")).to_contain_text(f"{holder} now has a seat.")
    page.get_by_label("Email address of the person").fill("linus@example.com")
    page.get_by_role("button", name="Assign a seat").click()

    expect(page.get_by_role("alert")).to_contain_text("All 2 seats are taken.")
    expect(page.get_by_label("Email address of the person")).to_have_value("linus@example.com")
    expect(page.get_by_label("Email address of the person")).to_be_focused()

    page.get_by_role("link", name="Transfer the seat of ada@example.com").click()
    page.get_by_label("Email address of the new holder").fill("linus@example.com")
    page.get_by_role("button", name="Transfer the seat").click()
    expect(page.get_by_role("status")).to_contain_text("linus@example.com has the seat of ada@example.com now.")

    page.get_by_role("link", name="Release the seat of grace@example.com").click()
    page.get_by_label("Reason").fill("left the company")
    page.get_by_role("button", name="Release the seat").click()
    expect(page.get_by_role("status")).to_contain_text("The seat of grace@example.com is released.")
    expect(page.get_by_text("1 of 2 seats in use")).to_be_visible()
    assert [seat.holder for seat in Seat.objects.filter(released_at=None)] == ["linus@example.com"]


def test_a_page_left_open_and_sent_again_does_no_harm(page, sign_in):
    member = factories.make_member()
    license, _ = make_license(member)
    seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=datetime.now(UTC))
    sign_in(page, member)
    page.get_by_role("link", name=license.product.name).click()
    page.get_by_role("link", name="Release the seat of ada@example.com").click()
    page.get_by_role("button", name="Release the seat").click()
    page.get_by_role("status").wait_for()

    page.go_back()
    if page.get_by_role("button", name="Release the seat").is_visible():
        page.get_by_role("button", name="Release the seat").click()
    else:
        expect(page.get_by_text("was released on")).to_be_visible()

    assert AuditEntry.objects.filter(action="seat.released").count() == 1


def test_an_owner_downloads_the_key_after_the_password_and_a_reason(page, sign_in):
    member = factories.make_member()
    license, key = make_license(member)
    sign_in(page, member)
    page.get_by_role("link", name=license.product.name).click()

    page.get_by_role("link", name="Download the key").click()
    expect(page.get_by_role("heading", name="Confirm that it is you")).to_be_visible()
    page.get_by_label("Password").fill(factories.PASSWORD)
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Reason").fill("new build server")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the key").click()

    assert download.value.path().read_text() == f"{key}\n"
    assert download.value.suggested_filename == f"{license.product.code}-license-key-{key[-5:]}.txt"
    assert key not in page.content()
    assert key not in page.url
    expect(page.get_by_role("heading", name="Download the license key")).to_be_visible()
    assert AuditEntry.objects.get(action="key.revealed").reason == "new build server"


def test_after_signing_out_nothing_is_shown_any_more(page, sign_in):
    member = factories.make_member()
    license, _ = make_license(member)
    sign_in(page, member)
    page.get_by_role("link", name=license.product.name).click()
    page.get_by_role("heading", name="Seats").wait_for()

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()

    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_viewer_sees_and_cannot_change(page, sign_in):
    member = factories.make_member(role="viewer")
    license, _ = make_license(member)
    seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=datetime.now(UTC))
    sign_in(page, member)
    page.get_by_role("link", name=license.product.name).click()

    expect(page.get_by_text("ada@example.com")).to_be_visible()
    expect(page.get_by_role("button", name="Assign a seat")).to_have_count(0)
    expect(page.get_by_role("link", name="Release")).to_have_count(0)
    expect(page.get_by_role("link", name="Download the key")).to_have_count(0)


def test_it_all_works_from_the_keyboard_and_without_javascript(open_page, sign_in):
    member = factories.make_member()
    license, _ = make_license(member)
    page = open_page(java_script_enabled=False)
    sign_in(page, member)

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.get_by_role("link", name=license.product.name).press("Enter")
    page.get_by_label("Email address of the person").fill("ada@example.com")
    page.get_by_label("Email address of the person").press("Enter")

    expect(page.get_by_role("status")).to_contain_text("ada@example.com now has a seat.")


def test_a_member_sees_what_is_used_and_how_it_came_to_be_without_javascript(open_page, sign_in):
    member = factories.make_member(role="viewer")
    now = datetime.now(UTC)
    meter = factories.make_meter(code="calls", unit="calls", dimensions=["region"])
    grant = Grant("calls", kind="allowance", meter="calls", amount=Decimal(100), overage="charge")
    license, _ = make_license(member, scheme="usage", grants=[grant])
    for region, quantity in (("eu", 30), ("us", 10)):
        factories.make_usage(license=license, revision=meter, at=now, quantity=quantity, dimensions={"region": region})
    page = open_page(java_script_enabled=False)
    sign_in(page, member)

    page.get_by_role("link", name=license.product.name).click()
    page.get_by_role("link", name="See the usage").click()
    page.get_by_label("Apart by").select_option("region")
    page.get_by_role("button", name="Show").click()

    expect(page.get_by_role("img", name="by day")).to_be_visible()
    expect(page.get_by_role("row", name="eu 30 75 %")).to_be_visible()
    page.get_by_text("Every day as a table").click()
    expect(page.get_by_role("cell", name="40", exact=True)).to_be_visible()

    page.get_by_role("link", name="Statements").click()
    expect(page.get_by_role("heading", name="Statements are for owners and billing")).to_be_visible()
