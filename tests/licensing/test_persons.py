"""What the audit record says of a person is sealed under that person's key, and gone with it; the chain stays whole."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from licensing import audit, chain, checkpoints, crypto, customers, keyring, persons, verifying
from licensing.models import AuditEntry, Person
from tests.factories import AT, BY, make_actor, make_customer, opened

pytestmark = pytest.mark.django_db
ADA = make_actor(kind="member", id="7", label="Ada@Example.com", address="192.0.2.9")
VERIFIER = Path(__file__).resolve().parents[2] / "clients" / "verify_audit.py"


def act(by: Any = ADA, **changes: Any) -> AuditEntry:
    """Do something as somebody, and return its entry."""
    customer = make_customer(email="old@acme.example")
    customers.change(**{"customer": customer, "name": "New", "email": customer.email, "by": by, "at": AT} | changes)
    return AuditEntry.objects.filter(action="customer.changed").latest("id")


def erase(mail: str = "ada@example.com") -> int:
    with transaction.atomic():
        return persons.erase(rows=persons.of(mail), at=AT)


def test_an_entry_of_a_person_says_who_it_was_only_sealed() -> None:
    entry = act()

    assert (entry.actor_kind, entry.actor_id, entry.actor_label, entry.address) == ("member", "7", "", None)
    stored = str(AuditEntry.objects.filter(pk=entry.pk).values().get()) + str(list(Person.objects.values()))
    assert "example.com" not in stored.lower()
    assert "192.0.2.9" not in stored
    shown = opened(entry)
    assert (shown.actor_label, shown.address) == ("Ada@Example.com", "192.0.2.9")


@pytest.mark.parametrize("kind", ["credential", "license", "activation", "system"])
def test_what_a_program_did_stands_open(kind: str) -> None:
    entry = act(by=make_actor(kind=kind, label="build server", address="192.0.2.9"))

    assert (entry.actor_label, entry.address, entry.personal) == ("build server", "192.0.2.9", None)


def test_an_address_in_what_changed_is_its_persons_not_the_actors() -> None:
    entry = act(email="New@acme.example")

    assert (entry.before["email"], entry.after["email"]) == ("changed", "changed")
    assert opened(entry).after["email"] == "New@acme.example"
    erase("new@acme.example")
    shown = opened(AuditEntry.objects.get(pk=entry.pk))
    assert (shown.before["email"], shown.after["email"]) == ("old@acme.example", "erased")
    assert shown.actor_label == "Ada@Example.com"


def test_erasing_a_person_shows_nothing_of_them_any_more_and_of_others_all() -> None:
    entry, other = act(), act(by=make_actor(id="8", label="bob@example.com"))

    assert (erase(), erase()) == (1, 0)

    assert (opened(entry).actor_label, entry.address, entry.actor_id) == ("erased", "erased", "7")
    assert opened(other).actor_label == "bob@example.com"
    assert not persons.of("ada@example.com").exists()
    again = opened(act())  # who comes back is another person to us
    assert again.actor_label == "Ada@Example.com"
    assert opened(AuditEntry.objects.get(pk=entry.pk)).actor_label == "erased"


def test_the_chain_is_whole_before_and_after_here_and_at_the_auditors(tmp_path: Path) -> None:
    act()
    (tmp_path / "jwks.json").write_text(json.dumps(crypto.jwks()))
    shutil.copy(VERIFIER, tmp_path / "verify.py")

    def whole(export: str) -> list[str]:
        chain.turn(at=timezone.now())
        checkpoints.make(at=timezone.now(), asked=True)
        verifying.export(to=tmp_path / export, by=BY, at=timezone.now())
        command = [sys.executable, "-I", "verify.py", export, "--keys", "jwks.json"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
        report = verifying.verify(at=timezone.now())
        assert report.good
        assert report.checkpoints
        return (tmp_path / export).read_text().splitlines()

    before = whole("before.jsonl")
    erase()
    after = whole("after.jsonl")

    links = [line for line in before if '"number"' in line]
    assert links
    assert links == [line for line in after if '"number"' in line][: len(links)]
    assert not any("example.com" in line.lower() for line in links)


def test_what_was_moved_to_another_entry_or_name_does_not_open() -> None:
    entry, other = act(), act()
    assert entry.personal
    assert other.personal

    moved = {entry.pk: other.personal, other.pk: {"address": other.personal["actor_label"], "actor_label": "nonsense"}}

    assert {value for values in persons.opened(moved).values() for value in values.values()} == {"cannot be read"}


@pytest.mark.django_db(transaction=True)
def test_it_asks_for_a_person_once_and_forgets_within_two_seconds(
    django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    act()
    with django_assert_num_queries(0):
        persons.key_of(mail="ada@example.com", user="7", at=AT)

    erase()  # here: at once
    with django_assert_num_queries(2):
        persons.key_of(mail="ada@example.com", user="7", at=AT)
    Person.objects.all().delete()  # elsewhere
    monkeypatch.setattr("time.monotonic", lambda now=persons.time.monotonic: now() + persons.KEPT_SECONDS)
    with django_assert_num_queries(2):
        persons.key_of(mail="ada@example.com", user="7", at=AT)
    for number in range(persons.KEPT + 5):
        persons._remember((str(number), ""), crypto.data_key("x", bytes(32)))
    assert len(persons._known) == persons.KEPT


@pytest.mark.django_db(transaction=True)
def test_it_remembers_no_key_of_a_change_that_was_undone() -> None:
    class Undone(Exception):
        pass

    with pytest.raises(Undone), transaction.atomic():
        act()
        raise Undone

    assert not Person.objects.exists()
    assert opened(act()).actor_label == "Ada@Example.com"


def test_a_person_is_found_and_read_after_a_rotation(settings: Any, tmp_path: Path) -> None:
    settings.KEYRING, settings.KEYRING_FILE = "", str(tmp_path / "ring.json")
    crypto.write(crypto.KeyRing.generate(), tmp_path / "ring.json")
    entry, gone = act(), act(by=make_actor(label="bob@example.com"))
    erase("bob@example.com")
    former = [crypto.ring().primary(purpose).kid for purpose in ("seal", "digest")]
    for purpose in ("seal", "digest"):
        keyring.promote(kid=keyring.add(purpose=purpose, at=AT).kid, at=AT)  # type: ignore[arg-type]

    assert persons.of("ada@example.com").count() == 1
    list(keyring.reencrypt(at=AT))
    for kid in former:
        keyring.disable(kid=kid, at=AT)

    assert persons.of("ada@example.com").count() == 1
    assert (opened(entry).actor_label, opened(gone).actor_label) == ("Ada@Example.com", "erased")
    crypto.forget()


def test_a_reading_that_cannot_be_sealed_is_written_without_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    customer = make_customer()
    only = [key for key in crypto.ring().keys if key.purpose != "seal"]
    monkeypatch.setattr(crypto, "_loaded", crypto.KeyRing(only))

    entry = audit.saw(row=customer, by=ADA, at=AT)

    assert (entry.actor_id, entry.actor_label, entry.address, entry.personal) == ("7", "", None, None)


def test_a_key_that_was_altered_by_hand_keeps_nobody_from_acting() -> None:
    entry = act()
    Person.objects.update(sealed=crypto.seal(bytes(40), crypto.Place("x", "1", "sealed")))

    again = act()

    assert opened(again).actor_label == "Ada@Example.com"
    assert opened(entry).actor_label == "cannot be read"


def test_what_a_model_calls_personal_is_never_written_open() -> None:
    customer = make_customer()
    with transaction.atomic():
        entry = audit.record(
            action="t", by=BY, on=customer, at=AT, before={"email": ""}, after={"email": "x@y.example", "code": "c"}
        )

    assert (entry.before, entry.after) == ({"email": "changed"}, {"email": "changed", "code": "c"})
    assert set(entry.personal or {}) == {"after.email"}
