"""Roll usage up by hand, compare it with its events, or make the roll-ups of a license anew."""

import json
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import rollups
from licensing import audit
from licensing.errors import LicensingError
from licensing.models import License


class Command(BaseCommand):
    help = "Total the hours that usage came in for. May be stopped at any time, and run again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON for another program")
        parser.add_argument("--batch", type=int, help="hours in one transaction; all of a batch is done or nothing")
        parser.add_argument(
            "--check", action="store_true", help="compare counters, events and roll-ups; 1 if any differ"
        )
        parser.add_argument("--rebuild", metavar="LICENSE", help="make the roll-ups of this license anew")
        parser.add_argument("--reason", default="", help="why they are made anew: it is audited")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["check"]:
                self._check(options)
            elif options["rebuild"]:
                self._rebuild(options)
            else:
                self._roll_up(options)
        except LicensingError as error:
            raise CommandError(error.detail) from None

    def _roll_up(self, options: dict[str, Any]) -> None:
        began = time.monotonic()

        def show(done: rollups.Rolled) -> None:
            if not options["json"]:
                rate = done.hours / max(time.monotonic() - began, 0.001)
                self.stdout.write(f"{done.hours} hours of {done.changes} changes, {rate:.0f} hours/s")

        at = timezone.now()
        if options["batch"] is not None and options["batch"] < 1:
            raise CommandError("A batch has at least one change: --batch 10000")
        done = rollups.roll_up(at=at, batch=options["batch"], progress=show)
        if options["json"]:
            self.stdout.write(json.dumps({**asdict(done), "seconds": round(time.monotonic() - began, 3)}))
        elif not done.changes:
            self.stdout.write("Nothing has come in since the last roll-up.")

    def _check(self, options: dict[str, Any]) -> None:
        found = rollups.reconcile(at=timezone.now())
        if options["json"]:
            self.stdout.write(json.dumps([asdict(each) for each in found], default=str))
        else:
            for each in found:
                self.stdout.write(
                    f"{each.kind}: license {each.license_id}, {each.meter} {each.window} {each.starts_at:%Y-%m-%dT%H}:"
                    f" recorded {each.recorded}, events say {each.counted}"
                )
            self.stdout.write(f"{len(found)} differences." if found else "Counters, events and roll-ups agree.")
        if found:
            sys.exit(1)

    def _rebuild(self, options: dict[str, Any]) -> None:
        try:
            license = License.objects.get(pk=options["rebuild"])
        except (License.DoesNotExist, ValidationError):
            raise CommandError(f"There is no license {options['rebuild']}.") from None
        hours = rollups.rebuild(
            license=license, reason=options["reason"], by=audit.system("manage.py rollup"), at=timezone.now()
        )
        self.stdout.write(json.dumps({"hours": hours}) if options["json"] else f"{hours} hours made anew.")
