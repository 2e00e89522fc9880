"""Metering: what is counted, once; what is refused, and how it is said."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from msgspec.structs import replace

from billing import metering
from billing.metering import Sent
from billing.models import UsageChange, UsageEvent, UsageId
from licensing import allowances, anomalies, lifecycle, pictures
from licensing.catalog import Grant
from licensing.decision import Scope, Snapshot
from licensing.errors import Invalid, LicensingError
from licensing.models import Anomaly, AuditEntry, License, SchemeChange
from licensing.models.allowances import Counter
from licensing.pictures import Question
from tests.factories import AT, BY, make_license, make_meter, make_plan, make_revision

pytestmark = pytest.mark.django_db
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def _meters_anew() -> None:
    metering.forget()


def snapshot(license: License) -> Snapshot:
    picture = pictures.read(Question.of("id", str(license.pk), Scope()))
    assert picture is not None
    return picture.snapshot


def make_metered(meter: str, amount: Any = 10, overage: str = "refuse", **more: Any) -> License:
    """Return a license with an allowance of a meter."""
    grant = Grant(key=meter, kind="allowance", meter=meter, amount=Decimal(amount), overage=overage)
    return make_license(scheme="usage", grants=[grant], **more)


def consume(license: License, event_id: str, quantity: Any = 1, at: datetime = AT, **more: Any) -> metering.Receipt:
    meter = more.pop("meter", "calls")
    sent = Sent(event_id, meter, Decimal(str(quantity)), **more)
    return metering.consume(license=snapshot(license), sent=sent, source="tests", at=at)


def batch(license: License, *sent: Sent, at: datetime = AT) -> list[metering.Receipt]:
    picture = snapshot(license)
    return metering.consume_batch(sent=[(picture, one) for one in sent], source="tests", at=at)


def undo(license: License, at: datetime) -> None:
    lifecycle.undo_change(change=SchemeChange.objects.get(license=license), by=BY, at=at)


def used(license: License, meter: str = "calls") -> Decimal:
    counters = Counter.objects.filter(license=license, meter=meter)
    return sum((Decimal(one.used) for one in counters), Decimal())


def test_it_counts_an_event_with_everything_that_belongs_to_it() -> None:
    revision = make_meter(code="calls", dimensions=["region"])
    license = make_metered("calls", 10)

    receipt = consume(license, "e1", "2.5", dimensions={"region": "eu"}, sequence=7)

    assert (receipt.status, receipt.quantity, receipt.remaining) == ("counted", Decimal("2.5"), Decimal("7.5"))
    event = UsageEvent.objects.get(license_id=license.pk)
    assert (event.event_id, event.quantity, event.occurred_at, event.received_at) == ("e1", Decimal("2.5"), AT, AT)
    assert (event.meter_revision_id, event.dimensions, event.sequence, event.kind) == (
        revision.pk,
        {"region": "eu"},
        7,
        "usage",
    )
    assert UsageId.objects.get(license_id=license.pk).event_id == "e1"
    change = UsageChange.objects.get(license_id=license.pk)
    assert (change.meter_revision_id, change.hour) == (revision.pk, AT)
    counter = Counter.objects.get(license=license)
    assert (counter.used, counter.starts_at, counter.ends_at) == (
        Decimal("2.5"),
        AT,
        datetime(2026, 4, 1, tzinfo=UTC),
    )


def test_it_counts_a_repetition_once_and_gives_the_same_receipt() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    first = consume(license, "e1", 3)

    again = consume(license, "e1", "3.000", at=AT + DAY)

    assert again == replace(first, status="duplicate", remaining=None)
    assert used(license) == 3
    assert UsageEvent.objects.filter(license_id=license.pk).count() == 1
    assert UsageChange.objects.filter(license_id=license.pk).count() == 1


@pytest.mark.parametrize("change", ["revoke", "exhaust", "retire", "time"])
def test_it_knows_a_repetition_whatever_happened_in_between(change: str) -> None:
    revision = make_meter(code="calls")
    license = make_metered("calls", 10)
    first = consume(license, "e1", 3, occurred_at=AT)
    at = AT + DAY
    match change:
        case "revoke":
            lifecycle.revoke(license=license, by=BY, at=AT, reason="test")
        case "exhaust":
            consume(license, "e2", 7)
        case "retire":
            revision.state = "retired"
            revision.save()
            metering.forget()
        case "time":
            at = AT + 60 * DAY

    again = consume(license, "e1", 3, occurred_at=AT, at=at)

    assert again == replace(first, status="duplicate", remaining=None)


@pytest.mark.parametrize("change", ["retired", "sums now"])
@pytest.mark.parametrize("how", ["consume", "batch", "commit"])
def test_a_repetition_says_as_how_much_it_was_counted(how: str, change: str) -> None:
    revision = make_meter(code="calls", aggregation="count")
    license = make_metered("calls", 10)
    five = Decimal(5)
    held = metering.reserve(
        license=snapshot(license), meter="calls", quantity=five, ttl=timedelta(minutes=1), holder="t", at=AT
    )

    def send() -> metering.Receipt:
        if how == "commit":
            told: dict[str, Any] = {"event_id": "e1", "dimensions": None, "source": "t", "at": AT}
            return metering.commit(reservation=held, quantity=five, **told)
        return consume(license, "e1", 5) if how == "consume" else batch(license, Sent("e1", "calls", five))[0]

    first = send()
    revision.state = "retired"
    revision.save()
    if change == "sums now":
        make_meter(meter=revision.meter, number=2)
    metering.forget()

    assert send() == replace(first, status="duplicate", remaining=None)
    assert first.quantity == 1


def test_committing_what_was_counted_under_its_id_already_frees_what_was_held() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    told: dict[str, Any] = {"license": snapshot(license), "meter": "calls", "ttl": timedelta(minutes=1), "holder": "t"}
    held = metering.reserve(quantity=Decimal(4), at=AT, **told)
    first = consume(license, "e1", 4, occurred_at=AT)
    ended: dict[str, Any] = {"reservation": held, "event_id": "e1", "dimensions": None, "source": "t", "at": AT}

    receipts = [metering.commit(quantity=None, **ended) for _ in range(2)]

    assert receipts == [replace(first, status="duplicate", remaining=None)] * 2
    counter = Counter.objects.get(license=license)
    assert (counter.used, counter.reserved) == (4, 0)


def test_it_refuses_the_same_id_with_other_content_and_says_so() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    consume(license, "e1", 3)

    with pytest.raises(metering.EventConflict):
        consume(license, "e1", 4)

    assert used(license) == 3
    anomalies.record_waiting()
    anomaly = Anomaly.objects.get(rule="usage_event_conflict")
    assert anomaly.license_id == license.pk
    assert anomaly.evidence["event_ids"] == ["e1"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quantity": "-1"}, "bad_quantity"),
    ({"quantity": "NaN"}, "bad_quantity"),
    ({"quantity": "Infinity"}, "bad_quantity"),
    ({"quantity": "0.0000001"}, "bad_quantity"),
    ({"quantity": "1E-999999"}, "bad_quantity"),
    ({"quantity": "1E+15"}, "bad_quantity"),
    ({"meter": "other"}, "unknown_meter"),
    ({"dimensions": {"region": "eu", "color": "red"}}, "unknown_dimension"),
    ({"dimensions": {"region": "us"}}, "filtered_out"),
    ({"dimensions": None}, "filtered_out"),
    ({"occurred_at": AT - 35 * DAY - SECOND}, "too_old"),
    ({"occurred_at": AT + timedelta(minutes=5, seconds=1)}, "too_far_ahead"),
    ({"occurred_at": AT - SECOND}, "not_started"),
]


@pytest.mark.parametrize(("what", "code"), REFUSED)
def test_it_refuses_what_cannot_be_counted(what: dict[str, Any], code: str) -> None:
    make_meter(code="calls", dimensions=["region"], filters={"region": ["eu"]})
    license = make_metered("calls", 10)

    with pytest.raises(LicensingError) as refused:
        consume(license, "e1", **{"dimensions": {"region": "eu"}} | what)

    assert refused.value.code == code
    assert not UsageId.objects.filter(license_id=license.pk).exists()


def test_it_counts_one_for_each_event_of_a_meter_that_counts() -> None:
    make_meter(code="calls", aggregation="count")
    license = make_metered("calls", 10)

    receipt = consume(license, "e1", 5)

    assert (receipt.quantity, receipt.remaining) == (1, 9)
    assert UsageEvent.objects.get(license_id=license.pk).quantity == 1


@pytest.mark.parametrize("aggregation", ["max", "latest", "time_weighted_sum"])
def test_it_records_without_a_counter_what_cannot_be_counted_live(aggregation: str) -> None:
    make_meter(code="calls", aggregation=aggregation)
    license = make_metered("calls", 10)

    receipts = [consume(license, "e1", 500), consume(license, "e1", 500)]

    assert [receipt.status for receipt in receipts] == ["counted", "duplicate"]
    assert receipts[0].remaining is None
    assert not Counter.objects.filter(license=license).exists()


def test_it_needs_the_dimension_whose_values_are_counted() -> None:
    make_meter(code="calls", aggregation="unique", unique_by="user", dimensions=["user"])
    license = make_metered("calls", 10)

    assert consume(license, "e1", dimensions={"user": "a"}).status == "counted"
    with pytest.raises(metering.DimensionMissing):
        consume(license, "e2")


def test_it_counts_late_events_in_the_month_they_occurred_in() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    later = datetime(2026, 4, 2, tzinfo=UTC)

    consume(license, "april", 4, at=later)
    receipt = consume(license, "march", 7, at=later, occurred_at=AT + DAY)

    assert receipt.remaining == 3
    assert [(one.starts_at, one.used) for one in Counter.objects.filter(license=license)] == [
        (datetime(2026, 4, 1, tzinfo=UTC), 4),
        (AT, 7),
    ]


@pytest.mark.parametrize(("stop", "code"), [("revoke", "revoked"), ("hold", "held"), ("expire", "expired")])
def test_it_counts_what_occurred_while_the_license_was_usable_and_nothing_later(stop: str, code: str) -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10, duration=timedelta(days=2))
    stopped_at = AT + 2 * DAY if stop == "expire" else AT + DAY
    if stop == "revoke":
        lifecycle.revoke(license=license, by=BY, at=stopped_at, reason="test")
    if stop == "hold":
        lifecycle.hold(license=license, reason="staff", by=BY, at=stopped_at)
    at = AT + 3 * DAY

    assert consume(license, "before", at=at, occurred_at=stopped_at - SECOND).status == "counted"
    with pytest.raises(metering.NotUsable) as refused:
        consume(license, "after", at=at, occurred_at=stopped_at)

    assert refused.value.code == code


def test_it_refuses_what_does_not_fit_a_hard_allowance_and_takes_what_does() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    consume(license, "e1", 8)

    with pytest.raises(allowances.AllowanceExhausted):
        consume(license, "e2", 3)
    receipt = consume(license, "e3", 2)

    assert receipt.remaining == 0
    assert used(license) == 10


def test_it_takes_a_batch_apart_from_its_bad_events() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    consume(license, "known", 1)

    receipts = batch(
        license,
        Sent("a", "calls", Decimal(4)),
        Sent("a", "calls", Decimal(4)),
        Sent("a", "calls", Decimal(5)),
        Sent("known", "calls", Decimal(1)),
        Sent("b", "other", Decimal(1)),
        Sent("c", "calls", Decimal(-1)),
        Sent("d", "calls", Decimal(6)),
        Sent("e", "calls", Decimal(5)),
    )

    assert [(one.event_id, one.status, one.code) for one in receipts] == [
        ("a", "counted", None),
        ("a", "duplicate", None),
        ("a", "rejected", "event_conflict"),
        ("known", "duplicate", None),
        ("b", "rejected", "unknown_meter"),
        ("c", "rejected", "bad_quantity"),
        ("d", "rejected", "allowance_exhausted"),
        ("e", "counted", None),
    ]
    assert used(license) == 10


def test_it_counts_a_batch_for_many_licenses() -> None:
    make_meter(code="calls")
    licenses = [make_metered("calls", 3) for _ in range(4)]
    sent = [(snapshot(one), Sent(f"e{n}", "calls")) for n in range(4) for one in licenses]

    receipts = metering.consume_batch(sent=sent, source="tests", at=AT)

    assert [receipt.status for receipt in receipts] == ["counted"] * 12 + ["rejected"] * 4
    assert [used(one) for one in licenses] == [3] * 4
    assert UsageChange.objects.count() == 4


def test_a_batch_says_what_is_left_after_each_event() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)

    receipts = batch(license, *(Sent(f"e{number}", "calls", Decimal(number)) for number in (3, 1, 2)))

    assert [one.remaining for one in receipts] == [7, 6, 4]
    assert used(license) == 6


def test_a_batch_counts_each_event_in_the_month_it_occurred_in() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10, at=AT - 60 * DAY)
    before = AT.replace(day=1) - DAY
    consume(license, "there", 1)
    consume(license, "there before", 1, occurred_at=before)

    receipts = batch(license, Sent("late", "calls", Decimal(3), before), Sent("now", "calls", Decimal(2), AT))

    assert [one.remaining for one in receipts] == [6, 7]
    assert sorted(Counter.objects.filter(license=license).values_list("used", flat=True)) == [3, 4]


def test_a_batch_keeps_what_events_say_to_the_letter() -> None:
    make_meter(code="calls", dimensions=["path"])
    license = make_metered("calls", 100)
    odd = ["{a,b}", 'quo"te', "back\\slash", "NULL", "null", "sp ace", "tür\U0001f600", "'", "%s $1", "tab\tline\n"]
    sent = [
        Sent(f"{value}".strip(), "calls", Decimal("0.5"), AT, {"path": value} if number % 2 else None, number or None)
        for number, value in enumerate(odd)
    ]

    receipts = batch(license, *sent[:-1]) + batch(license, *sent[-1:])

    assert {one.status for one in receipts} == {"counted"}
    kept = {one.event_id: one for one in UsageEvent.objects.filter(license_id=license.pk)}
    assert [(kept[one.event_id].dimensions, kept[one.event_id].sequence) for one in sent] == [
        (one.dimensions, one.sequence) for one in sent
    ]
    assert {one.status for one in batch(license, *sent)} == {"duplicate"}
    assert used(license) == 5


def test_a_batch_is_counted_whole_beside_what_is_known_refused_or_new_to_a_license() -> None:
    make_meter(code="calls")
    first, second, third = make_metered("calls", 5), make_metered("calls", 1), make_metered("calls", 5)
    consume(first, "known", 1)
    consume(second, "full", 1)
    pictures_of = {one.pk: snapshot(one) for one in (first, second, third)}
    sent = [
        (pictures_of[one.pk], Sent(event_id, "calls"))
        for one, event_id in ((first, "known"), (first, "new"), (second, "over"), (third, "opens"), (first, "new"))
    ]

    receipts = metering.consume_batch(sent=sent, source="tests", at=AT)

    assert [one.status for one in receipts] == ["duplicate", "counted", "rejected", "counted", "duplicate"]
    assert [used(one) for one in (first, second, third)] == [2, 1, 1]
    assert UsageId.objects.count() == UsageEvent.objects.count() == 4


def test_a_batch_on_postgresql_asks_no_more_for_more_licenses(django_assert_num_queries: Any) -> None:
    make_meter(code="calls")
    licenses = [make_metered("calls", 5) for _ in range(4)]
    for license in licenses:
        consume(license, "first")
    sent = [(snapshot(license), Sent("second", "calls")) for license in licenses]
    statements = 4 if connection.vendor == "postgresql" else 8  # savepoints of the test's transaction among them

    with django_assert_num_queries(statements):
        receipts = metering.consume_batch(sent=sent, source="tests", at=AT)

    assert {one.status for one in receipts} == {"counted"}


def test_a_correction_says_who_and_why_and_is_counted() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    consume(license, "e1", 8)

    receipt = metering.correct(
        license=license,
        meter="calls",
        quantity=Decimal(-5),
        occurred_at=AT,
        reason="Counted twice by the client.",
        by=BY,
        at=AT + DAY,
    )

    assert receipt.remaining == 7
    event = UsageEvent.objects.get(license_id=license.pk, kind="correction")
    assert (event.quantity, event.reason, event.source) == (-5, "Counted twice by the client.", f"{BY.kind}:{BY.id}")
    entry = AuditEntry.objects.get(action="usage.corrected")
    assert entry.reason == "Counted twice by the client."


def test_a_correction_needs_a_reason_and_goes_beyond_a_limit() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    consume(license, "e1", 8)
    told = {"license": license, "meter": "calls", "quantity": Decimal(5), "occurred_at": AT, "by": BY, "at": AT}

    with pytest.raises(Invalid):
        metering.correct(reason=" ", **told)
    metering.correct(reason="Forgotten.", **told)

    assert used(license) == 13
    with pytest.raises(allowances.AllowanceExhausted):
        consume(license, "e2", 1)


def test_a_change_of_plan_takes_what_occurs_later_to_the_new_window() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    consume(license, "before", 4)
    consume(license, "ahead", 3, occurred_at=AT + timedelta(minutes=4))
    revision = _larger(license)

    lifecycle.change_plan(license=license, plan_revision=revision, by=BY, at=AT + timedelta(minutes=2))
    consume(license, "after", 50, at=AT + timedelta(minutes=3))

    windows = Counter.objects.filter(license=license).order_by("starts_at")
    assert [(one.used, one.ceiling) for one in windows] == [(4, 10), (53, 100)]
    assert windows[0].ends_at == windows[1].starts_at == AT + timedelta(minutes=2)
    for one in windows:
        assert one.used == metering.counted(license.pk, "calls", one.starts_at, one.ends_at)


def _larger(license: License) -> Any:
    plan = make_plan(product=license.product)
    grant = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(100), overage="refuse")
    return make_revision(plan=plan, scheme="usage", grants=[grant])


def test_a_change_of_plan_is_undone_without_losing_anything() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    consume(license, "before", 4)
    before = Counter.objects.filter(license=license).values().get()
    at = AT + timedelta(minutes=2)
    lifecycle.change_plan(license=license, plan_revision=_larger(license), by=BY, at=at)

    undo(license, at)

    assert Counter.objects.filter(license=license).values().get() == before


def _of_one_month(license: License) -> None:
    """Hold counters to what they are: windows of one month that never overlap, and say what the events do."""
    rows = list(Counter.objects.filter(license=license).order_by("starts_at"))
    assert all(one.ends_at <= other.starts_at for one, other in pairwise(rows)), rows
    for row in rows:
        assert row.used == metering.counted(license.pk, row.meter, row.starts_at, row.ends_at)
        assert row.ends_at <= allowances.month_of(row.starts_at)[1]


def test_undoing_a_change_at_the_first_of_a_month_leaves_the_months_apart() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    april = datetime(2026, 4, 1, tzinfo=UTC)
    consume(license, "march", 7)
    lifecycle.change_plan(license=license, plan_revision=_larger(license), by=BY, at=april)
    consume(license, "april", 7, at=april)

    undo(license, april + SECOND)

    assert consume(license, "more", 3, at=april + SECOND).remaining == 0
    _of_one_month(license)


@pytest.mark.parametrize("first", ["before", "after"])
def test_undoing_a_change_makes_one_window_of_two_though_only_one_was_opened(first: str) -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)
    at = AT + DAY
    instants = {"before": at - SECOND, "after": at + SECOND}
    lifecycle.change_plan(license=license, plan_revision=_larger(license), by=BY, at=at)
    consume(license, "e1", 4, at=at + SECOND, occurred_at=instants.pop(first))

    undo(license, at + 2 * SECOND)

    assert consume(license, "e2", 6, at=at + DAY, occurred_at=instants.popitem()[1]).remaining == 0
    _of_one_month(license)


def test_a_batch_draws_credit_on_as_many_licenses_as_it_is_about() -> None:
    make_meter(code="calls")
    licenses = [make_metered("calls", 1) for _ in range(12)]
    for license in licenses:
        allowances.grant(license=license, meter="calls", amount=Decimal(5), by=BY, at=AT)

    sent = [(snapshot(license), Sent("e1", "calls", Decimal(3))) for license in licenses]
    receipts = metering.consume_batch(sent=sent, source="tests", at=AT)

    assert [receipt.status for receipt in receipts] == ["counted"] * 12
    assert [used(license) for license in licenses] == [3] * 12


def test_ids_are_uuids() -> None:
    make_meter(code="calls")
    license = make_metered("calls", 10)

    assert isinstance(consume(license, "e1").license_id, UUID)
