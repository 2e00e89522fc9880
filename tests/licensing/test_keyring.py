"""The life of a key: known before it is used, used by nothing before it goes, and missed at once when it is gone."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from licensing import audit, credentials, crypto, keyring, keys, lifecycle, tokens
from licensing.crypto import KeyRing, KeyRingError, NotAuthentic
from licensing.errors import Refused
from licensing.models import AuditEntry, KeyCanary, License, LicenseKey, RingReader
from tests.factories import AT, BY, make_credential, make_license, make_license_and_key

pytestmark = pytest.mark.django_db
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def ring(settings: Any, tmp_path: Path) -> Iterator[Path]:
    """A ring in a file of its own."""
    settings.KEYRING, settings.KEYRING_FILE = "", str(tmp_path / "ring.json")
    crypto.write(KeyRing.generate(), tmp_path / "ring.json")
    crypto.forget()
    yield tmp_path / "ring.json"
    crypto.refuse_writes("")
    settings.KEYRING_FILE = ""
    crypto.forget()


def primary(purpose: Any) -> str:
    return str(crypto.ring().primary(purpose).kid)


def rotated(purpose: Any) -> tuple[str, str]:
    """Add and promote a key; return the former one's id and its own."""
    former = primary(purpose)
    key = keyring.add(purpose=purpose, at=AT)
    keyring.promote(kid=key.kid, at=AT)
    return former, key.kid


def states() -> dict[str, str]:
    return {key.kid: key.state for key in crypto.ring().keys}


def test_it_goes_through_all_states_in_order() -> None:
    former, kid = rotated("sign")
    token = tokens.sign({"sub": "x"})

    assert (states()[former], states()[kid], primary("sign")) == ("active", "primary", kid)
    keyring.disable(kid=former, at=AT)
    assert states()[former] == "disabled"
    with pytest.raises(Refused):
        keyring.destroy(kid=former, at=timezone.now())
    keyring.destroy(kid=former, at=timezone.now() + timedelta(days=31))
    assert states()[former] == "destroyed"
    assert next(key for key in crypto.ring().keys if key.kid == former).material == b""
    assert tokens.read(token) == {"sub": "x"}
    actions = ["key_added", "key_promoted", "key_disabled", "key_destroyed"]
    assert [e.action for e in AuditEntry.objects.filter(action__startswith="keyring").order_by("id")] == [
        f"keyring.{action}" for action in actions
    ]


def test_it_refuses_what_a_disabled_key_signed_until_it_is_enabled() -> None:
    """A leaked signing key: everything under it is refused at once, by us and by whoever fetches the keys."""
    stolen = tokens.sign({"sub": "x"})
    former, _ = rotated("sign")
    assert tokens.read(stolen)

    keyring.disable(kid=former, at=AT)

    with pytest.raises(NotAuthentic):
        tokens.read(stolen)
    assert former not in {key["kid"] for key in crypto.jwks()["keys"]}
    keyring.enable(kid=former, at=AT)
    assert tokens.read(stolen)


def test_it_promotes_nothing_a_live_process_has_not_read() -> None:
    keyring.acknowledge(at=AT, process="web-1")
    key = keyring.add(purpose="seal", at=AT)

    with pytest.raises(keyring.NotKnownEverywhere, match="web-1"):
        keyring.promote(kid=key.kid, at=AT)
    keyring.acknowledge(at=AT, process="web-1")
    keyring.promote(kid=key.kid, at=AT)

    assert primary("seal") == key.kid
    RingReader.objects.update(kids=[])
    other = keyring.add(purpose="seal", at=AT)
    keyring.promote(kid=other.kid, at=AT + timedelta(seconds=keyring.LIVE_SECONDS + 1))  # that process is gone


def test_it_reads_a_changed_ring_without_a_restart() -> None:
    keyring.start(at=AT)
    fresh = crypto.make_key("sign")
    held = crypto.ring()
    crypto.write(KeyRing([*held.keys, fresh]), keyring.file())
    crypto.use(held)  # what a process goes on with that has not looked yet

    keyring.follow()

    assert fresh.kid in states()
    assert fresh.kid in RingReader.objects.get().kids


@pytest.mark.parametrize("state", ["primary", "in use"])
def test_it_disables_nothing_that_is_needed(state: str) -> None:
    make_license()
    former = primary("seal")
    if state == "in use":
        rotated("seal")

    with pytest.raises(keyring.StillInUse):
        keyring.disable(kid=former, at=AT)


def test_it_seals_and_digests_everything_anew() -> None:
    made = [make_license_and_key() for _ in range(7)]
    license, key = made[0]
    idempotent = keyring.IdempotencyRecord.objects.count()
    seal, digest = rotated("seal")[0], rotated("digest")[0]
    assert keyring.rows_under(digest) == {"licensing_licensekey": 7, "licensing_license": 7}
    assert keyring.rows_under(seal) == {"licensing_licensekey": 7} if not idempotent else keyring.rows_under(seal)

    steps = list(keyring.reencrypt(at=AT, batch=3))

    assert steps[-1].done == 21
    assert (keyring.rows_under(seal), keyring.rows_under(digest)) == ({}, {})
    assert keys.find(key) == license
    assert keys.reveal(license=license, by=BY, reason="x", at=AT) == key
    assert AuditEntry.objects.get(action="keyring.reencrypted").after["rows"] == 21
    for kid in (seal, digest):
        keyring.disable(kid=kid, at=AT)
    assert [keys.find(text) for _, text in made] == [row for row, _ in made]
    assert list(keyring.reencrypt(at=AT))[-1:] in ([], [keyring.Progress(0, 0, "licensing_licensekey.digest")])


def test_it_changes_no_row_that_was_changed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    license, _ = make_license_and_key()
    rotated("seal")
    seal = crypto.seal

    def meanwhile(value: bytes, place: Any) -> str:
        LicenseKey.objects.filter(license=license).update(sealed=seal(value, place))
        return seal(value, place)

    monkeypatch.setattr(crypto, "seal", meanwhile)
    list(keyring.reencrypt(at=AT))
    monkeypatch.undo()

    assert keys.reveal(license=license, by=BY, reason="x", at=AT)


def test_it_knows_every_column_that_holds_something_sealed_or_digested() -> None:
    sealed = {(model, field) for model, field in keyring.SEALED}
    for model in apps.get_app_config("licensing").get_models():
        for field in model._meta.concrete_fields:
            if "sealed" in field.name:
                assert (model, field.name) in sealed
            if field.name == "digest_kid" and not model.__name__.startswith("Historical"):
                assert model in keyring.DIGESTED


@pytest.mark.django_db(transaction=True)
def test_it_goes_on_where_it_was_killed(ring: Path) -> None:
    if connection.vendor != "postgresql":
        return  # a second process writes: on SQLite the rule itself is the same code
    made = [make_license_and_key() for _ in range(60)]
    former = rotated("seal")[0]
    program = (
        "import django; django.setup()\n"
        "import time\nfrom django.utils import timezone\nfrom licensing import keyring\n"
        "steps = keyring.reencrypt(at=timezone.now(), batch=5)\n"
        "for step in steps:\n    print(step.done, flush=True)\n    time.sleep(0.1)\n"
    )
    where = connection.settings_dict
    url = f"postgres://{where['USER']}@{where['HOST']}:{where['PORT']}/{where['NAME']}"
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "KEYRING_FILE": str(ring),
        "DJANGO_SETTINGS_MODULE": "portal.settings",
    }
    environment |= {"LICENTIA_ENV": "test", "VAR_DIR": str(ring.parent)}
    environment.pop("KEYRING", None)
    root = Path(__file__).resolve().parents[2]
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=root, env=environment, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    for _ in range(3):
        assert worker.stdout.readline()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    left = sum(keyring.rows_under(former).values())
    assert 0 < left < 60

    list(keyring.reencrypt(at=AT, batch=5))

    assert keyring.rows_under(former) == {}
    assert [keys.reveal(license=row, by=BY, reason="x", at=AT) for row, _ in made] == [text for _, text in made]


# --- backup -----------------------------------------------------------------------------------------


def test_it_restores_a_backup(tmp_path: Path, ring: Path) -> None:
    license, key = make_license_and_key()
    keyring.backup(to=tmp_path / "backup", passphrase=PASSPHRASE, at=AT)
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    ring.unlink()
    crypto.forget()

    keyring.restore(file_=tmp_path / "backup", passphrase=PASSPHRASE, at=AT)

    assert keys.reveal(license=license, by=BY, reason="x", at=AT) == key
    with pytest.raises(Refused):
        keyring.restore(file_=tmp_path / "backup", passphrase=PASSPHRASE, at=AT)
    with pytest.raises(keyring.BackupNotOpened):
        keyring.opened(file=tmp_path / "backup", passphrase="wrong passphrase")


def test_it_opens_no_backup_with_a_byte_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_SCRYPT", {"n": 2, "r": 8, "p": 1})  # each try derives a key
    file = tmp_path / "backup"
    keyring.backup(to=file, passphrase=PASSPHRASE, at=AT)
    whole = file.read_bytes()
    assert keyring.opened(file=file, passphrase=PASSPHRASE)

    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(keyring.BackupNotOpened):
            keyring.opened(file=file, passphrase=PASSPHRASE)


# --- loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["seal", "digest"])
def test_it_names_a_missing_key_and_changes_nothing(lost: str, ring: Path) -> None:
    license = make_license()
    keyring.start(at=AT)
    kid, whole = primary(lost), crypto.ring()
    crypto.write(KeyRing([key for key in whole.keys if key.kid != kid]), ring)
    crypto.forget()

    problems = keyring.start(at=AT)

    assert kid in problems[0]
    assert "keyring restore" in problems[0]
    with pytest.raises(crypto.KeyRingIncomplete, match=kid):
        lifecycle.hold(license=license, reason="staff", by=BY, at=AT)
    assert License.objects.get().holds.count() == 0
    tokens.sign({"still": "signed"})
    crypto.write(whole, ring)
    assert keyring.start(at=AT) == []
    lifecycle.hold(license=license, reason="staff", by=BY, at=AT)


def test_it_does_not_start_when_nothing_can_be_signed(ring: Path) -> None:
    keyring.start(at=AT)
    kid = primary("sign")
    crypto.write(KeyRing([key for key in crypto.ring().keys if key.kid != kid]), ring)
    crypto.forget()

    with pytest.raises(KeyRingError, match=kid):
        keyring.start(at=AT)


@pytest.mark.parametrize("purpose", crypto.PURPOSES)
def test_it_notices_a_key_that_is_another_one(purpose: Any, ring: Path) -> None:
    keyring.start(at=AT)
    kid = primary(purpose)
    document = json.loads(ring.read_text())
    for row in document["keys"]:
        if row["kid"] == kid:
            row["material"] = "A" * 43 + "="
    ring.write_text(json.dumps(document))
    crypto.forget()

    assert any(kid in problem for problem in keyring.watch(at=AT))


def test_it_keeps_no_material_in_the_database() -> None:
    keyring.start(at=AT)
    for canary in KeyCanary.objects.all():
        for key in crypto.ring().keys:
            assert key.material.hex() not in canary.value
            assert crypto.b64(key.material) not in canary.value


# --- a key that is not here -------------------------------------------------------------------------


class Elsewhere:
    """A key as a management service would hold it: this process has no material."""

    def __init__(self, inner: Any) -> None:
        self._ask = {name: getattr(inner, name) for name in ("encrypt", "decrypt", "mac", "sign", "public_bytes")}
        self.kid, self.purpose, self.state, self.created_at = inner.kid, inner.purpose, inner.state, inner.created_at

    def __getattr__(self, name: str) -> Any:
        if name not in self._ask:
            raise AttributeError(name)
        return self._ask[name]


_held_elsewhere = KeyRing.generate()


class Service:
    def load(self) -> KeyRing:
        return KeyRing([Elsewhere(key) for key in _held_elsewhere.keys])

    def version(self) -> object:
        return None


def test_it_works_with_keys_that_are_not_in_the_process(settings: Any) -> None:
    settings.KEYRING_PROVIDER = f"{__name__}.Service"
    crypto.forget()

    license, key = make_license_and_key()

    assert keys.find(key) == license
    assert keys.reveal(license=license, by=BY, reason="x", at=AT) == key
    assert tokens.read(tokens.sign({"sub": "x"})) == {"sub": "x"}
    assert keyring.start(at=AT) == []
    with pytest.raises(Refused):
        keyring.add(purpose="seal", at=AT)


# --- the command ------------------------------------------------------------------------------------


def said(*words: str) -> str:
    out = io.StringIO()
    call_command("keyring", *words, stdout=out)
    return out.getvalue()


def test_it_is_done_by_hand(tmp_path: Path) -> None:
    make_license()
    former = primary("seal")
    (tmp_path / "words").write_text(PASSPHRASE + "\n")
    kid = said("add", "--purpose", "seal").split()[0]

    assert "primary" in said("promote", kid)
    assert f"0 rows under {former}" in said("reencrypt")
    assert json.loads(said("reencrypt", "--json")) == {"rows": 0, "left": {former: {}}}
    assert "disabled" in said("disable", former)
    with pytest.raises(CommandError, match="--now"):
        said("destroy", former)
    assert "destroyed" in said("destroy", former, "--now")
    assert "keyring backup" in said("status")
    backup = str(tmp_path / "backup")
    said("backup", backup, "--passphrase-file", str(tmp_path / "words"))
    assert "opens" in said("verify-backup", backup, "--passphrase-file", str(tmp_path / "words"))
    assert "keyring backup" not in said("status")
    listed = json.loads(said("status", "--json"))
    assert {key["kid"]: key["state"] for key in listed["keys"]}[former] == "destroyed"
    assert listed["problems"] == []
    said("add", "--purpose", "sign")
    with pytest.raises(CommandError, match="lacks"):
        said("verify-backup", backup, "--passphrase-file", str(tmp_path / "words"))


def test_it_says_in_words_what_is_left_and_what_is_not_there(tmp_path: Path) -> None:
    credential, _ = make_credential()
    former, _ = rotated("digest")

    assert f"1 rows under {former}: 1 of licensing_credential" in said("reencrypt")
    with pytest.raises(CommandError, match="1 of licensing_credential"):
        said("disable", former)
    credentials.revoke(credential=credential, by=BY, at=AT)
    assert f"0 rows under {former}" in said("reencrypt")
    assert "is disabled" in said("disable", former)
    (tmp_path / "words").write_text(PASSPHRASE)
    with pytest.raises(CommandError, match="nowhere: No such file or directory"):
        said("verify-backup", str(tmp_path / "nowhere"), "--passphrase-file", str(tmp_path / "words"))


def test_it_puts_a_backup_in_place_of_a_ring_that_was_made_for_a_lost_one(ring: Path, tmp_path: Path) -> None:
    make_license()
    keyring.start(at=AT)
    backup, whole = tmp_path / "backup", crypto.ring()
    keyring.backup(to=backup, passphrase=PASSPHRASE, at=AT)
    with pytest.raises(Refused, match="--replace"):
        keyring.restore(file_=backup, passphrase=PASSPHRASE, at=AT)
    ring.unlink()
    crypto.write(KeyRing.generate(), ring)  # as an embedded start does
    crypto.forget()
    assert len(keyring.watch(at=AT)) == 3

    keyring.restore(file_=backup, passphrase=PASSPHRASE, at=AT)

    assert [key.kid for key in crypto.ring().keys] == [key.kid for key in whole.keys]
    assert keyring.watch(at=AT) == []


def test_it_takes_its_time_in_seconds_not_minutes() -> None:
    """The drill of a leaked signing key: a new one, promoted, the old one disabled."""
    began = time.monotonic()
    former, _ = rotated("sign")
    keyring.disable(kid=former, at=AT)

    assert time.monotonic() - began < 60
    assert audit.system("x")
