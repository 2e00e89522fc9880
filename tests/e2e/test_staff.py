"""Staff find their way into the admin, in a real browser."""

from datetime import UTC, datetime

import pytest
from playwright.sync_api import expect

from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)


def test_staff_sign_in_and_open_the_list_of_licenses(page):
    person = factories.make_user(is_staff=True, is_superuser=True)
    license = factories.make_license(at=datetime.now(UTC))

    page.goto("/admin/")
    page.locator("[name=username]").fill(person.email)
    page.locator("[name=password]").fill(factories.PASSWORD)
    page.locator("[name=password]").press("Enter")
    page.wait_for_url("**/admin/")
    page.goto("/admin/licensing/license/")

    expect(page.locator("#result_list")).to_contain_text(license.customer.name)


def test_the_portal_leads_staff_to_the_admin(page):
    person = factories.make_user(is_staff=True)
    page.goto("/")
    page.get_by_label("Email").fill(person.email)
    page.get_by_label("Password").fill(factories.PASSWORD)
    page.get_by_role("button", name="Sign in").click()

    page.get_by_role("link", name="Staff admin", exact=True).click()

    page.wait_for_url("**/admin/")
