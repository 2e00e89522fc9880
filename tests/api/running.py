"""A real server process over a database of its own, for tests that need more than Django's test client."""

import atexit
import contextlib
import functools
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tests.servers import find_postgres, free_port

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(slots=True)
class Running:
    """A server that answers, and what its rows were made with."""

    host: str
    port: int
    seeds: Any
    log: Path
    environment: Mapping[str, str]
    workers: int
    process: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve", "--port", str(self.port), "--workers", str(self.workers)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _await(self.process, self.port, self.log)

    def kill(self) -> None:
        """Kill it with its workers, as a machine that loses its power."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> str:
        """Stop it in an orderly way; return what it has written to its log."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(35) == 0, self.log.read_text(errors="replace")[-3000:]
        return self.log.read_text(errors="replace")


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
        migrate(mine)
        seeds = python(seed, mine)
        server = Running("127.0.0.1", port, seeds, Path(folder) / "server.log", mine, workers)
        try:
            server.start()
            yield server
        finally:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()


@contextlib.contextmanager
def database_beside(*, empty: bool = False) -> Iterator[str | None]:
    """Make a migrated database beside that of this test run, of the same kind; None is a file of the server's own."""
    url = os.environ["DATABASE_URL"]
    if url.startswith("sqlite"):
        yield None
        return
    name = f"licentia_{'empty' if empty else 'beside'}_{secrets.token_hex(6)}"
    _execute(url, f'CREATE DATABASE "{name}"' + ("" if empty else f' TEMPLATE "{_migrated_database(url)}"'))
    try:
        yield _named(url, name)
    finally:
        _drop(url, name)


def migrate(environment: Mapping[str, str]) -> None:
    """Migrate the database of that environment. Where one of this process was migrated before, it is a copy of that:
    the same migrations take ten seconds each time."""
    url = environment["DATABASE_URL"]
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:") and not path.exists():
        shutil.copy(_migrated_file(), path)
    elif "/licentia_beside_" not in url:
        _migrate(url)


@functools.cache
def _migrated_file() -> Path:
    # Not where temporary files are: tests of faults have these on a small disk that is gone afterwards.
    folder = tempfile.mkdtemp(prefix="licentia-migrated-", dir=os.environ["VAR_DIR"])
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "migrated.sqlite3"
    _migrate(f"sqlite:///{path}")
    return path


@functools.cache
def _migrated_database(url: str) -> str:
    name = f"licentia_migrated_{secrets.token_hex(6)}"
    _execute(url, f'CREATE DATABASE "{name}"')
    atexit.register(_drop, url, name)
    _migrate(_named(url, name))
    return name


def _migrate(url: str) -> None:
    with tempfile.TemporaryDirectory(prefix="licentia-migrate-") as folder:
        mine = {**os.environ, "LICENTIA_ENV": "test", "VAR_DIR": folder, "DATABASE_URL": url}
        line = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
        done = subprocess.run(line, cwd=ROOT, env=mine, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def fill(target: str) -> None:
    """Have an empty database of another PostgreSQL hold what a migrated one of this test run's does."""
    programs = find_postgres().folder
    source = _named(os.environ["DATABASE_URL"], _migrated_database(os.environ["DATABASE_URL"]))
    dump = subprocess.Popen(
        [programs / "pg_dump", "--no-owner", "--no-privileges", f"--dbname={source}"], stdout=subprocess.PIPE
    )
    read = ["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--dbname={target}"]
    subprocess.run([programs / "psql", *read], stdin=dump.stdout, stdout=subprocess.DEVNULL, check=True)
    assert dump.wait() == 0


def _named(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _drop(url: str, name: str) -> None:
    _execute(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def python(code: str, environment: Mapping[str, str]) -> Any:
    """Run Python in the installation of that environment; return the JSON it prints."""
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
