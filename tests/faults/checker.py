"""A process of the installation that checks it by its own commands: one line of JSON in, one out.

What it does beside looking (jobs run, a rollout there and back) is done through the product, as staff would.
"""

import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import django

Found = tuple[int, list[str]]
CHECKS: dict[str, Callable[..., Found]] = {}
# Edits that cost the same however long the record is; every other way: tests/security/test_threats_audit.py.
WAYS = (
    *("edit_an_entry", "rename_an_entry", "delete_an_entry", "delete_the_newest_entries", "put_an_entry_in"),
    *("exchange_two_entries", "edit_a_link", "renumber_a_link", "delete_a_link", "delete_the_newest_links"),
    *("edit_a_checkpoint", "delete_a_checkpoint"),
)
# Jobs that send mails, more than once if need be (I8), or ask what is outside.
SENDING = ("outbox-relay", "gateway-invoices", "gateway-reconciliation")
# What jobs work on, but for the columns that say when they last looked.
WORKED_ON = {
    **{f"licensing_{name}": () for name in ("license", "seat", "activation", "lease", "hold", "term", "counter")},
    **{f"licensing_{name}": () for name in ("reservation", "schemechange", "licensekey")},
    **{f"billing_{name}": () for name in ("usageevent", "usageid", "usagechange", "rollup", "statementline")},
    "billing_statement": ("refreshed_at",),
}


def check(function: Callable[..., Found]) -> Callable[..., Found]:
    CHECKS[function.__name__] = function
    return function


@check
def record(**_: Any) -> Found:
    """Every entry is chained, and all of it verifies."""
    from django.utils import timezone

    from licensing import chain, checkpoints, verifying

    while chain.link():
        pass
    checkpoints.make(at=timezone.now(), asked=True)
    report = verifying.verify(at=timezone.now())
    return report.size, [str(problem) for problem in report.problems]


@check
def tampering(*, seed: int, edits: int) -> Found:
    """Random edits behind the triggers, each taken back: `audit verify` finds every one."""
    from django.db import transaction
    from django.utils import timezone

    from licensing import checkpoints, verifying
    from licensing.models import AuditCheckpoint, AuditLink
    from tests.licensing import tampering as by

    dice, missed = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        signed = list(AuditCheckpoint.objects.order_by("size"))
        file = Path(folder) / "checkpoints"
        file.write_text("".join(f"{checkpoints.of(row).line()}\n" for row in signed))
        world = by.World(file, AuditLink.objects.count(), [row.size for row in signed])
        edits = max(len(WAYS), min(edits, 40_000 // world.size))
        for number in range(edits):
            name = WAYS[number % len(WAYS)]
            with transaction.atomic():
                by.lift()
                try:
                    by.WAYS[name](world, dice)
                except TypeError:  # it drew a column that holds nothing and for which it knows no other value
                    by.WAYS["rename_an_entry"](world, dice)
                if verifying.verify(at=timezone.now(), files=[file]).good:
                    missed.append(f"nobody found: {name}, number {number}, seed {seed}")
                transaction.set_rollback(True)
    return edits, missed


@check
def rolled_back(*, old: str, new: str, code: str) -> Found:
    """A cohort is moved to another plan and back: its rows are the same to the byte, but for the excepted columns."""
    from django.utils import timezone

    from billing import rollout
    from billing.states import RolloutStage
    from licensing import audit
    from licensing.models import License, PlanRevision
    from licensing.schemes import NEVER_PUT_BACK

    by, start = audit.system("faults"), PlanRevision.objects.get(pk=old)
    tables = {f"licensing_{name}": NEVER_PUT_BACK for name in ("license", "seat", "activation", "lease", "counter")}
    before = _digests(tables)
    new_revision = PlanRevision.objects.get(pk=new)
    reason = "A fault was had."
    row = rollout.prepare(
        code=code, plan=start.plan, plan_revision=new_revision, reason=reason, by=by, at=timezone.now()
    )
    list(rollout.run(rollout=row, by=by, clock=timezone.now))
    for stage in (RolloutStage.REHEARSED, RolloutStage.SHADOW, RolloutStage.ALL, RolloutStage.ROLLING_BACK):
        rollout.ask(rollout=row, stage=stage, by=by, at=timezone.now(), accept=True)
        list(rollout.run(rollout=row, by=by, clock=timezone.now))
        if stage == RolloutStage.ALL and _digests(tables) == before:
            return 0, ["the rollout moved nothing"]
    return License.objects.filter(plan_revision=old).count(), _differing(before, _digests(tables))


@check
def jobs_again(**_: Any) -> Found:
    """The periodic jobs run; run once more, and then twice at once, they change nothing."""
    from django.utils import timezone

    from licensing import sweeps
    from tests.concurrency.together import together

    jobs, at = [job for job in sweeps.every() if job.name not in SENDING], timezone.now()
    wrong = []
    for job in jobs:
        sweeps.run(job, at=at)
    before = _digests(WORKED_ON)
    for job in jobs:
        sweeps.run(job, at=at)
        failed = [each for each in together(*[partial(sweeps.run, job, at=at)] * 2) if isinstance(each, Exception)]
        wrong += [f"{job.name} failed: {each}" for each in failed]
    return 3 * len(jobs), wrong + _differing(before, _digests(WORKED_ON))


def _differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [f"{table}: {before[table]}, then {after[table]}" for table in before if before[table] != after[table]]


def _digests(tables: dict[str, Any]) -> dict[str, str]:
    """Return how many rows each table has and a digest of them, but for the columns named."""
    from django.db import connection

    found = {}
    for table, excepted in tables.items():
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {table}")
            kept = [place for place, column in enumerate(cursor.description) if column[0] not in excepted]
            rows = sorted(repr([_plain(row[place]) for place in kept]) for row in cursor.fetchall())
        found[table] = f"{len(rows)} rows {hashlib.sha256(''.join(rows).encode()).hexdigest()[:16]}"
    return found


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def main() -> None:
    django.setup()
    from django.db import connections

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever logs or prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        connections.close_all()  # the database may have been away since
        try:
            said: Any = CHECKS[asked.pop("check")](**asked)
        except Exception as error:
            said = 0, [f"{type(error).__name__}: {error}"]
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
