"""T11, guessing and counting through keys: an answer to a key that exists elsewhere is that to one that does not exist,
in every word and in the time it takes."""

import gc
import math
import os
import random
import time
from datetime import UTC, datetime
from statistics import median
from typing import Any
from uuid import uuid4

import orjson
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from licensing import gate, keyformat, keys, lifecycle, snapshots
from licensing.ids import uuid7
from tests.factories import BY, make_credential, make_customer, make_license_and_key, make_revision

pytestmark = pytest.mark.django_db
CALLS = 10_000 if os.environ.get("LICENTIA_SOAK") else 2_000
OTHERS = 100
# How much better than a coin a guess may be. Ranks, not means: what else the machine does slows both kinds alike. By
# chance two equal kinds of 2,000 calls are so far apart once in 80,000 runs.
APART = 0.04


def ask(*, authorization: str, body: dict[str, Any], address: str = "192.0.2.1") -> gate.Answer:
    request = request_of(authorization=authorization, body=body, address=address)
    return gate.sign(request, gate.validate(request, datetime.now(UTC)))


def request_of(*, authorization: str, body: dict[str, Any], address: str = "192.0.2.1") -> gate.Request:
    return gate.Request(
        method="POST",
        target="https://licenses.example.com/api/v1/validate",
        headers={
            "authorization": authorization,
            "content-type": "application/json",
            "x-licentia-nonce": "n" * 22,
        },
        body=orjson.dumps(body),
        address=address,
        request_id="r",
    )


def words(answer: gate.Answer) -> Any:
    """Return what an answer says, without what no two answers share."""
    headers = {
        name: value.partition(";r=")[0] if name == "ratelimit" else value
        for name, value in answer.headers.items()
        if name not in ("signature", "signature-input", "content-digest")
    }
    said = {
        name: value
        for name, value in orjson.loads(answer.body).items()
        if name not in ("token", "checked_at", "fresh_until")
    }
    return answer.status, headers, said, len(answer.body)


@pytest.fixture(autouse=True)
def _no_throttle(settings: Any) -> None:
    settings.THROTTLES = dict.fromkeys(("address", "license", "credential"), (1000000.0, 10000000))


@pytest.fixture
def others() -> list[tuple[str, str]]:
    """Id and key of licenses of another customer."""
    customer, revision = make_customer(), make_revision()
    made = [
        make_license_and_key(customer=customer, plan_revision=revision, at=datetime.now(UTC)) for _ in range(OTHERS)
    ]
    return [(str(license.pk), key) for license, key in made]


@pytest.fixture
def bearer() -> str:
    """A customer's own credential, who has none of the others' licenses."""
    customer = make_customer()
    make_license_and_key(customer=customer, at=datetime.now(UTC))
    return f"Bearer {make_credential(customer=customer)[1]}"


def test_t11_it_says_the_same_of_an_unknown_key_as_of_anothers(bearer: str, others: list[tuple[str, str]]) -> None:
    license_id, key = others[0]
    assert ask(authorization=f"License {key}", body={}).status == 200

    unknown = words(ask(authorization=bearer, body={"license_key": keyformat.generate()}))

    assert unknown[2]["code"] == "not_found"
    assert words(ask(authorization=bearer, body={"license_key": key})) == unknown
    assert words(ask(authorization=bearer, body={"license": license_id})) == unknown
    assert words(ask(authorization=bearer, body={"license": str(uuid7())})) == unknown
    assert words(ask(authorization=bearer, body={"license": str(uuid4()), "license_key": key})) == unknown


def test_t11_it_says_the_same_of_an_unknown_key_as_of_a_replaced_one() -> None:
    now = datetime.now(UTC)
    license, replaced = make_license_and_key(at=now)
    keys.rotate(license=license, by=BY, reason="lost", at=now)
    ended, key = make_license_and_key(at=now)
    lifecycle.transfer(license=ended, to=make_customer(), by=BY, at=now, reason="sold")

    unknown = words(ask(authorization=f"License {keyformat.generate()}", body={}))

    assert unknown[0] == 401
    assert words(ask(authorization=f"License {replaced}", body={})) == unknown
    assert words(ask(authorization=f"License {key}", body={})) == unknown


class Clock:
    """A clock on which a thousandth of the time to wait passes whenever it is read; it notes how long was slept."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def monotonic(self) -> float:
        self.now += snapshots.NOT_FOUND_SECONDS / 1000
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.mark.parametrize("by", ["license_key", "license"])
def test_t11_it_takes_the_same_steps_and_waits_alike(
    by: str, bearer: str, others: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    license_id, key = others[0]
    for _ in range(2):  # a program of the other customer's is at work: it is remembered
        assert ask(authorization=f"License {key}", body={}).status == 200
    foreign = key if by == "license_key" else license_id
    nothing = keyformat.generate() if by == "license_key" else str(uuid7())
    ask(authorization=bearer, body={by: nothing})

    took = []
    for value in (nothing, foreign):
        clock = Clock()
        monkeypatch.setattr(snapshots, "time", clock)
        with CaptureQueriesContext(connection) as queries:
            assert words(ask(authorization=bearer, body={by: value}))[2]["code"] == "not_found"
        asked = sum("licensing_license" in query["sql"] for query in queries)  # who calls is looked up now and then
        took.append((asked, [round(seconds, 6) for seconds in clock.slept]))

    assert took == [(1, [round(snapshots.NOT_FOUND_SECONDS * 0.999, 6)])] * 2


@pytest.mark.parametrize("by", ["license_key", "license"])
def test_t11_it_takes_as_long_for_what_is_not_there_as_for_anothers(
    by: str, bearer: str, others: list[tuple[str, str]]
) -> None:
    for _, key in others:  # a program of the other customer's is at work: all of it is remembered
        assert ask(authorization=f"License {key}", body={}).status == 200
    known = [key if by == "license_key" else license_id for license_id, key in others]
    nothing = [keyformat.generate() if by == "license_key" else str(uuid7()) for _ in others]

    assert_as_long(
        *timed(
            [request_of(authorization=bearer, body={by: value}) for value in nothing],
            [request_of(authorization=bearer, body={by: value}) for value in known],
        )
    )


def test_t11_it_takes_as_long_for_a_replaced_key_as_for_an_unknown_one() -> None:
    now = datetime.now(UTC)
    revision, customer, replaced = make_revision(), make_customer(), []
    for _ in range(OTHERS):
        license, key = make_license_and_key(customer=customer, plan_revision=revision, at=now)
        keys.rotate(license=license, by=BY, reason="lost", at=now)
        replaced.append(key)

    assert_as_long(
        *timed(
            [request_of(authorization=f"License {keyformat.generate()}", body={}) for _ in replaced],
            [request_of(authorization=f"License {key}", body={}) for key in replaced],
        )
    )


def timed(*kinds: list[gate.Request]) -> list[list[float]]:
    """Return how long each call of each kind took (seconds), the kinds in random order around each other."""
    took: list[list[float]] = [[] for _ in kinds]
    order = list(range(len(kinds)))
    for warm in range(20):
        for requests in kinds:
            gate.validate(requests[warm], datetime.now(UTC))
    gc.collect()
    gc.disable()
    try:
        for number in range(CALLS):
            random.shuffle(order)
            at = datetime.now(UTC)
            for which in order:
                request = kinds[which][number % OTHERS]
                began = time.perf_counter()
                gate.validate(request, at)
                took[which].append(time.perf_counter() - began)
    finally:
        gc.enable()
    return took


def assert_as_long(some: list[float], others: list[float]) -> None:
    """Hold that nobody who sees how long a call took knows better than by a coin which of the two it was."""
    guess = chance(some, others)
    noise = abs(median(some[::2]) / median(some[1::2]) - 1)
    apart = abs(median(some) / median(others) - 1)
    print(
        f"{len(some):,} calls each: medians {median(some) * 1e6:.1f} and {median(others) * 1e6:.1f} µs, apart by "
        f"{apart:.2%} (within one kind {noise:.2%}), guessed right in {guess:.2%}, p {p_value(guess, len(some)):.3f}"
    )
    assert abs(guess - 0.5) < APART, (guess, median(some), median(others))


def chance(some: list[float], others: list[float]) -> float:
    """Return the share of pairs in which the second took longer (Mann-Whitney's U over all pairs)."""
    ranked = sorted([(value, 0) for value in some] + [(value, 1) for value in others])
    ranks = sum(rank for rank, (_, which) in enumerate(ranked, 1) if which)
    return (ranks - len(others) * (len(others) + 1) / 2) / (len(some) * len(others))


def p_value(guess: float, size: int) -> float:
    """Return how often equal classes of this size would be at least so far apart."""
    deviation = math.sqrt((2 * size + 1) / (12 * size * size))
    return math.erfc(abs(guess - 0.5) / deviation / math.sqrt(2))


def test_it_would_notice_a_difference_of_a_twentieth() -> None:
    draw = random.Random(7)
    base = [draw.lognormvariate(0, 0.1) for _ in range(2_000)]
    again = [draw.lognormvariate(0, 0.1) for _ in range(2_000)]

    assert_as_long(base, again)
    with pytest.raises(AssertionError):
        assert_as_long(base, [value * 1.05 for value in again])
