"""A real server process over a database of its own, for tests that need more than Django's test client."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers, and what its rows were made with."""

    host: str
    port: int
    seeds: Any

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextlib.contextmanager
def running(*, seed: str, database_url: str | None = None, workers: int = 1, **environment: str) -> Iterator[Running]:
    """Migrate the database (a private SQLite file unless given), run the Python of `seed`, which prints JSON, and
    serve until the block ends."""
    with tempfile.TemporaryDirectory(prefix="licentia-running-") as folder:
        port = free_port()
        mine = {
            **os.environ,
            "LICENTIA_ENV": "test",
            "VAR_DIR": folder,
            "DATABASE_URL": database_url or f"sqlite:///{folder}/served.sqlite3",
            "REDIS_KEY_PREFIX": f"licentia-running-{port}-{os.getpid()}",
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "ALLOWED_HOSTS": "*",
            "LOG_LEVEL": "ERROR",
            **{f"THROTTLE_{kind}": "100000" for kind in ("ADDRESS", "LICENSE", "CREDENTIAL")},
            **{f"THROTTLE_{kind}_BURST": "1000000" for kind in ("ADDRESS", "LICENSE", "CREDENTIAL")},
            **environment,
        }
        _manage("migrate", "--verbosity=0", environment=mine)
        seeds = _python(seed, mine)
        with open(Path(folder) / "server.log", "w+b") as log:
            server = subprocess.Popen(
                [sys.executable, "manage.py", "serve", "--port", str(port), "--workers", str(workers)],
                cwd=ROOT,
                env=mine,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _await(server, port, Path(folder) / "server.log")
                yield Running("127.0.0.1", port, seeds)
            finally:
                server.send_signal(signal.SIGTERM)
                try:
                    server.wait(15)
                except subprocess.TimeoutExpired:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()


def _manage(*arguments: str, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _python(code: str, environment: Mapping[str, str]) -> Any:
    prelude = "import django, json; django.setup()\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=ROOT,
        env={**environment, "DJANGO_SETTINGS_MODULE": "portal.settings"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _await(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health/live")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"The server did not come to answer:\n{log.read_text(errors='replace')[-3000:]}")
