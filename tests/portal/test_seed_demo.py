"""The demo holds what the contract says, also when it is seeded again."""

import json

import pytest
from django.core.management import call_command
from django.db.models import Sum

from billing import meters
from billing.models import Rollup, UsageEvent
from licensing.models import Counter


def seeded(capsys: pytest.CaptureFixture[str]) -> dict:
    call_command("seed_demo", "--json")
    return json.loads(capsys.readouterr().out)


@pytest.mark.django_db
def test_it_holds_usage_and_what_is_owed_for_it_and_may_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    first = seeded(capsys)
    events = UsageEvent.objects.count()
    again = seeded(capsys)

    license = next(row for row in first["licenses"] if row["plan"] == "metered")
    counted = UsageEvent.objects.filter(license_id=license["id"], meter_revision__meter__code="api_calls")
    days = {event.occurred_at.date() for event in counted}
    assert {row["code"]: row["aggregation"] for row in first["meters"]} == {
        "api_calls": "sum",
        "storage": "max",
        "active_users": "unique",
    }
    assert license["meters"] == ["active_users", "api_calls", "storage"]
    assert len(days) >= 90
    assert meters.doubts() == []
    # What enforcement reads, what was reported and what is billed are one and the same.
    reported = counted.aggregate(total=Sum("quantity"))["total"]
    kept = Counter.objects.filter(license_id=license["id"], meter="api_calls").aggregate(total=Sum("used"))["total"]
    rolled = Rollup.objects.filter(
        license_id=license["id"], meter_revision__meter__code="api_calls", window="month", group=""
    ).aggregate(total=Sum("quantity"))["total"]
    assert reported == kept == rolled
    assert {row["state"] for row in first["statements"]} >= {"draft", "final"}
    assert {row["customer"] for row in first["statements"]} == {"acme", "globex"}
    assert all(row["total_minor"] > 0 for row in first["statements"])
    # Seeded again, it has new passwords and nothing else.
    assert UsageEvent.objects.count() == events
    assert again["statements"] == first["statements"]
    assert again["meters"] == first["meters"]
