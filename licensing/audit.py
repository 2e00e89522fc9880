"""The audit record: one entry per change, reveal or read that matters, in the transaction of what it records.

Rule functions call `record` themselves. It does not chain entries: `chain` does, once they are committed.

What an entry says of a person is sealed under that person's key (`persons`), and only there: who acted where it was a
person, from which address, and whatever `PERSONAL` of a model names. `opened` shows it to whoever may read it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import models, transaction

from licensing import chain, crypto, events, ids, keyformat, persons
from licensing.crypto import KeyRingError
from licensing.models import AuditEntry

PERSONS = ("staff", "member")  # kinds of actor that are a person; the others are programs and machines
HIDDEN = "changed"  # what stands in the place of a personal value


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: `kind` is staff, member, credential, license or system."""

    kind: str
    id: str = ""
    label: str = ""
    role: str = ""
    address: str | None = None
    request_id: str = ""


def system(job: str) -> Actor:
    """Return the actor of a job of ours."""
    return Actor(kind="system", id=job, label=job)


def record(
    *,
    action: str,
    by: Actor,
    on: models.Model,
    at: datetime,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str = "",
) -> AuditEntry:
    """Write one entry. `before` and `after` hold only what changed, never a key or secret. What is personal in them by
    the model's `PERSONAL` is left out, and where it is an address, sealed under the key of whose it is.

    Raises:
        TransactionManagementError: outside a transaction, where entry and change could part.
    """
    connection = transaction.get_connection()
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("An audit entry is written in the transaction of its change.")
    crypto.require_whole()  # with a key of the ring missing nothing is changed, and each change ends here
    told, hidden = {"before": before or {}, "after": after or {}}, {}
    for name in getattr(on, "PERSONAL", ()):
        for side, values in told.items():
            if name in values:
                hidden[f"{side}.{name}"] = str(values[name] or "")
                told[side] = {**values, name: HIDDEN}
    entry = _write(
        action=action,
        by=by,
        at=at,
        hidden=hidden,
        object_kind=on._meta.model_name or "",
        object_id=str(on.pk),
        license_id=_owner(on, "license"),
        customer_id=_owner(on, "customer"),
        before=plain(told["before"]),
        after=plain(told["after"]),
        reason=keyformat.redact(reason),
    )
    events.told(entry)
    return entry


def saw(*, row: models.Model, by: Actor, at: datetime) -> AuditEntry:
    """Write that a person was shown the personal data of a row. While a key of the ring is missing too: it changes
    nothing."""
    with transaction.atomic():
        return _write(
            action=f"{row._meta.model_name}.seen",
            by=by,
            at=at,
            object_kind=row._meta.model_name or "",
            object_id=str(row.pk),
            license_id=_owner(row, "license"),
            customer_id=_owner(row, "customer"),
        )


def saw_list(*, rows: Sequence[models.Model], by: Actor, at: datetime) -> AuditEntry | None:
    """Write that a person was shown a list with the personal data of these rows, of one model: one entry, by their ids.
    None where there was no row."""
    if not rows:
        return None
    kind = rows[0]._meta.model_name or ""
    with transaction.atomic():
        return _write(
            action=f"{kind}.listed",
            by=by,
            at=at,
            object_kind=kind,
            object_id="list",
            after={"rows": [str(row.pk) for row in rows]},
        )


def exported(*, kind: str, by: Actor, at: datetime, after: Mapping[str, Any]) -> AuditEntry:
    """Write that rows of a kind left the database as a file, also while a key of the ring is missing. `after` says
    where to and how many."""
    with transaction.atomic():
        return _write(action=f"{kind}.exported", by=by, at=at, object_kind=kind, object_id="list", after=plain(after))


def opened(entries: Iterable[AuditEntry]) -> list[AuditEntry]:
    """Return these entries as somebody may read them, with what is sealed in them in its place: `persons.ERASED` where
    the person is erased. One query for all. They are no longer what is stored: never save one."""
    rows = list(entries)
    found = persons.opened({row.pk: row.personal for row in rows if isinstance(row.personal, dict)})
    for row in rows:
        for name, value in found.get(row.pk, {}).items():
            side, _, inside = name.partition(".")
            if inside:
                setattr(row, side, {**getattr(row, side), inside: value})
            else:
                setattr(row, name, value)
    return rows


def _write(*, by: Actor, at: datetime, hidden: Mapping[str, str] | None = None, **facts: Any) -> AuditEntry:
    transaction.on_commit(chain.written)
    entry = AuditEntry(
        id=ids.uuid7(),
        created_at=at,
        at=at,
        actor_kind=by.kind,
        actor_id=by.id,
        actor_role=by.role,
        request_id=by.request_id,
        **facts,
    )
    if by.kind not in PERSONS:
        entry.actor_label, entry.address = by.label, by.address
    entry.personal = _sealed(entry, by, hidden or {}) or None
    entry.save(force_insert=True)
    return entry


def _sealed(entry: AuditEntry, by: Actor, hidden: Mapping[str, str]) -> dict[str, str]:
    """Return what is personal in an entry, sealed. What the ring cannot seal right now is left out, never in clear:
    `actor_id` still says who it was."""
    whose: dict[tuple[str, str], dict[str, str]] = {}
    if by.kind in PERSONS and by.label:
        own = {"actor_label": by.label, "address": by.address or ""}
        whose[by.label, by.id] = {name: value for name, value in own.items() if value}
    for name, value in hidden.items():
        if "@" in value and not value.split()[1:]:
            whose.setdefault((value, ""), {})[name] = value
    found: dict[str, str] = {}
    for (mail, user), values in whose.items():
        try:
            found |= persons.seal(values, under=persons.key_of(mail=mail, user=user, at=entry.at), entry=entry.pk)
        except KeyRingError:
            continue
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what of `old` is different in `new`, and how it is there."""
    changed = [name for name in new if old.get(name) != new[name]]
    return {name: old.get(name) for name in changed}, {name: new[name] for name in changed}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON can hold them, the same value always in the same words."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int():
            return value
        case str():
            return keyformat.redact(value)  # somebody may have pasted a key where words belong
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal() | UUID():
            return str(value)
        case models.Model():
            return str(value.pk)
        case Mapping():
            return plain(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            raise TypeError(f"An audit entry cannot hold a {type(value).__name__}.")


def _owner(on: models.Model, kind: str) -> UUID | None:
    if on._meta.model_name == kind:
        return on.pk
    found = getattr(on, f"{kind}_id", None)
    if found is None and kind == "customer" and hasattr(on, "license"):
        found = getattr(on.license, "customer_id", None)
    return found
