"""The life of a license: where its instants come from, what holds and ends it, what changes under it."""

from datetime import timedelta
from typing import Any

import pytest

from licensing import activations, keys, lifecycle, schemes, seats
from licensing.errors import Invalid, Missing, Refused
from licensing.lifecycle import AlreadyHeld, NotHeld, NothingToRenew, NotPublished, OtherProduct
from licensing.models import Activation, AuditEntry, Hold, License, OutboxMessage, Seat
from licensing.schemes import TermStartsAlready
from licensing.seats import LicenseNotUsable, NoSeatAvailable
from tests.factories import AT, BY, make_customer, make_license, make_license_and_key, make_plan, make_revision

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)


def status(license, at=AT):
    return lifecycle.status_of(License.objects.get(pk=license.pk), at)


def prepare(**overrides):
    revision = overrides.pop("plan_revision", None) or make_revision(**overrides.pop("terms", {}))
    return lifecycle.prepare(customer=make_customer(), plan_revision=revision, by=BY, at=AT, **overrides)


# --- issue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "expires_at"),
    [
        ({"duration": 30 * DAY}, AT + 30 * DAY),
        ({"duration": None}, None),
        ({"validity_basis": "from_first_activation", "duration": 30 * DAY}, None),
        ({"validity_basis": "fixed_date", "fixed_expires_at": AT + 7 * DAY}, AT + 7 * DAY),
        ({"validity_basis": "fixed_date", "fixed_expires_at": AT + 7 * DAY, "duration": DAY}, AT + 7 * DAY),
    ],
)
def test_it_counts_the_expiry_from_what_the_plan_says(terms, expires_at):
    license = make_license(**terms, grace_period=2 * DAY, maintenance=90 * DAY)

    assert license.expires_at == expires_at
    assert license.grace_until == (expires_at + 2 * DAY if expires_at else None)
    assert license.due_at == expires_at
    assert license.maintenance_until == AT + 90 * DAY
    assert (license.issued_at, license.starts_at, license.swept_status) == (AT, AT, "active")


def test_it_takes_limits_and_an_expiry_of_the_licenses_own():
    license = make_license(plan_revision=make_revision(), seat_limit=3, activation_limit=None, expires_at=AT + DAY)

    assert (license.seat_limit, license.seats_ceiling) == (3, 3)
    assert (license.activation_limit, license.activations_ceiling) == (None, None)
    assert license.expires_at == AT + DAY


def test_it_counts_from_the_start_when_that_is_later():
    license = make_license(plan_revision=make_revision(duration=30 * DAY), starts_at=AT + 10 * DAY)

    assert (license.starts_at, license.expires_at) == (AT + 10 * DAY, AT + 40 * DAY)
    assert schemes.term_at(license=license, at=AT) is None
    assert schemes.term_at(license=license, at=AT + 10 * DAY).reason == "issued"


@pytest.mark.parametrize("expires_at", [AT, AT - TICK, AT - 900 * DAY])
def test_it_issues_nothing_that_ends_before_it_starts(expires_at):
    revision = make_revision()

    with pytest.raises(Invalid):
        make_license(plan_revision=revision, expires_at=expires_at)
    with pytest.raises(Invalid):
        make_license(plan_revision=make_revision(validity_basis="fixed_date", fixed_expires_at=expires_at))
    assert not License.objects.exists()


def test_it_gives_a_draft_its_key_when_it_is_issued_and_only_then():
    draft = prepare()
    assert (status(draft), draft.keys.count(), draft.terms.count(), draft.due_at) == ("draft", 0, 0, None)

    issued, key = lifecycle.issue_prepared(license=draft, by=BY, at=AT + DAY)

    assert (status(issued, AT + DAY), issued.issued_at) == ("active", AT + DAY)
    assert keys.find(key) == issued
    assert issued.terms.count() == 1
    with pytest.raises(Refused):
        lifecycle.issue_prepared(license=draft, by=BY, at=AT)


def test_it_does_nothing_else_with_a_draft():
    draft = prepare()
    other = make_revision(plan=draft.plan_revision.plan)

    for act in (
        lambda: lifecycle.renew(license=draft, by=BY, at=AT),
        lambda: lifecycle.hold(license=draft, reason="staff", by=BY, at=AT),
        lambda: lifecycle.revoke(license=draft, by=BY, at=AT, reason="x"),
        lambda: lifecycle.transfer(license=draft, to=make_customer(), by=BY, at=AT, reason="x"),
        lambda: lifecycle.change_plan(license=draft, plan_revision=other, by=BY, at=AT),
        lambda: lifecycle.change_limits(license=draft, seat_limit=1, by=BY, at=AT),
    ):
        with pytest.raises(LicenseNotUsable):
            act()
    assert status(draft) == "draft"


# --- renew ------------------------------------------------------------------------------------------

END = AT + 30 * DAY


@pytest.mark.parametrize(
    ("basis", "at", "expires_at"),
    [
        ("from_expiry", AT + 10 * DAY, END + 30 * DAY),
        ("from_expiry", END + 5 * DAY, END + 30 * DAY),
        ("from_now", AT + 10 * DAY, AT + 40 * DAY),
        ("from_now", END + 5 * DAY, END + 35 * DAY),
        ("from_now_if_expired", AT + 10 * DAY, END + 30 * DAY),
        ("from_now_if_expired", END, END + 30 * DAY),
        ("from_now_if_expired", END + 5 * DAY, END + 35 * DAY),
    ],
)
def test_it_renews_from_what_the_plan_says(basis, at, expires_at):
    license = make_license(duration=30 * DAY, grace_period=2 * DAY, maintenance=30 * DAY, renewal_basis=basis)

    row = lifecycle.renew(license=license, by=BY, at=at)

    assert (row.expires_at, row.grace_until) == (expires_at, expires_at + 2 * DAY)
    assert row.maintenance_until == expires_at
    assert (row.swept_status, row.due_at) == ("active", expires_at)
    assert AuditEntry.objects.get(action="license.renewed").after["expires_at"].startswith(f"{expires_at:%Y-%m-%d}")


def test_it_renews_for_a_duration_of_the_callers_own():
    license = make_license(duration=30 * DAY)

    assert lifecycle.renew(license=license, by=BY, at=AT, duration=DAY).expires_at == END + DAY


@pytest.mark.parametrize("duration", [-DAY, 4_000_000 * DAY, timedelta.max])
def test_it_renews_for_no_impossible_time(duration):
    license = make_license(duration=30 * DAY)

    with pytest.raises(Invalid):
        lifecycle.renew(license=license, by=BY, at=AT, duration=duration)

    assert License.objects.get().expires_at == END


def test_it_renews_nothing_that_never_ends():
    with pytest.raises(NothingToRenew):
        lifecycle.renew(license=make_license(duration=None), by=BY, at=AT)


def test_it_renews_the_maintenance_of_a_perpetual_license():
    license = make_license(duration=None, maintenance=30 * DAY)

    row = lifecycle.renew(license=license, by=BY, at=AT + 10 * DAY)

    assert (row.expires_at, row.maintenance_until) == (None, END + 30 * DAY)


def test_it_asks_for_how_long_when_the_plan_does_not_say():
    license = make_license(validity_basis="fixed_date", fixed_expires_at=END, duration=None)

    with pytest.raises(Invalid) as refused:
        lifecycle.renew(license=license, by=BY, at=AT)

    assert refused.value.pointer == "/duration_seconds"
    assert lifecycle.renew(license=license, by=BY, at=AT, duration=DAY).expires_at == END + DAY


def test_it_makes_an_expired_license_active_again():
    license = make_license(duration=30 * DAY, renewal_basis="from_now_if_expired")
    lifecycle.pass_time(license_id=license.pk, by=BY, at=END)
    assert status(license, END) == "expired"

    lifecycle.renew(license=license, by=BY, at=END)

    assert status(license, END) == "active"


def test_it_is_in_grace_from_the_expiry_itself_to_the_end_of_grace():
    license = make_license(duration=30 * DAY, grace_period=2 * DAY)

    seen = [status(license, at) for at in (END - TICK, END, END + 2 * DAY - TICK, END + 2 * DAY)]

    assert seen == ["active", "in_grace", "in_grace", "expired"]


# --- hold, lift, revoke -----------------------------------------------------------------------------


def test_it_is_held_while_any_reason_is_open():
    license = make_license()

    for reason in ("unpaid", "abuse"):
        lifecycle.hold(license=license, reason=reason, by=BY, at=AT)
    held = status(license)
    lifecycle.lift(license=license, reason="unpaid", by=BY, at=AT + DAY)
    still = status(license)
    lifecycle.lift(license=license, reason="abuse", by=BY, at=AT + DAY)

    assert (held, still, status(license)) == ("held", "held", "active")


def test_it_is_held_once_for_each_reason_at_a_time():
    license = make_license()
    first = lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)

    with pytest.raises(AlreadyHeld):
        lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    lifecycle.lift(license=license, reason="unpaid", by=BY, at=AT + DAY)
    with pytest.raises(NotHeld):
        lifecycle.lift(license=license, reason="unpaid", by=BY, at=AT + DAY)
    second = lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT + DAY)

    assert first.pk != second.pk
    assert Hold.objects.count() == 2


@pytest.mark.parametrize("reason", ["", "whim", "UNPAID", "unpaid "])
def test_it_is_held_for_known_reasons_only(reason):
    with pytest.raises(Invalid):
        lifecycle.hold(license=make_license(), reason=reason, by=BY, at=AT)


def test_it_has_the_customer_told_of_a_hold_without_the_note():
    license = make_license()

    lifecycle.hold(license=license, reason="abuse", by=BY, at=AT, note="they resell it")

    message = OutboxMessage.objects.get()
    assert message.payload == {"template": "held", "facts": {"reason": "abuse"}}
    assert message.license_id == license.pk


def test_it_stops_time_for_nobody_who_is_held():
    license = make_license(duration=30 * DAY)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)

    lifecycle.pass_time(license_id=license.pk, by=BY, at=END)
    lifecycle.lift(license=license, reason="unpaid", by=BY, at=END)

    assert status(license, END) == "expired"


def test_it_is_revoked_for_good():
    license, key = make_license_and_key()
    lifecycle.hold(license=license, reason="abuse", by=BY, at=AT)

    row = lifecycle.revoke(license=license, by=BY, at=AT + DAY, reason="fraud")
    again = lifecycle.revoke(license=license, by=BY, at=AT + 2 * DAY, reason="again")

    assert row.revoked_at == again.revoked_at == AT + DAY
    assert (row.swept_status, row.due_at) == ("revoked", None)
    assert AuditEntry.objects.filter(action="license.revoked").count() == 1
    assert keys.find(key) == license
    for act in (
        lambda: lifecycle.renew(license=license, by=BY, at=AT),
        lambda: lifecycle.hold(license=license, reason="staff", by=BY, at=AT),
        lambda: lifecycle.transfer(license=license, to=make_customer(), by=BY, at=AT, reason="x"),
        lambda: lifecycle.change_limits(license=license, seat_limit=1, by=BY, at=AT),
        lambda: seats.assign(license=license, holder="a@example.com", by=BY, at=AT),
    ):
        with pytest.raises(LicenseNotUsable):
            act()
    lifecycle.lift(license=license, reason="abuse", by=BY, at=AT + DAY)
    assert status(license, AT + DAY) == "revoked"


@pytest.mark.parametrize("reason", ["", "  ", "\n"])
def test_it_is_revoked_only_with_a_reason(reason):
    license = make_license()

    with pytest.raises(Invalid):
        lifecycle.revoke(license=license, by=BY, at=AT, reason=reason)

    assert status(license) == "active"


# --- transfer ---------------------------------------------------------------------------------------


def test_it_lets_everything_of_the_former_customer_go():
    license, old = make_license_and_key(seat_limit=3, activation_limit=3, seat_churn_limit=0, churn_window=DAY)
    former, heir = license.customer, make_customer()
    for name in ("a", "b"):
        seats.assign(license=license, holder=f"{name}@former.example", by=BY, at=AT)
        activations.activate(license=license, fingerprint=f"machine-{name:x>16}", by=BY, at=AT)
    revision = License.objects.get().revision

    row = lifecycle.transfer(license=license, to=heir, by=BY, at=AT + DAY, reason="company sold")

    entry = AuditEntry.objects.get(action="license.transferred")
    assert row.customer == heir
    assert (row.seats_used, row.activations_used) == (0, 0)
    assert not Seat.objects.filter(released_at=None).exists()
    assert not Activation.objects.filter(deactivated_at=None).exists()
    with pytest.raises(Missing):
        keys.find(old)
    assert row.keys.filter(retired_at=None).count() == 1
    assert row.revision > revision
    assert entry.before == {"customer": str(former.pk)}
    assert entry.after == {"customer": str(heir.pk), "seats_released": 2, "activations_ended": 2}


def test_it_transfers_nothing_to_the_customer_who_has_it():
    license, key = make_license_and_key()

    with pytest.raises(Refused):
        lifecycle.transfer(license=license, to=license.customer, by=BY, at=AT, reason="x")

    assert keys.find(key) == license


def test_it_lets_a_ceiling_above_the_limit_fall_with_a_transfer():
    license = make_license(seat_limit=3)
    for name in "abc":
        seats.assign(license=license, holder=f"{name}@example.com", by=BY, at=AT)
    lifecycle.change_limits(license=license, seat_limit=1, by=BY, at=AT)

    row = lifecycle.transfer(license=license, to=make_customer(), by=BY, at=AT, reason="sold")

    assert (row.seat_limit, row.seats_ceiling, row.seats_used) == (1, 1, 0)


# --- change of plan, of limits ----------------------------------------------------------------------


def two_plans(first: dict, second: dict):
    product = make_plan().product
    return [make_revision(plan=make_plan(product=product), **terms) for terms in (first, second)]


def change(license, revision, at=AT + DAY):
    return lifecycle.change_plan(license=license, plan_revision=revision, by=BY, at=at, reason="wished")


@pytest.mark.parametrize(
    ("first", "second", "expires_at"),
    [
        ({"duration": 30 * DAY}, {"duration": 365 * DAY}, END),
        ({"duration": 30 * DAY}, {"duration": None}, None),
        ({"duration": None}, {"duration": 30 * DAY}, AT + 31 * DAY),
        ({"duration": None}, {"duration": None}, None),
        ({"duration": None}, {"validity_basis": "from_first_activation", "duration": DAY}, None),
        ({"duration": 30 * DAY}, {"validity_basis": "fixed_date", "fixed_expires_at": END + DAY}, END + DAY),
    ],
)
def test_it_keeps_the_expiry_unless_the_new_terms_have_none_or_are_the_first_to_have_one(first, second, expires_at):
    before, after = two_plans(first, second | {"grace_period": DAY})
    license = make_license(plan_revision=before)

    row = change(license, after)

    assert row.expires_at == row.due_at == expires_at
    assert row.grace_until == (expires_at + DAY if expires_at else None)


def test_it_opens_a_term_and_keeps_the_one_before():
    before, after = two_plans({"seat_limit": 3}, {"seat_limit": 7, "activation_limit": None})
    license = make_license(plan_revision=before)

    row = change(license, after)

    assert (row.plan_revision, row.seat_limit, row.activation_limit) == (after, 7, None)
    assert schemes.term_at(license=license, at=AT + DAY - TICK).plan_revision == before
    assert schemes.term_at(license=license, at=AT + DAY).plan_revision == after
    with pytest.raises(TermStartsAlready):
        change(license, before)


@pytest.mark.parametrize("at", [AT, AT - DAY, AT + 5 * DAY - TICK])
def test_it_opens_no_term_before_the_one_in_force(at):
    """A clock that runs behind, or a license that has not started: the term would be over before it began."""
    before, after = two_plans({}, {})
    license = make_license(plan_revision=before)
    change(license, after, AT + 5 * DAY)

    with pytest.raises(TermStartsAlready):
        change(license, before, at)

    row = License.objects.get()
    assert row.plan_revision == schemes.term_at(license=row, at=AT + 9 * DAY).plan_revision == after


def test_it_changes_no_plan_to_another_product_or_to_what_is_not_sold():
    plan = make_plan()
    license = make_license(plan_revision=make_revision(plan=plan))

    with pytest.raises(OtherProduct):
        change(license, make_revision())
    with pytest.raises(NotPublished):
        change(license, make_revision(plan=plan, publish=False))


def test_it_throws_nobody_out_when_the_new_plan_allows_less():
    before, after = two_plans({"seat_limit": 5, "activation_limit": 5}, {"seat_limit": 2, "activation_limit": 1})
    license = make_license(plan_revision=before)
    held = [seats.assign(license=license, holder=f"{n}@example.com", by=BY, at=AT).seat for n in range(4)]
    for number in range(3):
        activations.activate(license=license, fingerprint=f"machine-{number:0>16}", by=BY, at=AT)

    row = change(license, after)
    over = (row.seats_used, row.seats_ceiling, row.activations_used, row.activations_ceiling)
    ceilings = []
    for seat in held:
        with pytest.raises(NoSeatAvailable):
            seats.assign(license=license, holder="new@example.com", by=BY, at=AT + DAY)
        seats.release(seat=seat, by=BY, at=AT + DAY)
        ceilings.append(License.objects.get().seats_ceiling)
        if License.objects.get().seats_used < 2:
            break

    assert over == (4, 4, 3, 3)
    assert ceilings == [3, 2, 2]
    assert seats.assign(license=license, holder="new@example.com", by=BY, at=AT + DAY).created


@pytest.mark.parametrize(
    ("first", "second", "until"),
    [
        ({"maintenance": 30 * DAY}, {}, None),
        ({}, {"maintenance": 30 * DAY}, AT + 31 * DAY),
        ({"maintenance": 30 * DAY}, {"maintenance": 90 * DAY}, AT + 30 * DAY),
    ],
)
def test_it_keeps_a_maintenance_window_the_license_has(first, second, until):
    before, after = two_plans(first, second)

    assert change(make_license(plan_revision=before), after).maintenance_until == until


def test_it_gives_a_license_limits_of_its_own():
    license = make_license(seat_limit=10, activation_limit=5)

    row = lifecycle.change_limits(license=license, seat_limit=20, by=BY, at=AT)
    both = lifecycle.change_limits(license=license, seat_limit=None, activation_limit=0, by=BY, at=AT)

    assert (row.seat_limit, row.seats_ceiling, row.activation_limit) == (20, 20, 5)
    assert (both.seat_limit, both.seats_ceiling, both.activations_ceiling) == (None, None, 0)


@pytest.mark.parametrize("limit", [-1, 2_000_000_001, 2**40])
@pytest.mark.parametrize("name", ["seat_limit", "activation_limit"])
def test_it_takes_no_impossible_limit(name, limit):
    license = make_license()

    with pytest.raises(Invalid) as refused:
        lifecycle.change_limits(license=license, by=BY, at=AT, **{name: limit})
    with pytest.raises(Invalid):
        make_license(plan_revision=license.plan_revision, **{name: limit})

    assert refused.value.pointer == f"/{name}"


# --- time -------------------------------------------------------------------------------------------


def test_it_records_each_transition_once_with_the_instant_it_occurred():
    license = make_license(duration=30 * DAY, grace_period=2 * DAY)

    passed = [
        lifecycle.pass_time(license_id=license.pk, by=BY, at=at)
        for at in (END - TICK, END, END, END + DAY, END + 9 * DAY, END + 9 * DAY)
    ]

    entries = AuditEntry.objects.filter(action__in=["license.entered_grace", "license.expired"]).order_by("id")
    assert passed == [0, 1, 0, 0, 1, 0]
    assert [(e.action, e.before["status"], e.after["status"]) for e in entries] == [
        ("license.entered_grace", "active", "in_grace"),
        ("license.expired", "in_grace", "expired"),
    ]
    assert entries[1].after["occurred_at"] == (END + 2 * DAY).isoformat().replace("+00:00", "Z")
    assert entries[1].at == END + 9 * DAY
    row = License.objects.get()
    assert (row.swept_status, row.due_at) == ("expired", None)


def test_it_catches_up_on_all_transitions_at_once_in_their_order():
    license = make_license(duration=30 * DAY, grace_period=2 * DAY)

    passed = lifecycle.pass_time(license_id=license.pk, by=BY, at=END + 90 * DAY)

    assert passed == 2
    assert [m.payload["template"] for m in OutboxMessage.objects.order_by("id")] == ["entered_grace", "expired"]


@pytest.mark.parametrize(
    "act",
    [
        lambda row, at: lifecycle.renew(license=row, by=BY, at=at),
        lambda row, at: lifecycle.hold(license=row, reason="dispute", by=BY, at=at),
        lambda row, at: lifecycle.revoke(license=row, by=BY, at=at, reason="fraud"),
        lambda row, at: lifecycle.change_limits(license=row, seat_limit=7, by=BY, at=at),
    ],
    ids=["renewed", "held", "revoked", "limits changed"],
)
def test_an_act_between_an_expiry_and_its_sweep_does_not_swallow_it(act: Any):
    license = make_license(duration=30 * DAY, grace_period=2 * DAY)

    act(license, END + timedelta(hours=1))
    swept = lifecycle.pass_time(license_id=license.pk, by=BY, at=END + timedelta(hours=1))

    entry = AuditEntry.objects.get(action="license.entered_grace")
    assert swept == 0
    assert (entry.actor_id, entry.after["occurred_at"]) == ("expiration-sweep", END.isoformat().replace("+00:00", "Z"))
    assert OutboxMessage.objects.filter(payload__template="entered_grace").count() == 1
    assert License.objects.get().due_at != END


def test_it_lets_no_time_pass_for_a_license_that_is_not_there():
    assert lifecycle.pass_time(license_id="0198f2a0-0000-7000-8000-000000000001", by=BY, at=AT) == 0
