"""States: spelling, transitions, and what instants add up to. The database says the same of many licenses."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licensing import lifecycle, states
from licensing.models import License
from licensing.states import (
    REVISION_TRANSITIONS,
    SEAT_TRANSITIONS,
    LicenseStatus,
    RevisionState,
    SeatState,
    VerdictCode,
    status_at,
    timed_status_at,
)
from tests.factories import AT, BY, make_customer, make_license, make_revision

TICK = timedelta(microseconds=1)
instants = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))


def test_it_spells_the_statuses_as_the_contract_does():
    assert [*LicenseStatus.values] == ["draft", "active", "in_grace", "expired", "held", "revoked"]


def test_it_spells_the_verdict_codes_in_the_order_of_the_contract():
    assert [*VerdictCode.values] == [
        "not_found",
        "revoked",
        "held",
        "not_started",
        "expired",
        "wrong_product",
        "version_not_covered",
        "activation_required",
        "fingerprint_mismatch",
        "seat_required",
        "lease_lapsed",
        "entitlement_missing",
        "allowance_exhausted",
        "in_grace",
        "valid",
    ]


@pytest.mark.parametrize(
    ("states_", "transitions", "final"),
    [
        (RevisionState, REVISION_TRANSITIONS, RevisionState.RETIRED),
        (SeatState, SEAT_TRANSITIONS, SeatState.RELEASED),
    ],
)
def test_it_has_an_answer_for_every_state_and_no_way_out_of_the_final_one(states_, transitions, final):
    assert set(transitions) == set(states_)
    assert transitions[final] == set()
    assert all(after in states_ for allowed in transitions.values() for after in allowed)


def test_it_lets_no_revision_back_into_a_draft():
    assert all(RevisionState.DRAFT not in allowed for allowed in REVISION_TRANSITIONS.values())


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"issued": False}, "draft"),
        ({"issued": False, "revoked": True, "held": True}, "draft"),
        ({"revoked": True}, "revoked"),
        ({"revoked": True, "held": True}, "revoked"),
        ({"revoked": True, "expires_at": AT - TICK}, "revoked"),
        ({"held": True}, "held"),
        ({"held": True, "expires_at": AT - TICK}, "held"),
        ({}, "active"),
        ({"expires_at": AT + TICK}, "active"),
        ({"expires_at": AT}, "expired"),
        ({"expires_at": AT - TICK}, "expired"),
        ({"expires_at": AT, "grace_until": AT + TICK}, "in_grace"),
        ({"expires_at": AT - TICK, "grace_until": AT}, "expired"),
        ({"expires_at": AT, "grace_until": AT}, "expired"),
        ({"expires_at": AT + TICK, "grace_until": AT + 2 * TICK}, "active"),
    ],
)
def test_it_names_the_status_the_facts_add_up_to(facts, expected):
    given_ = {"issued": True, "revoked": False, "held": False, "expires_at": None, "grace_until": None}

    assert status_at(at=AT, **given_ | facts) == expected


@given(
    starts=instants,
    active=st.timedeltas(TICK, timedelta(days=900)),
    grace=st.timedeltas(TICK, timedelta(days=90)),
)
def test_it_changes_at_the_instant_itself_and_never_a_moment_earlier(starts, active, grace):
    expires_at = starts + active
    until = expires_at + grace

    def at(instant):
        return timed_status_at(at=instant, expires_at=expires_at, grace_until=until)

    assert (at(expires_at - TICK), at(expires_at)) == ("active", "in_grace")
    assert (at(until - TICK), at(until)) == ("in_grace", "expired")


@given(first=instants, second=instants, expires=st.none() | instants, grace=st.none() | instants)
def test_it_never_goes_back_as_time_passes(first, second, expires, grace):
    if grace is not None and (expires is None or grace < expires):
        grace = None
    order = ["active", "in_grace", "expired"]

    passed = [
        order.index(timed_status_at(at=at, expires_at=expires, grace_until=grace)) for at in sorted([first, second])
    ]

    assert all(before <= after for before, after in pairwise(passed))


@pytest.mark.django_db
def test_it_says_of_many_licenses_in_the_database_what_it_says_of_one():
    revision = make_revision(
        duration=timedelta(days=10), grace_period=timedelta(days=2), seat_limit=None, activation_limit=None
    )
    customer = make_customer()
    common = {"customer": customer, "plan_revision": revision}
    make_license(**common)
    held, revoked, both = make_license(**common), make_license(**common), make_license(**common)
    lifecycle.hold(license=held, reason="unpaid", by=BY, at=AT)
    lifecycle.hold(license=both, reason="abuse", by=BY, at=AT)
    lifecycle.revoke(license=revoked, by=BY, at=AT, reason="gone")
    lifecycle.revoke(license=both, by=BY, at=AT, reason="gone")
    lifted = make_license(**common)
    lifecycle.hold(license=lifted, reason="unpaid", by=BY, at=AT)
    lifecycle.lift(license=lifted, reason="unpaid", by=BY, at=AT)
    lifecycle.prepare(**common, by=BY, at=AT)
    make_license(customer=customer, plan_revision=make_revision(duration=None))
    end, until = AT + timedelta(days=10), AT + timedelta(days=12)

    for at in (AT, end - TICK, end, until - TICK, until, until + TICK):
        for status in LicenseStatus.values:
            from_database = {row.pk for row in License.objects.with_status(status, at)}
            from_rows = {row.pk for row in License.objects.all() if lifecycle.status_of(row, at) == status}
            assert from_database == from_rows, (status, at)


def test_it_knows_no_database_and_no_clock():
    assert not {"timezone", "connection", "settings", "time"} & set(vars(states))
