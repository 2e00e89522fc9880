"""Roll-ups at the same time as others and as writers; with a twin that shows what would be lost without the lock."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, connections, transaction
from django.db.models import Sum

from billing import rollups
from billing.models import MeterRevision, Rollup, UsageChange, UsageEvent
from licensing.ids import uuid7
from tests.concurrency.together import together
from tests.factories import AT, make_meter, make_usage

pytestmark = pytest.mark.django_db(transaction=True)
FIRST = datetime(2026, 3, 1, tzinfo=UTC)
_PAUSE = 4711


def in_thread(act: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        try:
            act()
        finally:
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextmanager
def paused_while_writing() -> Iterator[Callable[[], None]]:
    """Let whoever sets `tests.slow` wait between reading the events and writing the totals; yield how to let it go."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF current_setting('tests.slow', true) = 'yes' AND NEW.\"window\" = 'day' THEN"
            f" PERFORM pg_advisory_lock({_PAUSE}), pg_advisory_unlock({_PAUSE}); END IF; RETURN NEW; END $$"
        )
        cursor.execute(
            "CREATE TRIGGER wait_for_test BEFORE INSERT ON billing_rollup FOR EACH ROW EXECUTE FUNCTION wait_for_test()"
        )
        cursor.execute(f"SELECT pg_advisory_lock({_PAUSE})")
        try:
            yield lambda: cursor.execute(f"SELECT pg_advisory_unlock({_PAUSE})")
        finally:
            cursor.execute("SELECT pg_advisory_unlock_all()")
            cursor.execute("DROP FUNCTION wait_for_test() CASCADE")


def slow_roll_up() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET tests.slow = 'yes'")
    rollups.roll_up(at=AT)


def until_somebody_waits() -> None:
    patience = time.monotonic() + 20
    while time.monotonic() < patience:
        with connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            if cursor.fetchone()[0]:
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits")


def two_rollers(license: UUID, revision: MeterRevision) -> None:
    """Let one roller total a day of one hour, then usage of an earlier hour come in, then another roller total that
    with its day, then let the first one write."""
    make_usage(license=license, revision=revision, at=FIRST + timedelta(hours=5))
    with paused_while_writing() as let_go:
        first = in_thread(slow_roll_up)
        until_somebody_waits()
        make_usage(license=license, revision=revision, at=FIRST)
        second = in_thread(lambda: rollups.roll_up(at=AT, batch=1))
        second.join(1.0)
        let_go()
        first.join(20)
        second.join(20)
        assert not first.is_alive()
        assert not second.is_alive()
    assert not UsageChange.objects.exists()
    assert UsageEvent.objects.count() == 2


@pytest.mark.postgres
def test_a_roller_never_writes_an_older_total_over_a_newer() -> None:
    license, revision = uuid7(), make_meter()

    two_rollers(license, revision)

    assert Rollup.objects.get(window="day").quantity == 2


@pytest.mark.postgres
def test_without_the_lock_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    license, revision = uuid7(), make_meter()

    @contextmanager
    def not_alone() -> Iterator[Any]:
        with transaction.atomic(), connection.cursor() as cursor:
            yield cursor

    monkeypatch.setattr(rollups, "_alone", not_alone)
    two_rollers(license, revision)

    assert Rollup.objects.get(window="day").quantity == 1, "the race is gone: is the lock still needed?"


def test_rollers_and_writers_lose_nothing_between_them() -> None:
    license, revision = uuid7(), make_meter()
    writing = threading.Event()

    def write() -> None:
        for number in range(25):
            make_usage(license=license, revision=revision, at=FIRST + timedelta(minutes=number * 7), quantity="0.25")

    def roll() -> None:
        while not writing.is_set():
            rollups.roll_up(at=AT, batch=3)
            time.sleep(0.005)  # SQLite has one writer: let the others have a turn

    def read() -> None:
        while not writing.is_set():
            before = UsageEvent.objects.count()
            total = rollups.totals(license_id=license, starts_at=FIRST, ends_at=FIRST + timedelta(days=1))
            assert sum(each.quantity for each in total) * 4 >= before
            time.sleep(0.01)

    def write_all() -> None:
        try:
            assert together(*[write] * 4) == [None] * 4
        finally:
            writing.set()

    assert together(write_all, roll, roll, read) == [None] * 4
    rollups.roll_up(at=AT)

    assert UsageEvent.objects.count() == 100
    for window in ("hour", "day", "month"):
        total = Rollup.objects.filter(window=window).aggregate(total=Sum("quantity"), events=Sum("events"))
        assert total == {"total": 25, "events": 100}


@pytest.mark.postgres
def test_what_is_not_committed_yet_is_rolled_up_the_next_time() -> None:
    license, revision = uuid7(), make_meter()
    make_usage(license=license, revision=revision, at=FIRST)

    def roll() -> int:
        try:
            return rollups.roll_up(at=AT).changes
        finally:
            connections.close_all()

    with transaction.atomic():
        make_usage(license=license, revision=revision, at=FIRST)
        assert together(roll) == [1]
        assert Rollup.objects.get(window="hour").quantity == 1

    assert rollups.roll_up(at=AT).changes == 1
    assert Rollup.objects.get(window="hour").quantity == 2
