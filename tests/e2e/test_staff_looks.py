"""The staff pages of billing, anomalies, jobs and webhooks: accessible, wide and light, and on a phone in the dark."""

from collections.abc import Callable
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Page

from billing import models as billed
from licensing import models
from licensing.admin.base import list_of, page_of
from tests import factories
from tests.admin.test_every_page import first, world
from tests.e2e.conftest import PHONE, WIDE

__all__ = ["world"]
pytestmark = pytest.mark.django_db(transaction=True)
BILLING = ("Statement", "StatementLine", "BillingAccount", "Payment", "Reversal", "GatewayInvoice", "GatewayEvent")
BILLING += ("DunningStep", "DunningHold", "Meter", "MeterRevision", "Price", "PriceRevision", "Rollout")
OTHERS = ("Anomaly", "JobState", "WebhookEndpoint", "WebhookDelivery", "OutboxMessage", "CreditGrant", "Reservation")


def staff_pages() -> list[str]:
    """Return the addresses of lists, of a row's page each, and of what can be done and looked up there."""
    shown = [getattr(billed, name) for name in BILLING] + [getattr(models, name) for name in OTHERS]
    statement, anomaly, license = first(billed.Statement), first(models.Anomaly), first(models.License)
    acts = [
        *(page_of(statement).replace("change/", f"act/{act}/") for act in ("close", "adjust")),
        *(page_of(anomaly).replace("change/", f"act/{act}/") for act in ("resolve", "snooze")),
    ]
    asked = f"{reverse('admin:usage')}?license={license.pk}"
    lists = [list_of(model) for model in shown]
    nothing = [list_of(model, q="nobody-at-all") for model in shown[:1]]
    return [
        reverse("admin:index"),
        asked,
        reverse("admin:rules"),
        *lists,
        *nothing,
        *map(page_of, map(first, shown)),
        *acts,
    ]


@pytest.mark.parametrize(
    ("size", "scheme", "each"), [(WIDE, "light", 1), (PHONE, "dark", 8)], ids=["every page, wide", "some, on a phone"]
)
def test_staff_pages_are_accessible(
    open_page: Callable[..., Page], assert_accessible: Any, world: dict[str, str], size: Any, scheme: str, each: int
) -> None:
    person = factories.make_user(is_staff=True, is_superuser=True)
    page = open_page(viewport=size, color_scheme=scheme)
    page.goto("/admin/")
    page.locator("[name=username]").fill(person.email)
    page.locator("[name=password]").fill(factories.PASSWORD)
    page.locator("[name=password]").press("Enter")
    page.wait_for_url("**/admin/")

    found = []
    for path in staff_pages()[::each]:
        answer = page.goto(path)
        assert answer is not None
        assert answer.ok, path
        try:
            assert_accessible(page)
        except AssertionError as error:
            found.append(str(error))

    assert not found, "\n".join(found)
