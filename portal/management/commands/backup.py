"""Put database and key ring away, in one folder. The rules are `portal.backups`'."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from licensing.errors import LicensingError
from licensing.management.commands.keyring import passphrase
from portal import backups


class Command(BaseCommand):
    help = "Write database and key ring to a new folder; the ring is sealed under a passphrase."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--passphrase-file", type=Path, help="read the passphrase from here, not from you")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = backups.make(
                to=options["folder"], passphrase=passphrase(options, twice=True), at=timezone.now()
            )  # fmt: skip
        except LicensingError as error:
            raise CommandError(error.detail) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from None
        self.stdout.write(
            f"{made.bytes:,} bytes are in {options['folder']}, with {made.entries} audit entries. Keep the passphrase "
            "elsewhere, and both off this machine. It holds personal data, which is not sealed."
        )
