"""Put a backup's database and key ring in place, and verify them. The rules are `portal.backups`'."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from licensing.errors import LicensingError
from licensing.management.commands.keyring import passphrase
from portal import backups


class Command(BaseCommand):
    help = "Restore a backup into an empty database. 1 where it is refused, or the audit record is not as it was."
    requires_system_checks: list[str] = []  # a missing ring, and an empty database, fail them

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--passphrase-file", type=Path, help="read the passphrase from here, not from you")
        parser.add_argument("--replace", action="store_true", help="although another key ring is in place")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            done = backups.restore(
                source=options["folder"],
                passphrase=passphrase(options),
                at=timezone.now(),
                replacing=options["replace"],
            )
        except LicensingError as error:
            raise CommandError(error.detail) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from None
        self.stdout.write(
            f"The database is as it was at {done.made_at:%Y-%m-%d %H:%M:%S} UTC, with {done.entries} audit entries; "
            + ("the key ring in place has all its keys and stays." if done.ring == "kept" else "so is the key ring.")
        )
        if done.lost_at:
            self.stdout.write(
                f"LOST: audit entries {done.entries + 1} to {done.lost_to}, and what they were about, up to "
                f"{done.lost_at:%Y-%m-%d %H:%M:%S} UTC at least. The checkpoint file says so: keep it, begin a new one."
            )
        for problem in done.report.problems:
            self.stdout.write(f"WRONG: {problem.text}")
        self.stdout.write("Erase again whoever was erased since. Then: manage.py migrate, manage.py doctor")
        if not done.report.good:
            sys.exit(1)
