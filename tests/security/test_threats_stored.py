"""Threats to what is stored and kept, each by its number in docs/threat-model.md."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from licensing import activations, anomalies, crypto, feed, keyring, keys, lifecycle, proofs, seats, snapshots
from licensing.crypto import KeyRing
from licensing.decision import Scope, decide
from licensing.keyformat import generate, parse
from licensing.models import Anomaly, Hold, License, LicenseKey
from tests.concurrency.together import kinds, together
from tests.factories import (
    BY,
    make_credential,
    make_customer,
    make_license,
    make_license_and_key,
    make_plan,
    make_revision,
)
from tests.licensing.test_proofs import by_hand, read
from tests.servers import free_port

pytestmark = pytest.mark.django_db
NOW = timezone.now()
YEAR = timedelta(days=365)

# --- T13: somebody writes into the database ---------------------------------------------------------

EDITS: dict[str, Callable[[License, License], dict[str, Any]]] = {
    "more seats": lambda mine, other: {"seat_limit": 1_000, "seats_ceiling": 1_000},
    "seats without limit": lambda mine, other: {"seat_limit": None, "seats_ceiling": None},
    "more machines": lambda mine, other: {"activation_limit": 1_000, "activations_ceiling": 1_000},
    "machines without limit": lambda mine, other: {"activation_limit": None, "activations_ceiling": None},
    "a later end": lambda mine, other: {"expires_at": NOW + 9 * YEAR},
    "no end": lambda mine, other: {"expires_at": None, "grace_until": None},
    "a longer grace": lambda mine, other: {"grace_until": NOW + 9 * YEAR},
    "a longer maintenance": lambda mine, other: {"maintenance_until": NOW + 9 * YEAR},
    "an earlier start": lambda mine, other: {"starts_at": NOW - 9 * YEAR},
    "another scheme": lambda mine, other: {"scheme": "usage"},
    "another plan": lambda mine, other: {"plan_revision": other.plan_revision},
    "another product": lambda mine, other: {"product": other.product},
    "another customer": lambda mine, other: {"customer": other.customer},
    "another's proof": lambda mine, other: {"terms_kid": other.terms_kid, "terms_mac": other.terms_mac},
    "no proof": lambda mine, other: {"terms_kid": "", "terms_mac": None},
    "an empty proof": lambda mine, other: {"terms_mac": b""},
    "an unknown key": lambda mine, other: {"terms_kid": "digest-20200101-00000000"},
}


@pytest.mark.parametrize("edit", EDITS)
def test_t13_it_notices_an_edit_by_hand_at_read(edit: str) -> None:
    mine, other = make_license(at=NOW), make_license(at=NOW)
    assert read(mine) is not None

    by_hand(mine, **EDITS[edit](mine, other))

    with pytest.raises(proofs.TermsAltered):
        read(mine)
    assert read(other) is not None
    anomalies.record_waiting()
    found = Anomaly.objects.get(rule="license_terms_altered")
    assert (found.severity, found.object_id, found.license_id) == ("critical", str(mine.pk), mine.pk)


def test_t13_it_notices_a_revocation_undone_by_hand() -> None:
    license = make_license(at=NOW)
    lifecycle.revoke(license=license, by=BY, at=NOW, reason="fraud")
    picture = read(license)
    assert picture.snapshot.revoked

    by_hand(license, revoked_at=None, swept_status="active", due_at=license.due_at)

    with pytest.raises(proofs.TermsAltered):
        read(license)


def test_t13_it_notices_a_hold_lifted_by_hand() -> None:
    license = make_license(at=NOW)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=NOW)
    assert read(license).snapshot.holds == ("unpaid",)

    Hold.objects.filter(license=license).update(lifted_at=timezone.now())

    with pytest.raises(proofs.TermsAltered):
        read(license)


def test_t13_it_notices_the_swap_of_two_rows_terms() -> None:
    names = ("seat_limit", "seats_ceiling", "expires_at", "plan_revision_id", "terms_kid", "terms_mac")
    customer, plan = make_customer(), make_plan()
    small = make_license(customer=customer, plan_revision=make_revision(plan=plan, seat_limit=1), at=NOW)
    large = make_license(customer=customer, plan_revision=make_revision(plan=plan, seat_limit=500), at=NOW)
    [values] = License.objects.filter(pk=large.pk).values(*names)

    by_hand(small, **values)

    with pytest.raises(proofs.TermsAltered):
        read(small)
    assert read(large).snapshot.seat_limit == 500


# --- T6: a race for the last one --------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_t06_the_last_seat_and_the_last_machine_are_given_once() -> None:
    license = make_license(seat_limit=1, activation_limit=1, at=NOW)

    got = together(
        *(
            lambda n=n: seats.assign(license=license, holder=f"person-{n}@example.com", by=BY, at=NOW)  # type: ignore[misc]
            for n in range(20)
        ),
        *(
            lambda n=n: activations.activate(license=license, fingerprint=f"machine-{n:024}", by=BY, at=NOW)  # type: ignore[misc]
            for n in range(20)
        ),
    )

    assert kinds(got) == {"Assigned": 1, "NoSeatAvailable": 19, "Activated": 1, "ActivationLimitReached": 19}
    # Refused by the rule, which knows how many there are. The database's own CHECK behind it would refuse as well, and
    # then the rule can only say that something is changing.
    refusals = [str(each) for each in got if isinstance(each, Exception)]
    assert [said for said in refusals if "changing right now" in said] == []
    license.refresh_from_db()
    assert (license.seats_used, license.activations_used) == (1, 1)


# --- T12: a copy of the database --------------------------------------------------------------------


def test_t12_a_copy_of_the_database_gives_no_key_away() -> None:
    made = [make_license_and_key(at=NOW) for _ in range(5)]
    _, secret = make_credential()
    rows = list(LicenseKey.objects.all())

    dump = everything()
    assert made[0][0].pk.hex in dump
    for _, key in made:
        for form in (key, parse(key), *(digest for digest in _plain_digests(parse(key)))):
            assert form.lower() not in dump
    assert secret.lower() not in dump
    crypto.use(KeyRing.generate())  # what the thief has to work with
    try:
        for row, (_, key) in zip(rows, made, strict=True):
            assert bytes(row.digest) not in crypto.digests(parse(key).encode(), kind="license-key")
            with pytest.raises(crypto.LicensingError):
                crypto.unseal(row.sealed, keys.place_of(row))
    finally:
        crypto.forget()


def everything() -> str:
    """Return every value of every table, as one text in lower case; bytes in hexadecimal."""
    found = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')
            for row in cursor.fetchall():
                found += [value.hex() if isinstance(value, bytes | memoryview) else str(value) for value in row]
    return "\n".join(found).lower().replace("-", "")


def _plain_digests(text: str) -> list[str]:
    """Return what somebody without the ring could compute of a key, to look it up by."""
    return [hashlib.new(name, text.encode()).hexdigest() for name in ("md5", "sha1", "sha256", "sha512")]


# --- T21, T22: what is kept, and what is away -------------------------------------------------------


def test_t21_a_revoked_license_is_refused_at_the_next_question() -> None:
    license, key = make_license_and_key(at=NOW)
    digests = keys.digests(key)

    def code() -> str:
        found = snapshots.by_key(digests, Scope())
        return str(decide(found.picture.snapshot if found else None, Scope(), timezone.now()).code)

    assert [code() for _ in range(3)] == ["valid"] * 3  # kept by now
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=NOW)
    assert code() == "held"
    lifecycle.lift(license=license, reason="unpaid", by=BY, at=NOW)
    assert code() == "valid"
    lifecycle.revoke(license=license, by=BY, at=NOW, reason="fraud")
    assert [code() for _ in range(3)] == ["revoked"] * 3


@pytest.mark.parametrize("redis", ["away", "none"])
def test_t22_without_redis_good_is_good_and_bad_is_bad(redis: str, settings: Any) -> None:
    (_, good), (gone, bad), (held, stopped) = (make_license_and_key(at=NOW) for _ in range(3))
    lifecycle.revoke(license=gone, by=BY, at=NOW, reason="fraud")
    lifecycle.hold(license=held, reason="unpaid", by=BY, at=NOW)
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0" if redis == "away" else ""
    feed.forget()

    def code(key: str) -> str:
        found = snapshots.by_key(keys.digests(key), Scope())
        return str(decide(found.picture.snapshot if found else None, Scope(), timezone.now()).code)

    for _ in range(3):
        assert [code(key) for key in (good, bad, stopped, generate())] == ["valid", "revoked", "held", "not_found"]
    feed.forget()


# --- T24: the key ring is lost ----------------------------------------------------------------------


def test_t24_a_lost_ring_stops_changes_is_named_and_comes_back(tmp_path: Path, settings: Any) -> None:
    settings.KEYRING, settings.KEYRING_FILE = "", str(tmp_path / "ring.json")
    crypto.write(KeyRing.generate(), tmp_path / "ring.json")
    crypto.forget()
    license, key = make_license_and_key(at=NOW)
    machine = activations.activate(license=license, fingerprint="f" * 32, by=BY, at=NOW, public_key=b"k" * 32)
    keyring.start(at=NOW)
    keyring.backup(to=tmp_path / "backup.json", passphrase="correct horse battery staple", at=NOW)
    whole = crypto.ring()
    try:
        crypto.write(KeyRing([each for each in whole.keys if each.purpose == "sign"]), tmp_path / "ring.json")
        problems = keyring.start(at=NOW)

        assert {each.kid for each in whole.keys if each.purpose != "sign"} <= set(" ".join(problems).split("'"))
        with pytest.raises(crypto.KeyRingIncomplete):
            lifecycle.renew(license=license, by=BY, at=NOW)
        feed.forget()
        found = snapshots.by_machine(machine.activation.pk, Scope())  # nothing sealed or digested on its way
        assert found is not None
        assert found.picture.machine is not None

        keyring.restore(
            file_=tmp_path / "backup.json", passphrase="correct horse battery staple", at=NOW, replacing=True
        )
        assert keyring.start(at=NOW) == []
        assert keys.find(key) == license
        lifecycle.renew(license=license, by=BY, at=NOW)
    finally:
        crypto.refuse_writes("")
        settings.KEYRING_FILE = ""
        crypto.forget()
