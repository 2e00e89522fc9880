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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import load
from tests.servers import Postgres, Redis, free_port

ROOT = Path(__file__).resolve().parent.parent
LICENSES = 10_000
WINDOW_SECONDS = 3.0
REPEATS = 3
console = Console()


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


def validate(stack: ExitStack) -> list[Figure]:
    """Validate by license key, signed and throttled, against a bare view and a plain DRF+ORM twin."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="licentia-bench-")))
    database, redis = stack.enter_context(Postgres()), stack.enter_context(Redis())
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("KEYRING", "KEYRING_FILE")},
        "LICENTIA_ENV": "test",
        "VAR_DIR": str(folder),
        "DATABASE_URL": database.create_database("bench"),
        "REDIS_URL": redis.url(),
        "REDIS_KEY_PREFIX": "bench",
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
        "LOG_LEVEL": "WARNING",
        **{
            f"THROTTLE_{kind}{more}": "1000000"
            for kind in ("ADDRESS", "LICENSE", "CREDENTIAL")
            for more in ("", "_BURST")
        },
    }
    console.print(f"[dim]{LICENSES} licenses on PostgreSQL {database.version}, Redis {redis.version} …")
    subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", str(LICENSES)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    keys = made.stdout.decode().split()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "granian", "benchmarks.wsgi:application", "--interface", "wsgi", "--no-ws"),
            *("--port", str(port), "--workers", "1", "--blocking-threads", "4", "--log-level", "warning"),
        ],
        cwd=ROOT,
        env=environment,
    )
    stack.callback(_stop, server)
    _pin(server)
    asked = {
        name: [
            load.post(
                path,
                b'{"product":"atlas","entitlements":["export"]}',
                {"Authorization": f"License {key}", "x-licentia-nonce": secrets.token_urlsafe(16), **more},
            )
            for key in keys
        ]
        for name, path, more in (
            ("bare", "/bench/bare", {}),
            ("twin", "/bench/twin", {}),
            ("validate", "/api/v1/validate", {}),
            ("drf", "/api/v1/validate", {"x-bench-django": "1"}),
        )
    }
    _wait(port, asked["bare"])
    shown = {
        name: _measure(server, functools.partial(load.run, port, requests, seconds=WINDOW_SECONDS))
        for name, requests in asked.items()
    }
    rate = {name: statistics.median(window["rate"] for window in windows) for name, windows in shown.items()}
    cpu = {name: statistics.median(window["cpu"] for window in windows) for name, windows in shown.items()}
    half = {
        name: load.run(port, asked[name], seconds=WINDOW_SECONDS, rate=rate[name] / 2) for name in ("bare", "validate")
    }
    figures = [
        at_least("validate (fast door) / bare view", rate["validate"] / rate["bare"], 0.60),
        at_least("validate (DRF door) / bare view", rate["drf"] / rate["bare"], 0.30),
        at_least("validate / plain DRF+ORM twin", rate["validate"] / rate["twin"], 10),
        Figure("plain DRF+ORM twin / bare view", round(rate["twin"] / rate["bare"], 3), "ratio"),
        Figure(
            "p99 at half of saturation, validate / bare",
            round(half["validate"].percentile(99) / half["bare"].percentile(99), 2),
            "ratio",
            "<= 4",
            half["validate"].percentile(99) <= 4 * half["bare"].percentile(99),
        ),
    ]
    for name in asked:
        latencies = [window["p50"] for window in shown[name]], [window["p99"] for window in shown[name]]
        figures += [
            Figure(f"{name}: requests", round(rate[name]), "1/s"),
            Figure(f"{name}: CPU of the server", round(cpu[name] * 1e6), "µs/request"),
            Figure(f"{name}: p50, saturated", round(statistics.median(latencies[0]) * 1e3, 2), "ms"),
            Figure(f"{name}: p99, saturated", round(statistics.median(latencies[1]) * 1e3, 2), "ms"),
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


def _pin(server: subprocess.Popen[bytes]) -> None:
    """Give the server one core and the load another, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    os.sched_setaffinity(0, {cores[1]})
    deadline = time.monotonic() + 20
    process = psutil.Process(server.pid)
    while not process.children(recursive=True) and time.monotonic() < deadline:
        time.sleep(0.05)
    for each in (process, *process.children(recursive=True)):
        each.cpu_affinity([cores[0]])


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


PARTS: dict[str, Callable[[ExitStack], list[Figure]]] = {"validate": validate}


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
        "cpus": len(os.sched_getaffinity(0)) if len(os.sched_getaffinity(0)) > 1 else os.cpu_count(),
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
