"""`manage.py audit`: verify, export, checkpoint. What may be done to the record stands in `tampering`."""

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from licensing import chain, checkpoints, crypto, keyring, sweeps, verifying
from licensing.models import Anomaly, AuditCheckpoint, AuditEntry, AuditLink, AuditWaiting
from tests.factories import AT, BY, make_customer
from tests.licensing import tampering

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(tmp_path: Path, settings) -> tampering.World:
    world = tampering.build(tmp_path / "checkpoints.jsonl")
    settings.AUDIT_CHECKPOINT_FILE = str(world.file)
    return world


def audit(*words: str, capsys: Any) -> tuple[int, str]:
    code = 0
    try:
        call_command("audit", *words)
    except SystemExit as error:
        code = int(error.code or 0)
    return code, capsys.readouterr().out


def test_it_finds_all_as_it_was_written(world, capsys):
    code, said = audit("verify", capsys=capsys)

    assert code == 0
    assert "Looked at 14 entries in the chain (0 wait for a number) and 3 checkpoints" in said
    assert "All is as it was written." in said


def test_it_finds_an_empty_record_good(capsys):
    assert audit("verify", capsys=capsys)[0] == 0


def test_it_exits_1_and_names_the_first_bad_entry(world, capsys):
    tampering.lift()
    for number in (11, 4, 8):
        AuditEntry.objects.filter(pk=tampering.entries()[number - 1].pk).update(action="forged")

    code, said = audit("verify", capsys=capsys)
    _, object_ = audit("verify", "--json", capsys=capsys)

    found = json.loads(object_)
    first = tampering.entries()[3].pk
    assert code == 1
    assert f"The first bad place: number 4: The entry {first} is not as it was written." in said
    assert (found["good"], found["first"]["number"], found["first"]["entry"]) == (False, 4, str(first))
    assert [problem["number"] for problem in found["problems"]] == [4, 8, 11]


def test_it_names_an_entry_that_waits_for_its_number_too_long(world, monkeypatch):
    customer = make_customer()
    entry = tampering.write(customer, 99)

    soon = verifying.verify(at=timezone.now())
    later = verifying.verify(at=timezone.now() + timedelta(minutes=2))

    assert (soon.good, soon.waiting) == (True, AuditWaiting.objects.count())
    assert {problem.code for problem in later.problems} == {"unnumbered"}
    assert str(entry.pk) in {problem.entry for problem in later.problems}


def test_it_knows_what_a_file_elsewhere_knows(world, tmp_path, settings, capsys):
    elsewhere = tmp_path / "elsewhere.jsonl"
    world.file.rename(elsewhere)
    tampering.lift()
    draw_from = AuditLink.objects.get(number=3)
    AuditEntry.objects.filter(pk=draw_from.entry_id).update(reason="Never.")
    row = AuditEntry.objects.get(pk=draw_from.entry_id)
    AuditLink.objects.filter(number=3).update(content_hash=tampering.hash_of(row))
    tampering.chain_anew(3)
    tampering.gone(AuditCheckpoint.objects.all())
    checkpoints.make(at=AT, asked=True)

    alone, _ = audit("verify", capsys=capsys)
    code, said = audit("verify", "--checkpoints", str(elsewhere), capsys=capsys)

    assert alone == 0
    assert code == 1
    assert "The first bad place: numbers 1 to 5: The chain up to number 5 is not what it was" in said


def test_it_looks_at_the_newest_only_when_asked(world):
    tampering.lift()
    AuditEntry.objects.filter(pk=tampering.entries()[1].pk).update(action="forged")

    newest = verifying.verify(at=timezone.now(), newest=8)
    whole = verifying.verify(at=timezone.now())

    assert (newest.good, newest.since, newest.size) == (True, 7, 14)
    assert [problem.number for problem in whole.problems] == [2]


def test_it_checks_what_a_disabled_key_signed_and_says_what_a_destroyed_one_did(world, ring_file):
    former = crypto.ring().primary("sign").kid
    key = keyring.add(purpose="sign", at=AT)
    keyring.promote(kid=key.kid, at=AT, force=True)
    keyring.disable(kid=former, at=AT)
    disabled = verifying.verify(at=timezone.now(), files=[world.file])
    keyring.destroy(kid=former, at=AT, now=True)
    destroyed = verifying.verify(at=timezone.now(), files=[world.file])

    assert (disabled.good, disabled.checkpoints, disabled.unsigned) == (True, 3, 0)
    assert (destroyed.good, destroyed.checkpoints, destroyed.unsigned) == (True, 0, 3)


@pytest.fixture
def ring_file(tmp_path: Path, settings):
    settings.KEYRING_FILE, settings.KEYRING = str(tmp_path / "ring.json"), ""
    crypto.write(crypto.ring(), tmp_path / "ring.json")
    yield
    crypto.forget()


def test_nightly_it_verifies_by_itself_and_flags_what_it_finds(world):
    assert sweeps.run(sweeps.VERIFY, at=timezone.now()) == 14
    assert not Anomaly.objects.exists()
    tampering.lift()
    AuditEntry.objects.filter(pk=tampering.entries()[3].pk).update(action="forged")

    sweeps.run(sweeps.VERIFY, at=timezone.now())

    anomaly = Anomaly.objects.get()
    assert (anomaly.rule, anomaly.severity, anomaly.object_id) == ("audit_altered", "critical", "4")


def test_it_exports_to_a_private_new_file_whole_or_not_at_all(world, tmp_path, capsys, monkeypatch):
    file = tmp_path / "export.jsonl"

    code, said = audit("export", str(file), capsys=capsys)

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert code == 0
    assert "Numbers 1 to 14 and 3 checkpoints" in said
    assert [row["number"] for row in rows if "number" in row] == list(range(1, 15))
    assert os.stat(file).st_mode & 0o777 == 0o600
    with pytest.raises(CommandError, match="not replaced"):
        call_command("audit", "export", str(file))
    monkeypatch.setattr(chain, "FORMS", None)
    with pytest.raises(AttributeError):
        verifying.export(to=tmp_path / "broken.jsonl", by=BY, at=AT)
    assert not [name for name in os.listdir(tmp_path) if "broken" in name]


def test_an_export_leaves_an_entry_with_who_where_to_and_how_many(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    file = tmp_path / "export.jsonl"

    audit("export", str(file), "--since", "9", capsys=capsys)

    entry = AuditEntry.objects.get(action="auditentry.exported")
    assert (entry.actor_kind, entry.actor_id) == ("system", "manage.py audit")
    assert entry.actor_label.startswith("ada@")
    assert entry.after == {"file": str(file), "first": 9, "last": 14, "entries": 6, "checkpoints": 2}


def test_no_export_without_its_entry(world, tmp_path, monkeypatch):
    monkeypatch.setattr(verifying.audit, "exported", lambda **what: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        verifying.export(to=tmp_path / "export.jsonl", by=BY, at=AT)

    assert list(tmp_path.glob("*export*")) == []


def test_it_exports_since_a_number_a_day_and_an_instant(world, tmp_path, capsys):
    now = timezone.now()
    for number, (since, first) in enumerate(
        [("9", 9), (f"{now - timedelta(days=1):%Y-%m-%d}", 1), ((now + timedelta(days=1)).isoformat(), 15), ("99", 15)]
    ):
        file = tmp_path / f"{number}.jsonl"
        _, said = audit("export", str(file), "--since", since, "--json", capsys=capsys)
        assert json.loads(said)["first"] == first, since
    with pytest.raises(CommandError, match="no day"):
        call_command("audit", "export", str(tmp_path / "x"), "--since", "yesterday")


def test_it_makes_a_checkpoint_when_asked(world, capsys):
    tampering.write(make_customer(), 15)

    code, said = audit("checkpoint", "--json", capsys=capsys)

    row = checkpoints.latest()
    assert code == 0
    assert checkpoints.read(said.strip()) == checkpoints.of(row)
    assert row.size == AuditEntry.objects.count() == 16
    assert world.file.read_text().splitlines()[-1] == said.strip()
    assert audit("verify", capsys=capsys)[0] == 0


def test_it_makes_none_of_nothing():
    with pytest.raises(CommandError, match="no audit entry yet"):
        call_command("audit", "checkpoint")
