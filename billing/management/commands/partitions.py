"""Show the partitions of usage events, make them ahead, archive old ones."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import partitions, rollups
from licensing import audit
from licensing.errors import LicensingError


class Command(BaseCommand):
    help = "Show where usage events lie, make partitions ahead, archive old events to files."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        status = actions.add_parser("status", help="list the months of events")
        ahead = actions.add_parser("ahead", help="make the partitions of the months to come")
        archive = actions.add_parser("archive", help="write whole months to files, and let their events go")
        archive.add_argument("--before", required=True, metavar="YYYY-MM", help="this month stays")
        archive.add_argument("--to", required=True, type=Path, metavar="DIR", help="where the files go")
        for each in (status, ahead, archive):
            each.add_argument("--json", action="store_true", help="print JSON for another program")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['action']}")(options)
        except LicensingError as error:
            raise CommandError(error.detail) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from None

    def _status(self, options: dict[str, Any]) -> None:
        found, floor = partitions.partitions(), rollups.archived_before()
        if options["json"]:
            self.stdout.write(
                json.dumps({"archived_before": floor, "partitions": [asdict(each) for each in found]}, default=str)
            )
            return
        for each in found:
            size = "" if each.size_bytes is None else f"{each.size_bytes / 2**20:10.1f} MiB"
            self.stdout.write(f"{each.name:32} {each.events:>14} events {size}")
        self.stdout.write(f"Archived before {floor:%Y-%m}." if floor else "Nothing is archived.")

    def _ahead(self, options: dict[str, Any]) -> None:
        made = partitions.ahead(at=timezone.now())
        if options["json"]:
            self.stdout.write(json.dumps({"made": made}))
        else:
            self.stdout.write("\n".join(made) or "All are there.")

    def _archive(self, options: dict[str, Any]) -> None:
        try:
            before = datetime.strptime(options["before"], "%Y-%m").replace(tzinfo=UTC)
        except ValueError:
            raise CommandError("Say a month: --before 2025-01") from None

        def show(written: partitions.Archived) -> None:
            if not options["json"]:
                self.stdout.write(f"{written.file}: {written.events} events, SHA-256 {written.sha256}")

        done = partitions.archive(
            before=before, to=options["to"], by=audit.system("manage.py partitions"), at=timezone.now(), progress=show
        )
        if options["json"]:
            self.stdout.write(json.dumps([asdict(each) for each in done]))
        elif not done:
            self.stdout.write("There is nothing to archive.")
