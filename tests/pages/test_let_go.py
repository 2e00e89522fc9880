"""Letting a machine go: by owners and license managers, with what becomes of its floating seat said before."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.urls import reverse

from licensing import activations, leases
from licensing.models import Activation, AuditEntry, Lease, License
from tests import factories
from tests.factories import opened
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db


def url(machine: Activation) -> str:
    return reverse("portal:let-go", args=[machine.pk])


def page_of(machine: Activation) -> str:
    return reverse("portal:license", args=[machine.license_id])


def make_machine(customer: Any = None, **terms: Any) -> Activation:
    license = factories.make_license(customer=customer or factories.make_customer(), **terms)
    return activations.activate(
        license=license, fingerprint="machine-0123456789", name="Plant 7", by=factories.BY, at=TODAY
    ).activation


def check_out(machine: Activation, **more: Any) -> Lease:
    return leases.check_out(
        license=machine.license, fingerprint=machine.fingerprint, activation=machine, by=factories.BY, at=TODAY, **more
    ).lease


def test_it_asks_before_it_lets_a_machine_go(signed_in):
    member = factories.make_member()
    machine = make_machine(member.customer)

    answer = signed_in(member).get(url(machine))

    assert url(machine) in signed_in(member).get(page_of(machine)).text
    assert "Plant 7" in answer.text
    assert "borrowed" not in answer.text
    assert Activation.objects.get().deactivated_at is None


def test_it_lets_a_machine_go_with_its_reason_once(signed_in):
    member = factories.make_member(role="license_manager")
    machine = make_machine(member.customer)
    client = signed_in(member)

    answer = client.post(url(machine), {"reason": "scrapped"}, follow=True)

    assert "Plant 7 is let go." in answer.text
    assert License.objects.get().activations_used == 0
    entry = AuditEntry.objects.get(action="activation.ended")
    assert (opened(entry).actor_label, entry.reason) == (member.user.email, "scrapped")
    assert client.post(url(machine)).status_code == 302
    assert "There is nothing left to do" in client.get(url(machine)).text
    assert AuditEntry.objects.filter(action="activation.ended").count() == 1


def test_it_frees_the_floating_seat_the_machine_has_out(signed_in):
    member = factories.make_member()
    machine = make_machine(member.customer, seat_kind="floating", seat_limit=1)
    check_out(machine)

    signed_in(member).post(url(machine))

    assert License.objects.get().seats_used == 0


def test_it_says_that_a_borrowed_seat_stays_taken(signed_in):
    member = factories.make_member()
    machine = make_machine(member.customer, seat_kind="floating", seat_limit=1)
    check_out(machine, offline=True)

    assert "borrowed a seat to work offline" in signed_in(member).get(url(machine)).text
    signed_in(member).post(url(machine))
    assert License.objects.get().seats_used == 1


def test_it_says_when_the_plan_allows_no_more(signed_in):
    member = factories.make_member()
    machine = make_machine(member.customer, activation_churn_limit=0, churn_window=timedelta(days=365))

    answer = signed_in(member).post(url(machine))

    assert answer.status_code == 409
    assert "the plan allows 0" in answer.text
    assert Activation.objects.get().deactivated_at is None


@pytest.mark.parametrize("role", ["billing", "viewer"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_it_refuses_those_who_only_look(signed_in, role, method):
    member = factories.make_member(role=role)
    machine = make_machine(member.customer)

    assert getattr(signed_in(member), method)(url(machine)).status_code == 403
    assert url(machine) not in signed_in(member).get(page_of(machine)).text
    assert Activation.objects.get().deactivated_at is None


@pytest.mark.parametrize("method", ["get", "post"])
def test_it_does_not_know_the_machine_of_somebody_else(signed_in, method):
    machine = make_machine()
    client = signed_in(factories.make_member())

    assert getattr(client, method)(url(machine)).status_code == 404
    assert getattr(client, method)(reverse("portal:let-go", args=[uuid4()])).status_code == 404
    assert Activation.objects.get().deactivated_at is None


def test_it_asks_who_is_there(client):
    machine = make_machine()

    assert client.post(url(machine)).status_code == 302
    assert Activation.objects.get().deactivated_at is None


def test_it_knows_no_other_method(signed_in):
    member = factories.make_member()

    assert signed_in(member).delete(url(make_machine(member.customer))).status_code == 405
