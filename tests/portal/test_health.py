"""Alive, ready, degraded, broken: said apart, and by name."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from licensing import guards, sweeps
from licensing.models import RuleRun

pytestmark = pytest.mark.django_db


def test_it_is_live_without_asking_anything(client, django_assert_num_queries):
    with django_assert_num_queries(0):
        answer = client.get("/health/live")

    assert answer.json() == {"status": "live"}


def test_it_is_ready_when_everything_works(client):
    for job in sweeps.every():
        sweeps.run(job, at=timezone.now())

    answer = client.get("/health/ready")

    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "broken": [], "degraded": []})


def test_it_is_degraded_and_says_so_when_redis_is_away(client, settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    answer = client.get("/health/ready")

    assert answer.status_code == 200
    assert "redis" in answer.json()["degraded"]


def test_it_is_broken_when_a_guard_is_gone(client):
    guard = guards.expected(connection.vendor)[0]
    table = f' ON "{guard.table}"' if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f'DROP TRIGGER "guard_{guard.name}"{table}')

    answer = client.get("/health/ready")

    assert (answer.status_code, answer.json()["broken"]) == (503, ["guards"])


def test_it_is_broken_without_its_key_ring(client, settings, tmp_path):
    from licensing import crypto

    settings.KEYRING, settings.KEYRING_FILE, settings.KEYRING_CREATE = "", str(tmp_path / "none.json"), False
    crypto.forget()
    try:
        answer = client.get("/health/ready")
    finally:
        crypto.forget()

    assert (answer.status_code, answer.json()["broken"]) == (503, ["key_ring"])


def test_it_shows_the_lag_of_each_job_to_prometheus(client):
    answer = client.get("/metrics")

    assert answer.status_code == 200
    assert b'licentia_job_lag_seconds{job="expiration-sweep"}' in answer.content


def test_it_hides_metrics_from_whoever_comes_through_the_proxy(client):
    assert client.get("/metrics", headers={"x-forwarded-for": "192.0.2.7"}).status_code == 404


def test_it_names_the_rules_that_have_not_looked_for_an_hour(client):
    for job in sweeps.every():
        sweeps.run(job, at=timezone.now())
    RuleRun.objects.filter(rule="key_sharing").update(ran_at=timezone.now() - timedelta(hours=2))

    answer = client.get("/health/ready")

    assert answer.status_code == 200
    assert answer.json()["degraded"] == ["rule:key_sharing"]
