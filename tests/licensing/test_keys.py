"""License keys: found by digest, shown from sealed, replaced; never kept as they are."""

from dataclasses import replace

import pytest
from django.db import IntegrityError, transaction

from licensing import crypto, keys, lifecycle
from licensing.crypto import KeyRing, NotAuthentic, make_key
from licensing.errors import Invalid, Missing
from licensing.keyformat import generate, parse
from licensing.keys import Mistyped
from licensing.models import AuditEntry, License, LicenseKey
from tests.factories import AT, BY, make_actor, make_customer, make_license, make_license_and_key, make_revision, opened

pytestmark = pytest.mark.django_db


def typo(key: str) -> str:
    return key[:-1] + ("A" if key[-1] != "A" else "B")


def test_it_finds_a_license_by_its_key_however_it_is_typed():
    license, key = make_license_and_key()

    for typed in (key, key.lower(), key.replace("-", " "), key.replace("-", "")):
        assert keys.find(typed) == license


def test_it_finds_nothing_by_an_unknown_key():
    make_license()

    with pytest.raises(Missing):
        keys.find(generate())


def test_it_asks_no_database_for_a_mistyped_key(django_assert_num_queries):
    _, key = make_license_and_key()

    with django_assert_num_queries(0), pytest.raises(Mistyped):
        keys.find(typo(key))


def test_it_asks_once_for_a_key(django_assert_num_queries):
    _, key = make_license_and_key()

    with django_assert_num_queries(1):
        found = keys.find(key)
        assert found.customer.name
        assert found.plan_revision.plan.name


def test_it_keeps_a_digest_and_a_sealed_value_and_nothing_of_the_key_but_five_characters():
    license, key = make_license_and_key()
    row = license.keys.get()

    kept = repr([str(getattr(row, field.attname)) for field in row._meta.concrete_fields])

    assert len(row.digest) == 32
    assert row.last5 == key[-5:]
    for form in (key, key.lower(), parse(key), parse(key)[4:], parse(key)[:14]):
        assert form not in kept
    assert str(row) == f"…{key[-5:]}"


def test_it_shows_a_key_and_says_to_whom_and_why():
    license, key = make_license_and_key()
    by = make_actor(address="192.0.2.1", request_id="request-1")

    shown = keys.reveal(license=license, by=by, reason="lost their mail", at=AT)

    entry = AuditEntry.objects.get(action="key.revealed")
    assert shown == key
    assert (entry.license_id, entry.customer_id, entry.at) == (license.pk, license.customer_id, AT)
    entry = opened(entry)
    assert (entry.actor_kind, entry.actor_label, entry.address) == (
        "staff",
        "staff@example.com",
        "192.0.2.1",
    )
    assert (entry.reason, entry.after, entry.request_id) == ("lost their mail", {"key_last5": key[-5:]}, "request-1")


@pytest.mark.parametrize("reason", ["", " ", "\n\t"])
def test_it_shows_no_key_without_a_reason(reason):
    license = make_license()

    with pytest.raises(Invalid):
        keys.reveal(license=license, by=BY, reason=reason, at=AT)

    assert not AuditEntry.objects.filter(action="key.revealed").exists()


def test_it_shows_no_key_of_a_license_without_one():
    draft = lifecycle.prepare(customer=make_customer(), plan_revision=make_revision(), by=BY, at=AT)

    with pytest.raises(Missing):
        keys.reveal(license=draft, by=BY, reason="test", at=AT)


def test_it_shows_no_key_that_was_moved_from_another_license():
    one, two = make_license(), make_license()
    stolen = one.keys.get().sealed
    LicenseKey.objects.filter(license=two).update(sealed=stolen)

    with pytest.raises(NotAuthentic):
        keys.reveal(license=two, by=BY, reason="test", at=AT)
    assert not AuditEntry.objects.filter(action="key.revealed").exists()


def test_it_replaces_a_key_and_the_old_one_names_nothing():
    license, old = make_license_and_key()
    revision = license.revision

    new = keys.rotate(license=license, by=BY, reason="leaked", at=AT)

    entry = AuditEntry.objects.get(action="key.rotated")
    assert keys.find(new) == license
    with pytest.raises(Missing):
        keys.find(old)
    assert keys.reveal(license=license, by=BY, reason="test", at=AT) == new
    assert (entry.before, entry.after) == ({"key_last5": old[-5:]}, {"key_last5": new[-5:]})
    assert License.objects.get(pk=license.pk).revision > revision


def test_it_replaces_no_key_of_a_license_that_has_none_yet():
    draft = lifecycle.prepare(customer=make_customer(), plan_revision=make_revision(), by=BY, at=AT)

    with pytest.raises(Missing):
        keys.rotate(license=draft, by=BY, reason="test", at=AT)

    issued, key = lifecycle.issue_prepared(license=draft, by=BY, at=AT)
    assert keys.find(key) == issued


def test_it_has_the_database_refuse_a_second_live_key_and_a_key_twice():
    license = make_license()
    row = license.keys.get()

    with pytest.raises(IntegrityError), transaction.atomic():
        keys.create(license=license, at=AT)
    with pytest.raises(IntegrityError), transaction.atomic():
        LicenseKey.objects.create(
            license=make_license(), created_at=AT, digest_kid="k", digest=row.digest, sealed="x", retired_at=AT
        )


def test_it_finds_and_shows_an_old_key_after_the_ring_was_rotated(settings):
    license, key = make_license_and_key()
    old = crypto.ring()
    former = [replace(each, state="active") for each in old.keys]
    settings.KEYRING = KeyRing([*former, *(make_key(purpose, state="primary") for purpose in crypto.PURPOSES)]).dump()
    crypto.forget()
    try:
        assert keys.find(key) == license
        assert keys.reveal(license=license, by=BY, reason="test", at=AT) == key
    finally:
        settings.KEYRING = ""
        crypto.forget()


def test_it_never_digests_a_license_key_as_something_else():
    key = generate()

    assert keys.digests(key) == crypto.digests(parse(key).encode(), kind="license-key")
    assert not set(keys.digests(key)) & set(crypto.digests(parse(key).encode(), kind="credential"))
