"""Leases at the same time: never more out than there are, nobody refused while a lapsed one is still counted.

`test_it_oversells_without_the_guard` is the twin: it proves that the race these tests drive is a real one.
"""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, models, transaction

from licensing import activations, leases, lifecycle, sweeps
from licensing.errors import Missing, Refused
from licensing.models import Activation, AuditEntry, Lease, License
from licensing.seats import NoSeatAvailable
from tests.concurrency.together import kinds, together
from tests.factories import AT, BY, make_customer, make_license, make_revision

pytestmark = pytest.mark.django_db(transaction=True)
SCHEDULES = int(os.environ.get("LICENTIA_SCHEDULES") or (10_000 if os.environ.get("LICENTIA_SOAK") else 150)) // 5
MINUTE = timedelta(minutes=1)
LATER = AT + timedelta(hours=1)


def make_floating(**terms: Any) -> License:
    return make_license(**{"seat_kind": "floating", "seat_limit": 5} | terms)


def machine(number: int) -> str:
    return f"machine-{number:0>16}"


def check_out(license: License, number: int, at: Any = AT, **more: Any) -> Any:
    return lambda: leases.check_out(license=license, fingerprint=machine(number), by=BY, at=at, **more)


def wrong_with(license: License) -> str:
    """Return what is wrong with the license's books; empty when nothing is."""
    row = License.objects.get(pk=license.pk)
    live = Lease.objects.filter(license=row, ended_at=None).count()
    found = []
    if row.seats_used != live:
        found.append(f"{row.seats_used} units counted, {live} leases out")
    if row.seats_ceiling != max(row.seat_limit or 0, row.seats_used):
        found.append(f"ceiling {row.seats_ceiling} with limit {row.seat_limit} and {row.seats_used} used")
    out = AuditEntry.objects.filter(license_id=row.pk, action="lease.checked_out").count()
    back = AuditEntry.objects.filter(
        license_id=row.pk, action__in=("lease.checked_in", "lease.reclaimed", "lease.ended")
    ).count()
    ghosts = Lease.objects.filter(license=row, ended_at=None, offline=False, activation__deactivated_at__isnull=False)
    if ghosts.exists():
        found.append("a machine that was let go still holds a lease it has not borrowed")
    if out - back != live:
        found.append(f"{out} check-outs and {back} ends recorded, {live} leases out")
    return ", ".join(found)


def test_it_lets_exactly_five_of_fifty_work_at_once():
    license = make_floating()

    results = together(*(check_out(license, number) for number in range(50)))

    assert kinds(results) == {"CheckedOut": 5, "NoSeatAvailable": 45}
    assert wrong_with(license) == ""


def test_it_gives_exactly_what_lapsed_to_fifty_at_once():
    """A full house of which three lapsed: three get in, not two and not four, and nobody else loses a lease."""
    license = make_floating()
    for number in range(3):
        leases.check_out(license=license, fingerprint=machine(number), by=BY, at=AT)
    for number in range(3, 5):
        leases.check_out(license=license, fingerprint=machine(number), by=BY, at=AT, ttl=timedelta(hours=5))

    results = together(*(check_out(license, 100 + number, LATER) for number in range(50)))

    assert kinds(results) == {"CheckedOut": 3, "NoSeatAvailable": 47}
    assert wrong_with(license) == ""
    assert Lease.objects.filter(license=license, ended_at=None, fingerprint__in=[machine(3), machine(4)]).count() == 2


@pytest.mark.parametrize("limit", [1, 5])
def test_it_gives_one_machine_one_lease_however_often_asked_at_once(limit):
    license = make_floating(seat_limit=limit)

    results = together(*[check_out(license, 1)] * 20)

    assert kinds(results) == {"CheckedOut": 20}
    assert len({result.lease.pk for result in results}) == 1
    assert sum(result.created for result in results) == 1
    assert wrong_with(license) == ""


def test_it_takes_a_lease_back_once_however_often_asked_at_once():
    license = make_floating()
    lease = leases.check_out(license=license, fingerprint=machine(1), by=BY, at=AT).lease

    together(
        *[lambda: leases.check_in(lease=lease, by=BY, at=LATER)] * 8,
        *[lambda: leases.reclaim(license_id=license.pk, at=LATER)] * 8,
        *[lambda: leases.end(lease=lease, by=BY, at=LATER)] * 4,
    )

    assert License.objects.get(pk=license.pk).seats_used == 0
    assert wrong_with(license) == ""


def test_it_reclaims_once_however_many_sweeps_run_at_once():
    licenses = [make_floating() for _ in range(4)]
    for license in licenses:
        for number in range(5):
            leases.check_out(license=license, fingerprint=machine(number), by=BY, at=AT)

    results = together(*[lambda: sweeps.run(sweeps.LEASES, at=LATER)] * 6)

    assert sum(results) == 20
    assert [wrong_with(license) for license in licenses] == [""] * 4


def test_it_either_renews_or_reclaims():
    """A heartbeat that comes as the lease is reclaimed: renewed and counted, or ended and refused; never both."""
    license = make_floating()
    for turn in range(10):
        at = AT + turn * timedelta(days=1)
        lease = leases.check_out(license=license, fingerprint=machine(turn), by=BY, at=at).lease

        renewed, _ = together(
            lambda lease=lease, at=at: leases.renew(lease=lease, at=at + 20 * MINUTE),
            lambda at=at: leases.reclaim(license_id=license.pk, at=at + 20 * MINUTE),
        )

        ended = Lease.objects.get(pk=lease.pk).ended_at is not None
        assert ended is isinstance(renewed, leases.LeaseEnded)
        assert wrong_with(license) == ""


@pytest.mark.parametrize("offline", [False, True])
def test_it_frees_the_unit_of_a_machine_let_go_once_and_lends_it_to_no_ghost(offline):
    """The machine renews and asks again while it is let go, and others wait for its unit: never more are out than there
    are, and none stays with the machine that is gone, but for what it borrowed."""
    license = make_floating(seat_limit=2)

    def insist(gone: Activation, at: Any) -> None:
        for _ in range(8):
            with suppress(NoSeatAvailable):
                leases.check_out(license=license, fingerprint=gone.fingerprint, activation=gone, by=BY, at=at + MINUTE)

    for turn in range(12):
        at = AT + turn * timedelta(days=7)
        gone = activations.activate(license=license, fingerprint=machine(turn), by=BY, at=at).activation
        lease = leases.check_out(
            license=license, fingerprint=machine(turn), activation=gone, offline=offline, by=BY, at=at
        ).lease

        together(
            lambda gone=gone, at=at: activations.deactivate(activation=gone, by=BY, at=at + MINUTE),
            *[lambda lease=lease, at=at: leases.renew(lease=lease, at=at + MINUTE)] * 2,
            *[lambda gone=gone, at=at: insist(gone, at)] * 2,
            *(check_out(license, 1000 + turn * 10 + other, at + MINUTE) for other in range(2)),
        )

        out = Lease.objects.filter(license=license, ended_at=None)
        assert wrong_with(license) == ""
        assert out.count() <= 2
        assert out.filter(activation=gone).count() == offline
        for row in out:
            leases.end(lease=row, by=BY, at=at + MINUTE)


def test_it_binds_a_lease_to_a_machine_just_being_let_go_without_waiting_for_that(monkeypatch):
    """Else the two would wait for each other: who lets a machine go holds its row and waits for its lease, who renews
    holds the lease and, to refer to the machine, would wait for its row."""
    license = make_floating()
    gone = activations.activate(license=license, fingerprint=machine(1), by=BY, at=AT).activation
    leases.check_out(license=license, fingerprint=machine(1), by=BY, at=AT)
    let_go, renewed = leases.let_go, threading.Event()
    letting_go = threading.Event()

    def wait_for_the_renewal(**of: Any) -> int:
        letting_go.set()
        if connection.vendor == "postgresql":  # on SQLite there is one who writes
            assert renewed.wait(5)
        return let_go(**of)

    monkeypatch.setattr(leases, "let_go", wait_for_the_renewal)

    def renew() -> Any:
        assert letting_go.wait(5)
        done = leases.check_out(license=license, fingerprint=machine(1), activation=gone, by=BY, at=AT + MINUTE)
        renewed.set()
        return done

    results = together(lambda: activations.deactivate(activation=gone, by=BY, at=AT + MINUTE), renew)

    assert kinds(results) in ({"Activation": 1, "CheckedOut": 1}, {"Activation": 1, "Missing": 1})
    assert not Lease.objects.filter(license=license, ended_at=None).exists()
    assert wrong_with(license) == ""


def test_it_keeps_its_books_while_the_license_changes_hands():
    license = make_floating()

    results = together(
        *(check_out(license, number) for number in range(12)),
        lambda: lifecycle.transfer(license=license, to=make_customer(), by=BY, at=AT, reason="sold"),
        lambda: lifecycle.change_limits(license=license, seat_limit=2, by=BY, at=AT),
    )

    assert wrong_with(license) == ""
    assert {type(result).__name__ for result in results} <= {"CheckedOut", "NoSeatAvailable", "License"}


# --- the twin ---------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_it_oversells_without_the_guard():
    """Count the live leases, then insert one: what the rule would be without its conditional update."""
    license = make_floating()
    most = 0

    def grab(number: int) -> None:
        with transaction.atomic():
            if Lease.objects.filter(license=license, ended_at=None).count() < 5:
                Lease.objects.create(
                    license=license, created_at=AT, fingerprint=machine(number), checked_out_at=AT, renewed_at=AT,
                    expires_at=LATER,
                )  # fmt: skip

    for turn in range(20):
        Lease.objects.filter(license=license).update(ended_at=AT)
        together(*(lambda number=number, turn=turn: grab(turn * 100 + number) for number in range(20)))
        most = max(most, Lease.objects.filter(license=license, ended_at=None).count())
        if most > 5:
            break

    assert most > 5


@pytest.mark.postgres
def test_it_is_stopped_by_the_database_itself_when_the_rule_is_passed_by():
    license = make_floating(seat_limit=3)
    counted = threading.Barrier(8)

    def grab(number: int) -> Any:
        def act() -> bool:
            with transaction.atomic():
                free = Lease.objects.filter(license=license, ended_at=None).count() < 3
                counted.wait(20)
                if free:
                    Lease.objects.create(
                        license=license, created_at=AT, fingerprint=machine(number), checked_out_at=AT, renewed_at=AT,
                        expires_at=LATER,
                    )  # fmt: skip
                    License.objects.filter(pk=license.pk).update(seats_used=models.F("seats_used") + 1)
            return True

        return act

    results = together(*(grab(number) for number in range(8)))

    assert kinds(results) == {"bool": 3, "IntegrityError": 5}


# --- schedules --------------------------------------------------------------------------------------


class Clock:
    """One clock for all threads, which only goes forward."""

    def __init__(self) -> None:
        self.at = AT

    def pass_(self, span: timedelta) -> None:
        self.at += span


def _work(license: License, clock: Clock, seed: int) -> None:
    """Do a few random things, as one client among several."""
    dice = random.Random(seed)
    for _ in range(4):
        at = clock.at
        mine = list(Lease.objects.filter(license=license).order_by("-id")[:6])
        try:
            match dice.choice(("out", "out", "out", "in", "renew", "lapse", "reclaim", "limit", "come", "go")):
                case "out":
                    number = dice.randrange(8)
                    offline = dice.random() < 0.2
                    bound = Activation.objects.filter(
                        license=license, fingerprint=machine(number), deactivated_at=None
                    ).first()
                    leases.check_out(
                        license=license,
                        fingerprint=machine(number),
                        by=BY,
                        at=at,
                        offline=offline,
                        activation=bound,
                    )
                case "come":
                    activations.activate(license=license, fingerprint=machine(dice.randrange(8)), by=BY, at=at)
                case "go":
                    bound = Activation.objects.filter(license=license, deactivated_at=None).first()
                    if bound:
                        activations.deactivate(activation=bound, by=BY, at=at)
                case "in" if mine:
                    leases.check_in(lease=dice.choice(mine), by=BY, at=at)
                case "renew" if mine:
                    leases.renew(lease=dice.choice(mine), at=at)
                case "lapse":
                    clock.pass_(dice.choice((MINUTE, 11 * MINUTE)))
                case "reclaim":
                    leases.reclaim(license_id=license.pk, at=at)
                case "limit":
                    lifecycle.change_limits(license=license, seat_limit=dice.randrange(1, 5), by=BY, at=at)
        except (Refused, Missing):
            pass


def _demand(license: License, clock: Clock, number: int) -> bool:
    try:
        return bool(check_out(license, 1000 + number, clock.at)().created)
    except NoSeatAvailable:
        return False


def test_it_keeps_the_books_balanced_in_any_order():
    seed = int(os.environ.get("LICENTIA_SEED", random.SystemRandom().randrange(2**32)))
    print(f"LICENTIA_SEED={seed}")
    revision, customer = make_revision(seat_kind="floating", seat_limit=3), make_customer()
    threads = 4
    with ThreadPoolExecutor(threads) as pool:

        def all_at_once(act: Any) -> list[Any]:
            gate = threading.Barrier(threads)

            def start(thread: int) -> Any:
                gate.wait(timeout=60)
                return act(thread)

            return list(pool.map(start, range(threads)))

        try:
            for schedule in range(seed, seed + SCHEDULES):
                license, clock = make_license(plan_revision=revision, customer=customer), Clock()

                all_at_once(lambda thread, it=license, c=clock, s=schedule: _work(it, c, s * 31 + thread))

                assert wrong_with(license) == "", f"seed {schedule}"
                row = License.objects.get(pk=license.pk)
                kept = Lease.objects.filter(license=license, ended_at=None, expires_at__gt=clock.at).count()
                granted = sum(all_at_once(lambda thread, it=license, c=clock: _demand(it, c, thread)))
                assert granted == min(threads, max(row.seat_limit - kept, 0)), f"seed {schedule}"
                assert wrong_with(license) == "", f"seed {schedule}"
        finally:
            all_at_once(lambda _: connection.close())
