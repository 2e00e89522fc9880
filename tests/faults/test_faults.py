"""Faults under real load, one after another in one installation: after each, what must hold holds, and it was said.

LICENTIA_SEED replays a run. The long form (`make faults`) has longer faults and more of each.
"""

import contextlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import redis

from tests.faults import invariants
from tests.faults.conftest import Line
from tests.faults.world import SKEW, Book, Clients, World, world

LONG = bool(os.environ.get("LICENTIA_SOAK"))
SEED = int(os.environ.get("LICENTIA_SEED", "5" if not LONG else random.SystemRandom().randrange(2**32)))
BEFORE, DURING, AFTER = (3.0, 10.0, 4.0) if LONG else (0.5, 2.0, 0.5)
EMBEDDED = os.environ["DATABASE_URL"].startswith("sqlite")
DATABASE = "SQLite" if EMBEDDED else "PostgreSQL"

# The installation has a database of its own; the mark says that what is claimed here is claimed of both databases.
pytestmark = pytest.mark.django_db


@contextlib.contextmanager
def small_disk() -> Iterator[bool]:
    """Have whatever makes a folder for temporary files make it on a small disk of its own: root alone can."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="licentia-disk-")))
        options = f"size={DISK_BYTES},mode=1777"
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
            yield False
            return
        folder.parent.chmod(0o1777)
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield True
        finally:
            tempfile.tempdir = before
            subprocess.run(["umount", "--lazy", folder], check=True)


DISK_BYTES = 600_000_000
with small_disk() as found:
    HAS_DISK = found


@pytest.fixture(scope="module")
def installation(tell: Callable[[Line], None]) -> Iterator[World]:
    print(f"LICENTIA_SEED={SEED}")
    for fault, why in UNTRIED.items():
        tell({"fault": fault, "seed": SEED, "database": DATABASE, "untried": why, "alerts": []})
    with small_disk(), world(SEED, embedded=EMBEDDED) as made:
        yield made


def database_stopped(here: World) -> None:
    """The database ends at once, as in a power cut of its process, and is started again."""
    assert here.postgres is not None
    here.postgres.stop(hasty=True)
    time.sleep(DURING)
    here.postgres.start()


def commits_unanswered(here: World) -> None:
    """Answers of the database are lost with their connection: nobody knows whether the transaction was committed."""
    assert here.database is not None
    here.database.loses = 0.15
    until = time.monotonic() + 3 * DURING
    while time.monotonic() < until and (time.monotonic() < until - 2 * DURING or here.database.lost_commits < 5):
        time.sleep(0.1)
    here.database.loses = 0.0
    assert here.database.lost_commits >= 3, "no commit's answer was lost"


def redis_killed(here: World) -> None:
    """Redis is gone, and comes back empty."""
    here.cache_server.kill()
    time.sleep(DURING)
    here.cache_server.start()


def redis_flushed(here: World) -> None:
    """Redis forgets everything while it goes on answering, again and again."""
    for _ in range(5):
        with redis.Redis.from_url(here.cache_server.url()) as client:
            client.flushall()
        time.sleep(DURING / 5)


def redis_slow(here: World) -> None:
    """Each answer of Redis comes half a second late."""
    here.cache.delay_seconds = 0.5
    time.sleep(DURING)
    here.cache.delay_seconds = 0.0


def redis_full(here: World) -> None:
    """Redis has no room: it reads and refuses to write."""
    with redis.Redis.from_url(here.cache_server.url()) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        time.sleep(DURING)
        client.config_set("maxmemory", 0)


def redis_cut_off(here: World) -> None:
    """No connection to Redis lasts."""
    here.cache.refuse(True)
    time.sleep(DURING)
    here.cache.refuse(False)


def web_worker_killed(here: World) -> None:
    """A web worker is killed at some instant, several times; the server starts another, or is started again."""
    for _ in range(6 if LONG else 2):
        time.sleep(here.dice.uniform(0.0, DURING / 2))
        children = psutil.Process(here.server.process.pid).children()
        doomed = here.dice.choice(children)
        doomed.kill()
        until = time.monotonic() + 10
        while time.monotonic() < until and here.server.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                now = psutil.Process(here.server.process.pid).children()
                if doomed not in now and len(now) >= len(children):
                    break
            time.sleep(0.1)
        here.keep_serving()


def web_server_killed(here: World) -> None:
    """The web server is killed with all its workers, and started again by whatever supervises it."""
    time.sleep(here.dice.uniform(0.0, 1.0))
    here.server.kill()
    here.server.start()


def disk_full(here: World) -> None:
    """The disk that holds the database, the logs and the mails has not a byte left."""
    filler = here.folder.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    time.sleep(DURING)
    filler.unlink()
    if here.postgres is not None and not here.postgres.running:
        here.postgres.start()


def said_of(here: World, rule: str) -> list[tuple[object, ...]]:
    """Return how often the rule has been flagged, and when last."""
    return here.rows(f"SELECT count, last_at FROM licensing_anomaly WHERE rule = '{rule}' ORDER BY hour_at")


def await_said(here: World, rule: str, before: list[tuple[object, ...]]) -> None:
    """Give a server that is about to be killed the time to write what it found."""
    until = time.monotonic() + 20
    while said_of(here, rule) == before and time.monotonic() < until:
        time.sleep(0.2)


def clock_skewed(here: World) -> None:
    """The web server's machine is behind by minutes, then ahead: what it flags last bears an instant that is later."""
    folder = here.folder / "skew"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SKEW)
    for seconds in (-here.dice.uniform(60, 200), here.dice.uniform(60, 200)):
        before = said_of(here, "clock_skewed")
        here.restart(PYTHONPATH=str(folder), SKEW_SECONDS=str(seconds))
        if LONG:
            time.sleep(DURING)
        await_said(here, "clock_skewed", before)
    here.restart()


def key_ring_damaged(here: World) -> None:
    """A byte of the key ring's file is flipped, then the file is gone: nothing starts that could not answer rightly."""
    file = here.folder / "keyring.json"
    whole = file.read_bytes()
    here.server.kill()
    for damaged in (_flipped(whole, here.dice), None):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        with contextlib.suppress(AssertionError):
            before = said_of(here, "key_ring_incomplete")
            here.server.start()
            await_said(here, "key_ring_incomplete", before)
            here.server.kill()
        file.write_bytes(whole)
        file.chmod(0o600)
    here.restart()


def _flipped(whole: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ (1 << dice.randrange(8))]) + whole[place + 1 :]


def worker_killed(here: World) -> None:
    """The worker is killed at some instant, several times, and started again; the beat goes on."""
    here.start("beat")
    for _ in range(3 if LONG else 1):
        here.start("worker")
        until = time.monotonic() + 60
        while not list(here.folder.glob("running/worker-*")) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(here.dice.uniform(0.0, DURING))
        here.kill("worker")
    here.start("worker")


def broker_away(here: World) -> None:
    """Worker and beat lose their broker; when it is back they go on."""
    for program in ("worker", "beat"):
        if program not in here.programs:
            here.start(program)
    here.broker.refuse(True)
    time.sleep(180 if LONG else DURING)
    here.broker.refuse(False)


FAULTS: dict[Callable[[World], None], set[str]] = {
    database_stopped: {"database_away"},
    commits_unanswered: {"database_away"},
    redis_killed: {"redis_away"},
    redis_flushed: {"redis_emptied"},
    redis_slow: {"redis_away"},
    redis_full: {"redis_away"},
    redis_cut_off: {"redis_away"},
    web_worker_killed: {"process_died"},
    web_server_killed: {"process_died"},
    clock_skewed: {"clock_skewed"},
    key_ring_damaged: {"key_ring_incomplete"},
    disk_full: {"database_away"},
    worker_killed: {"process_died"},
    broker_away: {"job_overdue"} if LONG else set(),  # it is said once two runs were missed, at least 45 s
}
UNTRIED = {} if HAS_DISK else {"disk_full": "nobody but root can make a small disk"}
if not HAS_DISK:
    del FAULTS[disk_full]
if EMBEDDED:
    FAULTS = {fault: rules for fault, rules in FAULTS.items() if fault not in (database_stopped, commits_unanswered)}
    UNTRIED |= dict.fromkeys(("database_stopped", "commits_unanswered"), "SQLite is no server")


def delivered(here: World) -> None:
    """Wait until everything that is to be sent has been, then let worker and beat rest.

    What a killed worker had taken to send is another's five minutes later; after fifteen seconds that time is given.
    """
    waiting = "SELECT count(*) FROM licensing_outboxmessage WHERE delivered_at IS NULL"
    begun = time.monotonic()
    while here.rows(waiting)[0][0] and time.monotonic() - begun < 90:
        time.sleep(0.2)
        if time.monotonic() - begun > 15:
            here.rows("UPDATE licensing_outboxmessage SET due_at = created_at WHERE delivered_at IS NULL")
            time.sleep(12)  # a beat of the relay
    here.delivered = True
    for program in list(here.programs):
        here.kill(program)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_keeps_every_promise_and_says_so(
    fault: Callable[[World], None], installation: World, tell: Callable[[Line], None]
) -> None:
    here = installation
    here.delivered = False
    here.book = Book(
        sent=here.book.sent, acknowledged=here.book.acknowledged, assigned=here.book.assigned, revoked=here.book.revoked
    )
    since = (datetime.now(UTC) - timedelta(seconds=0.5)).strftime("%Y-%m-%d %H:%M:%S")
    with Clients(here, here.dice.randrange(2**32)):
        time.sleep(BEFORE)
        healthy = sum(here.book.answers.values())
        fault(here)
        time.sleep(AFTER)
    if "worker" in here.programs:
        delivered(here)
    assert healthy, "nobody was answered even before the fault"
    line: Line = {"fault": fault.__name__, "seed": SEED, "requests": sum(here.book.answers.values())}
    wrong = {}
    for name, check in (*invariants.ALL.items(), ("I13", lambda w: invariants.alerted(w, FAULTS[fault], since))):
        looked, found = check(here)
        line[name] = looked
        if found:
            wrong[name] = found[:5]
    if not wrong:
        tell({**line, "database": DATABASE, "alerts": sorted(FAULTS[fault])})
    else:
        for path in here.folder.glob("*.log"):
            print(f"--- {path.name}", path.read_text(errors="replace")[-3000:], sep="\n")
    assert not wrong, (wrong, dict(here.book.answers))
