"""The outbox: sent at least once, retried ever later, given up loudly, never twice at the same time."""

from datetime import timedelta

import pytest
from django.db import DatabaseError, connection, transaction

from licensing import outbox
from licensing.models import OutboxMessage
from licensing.outbox import FIRST_RETRY, GIVE_UP_AFTER, LONGEST_RETRY
from tests.factories import AT

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)


class Sink:
    """Takes messages, or refuses them while it is broken."""

    def __init__(self):
        self.taken, self.broken = [], None

    def __call__(self, message):
        if self.broken:
            raise self.broken
        self.taken.append(message.payload["n"])


@pytest.fixture
def sink():
    return Sink()


def enqueue(n=1, at=AT):
    return outbox.enqueue(kind="test", payload={"n": n}, at=at)


def relay(sink, at=AT, **overrides):
    return outbox.relay(handlers={"test": sink}, at=at, **overrides)


def test_it_sends_what_is_due_in_order_once(sink):
    for n in range(3):
        enqueue(n)
    enqueue(9, at=AT + DAY)

    first, second = relay(sink), relay(sink)

    assert (first, second) == ((3, []), (0, []))
    assert sink.taken == [0, 1, 2]
    assert list(OutboxMessage.objects.order_by("id").values_list("attempts", flat=True)) == [1, 1, 1, 0]


def test_it_sends_nothing_of_a_change_that_was_undone(sink):
    with pytest.raises(RuntimeError), transaction.atomic():
        enqueue()
        raise RuntimeError

    assert relay(sink) == (0, [])


def test_it_keeps_a_failure_and_sends_the_others(sink):
    enqueue(1)

    def picky(message):
        if message.payload["n"] == 1:
            raise ConnectionError("no route to host")
        sink(message)

    enqueue(2)
    delivered, given_up = relay(picky)

    row = OutboxMessage.objects.get(payload={"n": 1})
    assert (delivered, given_up, sink.taken) == (1, [], [2])
    assert (row.attempts, row.delivered_at, row.last_error) == (1, None, "ConnectionError: no route to host")
    assert AT + FIRST_RETRY * 0.8 <= row.due_at <= AT + FIRST_RETRY * 1.2


def test_it_waits_longer_each_time_and_never_longer_than_six_hours(sink):
    row, at, waits = enqueue(), AT, []
    sink.broken = ConnectionError("down")

    for _ in range(16):
        relay(sink, at=at)
        row.refresh_from_db()
        waits.append(row.due_at - at)
        at = row.due_at

    for number, wait in enumerate(waits):
        plain = min(FIRST_RETRY * 2**number, LONGEST_RETRY)
        assert plain * 0.8 <= wait <= plain * 1.2
    assert len(set(waits[-3:])) == 3, "the jitter keeps retries from marching in step"


def test_it_sends_after_the_failure_is_mended_and_forgets_it(sink):
    row = enqueue()
    sink.broken = ConnectionError("down")
    relay(sink)
    sink.broken = None

    before = relay(sink, at=AT + timedelta(seconds=1))
    after = relay(sink, at=AT + timedelta(seconds=13))

    row.refresh_from_db()
    assert (before[0], after[0]) == (0, 1)
    assert (row.attempts, row.last_error) == (2, "")


def drive(sink, start=AT, days=6):
    """Relay whenever the message is due until it is delivered or given up; return the instant and the row."""
    at = start
    while at < start + days * DAY:
        _, given_up = relay(sink, at=at)
        row = OutboxMessage.objects.get()
        if given_up or row.delivered_at:
            return at, row
        at = row.due_at
    raise AssertionError("neither delivered nor given up")


def test_it_gives_up_after_three_days_and_says_so_once(sink):
    enqueue()
    sink.broken = ConnectionError("down")

    at, row = drive(sink)

    assert at - AT >= GIVE_UP_AFTER
    assert at - AT <= GIVE_UP_AFTER + LONGEST_RETRY * 1.2
    assert (row.given_up_at, row.delivered_at) == (at, None)
    assert row.attempts > 15
    sink.broken = None
    assert relay(sink, at=at + DAY) == (0, [])


def test_it_still_retries_what_waited_for_days_because_no_relay_ran(sink):
    enqueue()
    sink.broken = ConnectionError("down")

    delivered, given_up = relay(sink, at=AT + 5 * DAY)
    sink.broken = None
    later = relay(sink, at=AT + 5 * DAY + timedelta(minutes=1))

    assert (delivered, given_up) == (0, [])
    assert later == (1, [])


def test_it_gives_up_in_the_end_also_on_what_waited_for_days(sink):
    enqueue()
    sink.broken = ConnectionError("down")

    at, row = drive(sink, start=AT + 5 * DAY)

    assert row.given_up_at == at
    assert row.attempts > 5


def test_it_keeps_an_unknown_kind_as_a_failure(sink):
    outbox.enqueue(kind="unheard.of", payload={}, at=AT)

    assert relay(sink) == (0, [])
    assert OutboxMessage.objects.get().last_error.startswith("KeyError")


@pytest.mark.django_db(transaction=True)
@pytest.mark.django_db(transaction=True)
def test_it_survives_a_handler_that_breaks_its_database_transaction(sink):
    enqueue(1)
    enqueue(2)

    def breaking(message):
        if message.payload["n"] == 1:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")
        sink(message)

    delivered, _ = relay(breaking)

    assert (delivered, sink.taken) == (1, [2])
    assert "no_such_table" in OutboxMessage.objects.get(payload={"n": 1}).last_error


def test_it_cuts_a_failure_that_has_much_to_say(sink):
    enqueue()
    sink.broken = ValueError("x" * 100_000)

    relay(sink)

    assert len(OutboxMessage.objects.get().last_error) == 2000


def test_it_sends_again_what_it_could_not_note_as_sent(sink, monkeypatch):
    """At least once: the mail left, the note did not."""
    enqueue()
    save = OutboxMessage.save

    def refused(self, *args, **kwargs):
        raise DatabaseError("connection lost")

    monkeypatch.setattr(OutboxMessage, "save", refused)
    relay(sink)
    monkeypatch.setattr(OutboxMessage, "save", save)
    while_claimed = relay(sink, at=AT + timedelta(minutes=1))
    relay(sink, at=AT + outbox.CLAIM + timedelta(minutes=1))

    assert while_claimed == (0, [])
    assert sink.taken == [1, 1]
    assert OutboxMessage.objects.get().attempts == 2


def test_it_sends_at_most_so_many_in_one_run(sink):
    for n in range(5):
        enqueue(n)

    assert relay(sink, limit=2)[0] == 2
    assert relay(sink)[0] == 3


def test_it_lags_by_the_age_of_the_oldest_message_not_sent(sink):
    assert outbox.lag(at=AT) == timedelta()
    enqueue()
    enqueue(2, at=AT + DAY)

    assert outbox.lag(at=AT + timedelta(minutes=5)) == timedelta(minutes=5)
    assert outbox.lag(at=AT - DAY) == timedelta()
    relay(sink)
    assert outbox.lag(at=AT + timedelta(minutes=5)) == timedelta()
