"""Scheduled changes that are made late: the license may and owes what it would had they been in time."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing import changes, statements
from licensing import anomalies, lifecycle, sweeps, switches
from licensing.models import License, SchemeChange
from tests.factories import BY, make_license, make_plan, make_price, make_revision

pytestmark = pytest.mark.django_db
MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SWITCH = MARCH + 10 * DAY


def moved(run_at: datetime, acts: Any = ()) -> License:
    """Return a license of 10 seats scheduled to get 3 on the 11th, which the job saw to at `run_at`."""
    plan = make_plan()
    make_price(plan=plan, components=[{"kind": "seats", "amount": "31.00"}])
    first, second = make_revision(plan=plan), make_revision(plan=make_plan(product=plan.product), seat_limit=3)
    make_price(plan=second.plan, components=[{"kind": "seats", "amount": "31.00"}])
    license = make_license(plan_revision=first, at=MARCH)
    change = switches.schedule(license=license, plan_revision=second, starts_at=SWITCH, by=BY, at=MARCH)
    steps = [(run_at, lambda at: switches.carry_out(change_id=change.pk, at=at))]
    steps += [
        (at, lambda at, seats=seats: lifecycle.change_limits(license=license, seat_limit=seats, by=BY, at=at))
        for at, seats in acts
    ]
    for at, act in sorted(steps, key=lambda step: step[0]):
        act(at)
    license.refresh_from_db()
    return license


def owed(license: License) -> list[tuple[str, int]]:
    lines = statements.rated(license=license, starts_at=MARCH, ends_at=APRIL, at=APRIL)
    return [(str(line.kind), line.amount_minor) for line in lines]


@pytest.mark.parametrize(
    "acts",
    [
        [],
        [(SWITCH + DAY, 20)],
        [(SWITCH + DAY, 20), (SWITCH + DAY + timedelta(hours=1), 10)],
        [(SWITCH - DAY, 20)],
        [(SWITCH - DAY, 20), (SWITCH + DAY, 3)],
        [(SWITCH + DAY, None), (SWITCH + 4 * DAY, 7)],
    ],
)
def test_it_is_late_or_in_time_and_the_limit_and_the_money_are_the_same(acts: Any) -> None:
    in_time, late = moved(SWITCH, acts), moved(SWITCH + 2 * DAY, acts)

    assert late.seat_limit == in_time.seat_limit
    assert owed(late) == owed(in_time)


def test_it_charges_the_limit_set_after_its_instant_from_then_on() -> None:
    late = moved(SWITCH + 2 * DAY, [(SWITCH + DAY, 20)])

    assert (late.seat_limit, late.seats_ceiling) == (20, 20)
    # 10 seats for 31 days less 21, 3 for 21 days less 20, 20 for 20 days.
    assert owed(late) == [
        ("seats", 310_00),
        ("credit", -210_00),
        ("seats", 63_00),
        ("credit", -60_00),
        ("seats", 400_00),
    ]


def test_it_is_undone_and_the_limit_set_since_stays() -> None:
    late = moved(SWITCH + 2 * DAY, [(SWITCH + DAY, 20)])

    changes.undo(license=late, by=BY, at=SWITCH + 3 * DAY)
    late.refresh_from_db()

    assert late.seat_limit == 20
    assert owed(late) == [("seats", 310_00), ("credit", -200_00), ("seats", 400_00)]


def test_terms_accepted_before_it_ran_do_not_outlive_it() -> None:
    plan = make_plan()
    make_price(plan=plan, components=[{"kind": "seats", "amount": "31.00"}])
    license = make_license(plan_revision=make_revision(plan=plan), at=MARCH)
    second = make_revision(plan=plan, seat_limit=3)
    # The first revision is retired by the second: the license stays on it until its change.
    change = switches.schedule(license=license, plan_revision=second, starts_at=SWITCH, by=BY, at=MARCH)
    License.objects.filter(pk=license.pk).update(seat_limit=500, seats_ceiling=500)
    lifecycle.accept_terms(license=license, by=BY, at=SWITCH + DAY, reason="Agreed by telephone")
    switches.carry_out(change_id=change.pk, at=SWITCH + 2 * DAY)
    license.refresh_from_db()

    assert license.seat_limit == 3
    assert owed(license) == [("seats", 310_00), ("credit", -210_00), ("seats", 63_00)]


def test_a_license_whose_terms_were_altered_keeps_no_other_from_its_change() -> None:
    plan = make_plan()
    first = make_revision(plan=plan)
    second = make_revision(plan=make_plan(product=plan.product), seat_limit=3)
    licenses = [make_license(plan_revision=first, at=MARCH) for _ in range(3)]
    for license in licenses:
        switches.schedule(license=license, plan_revision=second, starts_at=SWITCH, by=BY, at=MARCH)
    License.objects.filter(pk=licenses[0].pk).update(seat_limit=500, seats_ceiling=500)

    done, failed = sweeps.CHANGES.work(SWITCH + DAY)
    states = list(SchemeChange.objects.order_by("pk").values_list("state", flat=True))

    assert (done, failed, states) == (2, 1, ["scheduled", "applied", "applied"])
    assert anomalies._later[0]["license_id"] == licenses[0].pk
    lifecycle.accept_terms(license=licenses[0], by=BY, at=SWITCH + DAY, reason="Agreed")
    assert sweeps.CHANGES.work(SWITCH + 2 * DAY) == (1, 0)
