"""Transferring a seat."""

from datetime import timedelta

import pytest
from django.urls import reverse

from licensing import seats
from licensing.models import AuditEntry, License, Seat
from tests import factories
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db


def url(seat):
    return reverse("portal:transfer-seat", args=[seat.pk])


def make_seat(customer=None, **terms):
    license = factories.make_license(customer=customer or factories.make_customer(), **terms)
    return seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=TODAY).seat


def live():
    return [seat.holder for seat in Seat.objects.filter(released_at=None)]


def test_it_asks_for_the_new_holder(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer)

    answer = signed_in(member).get(url(seat))

    assert answer.status_code == 200
    assert "ada@example.com" in answer.text


def test_it_hands_the_seat_over_even_when_all_are_taken(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer, seat_limit=1)

    answer = signed_in(member).post(url(seat), {"to": "Grace@example.com", "reason": "new team"}, follow=True)

    assert "grace@example.com has the seat of ada@example.com now." in answer.text
    assert live() == ["grace@example.com"]
    assert License.objects.get().seats_used == 1
    assert AuditEntry.objects.get(action="seat.released").reason == "new team"


def test_done_twice_it_changes_nothing(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer)
    client = signed_in(member)
    client.post(url(seat), {"to": "grace@example.com"})

    answer = client.post(url(seat), {"to": "grace@example.com"})

    assert answer.status_code == 409
    assert "no longer has this seat" in answer.text
    assert live() == ["grace@example.com"]
    assert License.objects.get().seats_used == 1


def test_it_says_so_when_the_new_holder_has_a_seat(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer)
    seats.assign(license=seat.license, holder="grace@example.com", by=factories.BY, at=TODAY)

    answer = signed_in(member).post(url(seat), {"to": "grace@example.com"})

    assert answer.status_code == 409
    assert "has a seat already" in answer.text
    assert 'value="grace@example.com"' in answer.text
    assert sorted(live()) == ["ada@example.com", "grace@example.com"]


def test_it_does_not_hand_over_a_blocked_seat(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer)
    seats.block(seat=seat, by=factories.BY, at=TODAY, reason="shared account")

    answer = signed_in(member).post(url(seat), {"to": "grace@example.com"})

    assert answer.status_code == 409
    assert "seat is blocked" in answer.text


def test_it_says_why_when_too_many_changed_hands(signed_in):
    member = factories.make_member()
    seat = make_seat(member.customer, seat_churn_limit=0, churn_window=timedelta(days=30))

    answer = signed_in(member).post(url(seat), {"to": "grace@example.com"})

    assert answer.status_code == 409
    assert "the plan allows 0" in answer.text
    assert live() == ["ada@example.com"]


@pytest.mark.parametrize("to", ["", "nobody", "a" * 300, "x\x00@example.com"])
def test_it_refuses_what_is_no_address(signed_in, to):
    member = factories.make_member()
    seat = make_seat(member.customer)

    answer = signed_in(member).post(url(seat), {"to": to, "reason": "kept"})

    assert answer.status_code == 400
    assert 'value="kept"' in answer.text
    assert live() == ["ada@example.com"]


@pytest.mark.parametrize("role", ["billing", "viewer"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_it_refuses_those_who_only_look(signed_in, role, method):
    member = factories.make_member(role=role)
    seat = make_seat(member.customer)

    assert getattr(signed_in(member), method)(url(seat), {"to": "grace@example.com"}).status_code == 403
    assert live() == ["ada@example.com"]


@pytest.mark.parametrize("method", ["get", "post"])
def test_it_does_not_know_the_seat_of_somebody_else(signed_in, method):
    seat = make_seat()

    answer = getattr(signed_in(factories.make_member()), method)(url(seat), {"to": "grace@example.com"})

    assert answer.status_code == 404
    assert live() == ["ada@example.com"]


def test_it_asks_who_is_there(client):
    assert client.post(url(make_seat()), {"to": "grace@example.com"}).status_code == 302
    assert live() == ["ada@example.com"]


def test_it_knows_no_other_method(signed_in):
    member = factories.make_member()

    assert signed_in(member).put(url(make_seat(member.customer))).status_code == 405
