"""Move a plan's licenses to another plan revision, in steps that can be stopped, resumed and rolled back."""

import dataclasses
import json
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import rollout
from billing.models import Rollout
from billing.states import ROLLOUT_TRANSITIONS, RolloutStage
from licensing import audit
from licensing.audit import Actor
from licensing.errors import LicensingError
from licensing.models import Plan, PlanRevision
from licensing.states import RevisionState

STEPS = {
    "rehearse": RolloutStage.REHEARSED,
    "shadow": RolloutStage.SHADOW,
    "canary": RolloutStage.CANARY,
    "all": RolloutStage.ALL,
    "verify": RolloutStage.VERIFIED,
    "final": RolloutStage.FINAL,
    "roll-back": RolloutStage.ROLLING_BACK,
}
SHOWN_EVERY_SECONDS = 2.0


class Command(BaseCommand):
    help = (
        "Steps: prepare, rehearse, shadow, canary, all, verify, final; roll-back before final; stop, resume; status, "
        "findings, differences. Killed anywhere: resume goes on. Exits 1 when something is wrong."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        steps = ["prepare", *STEPS, "stop", "resume", "status", "findings", "differences"]
        parser.add_argument("step", choices=steps, metavar="step", help=f"one of {', '.join(steps)}")
        parser.add_argument("code", nargs="?", default="", help="the rollout's name; status without it lists all")
        parser.add_argument("--from", dest="plan", default="", help="prepare: product/plan whose licenses move")
        parser.add_argument(
            "--to", metavar="PLAN", default="", help="prepare: product/plan whose published revision they move to"
        )
        parser.add_argument("--reason", default="", help="prepare: why")
        parser.add_argument("--percent", type=int, default=5, help="canary: how much of the cohort, 1 to 99")
        parser.add_argument("--accept-findings", action="store_true", help="canary, all: switch in spite of findings")
        parser.add_argument("--again", action="store_true", help="rehearse, shadow, verify: look at every license anew")
        parser.add_argument("--json", action="store_true", help="print JSON for another program")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self._do(options["step"], options)
        except rollout.NotNow as error:
            raise CommandError(f"{error.detail} {self._possible(options['code'])} ({error.code})") from None
        except LicensingError as error:
            raise CommandError(f"{error.detail} ({error.code})") from None

    def _do(self, step: str, options: dict[str, Any]) -> None:
        by, at = audit.system("manage.py rollout"), timezone.now()
        if step == "status" and not options["code"]:
            rows = [rollout.standing(row) for row in Rollout.objects.all()]
            if not rows and not options["json"]:
                self.stdout.write(
                    "There is no rollout. Begin one: manage.py rollout prepare NAME --from … --to … --reason …"
                )
            return self._show(rows, options)
        if not options["code"]:
            raise CommandError(
                f"Name the rollout: manage.py rollout {step} NAME. All of them: manage.py rollout status."
            )
        if step == "prepare":
            plan, target = self._plan(options["plan"], "--from"), self._plan(options["to"], "--to")
            revision = PlanRevision.objects.filter(plan=target, state=RevisionState.PUBLISHED).first()
            if revision is None:
                raise CommandError(f"The plan {options['to']} has no published revision. Publish one first.")
            row = rollout.prepare(
                code=options["code"], plan=plan, plan_revision=revision, reason=options["reason"], by=by, at=at
            )
        else:
            row = rollout.find(options["code"])
        match step:
            case "stop":
                rollout.stop(rollout=row, by=by, at=at)
            case "findings":
                return self._list_findings(row, options)
            case "differences":
                return self._list_differences(row, options)
            case "status":
                pass
            case "resume":
                self._run(rollout.resume(rollout=row, by=by, at=at), by, options)
            case "prepare":
                self._run(row, by, options)
            case _:
                asked = rollout.ask(
                    rollout=row,
                    stage=STEPS[step],
                    by=by,
                    at=at,
                    percent=options["percent"],
                    accept=options["accept_findings"],
                )
                if options["again"]:
                    rollout.look_again(rollout=asked, by=by, at=at)
                self._run(asked, by, options)
        stands = rollout.standing(row)
        self._show([stands], options)
        if step in ("verify", "resume") and stands.stage == RolloutStage.VERIFIED and stands.left:
            raise CommandError(f"{stands.left} licenses do not fit together: manage.py rollout findings {stands.code}.")

    def _run(self, row: Rollout, by: Actor, options: dict[str, Any]) -> None:
        began = shown = time.monotonic()
        terminal = not options["json"] and self.stderr.isatty()
        last = None
        for last in rollout.run(rollout=row, by=by, clock=timezone.now):
            now = time.monotonic()
            if now - shown >= (0.2 if terminal else SHOWN_EVERY_SECONDS) and not options["json"]:
                self._progress(last, now - began, terminal)
                shown = now
        if last is not None and not options["json"]:
            self._progress(last, time.monotonic() - began, terminal)
            if terminal:
                self.stderr.write("")

    def _progress(self, seen: rollout.Progress, spent: float, terminal: bool) -> None:
        rate = seen.done / max(spent, 0.001)
        left = (seen.total - seen.done) / rate if rate else 0
        line = f"{seen.step}: {seen.done} of {seen.total} licenses, {rate:.0f}/s, {left:.0f} s left"
        self.stderr.write(f"\r{line:78}" if terminal else line, ending="" if terminal else "\n")
        self.stderr.flush()

    def _possible(self, code: str) -> str:
        row = rollout.find(code)
        if rollout.standing(row).left:
            return f"Go on with it: manage.py rollout resume {code}."
        following = ROLLOUT_TRANSITIONS[RolloutStage(row.stage)]
        return (
            f"What can follow: {', '.join(name for name, stage in STEPS.items() if stage in following) or 'nothing'}."
        )

    def _plan(self, named: str, option: str) -> Plan:
        product, _, code = named.rpartition("/")
        found = list(Plan.objects.filter(code=code, **({"product__code": product} if product else {}))[:2])
        if len(found) != 1:
            if not named:
                raise CommandError(f"Say which plan: {option} product/plan.")
            what = "no plan" if not found else "more than one plan"
            raise CommandError(f"There is {what} {named}. Say {option} product/plan.")
        return found[0]

    def _show(self, rows: list[rollout.Standing], options: dict[str, Any]) -> None:
        if options["json"]:
            shown = [dataclasses.asdict(row) for row in rows]
            self.stdout.write(json.dumps(shown if not options["code"] else shown[0], indent=1))
            return
        for row in rows:
            members = ", ".join(f"{number} {state}" for state, number in sorted(row.members.items())) or "no licenses"
            stopped = ", STOPPED" if row.stopped else ""
            self.stdout.write(f"{row.code}: {row.stage}{stopped}, {row.percent} %, {members}; {row.left} left to do")
            for title, found in (("findings", row.findings), ("differences", row.differences)):
                if found:
                    parts = ", ".join(f"{number} {name}" for name, number in sorted(found.items()))
                    self.stdout.write(f"  {title}: {parts}")
            if (live := row.live).since or live.dropped:
                self.stdout.write(
                    f"  live requests: {live.compared} compared of {live.licenses} licenses since {live.since}, "
                    f"{live.differed} would be answered otherwise, {live.dropped} not compared"
                )

    def _list_findings(self, row: Rollout, options: dict[str, Any]) -> None:
        rows = row.members.exclude(findings=[]).values_list("license_id", "findings")
        found = [{"license": str(pk), **finding} for pk, findings in rows.iterator() for finding in findings]
        self._list(found, options, "{license}  {code:18} {text}")

    def _list_differences(self, row: Rollout, options: dict[str, Any]) -> None:
        fields = ("kind", "subject", "before", "after", "reason")
        found = [
            {"license": str(pk), **dict(zip(fields, rest, strict=True))}
            for pk, *rest in row.differences.values_list("license_id", *fields).iterator()
        ]
        self._list(found, options, "{license}  {kind:8} {subject}: {before} -> {after}  {reason}")

    def _list(self, found: list[dict[str, str]], options: dict[str, Any], line: str) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=1))
            return
        for each in found:
            self.stdout.write(line.format(**each))
