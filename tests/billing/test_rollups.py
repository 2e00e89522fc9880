"""billing.rollups: every aggregation against a plain model of it, late events, two at once, killed half-way."""

import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing import jobs, rollups, tasks
from billing.models import MeterRevision, Rollup, UsageChange, UsageEvent
from billing.states import Aggregation
from licensing.errors import Invalid
from licensing.ids import uuid7
from licensing.models import Anomaly, AuditEntry, Counter, JobState, License
from tests.factories import AT, BY, make_license, make_meter, make_usage

pytestmark = pytest.mark.django_db
FIRST = datetime(2026, 2, 27, tzinfo=UTC)  # so that a month ends among the days
DAYS = 5
MICROSECOND = timedelta(microseconds=1)


def modelled(
    revision: MeterRevision, events: list[UsageEvent], starts_at: datetime, ends_at: datetime
) -> Decimal | None:
    """Return what an aggregation is, in the plainest words; None for no usage."""
    counted = sorted(
        (
            event
            for event in events
            if all(str((event.dimensions or {}).get(name)) in allowed for name, allowed in revision.filters.items())
        ),
        key=lambda event: (event.occurred_at, event.sequence or 0, event.received_at, event.event_id),
    )
    inside = [event for event in counted if starts_at <= event.occurred_at < ends_at]
    if revision.aggregation == Aggregation.TIME_WEIGHTED_SUM:
        before = [event for event in counted if event.occurred_at < starts_at]
        if not inside and not before:
            return None
        held, since, total = before[-1].quantity if before else Decimal(), starts_at, Decimal()
        for event in inside:
            total += held * Decimal((event.occurred_at - since) // MICROSECOND)
            held, since = event.quantity, event.occurred_at
        return (total + held * Decimal((ends_at - since) // MICROSECOND)) / 1_000_000
    if not inside:
        return None
    match revision.aggregation:
        case Aggregation.SUM:
            return sum((event.quantity for event in inside), Decimal())
        case Aggregation.COUNT:
            return sum((event.quantity if event.kind == "correction" else Decimal(1) for event in inside), Decimal())
        case Aggregation.MAX:
            return max(event.quantity for event in inside)
        case Aggregation.LATEST:
            return inside[-1].quantity
        case Aggregation.UNIQUE:
            seen = {event.dimensions["user"] for event in inside if event.dimensions and "user" in event.dimensions}
            return Decimal(len(seen)) or None
    raise AssertionError(revision.aggregation)


def make_kind(kind: str, **overrides: Any) -> MeterRevision:
    unique = {"unique_by": "user"} if kind == Aggregation.UNIQUE else {}
    return make_meter(**{"aggregation": kind, "dimensions": ["region", "user"], **unique} | overrides)


def make_random(
    random: random.Random, *, license: UUID, revision: MeterRevision, first: datetime = FIRST
) -> UsageEvent:
    """Return an event at a random instant, often at the very edge of an hour and often at the same as another."""
    at = first + timedelta(seconds=random.randrange(DAYS * 86_400))
    match random.randrange(4):
        case 0:
            at = at.replace(minute=0, second=0)
        case 1:
            at = at.replace(minute=59, second=59, microsecond=999_999)
        case 2:
            at = at.replace(microsecond=random.randrange(1_000_000))
    dimensions = {"region": random.choice(["eu", "us"]), "user": f"u{random.randrange(12)}"}
    correction = random.random() < 0.1
    return make_usage(
        license=license,
        revision=revision,
        at=at,
        quantity=Decimal(random.randrange(-2_000_000 if correction else 0, 900_000_000)) / 1_000_000,
        dimensions=random.choice([dimensions, dimensions, {"region": "eu"}, None]),
        sequence=random.choice([None, random.randrange(3)]),
        kind="correction" if correction else "usage",
    )


def near(found: Decimal | None, meant: Decimal | None) -> bool:
    """Return whether it is the same to the sixth place; on SQLite, whose numbers are binary, to the twelfth digit."""
    if found is None or meant is None:
        return found is meant
    if connection.vendor == "sqlite":
        return abs(found - meant) <= max(abs(meant), 1) / 10**12 + Decimal("0.000002")
    return found == round(meant, 6)


def one(license: UUID, revision: MeterRevision, starts_at: datetime, ends_at: datetime) -> Decimal | None:
    found = rollups.totals(license_id=license, starts_at=starts_at, ends_at=ends_at, meter=revision.meter.code)
    assert len(found) <= 1
    return found[0].quantity if found else None


@pytest.mark.parametrize("kind", Aggregation.values)
@pytest.mark.parametrize("filtered", [False, True], ids=["all", "filtered"])
def test_it_totals_any_stretch_as_the_plain_model_does(kind: str, filtered: bool) -> None:
    chosen = random.Random(f"{kind}{filtered}")
    revision = make_kind(kind, filters={"region": ["eu"]} if filtered else {})
    license, other = uuid7(), uuid7()
    events: list[UsageEvent] = []

    for step in range(6):
        for _ in range(12):
            events.append(make_random(chosen, license=license, revision=revision))
            make_random(chosen, license=other, revision=revision)
        if step % 2 == 0:  # what came in after the last one waits, as ever
            rollups.roll_up(at=AT, batch=chosen.choice([3, 1000]))
        for _ in range(12):
            starts_at, ends_at = sorted(
                chosen.choice([each.occurred_at, each.occurred_at.replace(minute=0, second=0, microsecond=0)])
                + chosen.choice([timedelta(), MICROSECOND, timedelta(hours=30)])
                for each in chosen.sample(events, 2)
            )
            meant = modelled(revision, events, starts_at, ends_at) if starts_at < ends_at else None
            assert near(one(license, revision, starts_at, ends_at), meant), (starts_at, ends_at)
            if starts_at < ends_at:
                together = rollups.totals_of({license: [(starts_at, ends_at), (FIRST, ends_at)], other: [(FIRST, AT)]})
                (first, whole), other_whole = together[license], one(other, revision, FIRST, AT)
                assert near(first[0].quantity if first else None, meant), (starts_at, ends_at)
                from_first = modelled(revision, events, FIRST, ends_at)
                assert near(whole[0].quantity if whole else None, from_first), ends_at
                assert near(next((total.quantity for total in together[other][0]), None), other_whole)


@pytest.mark.parametrize("kind", Aggregation.values)
def test_it_totals_by_dimension_as_the_plain_model_does(kind: str) -> None:
    chosen = random.Random(kind)
    revision, license = make_kind(kind), uuid7()
    events = [make_random(chosen, license=license, revision=revision) for _ in range(60)]
    rollups.roll_up(at=AT)
    starts_at, ends_at = FIRST + timedelta(hours=30, seconds=1), FIRST + timedelta(hours=99, minutes=7)

    found = rollups.totals(license_id=license, starts_at=starts_at, ends_at=ends_at, by=("region",))

    groups: dict[str, list[UsageEvent]] = {}
    for event in events:
        groups.setdefault((event.dimensions or {}).get("region", ""), []).append(event)
    meant = {region: modelled(revision, own, starts_at, ends_at) for region, own in groups.items()}
    assert {each.group["region"] for each in found} == {region for region, each in meant.items() if each is not None}
    assert all(near(each.quantity, meant[each.group["region"]]) for each in found)


@pytest.mark.parametrize("kind", Aggregation.values)
@pytest.mark.parametrize("window", ["hour", "day", "month"])
def test_it_tells_the_windows_of_a_stretch(kind: str, window: str) -> None:
    chosen = random.Random(f"{kind}{window}")
    revision, license = make_kind(kind), uuid7()
    events = [make_random(chosen, license=license, revision=revision) for _ in range(50)]
    rollups.roll_up(at=AT)
    events += [make_random(chosen, license=license, revision=revision) for _ in range(3)]
    starts_at, ends_at = FIRST + timedelta(minutes=30), FIRST + timedelta(days=4, hours=5)

    found = rollups.series(license_id=license, starts_at=starts_at, ends_at=ends_at, window=window)

    assert found
    assert found[0].starts_at >= starts_at
    assert found[-1].ends_at <= ends_at
    for each in found:
        assert near(each.total.quantity, modelled(revision, events, each.starts_at, each.ends_at))
    told = {each.starts_at for each in found}
    missing = [event for event in events if starts_at <= event.occurred_at < ends_at and kind != Aggregation.UNIQUE]
    assert all(any(each.starts_at <= event.occurred_at < each.ends_at for each in found) for event in missing)
    assert len(told) == len(found)


def test_it_rolls_up_hours_days_and_months() -> None:
    revision, license = make_meter(), uuid7()
    for hours in (0, 0, 1, 25, 24 * 40):
        make_usage(license=license, revision=revision, at=FIRST + timedelta(hours=hours), quantity="1.5")

    rolled = rollups.roll_up(at=AT)

    assert (rolled.changes, rolled.hours, rolled.batches) == (5, 4, 1)
    assert not UsageChange.objects.exists()
    assert {
        window: list(Rollup.objects.filter(window=window).values_list("quantity", "events"))
        for window in ("hour", "day", "month")
    } == {
        "hour": [(Decimal(3), 2), (Decimal("1.5"), 1), (Decimal("1.5"), 1), (Decimal("1.5"), 1)],
        "day": [(Decimal("4.5"), 3), (Decimal("1.5"), 1), (Decimal("1.5"), 1)],
        "month": [(Decimal(6), 4), (Decimal("1.5"), 1)],
    }


def test_it_totals_meter_revisions_apart() -> None:
    old, license = make_meter(state="retired", retired_at=AT), uuid7()
    new = make_meter(meter=old.meter, number=2, aggregation="max")
    for quantity in (2, 3):
        make_usage(license=license, revision=old, at=FIRST, quantity=quantity)
        make_usage(license=license, revision=new, at=FIRST, quantity=quantity)

    found = rollups.totals(license_id=license, starts_at=FIRST, ends_at=FIRST + timedelta(days=1), meter=old.meter.code)

    assert {(each.meter_revision_id, each.quantity) for each in found} == {(old.pk, 5), (new.pk, 3)}


def test_a_retired_gauge_weighs_only_while_it_could_be_reported() -> None:
    retired_at = FIRST + timedelta(hours=2)
    gauge = make_kind("time_weighted_sum", state="retired", retired_at=retired_at)
    license = uuid7()
    make_usage(license=license, revision=gauge, at=FIRST, quantity=2)

    first, later = (FIRST, FIRST + timedelta(days=1)), (FIRST + timedelta(days=1), FIRST + timedelta(days=2))

    for _ in range(2):
        assert one(license, gauge, *first) == 2 * (2 * 3600 + 300)
        assert one(license, gauge, *later) is None
        rollups.roll_up(at=AT)


def test_it_changes_nothing_when_run_twice() -> None:
    revision, license = make_meter(), uuid7()
    make_usage(license=license, revision=revision, at=FIRST)
    rollups.roll_up(at=AT)
    before = list(Rollup.objects.values())

    assert rollups.roll_up(at=AT) == rollups.Rolled(0, 0, 0)
    UsageChange.objects.create(license_id=license, meter_revision_id=revision.pk, hour=FIRST)
    rollups.roll_up(at=AT)

    assert list(Rollup.objects.values()) == before


@pytest.mark.postgres
@pytest.mark.parametrize("kind", Aggregation.values)
@pytest.mark.parametrize("looked_up", [False, True], ids=["looked through", "looked up"])
def test_it_recomputes_the_hours_named_and_no_other(
    kind: str, looked_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "_EVENT_BYTES", 1e-9 if looked_up else 1e9)  # as if events were many, or few
    chosen, revision, license = random.Random(kind), make_kind(kind), uuid7()
    for _ in range(60):
        make_random(chosen, license=license, revision=revision)
    rollups.roll_up(at=AT)
    hours = sorted(set(Rollup.objects.filter(window="hour").values_list("starts_at", flat=True)))
    right = {row.pk: row.quantity for row in Rollup.objects.filter(window="hour")}

    Rollup.objects.update(quantity=4711)
    for hour in hours[::2]:
        UsageChange.objects.create(license_id=license, meter_revision_id=revision.pk, hour=hour)
    with CaptureQueriesContext(connection) as queries:
        assert rollups.roll_up(at=AT).hours == len(hours[::2])

    assert looked_up != any(rollups._FRESH in query["sql"] for query in queries)
    for row in Rollup.objects.filter(window="hour"):
        assert row.quantity == (right[row.pk] if row.starts_at in hours[::2] else 4711)


def test_it_loses_nothing_when_it_breaks_off_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    revision, license = make_meter(), uuid7()
    for hours in range(4):
        make_usage(license=license, revision=revision, at=FIRST + timedelta(hours=hours))
    whole = rollups._recompute

    def broken(cursor: Any) -> int:
        hours = whole(cursor)
        if Rollup.objects.filter(window="hour").count() > 2:
            raise KeyboardInterrupt
        return hours

    monkeypatch.setattr(rollups, "_recompute", broken)
    with pytest.raises(KeyboardInterrupt):
        rollups.roll_up(at=AT, batch=2)
    monkeypatch.undo()

    assert UsageChange.objects.count() == 2
    assert one(license, revision, FIRST, FIRST + timedelta(days=1)) == 4
    assert rollups.roll_up(at=AT).changes == 2
    assert Rollup.objects.get(window="day").quantity == 4


def test_it_keeps_values_that_are_too_long_apart() -> None:
    revision, license = make_kind("unique"), uuid7()
    for end in "abb":
        make_usage(license=license, revision=revision, at=FIRST, dimensions={"user": "x" * 600 + end})

    before = one(license, revision, FIRST, FIRST + timedelta(hours=1))
    rollups.roll_up(at=AT)

    assert before == one(license, revision, FIRST, FIRST + timedelta(hours=1)) == 2
    assert one(license, revision, FIRST, FIRST + timedelta(hours=2)) == 2


# --- reconciling ------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 5, 12, 0, tzinfo=UTC)


def make_counter(license: License, revision: MeterRevision, used: str) -> Counter:
    month = datetime(2026, 3, 1, tzinfo=UTC)
    return Counter.objects.create(
        license=license,
        meter=revision.meter.code,
        starts_at=month,
        ends_at=month + timedelta(days=31),
        used=Decimal(used),
    )


@pytest.fixture
def counted() -> tuple[License, MeterRevision]:
    """A license whose counter, events and roll-ups agree, over two revisions of its meter."""
    license, old = make_license(), make_meter(state="retired", retired_at=AT)
    new = make_meter(meter=old.meter, number=2)
    for revision, hours in ((old, 0), (old, 30), (new, 30), (new, 31)):
        make_usage(license=license, revision=revision, at=AT + timedelta(hours=hours), quantity="0.1")
    make_usage(license=license, revision=make_kind("time_weighted_sum"), at=AT, quantity=3)
    for _ in range(3):
        make_usage(license=license, revision=make_kind("unique"), at=AT, dimensions={"user": "ada"})
    make_counter(license, new, "0.4")
    rollups.roll_up(at=NOW)
    return license, new


def flagged() -> list[tuple[str, str]]:
    return sorted(Anomaly.objects.values_list("rule", "evidence__window"))


def test_it_finds_nothing_where_all_agree(counted: tuple[License, MeterRevision]) -> None:
    assert rollups.reconcile(at=NOW) == []
    assert flagged() == []


def test_it_says_that_a_counter_is_not_what_its_events_are(counted: tuple[License, MeterRevision]) -> None:
    license, revision = counted
    Counter.objects.update(used=Decimal("0.400001"))

    (found,) = rollups.reconcile(at=NOW)

    assert (found.kind, found.license_id, found.meter) == (
        "counter_differs_from_events",
        license.pk,
        revision.meter.code,
    )
    assert (found.recorded, found.counted) == (Decimal("0.400001"), Decimal("0.4"))
    assert Anomaly.objects.get().rule == "counter_differs_from_events"
    assert Counter.objects.get().used == Decimal("0.400001"), "it was repaired"


def test_it_says_that_a_counter_has_counted_what_is_no_event(counted: tuple[License, MeterRevision]) -> None:
    make_counter(make_license(), counted[1], "5")

    (found,) = rollups.reconcile(at=NOW)

    assert (found.recorded, found.counted) == (5, 0)


@pytest.mark.parametrize("window", ["hour", "day", "month"])
def test_it_says_that_a_roll_up_is_not_what_its_events_are(counted: tuple[License, MeterRevision], window: str) -> None:
    row = Rollup.objects.filter(window=window, meter_revision=counted[1]).first()
    assert row is not None
    Rollup.objects.filter(pk=row.pk).update(quantity=7)

    found = rollups.reconcile(at=NOW)

    assert window in {each.window for each in found}
    assert {each.kind for each in found} == {"rollup_differs_from_events"}
    assert next(each.recorded for each in found if each.window == window) == 7
    assert Rollup.objects.get(pk=row.pk).quantity == 7, "it was repaired"


@pytest.mark.parametrize("gone", ["event", "rollup"])
def test_it_says_that_one_side_is_missing(counted: tuple[License, MeterRevision], gone: str) -> None:
    if gone == "rollup":
        Rollup.objects.filter(window="hour", meter_revision=counted[1]).delete()
    else:
        Rollup.objects.create(
            license_id=counted[0].pk, meter_revision=counted[1], window="hour", starts_at=AT, quantity=1, events=1
        )

    found = rollups.reconcile(at=NOW)

    assert any(each.window == "hour" and None in (each.recorded, each.counted) for each in found)


def test_it_says_nothing_of_what_waits_for_a_roll_up(counted: tuple[License, MeterRevision]) -> None:
    license, revision = counted
    make_usage(license=license, revision=revision, at=AT, quantity="0.1")
    Counter.objects.update(used=Decimal("0.5"))

    assert rollups.reconcile(at=NOW) == []


def test_it_is_made_anew_when_a_person_decided(counted: tuple[License, MeterRevision]) -> None:
    license, _ = counted
    before = list(Rollup.objects.order_by("pk").values())
    Rollup.objects.filter(window="hour").update(quantity=7)
    Rollup.objects.create(
        license_id=license.pk, meter_revision=counted[1], window="hour", starts_at=NOW, quantity=1, events=1
    )

    with pytest.raises(Invalid):
        rollups.rebuild(license=license, reason=" ", by=BY, at=NOW)
    hours = rollups.rebuild(license=license, reason="the disk lied", by=BY, at=NOW)

    assert list(Rollup.objects.order_by("pk").values()) == before
    assert rollups.reconcile(at=NOW) == []
    entry = AuditEntry.objects.get(action="usage.rollups_rebuilt")
    assert (entry.reason, entry.license_id, entry.after) == ("the disk lied", license.pk, {"hours": hours})


def said(*args: str) -> Any:
    out = StringIO()
    call_command("rollup", *args, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_rolls_up_checks_and_makes_anew(counted: tuple[License, MeterRevision]) -> None:
    license, revision = counted
    make_usage(license=license, revision=revision, at=AT, quantity="0.1")

    assert said()["changes"] == 1
    assert said()["changes"] == 0
    with time_machine.travel(NOW, tick=False):
        with pytest.raises(SystemExit):
            said("--check")
        Counter.objects.update(used=Decimal("0.5"))
        assert said("--check") == []
    assert said("--rebuild", str(license.pk), "--reason", "to be sure")["hours"] > 0
    for wrong, why in (
        (["--rebuild", str(license.pk)], "why"),
        (["--rebuild", "x"], "no license"),
        (["--batch", "0"], "batch"),
    ):
        with pytest.raises(CommandError, match=why):
            call_command("rollup", *wrong)


def test_its_jobs_run_and_keep_their_rows(counted: tuple[License, MeterRevision]) -> None:
    make_usage(license=counted[0], revision=counted[1], at=AT, quantity="0.1")

    for task in (tasks.roll_up, tasks.reconcile, tasks.make_partitions, tasks.forget_usage_ids, tasks.follow_up_usage):
        task()

    assert not UsageChange.objects.exists()
    assert set(JobState.objects.values_list("name", flat=True)) >= {
        job.name for job in jobs.JOBS if job.name.startswith("usage-")
    }
    scheduled = {each["task"] for each in settings.CELERY_BEAT_SCHEDULE.values()}
    assert {f"billing.{name}" for name in ("roll_up", "reconcile", "make_partitions", "forget_usage_ids")} <= scheduled
