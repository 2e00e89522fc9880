"""Assigning a seat from the page of a license."""

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse

from licensing import lifecycle, seats
from licensing.models import AuditEntry, License, Seat
from tests import factories
from tests.factories import opened
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db


def url(license):
    return reverse("portal:assign-seat", args=[license.pk])


@pytest.mark.parametrize("role", ["owner", "license_manager"])
def test_it_assigns_a_seat_and_says_so(signed_in, role):
    member = factories.make_member(role=role)
    license = factories.make_license(customer=member.customer)

    answer = signed_in(member).post(url(license), {"holder": " Ada@Example.com "}, follow=True)

    assert answer.redirect_chain == [(reverse("portal:license", args=[license.pk]), 302)]
    assert "ada@example.com now has a seat." in answer.text
    seat = Seat.objects.get()
    assert (seat.holder, seat.state) == ("ada@example.com", "assigned")
    entry = AuditEntry.objects.get(action="seat.assigned")
    assert (entry.actor_kind, opened(entry).actor_label, entry.actor_role) == ("member", member.user.email, role)


def test_done_twice_it_changes_nothing(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    client = signed_in(member)
    client.post(url(license), {"holder": "ada@example.com"})

    answer = client.post(url(license), {"holder": "ada@example.com"}, follow=True)

    assert "has a seat already" in answer.text
    assert Seat.objects.count() == 1
    assert License.objects.get().seats_used == 1


def test_it_refuses_when_all_seats_are_taken_and_keeps_what_was_typed(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer, seat_limit=1)
    seats.assign(license=license, holder="first@example.com", by=factories.BY, at=TODAY)

    answer = signed_in(member).post(url(license), {"holder": "second@example.com"})

    assert answer.status_code == 409
    assert "All 1 seats are taken." in answer.text
    assert 'value="second@example.com"' in answer.text
    assert Seat.objects.count() == 1


@pytest.mark.parametrize(
    "holder", ["", "nobody", "a@b", "two@example.com, three@example.com", "x\x00@example.com", "a" * 300]
)
def test_it_refuses_what_is_no_address(signed_in, holder):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)

    answer = signed_in(member).post(url(license), {"holder": holder})

    assert answer.status_code == 400
    assert 'aria-invalid="true"' in answer.text
    assert not Seat.objects.exists()


def test_it_says_why_a_blocked_holder_gets_no_seat(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    seat = seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=TODAY).seat
    seats.block(seat=seat, by=factories.BY, at=TODAY, reason="shared account")

    answer = signed_in(member).post(url(license), {"holder": "ada@example.com"})

    assert answer.status_code == 409
    assert "seat is blocked" in answer.text


def test_it_takes_up_a_reservation(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    seats.reserve(license=license, holder="ada@example.com", by=factories.BY, at=TODAY)

    signed_in(member).post(url(license), {"holder": "ada@example.com"})

    assert Seat.objects.get().state == "assigned"


@pytest.mark.parametrize("over", ["revoked", "expired", "floating"])
def test_it_says_why_a_license_has_no_seat_to_assign(signed_in, over):
    member = factories.make_member()
    terms = {
        "revoked": {},
        "expired": {"at": factories.AT - timedelta(days=30), "duration": timedelta(days=30)},
        "floating": {"seat_kind": "floating"},
    }[over]
    license = factories.make_license(customer=member.customer, **terms)
    if over == "revoked":
        lifecycle.revoke(license=license, by=factories.BY, at=factories.AT, reason="ended")

    answer = signed_in(member).post(url(license), {"holder": "ada@example.com"})

    words = {"revoked": "is revoked", "expired": "has expired", "floating": "float"}[over]
    assert answer.status_code == 409
    assert 'role="alert"' in answer.text
    assert words in answer.text
    assert not Seat.objects.exists()


@pytest.mark.parametrize("role", ["billing", "viewer"])
def test_it_refuses_those_who_only_look(signed_in, role):
    member = factories.make_member(role=role)
    license = factories.make_license(customer=member.customer)

    answer = signed_in(member).post(url(license), {"holder": "ada@example.com"})

    assert answer.status_code == 403
    assert "Only owners and license managers" in answer.text
    assert not Seat.objects.exists()


def test_it_takes_the_role_at_the_customer_of_the_license(signed_in):
    owner = factories.make_member()
    viewer = factories.make_member(user=owner.user, role="viewer")
    license = factories.make_license(customer=viewer.customer)

    assert signed_in(owner).post(url(license), {"holder": "ada@example.com"}).status_code == 403


def test_it_does_not_know_the_license_of_somebody_else(signed_in):
    license = factories.make_license()

    assert signed_in(factories.make_member()).post(url(license), {"holder": "a@example.com"}).status_code == 404
    assert not Seat.objects.exists()


def test_it_asks_who_is_there(client):
    answer = client.post(url(factories.make_license()), {"holder": "ada@example.com"})

    assert answer.status_code == 302
    assert not Seat.objects.exists()


def test_reached_by_get_it_shows_the_license_and_changes_nothing(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    client = signed_in(member)

    answer = client.get(url(license), {"holder": "ada@example.com"})

    assert answer.url == reverse("portal:license", args=[license.pk])
    assert client.put(url(license)).status_code == 405
    assert not Seat.objects.exists()


def test_it_refuses_a_form_of_another_site(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    client = Client(enforce_csrf_checks=True)
    client.force_login(member.user, backend="django.contrib.auth.backends.ModelBackend")

    answer = client.post(url(license), {"holder": "ada@example.com"})

    assert answer.status_code == 403
    assert "Please send that again" in answer.text
    assert not Seat.objects.exists()
