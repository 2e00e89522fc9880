"""Who asks too often is told to wait: a caller by its credential or license, an address by its failures."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from licensing import keyformat, throttles
from tests.api.conftest import Api, World, assert_problem, by_key, by_scopes, by_secret, caller
from tests.servers import free_port


@pytest.fixture(params=["with Redis", "without Redis", "Redis away"])
def buckets(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Small buckets, kept in Redis, in the process, or in the process because Redis does not answer."""
    settings.THROTTLES = {"address": (0.01, 3), "license": (0.01, 3), "credential": (0.01, 3)}
    if request.param == "without Redis":
        settings.REDIS_URL = ""
    if request.param == "Redis away":
        settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    yield request.param
    throttles._throttles.clear()


def assert_throttled(answer: Any, *, burst: int = 3) -> None:
    assert_problem(answer, 429, "throttled")
    assert 1 <= int(answer["Retry-After"]) <= math.ceil(1 / 0.01)
    assert answer["RateLimit-Policy"] == f'"default";q={burst};w=300'
    assert re.fullmatch(r'"default";r=0;t=\d+', answer["RateLimit"])


def remaining(answer: Any) -> int:
    found = re.fullmatch(r'"default";r=(\d+);t=(\d+)', answer["RateLimit"])
    assert found
    assert answer["RateLimit-Policy"] == '"default";q=3;w=300'
    return int(found[1])


def test_it_counts_a_credential_wherever_it_calls(world: World, buckets: str) -> None:
    server = by_scopes("licenses:read", "validate")
    elsewhere = replace(server, address="192.0.2.9")

    left = [
        remaining(server.get("/licenses")),
        remaining(elsewhere.get("/licenses")),
        remaining(server.post("/validate", {"license_key": world.key})),
    ]

    assert left == [2, 1, 0]
    assert_throttled(server.get("/licenses"))
    assert_throttled(elsewhere.post("/validate", {"license_key": world.key}))
    assert by_scopes("licenses:read").get("/licenses").status_code == 200


def test_it_counts_a_license_wherever_its_key_is_used(world: World, buckets: str) -> None:
    left = [
        remaining(by_key(world.key).post("/validate", {})),
        remaining(by_key(world.key.lower()).get("/activations")),
        remaining(by_key(world.key).get("/entitlements")),
    ]

    assert left == [2, 1, 0]
    assert_throttled(by_key(world.key).post("/validate", {}))
    assert_throttled(by_key(world.key).get("/activations"))
    assert by_key(world.other_key).post("/validate", {}).status_code == 200


@pytest.mark.parametrize(
    "failure",
    [
        lambda address: replace(caller(None), address=address).get("/licenses"),
        lambda address: replace(by_secret("lsk_" + "x" * 43), address=address).get("/licenses"),
        lambda address: replace(by_secret("lsk_" + "x" * 43), address=address).post("/validate", {}),
        lambda address: replace(by_key(keyformat.generate()), address=address).post("/validate", {}),
        lambda address: replace(by_key(keyformat.generate()), address=address).get("/activations"),
        lambda address: replace(by_key("LIC1-MISTYPED"), address=address).post("/validate", {}),
    ],
    ids=["no credential", "unknown", "unknown at validate", "unknown key", "unknown key elsewhere", "mistyped"],
)
def test_it_counts_the_failures_of_an_address(failure: Any, world: World, buckets: str) -> None:
    address = caller(None).address

    statuses = [failure(address).status_code for _ in range(4)]

    assert statuses == [401] * 4  # the fourth finds the bucket empty, the fifth is not even looked at
    blocked = failure(address)
    assert_problem(blocked, 429, "throttled")
    assert 1 <= int(blocked["Retry-After"]) <= 100
    assert_problem(replace(by_key(world.key), address=address).post("/validate", {}), 429, "throttled")
    assert by_key(world.key).post("/validate", {}).status_code == 200


def test_it_holds_no_success_against_an_address(world: World, settings: Any) -> None:
    settings.THROTTLES = {**settings.THROTTLES, "address": (0.01, 2)}
    server = by_scopes("licenses:read")

    statuses = {server.get("/licenses").status_code for _ in range(10)}

    assert statuses == {200}


def test_it_lets_a_caller_on_when_it_has_waited(world: World, settings: Any) -> None:
    settings.THROTTLES = {**settings.THROTTLES, "credential": (2.0, 1)}
    server = by_scopes("licenses:read")
    first = server.get("/licenses")
    refused = server.get("/licenses")

    time.sleep(int(refused["Retry-After"]))
    again = server.get("/licenses")

    assert [answer.status_code for answer in (first, refused, again)] == [200, 429, 200]


def test_it_gives_every_token_of_a_full_bucket_at_any_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the clock passes a power of two, adding to it rounds: the only token of a bucket was refused."""
    bucket = throttles.Throttle("tests", 0.01, 1)
    instants = [4096.0 - number * 0.137 for number in range(1, 700)]

    refused = []
    for instant in instants:
        monkeypatch.setattr(time, "monotonic", lambda instant=instant: instant)
        if bucket.take(f"caller at {instant}").wait_seconds:
            refused.append(instant)

    assert refused == []


def test_it_does_nothing_for_a_caller_who_must_wait(world: World, api: Api, settings: Any) -> None:
    settings.THROTTLES = {**settings.THROTTLES, "credential": (0.01, 1)}
    server = by_scopes("seats:write")
    body = {"license": str(world.license.pk)}

    answers = [server.post("/seats", {**body, "holder": f"holder-{n}@example.com"}) for n in range(3)]

    assert [answer.status_code for answer in answers] == [201, 429, 429]
    world.license.refresh_from_db()
    assert world.license.seats_used == 2


@pytest.mark.parametrize("path", ["/licenses", "/products?limit=x", "/anomalies"])
def test_it_says_what_is_left_in_every_answer_to_a_known_caller(path: str, world: World, buckets: str) -> None:
    answer = by_scopes("licenses:read", "catalog:read").get(path)

    assert remaining(answer) == 2


@pytest.mark.parametrize("body", [{}, {"license": "x"}, {"surprise": 1}])
def test_it_says_what_is_left_when_it_refuses_to_validate(body: dict[str, Any], world: World, buckets: str) -> None:
    answer = by_scopes("validate").post("/validate", body)

    assert answer.status_code == 400
    assert remaining(answer) == 2
