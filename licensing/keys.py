"""License keys: how one is made, found again and revealed. Their format stands in `keyformat`.

A key is never stored as it is: a keyed digest finds it, a sealed value shows it, once per recorded reveal.
"""

from datetime import datetime

from django.db import transaction

from licensing import audit, crypto, snapshots
from licensing.audit import Actor
from licensing.crypto import Place
from licensing.errors import Invalid, Missing
from licensing.ids import uuid7
from licensing.keyformat import Mistyped, generate, parse, written
from licensing.models import License, LicenseKey

__all__ = ["Mistyped", "create", "digests", "find", "look_up", "parse", "reveal", "rotate"]


def digests(text: str) -> list[bytes]:
    """Return the digests a typed key may be stored under. Raises `Mistyped` before any database is asked."""
    return crypto.digests(parse(text).encode(), kind="license-key")


def find(text: str) -> License:
    """Return the license a typed key names. Raises `Mistyped`; `Missing` for an unknown or retired key."""
    found = (
        LicenseKey.objects.filter(digest__in=digests(text), retired_at=None)
        .select_related("license", "license__customer", "license__plan_revision__plan")
        .first()
    )
    if found is None:
        raise Missing("There is no license with this key.")
    return found.license


def look_up(text: str, *, by: Actor, at: datetime) -> LicenseKey:
    """Return the row of a key somebody pasted, a retired one too, and record that its license was looked up.

    Raises `Mistyped`; `Missing` for an unknown key.
    """
    rows = LicenseKey.objects.filter(digest__in=digests(text)).select_related("license")
    with transaction.atomic():
        row = rows.first()
        if row is None:
            raise Missing("There is no license with this key.")
        audit.record(action="license.looked_up", by=by, on=row.license, at=at, after={"key_last5": row.last5})
    return row


def create(*, license: License, at: datetime) -> str:
    """Make the license's key and return it, in the caller's transaction. It is not stored as it is returned."""
    text = generate()
    canonical = parse(text).encode()
    row = LicenseKey(id=uuid7(), license=license, created_at=at, last5=text[-5:])
    row.digest_kid, row.digest = crypto.digest(canonical, kind="license-key")
    row.sealed = crypto.seal(canonical, place_of(row))
    row.save(force_insert=True)
    return text


def rotate(*, license: License, by: Actor, reason: str, at: datetime) -> str:
    """Retire the license's key and return its new one. The old one names nothing from now on.

    Raises:
        Missing: the license has no live key to replace; a draft gets its key when it is issued.
    """
    with transaction.atomic():
        locked = License.objects.select_for_update(no_key=True).get(pk=license.pk)
        old = LicenseKey.objects.filter(license=locked, retired_at=None).first()
        if old is None:
            raise Missing("This license has no key.")
        LicenseKey.objects.filter(license=locked, retired_at=None).update(retired_at=at)
        text = create(license=locked, at=at)
        locked.revision += 1
        locked.updated_at = at
        locked.save()
        snapshots.changed(locked.pk, locked.revision)
        audit.record(
            action="key.rotated",
            by=by,
            on=locked,
            at=at,
            before={"key_last5": old.last5},
            after={"key_last5": text[-5:]},
            reason=reason,
        )
    return text


def reveal(*, license: License, by: Actor, reason: str, at: datetime) -> str:
    """Return the license's key, and record that it was revealed, to whom and why.

    Raises:
        Missing: the license has no live key.
        Invalid: no reason is given.
    """
    if not reason.strip():
        raise Invalid("Say why the key is shown.", pointer="/reason")
    with transaction.atomic():
        row = LicenseKey.objects.filter(license=license, retired_at=None).first()
        if row is None:
            raise Missing("This license has no key.")
        audit.record(action="key.revealed", by=by, on=license, at=at, after={"key_last5": row.last5}, reason=reason)
        return written(crypto.unseal(row.sealed, place_of(row)).decode())


def place_of(row: LicenseKey) -> Place:
    """Return where the sealed value of this row belongs."""
    return Place(LicenseKey._meta.db_table, str(row.pk), "sealed")
