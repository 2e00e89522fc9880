"""This machine's clock against the database's or Redis's."""

from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test import Client
from django.utils import timezone

from licensing import anomalies
from licensing.models import Anomaly
from portal import clock


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_ahead", 0.0)


@pytest.mark.django_db
@pytest.mark.parametrize("seconds", [90.0, -90.0])
def test_it_flags_a_clock_that_is_off_and_readiness_says_so(seconds: float, client: Client) -> None:
    assert clock.look()
    assert clock.ahead_seconds() == 0.0

    with time_machine.travel(timezone.now().timestamp() + seconds, tick=True):
        clock.look()  # and nothing else: ids made now would be ahead of those of later tests
    degraded = client.get("/health/ready").json()["degraded"]
    anomalies.record_waiting()

    assert abs(clock.ahead_seconds() - seconds) < 3.0
    assert "clock" in degraded
    assert list(Anomaly.objects.filter(rule="clock_skewed").values_list("severity", flat=True)) == ["critical"]
    clock.look()
    assert clock.ahead_seconds() == 0.0


@pytest.mark.django_db
def test_it_says_nothing_where_there_is_no_other_clock(settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    if connection.vendor == "sqlite":
        assert not clock.look()
    assert clock.ahead_seconds() == 0.0
