"""Changes of scheme or plan from the staff admin: previewed with their money, made, scheduled, undone."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client

from billing import changes
from licensing.catalog import Grant
from licensing.models import License, PlanRevision, SchemeChange
from tests.admin.conftest import act, last_entry, page, recorded, sign_in, text_of
from tests.factories import BY, make_license, make_plan, make_price, make_revision

pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)
NONE = Grant("calls", "allowance", meter="calls", amount=Decimal(0), overage="charge")
YEAR = NOW.year + 1
LATER = {"starts_at_0": f"{YEAR}-03-01", "starts_at_1": "00:00"}


@pytest.fixture
def license() -> License:
    """Ten seats at 31 a month each."""
    made = make_license(at=NOW - timedelta(days=60), seat_limit=10, duration=None)
    make_price(plan=made.plan_revision.plan, components=[{"kind": "seats", "amount": "31.00"}])
    return made


@pytest.fixture
def metered(license: License) -> PlanRevision:
    """The same product by usage, for a fee of 77."""
    plan = make_plan(product=license.product, name="Metered")
    make_price(plan=plan, components=[{"kind": "flat", "amount": "77.00"}])
    return make_revision(plan=plan, scheme="usage", grants=[NONE], seat_limit=None, duration=None)


def asked(revision: PlanRevision, **values: str) -> dict[str, Any]:
    return {"plan_revision": revision.pk, "starts_at_0": "", "starts_at_1": "", "reason": "Up"} | values


def seen(response: Any) -> str:
    [found] = re.findall(r'name="seen" value="(\w+)"', text_of(response))
    return str(found)


def test_shows_money_and_limits_before_anything_happens(staff: Client, license: License, metered: PlanRevision) -> None:
    before, entries = License.objects.values().get(), recorded().count()

    opened = text_of(staff.get(act(license, "change-terms")))
    shown = staff.post(act(license, "change-terms"), asked(metered, **LATER))

    text = text_of(shown)
    assert ("Preview" in opened, "Preview" in text) == (True, False)
    assert shown.status_code == 200
    assert f"March {YEAR} without the change: 310.00 EUR without tax" in text
    assert f"March {YEAR} with the change: 77.00 EUR without tax" in text
    assert "10 seats" in text
    assert "no limit" in text
    assert (License.objects.values().get(), recorded().count()) == (before, entries)
    assert not SchemeChange.objects.exists()


def test_changes_now_once_confirmed_and_undoes_it(staff: Client, license: License, metered: PlanRevision) -> None:
    shown = staff.post(act(license, "change-terms"), asked(metered))
    done = staff.post(act(license, "change-terms"), asked(metered, seen=seen(shown)))

    license.refresh_from_db()
    assert (done.status_code, license.scheme, license.seat_limit) == (302, "usage", None)
    assert (last_entry().reason, last_entry().actor_label) == ("Up", staff.user.email)  # type: ignore[attr-defined]

    assert "is taken back as if it had never been" in text_of(staff.get(act(license, "undo-change")))
    undone = staff.post(act(license, "undo-change"), {"reason": "Not so"})
    again = staff.post(act(license, "undo-change"), {"reason": "Not so"})

    license.refresh_from_db()
    assert (undone.status_code, again.status_code, license.scheme, license.seat_limit) == (302, 422, "seats", 10)
    assert last_entry().action == "license.change_undone"
    assert act(license, "undo-change") not in text_of(staff.get(page(license)))


@pytest.mark.parametrize("other", ["inputs", "license"])
def test_what_was_not_previewed_is_previewed_again(
    staff: Client, license: License, metered: PlanRevision, other: str
) -> None:
    shown = staff.post(act(license, "change-terms"), asked(metered, **LATER))
    values = asked(metered, seen=seen(shown))
    if other == "license":
        values |= LATER
        License.objects.filter(pk=license.pk).update(revision=license.revision + 1)

    again = staff.post(act(license, "change-terms"), values)

    assert (again.status_code, seen(again) != values["seen"]) == (200, True)
    assert not SchemeChange.objects.exists()


def test_schedules_and_cancels(staff: Client, license: License, metered: PlanRevision) -> None:
    shown = staff.post(act(license, "change-terms"), asked(metered, **LATER))
    staff.post(act(license, "change-terms"), asked(metered, **LATER, seen=seen(shown)))

    change = SchemeChange.objects.get()
    assert (change.state, change.starts_at) == ("scheduled", datetime(YEAR, 3, 1, tzinfo=UTC))
    assert "is called off" in text_of(staff.get(act(license, "undo-change")))
    assert staff.post(act(change, "cancel"), {"reason": "No"}).status_code == 302
    assert staff.post(act(change, "cancel"), {"reason": "No"}).status_code == 422
    change.refresh_from_db()
    assert change.state == "cancelled"


def test_only_the_last_change_is_undone(staff: Client, license: License, metered: PlanRevision) -> None:
    first = changes.change(license=license, plan_revision=metered, by=BY, at=NOW - timedelta(days=2))
    back = PlanRevision.objects.get(pk=license.plan_revision_id)
    second = changes.change(license=license, plan_revision=back, by=BY, at=NOW - timedelta(days=1))

    refused = staff.post(act(first, "undo"), {"reason": "x"})
    done = [staff.post(act(each, "undo"), {"reason": "x"}).status_code for each in (second, first)]

    assert "Undo that one first." in text_of(refused)
    assert (refused.status_code, done) == (422, [302, 302])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"starts_at_0": "2001-01-01", "starts_at_1": "00:00"}, "This instant is past."),
        ({"starts_at_0": "2051-01-01", "starts_at_1": "00:00"}, "three years ahead at most"),
        ({"reason": " "}, "This field is required."),
    ],
)
def test_what_cannot_be_is_said(
    staff: Client, license: License, metered: PlanRevision, values: dict[str, str], said: str
) -> None:
    refused = staff.post(act(license, "change-terms"), asked(metered, **values))
    foreign = staff.post(act(license, "change-terms"), asked(make_revision()))

    assert (refused.status_code, foreign.status_code) == (422, 422)
    assert said in text_of(refused)


def test_needs_the_permission(license: License, metered: PlanRevision) -> None:
    change = changes.change(license=license, plan_revision=metered, by=BY, at=NOW)
    client = sign_in("licensing.view_license", "licensing.view_schemechange")

    for row, name in ((license, "change-terms"), (license, "undo-change"), (change, "cancel"), (change, "undo")):
        assert client.post(act(row, name), asked(metered)).status_code == 403
        assert act(row, name) not in text_of(client.get(page(row)))
