"""Releasing a seat."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.urls import reverse

from licensing import seats
from licensing.models import AuditEntry, License, Seat
from tests import factories
from tests.factories import opened
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db


def url(seat):
    return reverse("portal:release-seat", args=[seat.pk])


def make_seat(customer=None, **terms):
    license = factories.make_license(customer=customer or factories.make_customer(), **terms)
    return seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=TODAY).seat


def test_it_asks_first_and_changes_nothing(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer)

    answer = signed_in(member).get(url(seat))

    assert answer.status_code == 200
    assert "ada@example.com" in answer.text
    assert Seat.objects.get().state == "assigned"


def test_it_releases_the_seat_with_its_reason(signed_in):
    member = factories.make_member(role="license_manager")
    seat = make_seat(member.customer)

    answer = signed_in(member).post(url(seat), {"reason": "left the company"}, follow=True)

    assert "The seat of ada@example.com is released." in answer.text
    assert Seat.objects.get().state == "released"
    assert License.objects.get().seats_used == 0
    entry = AuditEntry.objects.get(action="seat.released")
    assert (opened(entry).actor_label, entry.reason) == (member.user.email, "left the company")


def test_done_twice_it_changes_nothing(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer)
    client = signed_in(member)
    client.post(url(seat))

    assert client.post(url(seat)).status_code == 302
    assert "was released on" in client.get(url(seat)).text
    assert License.objects.get().seats_used == 0
    assert AuditEntry.objects.filter(action="seat.released").count() == 1


def test_it_says_why_when_too_many_changed_hands(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer, seat_churn_limit=0, churn_window=timedelta(days=30))

    answer = signed_in(member).post(url(seat), {"reason": "left the company"})

    assert answer.status_code == 409
    assert "the plan allows 0" in answer.text
    assert 'value="left the company"' in answer.text
    assert Seat.objects.get().state == "assigned"


@pytest.mark.parametrize("reason", ["x" * 201, "nul\x00"])
def test_it_refuses_a_reason_it_cannot_keep(signed_in, reason):
    member = factories.make_member()
    seat = make_seat(member.customer)

    answer = signed_in(member).post(url(seat), {"reason": reason})

    assert answer.status_code == 400
    assert Seat.objects.get().state == "assigned"


@pytest.mark.parametrize("role", ["billing", "viewer"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_it_refuses_those_who_only_look(signed_in, role, method):
    member = factories.make_member(role=role)
    seat = make_seat(member.customer)

    assert getattr(signed_in(member), method)(url(seat)).status_code == 403
    assert Seat.objects.get().state == "assigned"


@pytest.mark.parametrize("method", ["get", "post"])
def test_it_does_not_know_the_seat_of_somebody_else(signed_in, method):
    seat = make_seat()

    assert getattr(signed_in(factories.make_member()), method)(url(seat)).status_code == 404
    assert Seat.objects.get().state == "assigned"


def test_it_does_not_know_a_seat_that_is_not_there(signed_in):
    answer = signed_in(factories.make_member()).post(reverse("portal:release-seat", args=[uuid4()]))

    assert answer.status_code == 404


def test_it_asks_who_is_there(client):
    assert client.post(url(make_seat())).status_code == 302
    assert Seat.objects.get().state == "assigned"


def test_it_knows_no_other_method(signed_in):
    member = factories.make_member()

    assert signed_in(member).delete(url(make_seat(member.customer))).status_code == 405
