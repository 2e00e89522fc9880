"""Say what is wrong with this installation, with the mend; exit 1 when anything is."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from portal.doctor import examine


class Command(BaseCommand):
    help = "What is wrong with this installation, and how to mend it."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = examine()
        if options["json"]:
            self.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1))
        else:
            for finding in findings:
                mark = self.style.ERROR("wrong") if finding.wrong else self.style.SUCCESS("ok   ")
                self.stdout.write(f"{mark} {finding.subject}{': ' + finding.wrong if finding.wrong else ''}")
                if finding.wrong:
                    self.stdout.write(f"      mend: {finding.mend}")
        if any(finding.wrong for finding in findings):
            sys.exit(1)
