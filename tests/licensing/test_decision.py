"""The decision: a table of cases in the order of the codes, and properties that hold for any data."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licensing.decision import Right, Scope, Snapshot, Verdict, decide
from licensing.states import VerdictCode

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
PRINT = "0123456789abcdef"

PLAIN = Snapshot(
    license_id="0198f2a0-0000-7000-8000-000000000001",
    customer_id="0198f2a0-0000-7000-8000-000000000002",
    product="atlas",
    plan="team",
    plan_revision=1,
    scheme="seats",
    revision=1,
    issued=True,
    revoked=False,
    holds=(),
    starts_at=AT - DAY,
    expires_at=AT + DAY,
    grace_until=None,
    maintenance_until=None,
    seat_required=False,
    seat_limit=10,
    seats_used=0,
    activation_required=False,
    activation_limit=5,
    activations_used=0,
    entitlements={"export": Right("flag"), "cores": Right("value", "8")},
)


def snapshot(**changes) -> Snapshot:
    return msgspec.structs.replace(PLAIN, **changes)


CASES = [
    # code, what is different in the snapshot, what is asked
    ("not_found", {"issued": False}, {}),
    ("not_found", {"issued": False, "revoked": True, "holds": ("abuse",)}, {}),
    ("revoked", {"revoked": True}, {}),
    ("revoked", {"revoked": True, "holds": ("abuse",), "expires_at": AT - DAY}, {"product": "other"}),
    ("held", {"holds": ("unpaid",)}, {}),
    ("held", {"holds": ("abuse", "unpaid"), "starts_at": AT + DAY}, {}),
    ("held", {"holds": ("unpaid",), "expires_at": AT - TICK}, {}),
    ("not_started", {"starts_at": AT + TICK}, {}),
    ("not_started", {"starts_at": AT + TICK, "expires_at": AT + DAY}, {"product": "other"}),
    ("valid", {"starts_at": AT}, {}),
    ("expired", {"expires_at": AT}, {}),
    ("expired", {"expires_at": AT - DAY, "grace_until": AT}, {}),
    ("expired", {"expires_at": AT - DAY}, {"product": "other"}),
    ("valid", {"expires_at": AT + TICK}, {}),
    ("valid", {"expires_at": None}, {}),
    ("wrong_product", {}, {"product": "other"}),
    ("wrong_product", {}, {"product": "Atlas"}),
    ("wrong_product", {}, {"product": ""}),
    ("wrong_product", {"maintenance_until": AT - DAY}, {"product": "other", "version": "2"}),
    ("valid", {}, {"product": "atlas"}),
    ("version_not_covered", {"maintenance_until": AT}, {"version": "2", "version_released_at": AT}),
    ("version_not_covered", {"maintenance_until": AT}, {"version": "2"}),
    ("version_not_covered", {"maintenance_until": AT - TICK, "activation_required": True}, {"version": "2"}),
    ("valid", {"maintenance_until": AT}, {"version": "2", "version_released_at": AT - TICK}),
    ("valid", {"maintenance_until": AT + TICK}, {"version": "2"}),
    ("valid", {"maintenance_until": AT - DAY}, {}),
    ("valid", {"maintenance_until": None}, {"version": "2", "version_released_at": AT + DAY}),
    ("activation_required", {"activation_required": True}, {}),
    ("activation_required", {"activation_required": True}, {"fingerprint": PRINT}),
    ("activation_required", {"activation_required": True, "activations_used": 1}, {}),
    (
        "activation_required",
        {"activation_required": True, "seat_required": True},
        {"entitlements": ("nothing",)},
    ),
    ("fingerprint_mismatch", {"activation_required": True, "activations_used": 1}, {"fingerprint": PRINT}),
    ("fingerprint_mismatch", {"activations_used": 1}, {"fingerprint": PRINT}),
    ("fingerprint_mismatch", {"activations_used": 1, "seat_required": True}, {"fingerprint": PRINT}),
    ("valid", {"activations_used": 0}, {"fingerprint": PRINT}),
    ("valid", {"activations_used": 1}, {}),
    (
        "valid",
        {"activation_required": True, "activations_used": 1},
        {"fingerprint": PRINT, "fingerprint_activated": True},
    ),
    ("seat_required", {"seat_required": True}, {}),
    ("seat_required", {"seat_required": True}, {"seat_holder": "a@example.com"}),
    ("seat_required", {"seat_required": True}, {"seat_holder": "a@example.com", "seat_state": "reserved"}),
    ("seat_required", {"seat_required": True}, {"seat_holder": "a@example.com", "seat_state": "blocked"}),
    ("seat_required", {}, {"seat_holder": "a@example.com"}),
    ("seat_required", {}, {"seat_holder": "a@example.com", "seat_state": "blocked"}),
    ("seat_required", {"seat_required": True}, {"entitlements": ("nothing",)}),
    ("valid", {"seat_required": True}, {"seat_holder": "a@example.com", "seat_state": "assigned"}),
    ("entitlement_missing", {}, {"entitlements": ("export", "import")}),
    ("entitlement_missing", {"entitlements": {}}, {"entitlements": ("export",)}),
    ("entitlement_missing", {}, {"entitlements": ("Export",)}),
    ("entitlement_missing", {"expires_at": AT, "grace_until": AT + DAY}, {"entitlements": ("import",)}),
    ("valid", {}, {"entitlements": ("export", "cores")}),
    ("in_grace", {"expires_at": AT, "grace_until": AT + TICK}, {}),
    ("in_grace", {"expires_at": AT - DAY, "grace_until": AT + TICK}, {"entitlements": ("export",)}),
    ("valid", {"expires_at": AT + TICK, "grace_until": AT + DAY}, {}),
    ("valid", {}, {}),
]


@pytest.mark.parametrize(("code", "changes", "asked"), CASES)
def test_it_answers_with_the_first_code_that_applies(code, changes, asked):
    verdict = decide(snapshot(**changes), Scope(**asked), AT)

    assert verdict.code == code
    assert verdict.valid is (code in ("valid", "in_grace"))
    assert verdict.looked_at[-1] == code
    assert verdict.detail


def test_it_has_a_case_for_every_code_that_can_be_given_yet():
    later = {VerdictCode.LEASE_LAPSED, VerdictCode.ALLOWANCE_EXHAUSTED}

    assert {code for code, _, _ in CASES} == set(VerdictCode.values) - later


def test_it_says_not_found_without_a_license():
    verdict = decide(None, Scope(), AT)

    assert (verdict.code, verdict.valid, verdict.looked_at) == ("not_found", False, ("not_found",))


def test_it_names_every_open_hold_and_every_missing_right():
    held = decide(snapshot(holds=("abuse", "unpaid")), Scope(), AT)
    lacking = decide(PLAIN, Scope(entitlements=("a", "export", "b")), AT)

    assert "abuse, unpaid" in held.detail
    assert "a, b" in lacking.detail
    assert "export" not in lacking.detail


def test_it_tells_whether_a_person_is_unnamed_unseated_or_blocked():
    def said(**asked):
        return decide(snapshot(seat_required=True), Scope(**asked), AT).detail

    assert len({said(), said(seat_holder="a@b.cc"), said(seat_holder="a@b.cc", seat_state="blocked")}) == 3


def test_it_makes_the_worst_of_all_that_is_wrong_the_answer_one_after_the_other():
    """Everything is wrong at once; each thing mended uncovers the next code, in the order of the contract."""
    wrong = {
        "revoked": True,
        "holds": ("abuse",),
        "starts_at": AT + DAY,
        "expires_at": AT - DAY,
        "grace_until": None,
        "maintenance_until": AT,
        "activation_required": True,
        "seat_required": True,
    }
    asked = {"product": "other", "version": "2", "entitlements": ("import",)}
    mends = [
        ({"revoked": False}, {}),
        ({"holds": ()}, {}),
        ({"starts_at": AT}, {}),
        ({"grace_until": AT + DAY}, {}),
        ({}, {"product": "atlas"}),
        ({"maintenance_until": None}, {}),
        ({"activations_used": 1}, {"fingerprint": PRINT}),
        ({}, {"fingerprint_activated": True}),
        ({}, {"seat_holder": "a@example.com", "seat_state": "assigned"}),
        ({}, {"entitlements": ("export",)}),
        ({"expires_at": AT + DAY}, {}),
    ]

    codes = [decide(snapshot(**wrong), Scope(**asked), AT).code]
    for license_mend, scope_mend in mends:
        wrong |= license_mend
        asked |= scope_mend
        codes.append(decide(snapshot(**wrong), Scope(**asked), AT).code)

    assert codes == [
        "revoked",
        "held",
        "not_started",
        "expired",
        "wrong_product",
        "version_not_covered",
        "activation_required",
        "fingerprint_mismatch",
        "seat_required",
        "entitlement_missing",
        "in_grace",
        "valid",
    ]


# --- properties -------------------------------------------------------------------------------------

instants = st.sampled_from([AT - DAY, AT - TICK, AT, AT + TICK, AT + DAY]) | st.datetimes(timezones=st.just(UTC))
words = st.sampled_from(["atlas", "other", "", "é", "\x00"]) | st.text(max_size=5)
rights = st.dictionaries(st.sampled_from(["export", "import", "cores"]), st.builds(Right, kind=st.just("flag")))
snapshots = st.builds(
    Snapshot,
    license_id=st.uuids().map(str),
    customer_id=st.uuids().map(str),
    product=words,
    plan=words,
    plan_revision=st.integers(1, 9),
    scheme=st.sampled_from(["seats", "usage", "both"]),
    revision=st.integers(1),
    issued=st.booleans(),
    revoked=st.booleans(),
    holds=st.sampled_from([(), ("abuse",), ("abuse", "unpaid")]),
    starts_at=instants,
    expires_at=st.none() | instants,
    grace_until=st.none() | instants,
    maintenance_until=st.none() | instants,
    seat_required=st.booleans(),
    seat_limit=st.none() | st.integers(0, 3),
    seats_used=st.integers(0, 3),
    activation_required=st.booleans(),
    activation_limit=st.none() | st.integers(0, 3),
    activations_used=st.integers(0, 3),
    entitlements=rights,
)
scopes = st.builds(
    Scope,
    product=st.none() | words,
    version=st.none() | words,
    fingerprint=st.none() | words,
    seat_holder=st.none() | words,
    entitlements=st.lists(st.sampled_from(["export", "import", "cores"]), max_size=3).map(tuple),
    fingerprint_activated=st.booleans(),
    seat_state=st.none() | st.sampled_from(["reserved", "assigned", "blocked"]),
    version_released_at=st.none() | instants,
)


@settings(max_examples=600, deadline=None)
@given(snapshot=st.none() | snapshots, scope=scopes, at=instants)
def test_it_answers_any_data_with_one_verdict_and_never_raises(snapshot, scope, at):
    verdict = decide(snapshot, scope, at)

    assert isinstance(verdict, Verdict)
    assert verdict.code in VerdictCode.values
    assert verdict.valid == (verdict.code in ("valid", "in_grace"))
    assert decide(snapshot, scope, at) == verdict


@settings(max_examples=600, deadline=None)
@given(snapshot=st.none() | snapshots, scope=scopes, at=instants)
def test_it_looks_at_the_codes_in_their_order_and_stops_at_the_answer(snapshot, scope, at):
    verdict = decide(snapshot, scope, at)

    order = [VerdictCode.values.index(code) for code in verdict.looked_at]
    assert order == sorted(set(order))
    assert verdict.looked_at[-1] == verdict.code


@settings(max_examples=600, deadline=None)
@given(snapshot=snapshots, scope=scopes, at=instants)
def test_it_never_allows_what_any_single_fact_forbids(snapshot, scope, at):
    verdict = decide(snapshot, scope, at)

    over = snapshot.expires_at is not None and at >= snapshot.expires_at
    graced = snapshot.grace_until is not None and at < snapshot.grace_until
    forbidden = (
        not snapshot.issued
        or snapshot.revoked
        or bool(snapshot.holds)
        or at < snapshot.starts_at
        or (over and not graced)
        or (scope.product is not None and scope.product != snapshot.product)
        or (snapshot.activation_required and not scope.fingerprint_activated)
        or (snapshot.seat_required and scope.seat_state != "assigned")
        or any(key not in snapshot.entitlements for key in scope.entitlements)
    )
    if forbidden:
        assert not verdict.valid
    if verdict.valid:
        assert verdict.code == ("in_grace" if over else "valid")


@settings(max_examples=300, deadline=None)
@given(snapshot=snapshots, scope=scopes, at=instants)
def test_it_never_gets_better_by_a_hold_a_revocation_or_a_missing_issue(snapshot, scope, at):
    before = decide(snapshot, scope, at)

    for worse in ({"holds": ("abuse",)}, {"revoked": True}, {"issued": False}):
        after = decide(msgspec.structs.replace(snapshot, **worse), scope, at)
        assert not after.valid
        assert VerdictCode.values.index(after.code) <= VerdictCode.values.index(before.code)


@settings(max_examples=200, deadline=None)
@given(end=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_it_treats_intervals_as_half_open_at_the_very_instants(end):
    grace = end + DAY
    timed = snapshot(starts_at=end - DAY, expires_at=end, grace_until=grace)

    codes = [
        decide(timed, Scope(), at).code for at in (end - DAY - TICK, end - DAY, end - TICK, end, grace - TICK, grace)
    ]

    assert codes == ["not_started", "valid", "valid", "in_grace", "in_grace", "expired"]
