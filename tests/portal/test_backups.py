"""The drill: make data, put it away, lose it, bring it back elsewhere, and have it validated and verified there."""

import io
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from licensing import chain, checkpoints, crypto, guards, keys, seats, validation
from licensing.models import AuditEntry, License, Seat
from tests.factories import make_actor, make_license_and_key, opened
from tests.licensing import tampering
from tests.servers import ServerMissing, find_postgres

pytestmark = pytest.mark.django_db(transaction=True)
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def place(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installation with a ring and checkpoints of its own; in the end the tests' database is used again."""
    settings.KEYRING, settings.KEYRING_FILE = "", str(tmp_path / "ring.json")
    settings.AUDIT_CHECKPOINT_FILE = str(tmp_path / "checkpoints.jsonl")
    crypto.write(crypto.KeyRing.generate(), tmp_path / "ring.json")
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    if connection.vendor == "postgresql":
        for source in ("machine", "wheel"):
            try:
                found = find_postgres(source)  # type: ignore[arg-type]
            except ServerMissing:
                continue
            if found.version.split(".")[0] == str(connection.pg_version // 10_000):  # type: ignore[attr-defined]
                monkeypatch.setenv("PATH", str(found.folder), prepend=":")
    own = connection.settings_dict["NAME"]
    yield tmp_path
    connection.close()
    connection.settings_dict["NAME"] = own
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute('DROP DATABASE IF EXISTS "licentia_drill"')
    crypto.forget()


def elsewhere(place: Path) -> None:
    """Go to a new, empty database on another machine: its ring is gone too."""
    name = "licentia_drill"
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
    connection.close()
    connection.settings_dict["NAME"] = name if connection.vendor == "postgresql" else str(place / "drill.sqlite3")
    (place / "ring.json").unlink()
    crypto.forget()


def run(command: str, place: Path, *more: str) -> str:
    out = io.StringIO()
    call_command(command, str(place / "backup"), "--passphrase-file", str(place / "passphrase"), *more, stdout=out)
    return out.getvalue()


def work() -> tuple[License, str]:
    license, key = make_license_and_key()
    person = make_actor(kind="member", id="7", label="ada@example.com")
    seats.assign(license=license, holder="ada@example.com", by=person, at=timezone.now())
    chain.turn(at=timezone.now())
    checkpoints.make(at=timezone.now(), asked=True)
    checkpoints.write(at=timezone.now())
    return license, key


def test_what_is_lost_comes_back_elsewhere_and_says_what_does_not(place: Path) -> None:
    license, key = work()
    made = run("backup", place)
    held = AuditEntry.objects.count()
    work()  # after the backup: lost

    elsewhere(place)
    said = run("restore", place)

    assert f"with {held} audit entries; so is the key ring" in said
    assert f"LOST: audit entries {held + 1} to " in said
    assert "WRONG" not in said
    assert f"with {held} audit entries" in made
    assert keys.find(key).pk == license.pk
    assert validation.verdict_for_staff(license_id=license.pk, at=timezone.now()).verdict.valid
    assert (License.objects.get().pk, Seat.objects.get().holder) == (license.pk, "ada@example.com")
    assert opened(AuditEntry.objects.get(action="seat.assigned")).actor_label == "ada@example.com"
    assert AuditEntry.objects.filter(action="installation.restored").count() == 1
    assert guards.missing() == []

    with pytest.raises(CommandError, match="not empty"):
        run("restore", place)


@pytest.mark.parametrize("told", [True, False], ids=["told to replace it", "with a ring that knows more"])
def test_it_leaves_a_key_ring_that_is_in_place(place: Path, told: bool) -> None:
    work()
    run("backup", place)
    kept = crypto.ring().keys
    elsewhere(place)
    crypto.write(crypto.KeyRing.generate(), place / "ring.json")

    with pytest.raises(CommandError, match="Another key ring"):
        run("restore", place)
    assert connection.introspection.table_names() == []
    if not told:
        crypto.write(crypto.KeyRing([*kept, crypto.make_key("sign")]), place / "ring.json")
    said = run("restore", place, *["--replace"] * told)

    assert ("so is the key ring" if told else "has all its keys and stays") in said
    assert len(crypto.ring().keys) == len(kept) + (not told)


def test_it_writes_nothing_where_the_backup_is_not_as_it_was_written(place: Path) -> None:
    work()
    run("backup", place)
    assert {path.stat().st_mode & 0o777 for path in (place / "backup").iterdir()} == {0o600}
    with pytest.raises(CommandError, match="not replaced"):
        run("backup", place)
    whole = {path.name: path.read_bytes() for path in (place / "backup").iterdir()}
    manifest = json.loads(whole["manifest.json"])
    elsewhere(place)

    cases: list[tuple[str, bytes, str]] = [
        ("database", whole["database"][:-1] + b"x", "database is not as it was written"),
        ("keyring.json", whole["keyring.json"] + b"\n", "keyring.json is not as it was written"),
        ("manifest.json", b"{}", "manifest.json is not as it was written"),
        *(
            ("manifest.json", json.dumps(manifest | {name: value}).encode(), "manifest.json is not as it was written")
            for name, value in (("made_at", "2026-01-01T00:00:00+00:00"), ("vendor", "other"), ("chain", {"size": 0}))
        ),
    ]
    for name, data, why in cases:
        (place / "backup" / name).write_bytes(data)
        with pytest.raises(CommandError, match=why):
            run("restore", place)
        (place / "backup" / name).write_bytes(whole[name])
    (place / "passphrase").write_text("another passphrase")
    with pytest.raises(CommandError):
        run("restore", place)

    assert connection.introspection.table_names() == []
    assert not (place / "ring.json").exists()


def test_it_finds_what_was_altered_before_it_was_put_away(place: Path) -> None:
    work()
    tampering.lift()
    AuditEntry.objects.filter(action="seat.assigned").update(reason="forged")
    guards.install()
    run("backup", place)
    elsewhere(place)

    with pytest.raises(SystemExit):
        run("restore", place)


def test_it_says_how_to_come_by_a_program_that_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor == "sqlite":  # which needs none
        monkeypatch.setenv("PATH", "")
        work()
        run("backup", place)
        with sqlite3.connect(place / "backup" / "database") as stored:
            assert stored.execute("SELECT count(*) FROM licensing_auditentry").fetchone()[0] > 0
        return
    monkeypatch.setattr(Path, "exists", lambda path, real=Path.exists: "postgresql" not in path.parts and real(path))
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(CommandError, match="pg_dump is not on this machine.*apt install postgresql-client"):
        run("backup", place)

    assert not (place / "backup").exists()
    assert [path.name for path in place.iterdir() if path.name.startswith(".backup")] == []
