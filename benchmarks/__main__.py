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
from collections.abc import Callable
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

from benchmarks import load
from benchmarks.propagation import Subject, measure, percentile
from tests.servers import Postgres, Redis, free_port

ROOT = Path(__file__).resolve().parent.parent
LICENSES = 10_000
WINDOW_SECONDS = 3.0
REPEATS = 3
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

    def start(self, workers: int = 1) -> "subprocess.Popen[bytes]":
        """Start the server anew, with nothing in its memory, and wait until it answers."""
        if self.process is not None:
            _stop(self.process)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "granian", "benchmarks.wsgi:application", "--interface", "wsgi", "--no-ws"),
                *("--port", str(self.port), "--workers", str(workers), "--blocking-threads", "4"),
                *("--log-level", "warning"),
            ],
            cwd=ROOT,
            env=self.environment,
        )
        _pin(self.process, both=workers > 1)
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
            self.counter += 1
            created, nonce = int(time.time()), secrets.token_urlsafe(18)
            covered = '("@method" "@target-uri" "content-digest" "x-licentia-counter")'
            parameters = f'{covered};created={created};keyid="{name}";nonce="{nonce}";alg="ed25519"'
            base = (
                f'"@method": POST\n"@target-uri": http://127.0.0.1:{self.port}/api/v1/validate\n'
                f'"content-digest": {digest}\n"x-licentia-counter": {self.counter}\n"@signature-params": {parameters}'
            )
            made = b64encode(private.sign(base.encode())).decode()
            headers = {
                "x-licentia-counter": str(self.counter),
                "content-digest": digest,
                "signature-input": f"lic={parameters}",
                "signature": f"lic=:{made}:",
            }
            requests.append(load.post("/api/v1/validate", body, headers))
        return requests

    counter: int = 0

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
    shown = {name: _measure(server, _by(here, here.asked(name))) for name in ("bare", "twin", "validate", "drf")}
    shown["signed"] = _measure(server, lambda: load.run(here.port, here.signed(30_000), seconds=WINDOW_SECONDS))
    half = {
        name: load.run(here.port, here.asked(name), seconds=WINDOW_SECONDS, rate=_rate(shown, name) / 2)
        for name in ("bare", "validate", "drf")
    }
    figures = _latencies(shown)
    shown["cold"] = []
    for _ in range(REPEATS):
        server = here.start()
        load.run(here.port, here.asked("bare"), seconds=1.0)
        with redis.Redis.from_url(here.redis.url()) as client:
            client.flushall()
        run = _once(here, here.asked("validate"))
        shown["cold"].append({"rate": run.rate, "cpu": 0.0, "p50": run.percentile(50), "p99": run.percentile(99)})
    here.redis.stop()
    shown["without Redis"] = _measure(server, _by(here, here.asked("validate")))
    bare = _rate(shown, "bare")
    return [
        at_least("validate (fast door) / bare view", _rate(shown, "validate") / bare, 0.60),
        at_least("validate (DRF door) / bare view", _rate(shown, "drf") / bare, 0.30),
        at_least("validate by a signed client / bare view", _rate(shown, "signed") / bare, 0.30),
        at_least("validate, nothing kept / bare view", _rate(shown, "cold") / bare, 0.30),
        at_least("validate, Redis stopped / bare view", _rate(shown, "without Redis") / bare, 0.25),
        at_least("validate / plain DRF+ORM twin", _rate(shown, "validate") / _rate(shown, "twin"), 10),
        Figure("plain DRF+ORM twin / bare view", round(_rate(shown, "twin") / bare, 3), "ratio"),
        *(
            at_most(
                f"p99 at half of saturation, {name} / bare", half[name].percentile(99) / half["bare"].percentile(99), 4
            )
            for name in ("validate", "drf")
        ),
        *figures,
        *_latencies({name: shown[name] for name in ("cold", "without Redis")}),
    ]


def workers(stack: ExitStack) -> list[Figure]:
    """CPU per validation with two workers, against one."""
    here = served(stack, count=2_000)
    cost = {}
    for count in (1, 2):
        server = here.start(count)
        cost[count] = statistics.median(w["cpu"] for w in _measure(server, _by(here, here.asked("validate"))))
    return [at_most("CPU of a validation, two workers / one", cost[2] / cost[1], 1.2)]


def embedded(stack: ExitStack) -> list[Figure]:
    """Validate on SQLite with nothing else running."""
    here = served(stack, sqlite=True)
    server = here.start()
    shown = {name: _measure(server, _by(here, here.asked(name))) for name in ("bare", "validate")}
    figures = _latencies({"validate on SQLite": shown["validate"]})
    return [at_least("validate on SQLite / bare view", _rate(shown, "validate") / _rate(shown, "bare"), 0.50), *figures]


def scale(stack: ExitStack) -> list[Figure]:
    """Validate a thousand licenses among themselves, and among a million."""
    here = served(stack, count=1_000)
    rates = []
    for grown in (0, 1_000_000):
        if grown:
            console.print(f"[dim]{grown} more licenses …")
            subprocess.run(
                [sys.executable, "-m", "benchmarks.data", "grow", str(grown)],
                cwd=ROOT,
                env=here.environment,
                check=True,
            )
        server = here.start()
        rates.append(_rate({"v": _measure(server, _by(here, here.asked("validate")))}, "v"))
    return [at_least("validate, 1,000,000 licenses / 1,000", rates[1] / rates[0], 0.9)]


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


def _by(here: Served, requests: list[bytes]) -> Callable[[], load.Load]:
    return functools.partial(load.run, here.port, requests, seconds=WINDOW_SECONDS)


def _once(here: Served, requests: list[bytes]) -> load.Load:
    """Send each request once: nothing of what is asked is kept anywhere."""
    shown = load.run(here.port, requests, seconds=60.0, at_most=len(requests))
    if shown.failed or not shown.answered:
        raise SystemExit(f"Measured nothing: the answers were {shown.statuses}.")
    return shown


def _rate(shown: dict[str, list[dict[str, float]]], name: str) -> float:
    return statistics.median(window["rate"] for window in shown[name])


def _latencies(shown: dict[str, list[dict[str, float]]]) -> list[Figure]:
    figures = []
    for name, windows in shown.items():
        figures += [
            Figure(f"{name}: requests", round(_rate(shown, name)), "1/s"),
            Figure(
                f"{name}: CPU of the server", round(statistics.median(w["cpu"] for w in windows) * 1e6), "µs/request"
            ),
            Figure(f"{name}: p50, saturated", round(statistics.median(w["p50"] for w in windows) * 1e3, 2), "ms"),
            Figure(f"{name}: p99, saturated", round(statistics.median(w["p99"] for w in windows) * 1e3, 2), "ms"),
        ]
    return figures


def _measure(server: subprocess.Popen[bytes], run: Callable[[], load.Load]) -> list[dict[str, float]]:
    """Return one window's figures per repeat, after a warm-up. Every answer must be a 200."""
    windows: list[dict[str, float]] = []
    for repeat in range(REPEATS + 1):
        before = _cpu(server)
        shown = run()
        if shown.failed or not shown.answered:
            raise SystemExit(f"Measured nothing: the answers were {shown.statuses}.")
        if repeat:
            windows.append(
                {
                    "rate": shown.rate,
                    "cpu": (_cpu(server) - before) / shown.answered,
                    "p50": shown.percentile(50),
                    "p99": shown.percentile(99),
                }
            )
    return windows


def _cpu(server: subprocess.Popen[bytes]) -> float:
    process = psutil.Process(server.pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def _pin(server: subprocess.Popen[bytes], *, both: bool = False) -> None:
    """Give the server one core and the load another, where there are two; `both` lets the server have all."""
    cores = sorted(_cores)
    if len(cores) < 2:
        return
    os.sched_setaffinity(0, {cores[1]})
    deadline = time.monotonic() + 20
    process = psutil.Process(server.pid)
    while not process.children(recursive=True) and time.monotonic() < deadline:
        time.sleep(0.05)
    for each in (process, *process.children(recursive=True)):
        each.cpu_affinity(cores if both else [cores[0]])


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


PARTS: dict[str, Callable[[ExitStack], list[Figure]]] = {
    "validate": validate,
    "workers": workers,
    "embedded": embedded,
    "propagation": propagation,
    "scale": scale,
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
    _print(figures)
    _keep(figures)


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
