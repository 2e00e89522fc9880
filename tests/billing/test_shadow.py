"""Live requests of a rollout's licenses are decided by both terms, off the request, and what differs is listed."""

import itertools
import json
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction

from billing import metering, rollout, shadow
from billing.metering import Sent
from billing.models import LiveComparison, Rollout, RolloutDifference, RolloutMember
from licensing import activations, anomalies, lifecycle, live, pictures, seats, snapshots, validation
from licensing.allowances import AllowanceExhausted
from licensing.catalog import Grant
from licensing.decision import Scope
from licensing.models import Anomaly, License
from licensing.pictures import Question
from tests.billing.test_rollout import World
from tests.concurrency.together import together
from tests.factories import AT, BY, make_license, make_meter, make_plan, make_revision

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
ONE = Decimal(1)


@pytest.fixture(autouse=True)
def _calls(db: None) -> None:
    metering.forget()
    make_meter(code="calls")


def in_shadow(world: World) -> Rollout:
    row = world.prepared()
    world.step(row, "rehearsed", "shadow")
    live.attend()
    return row


def ask(license: License, at: Any, **scope: Any) -> Any:
    return answer(snapshots.by_id(license.pk, Scope(**scope)), Scope(**scope), at)


def answer(found: Any, asked: Scope, at: Any) -> Any:
    question = Question.of("id", found.picture.snapshot.license_id, asked)
    return validation._decided(found, question, asked, caller="tests", request_id="r", at=at).verdict


def use(license: License, number: str, quantity: int, at: Any) -> Any:
    found = pictures.read(Question.of("id", str(license.pk), Scope()))
    assert found is not None
    sent = Sent(number, "calls", Decimal(quantity), at)
    return metering.consume(license=found.snapshot, sent=sent, source="tests", at=at)


def listed() -> list[tuple[str, str, str]]:
    rows = RolloutDifference.objects.filter(kind="live").order_by("subject", "after")
    return list(rows.values_list("subject", "before", "after"))


def test_it_compares_what_really_arrives_and_lists_what_differs() -> None:
    world = World(2, activation_required=True)
    one, two = world.licenses
    activations.activate(license=one, fingerprint="f" * 32, by=BY, at=AT)
    row = in_shadow(world)
    for license, scope in ((one, {}), (one, {}), (one, {"fingerprint": "f" * 32}), (two, {"fingerprint": "g" * 32})):
        ask(license, world.clock(), **scope)

    assert live.attend() == 4

    assert listed() == [
        ("validate", "valid", "activation_required"),
        ("validate by a machine that is not activated", "valid", "activation_required"),
    ]
    stands = rollout.standing(row).live
    assert (stands.compared, stands.differed, stands.dropped, stands.licenses) == (4, 3, 0, 2)
    assert stands.since is not None
    assert stands.since.startswith("2026-03-15T12:00")


def test_it_costs_nothing_while_nothing_is_in_shadow(django_assert_num_queries: Any) -> None:
    world = World(1)
    row = world.prepared()
    world.step(row, "rehearsed")
    live.attend()
    found = snapshots.by_id(world.licenses[0].pk, Scope())
    with django_assert_num_queries(0):
        answer(found, Scope(), world.clock())
        assert (live.attend(), len(live._told)) == (0, 0)

    world.step(row, "shadow")
    live._looked_at = float("-inf")
    live.attend()
    ask(world.licenses[0], world.clock())
    other = make_license()
    ask(other, world.clock())
    with django_assert_num_queries(0):
        answer(found, Scope(), world.clock())
    assert len(live._told) == 2

    rollout.stop(rollout=row, by=BY, at=world.clock())
    live._looked_at = float("-inf")
    live.attend()
    assert live.wanted == frozenset()


def test_it_goes_on_in_the_canary_for_those_not_yet_switched() -> None:
    world = World(8)
    row = in_shadow(world)
    world.step(row, "canary", percent=50)
    live.attend()
    for license in world.licenses:
        ask(License.objects.get(pk=license.pk), world.clock())
    live.attend()
    pending = RolloutMember.objects.filter(state="pending").count()

    assert 0 < pending < 8
    assert LiveComparison.objects.filter(member__state="pending", compared=1).count() == pending
    assert LiveComparison.objects.filter(member__state="switched").count() == 0
    world.step(row, "rolling_back")
    assert rollout.standing(row).live.compared == pending


def test_it_fits_live_usage_into_the_new_hard_allowance() -> None:
    world = World(1, scheme="both", seat_limit=10)  # 100 calls, refused beyond
    license = world.licenses[0]
    in_shadow(world)
    at = world.clock()
    for number, quantity in enumerate((60, 60, 40)):
        use(license, f"e-{number}", quantity, at)
    use(license, "e-0", 60, at)  # a duplicate is no other request
    live.attend()
    ask(license, at, entitlements=("calls",))
    live.attend()

    assert listed() == [
        ("usage of calls", "counted", "allowance_exhausted"),
        ("validate for calls", "entitlement_missing", "allowance_exhausted"),
    ]
    row = LiveComparison.objects.get()
    assert (row.compared, row.differed, row.used) == (4, 2, {"calls@2026-03": "100.000000"})
    reason = RolloutDifference.objects.get(subject="usage of calls").reason
    assert reason.startswith("60 of 100 calls would be used since 2026-03-15")


def test_it_says_what_the_new_terms_would_count_that_is_refused_now() -> None:
    world = World(0)
    world.seats = make_revision(
        plan=world.old, scheme="both", grants=[Grant("calls", "allowance", meter="calls", amount=Decimal(10))]
    )
    license = make_license(plan_revision=world.seats)
    world.licenses = [license]
    in_shadow(world)
    with pytest.raises(AllowanceExhausted):
        use(license, "e", 11, world.clock())
    live.attend()

    assert listed() == [("usage of calls", "allowance_exhausted", "counted")]


def test_it_counts_what_it_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1)
    row = in_shadow(world)
    monkeypatch.setattr(live, "CAPACITY", 3)
    for _ in range(5):
        ask(world.licenses[0], world.clock())
    live.attend()

    stands = rollout.standing(row).live
    assert (stands.compared, stands.dropped) == (3, 2)


def test_a_batch_that_fails_is_counted_and_said_and_those_after_it_are_compared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(2)
    row = in_shadow(world)
    monkeypatch.setattr(live, "BATCH", 2)
    for license in (*world.licenses, world.licenses[0], world.licenses[0]):
        ask(license, world.clock())
    whole = shadow._compared

    def fault(row: Any, member: RolloutMember, some: Any) -> Any:
        if member.license_id == world.licenses[1].pk:
            raise ZeroDivisionError
        return whole(row, member, some)

    monkeypatch.setattr(shadow, "_compared", fault)
    assert live.attend() == 2
    anomalies.record_waiting()

    stands = rollout.standing(row.__class__.objects.get(pk=row.pk)).live
    assert (stands.compared, stands.dropped) == (2, 2)
    assert "live_requests_lost" in caplog.text
    assert Anomaly.objects.get(rule="live_requests_lost").evidence == {"count": 2, "error": "ZeroDivisionError"}

    ask(world.licenses[1], world.clock())
    assert live.attend() == 0
    assert rollout.standing(row).live.dropped == 2  # said with the next batch
    assert live.attend() == 0
    assert rollout.standing(row.__class__.objects.get(pk=row.pk)).live.dropped == 3


def test_it_goes_on_when_nothing_can_be_heard_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1)
    in_shadow(world)
    monkeypatch.setattr(live, "_hear", lambda told, dropped: 1 // 0)
    ask(world.licenses[0], world.clock())

    assert live.attend() == 0
    assert live.attend() == 0
    assert sum(live._dropped.values()) == 1


def test_it_lists_only_so_many_differences_of_a_license(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "LISTED", 2)
    world = World(1, activation_required=True)
    row = in_shadow(world)
    for number in range(5):
        ask(world.licenses[0], world.clock(), entitlements=(f"feature-{number}",))
    live.attend()

    assert len(listed()) == 2
    assert rollout.standing(row).live.differed == 5


def test_status_and_differences_show_it() -> None:
    world = World(1, activation_required=True)
    in_shadow(world)
    ask(world.licenses[0], world.clock())
    live.attend()
    status, differences, text = StringIO(), StringIO(), StringIO()
    call_command("rollout", "status", "move", "--json", stdout=status)
    call_command("rollout", "differences", "move", "--json", stdout=differences)
    call_command("rollout", "status", "move", stdout=text)

    assert json.loads(status.getvalue())["live"]["differed"] == 1
    assert "live" in {each["kind"] for each in json.loads(differences.getvalue())}
    assert "live requests: 1 compared of 1 licenses" in text.getvalue()


@pytest.mark.django_db(transaction=True)
def test_processes_at_once_count_each_request_once() -> None:
    world = World(3)
    row = in_shadow(world)
    for license in world.licenses * 10:
        ask(license, world.clock())
    told, _ = list(live._told), live._told.clear()
    parts = [told[start::3] for start in range(3)]

    assert sum(together(*(lambda part=part: shadow.compare(part, {}) for part in parts))) == 30
    assert rollout.standing(row).live.compared == 30


def _shown(picture: Any) -> Any:
    snapshot = picture.snapshot
    return {
        name: getattr(snapshot, name) for name in snapshot.__struct_fields__ if name not in ("revision", "updated_at")
    }


@pytest.mark.parametrize(
    ("old", "new"),
    list(
        itertools.product(
            [{}, {"duration": None}, {"seat_kind": "floating"}, {"grace_period": timedelta(days=7)}],
            [
                {
                    "scheme": "usage",
                    "seat_limit": None,
                    "grants": [Grant("calls", "allowance", meter="calls", amount=ONE)],
                },
                {"duration": None, "activation_required": True},
                {"seat_kind": "floating", "seat_limit": 2},
                {"maintenance": timedelta(days=90), "grace_period": timedelta(days=3), "activation_limit": 1},
            ],
        )
    ),
)
def test_a_snapshot_as_if_switched_is_what_a_switch_makes_it(old: Any, new: Any) -> None:
    product = make_plan().product
    first = make_revision(plan=make_plan(product=product), **old)
    second = make_revision(plan=make_plan(product=product), **new)
    license = make_license(plan_revision=first)
    if first.seat_kind == "named":
        seats.assign(license=license, holder="ada@example.com", by=BY, at=AT)
    question, at = Question.of("id", str(license.pk), Scope()), AT + HOUR
    before = pictures.read(question)
    assert before is not None
    supposed = lifecycle.as_if_under(license=License.objects.get(pk=license.pk), plan_revision=second, starts_at=at)
    as_if = pictures.as_if(before.snapshot, supposed, {})

    with transaction.atomic():
        lifecycle.change_plan(license=license, plan_revision=second, by=BY, at=at)
        after = pictures.read(question)

    assert _shown(before.__class__(as_if, before.facts)) == _shown(after)
