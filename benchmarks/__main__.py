"""Measure every figure in one run and compare it with its goal: `make bench`, `make bench ONLY=validate`.

Private servers, an own database, everything pinned so that the load does not take the server's core. Prints a table,
writes benchmarks/results/latest.json. Machines are noisy: trust the ratios of one run, not its times.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

import benchmarks.rollup
import benchmarks.sdk
import benchmarks.usage
from benchmarks import load
from benchmarks.propagation import Subject, measure, percentile
from tests.servers import Postgres, Redis, free_port

ROOT = Path(__file__).resolve().parent.parent
LICENSES = 10_000
WINDOW_SECONDS = 2.0
REPEATS = 3
Rounds = dict[str, list[dict[str, float]]]  # by what was asked: rate, cpu, p50 and p99 of each window
console = Console()
_cores = os.sched_getaffinity(0)


@dataclass(frozen=True)
class Figure:
    """One figure: `met` is None where there is no goal yet."""

    name: str
    value: float
    unit: str
    goal: str = ""
    met: bool | None = None


def at_least(name: str, value: float, goal: float) -> Figure:
    return Figure(name, round(value, 3), "ratio", f">= {goal}", value >= goal)


@dataclass
class Served:
    """A measured server, with what it was filled with."""

    port: int
    environment: dict[str, str]
    data: dict[str, Any]
    redis: Any
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, workers: int = 1, *, cores: int | None = None) -> "subprocess.Popen[bytes]":
        """Start the server anew, with nothing in its memory, and wait until it answers. It has a core a worker."""
        if self.process is not None:
            _stop(self.process)
        _keep_to(sorted(_cores)[: cores or workers])
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "granian", "benchmarks.wsgi:application", "--interface", "wsgi", "--no-ws"),
                *("--port", str(self.port), "--workers", str(workers), "--blocking-threads", "4"),
                *("--log-level", "warning"),
            ],
            cwd=ROOT,
            env=self.environment,
        )
        _keep_to(sorted(_cores)[1:] or _cores)
        _wait(self.port, self.asked("bare")[:1])
        return self.process

    def asked(self, what: str, keys: list[str] | None = None) -> list[bytes]:
        """Return requests by license key: to the bare view, the twin, or validate by one of its doors."""
        path = {"bare": "/bench/bare", "twin": "/bench/twin"}.get(what, "/api/v1/validate")
        more = {"x-bench-django": "1"} if what == "drf" else {}
        body = b'{"product":"atlas","entitlements":["export"]}'
        return [
            load.post(
                path, body, {"Authorization": f"License {key}", "x-licentia-nonce": secrets.token_urlsafe(16), **more}
            )
            for key in keys or self.data["keys"]
        ]

    def signed(self, count: int) -> list[bytes]:
        """Return validations signed by machines, each good for once."""
        requests = []
        body = b'{"product":"atlas","entitlements":["export"]}'
        digest = f"sha-256=:{b64encode(sha256(body).digest()).decode()}:"
        for number in range(count):
            name, private = self.machines[number % len(self.machines)]
            self.counters[name] += 1
            created, nonce = int(time.time()), secrets.token_urlsafe(18)
            covered = '("@method" "@target-uri" "content-digest" "x-licentia-counter")'
            parameters = f'{covered};created={created};keyid="{name}";nonce="{nonce}";alg="ed25519"'
            base = (
                f'"@method": POST\n"@target-uri": http://127.0.0.1:{self.port}/api/v1/validate\n'
                f'"content-digest": {digest}\n"x-licentia-counter": {self.counters[name]}\n'
                f'"@signature-params": {parameters}'
            )
            made = b64encode(private.sign(base.encode())).decode()
            headers = {
                "x-licentia-counter": str(self.counters[name]),
                "content-digest": digest,
                "signature-input": f"lic={parameters}",
                "signature": f"lic=:{made}:",
            }
            requests.append(load.post("/api/v1/validate", body, headers))
        return requests

    @functools.cached_property
    def counters(self) -> Counter[str]:
        return Counter()

    @functools.cached_property
    def machines(self) -> list[tuple[str, Ed25519PrivateKey]]:
        return [
            (name, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)))
            for name, private in self.data["machines"]
        ]


def served(stack: ExitStack, *, count: int = LICENSES, sqlite: bool = False) -> Served:
    """Return a filled installation of its own; its server is not started yet."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="licentia-bench-")))
    cache = None if sqlite else stack.enter_context(Redis())
    database = f"sqlite:///{folder}/bench.sqlite3"
    words = "SQLite, nothing else running"
    if cache is not None:
        postgres = stack.enter_context(Postgres())
        database = postgres.create_database("bench")
        words = f"PostgreSQL {postgres.version}, Redis {cache.version}"
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("KEYRING", "KEYRING_FILE")},
        "LICENTIA_ENV": "test",
        "VAR_DIR": str(folder),
        "DATABASE_URL": database,
        "REDIS_URL": cache.url() if cache else "",
        "REDIS_KEY_PREFIX": "bench",
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
        "LOG_LEVEL": "CRITICAL",
        "WEB_OWN_CORE": "1",
        **{
            f"THROTTLE_{kind}{more}": "1000000"
            for kind in ("ADDRESS", "LICENSE", "CREDENTIAL")
            for more in ("", "_BURST")
        },
    }
    console.print(f"[dim]{count} licenses on {words} …")
    subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", str(count)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    found = Served(port, environment, json.loads(made.stdout), cache)
    stack.callback(lambda: _stop(found.process) if found.process else None)
    return found


def at_most(name: str, value: float, goal: float) -> Figure:
    return Figure(name, round(value, 3), "ratio", f"<= {goal:g}", value <= goal)


def validate(stack: ExitStack) -> list[Figure]:
    """Validate by license key and by signed clients, warm, cold and without Redis, against a bare view and a twin."""
    here = served(stack)
    server = here.start()
    _once(here, here.asked("validate"))  # so that all are kept
    runs = {name: _by(here, here.asked(name)) for name in ("bare", "twin", "validate", "drf")}
    runs["signed"] = lambda: load.run(here.port, here.signed(20_000), seconds=WINDOW_SECONDS)
    shown = _rounds(server, runs)
    half: Rounds = {"bare": [], "validate": [], "drf": []}
    for _ in range(REPEATS):
        for name, windows in half.items():
            rate = _rate(shown, name) / 2
            run = functools.partial(load.run, here.port, here.asked(name), seconds=WINDOW_SECONDS, rate=rate)
            windows.append(_window(server, run))
    cold: Rounds = {"bare": [], "cold": []}
    for _ in range(REPEATS):
        server = here.start()
        cold["bare"].append(_window(server, runs["bare"]))
        _forget(here)
        cold["cold"].append(_window(server, lambda: _once(here, here.asked("validate"))))
    here.redis.stop()
    without = _rounds(server, {"bare": runs["bare"], "without Redis": runs["validate"]})
    return [
        at_least("validate (fast door) / bare view", _ratio(shown, "validate", "bare"), 0.60),
        at_least("validate (DRF door) / bare view", _ratio(shown, "drf", "bare"), 0.30),
        at_least("validate by a signed client / bare view", _ratio(shown, "signed", "bare"), 0.30),
        at_least("validate, nothing kept / bare view", _ratio(cold, "cold", "bare"), 0.30),
        at_least("validate, Redis stopped / bare view", _ratio(without, "without Redis", "bare"), 0.25),
        at_least("validate / plain DRF+ORM twin", _ratio(shown, "validate", "twin"), 10),
        Figure("plain DRF+ORM twin / bare view", round(_ratio(shown, "twin", "bare"), 3), "ratio"),
        *(
            at_most(f"p99 at half of saturation, {name} / bare", _ratio(half, name, "bare", "p99"), 4)
            for name in ("validate", "drf")
        ),
        *_latencies(shown),
        *_latencies({"cold": cold["cold"], "without Redis": without["without Redis"]}),
        *_latencies({f"{name} at half of saturation": windows for name, windows in half.items()}),
    ]


def workers(stack: ExitStack) -> list[Figure]:
    """CPU per validation with two workers, against one, at the same rate of requests: two thirds of what one can do.

    On two cores the load takes one. So the figure is of both workers on the other, where what they do twice is all
    that differs. With a core each, as served, the second one also shares its core with the load: printed beside it.
    """
    here = served(stack, count=2_000)
    requests = here.asked("validate")
    server = here.start()
    _once(here, requests)
    rate = _rate({"one": [_window(server, _by(here, requests)) for _ in range(REPEATS)]}, "one") * 2 / 3
    run = functools.partial(load.run, here.port, requests, seconds=WINDOW_SECONDS, rate=rate)
    layouts = {"one worker": (1, 1), "two workers, one core": (2, 1), "two workers, a core each": (2, len(_cores))}
    shown: Rounds = {name: [] for name in layouts}
    for _ in range(REPEATS):
        for name, (count, cores) in layouts.items():
            server = here.start(count, cores=cores)
            for _ in range(2 * count):  # until every worker keeps all
                _once(here, requests)
            shown[name].append(_window(server, run))
    same, each = (_ratio(shown, name, "one worker", "cpu") for name in list(layouts)[1:])
    return [
        at_most("CPU of a validation, two workers / one", same, 1.2),
        Figure("CPU of a validation, two workers with a core each / one", round(each, 3), "ratio"),
        *_latencies(shown),
    ]


def embedded(stack: ExitStack) -> list[Figure]:
    """Validate on SQLite with nothing else running."""
    here = served(stack, sqlite=True)
    server = here.start()
    runs = {"bare": _by(here, here.asked("bare")), "validate on SQLite": _by(here, here.asked("validate"))}
    shown = _rounds(server, runs)
    return [
        at_least("validate on SQLite / bare view", _ratio(shown, "validate on SQLite", "bare"), 0.50),
        *_latencies({"validate on SQLite": shown["validate on SQLite"]}),
    ]


def scale(stack: ExitStack) -> list[Figure]:
    """Validate a thousand licenses by themselves and among a million, kept and not."""
    small, large = served(stack, count=1_000), served(stack, count=1_000)
    console.print("[dim]1,000,000 more licenses …")
    subprocess.run(
        [sys.executable, "-m", "benchmarks.data", "grow", "1000000"], cwd=ROOT, env=large.environment, check=True
    )
    shown: Rounds = {"1,000": [], "1,000,000": [], "1,000, nothing kept": [], "1,000,000, nothing kept": []}
    for _ in range(REPEATS):
        for name, here in (("1,000", small), ("1,000,000", large)):
            server = here.start()
            load.run(here.port, here.asked("bare"), seconds=1.0)
            _forget(here)
            shown[f"{name}, nothing kept"].append(
                _window(server, lambda here=here: _once(here, here.asked("validate")))
            )
            shown[name].append(_window(server, _by(here, here.asked("validate"))))
    return [
        at_least("validate, 1,000,000 licenses / 1,000", _ratio(shown, "1,000,000", "1,000"), 0.9),
        at_least(
            "validate, nothing kept, 1,000,000 licenses / 1,000",
            _ratio(shown, "1,000,000, nothing kept", "1,000, nothing kept"),
            0.9,
        ),
        *_latencies({f"{name} licenses": windows for name, windows in shown.items()}),
    ]


def sdk(stack: ExitStack) -> list[Figure]:
    """What a check costs the running program by the client library."""
    here = served(stack, count=100)
    here.start()
    _forget(here)  # else signed requests would have to wait
    value = benchmarks.sdk.microseconds_per_check(
        base_url=f"http://127.0.0.1:{here.port}", license_key=here.data["keys"][-1]
    )
    goal = benchmarks.sdk.GOAL_MICROSECONDS
    return [Figure(benchmarks.sdk.NAME, round(value, 3), "µs", f"<= {goal:g}", value <= goal)]


def propagation(stack: ExitStack) -> list[Figure]:
    """How long changes go unseen with two web processes, with Redis and without, under load."""
    here = served(stack, count=1_000)
    here.start(2)
    subjects = [Subject(*row) for row in here.data["licenses"][:50]]
    figures = []
    for name, changes, bound in (("", 2_000, 2.0), (", Redis stopped", 500, 10.0)):
        if name:
            here.redis.stop()
            here.start(2)
        seen = measure(
            "127.0.0.1",
            here.port,
            credential=here.data["credential"],
            subjects=subjects,
            others=here.data["keys"][500:],
            changes=changes,
        )
        for share, label in ((0.5, "p50"), (0.999, "p99.9"), (1.0, "max")):
            value = percentile(seen, share)
            goal = bound if share == 0.999 else 10.0 if share == 1.0 else None
            figures.append(
                Figure(
                    f"a change goes unseen, {label} of {changes}{name}",
                    round(value, 4),
                    "s",
                    f"<= {goal:g}" if goal else "",
                    value <= goal if goal else None,
                )
            )
    return figures


def usage(stack: ExitStack) -> list[Figure]:
    """Count usage over HTTP, on PostgreSQL: batches, single events, all on one license; and that it is exact."""
    here = served(stack, count=2_000)
    found = _usage_filled(here)
    server = here.start()
    spread, hot = found["licenses"], found["licenses"][:1]
    _once(here, benchmarks.usage.single(found, spread, len(spread)))  # their counters are there
    shown: Rounds = {name: [] for name in ("bare view", "single", "single hot", "batch", "batch hot", "bare rows")}
    for _ in range(REPEATS):
        shown["bare view"].append(_window(server, _by(here, here.asked("bare"))))
        for name, licenses in (("single", spread), ("single hot", hot)):
            requests = benchmarks.usage.single(found, licenses, 12_000)
            shown[name].append(_window(server, functools.partial(_once_within, here, requests, 32)))
        for name, licenses in (("batch", spread), ("batch hot", hot)):
            requests = benchmarks.usage.batches(found, licenses, 120)
            shown[name].append(_window(server, functools.partial(_once_within, here, requests, 4)))
        shown["bare rows"].append({"rate": _usage_bare(here, "batch") / benchmarks.usage.BATCH})
    return [
        at_least(
            "usage, batches of 1,000 / the same rows by one bare statement", _ratio(shown, "batch", "bare rows"), 0.7
        ),
        at_least("usage, single events / bare view", _ratio(shown, "single", "bare view"), 0.25),
        at_least("usage, single, all on one license / spread", _ratio(shown, "single hot", "single"), 0.6),
        at_least("usage, batches, all on one license / spread", _ratio(shown, "batch hot", "batch"), 0.6),
        *(
            Figure(f"usage, {name}: events", round(_rate(shown, which) * size), "1/s")
            for name, which, size in (
                ("batches of 1,000", "batch", 1_000),
                ("batches on one license", "batch hot", 1_000),
                ("bare rows", "bare rows", 1_000),
                ("single", "single", 1),
                ("single on one license", "single hot", 1),
            )
        ),
        *_usage_exact(here, found),
    ]


def usage_embedded(stack: ExitStack) -> list[Figure]:
    """Count usage over HTTP, on SQLite, against bare statements in the same transactions."""
    here = served(stack, count=1_500, sqlite=True)
    found = _usage_filled(here)
    server = here.start()
    spread = found["licenses"]
    _once(here, benchmarks.usage.single(found, spread, len(spread)))
    shown: Rounds = {name: [] for name in ("single", "batch", "bare rows", "bare single")}
    for _ in range(REPEATS):
        requests = benchmarks.usage.single(found, spread, 8_000)
        shown["single"].append(_window(server, functools.partial(_once_within, here, requests, 4)))
        requests = benchmarks.usage.batches(found, spread, 100)
        shown["batch"].append(_window(server, functools.partial(_once_within, here, requests, 2)))
        shown["bare rows"].append({"rate": _usage_bare(here, "batch") / benchmarks.usage.BATCH})
        shown["bare single"].append({"rate": _usage_bare(here, "single")})
    return [
        at_least("usage on SQLite, batches / bare statements", _ratio(shown, "batch", "bare rows"), 0.5),
        at_least("usage on SQLite, single / bare statements", _ratio(shown, "single", "bare single"), 0.3),
        Figure("usage on SQLite, batches: events", round(_rate(shown, "batch") * 1_000), "1/s"),
        Figure("usage on SQLite, single: events", round(_rate(shown, "single")), "1/s"),
        *_usage_exact(here, found),
    ]


def _usage_filled(here: Served) -> dict[str, Any]:
    return dict(json.loads(_usage_tool(here)))


def _usage_tool(here: Served, *words: str) -> str:
    command = [sys.executable, "-m", "benchmarks.usage", *words]
    return subprocess.run(command, cwd=ROOT, env=here.environment, check=True, capture_output=True, text=True).stdout


def _usage_bare(here: Served, what: str) -> float:
    return float(_usage_tool(here, "bare", what, str(WINDOW_SECONDS)))


def _once_within(here: Served, requests: list[bytes], connections: int) -> load.Load:
    """Send each request at most once, for a window's time."""
    return load.run(here.port, requests, seconds=WINDOW_SECONDS, connections=connections, at_most=len(requests))


def _usage_exact(here: Served, found: dict[str, Any]) -> list[Figure]:
    """A throughput counts only beside a test that hits the limit and one that sends everything twice."""
    limit = benchmarks.usage.LIMIT
    load.run(here.port, benchmarks.usage.single(found, [found["limited"]], 2 * limit), seconds=60, at_most=2 * limit)
    at_limit = json.loads(_usage_tool(here, "standing", found["limited"]))
    once = benchmarks.usage.single(found, [found["replayed"]], 500)
    load.run(here.port, once * 3, seconds=60, at_most=1_500)
    events = [benchmarks.usage.event(found["replayed"]) for _ in range(400)]
    body = json.dumps({"events": events + events[::-1]}).encode()
    batch = load.post("/api/v1/usage/batch", body, {"Authorization": f"Bearer {found['credential']}"})
    load.run(here.port, [batch] * 8, seconds=60, at_most=8)
    replayed = json.loads(_usage_tool(here, "standing", found["replayed"]))
    return [
        Figure(name, value, "events", f"= {goal}", set(told.values()) == {goal})
        for name, value, goal, told in (
            ("usage: counted at a limit", at_limit["used"], limit, at_limit),
            ("usage: counted of what was sent again and again", replayed["used"], 900, replayed),
        )
    ]


def _by(here: Served, requests: list[bytes]) -> Callable[[], load.Load]:
    return functools.partial(load.run, here.port, requests, seconds=WINDOW_SECONDS)


def _once(here: Served, requests: list[bytes]) -> load.Load:
    """Send each request once: nothing of what is asked is kept anywhere."""
    return load.run(here.port, requests, seconds=60.0, at_most=len(requests))


def _forget(here: Served) -> None:
    """Empty Redis, but for since when nonces are remembered: signed requests would have to wait."""
    with redis.Redis.from_url(here.redis.url()) as client:
        client.flushall()
        client.set("bench:nonces:epoch", 1)


def _rate(shown: Rounds, name: str) -> float:
    return statistics.median(window["rate"] for window in shown[name])


def _ratio(shown: Rounds, name: str, against: str, what: str = "rate") -> float:
    """Return the median of the ratios round by round: a machine whose speed drifts slows both."""
    return statistics.median(one[what] / other[what] for one, other in zip(shown[name], shown[against], strict=True))


def _latencies(shown: Rounds) -> list[Figure]:
    figures = []
    for name, windows in shown.items():
        figures += [
            Figure(f"{name}: requests", round(_rate(shown, name)), "1/s"),
            Figure(
                f"{name}: CPU of the server", round(statistics.median(w["cpu"] for w in windows) * 1e6), "µs/request"
            ),
            Figure(f"{name}: p50", round(statistics.median(w["p50"] for w in windows) * 1e3, 2), "ms"),
            Figure(f"{name}: p99", round(statistics.median(w["p99"] for w in windows) * 1e3, 2), "ms"),
        ]
    return figures


def _rounds(server: subprocess.Popen[bytes], runs: dict[str, Callable[[], load.Load]]) -> Rounds:
    """Return a window's figures of each run in every round, after one to warm up. Every answer must be a 200."""
    shown: Rounds = {name: [] for name in runs}
    for repeat in range(REPEATS + 1):
        for name, run in runs.items():
            window = _window(server, run)
            if repeat:
                shown[name].append(window)
    return shown


def _window(server: subprocess.Popen[bytes], run: Callable[[], load.Load]) -> dict[str, float]:
    before = _cpu(server)
    shown = run()
    if shown.failed or not shown.answered:
        raise SystemExit(f"Measured nothing: the answers were {shown.statuses}.")
    return {
        "rate": shown.rate,
        "cpu": (_cpu(server) - before) / shown.answered,
        "p50": shown.percentile(50),
        "p99": shown.percentile(99),
    }


def _cpu(server: subprocess.Popen[bytes]) -> float:
    process = psutil.Process(server.pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def _keep_to(cores: Iterable[int]) -> None:
    """Keep what is started from now on to these cores: the server to one, or to one a worker; the load to the other."""
    os.sched_setaffinity(0, cores)


def _wait(port: int, requests: list[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if load.run(port, requests[:1], seconds=0.05, connections=1).answered:
                return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit("The measured server did not start.") from None
            time.sleep(0.1)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()


def rollup(stack: ExitStack) -> list[Figure]:
    """Roll up ten million events, against one GROUP BY of the same rows, and then ten thousand more."""
    postgres = stack.enter_context(Postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="licentia-bench-"))
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("KEYRING", "KEYRING_FILE")},
        "LICENTIA_ENV": "test",
        "VAR_DIR": folder,
        "DATABASE_URL": postgres.create_database("bench"),
        "REDIS_URL": "",
        "DJANGO_SETTINGS_MODULE": "portal.settings",
        "LOG_LEVEL": "CRITICAL",
    }
    console.print(f"[dim]{benchmarks.rollup.EVENTS:,} events on PostgreSQL {postgres.version} …")
    subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
    run = [sys.executable, "-m", "benchmarks.rollup"]
    found = json.loads(subprocess.run(run, cwd=ROOT, env=environment, check=True, capture_output=True).stdout)
    assert found["exact"], "a total is not the sum of its events"
    return [
        at_most(f"roll up {benchmarks.rollup.EVENTS:,} events / one GROUP BY", found["first"] / found["plain"], 2),
        at_most(f"roll up {benchmarks.rollup.MORE:,} more / the first roll-up", found["next"] / found["first"], 0.02),
        Figure("first roll-up", round(found["first"], 2), "s"),
        Figure("one GROUP BY of the same rows", round(found["plain"], 2), "s"),
        Figure("next roll-up", round(found["next"], 3), "s"),
    ]


def audit(stack: ExitStack) -> list[Figure]:
    """Rule functions with the audit chain and without it, in turns; how fast it chains and verifies."""
    figures = []
    for name in ("PostgreSQL", "SQLite"):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="licentia-bench-")))
        database = f"sqlite:///{folder}/bench.sqlite3"
        if name == "PostgreSQL":
            database = stack.enter_context(Postgres()).create_database("bench")
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("KEYRING", "KEYRING_FILE")},
            "LICENTIA_ENV": "test",
            "VAR_DIR": str(folder),
            "DATABASE_URL": database,
            "REDIS_URL": "",
            "DJANGO_SETTINGS_MODULE": "portal.settings",
            "AUDIT_CHECKPOINT_FILE": str(folder / "checkpoints.jsonl"),
            "LOG_LEVEL": "CRITICAL",
        }
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
        run = [sys.executable, "-m", "benchmarks.audit"]
        found = json.loads(subprocess.run(run, cwd=ROOT, env=environment, check=True, capture_output=True).stdout)
        assert found["good"], "the record does not verify"
        lag = round(found["lag"], 2)
        figures += [
            at_least(f"rules with the audit chain / without, {name}", found["ratio"], 0.9),
            Figure(f"rules with the audit chain, {name}: calls", round(found["rate"]), "1/s"),
            Figure(f"longest wait for a number meanwhile, {name}", lag, "s", "<= 2", lag <= 2),
            Figure(f"chain, {name}: entries", round(found["chained"]), "1/s"),
            Figure(f"audit verify of {found['size']:,} entries, {name}", round(found["verified"]), "1/s"),
        ]
    return figures


PARTS: dict[str, Callable[[ExitStack], list[Figure]]] = {
    "validate": validate,
    "workers": workers,
    "embedded": embedded,
    "sdk": sdk,
    "usage": usage,
    "usage-embedded": usage_embedded,
    "propagation": propagation,
    "scale": scale,
    "rollup": rollup,
    "audit": audit,
}


def main() -> None:
    """Run the parts asked for, print and keep what they showed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", help=f"parts, with commas between: {', '.join(PARTS)}")
    chosen = [part for part in parser.parse_args().only.split(",") if part] or list(PARTS)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    figures: list[Figure] = []
    for part in chosen:
        with ExitStack() as stack:
            figures += PARTS[part](stack)
        _keep(figures)  # what was measured is not lost with what comes after
    _print(figures)


def _print(figures: list[Figure]) -> None:
    table = Table("figure", "value", "unit", "goal", "met")
    for figure in figures:
        met = "" if figure.met is None else "yes" if figure.met else "NO"
        table.add_row(figure.name, f"{figure.value:g}", figure.unit, figure.goal, met)
    console.print(table)


def _keep(figures: list[Figure]) -> None:
    git = shutil.which("git")
    commit = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout if git else ""
    machine: dict[str, Any] = {
        "cpus": len(_cores),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    kept = {
        "commit": commit.strip(),
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "figures": [asdict(figure) for figure in figures],
    }
    path = ROOT / "benchmarks" / "results" / "latest.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
