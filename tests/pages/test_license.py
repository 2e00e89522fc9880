"""The page of one license."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.urls import reverse

from licensing import activations, catalog, lifecycle, seats
from licensing.models import Entitlement, License, Seat
from tests import factories
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db


def url(license):
    return reverse("portal:license", args=[license.pk])


def text_of(answer):
    """Return the page's text with runs of white space as one space."""
    return " ".join(answer.text.split())


def test_it_shows_status_seats_machines_and_terms(signed_in):
    member = factories.make_member()
    license, key = factories.make_license_and_key(
        customer=member.customer, grace_period=timedelta(days=14), seat_limit=3
    )
    seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=TODAY)
    activations.activate(license=license, fingerprint="f" * 32, name="build-01", by=factories.BY, at=TODAY)

    answer = signed_in(member).get(url(license))

    page = text_of(answer)
    assert answer.status_code == 200
    assert "It expires on 1 March 2027, 12:00 UTC, in 364 days." in page
    assert "<strong>1</strong> of 3 seats in use" in page
    assert "ada@example.com" in page
    assert "build-01" in page
    assert "3 seats, each for one named person." in page
    assert "14 days" in page
    assert key[-5:] in page
    assert key not in page


def test_it_shows_reserved_and_blocked_seats_and_offers_nothing_for_blocked_ones(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    reserved = seats.reserve(license=license, holder="new@example.com", by=factories.BY, at=TODAY).seat
    blocked = seats.assign(license=license, holder="bad@example.com", by=factories.BY, at=TODAY).seat
    seats.block(seat=blocked, by=factories.BY, at=TODAY, reason="shared account")

    answer = signed_in(member).get(url(license))

    assert "Reserved" in answer.text
    assert "Blocked" in answer.text
    assert reverse("portal:release-seat", args=[reserved.pk]) in answer.text
    assert reverse("portal:release-seat", args=[blocked.pk]) not in answer.text


def test_it_leaves_released_seats_out_unless_asked(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    seat = seats.assign(license=license, holder="gone@example.com", by=factories.BY, at=TODAY).seat
    seats.release(seat=seat, by=factories.BY, at=TODAY)
    client = signed_in(member)

    assert "gone@example.com" not in client.get(url(license)).text
    assert "gone@example.com" in client.get(url(license), {"state": "released"}).text


def test_it_finds_a_seat_by_part_of_its_holder(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    for holder in ("ada@example.com", "grace@example.com"):
        seats.assign(license=license, holder=holder, by=factories.BY, at=TODAY)
    client = signed_in(member)

    found = client.get(url(license), {"q": " GRA "})

    assert "grace@example.com" in found.text
    assert "ada@example.com" not in found.text
    assert "No seat fits" in client.get(url(license), {"q": "nobody"}).text


@pytest.mark.parametrize(
    "query", [{"q": "\x00"}, {"q": "x" * 5000}, {"state": "lost"}, {"page": "x"}, {"machines": "0"}]
)
def test_it_bears_a_query_that_makes_no_sense(signed_in, query):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)

    assert signed_in(member).get(url(license), query).status_code == 200


def test_it_explains_a_limit_that_fell_below_what_is_in_use(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer, seat_limit=4)
    for number in range(4):
        seats.assign(license=license, holder=f"p{number}@example.com", by=factories.BY, at=TODAY)
    lifecycle.change_limits(license=license, by=factories.BY, at=TODAY, seat_limit=2)

    page = text_of(signed_in(member).get(url(license)))

    assert "<strong>4</strong> of 2 seats in use" in page
    assert "2 more seats are in use than the license allows" in page
    assert "Nobody loses a seat" in page


def test_it_shows_every_open_hold_with_its_reason(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    lifecycle.hold(license=license, reason="unpaid", by=factories.BY, at=factories.AT, note="invoice 7: internal")
    lifecycle.hold(license=license, reason="security", by=factories.BY, at=factories.AT)
    lifecycle.lift(license=license, reason="security", by=factories.BY, at=factories.AT)

    page = text_of(signed_in(member).get(url(license)))

    assert "Held" in page
    assert "An invoice is unpaid." in page
    assert "security concern" not in page
    assert "internal" not in page


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"seat_limit": None}, "Any number of seats, each for one named person."),
        ({"seat_kind": "floating", "seat_limit": 5}, "Up to 5 can work at the same time"),
        ({"trial": True}, "This is a trial."),
        ({"seat_required": True}, "only for people with a seat"),
        ({"activation_required": True}, "only on activated machines"),
        (
            {"seat_churn_limit": 3, "churn_window": timedelta(days=30)},
            "3 seats can be released or transferred within 30",
        ),
        ({"duration": None}, "It does not expire."),
        (
            {"validity_basis": "from_first_activation", "duration": timedelta(days=7)},
            "7 days from the first activation",
        ),
        (
            {"validity_basis": "fixed_date", "fixed_expires_at": TODAY + timedelta(hours=30)},
            "Until 3 March 2026, 18:00 UTC.",
        ),
        ({"maintenance": timedelta(days=1)}, "Versions released until 2 March 2026, 12:00 UTC are covered."),
        ({"activation_limit": None}, "Any number of machines."),
        ({"activation_dead_after": timedelta(days=90)}, "not seen for 90 days is let go by itself."),
        ({"fingerprint_scope": "product"}, "on one license of the product only"),
    ],
)
def test_it_puts_the_terms_into_words(signed_in, terms, words):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer, **terms)

    assert words in text_of(signed_in(member).get(url(license)))


def test_it_puts_entitlements_into_words(signed_in):
    member = factories.make_member()
    revision = factories.make_revision(publish=False)
    for values in (
        {"key": "export_pdf", "kind": "flag"},
        {"key": "projects", "kind": "value", "value": "fifty"},
        {"key": "renders", "kind": "allowance", "meter": "renders", "amount": "1500.50", "overage": "charge"},
    ):
        Entitlement.objects.create(created_at=factories.AT, plan_revision=revision, **values)
    published = catalog.publish(revision=revision, by=factories.BY, at=factories.AT)
    license = factories.make_license(customer=member.customer, plan_revision=published)

    page = text_of(signed_in(member).get(url(license)))

    assert "Export pdf" in page
    assert "fifty" in page
    assert "1,500.5 renders a period; more is charged." in page


@pytest.mark.parametrize("role", ["billing", "viewer"])
def test_it_shows_no_buttons_to_those_who_only_look(signed_in, role):
    member = factories.make_member(role=role)
    license = factories.make_license(customer=member.customer)
    seat = seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=TODAY).seat

    answer = signed_in(member).get(url(license))

    assert answer.status_code == 200
    assert "ada@example.com" in answer.text
    for name, pk in (("assign-seat", license.pk), ("download-key", license.pk), ("release-seat", seat.pk)):
        assert reverse(f"portal:{name}", args=[pk]) not in answer.text


def test_it_offers_no_seats_on_a_license_that_is_over(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    lifecycle.revoke(license=license, by=factories.BY, at=factories.AT, reason="ended")

    answer = signed_in(member).get(url(license))

    assert "Revoked" in answer.text
    assert "Assign a seat" not in answer.text


def test_it_asks_who_is_there(client):
    answer = client.get(url(factories.make_license()))

    assert answer.status_code == 302
    assert "/accounts/login/" in answer.url


def test_it_does_not_show_the_license_of_somebody_else(signed_in):
    stranger = factories.make_license()

    assert signed_in(factories.make_member()).get(url(stranger)).status_code == 404


def test_it_does_not_show_a_license_that_is_not_there(signed_in):
    assert signed_in(factories.make_member()).get(reverse("portal:license", args=[uuid4()])).status_code == 404


def test_it_cannot_be_posted_to(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)

    assert signed_in(member).post(url(license)).status_code == 405


def test_it_renders_ten_thousand_seats_in_twelve_queries(signed_in, django_assert_max_num_queries):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer, seat_limit=12_000)
    Seat.objects.bulk_create(
        (
            Seat(
                created_at=TODAY,
                license=license,
                holder=f"person{number:05}@example.com",
                state="assigned",
                assigned_at=TODAY,
            )
            for number in range(10_000)
        ),
        batch_size=1000,
    )
    License.objects.filter(pk=license.pk).update(seats_used=10_000)
    client = signed_in(member)

    with django_assert_max_num_queries(12):
        answer = client.get(url(license), {"page": "2", "q": "person"})

    assert "Page 2 of 400" in answer.text
    assert "person00025@example.com" in answer.text
    assert answer.text.count("@example.com") < 200
