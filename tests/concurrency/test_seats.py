"""Seats and machines at the same time: never more than allowed, never fewer than could be given.

`test_it_overshoots_without_the_guard` is the twin: it proves that the race these tests drive is a real one.
"""

import os
import random
import threading
import time
from collections import Counter
from datetime import timedelta

import pytest
from django.db import connection, models, transaction

from licensing import activations, lifecycle, seats
from licensing.activations import ActivationLimitReached
from licensing.errors import Refused
from licensing.models import Activation, AuditEntry, License, Seat
from licensing.seats import Assigned, NoSeatAvailable
from tests.concurrency.together import kinds, together
from tests.factories import AT, BY, make_customer, make_license, make_revision

pytestmark = pytest.mark.django_db(transaction=True)
# Beside those of test_schedules: these add transfers, machines and licenses without a limit.
SCHEDULES = int(os.environ.get("LICENTIA_SCHEDULES") or (10_000 if os.environ.get("LICENTIA_SOAK") else 150)) // 5


def assign(license, holder):
    return lambda: seats.assign(license=license, holder=holder, by=BY, at=AT)


def activate(license, fingerprint):
    return lambda: activations.activate(license=license, fingerprint=fingerprint, by=BY, at=AT)


def machine(number) -> str:
    return f"machine-{number:0>16}"


def wrong_with(license_id) -> str:
    """Return what is wrong with the license's counters; empty when nothing is."""
    row = License.objects.get(pk=license_id)
    live = Seat.objects.filter(license=row, released_at=None).count()
    bound = Activation.objects.filter(license=row, deactivated_at=None).count()
    found = []
    if row.seats_used != live:
        found.append(f"{row.seats_used} seats counted, {live} there")
    if row.activations_used != bound:
        found.append(f"{row.activations_used} machines counted, {bound} there")
    if row.seats_ceiling is not None and not row.seats_used <= row.seats_ceiling:
        found.append("more seats than the ceiling")
    if row.seat_limit is not None and row.seats_ceiling != max(row.seat_limit, row.seats_used):
        found.append(f"ceiling {row.seats_ceiling} with limit {row.seat_limit} and {row.seats_used} used")
    if row.activation_limit is not None and row.activations_ceiling != max(row.activation_limit, row.activations_used):
        found.append("ceiling of machines off")
    return ", ".join(found)


def test_it_gives_exactly_ten_seats_to_fifty_at_once():
    license = make_license(seat_limit=10)

    results = together(*(assign(license, f"person-{number}@example.com") for number in range(50)))

    assert kinds(results) == {"Assigned": 10, "NoSeatAvailable": 40}
    assert wrong_with(license.pk) == ""
    assert AuditEntry.objects.filter(action="seat.assigned").count() == 10


def test_it_binds_exactly_ten_machines_of_fifty_at_once():
    license = make_license(activation_limit=10)

    results = together(*(activate(license, machine(number)) for number in range(50)))

    assert kinds(results) == {"Activated": 10, "ActivationLimitReached": 40}
    assert wrong_with(license.pk) == ""


@pytest.mark.parametrize("limit", [1, 10])
def test_it_gives_one_holder_one_seat_however_often_asked_at_once(limit):
    license = make_license(seat_limit=limit)

    results = together(*[assign(license, "ada@example.com")] * 20)

    assert kinds(results) == {"Assigned": 20}
    assert len({result.seat.pk for result in results}) == 1
    assert sum(result.created for result in results) == 1
    assert wrong_with(license.pk) == ""


@pytest.mark.parametrize("limit", [1, 10])
def test_it_binds_one_machine_once_however_often_asked_at_once(limit):
    license = make_license(activation_limit=limit)

    results = together(*[activate(license, machine(1))] * 20)

    assert kinds(results) == {"Activated": 20}
    assert len({result.activation.pk for result in results}) == 1
    assert wrong_with(license.pk) == ""


def test_it_binds_one_machine_to_one_license_of_the_product_only():
    revision = make_revision(fingerprint_scope="product")
    customer = make_customer()
    licenses = [make_license(plan_revision=revision, customer=customer) for _ in range(8)]

    results = together(*(activate(license, machine(1)) for license in licenses))

    assert kinds(results) == {"Activated": 1, "FingerprintInUse": 7}
    assert [wrong_with(license.pk) for license in licenses] == [""] * 8


def test_it_hands_one_seat_to_one_of_many_heirs():
    license = make_license(seat_limit=1)
    seat = seats.assign(license=license, holder="ada@example.com", by=BY, at=AT).seat

    results = together(
        *(
            lambda number=number: seats.transfer(seat=seat, to=f"heir-{number}@example.com", by=BY, at=AT)
            for number in range(10)
        )
    )

    assert kinds(results) == {"Seat": 1, "SeatReleased": 9}
    assert wrong_with(license.pk) == ""


def test_it_releases_one_seat_once_however_often_asked_at_once():
    license = make_license(seat_limit=2)
    seat = seats.assign(license=license, holder="ada@example.com", by=BY, at=AT).seat

    results = together(*[lambda: seats.release(seat=seat, by=BY, at=AT)] * 10)

    assert kinds(results) == {"Seat": 10}
    assert AuditEntry.objects.filter(action="seat.released").count() == 1
    assert wrong_with(license.pk) == ""


def test_it_releases_no_more_than_the_churn_limit_allows_at_once():
    license = make_license(seat_limit=10, seat_churn_limit=3, churn_window=timedelta(days=30))
    held = [seats.assign(license=license, holder=f"{n}@example.com", by=BY, at=AT).seat for n in range(10)]

    results = together(*(lambda seat=seat: seats.release(seat=seat, by=BY, at=AT) for seat in held))

    assert kinds(results) == {"Seat": 3, "SeatChurnExceeded": 7}
    assert wrong_with(license.pk) == ""


def test_it_keeps_the_limit_while_the_license_is_revoked_transferred_and_cut_at_once():
    license, heir = make_license(seat_limit=5), make_customer()

    results = together(
        *(assign(license, f"person-{number}@example.com") for number in range(10)),
        lambda: lifecycle.transfer(license=license, to=heir, by=BY, at=AT, reason="sold"),
        lambda: lifecycle.change_limits(license=license, seat_limit=2, by=BY, at=AT),
        lambda: lifecycle.renew(license=license, by=BY, at=AT),
    )

    assert wrong_with(license.pk) == ""
    assert {type(result).__name__ for result in results} <= {"Assigned", "License", "NoSeatAvailable"}


# --- the twin ---------------------------------------------------------------------------------------


def sql(statement: str) -> list:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.postgres
def test_it_overshoots_without_the_guard():
    """A throwaway table with no guard at all: rows are counted, then one is inserted."""
    limit, askers = 5, 12
    sql("CREATE TABLE twin_turnstile (id bigserial PRIMARY KEY)")
    try:
        granted = 0
        for _ in range(20):
            sql("DELETE FROM twin_turnstile")

            def enter():
                with transaction.atomic():
                    if sql("SELECT count(*) FROM twin_turnstile")[0][0] < limit:
                        sql("INSERT INTO twin_turnstile DEFAULT VALUES")

            together(*[enter] * askers)
            granted = sql("SELECT count(*) FROM twin_turnstile")[0][0]
            if granted > limit:
                break
    finally:
        sql("DROP TABLE twin_turnstile")

    assert granted > limit


@pytest.mark.postgres
def test_it_is_stopped_by_the_database_itself_when_the_rule_is_passed_by():
    """Count, then insert, then count up, without the rule: the check on the license refuses the eleventh."""
    license = make_license(seat_limit=3)
    counted = threading.Barrier(8)

    def grab(number):
        def act():
            with transaction.atomic():
                free = Seat.objects.filter(license=license, released_at=None).count() < 3
                counted.wait(20)
                if free:
                    Seat.objects.create(
                        license=license, holder=f"{number}@example.com", state="assigned", created_at=AT
                    )
                    License.objects.filter(pk=license.pk).update(seats_used=models.F("seats_used") + 1)
            return True

        return act

    results = together(*(grab(number) for number in range(8)))

    assert kinds(results) == {"bool": 3, "IntegrityError": 5}
    assert wrong_with(license.pk) == ""


# --- schedules --------------------------------------------------------------------------------------


class Schedule:
    """A short random plan for a few threads over one license, replayable by its seed."""

    THREADS = 3

    def __init__(self, seed: int, license_id) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.license = License(pk=license_id)
        self.plans = [[self._step(thread) for _ in range(self.random.randint(1, 3))] for thread in range(self.THREADS)]

    def _step(self, thread: int):
        holder = f"{self.random.randint(0, 3)}@example.com"
        choice = self.random.random()
        if choice < 0.45:
            return ("assign", holder)
        if choice < 0.7:
            return ("release", holder)
        if choice < 0.8:
            return ("transfer", holder, f"{self.random.randint(0, 5)}@example.com")
        if choice < 0.9:
            return ("limit", self.random.choice([0, 1, 2, 3, None]))
        return self.random.choice([("activate", machine(self.random.randint(0, 3))), ("deactivate",)])

    def run(self, thread: int) -> None:
        for step in self.plans[thread]:
            try:
                self._do(*step)
            except Refused:
                pass

    def _do(self, what: str, *details) -> None:
        license, first = self.license, details[0] if details else None
        live = Seat.objects.filter(license=license, holder=first, released_at=None)
        if what == "assign":
            seats.assign(license=license, holder=first, by=BY, at=AT)
        elif what == "limit":
            lifecycle.change_limits(license=license, seat_limit=first, activation_limit=first, by=BY, at=AT)
        elif what == "activate":
            activations.activate(license=license, fingerprint=first, by=BY, at=AT)
        elif what == "deactivate":
            if bound := Activation.objects.filter(license=license, deactivated_at=None).first():
                activations.deactivate(activation=bound, by=BY, at=AT)
        elif seat := live.first():
            if what == "release":
                seats.release(seat=seat, by=BY, at=AT)
            else:
                seats.transfer(seat=seat, to=details[1], by=BY, at=AT)

    def fill(self) -> str:
        """Ask for more seats than there can be; return what is wrong when not exactly the limit is given."""
        row = License.objects.get(pk=self.license.pk)
        if row.seat_limit is None:
            return ""
        given = 0
        for number in range(row.seat_limit + 1):
            try:
                given += seats.assign(license=row, holder=f"fill-{number}@example.com", by=BY, at=AT).created
            except NoSeatAvailable:
                break
        used = License.objects.get(pk=row.pk).seats_used
        expected = max(row.seat_limit, row.seats_used)
        return "" if used == expected else f"{used} seats used when {expected} could be"


def test_it_keeps_its_counters_through_random_schedules():
    seed = int(os.environ.get("LICENTIA_SEED", random.SystemRandom().randrange(2**32)))
    print(f"LICENTIA_SEED={seed}")
    revision, customer = make_revision(seat_limit=2, activation_limit=2), make_customer()
    ids = [make_license(plan_revision=revision, customer=customer).pk for _ in range(min(SCHEDULES, 100))]
    broken: dict[int, str] = {}
    errors: list[str] = []
    current: list[Schedule | None] = [None]
    start, done = threading.Barrier(Schedule.THREADS + 1), threading.Barrier(Schedule.THREADS + 1)

    def worker(thread: int) -> None:
        try:
            while True:
                start.wait(60)
                schedule = current[0]
                if schedule is None:
                    return
                try:
                    schedule.run(thread)
                except Exception as error:
                    errors.append(f"schedule {schedule.seed}, thread {thread}: {error!r}")
                done.wait(60)
        finally:
            connection.close()

    threads = [threading.Thread(target=worker, args=(number,), daemon=True) for number in range(Schedule.THREADS)]
    for thread in threads:
        thread.start()
    began, steps = time.monotonic(), Counter()
    for number in range(SCHEDULES):
        current[0] = schedule = Schedule(seed + number, ids[number % len(ids)])
        start.wait(60)
        done.wait(60)
        steps.update(step[0] for plan in schedule.plans for step in plan)
        wrong = wrong_with(schedule.license.pk) or (schedule.fill() if number % 10 == 0 else "")
        if wrong:
            broken[schedule.seed] = wrong
    current[0] = None
    start.wait(60)
    for thread in threads:
        thread.join(20)
    print(f"{SCHEDULES} schedules in {time.monotonic() - began:.0f} s: {dict(steps)}")

    assert (broken, errors) == ({}, [])


def test_it_gives_all_there_is_to_more_than_there_is_again_and_again():
    """Demand above the limit, seats given back meanwhile: at rest exactly the limit is given."""
    license = make_license(seat_limit=4)

    def come_and_go(number):
        def act():
            for turn in range(5):
                try:
                    made = seats.assign(license=license, holder=f"{number}-{turn}@example.com", by=BY, at=AT)
                except NoSeatAvailable:
                    continue
                assert isinstance(made, Assigned)
                if turn < 4:
                    seats.release(seat=made.seat, by=BY, at=AT)

        return act

    results = together(*(come_and_go(number) for number in range(8)))
    late = [_tried(license, number) for number in range(5)]

    assert kinds(results) == {"NoneType": 8}
    assert late[-1] == "refused"
    row = License.objects.get(pk=license.pk)
    assert row.seats_used == 4
    assert wrong_with(license.pk) == ""


def _tried(license, number) -> str:
    try:
        seats.assign(license=license, holder=f"late-{number}@example.com", by=BY, at=AT)
    except (NoSeatAvailable, ActivationLimitReached):
        return "refused"
    return "given"
