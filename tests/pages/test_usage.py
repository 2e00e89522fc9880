"""The page of a license's usage."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from billing import rollups
from licensing.catalog import Grant
from licensing.models import Counter, CreditGrant
from portal import overview
from tests import factories
from tests.pages.conftest import TODAY
from tests.pages.test_license import text_of

pytestmark = pytest.mark.django_db
MONTH = TODAY.replace(day=1, hour=0)


def url(license, **asked):
    return reverse("portal:usage", args=[license.pk]) + "".join(f"?{name}={value}" for name, value in asked.items())


def metered(member, *, overage="refuse", amount=1000, **terms):
    """Return a license with an allowance of API calls, and the meter's revision."""
    meter = factories.make_meter(code="calls", unit="calls", dimensions=["region"])
    grant = Grant("calls", kind="allowance", meter="calls", amount=Decimal(amount), overage=overage)
    license = factories.make_license(customer=member.customer, scheme="usage", grants=[grant], **terms)
    return license, meter


def counter(license, used, **values):
    return Counter.objects.create(
        **{
            "license": license,
            "meter": "calls",
            "starts_at": MONTH,
            "ends_at": MONTH.replace(month=4),
            "allowance": 1000,
            "ceiling": None,
            "used": used,
        }
        | values
    )


def test_it_shows_what_is_used_of_what_is_included(signed_in):
    member = factories.make_member()
    license, _ = metered(member)
    counter(license, 250, reserved=50)

    answer = signed_in(member).get(url(license))

    page = text_of(answer)
    assert answer.status_code == 200
    assert "<strong>250</strong> of 1,000 calls" in page
    assert "700 calls left until 1 April 2026; then more is refused." in page
    assert "Reserved for work that has begun: 50 calls." in page


@pytest.mark.parametrize(
    ("overage", "amount", "used", "words", "level"),
    [
        ("refuse", 1000, 799, "201 calls left", "free"),
        ("refuse", 1000, 800, "200 calls left", "full"),
        ("refuse", 1000, 1000, "All of it is used. Nothing more is accepted until 1 April 2026.", "over"),
        ("charge", 1000, 1000, "All that is included is used; more is charged.", "full"),
        ("charge", 1000, 1250, "250 calls more than is included, which is charged.", "full"),
        ("charge", 1000, "999.5", "0.5 calls left until 1 April 2026; then more is charged.", "full"),
    ],
)
def test_it_says_what_comes_next(signed_in, overage, amount, used, words, level):
    member = factories.make_member()
    license, _ = metered(member, overage=overage, amount=amount)
    counter(license, used)

    page = text_of(signed_in(member).get(url(license)))

    assert words in page
    assert f'<progress class="{level}"' in page


def test_it_shows_no_bar_where_all_is_charged(signed_in):
    member = factories.make_member()
    license, _ = metered(member, overage="charge", amount=0)
    counter(license, 30, allowance=0)

    page = text_of(signed_in(member).get(url(license)))

    assert "<strong>30</strong> calls used" in page
    assert "All of it is charged." in page
    assert "<progress" not in page


def test_it_shows_prepaid_credit_that_can_be_drawn_on_now(signed_in):
    member = factories.make_member()
    license, _ = metered(member)
    counter(license, 1000)
    for amount, drawn, starts, ends in (
        (500, 100, -1, 30),
        (100, 0, -1, None),
        (7000, 0, -9, -1),  # expired
        (7000, 0, 1, None),  # not begun
    ):
        CreditGrant.objects.create(
            created_at=TODAY,
            license=license,
            meter="calls",
            amount=amount,
            drawn=drawn,
            starts_at=TODAY + timedelta(days=starts),
            expires_at=TODAY + timedelta(days=ends) if ends else None,
        )

    page = text_of(signed_in(member).get(url(license)))

    assert "prepaid credit is used now" in page
    assert "Prepaid credit left: 500 calls. Some of it expires on 1 April 2026." in page


def test_it_measures_what_has_no_counter(signed_in):
    member = factories.make_member()
    meter = factories.make_meter(code="storage", aggregation="max", unit="GiB")
    grant = Grant("space", kind="allowance", meter="storage", amount=Decimal(10), overage="charge")
    license = factories.make_license(customer=member.customer, scheme="usage", grants=[grant])
    for hours, quantity in ((1, 4), (2, 7), (3, 2)):
        factories.make_usage(
            license=license, revision=meter, quantity=quantity, at=factories.AT + timedelta(hours=hours)
        )

    assert "<strong>7</strong> of 10 GiB" in text_of(signed_in(member).get(url(license)))


def test_it_draws_each_day_and_lists_it(signed_in):
    member = factories.make_member()
    license, meter = metered(member)
    for days, quantity in ((0, 120), (0, 30), (3, 80)):
        factories.make_usage(
            license=license, revision=meter, quantity=quantity, at=TODAY - timedelta(days=days, hours=1)
        )
    rollups.roll_up(at=TODAY)

    page = text_of(signed_in(member).get(url(license)))

    assert page.count('class="column') == 30
    assert '<svg viewBox="0 0 300 100"' in page
    assert "Most on 2 March: 150 calls" in page
    assert "<title>27 February: 80 calls</title>" in page
    assert '<th scope="row">2 Mar 2026</th> <td>150</td>' in page


def test_it_looks_back_as_far_as_asked_and_takes_groups_apart(signed_in):
    member = factories.make_member()
    license, meter = metered(member)
    for days, quantity, region in ((1, 75, "eu"), (2, 25, "us"), (60, 900, "eu")):
        factories.make_usage(
            license=license,
            revision=meter,
            quantity=quantity,
            at=TODAY - timedelta(days=days),
            dimensions={"region": region},
        )
    client = signed_in(member)

    month = text_of(client.get(url(license), {"by": "region"}))
    quarter = text_of(client.get(url(license), {"by": "region", "days": "90"}))

    assert '<th scope="row">eu</th> <td>75</td> <td>75 %</td>' in month
    assert '<th scope="row">us</th> <td>25</td> <td>25 %</td>' in month
    assert '<th scope="row">eu</th> <td>975</td>' in quarter
    assert quarter.count('class="column') == 90


@pytest.mark.parametrize(
    "asked",
    [{"meter": "nothing"}, {"days": "7"}, {"days": "x"}, {"by": "colour"}, {"by": "\x00"}, {"meter": "x" * 5000}],
)
def test_it_bears_a_query_that_makes_no_sense(signed_in, asked):
    member = factories.make_member()
    license, _ = metered(member)

    answer = signed_in(member).get(url(license), asked)

    assert answer.status_code == 200
    assert "errorlist" not in answer.text


@pytest.mark.parametrize(
    ("starts_at", "ends_at", "words"),
    [
        ("2026-03-01T00:00", "2026-04-01T00:00", "1 to 31 March 2026"),
        ("2026-03-01T00:00", "2026-03-02T00:00", "1 March 2026"),
        ("2026-03-26T20:23", "2026-04-01T00:00", "26 March, 20:23 to 31 March 2026"),
        ("2026-03-01T00:00", "2026-03-12T08:30", "1 to 12 March 2026, 08:30"),
        ("2025-12-15T00:00", "2026-01-15T00:00", "15 December 2025 to 14 January 2026"),
    ],
)
def test_it_writes_a_stretch_of_time_as_people_do(starts_at, ends_at, words):
    stretch = (datetime.fromisoformat(f"{text}+00:00") for text in (starts_at, ends_at))

    assert overview.between(*stretch) == words


def test_it_says_so_where_nothing_is_counted(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    client = signed_in(member)

    assert "Nothing is counted" in client.get(url(license)).text
    assert url(license) not in client.get(reverse("portal:license", args=[license.pk])).text


def test_the_page_of_a_license_that_counts_leads_here(signed_in):
    member = factories.make_member()
    license, _ = metered(member)

    assert url(license) in signed_in(member).get(reverse("portal:license", args=[license.pk])).text


@pytest.mark.parametrize("role", ["owner", "license_manager", "billing", "viewer"])
def test_every_member_may_look(signed_in, role):
    member = factories.make_member(role=role)
    license, _ = metered(member)

    assert signed_in(member).get(url(license)).status_code == 200


def test_it_is_not_there_for_others(signed_in, client):
    license, _ = metered(factories.make_member())

    assert signed_in(factories.make_member()).get(url(license)).status_code == 404
    assert client.get(url(license)).status_code == 302
    assert signed_in(factories.make_member()).post(url(license)).status_code == 405


def test_it_takes_as_many_queries_for_a_lot_of_use(signed_in):
    member = factories.make_member()
    license, meter = metered(member)
    client = signed_in(member)

    def queries():
        rollups.roll_up(at=TODAY)
        with CaptureQueriesContext(connection) as found:
            assert client.get(url(license), {"by": "region"}).status_code == 200
        return len(found)

    factories.make_usage(license=license, revision=meter, at=TODAY - timedelta(hours=1))
    few = queries()
    for number in range(80):
        factories.make_usage(
            license=license,
            revision=meter,
            at=TODAY - timedelta(days=number % 29, hours=1),
            dimensions={"region": f"r{number}"},
        )
    many = queries()

    assert many <= few
    assert many <= 25
