"""Random schedules of assign, release and limit changes, by threads that run into each other.

After each one the books must balance. The seed is in each assertion; LICENTIA_SCHEDULES says how many (make soak:
20,000).
"""

import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from licensing import lifecycle, seats
from licensing.errors import Refused
from licensing.models import License, Seat
from tests.factories import AT, BY, make_customer, make_license, make_revision

LONG = bool(os.environ.get("LICENTIA_SOAK"))
SCHEDULES = int(os.environ.get("LICENTIA_SCHEDULES") or (20_000 if LONG else 60))
PARTS = 4 if LONG else 1
THREADS = 4
ACTS = 3


def _work(license: License, seed: int) -> None:
    """Do a few random things, as one client among several."""
    dice = random.Random(seed)
    for _ in range(ACTS):
        try:
            match dice.choice(("assign", "assign", "assign", "release", "limit")):
                case "assign":
                    seats.assign(license=license, holder=f"{dice.randrange(6)}@example.com", by=BY, at=AT)
                case "release":
                    live = list(Seat.objects.filter(license=license, released_at=None))
                    if live:
                        seats.release(seat=dice.choice(live), by=BY, at=AT)
                case "limit":
                    lifecycle.change_limits(license=license, seat_limit=dice.randrange(1, 5), by=BY, at=AT)
        except Refused:
            pass


def _demand(license: License, number: int) -> bool:
    """Ask for a seat nobody has asked for yet; return whether it was granted."""
    try:
        return seats.assign(license=license, holder=f"late{number}@example.com", by=BY, at=AT).created
    except seats.NoSeatAvailable:
        return False


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("part", range(PARTS))
def test_it_keeps_the_books_balanced_in_any_order(part):
    revision, customer = make_revision(seat_limit=3), make_customer()
    with ThreadPoolExecutor(THREADS) as pool:

        def together(act: Callable[[int], Any]) -> list[Any]:
            """Have every thread of the pool do it, all starting at the same moment."""
            gate = threading.Barrier(THREADS)

            def start(thread: int) -> Any:
                gate.wait(timeout=60)
                return act(thread)

            return list(pool.map(start, range(THREADS)))

        try:
            for schedule in range(part, SCHEDULES, PARTS):
                license = make_license(plan_revision=revision, customer=customer)

                together(lambda thread, license=license, seed=schedule: _work(license, seed * 31 + thread))

                row = License.objects.get(pk=license.pk)
                live = Seat.objects.filter(license=license, released_at=None).count()
                assert row.seats_used == live, f"seed {schedule}"
                assert row.seats_used <= row.seats_ceiling, f"seed {schedule}"
                assert row.seats_ceiling == max(row.seat_limit, row.seats_used), f"seed {schedule}"

                granted = sum(together(lambda thread, license=license: _demand(license, thread)))

                assert granted == min(THREADS, max(row.seat_limit - live, 0)), f"seed {schedule}"
        finally:
            together(lambda _: connection.close())
