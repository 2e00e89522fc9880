"""A whole installation of real processes behind proxies, and the clients that use it while something breaks.

Clients keep a book of what they sent and what they were told. What they were not told they ask again, with the same
id, as a client of ours would; what is never told stays unknown, and may or may not have happened.
"""

import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.api.running import ROOT, Running, fill, running
from tests.faults.proxy import Proxy
from tests.servers import Postgres, Redis

SEATS = 10
DATABASE = "licentia_beside_faults"  # named like one that is migrated already
UNSEEN_SECONDS = 10.0  # docs/architecture: a change is seen by then at the latest
PRICE = [
    {"kind": "flat", "amount": "9.99"},
    {"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.0333"},
]
INCLUDED = 10
SEED = f"""
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from licensing.catalog import Grant
from tests.factories import (
    make_credential, make_customer, make_license_and_key, make_meter, make_plan, make_price, make_product, make_revision
)
at = datetime.now(UTC) - timedelta(days=1)
make_meter(code="calls")
customer, other = make_customer(email="owner@example.com"), make_customer()
product = make_product()
sold, plain, later = (make_plan(product=product) for _ in range(3))
make_price(plan=sold, components={PRICE!r})
def calls(amount):
    return [Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(amount), overage="charge")]
revision = make_revision(plan=sold, scheme="both", seat_limit={SEATS}, grants=calls({INCLUDED}))
other_terms = make_revision(plan=later, scheme="usage", seat_limit=None, grants=calls(1000))
def made(number, revision):
    rows = [make_license_and_key(plan_revision=revision, customer=customer, at=at) for _ in range(number)]
    return [[str(row.pk), key] for row, key in rows]
print(json.dumps({{
    "secret": make_credential()[1],
    "foreign": make_credential(customer=other)[1],
    "good": made(4, revision),
    "doomed": made(40, make_revision(plan=plain, seat_limit={SEATS})),
    "revision": str(revision.pk),
    "other_terms": str(other_terms.pk),
}}))
"""
SKEW = """
import os, time_machine
from datetime import datetime, timedelta, UTC
time_machine.travel(datetime.now(UTC) + timedelta(seconds=float(os.environ["SKEW_SECONDS"])), tick=True).start()
"""


@dataclass
class Book:
    """What clients were told. A violation is a sentence; `answers` counts what came back by what was asked."""

    answers: Counter[str] = field(default_factory=Counter)
    counted: dict[str, int] = field(default_factory=dict)  # license -> events acknowledged
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)
    revoked: dict[str, float] = field(default_factory=dict)  # license -> when it was acknowledged
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str) -> None:
        with self.lock:
            self.answers[what] += 1


class Clients:
    """Six clients at once: two validate, two count usage, one takes and releases seats, one revokes licenses."""

    def __init__(self, world: "World", seed: int) -> None:
        self.world, self.book = world, world.book
        self._over = threading.Event()
        self._dice = random.Random(seed)
        work = (self._validate, self._validate, self._consume, self._consume, self._seats, self._revoke)
        self._threads = [threading.Thread(target=self._keep, args=(each,), daemon=True) for each in work]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop asking. What was sent and not yet answered is asked again until it is, now that all is well."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"

    def _keep(self, work: Any) -> None:
        connection = Connection(self.world.server, self.book)
        while not self._over.is_set():
            work(connection)
            time.sleep(0.01)
        connection.close()

    def _settled(
        self, connection: "Connection", method: str, path: str, body: Any, headers: dict[str, str]
    ) -> tuple[int, Any]:
        """Ask until there is an answer that settles it: no network error, no 5xx, no 429; in 50 s at most."""
        until = time.monotonic() + 50
        while True:
            status, said = connection.ask(method, path, body, headers)
            if status and status < 500 and status != 429:
                return status, said
            if time.monotonic() > until:
                return 0, None
            time.sleep(0.1)

    def _validate(self, connection: "Connection") -> None:
        doomed = self._dice.random() < 0.4 and self.book.revoked
        if doomed:
            license, key = self._dice.choice([row for row in self.world.doomed if row[0] in self.book.revoked])
        else:
            license, key = self._dice.choice(self.world.good)
        known = self.book.revoked.get(license)
        asked = time.monotonic()
        status, said = connection.ask("POST", "/validate", {}, {"Authorization": f"License {key}"})
        if status != 200:
            return
        if doomed and said["valid"] and known is not None and asked - known > UNSEEN_SECONDS:
            self.book.violations.append(f"I6 {license} valid {asked - known:.1f} s after it was revoked")
        if not doomed and not said["valid"]:
            self.book.violations.append(f"I12 {license} was {said['code']} while nobody had revoked it")

    def _consume(self, connection: "Connection") -> None:
        license, key = self._dice.choice(self.world.good)
        event = f"e-{secrets.token_hex(8)}"
        with self.book.lock:
            self.book.sent.add(event)
        body = {"event_id": event, "meter": "calls", "quantity": "1"}
        status, said = self._settled(connection, "POST", "/usage", body, {"Authorization": f"License {key}"})
        if status in (200, 201):
            with self.book.lock:
                self.book.acknowledged.add(event)
                self.book.counted[license] = self.book.counted.get(license, 0) + 1
        elif status:
            self.book.violations.append(f"I12 an event was refused: {status} {said}")

    def _seats(self, connection: "Connection") -> None:
        license, _ = self.world.good[0]
        staff = {"Authorization": f"Bearer {self.world.secret}", "Idempotency-Key": secrets.token_hex(8)}
        holder = f"holder-{secrets.token_hex(6)}@example.com"
        status, said = self._settled(connection, "POST", "/seats", {"license": license, "holder": holder}, staff)
        if status == 201:
            with self.book.lock:
                self.book.assigned.add(said["id"])
            if self._dice.random() < 0.8:
                release = {"Authorization": staff["Authorization"]}
                self._settled(connection, "DELETE", f"/seats/{said['id']}", None, release)
        elif status == 409 and said["code"] == "no_seat_available":
            self._free(connection, license, staff["Authorization"])
        elif status:
            self.book.violations.append(f"I12 a seat was refused: {status} {said}")
        foreign = {"Authorization": f"Bearer {self.world.foreign}"}
        status, said = connection.ask("GET", f"/licenses/{license}", None, foreign)
        if status and status < 500 and status not in (404, 429):
            self.book.violations.append(f"I10 another customer's license was answered {status}")

    def _free(self, connection: "Connection", license: str, authorization: str) -> None:
        query = f"/seats?license={license}&state=assigned&limit=5"
        status, said = self._settled(connection, "GET", query, None, {"Authorization": authorization})
        for seat in said["results"] if status == 200 else ():
            self._settled(connection, "DELETE", f"/seats/{seat['id']}", None, {"Authorization": authorization})

    def _revoke(self, connection: "Connection") -> None:
        left = [row for row in self.world.doomed if row[0] not in self.book.revoked]
        if not left or self._over.wait(0.7):
            return
        license = left[0][0]
        staff = {"Authorization": f"Bearer {self.world.secret}", "Idempotency-Key": f"revoke-{license}"}
        status, said = self._settled(connection, "POST", f"/licenses/{license}/revoke", {"reason": "fault"}, staff)
        if status == 200 or (status == 409 and said.get("code") == "license_revoked"):
            self.book.revoked[license] = time.monotonic()
        elif status:
            self.book.violations.append(f"I12 a revocation was refused: {status} {said}")


class Connection:
    """One client's connection, made anew whenever it breaks."""

    def __init__(self, server: Running, book: Book) -> None:
        self.server, self.book = server, book
        self._http: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        """Return status and body; 0 and None where there was no answer."""
        try:
            if self._http is None:
                self._http = http.client.HTTPConnection(self.server.host, self.server.port, timeout=35)
            sent = {"Content-Type": "application/json", "x-licentia-nonce": secrets.token_urlsafe(18)} | headers
            self._http.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), sent)
            answer = self._http.getresponse()
            text = answer.read()
            said = json.loads(text) if text else None
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            time.sleep(0.05)
            self.book.note(f"{path.split('/')[1].split('?')[0]} none")
            return 0, None
        self.book.note(f"{path.split('/')[1].split('?')[0]} {answer.status}")
        if answer.status == 500:
            self.book.violations.append(f"I12 {method} {path} was answered 500")
        return answer.status, said

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None


@dataclass
class World:
    """The installation under fault."""

    server: Running
    dice: random.Random
    database: Proxy | None
    cache: Proxy
    broker: Proxy
    postgres: Postgres | None
    cache_server: Redis
    broker_server: Redis
    book: Book = field(default_factory=Book)
    programs: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    delivered: bool = False  # whether a worker has had the time to send everything
    first: Mapping[str, str] = field(init=False)
    checker: "subprocess.Popen[str] | None" = None

    def __post_init__(self) -> None:
        self.first = self.server.environment

    @property
    def good(self) -> list[list[str]]:
        return list(self.server.seeds["good"])

    @property
    def doomed(self) -> list[list[str]]:
        return list(self.server.seeds["doomed"])

    @property
    def secret(self) -> str:
        return str(self.server.seeds["secret"])

    @property
    def foreign(self) -> str:
        return str(self.server.seeds["foreign"])

    def start(self, program: str) -> None:
        """Start the worker or the beat."""
        more = ["--concurrency", "1"] if program == "worker" else []
        log = (Path(self.server.log).parent / f"{program}.log").open("ab")
        with log:
            self.programs[program] = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "portal", program, "--loglevel", "ERROR", *more],
                cwd=ROOT,
                env=dict(self.server.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, program: str) -> None:
        """Kill the worker or the beat, with its children."""
        os.killpg(self.programs[program].pid, signal.SIGKILL)
        self.programs.pop(program).wait()

    def keep_serving(self) -> None:
        """Start the web server again if it is gone, as whatever supervises it would."""
        if self.server.process.poll() is not None:
            self.server.start()

    def restart(self, **environment: str) -> None:
        """Start the web server again, its environment changed so; with nothing said, as it was at first."""
        if self.server.process.poll() is None:
            self.server.kill()
        self.server.environment = {**self.first, **environment}
        self.server.start()

    @property
    def folder(self) -> Path:
        return Path(self.server.environment["VAR_DIR"])

    def check(self, name: str, **more: Any) -> tuple[int, list[str]]:
        """Have the installation check itself (`tests.faults.checker`), past the proxies; return what it says."""
        if self.checker is None or self.checker.poll() is not None:
            direct = {"REDIS_URL": self.cache_server.url(), "CELERY_BROKER_URL": self.broker_server.url()}
            if self.postgres is not None:
                direct["DATABASE_URL"] = self.postgres.url(DATABASE)
            with (self.folder / "checker.log").open("ab") as log:
                self.checker = subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.checker"],
                    cwd=ROOT,
                    env={**self.first, **direct},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        assert self.checker.stdin is not None
        assert self.checker.stdout is not None
        self.checker.stdin.write(json.dumps({"check": name, **more}) + "\n")
        self.checker.stdin.flush()
        line = self.checker.stdout.readline()
        if not line:
            return 0, [f"the checker died at {name}: {(self.folder / 'checker.log').read_text()[-2000:]}"]
        looked, wrong = json.loads(line)
        return looked, wrong

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the database behind the proxies, or change it, in its own words and using nothing of the product."""
        if self.postgres is not None:
            return self.postgres.execute(statement, database=DATABASE)
        import sqlite3

        path = self.server.environment["DATABASE_URL"].removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
            found = connection.execute(statement).fetchall()
            connection.commit()
            return found


@contextlib.contextmanager
def world(seed: int, *, embedded: bool, **environment: str) -> Iterator[World]:
    """Run an installation: PostgreSQL unless `embedded`, a Redis for the cache and one for the broker, two web workers
    (one if embedded). Worker and beat are started by whoever needs them."""
    dice = random.Random(seed)
    with contextlib.ExitStack() as stack:
        postgres = None if embedded else stack.enter_context(Postgres(durable=True))
        cache_server, broker_server = stack.enter_context(Redis()), stack.enter_context(Redis())
        cache, broker = Proxy(cache_server.port, dice), Proxy(broker_server.port, dice)
        database = None
        url = None
        if postgres is not None:
            fill(postgres.create_database(DATABASE))
            database = Proxy(postgres.port, dice)
            url = postgres.url(DATABASE).replace(f":{postgres.port}/", f":{database.port}/")
        for proxy in (cache, broker, database):
            if proxy is not None:
                stack.callback(proxy.close)
        settings = {
            "REDIS_URL": f"redis://127.0.0.1:{cache.port}/0",
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
            **environment,
        }
        server = stack.enter_context(running(seed=SEED, database_url=url, workers=1 if embedded else 2, **settings))
        made = World(server, dice, database, cache, broker, postgres, cache_server, broker_server)
        try:
            yield made
        finally:
            for program in list(made.programs):
                made.kill(program)
            if made.checker is not None:
                made.checker.kill()
                made.checker.wait()
