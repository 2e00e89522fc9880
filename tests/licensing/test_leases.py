"""Leases: who gets one, for how long, and how the unit comes back."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from licensing import activations, leases, lifecycle, sweeps, tokens
from licensing.catalog import Grant
from licensing.errors import Invalid, Missing
from licensing.leases import LeaseEnded, OfflineNotAllowed, SeatsNotFloating
from licensing.models import Activation, AuditEntry, Lease, License
from licensing.seats import LicenseNotUsable, NoSeatAvailable
from tests.factories import AT, BY, make_customer, make_license

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
CALLS = Grant("calls", kind="allowance", meter="calls", amount=Decimal(10))


def make_floating(**terms: Any) -> License:
    return make_license(**{"seat_kind": "floating", "seat_limit": 2} | terms)


def machine(number: int) -> str:
    return f"machine-{number:0>16}"


def check_out(license: License, number: int | None = None, at: Any = AT, **more: Any) -> Lease:
    fingerprint = "" if number is None else machine(number)
    return leases.check_out(license=license, fingerprint=fingerprint, by=BY, at=at, **more).lease


def used(license: License) -> int:
    return License.objects.get(pk=license.pk).seats_used


def actions() -> list[str]:
    return list(AuditEntry.objects.filter(action__startswith="lease.").order_by("id").values_list("action", flat=True))


def test_it_takes_a_unit_for_as_long_as_the_plan_says():
    license = make_floating(lease_duration=7 * MINUTE)

    lease = check_out(license, 1)

    assert lease.expires_at == AT + 7 * MINUTE
    assert not lease.offline
    assert used(license) == 1
    assert actions() == ["lease.checked_out"]


def test_it_answers_the_same_machine_with_its_lease_renewed():
    license = make_floating()
    first = check_out(license, 1)

    again = leases.check_out(license=license, fingerprint=machine(1), by=BY, at=AT + MINUTE)

    assert not again.created
    assert again.lease.pk == first.pk
    assert again.lease.expires_at == AT + 11 * MINUTE
    assert used(license) == 1


def test_it_takes_a_unit_each_for_callers_that_say_no_machine():
    license = make_floating()

    assert check_out(license).pk != check_out(license).pk
    assert used(license) == 2


def test_it_refuses_one_too_many_and_says_when_to_come_back():
    license = make_floating()
    check_out(license, 1, ttl=5 * MINUTE)
    check_out(license, 2, ttl=3 * MINUTE)

    with pytest.raises(NoSeatAvailable) as refused:
        check_out(license, 3, at=AT + MINUTE)

    assert refused.value.facts["retry_after_seconds"] == 120
    assert refused.value.detail == "All 2 are out."
    assert used(license) == 2


def test_it_counts_how_many_must_come_back_where_the_limit_was_lowered():
    license = make_floating(seat_limit=3)
    for number in range(3):
        check_out(license, number, ttl=(number + 1) * MINUTE)
    lifecycle.change_limits(license=license, seat_limit=2, by=BY, at=AT)

    with pytest.raises(NoSeatAvailable) as refused:
        check_out(license, 9)

    assert refused.value.facts["retry_after_seconds"] == 120


def test_it_names_no_time_where_none_will_help():
    license = make_floating(seat_limit=0)

    with pytest.raises(NoSeatAvailable) as refused:
        check_out(license, 1)

    assert "retry_after_seconds" not in refused.value.facts


def test_it_reclaims_what_lapsed_before_it_refuses():
    license = make_floating()
    old = [check_out(license, number) for number in range(2)]

    new = check_out(license, 3, at=AT + 10 * MINUTE)

    assert new.ended_at is None
    assert Lease.objects.filter(pk__in=[row.pk for row in old], ended_at=AT + 10 * MINUTE).count() == 2
    assert used(license) == 1
    assert actions() == ["lease.checked_out"] * 2 + ["lease.reclaimed"] * 2 + ["lease.checked_out"]


def test_it_leaves_lapsed_leases_be_while_there_is_room():
    license = make_floating()
    old = check_out(license, 1)

    check_out(license, 2, at=AT + DAY)

    assert Lease.objects.get(pk=old.pk).ended_at is None


@pytest.mark.parametrize(
    ("terms", "error"),
    [
        ({"seat_kind": "named"}, SeatsNotFloating),
        ({"scheme": "usage", "seat_limit": None, "grants": [CALLS]}, SeatsNotFloating),
        ({"duration": DAY}, LicenseNotUsable),
    ],
)
def test_it_refuses_where_there_is_nothing_to_check_out(terms, error):
    license = make_floating(**terms)

    with pytest.raises(error):
        check_out(license, 1, at=AT + 2 * DAY)

    assert used(license) == 0


@pytest.mark.parametrize("what", ["hold", "revoke"])
def test_it_refuses_a_license_that_is_stopped(what):
    license = make_floating()
    lease = check_out(license, 1)
    if what == "hold":
        lifecycle.hold(license=license, reason="abuse", by=BY, at=AT)
    else:
        lifecycle.revoke(license=license, reason="r", by=BY, at=AT)

    with pytest.raises(LicenseNotUsable):
        check_out(license, 2)
    with pytest.raises(LicenseNotUsable):
        leases.renew(lease=lease, at=AT)

    assert leases.check_in(lease=lease, by=BY, at=AT).ended_at == AT


@pytest.mark.parametrize("ttl", [timedelta(), -MINUTE, DAY + timedelta(seconds=1)])
def test_it_refuses_a_time_out_of_range(ttl):
    with pytest.raises(Invalid) as refused:
        check_out(make_floating(), 1, ttl=ttl)

    assert refused.value.pointer == "/ttl_seconds"


def test_it_never_lasts_beyond_the_license():
    license = make_floating(duration=DAY)
    graced = make_floating(duration=DAY, grace_period=DAY)

    assert check_out(license, 1, ttl=DAY, at=AT + DAY / 2).expires_at == AT + DAY
    assert check_out(license, 2, offline=True).expires_at == AT + DAY
    assert check_out(graced, 1, ttl=DAY, at=AT + DAY / 2).expires_at == AT + 3 * DAY / 2


# --- renewal ----------------------------------------------------------------------------------------


def test_it_renews_from_now_and_writes_neither_an_entry_nor_the_license():
    license = make_floating()
    lease = check_out(license, 1)
    before, entries = License.objects.get(pk=license.pk), AuditEntry.objects.count()

    with CaptureQueriesContext(connection) as queries:
        renewed = leases.renew(lease=lease, at=AT + 9 * MINUTE)

    assert renewed.expires_at == AT + 19 * MINUTE
    assert renewed.renewed_at == AT + 9 * MINUTE
    assert AuditEntry.objects.count() == entries
    assert License.objects.get(pk=license.pk).revision == before.revision
    assert not any('UPDATE "licensing_license"' in query["sql"] for query in queries)


def test_it_renews_what_lapsed_while_it_still_counts():
    license = make_floating()
    lease = check_out(license, 1)

    assert leases.renew(lease=lease, at=AT + DAY).expires_at == AT + DAY + 10 * MINUTE
    assert leases.reclaim(license_id=license.pk, at=AT + DAY) == 0


def test_it_renews_nothing_that_ended():
    lease = check_out(make_floating(), 1)
    leases.check_in(lease=lease, by=BY, at=AT)

    with pytest.raises(LeaseEnded):
        leases.renew(lease=lease, at=AT)


def test_it_never_shortens_a_lease():
    """Somebody may hold a statement of ours that it lasts: another would be given the same unit."""
    license = make_floating()
    lease = check_out(license, 1, ttl=timedelta(hours=5))

    assert leases.renew(lease=lease, at=AT + MINUTE, ttl=MINUTE).expires_at == AT + timedelta(hours=5)
    borrowed = check_out(license, 2, offline=True)
    asked_again = check_out(license, 2, at=AT + MINUTE)
    assert (asked_again.expires_at, asked_again.offline) == (borrowed.expires_at, True)


# --- offline ----------------------------------------------------------------------------------------


def test_it_lends_for_offline_use_up_to_the_plans_period():
    license = make_floating(offline_period=10 * DAY)

    lease = check_out(license, 1, offline=True)
    short = check_out(license, 2, offline=True, ttl=2 * DAY)

    assert (lease.offline, lease.expires_at) == (True, AT + 10 * DAY)
    assert short.expires_at == AT + 2 * DAY
    with pytest.raises(Invalid):
        check_out(license, 1, offline=True, ttl=11 * DAY)


def test_it_lends_nothing_where_the_plan_does_not():
    with pytest.raises(OfflineNotAllowed):
        check_out(make_floating(offline_period=timedelta()), 1, offline=True)


def test_it_takes_a_borrowed_lease_back_early():
    license = make_floating(seat_limit=1)
    lease = check_out(license, 1, offline=True)

    leases.check_in(lease=lease, by=BY, at=AT + DAY)

    assert check_out(license, 2, at=AT + DAY).ended_at is None


# --- the end ----------------------------------------------------------------------------------------


def test_it_gives_a_unit_back_once():
    license = make_floating()
    lease = check_out(license, 1)

    for _ in range(3):
        leases.check_in(lease=lease, by=BY, at=AT)

    assert used(license) == 0
    assert actions() == ["lease.checked_out", "lease.checked_in"]


def test_it_is_ended_by_a_person_with_a_reason():
    license = make_floating()
    lease = check_out(license, 1)

    leases.end(lease=lease, by=BY, at=AT, reason="left for the day")

    assert used(license) == 0
    entry = AuditEntry.objects.get(action="lease.ended")
    assert (entry.reason, entry.customer_id) == ("left for the day", license.customer_id)


def test_it_ends_every_lease_when_the_license_changes_hands():
    license = make_floating()
    check_out(license, 1)
    check_out(license, 2, offline=True)

    lifecycle.transfer(license=license, to=make_customer(), by=BY, at=AT, reason="sold")

    assert used(license) == 0
    assert not Lease.objects.filter(ended_at=None).exists()


def make_machine(license: License, number: int) -> Activation:
    return activations.activate(license=license, fingerprint=machine(number), by=BY, at=AT).activation


def test_it_frees_the_unit_of_a_machine_that_is_let_go():
    license = make_floating(seat_limit=1)
    bound = make_machine(license, 1)
    lease = check_out(license, 1)  # asked by a key, which names the machine by its fingerprint alone

    activations.deactivate(activation=bound, by=BY, at=AT + MINUTE)

    assert used(license) == 0
    assert AuditEntry.objects.get(action="lease.ended").reason == "machine let go"
    with pytest.raises(LeaseEnded):
        leases.renew(lease=lease, at=AT + MINUTE)
    assert check_out(license, 2, AT + MINUTE)


def test_it_leaves_a_unit_out_that_a_machine_borrowed_which_is_let_go():
    """It may be at work with it: nothing reaches it. Somebody who knows better ends this very lease."""
    license = make_floating(seat_limit=1)
    bound = make_machine(license, 1)
    lease = check_out(license, 1, offline=True, activation=bound)

    activations.deactivate(activation=bound, by=BY, at=AT + MINUTE)

    with pytest.raises(NoSeatAvailable) as refused:
        check_out(license, 2, AT + MINUTE)
    assert refused.value.facts["retry_after_seconds"] == int((lease.expires_at - AT - MINUTE).total_seconds())
    leases.end(lease=lease, by=BY, at=AT + MINUTE, reason="scrapped")
    assert check_out(license, 2, AT + MINUTE)


def test_it_frees_a_borrowed_unit_that_lapsed_with_its_machine():
    license = make_floating(seat_limit=1)
    bound = make_machine(license, 1)
    check_out(license, 1, offline=True, ttl=DAY, activation=bound)

    activations.deactivate(activation=bound, by=BY, at=AT + DAY)

    assert used(license) == 0


def test_it_leaves_the_leases_of_other_machines_alone():
    license = make_floating()
    gone, _ = make_machine(license, 1), make_machine(license, 2)
    check_out(license, 1)
    stays = check_out(license, 2)

    activations.deactivate(activation=gone, by=BY, at=AT)

    assert Lease.objects.get(ended_at=None) == stays


def test_it_lends_nothing_to_a_machine_that_was_let_go():
    license = make_floating()
    bound = make_machine(license, 1)
    activations.deactivate(activation=bound, by=BY, at=AT)

    with pytest.raises(Missing):
        check_out(license, 1, activation=bound)
    assert used(license) == 0


def test_it_gives_a_machine_that_comes_back_the_lease_it_borrowed():
    license = make_floating(seat_limit=1)
    bound = make_machine(license, 1)
    borrowed = check_out(license, 1, offline=True, activation=bound)
    activations.deactivate(activation=bound, by=BY, at=AT)
    again = make_machine(license, 1)

    lease = check_out(license, 1, activation=again)

    assert (lease.pk, lease.activation, lease.offline) == (borrowed.pk, again, True)


def test_it_lowers_a_ceiling_with_each_lease_that_ends():
    license = make_floating(seat_limit=3)
    out = [check_out(license, number) for number in range(3)]
    lifecycle.change_limits(license=license, seat_limit=1, by=BY, at=AT)

    for lease in out:
        leases.check_in(lease=lease, by=BY, at=AT)

    row = License.objects.get(pk=license.pk)
    assert (row.seats_used, row.seats_ceiling) == (0, 1)


# --- the sweep --------------------------------------------------------------------------------------


def test_it_reclaims_what_lapsed_and_nothing_else():
    license, other = make_floating(), make_floating()
    check_out(license, 1)
    check_out(license, 2, ttl=timedelta(hours=1))
    check_out(other, 1)

    before = sweeps.standing(sweeps.LEASES, at=AT + 12 * MINUTE)
    done = [sweeps.run(sweeps.LEASES, at=AT + 12 * MINUTE) for _ in range(2)]
    after = sweeps.standing(sweeps.LEASES, at=AT + 12 * MINUTE)

    assert done == [2, 0]
    assert (before.lag, after.lag) == (2 * MINUTE, timedelta())
    assert (used(license), used(other)) == (1, 0)


def test_it_reclaims_in_batches(monkeypatch):
    monkeypatch.setattr(leases, "BATCH", 2)
    license = make_floating(seat_limit=7)
    for number in range(7):
        check_out(license, number)

    assert leases.reclaim(license_id=license.pk, at=AT + DAY) == 7
    assert used(license) == 0


def test_it_goes_on_after_a_license_it_cannot_sweep(monkeypatch):
    broken, fine = make_floating(), make_floating()
    check_out(broken, 1)
    check_out(fine, 1)
    reclaim = leases.reclaim

    def fail(*, license_id, at):
        if license_id == broken.pk:
            raise RuntimeError("poison")
        return reclaim(license_id=license_id, at=at)

    monkeypatch.setattr(leases, "reclaim", fail)

    assert sweeps.run(sweeps.LEASES, at=AT + DAY) == 1
    assert (used(broken), used(fine)) == (1, 0)
    assert sweeps.standing(sweeps.LEASES, at=AT + DAY).failures == 1


def test_it_finds_what_lapsed_by_an_index():
    statement = "SELECT license_id FROM licensing_lease WHERE ended_at IS NULL AND expires_at <= {} ORDER BY expires_at"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN {statement.format('now()')} LIMIT 500")
        else:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement.format(chr(39) + '2030-01-01' + chr(39))}")
        plan = str(cursor.fetchall())

    assert "lease_due" in plan


# --- the statement ----------------------------------------------------------------------------------


def test_it_states_the_lease():
    license = make_floating()
    activation = activations.activate(license=license, fingerprint=machine(1), by=BY, at=AT).activation
    lease = check_out(license, 1, activation=activation, offline=True)

    claims = tokens.read(leases.statement(lease, AT), typ="lease+jwt")

    assert claims["sub"] == str(license.pk)
    assert claims["aud"] == license.product.code
    assert (claims["lease"], claims["fingerprint"], claims["offline"]) == (str(lease.pk), machine(1), True)
    assert claims["exp"] == int(lease.expires_at.timestamp())
    assert claims["iat"] == claims["nbf"] == int(AT.timestamp())
