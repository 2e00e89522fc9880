"""`manage.py demo`: a whole installation on this machine, seeded, with web, worker and beat, until Ctrl-C.

It supervises processes and tells the caller what to try; what the demo holds is `seed_demo`'s affair.
It is always embedded: configuration of another installation in the environment is left aside, so that
a demo never seeds somebody's real database.
"""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.urls import NoReverseMatch, reverse
from rich.console import Console

from portal.management.commands import serve

HOST = "127.0.0.1"
FOREIGN_CONFIGURATION = (
    "ALLOWED_HOSTS",
    "CELERY_BROKER_URL",
    "DATABASE_URL",
    "EMAIL_URL",
    "KEYRING",
    "KEYRING_FILE",
    "REDIS_URL",
    "SECRET_KEY",
    "TRUSTED_PROXIES",
    "WEB_WORKERS",
)
START_SECONDS = 60
STOP_SECONDS = 15


# --- processes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Child:
    """A process we started, told from a later one with the same number by when it began."""

    name: str
    pid: int
    began: str

    @property
    def alive(self) -> bool:
        return self.began != "" and began(self.pid) == self.began


def _stop_all(children: list[Child]) -> None:
    """End the processes and what they started, gently at first. Returns when they are gone."""
    for child in children:
        if child.alive:
            _signal(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while any(child.alive for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in children:
        if child.alive:
            os.killpg(child.pid, signal.SIGKILL)
        _reap(child.pid)
        # What a crashed one left behind: its number is not given to anybody while its session has members.
        if began(child.pid) == "":
            for member in _session_members(child.pid):
                _signal(member, signal.SIGKILL)


def began(pid: int) -> str:
    """Return when a living process began, in the system's own words; empty when there is none."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return "" if not fields or fields[0] == "Z" else fields[19]
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)  # noqa: S603, S607
    return done.stdout.strip()


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def _session_members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields and fields[0] != "Z" and fields[3] == str(session):
            found.append(int(entry.name))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by another run of this command


class State:
    """What runs, in a file under var/: how `--stop`, and a second start, find the first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "demo.json"

    def read(self) -> tuple[str, list[Child]]:
        """Return the address and the processes of the last start; empty where there was none."""
        try:
            kept = json.loads(self.path.read_text())
            return kept["base_url"], [Child(**each) for each in kept["processes"]]
        except FileNotFoundError:
            return "", []
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{self.path} is damaged: {error}. End what it names, then remove it.") from error

    def write(self, base_url: str, children: list[Child]) -> None:
        text = json.dumps({"base_url": base_url, "processes": [asdict(each) for each in children]}, indent=1)
        scratch = self.path.with_suffix(".new")
        scratch.write_text(text)
        scratch.replace(self.path)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


# --- the command ------------------------------------------------------------------------------------


class Command(BaseCommand):
    help = "Run a seeded demo installation: web, worker and beat, on SQLite under var/."
    # Checked by hand below, once the environment is the demo's own.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 8000))
        parser.add_argument("--detach", action="store_true", help="return when it answers; end it with --stop")
        parser.add_argument("--stop", action="store_true", help="end the demo that runs")

    def handle(self, *args: Any, **options: Any) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.state = State(settings.VAR_DIR)
        if options["stop"]:
            self._stop()
            return
        port: int = options["port"]
        base_url = f"http://{HOST}:{port}"
        self._be_embedded(base_url, options)
        if self._already_runs(base_url):
            return
        self._claim_port(port)

        self.check()

        children: list[Child] = []
        # Ctrl-C, a closed terminal and `kill` all end the demo the same way.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _interrupt)
        started = time.monotonic()
        kept = False
        try:
            self.console.print("Licentia demo", style="bold")
            self._migrate()
            with self._step("web, worker, beat"):
                self._start(port, base_url, children)
            with self._step("demo data"):
                seeded = self._seed()
            with self._step("first answer"):
                self._wait_until_ready(base_url, children)
            with self._step("first license"):
                example = _working_license(base_url, seeded)
            self._show(base_url, seeded, example, seconds=time.monotonic() - started)
            if options["detach"]:
                kept = True
                self.console.print("It runs on in the background. Stop it with: make demo-stop")
            else:
                self.console.print("Ctrl-C ends it.")
                self._supervise(children)
        except KeyboardInterrupt:
            self.console.print("\nStopping …")
        finally:
            if not kept:
                # A second Ctrl-C must not leave half of them behind.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                _stop_all(children)
                self.state.forget()

    # --- before the start ---

    def _be_embedded(self, base_url: str, options: dict[str, Any]) -> None:
        """Start over with a clean environment when settings were read from another one."""
        wanted = {"LICENTIA_ENV": "embedded", "PUBLIC_URL": base_url}
        foreign = [name for name in FOREIGN_CONFIGURATION if os.environ.get(name)]
        if not foreign and settings.LICENTIA_ENV == "embedded" and base_url == settings.PUBLIC_URL:
            return
        if "LICENTIA_DEMO" in os.environ:
            raise CommandError("The settings do not follow the environment: they are not the demo's.")
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_CONFIGURATION}
        if foreign:
            self.console.print(f"Left aside, the demo is embedded: {', '.join(foreign)}", style="yellow")
        line = [sys.executable, str(settings.BASE_DIR / "manage.py"), "demo", "--port", str(options["port"])]
        sys.stdout.flush()
        os.execve(  # noqa: S606
            line[0],
            [*line, *(["--detach"] if options["detach"] else [])],
            environment | wanted | {"LICENTIA_DEMO": "1"},
        )

    def _already_runs(self, base_url: str) -> bool:
        running_url, children = self.state.read()
        if not any(child.alive for child in children):
            return False
        if all(child.alive for child in children):
            if running_url != base_url:
                raise CommandError(f"The demo already runs on {running_url}. Stop it with: make demo-stop")
            self.console.print(f"The demo already runs on {running_url}. Stop it with: make demo-stop")
            return True
        # Half of it is gone, as after a crash: clear the other half away.
        _stop_all(children)
        self.state.forget()
        return False

    def _claim_port(self, port: int) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except PermissionError as error:
                raise CommandError(
                    f"Port {port} needs more rights. Choose one above 1023: make demo PORT=8001"
                ) from error
            except OverflowError as error:
                raise CommandError(f"{port} is no port. Choose one below 65536: make demo PORT=8001") from error
            except OSError as error:
                raise CommandError(f"Port {port} is not free. Choose another: make demo PORT={_free_port()}") from error

    # --- the steps ---

    def _migrate(self) -> None:
        executor = MigrationExecutor(connections["default"])
        count = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
        with self._step(f"database, {count} migrations" if count else "database, up to date") as say:
            if count:
                call_command("migrate", interactive=False, verbosity=1, stdout=_MigrationLines(count, say))

    def _start(self, port: int, base_url: str, children: list[Child]) -> None:
        celery = [sys.executable, "-m", "celery", "-A", "portal"]
        lines = {
            "web": serve.command(host=HOST, port=port, workers=1),
            "worker": [
                *(
                    *celery,
                    "worker",
                    "--loglevel",
                    "INFO",
                    "--concurrency",
                    "1",
                    "--hostname",
                    "demo@localhost",
                ),
                *("--without-gossip", "--without-mingle"),
            ],
            # The pid file is ours; beat's own would outlive a crash and stop the next start.
            "beat": [*celery, "beat", "--loglevel", "INFO", "--pidfile", ""],
        }
        environment = os.environ | {
            "PUBLIC_URL": base_url,
            "LICENTIA_ENV": "embedded",
            "PYTHONUNBUFFERED": "1",
        }
        self._logs.mkdir(parents=True, exist_ok=True)
        for name, line in lines.items():
            with self._log(name).open("wb") as log:
                # A session of their own: Ctrl-C reaches this process alone, which then ends them in order.
                process = subprocess.Popen(  # noqa: S603
                    line,
                    cwd=settings.BASE_DIR,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=environment,
                )
            children.append(Child(name, process.pid, began(process.pid)))
            self.state.write(base_url, children)

    def _seed(self) -> dict[str, Any]:
        answer = io.StringIO()
        call_command("seed_demo", "--json", stdout=answer)
        seeded: dict[str, Any] = json.loads(answer.getvalue())
        return seeded

    def _wait_until_ready(self, base_url: str, children: list[Child]) -> None:
        deadline = time.monotonic() + START_SECONDS
        said = ""
        while time.monotonic() < deadline:
            self._expect_alive(children)
            try:
                status, body = _call(base_url, "GET", "/health/ready")
            except OSError as error:
                said = str(error)
            else:
                if status == 200:
                    return
                said = f"{status} {body.decode(errors='replace')[:500]}"
            time.sleep(0.1)
        raise CommandError(f"No answer on {base_url}/health/ready in {START_SECONDS} s: {said}\n{self._tail('web')}")

    def _supervise(self, children: list[Child]) -> None:
        while True:
            time.sleep(1)
            if not self.state.path.exists():
                self.console.print("Stopped from elsewhere.")
                return
            self._expect_alive(children)

    def _expect_alive(self, children: list[Child]) -> None:
        for child in children:
            if not child.alive and self.state.path.exists():
                raise CommandError(f"The {child.name} ended by itself.\n{self._tail(child.name)}")

    def _stop(self) -> None:
        base_url, children = self.state.read()
        alive = [child for child in children if child.alive]
        # First, so that a demo in a terminal knows that this was no accident.
        self.state.forget()
        _stop_all(children)
        if alive:
            self.console.print(f"Stopped the demo on {base_url}.")
        else:
            self.console.print("No demo runs.")

    # --- what the caller sees ---

    @property
    def _logs(self) -> Path:
        return Path(settings.VAR_DIR) / "log"

    def _log(self, name: str) -> Path:
        return self._logs / f"demo-{name}.log"

    def _tail(self, name: str) -> str:
        path = self._log(name)
        lines = path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"The end of {_short(path)}:", *(f"  {line}" for line in lines)])

    @contextmanager
    def _step(self, name: str) -> Iterator[Any]:
        """Show one step: moving while it lasts on a terminal, two plain lines elsewhere."""
        began_at = time.monotonic()
        if self.console.is_terminal:
            with self.console.status(name) as status:
                yield lambda detail: status.update(f"{name}  {detail}")
        else:
            self.stdout.write(f"  …   {name}")
            self.stdout.flush()
            yield lambda detail: None
        seconds = f"{time.monotonic() - began_at:.1f} s"
        self.console.print(f"  [green]ok[/green]  {name:<28} [dim]{seconds:>8}[/dim]")

    def _show(self, base_url: str, seeded: dict[str, Any], example: dict[str, Any], *, seconds: float) -> None:
        def section(title: str) -> None:
            self.console.print()
            self.console.print(title, style="bold")

        def line(*parts: str) -> None:
            # Values are meant for copying: no wrapping, and nothing of them read as markup.
            self.console.print("  " + "  ".join(parts).rstrip(), markup=False)

        people = [("staff", each) for each in seeded["staff"]]
        for customer in seeded["customers"]:
            people += [(str(customer.get("name") or customer.get("slug") or ""), each) for each in customer["users"]]
        width = max((len(str(each["email"])) for _, each in people), default=0)
        word_width = max((len(str(each["password"])) for _, each in people), default=0)

        self.console.print()
        self.console.print(f"Ready on [bold]{base_url}[/bold] [dim]after {seconds:.0f} s[/dim]")
        section("Sign in")
        for title, name in (("customers", "account_login"), ("staff", "admin:index"), ("API", "api-docs")):
            try:
                line(f"{title:<9}", base_url + reverse(name))
            except NoReverseMatch:
                continue
        for of, each in people:
            line(f"{each['email']:<{width}}", f"{each['password']:<{word_width}}", f"{of}, {each['role']}")
        section("License key")
        line(example["key"], f"{example['plan']}, {example['status']}")
        if seeded["credentials"]:
            credential = seeded["credentials"][0]
            section("API credential")
            line(credential["secret"], f"({' '.join(credential['scopes'])})")
        section("Validate it")
        for row in _curl(base_url, example["key"]):
            line(row)
        section("Logs")
        line(*(_short(self._log(name)) for name in ("web", "worker", "beat")))
        self.console.print()


class _MigrationLines(io.StringIO):
    """Takes the place of `migrate`'s output and counts what it applies."""

    def __init__(self, total: int, say: Any) -> None:
        super().__init__()
        self.total = total
        self.done = 0
        self.say = say

    def write(self, text: str) -> int:
        self.done += text.count("OK")
        self.say(f"{self.done} of {self.total}")
        return super().write(text)


def _curl(base_url: str, key: str) -> list[str]:
    return [
        f"curl -sS -X POST {base_url}/api/v1/validate \\",
        f"  -H 'Authorization: License {key}' \\",
        """  -H "x-licentia-nonce: $(head -c 24 /dev/urandom | base64 | tr '+/' '-_')" \\""",
        "  -H 'Content-Type: application/json' -d '{}'",
    ]


def _working_license(base_url: str, seeded: dict[str, Any]) -> dict[str, Any]:
    """Return a seeded license whose key validates here and now: what we print has been tried."""
    answers = []
    for license in sorted(seeded["licenses"], key=lambda each: each["status"] != "active"):
        status, body = _call(
            base_url,
            "POST",
            "/api/v1/validate",
            body=b"{}",
            headers={
                "Authorization": f"License {license['key']}",
                "Content-Type": "application/json",
                "x-licentia-nonce": os.urandom(16).hex(),
            },
        )
        verdict = json.loads(body) if status == 200 else {}
        if verdict.get("valid"):
            found: dict[str, Any] = license
            return found
        answers.append(f"  {license['plan']}: {status} {verdict.get('code') or body.decode(errors='replace')[:200]}")
    raise CommandError("\n".join(["None of the demo's license keys validates:", *answers]))


def _call(
    base_url: str, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Call our own server. Raises `OSError` when it does not answer."""
    where = urlsplit(base_url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=10)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP: {error!r}") from error
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
