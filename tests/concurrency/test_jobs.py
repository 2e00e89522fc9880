"""Every periodic job, whatever befalls its runs: two beats at once, none for a day, a task delivered twice, a worker
killed in the middle. What is there in the end is there as if once (I9, F10, F18)."""

import os
import signal
from datetime import timedelta

import pytest
from django.db import connection, connections

from billing import partitions
from licensing import sweeps
from licensing.models import JobState
from tests.concurrency.together import together
from tests.factories import AT
from tests.works import THEN, held, make_due_work

pytestmark = pytest.mark.django_db(transaction=True)
NAMES = [job.name for job in sweeps.every()]
SECOND = timedelta(seconds=1)


def all_once(at) -> None:
    for job in sweeps.every():
        sweeps.beat(job, at=at)


@pytest.fixture
def as_once(mailoutbox, transactional_db):
    """What the database holds after every job ran once, in its order, and twice more when all that is due is done."""
    for at in (AT, THEN):  # partitions outlive a flush: both times there is none to be made
        partitions.ahead(at=at)
    make_due_work()
    before = held()
    for _ in range(2):
        for job in sweeps.every():
            sweeps.run(job, at=THEN)
    after = held()
    assert {name for name in before if before[name] != after[name]} >= {
        *(
            "licensing.License",
            "licensing.Lease",
            "licensing.Reservation",
            "licensing.SchemeChange",
            "licensing.Activation",
            "licensing.Reminder",
        ),
        *("licensing.OutboxMessage", "licensing.DecisionRecord", "licensing.IdempotencyRecord"),
        *("billing.Rollup", "billing.Statement", "billing.UsageId"),
    }, "there was something to do for most"
    _flush()
    return after


def _flush() -> None:
    from django.test import TransactionTestCase

    case = TransactionTestCase()
    case._fixture_teardown()
    make_due_work()


def assert_same(found, expected, but=()) -> None:
    differ = {name for name in found if found[name] != expected[name]} - set(but)
    shown = {name: (set(found[name]) ^ set(expected[name]), len(found[name]), len(expected[name])) for name in differ}
    assert not shown


def test_every_job_of_two_beats_at_once_ends_as_if_once(as_once):
    for _ in range(2):
        for job in sweeps.every():
            results = together(*[lambda job=job: sweeps.beat(job, at=THEN)] * 2)
            assert not [result for result in results if isinstance(result, Exception)], (job.name, results)
    for job in sweeps.every():
        sweeps.run(job, at=THEN)

    assert_same(held(), as_once)


def test_every_task_delivered_again_and_late_changes_nothing(as_once):
    for at in (THEN, THEN, THEN - 20 * SECOND):
        all_once(at)
    for _ in range(2):
        for job in sweeps.every():
            sweeps.run(job, at=THEN)

    assert_same(held(), as_once)


@pytest.mark.parametrize("seed", range(6))
def test_a_worker_killed_in_the_middle_leaves_what_the_next_run_mends(seed, as_once):
    """Killed by SIGKILL at the nth statement, for ns that go through all jobs."""
    nth = (seed * 67 + 11) % 400 + 1
    connections.close_all()
    child = os.fork()
    if child == 0:
        count = 0

        def kill(execute, sql, params, many, context):
            nonlocal count
            count += 1
            if count == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return execute(sql, params, many, context)

        try:
            with connection.execute_wrapper(kill):
                for _ in range(2):
                    for job in sweeps.every():
                        sweeps.run(job, at=THEN)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was killed"
    assert os.WTERMSIG(status) == signal.SIGKILL

    later = THEN + sweeps.CLAIM
    for _ in range(2):
        for job in sweeps.every():
            sweeps.run(job, at=THEN if job is not sweeps.OUTBOX else later)

    found, sent = held(), "licensing.OutboxMessage"
    assert len(found[sent]) == len(as_once[sent])
    assert_same(found, as_once, but=[sent])  # a message may have been tried twice


@pytest.mark.parametrize("name", [name for name in NAMES if name != "outbox-relay"])
def test_a_stretch_is_done_once_for_beats_at_once(name):
    ran = []
    job = sweeps.Job(name, sweeps.named(name).every, lambda at: (ran.append(1) or 1, 0), lambda at: timedelta())

    together(*[lambda: sweeps.beat(job, at=THEN)] * 4)
    sweeps.beat(job, at=THEN)

    assert ran == [1]
    assert JobState.objects.get(name=name).finished_key == sweeps.run_key(job, THEN)


def test_a_stretch_whose_worker_was_killed_is_done_when_its_claim_has_lapsed():
    connections.close_all()
    child = os.fork()
    if child == 0:
        day = timedelta(days=1)
        dies = sweeps.Job("daily", day, lambda at: os.kill(os.getpid(), signal.SIGKILL), lambda at: timedelta())
        sweeps.beat(dies, at=THEN)
        os._exit(0)
    os.waitpid(child, 0)
    job = sweeps.Job("daily", timedelta(days=1), lambda at: (1, 0), lambda at: timedelta())

    delivered_again = sweeps.beat(job, at=THEN + SECOND)
    quarter_later = sweeps.beat(job, at=THEN + timedelta(minutes=15))

    assert (delivered_again, quarter_later) == (0, 1)
