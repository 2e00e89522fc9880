"""Usage at the same time: an allowance is never oversold, an event never counted twice, nobody told twice."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from threading import Barrier, Event
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F

from billing import metering
from billing.metering import Sent
from billing.models import UsageEvent, UsageId
from licensing import allowances, anomalies, lifecycle, seats
from licensing.models import Anomaly, AuditEntry, License, OutboxMessage
from licensing.models.allowances import Counter, CreditGrant, Reservation
from tests.billing.test_metering import make_metered, snapshot
from tests.concurrency.together import kinds, together
from tests.factories import AT, BY, make_meter

pytestmark = pytest.mark.django_db(transaction=True)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _one_meter(transactional_db: None) -> None:
    metering.forget()
    make_meter(code="calls")


def consuming(license: License, event_id: str, quantity: int = 1, **more: Any) -> Callable[[], metering.Receipt]:
    picture = snapshot(license)
    sent = Sent(event_id, "calls", Decimal(quantity), **more)
    return lambda: metering.consume(license=picture, sent=sent, source="t", at=AT)


def batching(license: License, event_ids: list[str]) -> Callable[[], list[metering.Receipt]]:
    picture = snapshot(license)
    sent = [(picture, Sent(event_id, "calls", occurred_at=AT)) for event_id in event_ids]
    return lambda: metering.consume_batch(sent=sent, source="t", at=AT)


def agreed(license: License) -> Decimal:
    """Return what was counted, which counter, events and ids all say."""
    counters = list(Counter.objects.filter(license=license))
    total = sum((Decimal(one.used) for one in counters), Decimal())
    for one in counters:
        assert one.used == metering.counted(license.pk, "calls", one.starts_at, one.ends_at)
    events = UsageEvent.objects.filter(license_id=license.pk)
    assert events.count() == UsageId.objects.filter(license_id=license.pk).count()
    return total


def test_a_hundred_clients_never_exceed_a_hard_limit() -> None:
    """Four events each, of which the allowance takes 150."""
    license = make_metered("calls", 150)
    consume = [[consuming(license, f"e{client}-{number}") for number in range(4)] for client in range(100)]

    def client(number: int) -> list[str]:
        statuses = []
        for act in consume[number]:
            try:
                statuses.append(act().status)
            except allowances.AllowanceExhausted:
                statuses.append("exhausted")
        return statuses

    results = together(*(lambda number=number: client(number) for number in range(100)))

    statuses = [status for result in results for status in result]
    assert statuses.count("counted") == 150
    assert statuses.count("exhausted") == 250
    assert agreed(license) == 150


def test_without_the_condition_it_is_oversold() -> None:
    """The twin: who reads first and counts then, oversells. The last word has the check constraint, here lifted."""
    license = make_metered("calls", 1)
    allowances.open_windows([(license.pk, "calls", AT)])
    Counter.objects.filter(license=license).update(ceiling=None)
    both = Barrier(2)

    def naive() -> None:
        counter = Counter.objects.get(license=license)
        both.wait(10)
        if counter.used + 1 <= 1:
            Counter.objects.filter(license=license).update(used=F("used") + 1)

    together(naive, naive)

    assert Counter.objects.get(license=license).used == 2


def test_an_event_sent_twenty_times_at_once_is_counted_once() -> None:
    license = make_metered("calls", 1000)

    results = together(*[consuming(license, "e1", 5, occurred_at=AT)] * 20)

    assert sorted(one.status for one in results) == ["counted"] + ["duplicate"] * 19
    assert agreed(license) == 5


def test_an_event_without_a_counter_is_recorded_once_too() -> None:
    make_meter(code="peak", aggregation="max")
    license = make_metered("calls", 10)
    picture = snapshot(license)
    sent = Sent("e1", "peak", Decimal(5), occurred_at=AT)

    results = together(*[lambda: metering.consume(license=picture, sent=sent, source="t", at=AT)] * 12)

    assert sorted(one.status for one in results) == ["counted"] + ["duplicate"] * 11


def test_of_different_contents_under_one_id_one_is_counted() -> None:
    license = make_metered("calls", 1000)

    results = together(*(consuming(license, "e1", quantity, occurred_at=AT) for quantity in range(1, 9)))

    assert kinds(results) == {"Receipt": 1, "EventConflict": 7}
    assert agreed(license) == next(one.quantity for one in results if isinstance(one, metering.Receipt))


def test_batches_with_the_same_ids_in_other_orders_count_each_once() -> None:
    license = make_metered("calls", 1000)
    ids = [f"e{number}" for number in range(60)]
    orders = [ids, ids[::-1], ids[30:] + ids[:30], ids[::2] + ids[1::2]]

    for _ in range(3):
        results = together(*(batching(license, [*order, *order[:10]]) for order in orders))
        assert kinds(results) == {"list": 4}

    assert agreed(license) == 60


def test_batches_over_many_licenses_in_other_orders_do_not_wait_in_a_ring() -> None:
    licenses = [make_metered("calls", 3) for _ in range(6)]
    pictures = [snapshot(license) for license in licenses]

    def act(number: int) -> Callable[[], Any]:
        order = pictures[number:] + pictures[:number]
        sent = [(picture, Sent(f"e{number}-{turn}", "calls")) for turn in range(2) for picture in order]
        return lambda: metering.consume_batch(sent=sent, source="t", at=AT)

    results = together(*(act(number) for number in range(6)))

    assert kinds(results) == {"list": 6}
    assert [agreed(license) for license in licenses] == [3] * 6


def test_single_events_and_batches_share_one_limit() -> None:
    license = make_metered("calls", 40)
    batches = [batching(license, [f"b{batch}-{number}" for number in range(10)]) for batch in range(5)]

    together(*batches, *(consuming(license, f"s{number}") for number in range(20)))

    assert agreed(license) == 40


def test_reservations_at_once_never_hold_more_than_there_is() -> None:
    license = make_metered("calls", 10)
    picture = snapshot(license)

    def reserve() -> Any:
        return metering.reserve(license=picture, meter="calls", quantity=Decimal(2), ttl=MINUTE, holder="t", at=AT)

    results = together(*[reserve] * 12)

    assert kinds(results) == {"Reservation": 5, "AllowanceExhausted": 7}
    held = [one for one in results if not isinstance(one, Exception)]

    def ending(number: int) -> Callable[[], Any]:
        if number % 2:
            return lambda: allowances.release(reservation=held[number], at=AT)
        told = {"quantity": None, "event_id": "", "dimensions": None, "source": "t", "at": AT}
        return lambda: metering.commit(reservation=held[number], **told)

    together(*(ending(number) for number in range(5) for _ in range(3)))
    assert agreed(license) == 6
    assert Counter.objects.get(license=license).reserved == 0


def test_credit_at_once_is_drawn_once() -> None:
    license = make_metered("calls", 5)
    allowances.grant(license=license, meter="calls", amount=Decimal(7), by=BY, at=AT)

    results = together(*(consuming(license, f"e{number}") for number in range(20)))

    assert kinds(results) == {"Receipt": 12, "AllowanceExhausted": 8}
    assert CreditGrant.objects.get().drawn == 7
    assert agreed(license) == 12


def test_each_threshold_is_told_once_to_many_at_once() -> None:
    license = make_metered("calls", 20)

    together(*(consuming(license, f"e{number}") for number in range(20)))

    assert sorted(row.payload["facts"]["percent"] for row in OutboxMessage.objects.all()) == [50, 80, 100]
    assert Counter.objects.get(license=license).exhausted


def test_what_is_counted_during_a_change_of_terms_is_in_the_window_of_its_time() -> None:
    license = make_metered("calls", 1000, overage="charge")
    times = [AT + timedelta(seconds=second) for second in range(40)]
    cut = AT + timedelta(seconds=20)
    revision = license.plan_revision

    results = together(
        lambda: lifecycle.change_plan(license=license, plan_revision=revision, by=BY, at=cut),
        *(consuming(license, f"e{number}", occurred_at=when) for number, when in enumerate(times)),
    )

    assert kinds(results) == {"License": 1, "Receipt": 40}
    assert agreed(license) == 40
    windows = Counter.objects.filter(license=license).order_by("starts_at")
    assert [(one.starts_at, one.used) for one in windows] == [(AT, 20), (cut, 20)]


@pytest.mark.postgres
def test_a_count_that_waits_for_a_change_of_terms_finds_its_new_window() -> None:
    """The race itself: the counter is ended while a count waits for it."""
    if connection.vendor != "postgresql":
        return
    license = make_metered("calls", 10, overage="charge")
    consuming(license, "first")()
    act = consuming(license, "second", occurred_at=AT + MINUTE)
    begun = Event()

    def change() -> None:
        with transaction.atomic():
            row = seats.lock(license.pk)
            from licensing import schemes

            cut = AT + timedelta(seconds=30)
            schemes.open_term(license=row, plan_revision=row.plan_revision, starts_at=cut, reason="t", at=cut)
            allowances.reopen(license=row, at=cut)
            begun.set()
            _wait_until_somebody_waits()

    def count() -> Any:
        begun.wait(10)
        return act()

    results = together(change, count)

    assert results[1].status == "counted"
    windows = Counter.objects.filter(license=license).order_by("starts_at")
    assert [one.used for one in windows] == [1, 1]
    assert agreed(license) == 2


def reserving(license: License, quantity: int = 2) -> Reservation:
    hour = timedelta(hours=1)
    return metering.reserve(
        license=snapshot(license), meter="calls", quantity=Decimal(quantity), ttl=hour, holder="t", at=AT
    )


def committing(reservation: Reservation, event_id: str) -> Callable[[], metering.Receipt]:
    told: dict[str, Any] = {"quantity": None, "event_id": event_id, "dimensions": None, "source": "t", "at": AT}
    return lambda: metering.commit(reservation=reservation, **told)


def peaking(license: License, event_id: str) -> Callable[[], metering.Receipt]:
    picture, sent = snapshot(license), Sent(event_id, "peak", occurred_at=AT)
    return lambda: metering.consume(license=picture, sent=sent, source="t", at=AT)


def correcting(license: License, event_id: str) -> Callable[[], metering.Receipt]:
    told: dict[str, Any] = {"meter": "calls", "quantity": Decimal(1), "occurred_at": AT, "reason": "t", "by": BY}
    return lambda: metering.correct(license=license, event_id=event_id, at=AT, **told)


@pytest.mark.parametrize("what", ["commit", "correct"])
def test_an_id_that_another_meter_counts_at_the_same_moment_is_a_conflict(what: str) -> None:
    """The other event has its id in before it is committed, and shares no counter with this one."""
    make_meter(code="peak", aggregation="max")
    license = make_metered("calls", 100)
    act = committing(reserving(license), "e1") if what == "commit" else correcting(license, "e1")
    first = peaking(license, "e1")
    begun = Event()

    def count() -> Any:
        with transaction.atomic():
            receipt = first()
            begun.set()
            if connection.vendor == "postgresql":
                _wait_until_somebody_waits()
        return receipt

    def collide() -> Any:
        begun.wait(10)
        return act()

    results = together(count, collide)

    assert kinds(results) == {"Receipt": 1, "EventConflict": 1}, results
    assert UsageEvent.objects.filter(license_id=license.pk).count() == 1
    anomalies.record_waiting()
    assert Anomaly.objects.filter(rule="usage_event_conflict", license_id=license.pk).count() == 1
    assert agreed(license) == 0


def test_a_reservation_committed_twenty_times_at_once_is_counted_once() -> None:
    make_meter(code="peak", aggregation="max")
    license = make_metered("calls", 100)
    held = [reserving(license) for _ in range(4)]
    acts = [committing(one, f"e{number}") for number, one in enumerate(held) for _ in range(5)]

    results = together(*acts, *(peaking(license, f"e{number}") for number in range(4)))

    assert set(kinds(results)) <= {"Receipt", "EventConflict"}, results
    counted = [one for one in results if isinstance(one, metering.Receipt) and one.status == "counted"]
    assert sorted(one.event_id for one in counted) == ["e0", "e1", "e2", "e3"]
    agreed(license)


def test_corrections_at_once_under_one_id_are_counted_once() -> None:
    license = make_metered("calls", 100)

    results = together(*[correcting(license, "e1")] * 12)

    assert sorted(one.status for one in results) == ["counted"] + ["duplicate"] * 11
    assert agreed(license) == 1
    assert AuditEntry.objects.filter(action="usage.corrected").count() == 1


def test_single_events_and_batches_of_what_has_no_counter_count_each_id_once() -> None:
    """Nothing queues for a counter here: only the ids meet."""
    make_meter(code="peak", aggregation="max")
    license = make_metered("calls", 10)
    picture = snapshot(license)
    ids = [f"e{number}" for number in range(40)]

    def batch(order: list[str]) -> Callable[[], Any]:
        sent = [(picture, Sent(event_id, "peak", occurred_at=AT)) for event_id in order]
        return lambda: metering.consume_batch(sent=sent, source="t", at=AT)

    orders = [ids, ids[::-1], ids[20:] + ids[:20], ids[:20] * 2, ids[::2] * 2, ids[::3] * 2, ids[10:30], ids[5:]]
    results = together(*map(batch, orders), *(peaking(license, event_id) for event_id in ids[::4]))

    assert kinds(results) == {"list": 8, "Receipt": 10}, results
    counted = [one for result in results for one in (result if isinstance(result, list) else [result])]
    assert sorted(one.event_id for one in counted if one.status == "counted") == sorted(ids)
    agreed(license)


def _wait_until_somebody_waits() -> None:
    import time

    for _ in range(500):
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits for the counter")
