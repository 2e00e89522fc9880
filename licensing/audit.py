"""The audit record: one entry per change, reveal or read that matters, in the transaction of what it records.

Rule functions call `record` themselves. It does not chain entries: `chain` does, once they are committed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import models, transaction

from licensing import chain, crypto, events, keyformat
from licensing.models import AuditEntry


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
    """Write one entry. `before` and `after` hold only what changed, never a key or secret.

    Raises:
        TransactionManagementError: outside a transaction, where entry and change could part.
    """
    connection = transaction.get_connection()
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("An audit entry is written in the transaction of its change.")
    crypto.require_whole()  # with a key of the ring missing nothing is changed, and each change ends here
    entry = _write(
        action=action,
        by=by,
        at=at,
        object_kind=on._meta.model_name or "",
        object_id=str(on.pk),
        license_id=_owner(on, "license"),
        customer_id=_owner(on, "customer"),
        before=plain(before or {}),
        after=plain(after or {}),
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


def _write(*, by: Actor, at: datetime, **facts: Any) -> AuditEntry:
    transaction.on_commit(chain.written)
    return AuditEntry.objects.create(
        created_at=at,
        at=at,
        actor_kind=by.kind,
        actor_id=by.id,
        actor_label=by.label,
        actor_role=by.role,
        address=by.address,
        request_id=by.request_id,
        **facts,
    )


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
