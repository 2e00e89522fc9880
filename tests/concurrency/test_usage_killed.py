"""Usage from several programs that die while they send, to web workers that die while they serve: all that was
acknowledged is counted, exactly once."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.utils import timezone

from tests.api.running import ROOT, Running, database_beside, python, running
from tests.concurrency.sender import CHUNK, license_of, quantity

# The server has a database of its own; the mark says that what is claimed here is claimed of both databases.
pytestmark = pytest.mark.django_db

LONG = bool(os.environ.get("LICENTIA_SOAK"))
EVENTS, SENDERS, KILLS = (1_000_000, 8, 60) if LONG else (6_000, 3, 5)
FEWEST = 50 if LONG else 3
LICENSES = 5
PATIENCE_SECONDS = 3_600 if LONG else 300
ROWS = f"""
from datetime import UTC, datetime, timedelta
from tests.factories import make_license_and_key, make_meter
make_meter(code="calls")
at = datetime.now(UTC) - timedelta(days=40)
made = [make_license_and_key(at=at) for _ in range({LICENSES})]
print(json.dumps([[str(license.pk), key] for license, key in made]))
"""
COUNTED = """
from django.db.models import Count, Sum
from billing.models import UsageEvent, UsageId
from licensing.models import Counter
def by(rows, **what):
    return {str(row["license_id"]): [str(value) for name, value in row.items() if name != "license_id"]
            for row in rows.values("license_id").annotate(**what).order_by("license_id")}
print(json.dumps({
    "events": by(UsageEvent.objects, total=Sum("quantity"), many=Count("event_id")),
    "counters": by(Counter.objects, total=Sum("used")),
    "ids": by(UsageId.objects, many=Count("event_id")),
}))
"""


@dataclass
class Program:
    """One sender, started again whenever it dies."""

    job: dict[str, Any]
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0

    @property
    def file(self) -> Path:
        return Path(self.job["file"])

    def heard(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []

    def progress(self) -> float:
        """Return about how many events it has heard of: it writes some seven characters each, a fifth of them twice."""
        return self.file.stat().st_size / 9 if self.file.exists() else 0

    def done(self) -> bool:
        return self.process is not None and self.process.poll() == 0

    def keep_running(self) -> None:
        if self.process is None or self.process.poll() not in (None, 0):
            assert self.process is None or self.process.returncode == -signal.SIGKILL, "a sender gave up"
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.concurrency.sender", json.dumps(self.job)], cwd=ROOT
            )

    def kill(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait()
        self.deaths += 1
        return True


def keep_serving(server: Running) -> None:
    """Start the server again where it is gone, as whatever supervises it would; it also gives up by itself when its
    workers die too soon after each other."""
    if server.process.poll() is not None:
        server.start()


def kill_a_worker(server: Running, dice: random.Random) -> bool:
    """Kill one of the web workers: the server starts another."""
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        dice.choice(psutil.Process(server.process.pid).children()).kill()
        return True
    return False


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[list[Program]]:
    made: list[Program] = []
    yield made
    for program in made:
        program.kill()


def test_it_counts_all_that_was_acknowledged_once_whoever_dies(programs: list[Program], tmp_path: Path) -> None:
    seed = int(os.environ.get("LICENTIA_SEED", random.SystemRandom().randrange(2**32)))
    print(f"LICENTIA_SEED={seed}")
    dice = random.Random(seed)
    with database_beside() as url, running(seed=ROWS, database_url=url, workers=2 if url else 1) as server:
        share = EVENTS // SENDERS // CHUNK * CHUNK
        base = timezone.now().isoformat()
        # Each shares a tenth of what it sends with the next one.
        for number in range(SENDERS):
            first = number * share
            job = {
                "port": server.port,
                "keys": [key for _, key in server.seeds],
                "base": base,
                "seed": seed + number,
                "first": first,
                "last": min(first + share + share // 10, SENDERS * share),
                "file": str(tmp_path / f"sender-{number}"),
            }
            programs.append(Program(job))
        died = {"sender": 0, "worker": 0, "server": 0}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(program.done() for program in programs):
            assert time.monotonic() < deadline, died
            for program in programs:
                program.keep_running()
            keep_serving(server)
            time.sleep(0.05)
            if sum(program.progress() for program in programs) < sum(died.values()) * share * SENDERS / (KILLS + 5):
                continue  # the deaths are spread over all of it
            match dice.choice(("sender", "sender", "worker", "worker", "server")):
                case "sender":
                    died["sender"] += dice.choice(programs).kill()
                case "worker":
                    died["worker"] += kill_a_worker(server, dice)
                case _:
                    server.kill()
                    died["server"] += 1
        keep_serving(server)
        counted = python(COUNTED, server.environment)

    acknowledged = {name for program in programs for name in program.heard() if name.startswith("e")}
    assert acknowledged == {f"e{number}" for number in range(SENDERS * share)}
    assert sum(died.values()) >= FEWEST, died
    expected: dict[str, list[Any]] = {license: [Decimal(), 0] for license, _ in server.seeds}
    for number in range(SENDERS * share):
        sums = expected[server.seeds[license_of(number, LICENSES)][0]]
        sums[0] += quantity(number)
        sums[1] += 1
    print(f"{len(acknowledged):,} events, died: {died}")
    events = {name: [Decimal(total), int(many)] for name, (total, many) in counted["events"].items()}
    assert events == expected
    assert {name: Decimal(total) for name, (total,) in counted["counters"].items()} == {
        name: total for name, (total, _) in expected.items()
    }
    assert {name: int(many) for name, (many,) in counted["ids"].items()} == {
        name: many for name, (_, many) in expected.items()
    }
