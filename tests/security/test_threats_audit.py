"""T14: the audit record is changed by somebody who owns the database. `TAMPER_SEED=n` replays from that seed."""

import os
import random
import shutil
from collections import Counter
from uuid import UUID

import pytest
from django.db import transaction
from django.utils import timezone

from licensing import verifying
from tests.licensing import tampering

pytestmark = pytest.mark.django_db
COUNT = 5_000 if os.environ.get("LICENTIA_SOAK") else 700


def test_t14_every_tampering_is_found_and_its_place_named(tmp_path):
    kept, file = tmp_path / "kept.jsonl", tmp_path / "checkpoints.jsonl"
    world = tampering.build(kept)
    world.file = file
    tampering.lift()
    shutil.copy(kept, file)
    assert verifying.verify(at=timezone.now(), files=[file]).good
    ways, wrong = sorted(tampering.WAYS), {}

    found: Counter[str] = Counter()
    for seed in tampering.seeds(COUNT):
        draw = random.Random(seed)
        way = ways[seed % len(ways)]
        with transaction.atomic():
            place = tampering.WAYS[way](world, draw)
            report = verifying.verify(at=timezone.now(), files=[file])
            transaction.set_rollback(True)
        if way == "edit_the_file":
            shutil.copy(kept, file)
        if named(report, place):
            found[way] += 1
        else:
            wrong[seed] = (way, place, report.first)

    assert wrong == {}
    assert found.total() == COUNT
    assert min(found.values()) >= COUNT // len(ways)


def named(report: verifying.Report, place: object) -> bool:
    """Return whether something was found, and what was found first says where it began."""
    first = report.first
    if first is None:
        return False
    match place:
        case None:
            return first.code.startswith("checkpoint")
        case UUID():
            return first.entry == str(place)
        case int() if first.number is None:
            return False
    exact = first.code in ("entry_changed", "entry_gone", "gap", "truncated", "twice")
    return first.number == place if exact else (first.since or first.number) <= place <= first.number
