"""The outbox: sent at least once, retried ever later, given up loudly, never twice at the same time."""

from datetime import timedelta

import pytest
from django.db import DatabaseError, connection, transaction

from licensing import deliveries, outbox
from licensing.errors import Invalid
from licensing.ids import uuid7
from licensing.models import AuditEntry, OutboxMessage
from licensing.outbox import FIRST_RETRY, GIVE_UP_AFTER, LONGEST_RETRY, NeverDeliverable, NotNow, TargetDown
from tests.factories import AT, make_actor, make_license

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


def enqueue(n=1, at=AT, **whose):
    return outbox.enqueue(kind="test", payload={"n": n}, at=at, **whose)


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


ONE, OTHER = uuid7(), uuid7()
MINUTE = timedelta(minutes=1)


class Picky(Sink):
    """Refuses the messages of these numbers."""

    def __init__(self, *refused, error=None):
        super().__init__()
        self.refused, self.error, self.tried = set(refused), error or ConnectionError("no"), []

    def __call__(self, message):
        self.tried.append(message.payload["n"])
        if message.payload["n"] in self.refused:
            raise self.error
        self.taken.append(message.payload["n"])


def test_it_sends_messages_of_a_license_in_their_order_in_one_run(sink):
    for n in range(25):
        enqueue(n, license_id=ONE)

    assert relay(sink) == (25, [])
    assert sink.taken == list(range(25))


def test_it_keeps_the_order_also_where_ids_and_due_times_say_otherwise(sink):
    """The clock of the web server that made the first message was ahead."""
    first = outbox.enqueue(kind="test", payload={"n": 1}, at=AT, license_id=ONE)
    second = enqueue(2, license_id=ONE)
    assert first.position < second.position
    OutboxMessage.objects.filter(pk=first.pk).update(due_at=AT + timedelta(seconds=5))

    before = relay(sink)
    relay(sink, at=AT + MINUTE)

    assert before == (0, [])
    assert sink.taken == [1, 2]


def test_a_message_waits_for_the_earlier_of_its_license_and_no_other_does():
    enqueue(1, license_id=ONE)
    enqueue(2, license_id=ONE)
    enqueue(3, license_id=OTHER)
    enqueue(4)
    sink = Picky(1)

    relay(sink)
    between = list(sink.taken)
    sink.refused.clear()
    relay(sink, at=AT + MINUTE)

    assert between == [3, 4]
    assert sink.taken == [3, 4, 1, 2]


def test_a_message_does_not_wait_for_another_target_of_its_license():
    enqueue(1, license_id=ONE, target="webhook:a")
    enqueue(2, license_id=ONE, target="webhook:b")
    sink = Picky(1)

    relay(sink)

    assert sink.taken == [2]


def test_a_dead_letter_lets_those_behind_it_go_on():
    dead = enqueue(1, license_id=ONE)
    enqueue(2, license_id=ONE)
    sink = Picky(1)
    OutboxMessage.objects.filter(pk=dead.pk).update(attempts=outbox.FEWEST_TRIES)

    _, given_up = relay(sink, at=AT + GIVE_UP_AFTER)
    relay(sink, at=AT + GIVE_UP_AFTER + MINUTE)

    assert [message.pk for message in given_up] == [dead.pk]
    assert sink.taken == [2]


def test_what_waits_behind_a_failure_is_not_late_by_itself():
    enqueue(1, license_id=ONE)
    enqueue(2, license_id=ONE)
    relay(Picky(1))
    enqueue(3, license_id=ONE, at=AT + timedelta(seconds=1))

    assert outbox.lag(at=AT + timedelta(seconds=7)) == timedelta()


def test_it_tries_nothing_else_of_a_target_that_is_down():
    until = AT + MINUTE
    for n, license_id in enumerate((ONE, OTHER, None)):
        enqueue(n, license_id=license_id, target="webhook:a")
    enqueue(9)
    sink = Picky(0, 1, 2, error=TargetDown("refused", until=until))

    relay(sink)
    again = relay(sink, at=until - TICK)

    assert sink.tried == [0, 9]
    assert again == (0, [])
    assert set(OutboxMessage.objects.filter(target="webhook:a").values_list("due_at", flat=True)) == {until}
    assert sum(OutboxMessage.objects.filter(target="webhook:a").values_list("attempts", flat=True)) == 1
    sink.refused.clear()
    assert relay(sink, at=until)[0] == 3


def test_it_counts_no_attempt_where_the_target_rests():
    until = AT + MINUTE
    row = enqueue(1, target="webhook:a")

    relay(Picky(1, error=NotNow(until=until)))

    row.refresh_from_db()
    assert (row.attempts, row.due_at, row.last_error) == (0, until, "")


def test_it_gives_up_at_once_what_can_never_be_delivered():
    row = enqueue(1)

    _, given_up = relay(Picky(1, error=NeverDeliverable("gone")))

    row.refresh_from_db()
    assert [message.pk for message in given_up] == [row.pk]
    assert (row.given_up_at, row.last_error) == (AT, "NeverDeliverable: gone")


def test_it_leaves_given_up_what_was_given_up_while_it_was_tried():
    row = enqueue(1)

    def closing(message):
        OutboxMessage.objects.filter(pk=message.pk).update(given_up_at=AT)
        raise ConnectionError("down")

    relay(closing)

    row.refresh_from_db()
    assert row.given_up_at == AT


def test_an_attempt_counts_although_its_worker_died_of_it():
    row = enqueue(1)

    def killed(message):
        raise SystemExit

    with pytest.raises(SystemExit):
        relay(killed)

    row.refresh_from_db()
    assert (row.attempts, row.delivered_at) == (1, None)
    assert AT < row.due_at <= AT + outbox.CLAIM + MINUTE


def test_it_ends_before_its_claims_lapse(monkeypatch):
    for n in range(3):
        enqueue(n)
    sink, clock = Picky(), [0.0]
    monkeypatch.setattr(outbox.time, "monotonic", lambda: clock[0])

    def slow(message):
        sink(message)
        clock[0] += outbox.LAST_BEGIN.total_seconds() + 1

    relay(slow)

    assert sink.taken == [0]
    assert set(OutboxMessage.objects.exclude(payload={"n": 0}).values_list("due_at", "attempts")) == {(AT, 0)}


def test_it_sends_again_a_dead_letter_on_request_and_says_who_asked_and_why(sink):
    license = make_license()
    row = enqueue(1, license_id=license.pk)
    OutboxMessage.objects.filter(pk=row.pk).update(given_up_at=AT, attempts=30, last_error="x")

    deliveries.replay(message=row, by=make_actor(), at=AT + 9 * DAY, reason="Their server is back")
    relay(sink, at=AT + 9 * DAY)

    row.refresh_from_db()
    entry = AuditEntry.objects.get(action="outbox.replayed")
    assert (sink.taken, row.attempts, row.delivered_at) == ([1], 1, AT + 9 * DAY)
    assert (entry.license_id, entry.reason) == (license.pk, "Their server is back")


def test_a_message_sent_again_has_its_tries_before_it_although_it_is_old(sink):
    row = enqueue(1)
    OutboxMessage.objects.filter(pk=row.pk).update(given_up_at=AT, attempts=30)
    sink.broken = ConnectionError("down")

    deliveries.replay(message=row, by=make_actor(), at=AT + 9 * DAY, reason="Try")

    assert relay(sink, at=AT + 9 * DAY) == (0, [])


def test_it_sends_nothing_again_that_still_waits_or_without_a_reason():
    row = enqueue(1)

    with pytest.raises(deliveries.StillWaiting):
        deliveries.replay(message=row, by=make_actor(), at=AT, reason="Hurry")
    with pytest.raises(Invalid):
        deliveries.replay(message=row, by=make_actor(), at=AT, reason="  ")


def test_it_forgets_what_was_delivered_long_ago_and_no_dead_letter(sink):
    for n in range(3):
        enqueue(n)
    dead = enqueue(9)
    OutboxMessage.objects.filter(pk=dead.pk).update(given_up_at=AT)
    relay(sink)

    early = outbox.forget(at=AT + outbox.KEPT_FOR)
    gone = outbox.forget(at=AT + outbox.KEPT_FOR + TICK, batch=2), outbox.forget(at=AT + outbox.KEPT_FOR + TICK)

    assert (early, gone) == (0, (2, 1))
    assert OutboxMessage.objects.get().pk == dead.pk
