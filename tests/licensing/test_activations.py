"""Machines: bound, let go, counted; once per license, or once per product where the plan says so."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction

from licensing import activations, leases, license_files, lifecycle, seats, stamps, sweeps, webhooks
from licensing.activations import (
    ActivationChurnExceeded,
    ActivationLimitReached,
    FingerprintInUse,
    SeatNeeded,
)
from licensing.errors import Invalid, Missing
from licensing.models import Activation, Anomaly, AuditEntry, License, OutboxMessage
from licensing.seats import LicenseNotUsable
from tests.factories import AT, BY, make_customer, make_license, make_plan, make_revision

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
PRINT = "sha256:0123456789abcdef"


def activate(license, fingerprint=PRINT, **overrides):
    return activations.activate(**{"license": license, "fingerprint": fingerprint, "by": BY, "at": AT} | overrides)


def counts(license) -> tuple[int, int, int | None]:
    row = License.objects.get(pk=license.pk)
    live = Activation.objects.filter(license=row, deactivated_at=None).count()
    return row.activations_used, live, row.activations_ceiling


def prints(count):
    return [f"machine-{number:0>16}" for number in range(count)]


def test_it_binds_a_machine_and_counts_it():
    license = make_license(activation_limit=2)

    made = activate(license, name="ada-laptop", platform="linux")

    row = made.activation
    assert made.created
    assert (row.fingerprint, row.name, row.platform, row.activated_at) == (PRINT, "ada-laptop", "linux", AT)
    assert (row.last_seen_at, row.deactivated_at, row.seat) == (AT, None, None)
    assert counts(license) == (1, 1, 2)


def test_it_gives_the_same_machine_its_activation_again_even_when_all_are_taken():
    license = make_license(activation_limit=1)
    first = activate(license, name="ada-laptop", platform="linux").activation

    again = activate(license, name="", platform="darwin", at=AT + DAY)

    assert (again.activation.pk, again.created) == (first.pk, False)
    assert (again.activation.name, again.activation.platform) == ("ada-laptop", "darwin")
    assert Activation.objects.get().last_seen_at == AT + DAY
    assert counts(license) == (1, 1, 1)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_it_binds_exactly_as_many_as_are_allowed(limit):
    license = make_license(activation_limit=limit)
    for fingerprint in prints(limit):
        activate(license, fingerprint)

    with pytest.raises(ActivationLimitReached):
        activate(license)

    assert counts(license) == (limit, limit, limit)


def test_it_binds_without_end_when_there_is_no_limit():
    license = make_license(activation_limit=None)
    for fingerprint in prints(30):
        activate(license, fingerprint)

    activations.deactivate(activation=Activation.objects.first(), by=BY, at=AT)

    assert counts(license) == (29, 29, None)


def test_it_lets_a_machine_go_at_once_and_only_once():
    license = make_license(activation_limit=1)
    row = activate(license).activation

    activations.deactivate(activation=row, by=BY, at=AT + DAY)
    again = activations.deactivate(activation=row, by=BY, at=AT + 2 * DAY)
    new = activate(license)

    assert again.deactivated_at == AT + DAY
    assert new.created
    assert new.activation.pk != row.pk
    assert counts(license) == (1, 1, 1)


@pytest.mark.parametrize(
    "fingerprint",
    ["", "short", "x" * 15, "x" * 129, "with space 1234567", "größe-größe-größe", "x" * 16 + "\n", "x" * 20 + "'",
     "\x00" * 20],
)  # fmt: skip
def test_it_refuses_a_malformed_fingerprint(fingerprint):
    license = make_license()

    with pytest.raises(Invalid) as refused:
        activate(license, fingerprint)

    assert refused.value.pointer == "/fingerprint"
    assert counts(license)[:2] == (0, 0)


@pytest.mark.parametrize("fingerprint", ["x" * 16, "x" * 128, "AZaz09._:+/=-AZaz"])
def test_it_takes_any_fingerprint_of_its_characters(fingerprint):
    assert activate(make_license(), fingerprint).created


def test_it_compares_fingerprints_and_never_interprets_them():
    license = make_license(activation_limit=2)

    activate(license, "abcdefghijklmnop")

    assert activate(license, "ABCDEFGHIJKLMNOP").created


def test_it_refuses_on_a_license_that_cannot_be_used():
    revoked, held = make_license(), make_license()
    lifecycle.revoke(license=revoked, by=BY, at=AT, reason="test")
    lifecycle.hold(license=held, reason="unpaid", by=BY, at=AT)
    draft = lifecycle.prepare(customer=make_customer(), plan_revision=make_revision(), by=BY, at=AT)
    later = make_license(starts_at=AT + TICK, plan_revision=make_revision())
    expired = make_license(duration=DAY)

    for license, at in ((revoked, AT), (held, AT), (draft, AT), (later, AT), (expired, AT + DAY)):
        with pytest.raises(LicenseNotUsable):
            activate(license, at=at)
        assert counts(license)[:2] == (0, 0)


def test_it_binds_again_once_the_hold_is_lifted():
    license = make_license()
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    lifecycle.lift(license=license, reason="unpaid", by=BY, at=AT)

    assert activate(license).created


# --- scope ------------------------------------------------------------------------------------------


def test_it_binds_one_machine_to_several_licenses_where_the_scope_is_the_license():
    revision = make_revision(fingerprint_scope="license")

    assert all(activate(make_license(plan_revision=revision)).created for _ in range(2))


def test_it_binds_a_machine_once_per_product_where_the_plan_says_so():
    revision = make_revision(fingerprint_scope="product")
    one, two = make_license(plan_revision=revision), make_license(plan_revision=revision)
    other_product = make_license(fingerprint_scope="product")
    first = activate(one).activation

    with pytest.raises(FingerprintInUse):
        activate(two)

    assert activate(one).created is False
    assert activate(other_product).created
    assert counts(two) == (0, 0, 5)
    activations.deactivate(activation=first, by=BY, at=AT)
    assert activate(two).created


def test_it_has_the_database_refuse_a_machine_twice():
    row = activate(make_license()).activation

    for scope in (row.scope, row.license.product_id):
        with pytest.raises(IntegrityError), transaction.atomic():
            Activation.objects.create(
                license=row.license,
                created_at=AT,
                scope=scope,
                fingerprint=row.fingerprint,
                activated_at=AT,
                last_seen_at=AT,
            )


# --- seats ------------------------------------------------------------------------------------------


def test_it_binds_only_for_somebody_with_a_seat_where_the_plan_says_so():
    license = make_license(seat_required=True)
    seats.reserve(license=license, holder="kept@example.com", by=BY, at=AT)
    blocked = seats.assign(license=license, holder="blocked@example.com", by=BY, at=AT).seat
    seats.block(seat=blocked, by=BY, at=AT, reason="left")
    seat = seats.assign(license=license, holder="ada@example.com", by=BY, at=AT).seat

    for holder in (None, "nobody@example.com", "kept@example.com", "blocked@example.com"):
        with pytest.raises(SeatNeeded):
            activate(license, seat_holder=holder)

    assert activate(license, seat_holder="Ada@example.com").activation.seat == seat
    assert counts(license)[:2] == (1, 1)


def test_it_notes_the_seat_where_none_is_required():
    license = make_license()
    seat = seats.assign(license=license, holder="ada@example.com", by=BY, at=AT).seat

    assert activate(license, seat_holder="ada@example.com").activation.seat == seat
    assert activate(license, prints(1)[0], seat_holder="nobody@example.com").activation.seat is None


# --- churn ------------------------------------------------------------------------------------------


def test_it_limits_how_many_machines_are_let_go_within_the_window():
    license = make_license(activation_limit=3, activation_churn_limit=2, churn_window=30 * DAY)
    rows = [activate(license, fingerprint).activation for fingerprint in prints(3)]
    for row, at in zip(rows[:2], (AT, AT + DAY), strict=True):
        activations.deactivate(activation=row, by=BY, at=at)

    with pytest.raises(ActivationChurnExceeded, match="2"):
        activations.deactivate(activation=rows[2], by=BY, at=AT + 30 * DAY - TICK)

    assert counts(license) == (1, 1, 3)
    assert activations.deactivate(activation=rows[2], by=BY, at=AT + 30 * DAY).deactivated_at == AT + 30 * DAY


def test_it_lets_none_go_where_the_churn_limit_is_none():
    license = make_license(activation_churn_limit=0, churn_window=DAY)
    row = activate(license).activation

    with pytest.raises(ActivationChurnExceeded):
        activations.deactivate(activation=row, by=BY, at=AT)


def test_it_lets_the_ceiling_fall_with_each_machine_let_go():
    license = make_license(activation_limit=3)
    rows = [activate(license, fingerprint).activation for fingerprint in prints(3)]
    lifecycle.change_limits(license=license, activation_limit=1, by=BY, at=AT)

    seen = [counts(license)]
    for row in rows:
        with pytest.raises(ActivationLimitReached):
            activate(license)
        activations.deactivate(activation=row, by=BY, at=AT)
        seen.append(counts(license))

    assert seen == [(3, 3, 3), (2, 2, 2), (1, 1, 1), (0, 0, 1)]
    assert activate(license).created


# --- heartbeat, first activation --------------------------------------------------------------------


def test_it_notes_that_a_machine_was_seen_until_it_is_let_go():
    license = make_license()
    row = activate(license).activation
    before = AuditEntry.objects.count()

    activations.heartbeat(activation=row, at=AT + DAY)
    stamps.flush()

    assert Activation.objects.get().last_seen_at == AT + DAY
    assert AuditEntry.objects.count() == before
    row = activations.deactivate(activation=row, by=BY, at=AT + DAY)
    with pytest.raises(Missing):
        activations.heartbeat(activation=row, at=AT + 2 * DAY)


def test_it_starts_the_validity_with_the_first_machine_only():
    license = make_license(
        validity_basis="from_first_activation", duration=10 * DAY, grace_period=DAY, activation_limit=None
    )
    assert (license.expires_at, license.due_at) == (None, None)

    activate(license, prints(2)[0], at=AT + 5 * DAY)
    activate(license, prints(2)[1], at=AT + 6 * DAY)

    row = License.objects.get(pk=license.pk)
    assert (row.first_activated_at, row.expires_at) == (AT + 5 * DAY, AT + 15 * DAY)
    assert (row.grace_until, row.due_at) == (AT + 16 * DAY, AT + 15 * DAY)
    assert AuditEntry.objects.filter(action="license.validity_started").count() == 1


def test_it_leaves_an_expiry_that_the_license_was_given():
    revision = make_revision(validity_basis="from_first_activation", duration=365 * DAY)
    license = make_license(plan_revision=revision, expires_at=AT + 10 * DAY)

    activate(license, at=AT + DAY)

    row = License.objects.get(pk=license.pk)
    assert (row.first_activated_at, row.expires_at) == (AT + DAY, AT + 10 * DAY)


def test_it_leaves_the_expiry_that_a_change_of_plan_kept():
    product = make_plan().product
    yearly = make_revision(plan=make_plan(product=product), duration=365 * DAY)
    counted = make_revision(plan=make_plan(product=product), validity_basis="from_first_activation", duration=10 * DAY)
    license = make_license(plan_revision=yearly)
    lifecycle.change_plan(license=license, plan_revision=counted, by=BY, at=AT + DAY)

    activate(license, at=AT + 2 * DAY)

    assert License.objects.get(pk=license.pk).expires_at == AT + 365 * DAY


# --- machines that are not seen any more ------------------------------------------------------------

DEAD_AT = AT + 30 * DAY + activations.WRITTEN_WITHIN


def wanting(**terms):
    """Return a license under which a machine not seen for 30 days is let go, with one machine."""
    license = make_license(**{"activation_limit": 2, "activation_dead_after": 30 * DAY} | terms)
    return license, activate(license).activation


def run(at):
    return sweeps.run(sweeps.DEAD, at=at)


def test_it_lets_a_machine_go_that_was_not_seen_for_long_once(mailoutbox):
    license, machine = wanting(activation_churn_limit=0, churn_window=DAY)
    webhooks.create(customer=license.customer, url="https://example.com/hook", by=BY, at=AT)

    assert run(DEAD_AT - TICK) == 0
    assert [run(DEAD_AT), run(DEAD_AT), run(DEAD_AT + DAY)] == [1, 0, 0]

    machine.refresh_from_db()
    assert machine.deactivated_at == DEAD_AT
    assert counts(license) == (0, 0, 2)
    entry = AuditEntry.objects.get(action="activation.ended")
    assert (entry.actor_label, entry.reason) == ("dead-installations", f"Not seen since {AT:%Y-%m-%d %H:%M} UTC")
    told = OutboxMessage.objects.get(kind="webhook", payload__type="activation.ended").payload
    assert told["data"]["activation"] == str(machine.pk)


def test_it_lets_nobody_go_whose_plan_does_not_say_so_or_who_was_seen():
    license = make_license()
    activate(license)
    _, seen = wanting()
    stamps.seen(seen.pk, AT + DAY)  # in a process that writes it only now, after the machine's time was over
    stamps.flush()

    assert run(DEAD_AT) == 0
    assert run(DEAD_AT + 400 * DAY) == 1
    assert counts(license) == (1, 1, 5)


def test_it_keeps_a_machine_that_comes_back_while_the_job_runs(monkeypatch):
    license, machine = wanting()
    lock = seats.lock

    def meanwhile(license_id):
        Activation.objects.filter(pk=machine.pk).update(last_seen_at=DEAD_AT)
        return lock(license_id)

    monkeypatch.setattr(seats, "lock", meanwhile)
    assert run(DEAD_AT) == 0
    assert counts(license) == (1, 1, 2)


def test_it_keeps_a_machine_that_may_work_offline():
    _, machine = wanting()
    license_files.issue(license=machine.license, activation=machine, by=BY, at=AT + 20 * DAY)
    floating, _ = wanting(seat_kind="floating", offline_period=60 * DAY)
    leases.check_out(license=floating, fingerprint=PRINT, by=BY, at=AT, ttl=60 * DAY, offline=True)

    assert run(DEAD_AT) == 0
    assert run(AT + 50 * DAY + TICK) == 1
    assert run(AT + 60 * DAY + TICK) == 1


def test_one_machine_that_fails_does_not_keep_the_others(monkeypatch):
    (license, broken), (other, _) = wanting(), wanting()
    close = activations._close

    def fails(row, **more):
        if row.pk == broken.pk:
            raise ZeroDivisionError
        close(row, **more)

    monkeypatch.setattr(activations, "_close", fails)
    assert run(DEAD_AT) == 1
    assert (counts(license)[0], counts(other)[0]) == (1, 0)
    assert Anomaly.objects.get(rule="job_failed").object_id == "dead-installations"
