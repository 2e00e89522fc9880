"""Drafts that wait, machines and seats over a change of hands or plan."""

from datetime import timedelta

import pytest

from licensing import activations, catalog, lifecycle, seats
from licensing.activations import FingerprintInUse
from licensing.models import License
from licensing.seats import LicenseNotUsable
from tests.factories import AT, BY, make_customer, make_license, make_plan, make_product, make_revision

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
MACHINE = "m" * 20


def test_it_counts_a_draft_from_its_issue():
    revision = make_revision(duration=30 * DAY, maintenance=90 * DAY, grace_period=5 * DAY)
    draft = lifecycle.prepare(customer=make_customer(), plan_revision=revision, by=BY, at=AT)

    license, _ = lifecycle.issue_prepared(license=draft, by=BY, at=AT + 60 * DAY)

    assert license.starts_at == AT + 60 * DAY
    assert license.expires_at == AT + 90 * DAY
    assert license.grace_until == AT + 95 * DAY
    assert license.maintenance_until == AT + 150 * DAY
    assert lifecycle.status_of(license, AT + 60 * DAY) == "active"


def test_it_keeps_the_start_and_expiry_a_draft_was_given():
    revision = make_revision(duration=30 * DAY)
    draft = lifecycle.prepare(
        customer=make_customer(),
        plan_revision=revision,
        by=BY,
        at=AT,
        starts_at=AT + DAY,
        expires_at=AT + 9 * DAY,
    )

    license, _ = lifecycle.issue_prepared(license=draft, by=BY, at=AT + 2 * DAY)

    assert (license.starts_at, license.expires_at) == (AT + DAY, AT + 9 * DAY)


def test_it_does_not_issue_under_a_revision_retired_since():
    revision = make_revision()
    draft = lifecycle.prepare(customer=make_customer(), plan_revision=revision, by=BY, at=AT)
    catalog.retire(revision=revision, by=BY, at=AT)

    with pytest.raises(lifecycle.NotPublished):
        lifecycle.issue_prepared(license=draft, by=BY, at=AT)


def test_it_does_not_say_yes_to_a_known_machine_of_a_revoked_license():
    license = make_license()
    known = activations.activate(license=license, fingerprint=MACHINE, by=BY, at=AT).activation
    lifecycle.revoke(license=license, by=BY, at=AT, reason="refunded")

    with pytest.raises(LicenseNotUsable):
        activations.activate(license=license, fingerprint=MACHINE, by=BY, at=AT)
    known.refresh_from_db()
    with pytest.raises(LicenseNotUsable):
        activations.heartbeat(activation=known, at=AT)


def test_it_holds_a_machine_to_one_license_of_the_product_over_a_change_of_plan():
    product = make_product()
    loose = make_revision(plan=make_plan(product=product))
    strict = make_revision(plan=make_plan(product=product), fingerprint_scope="product")
    one, two = make_license(plan_revision=loose), make_license(plan_revision=loose)
    for license in (one, two):
        activations.activate(license=license, fingerprint=MACHINE, by=BY, at=AT)

    with pytest.raises(FingerprintInUse):
        lifecycle.change_plan(license=one, plan_revision=strict, by=BY, at=AT + DAY)

    assert License.objects.get(pk=one.pk).plan_revision_id == loose.pk


def test_it_does_not_charge_a_transfer_to_the_new_customers_churn():
    license = make_license(seat_churn_limit=1, churn_window=30 * DAY)
    for number in range(3):
        seats.assign(license=license, holder=f"p{number}@example.com", by=BY, at=AT)
    moved = lifecycle.transfer(license=license, to=make_customer(), by=BY, at=AT + DAY, reason="sold")
    seat = seats.assign(license=moved, holder="new@example.com", by=BY, at=AT + 2 * DAY).seat

    seats.release(seat=seat, by=BY, at=AT + 3 * DAY)

    assert License.objects.get(pk=license.pk).seats_used == 0


def test_it_never_takes_time_away_by_renewing():
    license = make_license(duration=30 * DAY, renewal_basis="from_now", expires_at=AT + 900 * DAY)

    lifecycle.renew(license=license, by=BY, at=AT + DAY)

    assert License.objects.get(pk=license.pk).expires_at == AT + 900 * DAY
