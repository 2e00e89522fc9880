"""Sign-in goes on while Redis is away: its limits are counted in the process then."""

import pytest
from django.core.cache import caches
from django.test import override_settings

AWAY = {"default": {"BACKEND": "portal.cache.RedisOrHere", "LOCATION": "redis://127.0.0.1:1/0"}}


@pytest.fixture
def cache():
    with override_settings(CACHES=AWAY):
        yield caches["default"]
        caches["default"].clear()


def test_it_keeps_and_counts_without_redis(cache):
    cache.set("attempts", 1, 60)
    cache.incr("attempts")

    assert cache.get("attempts") == 2
    assert not cache.add("attempts", 9)
    assert cache.get_many(["attempts", "none"]) == {"attempts": 2}


@pytest.mark.django_db
def test_it_lets_a_person_sign_in_without_redis(cache, client):
    from tests.factories import PASSWORD, make_user

    user = make_user()

    answer = client.post("/accounts/login/", {"login": user.email, "password": PASSWORD})

    assert answer.status_code == 302
