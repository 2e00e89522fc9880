"""The audit record by hand: verify it, write it down for an auditor, sign a checkpoint. The rules are `verifying`'s and
`checkpoints`'."""

import getpass
import json
import os
import socket
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from licensing import chain, checkpoints, verifying
from licensing.audit import Actor
from licensing.errors import LicensingError
from licensing.verifying import Problem, Told


class Command(BaseCommand):
    help = "Verify the audit record against its chain and checkpoints, export it, or make a checkpoint."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        verify = actions.add_parser("verify", help="recompute everything; 1 when something is wrong, which is named")
        verify.add_argument(
            "--checkpoints",
            action="append",
            type=Path,
            default=[],
            metavar="FILE",
            help="checkpoints kept elsewhere, a line each; besides those of the database and AUDIT_CHECKPOINT_FILE",
        )
        verify.add_argument("--newest", type=int, metavar="N", help="only the newest N entries")
        export = actions.add_parser("export", help="write the record to a new file, for clients/verify_audit.py")
        export.add_argument("file", type=Path)
        export.add_argument("--since", help="a day, an instant, or a number of the chain", default="1")
        checkpoint = actions.add_parser("checkpoint", help="sign how far the record has come, now")
        for each in (verify, export, checkpoint):
            each.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['action']}")(options)
        except LicensingError as error:
            raise CommandError(error.detail) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from None

    def _verify(self, options: dict[str, Any]) -> None:
        own = Path(settings.AUDIT_CHECKPOINT_FILE) if settings.AUDIT_CHECKPOINT_FILE else None
        files = [*options["checkpoints"], *([own] if own and own.exists() else [])]
        report = verifying.verify(
            at=timezone.now(),
            files=dict.fromkeys(file.resolve() for file in files),
            newest=options["newest"],
            told=self._progress(options),
        )
        if options["json"]:
            said = {
                "good": report.good,
                "entries": report.size - report.since + 1,
                "size": report.size,
                "head": report.head.hex(),
                "waiting": report.waiting,
                "checkpoints": report.checkpoints,
                "signature_not_checked": report.unsigned,
                "last_checkpoint_at": report.last_checkpoint_at,
                "first": asdict(report.first) if report.first else None,
                "problems": [asdict(problem) for problem in report.problems],
                "more": report.more,
            }
            self.stdout.write(json.dumps(said, default=str))
        else:
            self._say(report, [str(file) for file in files])
        if not report.good:
            sys.exit(1)

    def _say(self, report: verifying.Report, files: list[str]) -> None:
        places = " and ".join(["the database", *files])
        self.stdout.write(
            f"Looked at {report.size - report.since + 1} entries in the chain ({report.waiting} wait for a number) and "
            f"{report.checkpoints} checkpoints from {places}."
        )
        if report.unsigned:
            self.stdout.write(
                f"{report.unsigned} more were compared, but are signed by a key that is destroyed since: "
                "their signatures were not checked."
            )
        for problem in report.problems:
            self.stdout.write(f"WRONG: {_said(problem)}")
        if report.more:
            self.stdout.write(f"WRONG: and {report.more} more.")
        if report.first:
            self.stdout.write(f"The first bad place: {_said(report.first)}")
            return
        covered = f"{report.last_checkpoint_at:%Y-%m-%d %H:%M:%S} UTC" if report.last_checkpoint_at else "never"
        self.stdout.write(f"All is as it was written. The last checkpoint was made: {covered}.")

    def _export(self, options: dict[str, Any]) -> None:
        since = _number(options["since"])
        done = verifying.export(
            to=options["file"], by=_person(), at=timezone.now(), since=since, told=self._progress(options)
        )
        if options["json"]:
            self.stdout.write(json.dumps(asdict(done)))
            return
        self.stdout.write(
            f"Numbers {done.first} to {done.last} and {done.checkpoints} checkpoints are in {options['file']}."
        )
        self.stdout.write(
            "It holds personal data. To check it with the public keys alone: "
            f"python clients/verify_audit.py {options['file']} --keys jwks.json"
        )

    def _checkpoint(self, options: dict[str, Any]) -> None:
        at = timezone.now()
        chain.turn(at=at)
        row = checkpoints.make(at=timezone.now(), asked=True)
        if row is None:
            raise CommandError("There is no audit entry yet.")
        checkpoints.write(at=timezone.now())
        self.stdout.write(checkpoints.of(row).line() if options["json"] else checkpoints.of(row).text(), ending="")
        if options["json"]:
            self.stdout.write("")

    def _progress(self, options: dict[str, Any]) -> Told:
        began, shown = time.monotonic(), time.monotonic()
        terminal = self.stdout.isatty()

        def told(done: int, total: int) -> None:
            nonlocal shown
            if options["json"] or time.monotonic() - shown < (0.2 if terminal else 5.0):
                if terminal and not options["json"] and done >= total:
                    self.stdout.write("\r\033[K", ending="")
                return
            shown = time.monotonic()
            rate = done / max(shown - began, 0.001)
            line = f"{done} of {total} entries, {rate:.0f}/s, {(total - done) / rate if rate else 0:.0f} s left"
            self.stdout.write(f"\r{line}\033[K" if terminal else line, ending="" if terminal else "\n")

        return told


def _person() -> Actor:
    """Return who runs this: the account of the machine, where it has a name."""
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # a container's account often has none
        account = str(os.getuid())
    return Actor(kind="system", id="manage.py audit", label=f"{account}@{socket.gethostname()}"[:254])


def _said(problem: Problem) -> str:
    if problem.number is None:
        return problem.text
    where = f"number {problem.number}"
    if problem.since is not None and problem.since != problem.number:
        where = f"numbers {problem.since} to {problem.number}"
    return f"{where}: {problem.text}"


def _number(since: str) -> int:
    if since.isdecimal():
        return int(since)
    try:
        if day := parse_date(since):
            return verifying.number_since(datetime(day.year, day.month, day.day, tzinfo=UTC))
        if instant := parse_datetime(since):
            return verifying.number_since(instant if instant.tzinfo else instant.replace(tzinfo=UTC))
    except ValueError:
        pass
    raise CommandError(f"'{since}' is no day, no instant and no number.")
