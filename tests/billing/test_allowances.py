"""Allowances: windows, reservations, credit, thresholds, and what validation shows of them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core import mail
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import metering, rollups
from billing.metering import Sent
from licensing import allowances, anomalies, lifecycle, notices, outbox, webhooks
from licensing.allowances import AllowanceExhausted
from licensing.catalog import Grant
from licensing.decision import Scope, decide
from licensing.errors import Invalid
from licensing.models import Anomaly, License, OutboxMessage, PlanRevision
from licensing.models.allowances import Counter, CreditGrant, Reservation
from licensing.states import VerdictCode
from tests.billing.test_metering import batch, consume, make_metered, snapshot, used
from tests.factories import AT, BY, make_customer, make_meter, make_revision

pytestmark = pytest.mark.django_db
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def _one_meter(db: None) -> None:
    metering.forget()
    make_meter(code="calls")


def reserve(license: License, quantity: Any, at: datetime = AT, ttl: timedelta = MINUTE) -> Reservation:
    amount = Decimal(quantity)
    return metering.reserve(license=snapshot(license), meter="calls", quantity=amount, ttl=ttl, holder="t", at=at)


def commit(reservation: Reservation, quantity: Any = None, at: datetime = AT, event_id: str = "") -> metering.Receipt:
    amount = None if quantity is None else Decimal(quantity)
    return metering.commit(
        reservation=reservation, quantity=amount, event_id=event_id, dimensions=None, source="t", at=at
    )


def grant(license: License, amount: Any, **more: Any) -> CreditGrant:
    return allowances.grant(license=license, meter="calls", amount=Decimal(amount), by=BY, **{"at": AT} | more)


def drawn(one: CreditGrant) -> Decimal:
    one.refresh_from_db()
    return one.drawn


def left(license: License, at: datetime = AT) -> Decimal | None:
    return allowances.remaining(license=license, at=at)["calls"].remaining


def exhausted(license: License, at: datetime = AT) -> bool:
    return decide(snapshot(license), Scope(entitlements=("calls",)), at).code == VerdictCode.ALLOWANCE_EXHAUSTED


# --- what was in use beyond an allowance


def test_a_correction_taken_back_grants_nothing_anew() -> None:
    license = make_metered("calls", 10)
    consume(license, "e1", 10)

    for amount in (5, -5):
        metering.correct(
            license=license, meter="calls", quantity=Decimal(amount), occurred_at=AT, reason="test", by=BY, at=AT
        )

    assert left(license) == 0
    with pytest.raises(AllowanceExhausted):
        consume(license, "e2", 1)
    metering.correct(license=license, meter="calls", quantity=Decimal(-3), occurred_at=AT, reason="test", by=BY, at=AT)
    assert left(license) == 3


@pytest.mark.parametrize("end", ["release", "lapse", "commit"])
def test_what_was_held_beyond_a_smaller_allowance_is_not_granted_anew(end: str) -> None:
    license, at = make_metered("calls", 30), AT + DAY
    consume(license, "e1", 10, at=at, occurred_at=at + MINUTE)
    held = reserve(license, 15, at=at + timedelta(seconds=1))
    lifecycle.change_plan(license=license, plan_revision=_of(license, 10), by=BY, at=at)

    match end:
        case "release":
            allowances.release(reservation=held, at=at + MINUTE)
        case "lapse":
            allowances.lapse(at=at + 2 * MINUTE)
        case "commit":
            assert commit(held, 14, at=at + timedelta(seconds=2)).status == "counted"

    assert used(license) == (24 if end == "commit" else 10)
    assert left(license, at + 2 * MINUTE) == 0
    with pytest.raises(AllowanceExhausted):
        consume(license, "e2", 1, at=at + 2 * MINUTE)


def _of(license: License, amount: int) -> PlanRevision:
    grant = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(amount), overage="refuse")
    return make_revision(plan=license.plan_revision.plan, scheme="usage", grants=[grant])


# --- windows


def test_an_allowance_is_whole_again_in_the_next_month() -> None:
    license = make_metered("calls", 10)
    consume(license, "e1", 10)

    receipt = consume(license, "e2", 10, at=datetime(2026, 4, 1, tzinfo=UTC))

    assert receipt.remaining == 0
    with pytest.raises(AllowanceExhausted):
        consume(license, "e3", 1, at=datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC))


def test_a_soft_allowance_refuses_nothing() -> None:
    license = make_metered("calls", 10, overage="charge")

    receipt = consume(license, "e1", 25)

    assert receipt.remaining is None
    counter = Counter.objects.get(license=license)
    assert (counter.allowance, counter.ceiling, counter.used) == (10, None, 25)


def test_it_counts_also_without_any_allowance() -> None:
    license = make_metered("other", 10)

    assert consume(license, "e1", 25).remaining is None
    counter = Counter.objects.get(license=license)
    assert (counter.allowance, counter.ceiling, counter.used) == (None, None, 25)


# --- reservations


def test_what_is_reserved_is_nobody_elses() -> None:
    license = make_metered("calls", 10)
    reserve(license, 7)

    with pytest.raises(AllowanceExhausted):
        reserve(license, 4)
    with pytest.raises(AllowanceExhausted):
        consume(license, "e1", 4)
    assert consume(license, "e2", 3).remaining == 0


def test_committing_counts_what_was_used_and_frees_the_rest() -> None:
    license = make_metered("calls", 10)
    reservation = reserve(license, 7)

    receipt = commit(reservation, 5)

    assert (receipt.status, receipt.remaining) == ("counted", 5)
    assert (used(license), Counter.objects.get(license=license).reserved) == (5, 0)
    assert metering.counted(license.pk, "calls", AT, AT + DAY) == 5
    assert commit(reservation, 5).status == "duplicate"
    with pytest.raises(allowances.ReservationEnded):
        allowances.release(reservation=reservation, at=AT)


def test_committing_again_with_other_content_is_a_conflict() -> None:
    license = make_metered("calls", 10)
    held = reserve(license, 5)
    commit(held, 3)

    with pytest.raises(metering.EventConflict):
        commit(held, 4)

    assert commit(held, 3).status == "duplicate"
    assert used(license) == 3
    anomalies.record_waiting()
    assert Anomaly.objects.filter(rule="usage_event_conflict").count() == 1


def test_a_reservation_of_a_meter_that_counts_is_for_one_event() -> None:
    make_meter(code="hits", aggregation="count")
    license = make_metered("hits", 10)
    held = metering.reserve(license=snapshot(license), meter="hits", quantity=Decimal(5), ttl=MINUTE, holder="t", at=AT)

    receipt = commit(held)

    assert (held.quantity, receipt.quantity, receipt.remaining) == (1, 1, 9)
    rollups.roll_up(at=AT)
    assert rollups.reconcile(at=AT) == []


def test_committing_takes_more_than_was_held_only_where_it_fits() -> None:
    license = make_metered("calls", 10)
    first, second = reserve(license, 5), reserve(license, 3)

    assert commit(second, 5).remaining == 0
    with pytest.raises(AllowanceExhausted):
        commit(first, 6)
    assert commit(first).status == "counted"
    assert used(license) == 10


def test_a_released_reservation_is_free_again_and_cannot_be_committed() -> None:
    license = make_metered("calls", 10)
    reservation = reserve(license, 10)

    allowances.release(reservation=reservation, at=AT)
    allowances.release(reservation=reservation, at=AT)

    assert left(license) == 10
    with pytest.raises(allowances.ReservationEnded):
        commit(reservation)


def test_a_lapsed_reservation_holds_nobody_up() -> None:
    license = make_metered("calls", 10)
    reservation = reserve(license, 10)
    later = AT + 2 * MINUTE

    assert consume(license, "e1", 4, at=later).remaining == 6

    reservation.refresh_from_db()
    assert (reservation.state, reservation.ended_at) == ("lapsed", later)
    with pytest.raises(allowances.ReservationEnded):
        commit(reservation, at=later)


def test_the_job_gives_back_what_lapsed_once() -> None:
    license = make_metered("calls", 10)
    reserve(license, 10)
    running = make_metered("calls", 10)
    reserve(running, 10, ttl=10 * MINUTE)
    later = AT + 2 * MINUTE

    assert allowances.lapse_lag(later) == MINUTE
    assert [allowances.lapse(at=later), allowances.lapse(at=later)] == [1, 0]
    assert allowances.lapse_lag(later) == timedelta()
    assert (left(license), left(running)) == (10, 0)


@pytest.mark.parametrize(
    "what", [{"quantity": 0}, {"quantity": 1, "ttl": timedelta()}, {"quantity": 1, "ttl": 2 * DAY}]
)
def test_it_reserves_no_nonsense(what: dict[str, Any]) -> None:
    license = make_metered("calls", 10)

    with pytest.raises(Invalid):
        reserve(license, **what)


# --- credit


def test_credit_is_drawn_by_priority_then_by_expiry_once_the_allowance_is_used_up() -> None:
    license = make_metered("calls", 10)
    never = grant(license, 3, priority=5)
    later = grant(license, 3, priority=5, expires_at=AT + 9 * DAY)
    sooner = grant(license, 3, priority=5, expires_at=AT + 8 * DAY)
    first = grant(license, 3, priority=1)
    assert left(license) == 22

    consume(license, "e1", 10)
    assert [drawn(one) for one in (first, sooner, later, never)] == [0, 0, 0, 0]
    consume(license, "e2", 8)

    assert [drawn(one) for one in (first, sooner, later, never)] == [3, 3, 2, 0]
    assert left(license) == 4
    with pytest.raises(AllowanceExhausted):
        consume(license, "e3", 5)
    assert consume(license, "e4", 4).remaining == 0


def test_expired_credit_and_credit_that_has_not_begun_do_not_count() -> None:
    license = make_metered("calls", 1)
    grant(license, 5, expires_at=AT + DAY)
    grant(license, 5, starts_at=AT + 5 * DAY)
    at = AT + 2 * DAY
    consume(license, "e1", 1, at=at)

    with pytest.raises(AllowanceExhausted):
        consume(license, "e2", 1, at=at)

    assert consume(license, "e3", 1, at=AT + 5 * DAY).status == "counted"


def test_credit_covers_soft_overage_before_it_is_charged() -> None:
    license = make_metered("calls", 10, overage="charge")
    one = grant(license, 4)

    consume(license, "e1", 9)
    consume(license, "e2", 3)
    assert drawn(one) == 2
    consume(license, "e3", 5)

    assert drawn(one) == 4
    counter = Counter.objects.get(license=license)
    assert (counter.used, counter.credit) == (17, 4)
    another = grant(license, 10)
    assert drawn(another) == 3


def test_two_windows_never_draw_the_same_credit() -> None:
    license = make_metered("calls", 0)
    grant(license, 10)
    later = datetime(2026, 4, 2, tzinfo=UTC)
    consume(license, "april", 6, at=later)

    with pytest.raises(AllowanceExhausted):
        consume(license, "march", 5, at=later, occurred_at=AT)

    assert consume(license, "less", 4, at=later, occurred_at=AT).remaining == 0


# --- thresholds


def told() -> list[int]:
    return [row.payload["facts"]["percent"] for row in OutboxMessage.objects.order_by("id")]


def test_it_tells_of_each_threshold_once() -> None:
    license = make_metered("calls", 10)
    expected = [[], [50], [50], [50, 80], [50, 80], [50, 80, 100]]

    for number, (quantity, percents) in enumerate(zip([4, 1, 2, 1, 1, 1], expected, strict=True)):
        consume(license, f"e{number}", quantity)
        assert told() == percents


def test_it_sends_the_customer_s_endpoint_each_threshold_once() -> None:
    license = make_metered("calls", 10)
    endpoint, _ = webhooks.create(url="https://hooks.example.com/", customer=license.customer, by=BY, at=AT)

    for number, quantity in enumerate([4, 1, 4, 1]):
        consume(license, f"e{number}", quantity)

    sent = [message.payload["data"] for message in webhooks.messages(endpoint=endpoint).order_by("position")]
    assert [(data["meter"], data["percent"]) for data in sent] == [("calls", 50), ("calls", 80), ("calls", 100)]
    assert sent[0]["license"]["id"] == str(license.pk)


def test_it_mails_the_customer() -> None:
    license = make_metered("calls", 10, customer=make_customer(email="them@example.com"))
    batch(license, Sent("a", "calls", Decimal(6)))

    outbox.relay(handlers={notices.KIND: notices.send}, at=AT)

    assert [message.to for message in mail.outbox] == [["them@example.com"]]
    assert "50 % of calls used" in mail.outbox[0].subject
    assert "used 6 of the 10 calls included until 2026-04-01" in mail.outbox[0].body


# --- what validation shows


def test_a_validation_says_when_nothing_is_left_and_when_something_is_again() -> None:
    license = make_metered("calls", 10)
    assert not exhausted(license)

    consume(license, "e1", 10)
    assert exhausted(license)
    assert not exhausted(license, at=datetime(2026, 4, 1, tzinfo=UTC))
    assert decide(snapshot(license), Scope(), AT).code == VerdictCode.VALID

    grant(license, 1)
    assert not exhausted(license)
    consume(license, "e2", 1)
    assert exhausted(license)
    metering.correct(license=license, meter="calls", quantity=Decimal(-2), occurred_at=AT, reason="x", by=BY, at=AT)
    assert not exhausted(license)


def test_a_reservation_of_the_last_shows_too() -> None:
    license = make_metered("calls", 10)
    reservation = reserve(license, 10)
    assert exhausted(license)

    allowances.release(reservation=reservation, at=AT)
    assert not exhausted(license)


def test_the_revision_rises_only_when_what_is_shown_changes() -> None:
    license = make_metered("calls", 3)
    revisions = []

    for number in range(5):
        try:
            consume(license, f"e{number}", 1)
        except AllowanceExhausted:
            pass
        revisions.append(License.objects.get(pk=license.pk).revision)

    assert len(set(revisions[:2])) == 1
    assert revisions[2:] == [revisions[0] + 1] * 3


# --- against a plain model

_ACTS = st.lists(
    st.tuples(
        st.sampled_from(["consume", "reserve", "commit", "release", "grant", "lapse", "correct"]),
        st.integers(1, 8),
        st.integers(0, 5),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=_ACTS, hard=st.booleans())
def test_counters_are_those_of_a_plain_model(acts: list[tuple[str, int, int]], hard: bool) -> None:
    """A model of a page: numbers in Python, nothing else."""
    license = make_metered("calls", 10, overage="refuse" if hard else "charge")
    events: dict[str, int] = {}
    held: dict[Any, int] = {}
    allowed, credit = 10, 0

    def fits(quantity: int) -> bool:
        return not hard or sum(events.values()) + sum(held.values()) + quantity <= allowed + credit

    for act, quantity, which in acts:
        match act:
            case "consume":
                name = f"e{which}-{quantity}"
                expected = "duplicate" if name in events else "counted" if fits(quantity) else "exhausted"
                try:
                    status = consume(license, name, quantity).status
                except AllowanceExhausted:
                    status = "exhausted"
                assert status == expected
                if status == "counted":
                    events[name] = quantity
            case "reserve":
                try:
                    held[reserve(license, quantity)] = quantity
                except AllowanceExhausted:
                    assert not fits(quantity)
            case "commit" if held:
                reservation = list(held)[which % len(held)]
                events[f"r{reservation.pk}"] = held.pop(reservation)
                commit(reservation)
            case "release" if held:
                reservation = list(held)[which % len(held)]
                del held[reservation]
                allowances.release(reservation=reservation, at=AT)
            case "grant":
                grant(license, quantity)
                credit += quantity
            case "correct":
                metering.correct(
                    license=license, meter="calls", quantity=Decimal(-1), occurred_at=AT, reason="x", by=BY, at=AT
                )
                events[f"c{len(events)}-{which}-{quantity}-{act}"] = -1

    counter = Counter.objects.filter(license=license).first()
    assert (counter.used if counter else 0) == sum(events.values())
    assert (counter.reserved if counter else 0) == sum(held.values())
    assert metering.counted(license.pk, "calls", AT, AT + DAY) == sum(events.values())
    if hard and counter:
        assert left(license) == allowed + credit - sum(events.values()) - sum(held.values())
