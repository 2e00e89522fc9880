"""Run the expiration sweep by hand, or show how it stands."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from licensing import sweeps


class Command(BaseCommand):
    help = "Record what time has made of licenses, now. Running it twice changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--status", action="store_true", help="only show how every job stands")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        at = timezone.now()
        done = None if options["status"] else sweeps.run(sweeps.EXPIRATION, at=at)
        rows = [sweeps.standing(job, at=at) for job in sweeps.every()]
        if options["json"]:
            jobs = [
                {
                    "name": row.name,
                    "lag_seconds": row.lag.total_seconds(),
                    "last_finished_at": row.last_finished_at and row.last_finished_at.isoformat(),
                    "overdue": row.overdue,
                    "failures": row.failures,
                    "last_error": row.last_error,
                }
                for row in rows
            ]
            self.stdout.write(json.dumps({"transitions": done, "jobs": jobs}, indent=1))
            return
        if done is not None:
            self.stdout.write(f"{done} transitions recorded.")
        for row in rows:
            last = f"{row.last_finished_at:%Y-%m-%d %H:%M:%S}" if row.last_finished_at else "never"
            late = "OVERDUE" if row.overdue else "on time"
            self.stdout.write(f"{row.name:20} {late:8} lag {row.lag}  last {last}  {row.last_error}")
