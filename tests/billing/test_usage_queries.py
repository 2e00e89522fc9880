"""Usage that no roll-up holds yet is read by as many queries, however many days wait."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing import rollups
from billing.states import Window
from licensing.models import License
from tests.billing.test_metering import make_metered
from tests.factories import AT, make_meter, make_usage

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
AGGREGATIONS = ("sum", "count", "max", "latest", "time_weighted_sum", "unique")


def waiting(license: License, revision: Any, days: int) -> None:
    """Usage of every second hour of days that are rolled up no more: the hours between are current."""
    for day in range(days):
        for hour in (1, 3):
            at = AT + day * DAY + timedelta(hours=hour, minutes=7)
            user = {"user": f"user-{day % 3}", "region": "eu"}
            make_usage(license=license, revision=revision, at=at, quantity=day + hour, dimensions=user)


def queries(act: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as seen:
        act()
    return len(seen)


def make_aggregating(aggregation: str) -> Any:
    unique_by = "user" if aggregation == "unique" else ""
    return make_meter(code="calls", aggregation=aggregation, dimensions=["user", "region"], unique_by=unique_by)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_thirty_days_that_wait_cost_no_more_queries_than_one(aggregation: str) -> None:
    revision = make_aggregating(aggregation)
    one, thirty = (make_metered("calls", 10, overage="charge") for _ in range(2))
    for license, days in ((one, 1), (thirty, 30)):
        waiting(license, revision, days)
        rollups.roll_up(at=AT)
        waiting(license, revision, days)
    asked: dict[str, Any] = {"starts_at": AT + timedelta(minutes=3), "ends_at": AT + 30 * DAY + timedelta(minutes=9)}

    counts = [
        [
            queries(lambda license=license: rollups.series(license_id=license.pk, window=Window.DAY, **asked)),
            queries(lambda license=license: rollups.totals(license_id=license.pk, **asked)),
        ]
        for license in (one, thirty)
    ]
    found = rollups.series(license_id=thirty.pk, window=Window.HOUR, **asked)
    whole = rollups.totals(license_id=thirty.pk, **asked)
    rollups.roll_up(at=AT)

    assert max(counts[1]) <= max(counts[0]), counts
    assert max(counts[1]) <= 7, counts
    assert found == rollups.series(license_id=thirty.pk, window=Window.HOUR, **asked)
    assert whole == rollups.totals(license_id=thirty.pk, **asked)


@pytest.mark.parametrize("by", [(), ("region",)])
def test_different_users_of_thirty_days_cost_no_more_queries_than_of_one(by: tuple[str, ...]) -> None:
    license = make_metered("calls", 10, overage="charge")
    revision = make_aggregating("unique")
    waiting(license, revision, 30)
    rollups.roll_up(at=AT)
    waiting(license, revision, 2)  # which are read from events
    asked: dict[str, Any] = {"license_id": license.pk, "window": Window.DAY, "by": by, "starts_at": AT}

    counts = [
        queries(lambda days=days: rollups.series(ends_at=AT + days * DAY, **asked))  # type: ignore[misc]
        for days in (3, 30)
    ]
    found = rollups.series(ends_at=AT + 30 * DAY, **asked)

    assert counts[0] == counts[1] <= 5
    assert [each.total.quantity for each in found] == [1] * 30
    whole = rollups.totals(license_id=license.pk, starts_at=AT, ends_at=AT + 30 * DAY, by=by)
    assert [each.quantity for each in whole] == [3]
