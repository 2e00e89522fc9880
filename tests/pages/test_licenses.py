"""The list of licenses."""

from datetime import timedelta

import pytest
from django.urls import reverse

from licensing import lifecycle, seats
from licensing.models import License
from tests import factories
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db
URL = "/"


def test_it_lists_the_licenses_of_every_customer_of_the_person(signed_in):
    member = factories.make_member()
    other = factories.make_member(user=member.user, role="viewer")
    first = factories.make_license(customer=member.customer)
    second = factories.make_license(customer=other.customer)

    answer = signed_in(member).get(URL)

    assert answer.status_code == 200
    for license in (first, second):
        assert reverse("portal:license", args=[license.pk]) in answer.text
        assert license.customer.name in answer.text


def test_it_shows_nothing_of_other_customers_and_no_drafts(signed_in):
    member = factories.make_member()
    stranger = factories.make_license()
    revision = factories.make_revision()
    draft = lifecycle.prepare(customer=member.customer, plan_revision=revision, by=factories.BY, at=factories.AT)

    answer = signed_in(member).get(URL)

    assert str(stranger.pk) not in answer.text
    assert str(draft.pk) not in answer.text
    assert "No licenses yet" in answer.text


def test_it_says_the_status_and_the_next_date(signed_in):
    member = factories.make_member()
    factories.make_license(customer=member.customer, duration=timedelta(days=10))

    answer = signed_in(member).get(URL)

    assert "Active" in answer.text
    assert "Expires 11 March 2026" in answer.text


@pytest.mark.parametrize(
    ("status", "shown"),
    [("active", "active"), ("held", "held"), ("revoked", "revoked"), ("in_grace", "in_grace"), ("expired", "expired")],
)
def test_it_filters_by_status(signed_in, status, shown):
    member = factories.make_member()
    made = {
        "active": factories.make_license(customer=member.customer),
        "held": factories.make_license(customer=member.customer),
        "revoked": factories.make_license(customer=member.customer),
        "in_grace": factories.make_license(
            customer=member.customer,
            at=factories.AT - timedelta(days=10),
            duration=timedelta(days=10),
            grace_period=timedelta(days=5),
        ),
        "expired": factories.make_license(
            customer=member.customer, at=factories.AT - timedelta(days=10), duration=timedelta(days=10)
        ),
    }
    lifecycle.hold(license=made["held"], reason="unpaid", by=factories.BY, at=factories.AT)
    lifecycle.revoke(license=made["revoked"], by=factories.BY, at=factories.AT, reason="ended")

    answer = signed_in(member).get(URL, {"status": status})

    found = {name for name, license in made.items() if str(license.pk) in answer.text}
    assert found == {shown}


def test_it_filters_by_product(signed_in):
    member = factories.make_member()
    wanted = factories.make_license(customer=member.customer)
    other = factories.make_license(customer=member.customer)

    answer = signed_in(member).get(URL, {"product": wanted.product.code})

    assert str(wanted.pk) in answer.text
    assert str(other.pk) not in answer.text


def test_it_says_so_when_no_license_fits(signed_in):
    member = factories.make_member()
    factories.make_license(customer=member.customer)

    answer = signed_in(member).get(URL, {"status": "revoked"})

    assert "No license fits" in answer.text


@pytest.mark.parametrize(
    "query", [{"status": "nonsense"}, {"product": "\x00"}, {"page": "many"}, {"page": "-1"}, {"page": "999999"}]
)
def test_it_bears_a_query_that_makes_no_sense(signed_in, query):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)

    answer = signed_in(member).get(URL, query)

    assert answer.status_code == 200
    assert str(license.pk) in answer.text


def test_it_explains_itself_to_a_person_of_no_customer(client):
    client.force_login(factories.make_user(), backend="django.contrib.auth.backends.ModelBackend")

    answer = client.get(URL)

    assert answer.status_code == 200
    assert "Nothing to show yet" in answer.text
    assert "Staff admin" not in answer.text


def test_it_leads_staff_to_the_admin(client):
    person = factories.make_user(is_staff=True)
    client.force_login(person, backend="django.contrib.auth.backends.ModelBackend")

    answer = client.get(URL)

    assert "Staff admin" in answer.text


def test_it_asks_who_is_there(client):
    answer = client.get(URL)

    assert answer.status_code == 302
    assert answer.url.startswith("/accounts/login/")


def test_it_cannot_be_posted_to(signed_in):
    assert signed_in(factories.make_member()).post(URL).status_code == 405


def test_it_shows_the_last_five_of_a_key_and_never_the_key(signed_in):
    member = factories.make_member()
    _, key = factories.make_license_and_key(customer=member.customer)

    answer = signed_in(member).get(URL)

    assert key[-5:] in answer.text
    assert key not in answer.text
    assert "no-store" in answer["Cache-Control"]


def test_it_asks_the_same_number_of_queries_for_many_licenses(signed_in, django_assert_max_num_queries):
    member = factories.make_member()
    revision = factories.make_revision()
    for number in range(30):
        license = factories.make_license(customer=member.customer, plan_revision=revision)
        if number % 3 == 0:
            lifecycle.hold(license=license, reason="staff", by=factories.BY, at=factories.AT)
            seats.assign(license=license, holder="ada@example.com", by=factories.BY, at=TODAY)
    client = signed_in(member)

    with django_assert_max_num_queries(9):
        answer = client.get(URL)

    assert "Page 1 of 2" in answer.text
    later = client.get(URL, {"page": "2"})
    listed = [license for license in License.objects.all() if str(license.pk) in answer.text + later.text]
    assert len(listed) == 30
