"""One person's data by hand: write down all that is held, or erase it. The rules are `portal.privacy`'s."""

import json
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from licensing.errors import LicensingError
from portal import privacy


class Command(BaseCommand):
    help = "Export or erase what is held about a person. 1 where it is refused, with the reason."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        export = actions.add_parser("export", help="write all that is held about a person, as JSON")
        export.add_argument("mail")
        export.add_argument("--json", type=Path, metavar="FILE", help="to a new private file, not to the terminal")
        erase = actions.add_parser("erase", help="erase a person; the audit chain stays whole")
        erase.add_argument("mail")
        erase.add_argument("--dry-run", action="store_true", help="say what would be erased and kept, change nothing")
        erase.add_argument("--reason", default="", help="why; it stands in the audit record: do not name the person")
        erase.add_argument("--release-seats", action="store_true", help="release the seats the person holds now")
        erase.add_argument("--leave-no-owner", action="store_true", help="although a customer is left without an owner")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['action']}")(options)
        except LicensingError as error:
            raise CommandError(error.detail) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from None

    def _export(self, options: dict[str, Any]) -> None:
        said = privacy.export(mail=options["mail"], at=timezone.now())
        text = json.dumps(said, cls=DjangoJSONEncoder, indent=1)
        if options["json"] is None:
            self.stdout.write(text)
            return
        with os.fdopen(os.open(options["json"], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text + "\n")
        self.stdout.write(f"All that is held is in {options['json']}.")

    def _erase(self, options: dict[str, Any]) -> None:
        asked = {name: options[name] for name in ("mail", "release_seats", "leave_no_owner")}
        if options["dry_run"]:
            done, verb = privacy.planned(**asked), "Would erase"
        else:
            done, verb = privacy.erase(**asked, reason=options["reason"], at=timezone.now()), "Erased"
        for name, count in done.erased.items():
            self.stdout.write(f"{verb}: {count} {name}")
        if not done.erased:
            self.stdout.write("Nothing is held about this person that could be erased.")
        for kept in done.kept:
            self.stdout.write(f"Kept: {kept}")
        for refused in done.refused:
            self.stdout.write(f"In the way: {refused}")
        if done.erased and not options["dry_run"]:
            self.stdout.write(
                "Backups made before still hold it: it is gone for good once the last of them has expired."
            )
        if done.refused:
            raise CommandError("As it is, this person cannot be erased.")
