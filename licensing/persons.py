"""A key of their own for each person: the audit record seals under it what it says of them.

Entries are never changed, and the chain hashes them as they stand, sealed. So a person is erased by destroying their
key: what was sealed under it opens nowhere any more, and the chain stays whole. Source: ADR 0022.

It does not know which values are personal (`audit`, and `PERSONAL` of the models) or where else a person is named.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from licensing import crypto, ids
from licensing.crypto import Key, KeyRingError, NotAuthentic, Place
from licensing.models import Person

KIND = "person"  # of the digest
KEPT = 1_000  # persons whose keys a process remembers
KEPT_SECONDS = 2.0  # and for how long: what another process erased is forgotten within it
ERASED = "erased"
UNREADABLE = "cannot be read"


@dataclass(frozen=True, slots=True)
class _Known:
    key: Key
    until: float


_known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
_lock = threading.Lock()


def key_of(*, mail: str, user: str = "", at: datetime) -> Key:
    """Return the data key of the person with this address, made if there is none. Costs at most a read and an insert,
    nothing where this process met the person in the last `KEPT_SECONDS`.

    Call it in the transaction of what is written under the key: either both stay or neither.
    Raises `KeyRingError` when the ring cannot open or seal it.
    """
    mail = folded(mail)
    found = _known.get((mail, user))
    if found is not None and found.until > time.monotonic():
        return found.key
    row = of(mail).filter(user=user).order_by("id").last() or _make(mail, user, at)
    try:
        key = _opened(row)[0]
    except NotAuthentic:  # altered by hand: nobody can act under it, and nobody is to be kept from acting
        key = _opened(_make(mail, user, at))[0]
    # Only once it is sure to stay: the row of a change that is undone goes with it.
    transaction.on_commit(lambda: _remember((mail, user), key))
    return key


def enrolled(*, mail: str, at: datetime) -> Person:
    """Return a row of the person with this address, made if there is none: what an entry about them is on."""
    return of(mail).order_by("id").first() or _make(folded(mail), "", at)


def of(mail: str) -> QuerySet[Person]:
    """Return the rows found by an address."""
    return Person.objects.filter(digest__in=crypto.digests(folded(mail).encode(), kind=KIND))


def folded(mail: str) -> str:
    """Return an address in the one form persons are found by."""
    return mail.strip().lower()


def seal(values: Mapping[str, str], *, under: Key, entry: UUID) -> dict[str, str]:
    """Return these values of an audit entry sealed; each opens only in that entry, under its name."""
    return {name: crypto.seal_under(under, value.encode(), _place(entry, name)) for name, value in values.items()}


def opened(sealed: Mapping[UUID, Mapping[str, str]]) -> dict[UUID, dict[str, str]]:
    """Return what was sealed in audit entries, by their ids: `ERASED` where the person is erased, `UNREADABLE` where it
    was altered or the ring lacks a key. Always asks the database: what was erased is erased at once."""
    whose = {_whose(value) for values in sealed.values() for value in values.values()}
    keys: dict[str, Key | None] = {}
    for row in Person.objects.filter(pk__in=[pk for pk in whose if pk]):
        try:
            keys[row.pk.hex] = _opened(row)[0] if row.sealed else None
        except (KeyRingError, NotAuthentic):
            continue
    return {
        entry: {name: _open(value, keys, _place(entry, name)) for name, value in values.items()}
        for entry, values in sealed.items()
    }


def erase(*, rows: Iterable[Person], at: datetime) -> int:
    """Destroy the keys of these persons, in the caller's transaction; return how many had one."""
    gone = Person.objects.filter(pk__in=[row.pk for row in rows], erased_at=None).update(
        sealed="", digest=None, digest_kid="", user="", erased_at=at
    )
    forget()
    transaction.on_commit(forget)
    return gone


def forget() -> None:
    """Remember no key of a person in this process."""
    with _lock:
        _known.clear()


def digested_anew(row: Person) -> tuple[str, bytes]:
    """Return the kid and digest of a person's address under the primary key: for a rotation."""
    return crypto.digest(_opened(row)[1].encode(), kind=KIND)


def _make(mail: str, user: str, at: datetime) -> Person:
    row_id, material = ids.uuid7(), os.urandom(32)
    kid, digest = crypto.digest(mail.encode(), kind=KIND)
    sealed = crypto.seal(material + mail.encode(), _of_row(row_id))
    return Person.objects.create(id=row_id, created_at=at, digest_kid=kid, digest=digest, sealed=sealed, user=user)


def _opened(row: Person) -> tuple[Key, str]:
    plain = crypto.unseal(row.sealed, _of_row(row.pk))
    return crypto.data_key(row.pk.hex, plain[:32]), plain[32:].decode()


def _remember(who: tuple[str, str], key: Key) -> None:
    with _lock:
        _known[who] = _Known(key, time.monotonic() + KEPT_SECONDS)
        _known.move_to_end(who)
        while len(_known) > KEPT:
            _known.popitem(last=False)


def _open(value: Any, keys: Mapping[str, Key | None], place: Place) -> str:
    whose = _whose(value)
    if whose is None or whose.hex not in keys:
        return UNREADABLE
    key = keys[whose.hex]
    if key is None:
        return ERASED
    try:
        return crypto.unseal_under(key, value, place).decode()
    except NotAuthentic:
        return UNREADABLE


def _whose(value: Any) -> UUID | None:
    try:
        return UUID(str(value).split(".")[1])
    except (ValueError, IndexError):
        return None


def _of_row(row_id: UUID) -> Place:
    return Place(Person._meta.db_table, str(row_id), "sealed")


def _place(entry: UUID, name: str) -> Place:
    return Place("licensing_auditentry", str(entry), name)
