"""T20, overload: whoever floods is refused cheaply, and the others hardly notice. At a real server, on loopback."""

import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import pytest

from benchmarks.load import Load, post, run
from licensing import keyformat
from tests.api.running import Running, database_beside, running

pytestmark = pytest.mark.django_db
SEED = """
from datetime import UTC, datetime
from tests.factories import make_customer, make_license_and_key, make_revision
revision = make_revision()
made = [make_license_and_key(plan_revision=revision, customer=make_customer(), at=datetime.now(UTC)) for _ in range(41)]
print(json.dumps([key for _, key in made]))
"""
WINDOWS = 30 if os.environ.get("LICENTIA_SOAK") else 8
SECONDS = 0.8
CALM_RATE, GUESSES, HOT = 200, 800, 200  # calls a second: of the others together, of the guesser, of the hot license
# In production's order: a license may be asked about 10 times a second, an address may fail 20 times.
LIMITS = {
    "THROTTLE_LICENSE": "10",
    "THROTTLE_LICENSE_BURST": "60",
    "THROTTLE_ADDRESS": "20",
    "THROTTLE_ADDRESS_BURST": "60",
}


@dataclass
class Seen:
    """What the others saw (seconds) with and without the attack, a list of windows each, and what the attacker got."""

    calm: list[list[float]] = field(default_factory=list)
    attacked: list[list[float]] = field(default_factory=list)
    attacker: Counter[int] = field(default_factory=Counter)
    others: Counter[int] = field(default_factory=Counter)

    def ratio(self, which: int) -> float:
        """Return by how much the attack raises a percentile: the middle of all windows against that of the calm ones
        beside them, so that what else the machine does cancels out."""
        pairs = zip(self.calm, self.attacked, strict=True)
        return median(_percentile(attacked, which) / _percentile(calm, which) for calm, attacked in pairs)

    @property
    def hardly(self) -> bool:
        """Whether the others hardly noticed. The attackers run on the cores the server is measured on: what they raise
        the last percentile by here is an upper bound."""
        return self.ratio(50) <= 2.0 and self.ratio(99) <= 4.0

    def words(self) -> str:
        milliseconds = {
            f"{name} p{which}": f"{median(_percentile(one, which) for one in windows) * 1e3:.2f} ms"
            for name, windows in (("calm", self.calm), ("attacked", self.attacked))
            for which in (50, 99)
        }
        return (
            f"p50 × {self.ratio(50):.2f}, p99 × {self.ratio(99):.2f} under attack; {milliseconds}; "
            f"attacker {dict(self.attacker)}, others {dict(self.others)}"
        )


def _percentile(values: list[float], which: int) -> float:
    return quantiles(values, n=100, method="inclusive")[which - 1]


def validates(keys: list[str]) -> list[bytes]:
    nonce = "n" * 22
    return [
        post("/api/v1/validate", b"{}", {"Authorization": f"License {key}", "X-Licentia-Nonce": nonce}) for key in keys
    ]


def measured(server: Running) -> Seen:
    """Measure windows of calm and of attack in turn."""
    *others, hot = server.seeds
    seen = Seen()
    asked = validates(others)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as attackers:
        run(server.port, asked, seconds=1.0, rate=CALM_RATE, connections=4)
        for window in range(2 * WINDOWS):
            flood: list[Any] = []
            if window % 2:
                guesses = validates([keyformat.generate() for _ in range(int(GUESSES * SECONDS) + 1)])
                how: dict[str, Any] = {"seconds": SECONDS, "connections": 32}
                flood = [
                    attackers.submit(run, server.port, guesses, rate=GUESSES, source="127.0.0.2", **how),
                    attackers.submit(run, server.port, validates([hot]), rate=HOT, source="127.0.0.3", **how),
                ]
            random.shuffle(asked)
            load = run(server.port, asked, seconds=SECONDS, rate=CALM_RATE, connections=4)
            (seen.attacked if window % 2 else seen.calm).append(load.latencies)
            seen.others.update(load.statuses)
            for each in flood:
                got: Load = each.result()
                seen.attacker.update(got.statuses)
    return seen


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with database_beside() as url, running(seed=SEED, database_url=url, workers=1, **LIMITS) as server:
        yield server


def test_t20_the_others_hardly_notice_a_flood(server: Running) -> None:
    # What else this machine does can only make it worse: the best of some tries is the nearest to the truth. Without
    # the throttles each of them is above 5.
    tries: list[Seen] = []
    while len(tries) < 6 and not any(seen.hardly for seen in tries):
        tries.append(measured(server))
        print(tries[-1].words())

    for seen in tries:
        assert set(seen.others) == {200}
        assert seen.attacker[200] + seen.attacker[401] < 0.3 * seen.attacker.total()
    assert any(seen.hardly for seen in tries)
