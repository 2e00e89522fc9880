"""Snapshots: the frozen picture of a license, with what a scope asks about it, in one query.

No ORM object is made: this is the hot path (PERFORMANCE "What follows"). Nothing is cached here yet, so an answer
is never older than the query.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import orjson
from django.db import connection

from licensing.decision import Right, Scope, Snapshot

_QUERY = """
SELECT l.id, l.customer_id, product.code, plan.code, r.number, l.scheme, l.revision,
       l.issued_at IS NOT NULL, l.revoked_at IS NOT NULL,
       (SELECT {strings}(h.reason, ',') FROM licensing_hold h WHERE h.license_id = l.id AND h.lifted_at IS NULL),
       l.starts_at, l.expires_at, l.grace_until, l.maintenance_until,
       r.seat_required, l.seat_limit, l.seats_used, r.activation_required, l.activation_limit, l.activations_used,
       (SELECT {objects}(e.key, {array}(e.kind, e.value, e.meter, {text}, e.overage))
          FROM licensing_entitlement e WHERE e.plan_revision_id = r.id),
       (SELECT 1 FROM licensing_activation a
         WHERE a.license_id = l.id AND a.fingerprint = %s AND a.deactivated_at IS NULL),
       (SELECT s.state FROM licensing_seat s
         WHERE s.license_id = l.id AND s.holder = %s AND s.released_at IS NULL),
       (SELECT v.released_at FROM licensing_release v WHERE v.product_id = l.product_id AND v.version = %s)
  FROM {source}
  JOIN licensing_planrevision r ON r.id = l.plan_revision_id
  JOIN licensing_plan plan ON plan.id = r.plan_id
  JOIN licensing_product product ON product.id = l.product_id
"""
_BY_KEY = "licensing_licensekey k JOIN licensing_license l ON l.id = k.license_id"
_WORDS = {
    "postgresql": {
        "strings": "string_agg",
        "objects": "json_object_agg",
        "array": "json_build_array",
        "text": "e.amount::text",
    },
    "sqlite": {
        "strings": "group_concat",
        "objects": "json_group_object",
        "array": "json_array",
        "text": "CAST(e.amount AS TEXT)",
    },
}


def by_key(digests: Sequence[bytes], scope: Scope) -> tuple[Snapshot | None, Scope]:
    """Return the license that has a live key with one of these digests, and the scope with its facts filled in."""
    marks = ", ".join(["%s"] * len(digests))
    return _read(_BY_KEY, f"WHERE k.digest IN ({marks}) AND k.retired_at IS NULL", list(digests), scope)


def by_id(license_id: UUID, scope: Scope) -> tuple[Snapshot | None, Scope]:
    """Return the license with this id, and the scope with its facts filled in."""
    value: object = license_id.hex if connection.vendor == "sqlite" else license_id
    return _read("licensing_license l", "WHERE l.id = %s", [value], scope)


def _read(source: str, where: str, parameters: list[Any], scope: Scope) -> tuple[Snapshot | None, Scope]:
    asked = [scope.fingerprint, scope.seat_holder, scope.version]
    query = _QUERY.format(source=source, **_WORDS[connection.vendor]) + where
    with _cursor() as cursor:
        cursor.execute(query, [*asked, *parameters])
        row = cursor.fetchone()
    if row is None:
        return None, scope
    snapshot = Snapshot(
        license_id=str(UUID(str(row[0]))),
        customer_id=str(UUID(str(row[1]))),
        product=row[2],
        plan=row[3],
        plan_revision=row[4],
        scheme=row[5],
        revision=row[6],
        issued=bool(row[7]),
        revoked=bool(row[8]),
        holds=tuple(sorted(row[9].split(","))) if row[9] else (),
        starts_at=_instant(row[10]) or datetime.max.replace(tzinfo=UTC),
        expires_at=_instant(row[11]),
        grace_until=_instant(row[12]),
        maintenance_until=_instant(row[13]),
        seat_required=bool(row[14]),
        seat_limit=row[15],
        seats_used=row[16],
        activation_required=bool(row[17]),
        activation_limit=row[18],
        activations_used=row[19],
        entitlements=_rights(row[20]),
    )
    known = msgspec.structs.replace(
        scope,
        fingerprint_activated=row[21] is not None,
        seat_state=row[22],
        version_released_at=_instant(row[23]),
    )
    return snapshot, known


def _cursor() -> Any:
    """Return a cursor that lets PostgreSQL keep the statement prepared: planning this query costs it ten times what
    running it does. Elsewhere, Django's own."""
    if connection.vendor != "postgresql":
        return connection.cursor()
    from django.db.backends.postgresql.base import ServerBindingCursor

    server: Any = connection
    server.ensure_connection()
    server.connection.prepare_threshold = 2
    binding: Any = ServerBindingCursor
    return server._prepare_cursor(binding(server.connection))


def _instant(value: datetime | str | None) -> datetime | None:
    """Return an instant as both databases mean it: SQLite's driver gives it without its time zone."""
    if value is None:
        return None
    instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _rights(value: Any) -> dict[str, Right]:
    document = orjson.loads(value) if isinstance(value, str) else value
    return {
        key: Right(kind, text, meter, _decimal(amount), overage)
        for key, (kind, text, meter, amount, overage) in sorted((document or {}).items())
    }


def _decimal(amount: str | None) -> str | None:
    """Return a decimal string without trailing zeros, the same from both databases."""
    if amount is None:
        return None
    return amount.rstrip("0").rstrip(".") if "." in amount else amount
