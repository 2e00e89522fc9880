"""The verifier for auditors: one file, public keys alone, run as they would run it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.core.management import call_command
from django.utils import timezone

from licensing import chain, checkpoints, crypto, verifying
from licensing.models import AuditCheckpoint
from tests.factories import AT, BY
from tests.licensing import tampering

pytestmark = pytest.mark.django_db
VERIFIER = Path(__file__).resolve().parents[2] / "clients" / "verify_audit.py"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as an auditor has it: the export, the keys, checkpoints got by mail."""
    tampering.build(tmp_path / "checkpoints.jsonl")
    (tmp_path / "jwks.json").write_text(json.dumps(crypto.jwks()))
    verifying.export(to=tmp_path / "export.jsonl", by=BY, at=AT)
    return tmp_path


def run(place: Path, *more: str, lone: bool = False) -> tuple[int, dict[str, Any]]:
    """Run a copy of the file, far from our code; `lone`: where nothing is installed."""
    shutil.copy(VERIFIER, place / "verify.py")
    flags = ["-I", "-S"] if lone else ["-I"]
    done = subprocess.run(
        [sys.executable, *flags, "verify.py", "export.jsonl", "--keys", "jwks.json", "--json", *more],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {"said": done.stderr}


def lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "export.jsonl").read_text().splitlines()]


def write(place: Path, rows: list[dict[str, Any]]) -> None:
    (place / "export.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("lone", [False, True], ids=["with cryptography", "with Python alone"])
def test_it_finds_a_good_export_good(place, lone):
    code, said = run(place, "--checkpoints", "checkpoints.jsonl", lone=lone)

    assert (code, said["good"], said["problems"]) == (0, True, [])
    assert (said["first_number"], said["last_number"], said["covered_to"]) == (1, 14, 14)
    assert said["checkpoints"] == 2 * len(tampering.SIGNED)


@pytest.mark.parametrize("lone", [False, True], ids=["with cryptography", "with Python alone"])
def test_it_does_not_take_another_keys_word(place, lone):
    other = crypto.KeyRing.generate().primary("sign").public_bytes()
    kid = crypto.ring().primary("sign").kid
    key = {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": crypto.b64(other)}
    (place / "jwks.json").write_text(json.dumps({"keys": [key]}))

    code, said = run(place, lone=lone)

    assert (code, said["checkpoints"]) == (1, 0)
    assert "altered, or never signed" in said["first"]["text"]


def test_it_names_the_first_bad_entry_whatever_was_done_to_each(place):
    whole = lines(place)
    for number in range(1, 15):
        for change in (
            lambda rows, at: rows[at]["entry"].update(reason="Another."),
            lambda rows, at: rows.pop(at),
            lambda rows, at: rows[at].update(entry=None),
            lambda rows, at: rows.insert(at, rows[at + 1] if at < 14 else rows[at - 1]),
            lambda rows, at: rows[at].update(content="00" * 32),
            lambda rows, at: rows[at].update(chain="00" * 32),
            lambda rows, at: rows[at].update(number="x"),
        ):
            rows = json.loads(json.dumps(whole))
            change(rows, number)
            write(place, rows)

            code, said = run_here(place)

            assert (code, said["number"]) == (1, number), (number, said)


def run_here(place: Path) -> tuple[int, dict[str, Any]]:
    """The same file, loaded once: a process for each of a hundred would take minutes."""
    import contextlib
    import importlib.util
    import io

    spec = importlib.util.spec_from_file_location("verify_audit", VERIFIER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = module.main([str(place / "export.jsonl"), "--keys", str(place / "jwks.json"), "--json"])
    return code, json.loads(said.getvalue())["first"]


def test_it_finds_an_export_of_a_chain_made_anew(place):
    """All of it fits together; only a checkpoint from elsewhere knows better."""
    tampering.lift()
    row = tampering.entries()[6]
    type(row).objects.filter(pk=row.pk).update(reason="Never.")
    row.refresh_from_db()
    from licensing.models import AuditLink

    AuditLink.objects.filter(number=7).update(content_hash=tampering.hash_of(row))
    tampering.chain_anew(7)
    tampering.gone(AuditCheckpoint.objects.all())
    checkpoints.make(at=AT, asked=True)
    (place / "export.jsonl").unlink()
    verifying.export(to=place / "export.jsonl", by=BY, at=AT)

    believed, _ = run(place)
    code, said = run(place, "--checkpoints", "checkpoints.jsonl")

    assert believed == 0
    assert code == 1
    assert said["first"]["since"] <= 7 <= said["first"]["number"]


def test_it_finds_an_export_cut_short(place):
    rows = lines(place)
    kept = [row for row in rows if row.get("number", 0) <= 9 and row.get("checkpoint", {}).get("size", 0) <= 9]
    kept[0]["last"] = 9
    write(place, kept)

    alone, _ = run(place)
    code, said = run(place, "--checkpoints", "checkpoints.jsonl")

    assert alone == 0
    assert (code, said["first"]["number"]) == (1, 10)


def test_it_takes_an_export_that_begins_later(place):
    (place / "export.jsonl").unlink()
    call_command("audit", "export", str(place / "export.jsonl"), "--since", "8")

    code, said = run(place)

    assert (code, said["first_number"], said["last_number"], said["covered_to"]) == (0, 8, 14, 14)


def test_it_vouches_for_nothing_without_a_checkpoint(place):
    write(place, [row for row in lines(place) if "checkpoint" not in row])

    code, said = run(place)

    assert (code, said["good"], said["problems"]) == (2, False, [])


@pytest.mark.parametrize("what", ["nothing", "no json", "a list"])
def test_it_says_when_it_cannot_read_it(place, what):
    (place / "export.jsonl").write_text({"nothing": "", "no json": "}{\n", "a list": "[1]\n"}[what])

    code, said = run(place)

    assert code == 2
    assert "no export" in said["said"]


def test_others_check_the_signature_too(place):
    """A checkpoint is plain text and an Ed25519 signature: `openssl` and another library agree."""
    row = AuditCheckpoint.objects.order_by("size").last()
    assert row is not None
    said = json.loads((place / "checkpoints.jsonl").read_text().splitlines()[-1])
    text = (
        f"licentia audit checkpoint 1\nsize {said['size']}\nhead {said['head']}\nat {said['at']}\nkid {said['kid']}\n"
    ).encode()
    key = next(key for key in crypto.jwks()["keys"] if key["kid"] == said["kid"])
    public = crypto.unb64(key["x"])
    signature = crypto.unb64(said["signature"])
    der = bytes.fromhex("302a300506032b6570032100") + public  # RFC 8410
    (place / "key.der").write_bytes(der)
    (place / "text").write_bytes(text)
    (place / "signature").write_bytes(signature)

    Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    done = subprocess.run(
        [
            *("openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key.der", "-rawin"),
            *("-in", "text", "-sigfile", "signature"),
        ],
        cwd=place,
        capture_output=True,
        text=True,
    )

    assert "Signature Verified Successfully" in done.stdout, done.stderr
    assert (row.size, bytes(row.head).hex()) == (said["size"], said["head"])
    assert chain.standing(at=timezone.now()).size == 14
