"""What follows a count, where whoever counted dies right after the commit: a job does it, once."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing import jobs, metering
from billing.metering import Sent
from billing.windows import ACCEPTED_BACK
from licensing import allowances, sweeps
from licensing.models import License, OutboxMessage
from licensing.models.allowances import Counter, CreditGrant
from tests.billing.test_metering import make_metered, snapshot
from tests.concurrency.together import together
from tests.factories import AT, BY, make_meter

pytestmark = pytest.mark.django_db(transaction=True)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


class Killed(BaseException):
    """What ends a process between the commit and what follows it."""


@pytest.fixture(autouse=True)
def _one_meter(transactional_db: None) -> None:
    metering.forget()
    make_meter(code="calls")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Whoever counts dies with the count committed, until this is undone."""

    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(allowances, "follow", die)
    return monkeypatch


def count(license: License, event_id: str, quantity: int, at: Any = AT) -> None:
    with pytest.raises(Killed):
        metering.consume(
            license=snapshot(license), sent=Sent(event_id, "calls", Decimal(quantity), AT), source="t", at=at
        )


def told() -> list[tuple[str, int]]:
    rows = OutboxMessage.objects.order_by("pk")
    return sorted((str(row.license_id), row.payload["facts"]["percent"]) for row in rows)


def follow_up(at: Any = AT + MINUTE) -> int:
    return sweeps.run(jobs.FOLLOW_UP, at=at)


def test_thresholds_that_nobody_told_of_are_told_once_by_whoever_comes_first(dying: Any) -> None:
    licenses = [make_metered("calls", 10) for _ in range(3)]
    for number, license in enumerate(licenses):
        count(license, "e1", [4, 8, 10][number])
    assert told() == []

    results = together(*[follow_up] * 4)

    assert not [one for one in results if isinstance(one, Exception)], results
    ids = [str(license.pk) for license in licenses]
    assert told() == sorted([(ids[1], 50), (ids[1], 80), (ids[2], 50), (ids[2], 80), (ids[2], 100)])
    assert [Counter.objects.get(license=one).exhausted for one in licenses] == [False, False, True]
    assert follow_up() == 0
    assert len(told()) == 5


def test_credit_that_nobody_drew_is_drawn_once_by_whoever_comes_first(dying: Any) -> None:
    license = make_metered("calls", 10, overage="charge")
    allowances.grant(license=license, meter="calls", amount=Decimal(50), by=BY, at=AT)
    count(license, "e1", 17)
    assert CreditGrant.objects.get().drawn == 0

    results = together(*[follow_up] * 4)

    assert not [one for one in results if isinstance(one, Exception)], results
    assert (CreditGrant.objects.get().drawn, Counter.objects.get().credit) == (7, 7)
    assert follow_up() == 0
    assert CreditGrant.objects.get().drawn == 7


def test_a_count_that_follows_up_next_to_the_job_does_nothing_twice(dying: Any) -> None:
    license = make_metered("calls", 10, overage="charge")
    allowances.grant(license=license, meter="calls", amount=Decimal(50), by=BY, at=AT)
    count(license, "e1", 15)
    dying.undo()
    picture = snapshot(license)

    def counting(number: int) -> Any:
        return metering.consume(license=picture, sent=Sent(f"more{number}", "calls"), source="t", at=AT)

    together(follow_up, lambda: counting(1), follow_up, lambda: counting(2))

    assert [percent for _, percent in told()] == [50, 80, 100]
    assert CreditGrant.objects.get().drawn == 7


def test_a_window_that_is_over_draws_no_credit_that_came_later(dying: Any) -> None:
    license = make_metered("calls", 10, overage="charge")
    at = AT + 40 * DAY
    count(license, "e1", 15, at=AT + DAY)
    allowances.grant(license=license, meter="calls", amount=Decimal(50), by=BY, at=at)

    follow_up(at)

    assert CreditGrant.objects.get().drawn == 0
    assert [percent for _, percent in told()] == [50, 80, 100]
    assert follow_up(at) == 0


def test_it_comes_through_many_in_batches_and_leaves_alone_what_is_long_over(dying: Any) -> None:
    licenses = [make_metered("calls", 10) for _ in range(5)]
    for license in licenses:
        count(license, "e1", 5)

    late = Counter.objects.first().ends_at + ACCEPTED_BACK
    assert follow_up(late) == 0
    assert allowances.catch_up(at=AT, since=AT - ACCEPTED_BACK, limit=2) == (5, 0)
    assert len(told()) == 5
