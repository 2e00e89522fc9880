"""Pictures: a license as the database shows it right now, with what a question asks about it, by one query.

No ORM object is made, no cursor of Django's or the driver's: this is the hot path, and they cost several times what the
query does (measured). Each picture's terms are checked against their proof. It keeps nothing but the terms of published
plan revisions, which never change; `snapshots` keeps pictures. Source: PERFORMANCE "What follows", ADR 0013.
"""

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
import orjson
import structlog
from django.db import InterfaceError, OperationalError, connection

from licensing import anomalies, prepared, proofs
from licensing.decision import Right, Scope, Snapshot
from licensing.errors import Unavailable
from licensing.models import License
from licensing.states import OutagePolicy, Scheme, SeatKind

log = structlog.get_logger(__name__)

TERMS_KNOWN = 20_000
# One row as one JSON array: one value to fetch, the same from both databases.
_QUERY = """
SELECT {array}(
         l.id, l.customer_id, l.product_id, l.plan_revision_id, l.scheme, l.revision,
         l.issued_at IS NOT NULL, l.revoked_at IS NOT NULL,
         (SELECT {strings}(h.reason, ',') FROM licensing_hold h WHERE h.license_id = l.id AND h.lifted_at IS NULL),
         l.starts_at, l.expires_at, l.grace_until, l.maintenance_until, l.updated_at,
         l.seat_limit, l.seats_used, l.activation_limit, l.activations_used, l.terms_kid, {terms_mac},
         {about_machine}, {about_holder}, {about_version}, {machine},
         (SELECT {list}({array}(c.meter, c.ends_at)) FROM licensing_counter c WHERE c.license_id = l.id AND c.exhausted)
       )
  FROM {source}
 WHERE {where}
"""
# What only some questions ask. What is not asked about is not looked up.
_ABOUT_MACHINE = """
         (SELECT a.id FROM licensing_activation a
           WHERE a.license_id = l.id AND a.fingerprint = {fingerprint} AND a.deactivated_at IS NULL),
         (SELECT a.key_thumbprint <> '' FROM licensing_activation a
           WHERE a.license_id = l.id AND a.fingerprint = {fingerprint} AND a.deactivated_at IS NULL),
         (SELECT CASE WHEN le.ended_at IS NULL OR le.ended_at >= le.expires_at THEN le.expires_at END
            FROM licensing_lease le
           WHERE le.license_id = l.id AND le.fingerprint = {fingerprint} AND le.fingerprint <> ''
           ORDER BY le.id DESC LIMIT 1)"""
_ABOUT_HOLDER = """
         (SELECT s.state FROM licensing_seat s
           WHERE s.license_id = l.id AND s.holder = {holder} AND s.released_at IS NULL)"""
_ABOUT_VERSION = """
         (SELECT v.released_at FROM licensing_release v WHERE v.product_id = l.product_id AND v.version = {version})"""
_BY_KEY = "licensing_licensekey k JOIN licensing_license l ON l.id = k.license_id"
_BY_MACHINE = "licensing_activation m JOIN licensing_license l ON l.id = m.license_id"
_TERMS = """
SELECT {array}(
         product.code, plan.code, r.number, r.state <> 'draft', r.seat_required, r.activation_required,
         (SELECT {objects}(e.key, {array}(e.kind, e.value, e.meter, {text}, e.overage))
            FROM licensing_entitlement e WHERE e.plan_revision_id = r.id),
         r.seat_kind, r.require_signed_clients, r.outage_policy, {tolerance}
       )
  FROM licensing_planrevision r
  JOIN licensing_plan plan ON plan.id = r.plan_id
  JOIN licensing_product product ON product.id = {product}
 WHERE r.id = {revision}
"""
_WORDS = {
    "postgresql": {
        "strings": "string_agg",
        "list": "json_agg",
        "objects": "json_object_agg",
        "array": "json_build_array",
        "text": "e.amount::text",
        "tolerance": "extract(epoch FROM r.outage_tolerance)",
        "terms_mac": "encode(l.terms_mac, 'hex')",
        "machine": "m.id, m.fingerprint, encode(m.public_key, 'hex'), m.deactivated_at IS NULL",
    },
    "sqlite": {
        "strings": "group_concat",
        "list": "json_group_array",
        "objects": "json_group_object",
        "array": "json_array",
        "text": "CAST(e.amount AS TEXT)",
        "tolerance": "r.outage_tolerance / 1000000.0",
        "terms_mac": "hex(l.terms_mac)",
        "machine": "m.id, m.fingerprint, hex(m.public_key), m.deactivated_at IS NULL",
    },
}


class Machine(msgspec.Struct, frozen=True, gc=False):
    """An activation as a signed request is checked against it."""

    id: str
    fingerprint: str
    public_key: bytes
    active: bool


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What is known about a scope; `keyed`: its machine signs its requests."""

    activation_id: str | None
    keyed: bool
    leased_until: datetime | None
    seat_state: str | None
    version_released_at: datetime | None


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What a license has from its plan revision. `published`: nothing of it ever changes (`guards`)."""

    product: str
    plan: str
    number: int
    published: bool
    seat_required: bool
    activation_required: bool
    entitlements: dict[str, Right]
    seat_kind: str
    require_signed_clients: bool
    lenient_seconds: float | None


class Picture(msgspec.Struct, frozen=True, gc=False):
    """A license as it was read: its snapshot, the facts about what was asked, and the machine that was asked by."""

    snapshot: Snapshot
    facts: Facts
    machine: Machine | None = None


class Question(msgspec.Struct, frozen=True, gc=False):
    """What is looked up: by which value, and about which machine, holder and version.

    `customer` confines it to that customer's licenses: another's is not found, in the same way and the same time as one
    that does not exist.
    """

    by: str
    value: str
    fingerprint: str | None = None
    seat_holder: str | None = None
    version: str | None = None
    customer: str | None = None

    @classmethod
    def of(cls, by: str, value: str, scope: Scope, customer: UUID | None = None) -> "Question":
        own = str(customer) if customer is not None else None
        return cls(by, value, scope.fingerprint, scope.seat_holder, scope.version, own)


_database_again_at = 0.0


def read(question: Question) -> Picture | None:
    """Return what the database says right now.

    Raises:
        Unavailable: it is away. After that nobody asks it for a second, so that no request waits for a dead one.
        TermsAltered: somebody wrote the license's terms past the rules.
    """
    global _database_again_at
    if time.monotonic() < _database_again_at:
        raise Unavailable("The database is away.")
    try:
        try:
            return _read(question)
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block:
                raise
            connection.close()  # it may just be a connection that did not survive a restart
            return _read(question)
    except (OperationalError, InterfaceError) as error:
        _database_again_at = time.monotonic() + 1.0
        anomalies.service_away(name="database", error=error)
        raise Unavailable("The database is away.") from error


def _read(question: Question) -> Picture | None:
    row = _row(question)
    return _picture(row) if row is not None else None


@lru_cache(maxsize=256)
def _query(vendor: str, by: str, keys: int, asked: tuple[str, ...]) -> str:
    """Return the query for a kind of question, its values numbered: the keys or id first, then what is `asked`."""
    sign = "$" if vendor == "postgresql" else "?"
    place = {name: f"{sign}{keys + number}" for number, name in enumerate(asked, start=1)}
    where = "l.id = {0}1"
    if by == "key":
        where = f"k.digest IN ({', '.join(f'{{0}}{number}' for number in range(1, keys + 1))}) AND k.retired_at IS NULL"
    elif by == "machine":
        where = "m.id = {0}1"
        place["fingerprint"] = "m.fingerprint"
    if "customer" in place:
        where += f" AND l.customer_id = {place['customer']}"
    words = _WORDS[vendor]
    text = _QUERY.replace("{about_machine}", _ABOUT_MACHINE if "fingerprint" in place else "NULL, NULL, NULL")
    text = text.replace("{about_holder}", _ABOUT_HOLDER if "holder" in place else "NULL")
    text = text.replace("{about_version}", _ABOUT_VERSION if "version" in place else "NULL")
    return text.format(
        **(words | {"machine": words["machine"] if by == "machine" else "NULL, NULL, NULL, NULL"}),
        **place,
        source={"key": _BY_KEY, "machine": _BY_MACHINE}.get(by, "licensing_license l"),
        where=where.format(sign),
    )


def _row(question: Question) -> list[Any] | None:
    vendor = connection.vendor
    if question.by == "key":
        values = [_bytes(vendor, digest) for digest in question.value.split(",")]
    else:
        values = [_id(vendor, question.value)]
    asked: dict[str, str] = {}
    if question.fingerprint is not None and question.by != "machine":
        asked["fingerprint"] = question.fingerprint
    if question.seat_holder is not None:
        asked["holder"] = question.seat_holder
    if question.version is not None:
        asked["version"] = question.version
    if question.customer is not None:
        asked["customer"] = _id(vendor, question.customer)
    return prepared.one(_query(vendor, question.by, len(values), tuple(asked)), [*values, *asked.values()])


def _id(vendor: str, value: str) -> str:
    return UUID(value).hex if vendor == "sqlite" else value


def _bytes(vendor: str, value: str) -> Any:
    return bytes.fromhex(value) if vendor == "sqlite" else f"\\x{value}"


_terms_known: dict[tuple[str, str], Terms] = {}


def _terms(product: str, plan_revision: str) -> Terms:
    """Return the terms of a plan revision, as the database spells both ids; once read, they are known for good."""
    known = _terms_known.get((product, plan_revision))
    if known is not None:
        return known
    vendor = connection.vendor
    sign = "$" if vendor == "postgresql" else "?"
    query = _TERMS.format(**_WORDS[vendor], product=f"{sign}1", revision=f"{sign}2")
    row = prepared.one(query, [product, plan_revision])
    assert row is not None
    found = Terms(
        product=row[0],
        plan=row[1],
        number=row[2],
        published=bool(row[3]),
        seat_required=bool(row[4]),
        activation_required=bool(row[5]),
        entitlements=_rights(row[6]),
        seat_kind=row[7],
        require_signed_clients=bool(row[8]),
        lenient_seconds=float(row[10]) if row[9] == OutagePolicy.LENIENT else None,
    )
    if found.published:
        if len(_terms_known) >= TERMS_KNOWN:
            _terms_known.clear()
        _terms_known[product, plan_revision] = found
    return found


def as_if(snapshot: Snapshot, license: License, exhausted: dict[str, datetime]) -> Snapshot:
    """Return the snapshot with the terms of a license as it might be (`lifecycle.as_if_under`) in place of its own."""
    vendor = connection.vendor
    terms = _terms(_id(vendor, str(license.product_id)), _id(vendor, str(license.plan_revision_id)))
    return msgspec.structs.replace(
        snapshot,
        plan=terms.plan,
        plan_revision=terms.number,
        scheme=license.scheme,
        expires_at=license.expires_at,
        grace_until=license.grace_until,
        maintenance_until=license.maintenance_until,
        seat_required=terms.seat_required,
        seat_limit=license.seat_limit,
        activation_required=terms.activation_required,
        activation_limit=license.activation_limit,
        entitlements=terms.entitlements,
        floating=terms.seat_kind == SeatKind.FLOATING and license.scheme != Scheme.USAGE,
        require_signed_clients=terms.require_signed_clients,
        lenient_seconds=terms.lenient_seconds,
        exhausted=exhausted,
    )


def _picture(row: list[Any]) -> Picture:
    terms = _terms(row[2], row[3])
    snapshot = Snapshot(
        license_id=_uuid(row[0]),
        customer_id=_uuid(row[1]),
        product=terms.product,
        plan=terms.plan,
        plan_revision=terms.number,
        scheme=row[4],
        revision=row[5],
        issued=bool(row[6]),
        revoked=bool(row[7]),
        holds=tuple(sorted(row[8].split(","))) if row[8] else (),
        starts_at=_instant(row[9]) or datetime.max.replace(tzinfo=UTC),
        expires_at=_instant(row[10]),
        grace_until=_instant(row[11]),
        maintenance_until=_instant(row[12]),
        updated_at=_instant(row[13]),
        seat_required=terms.seat_required,
        seat_limit=row[14],
        seats_used=row[15],
        activation_required=terms.activation_required,
        activation_limit=row[16],
        activations_used=row[17],
        entitlements=terms.entitlements,
        floating=terms.seat_kind == SeatKind.FLOATING and row[4] != Scheme.USAGE,
        require_signed_clients=terms.require_signed_clients,
        lenient_seconds=terms.lenient_seconds,
        exhausted=_exhausted(row[29]),
    )
    proofs.check_read(snapshot, _uuid(row[2]), _uuid(row[3]), row[18], bytes.fromhex(row[19] or ""))
    facts = Facts(
        activation_id=_uuid(row[20]) if row[20] is not None else None,
        keyed=bool(row[21]),
        leased_until=_instant(row[22]),
        seat_state=row[23],
        version_released_at=_instant(row[24]),
    )
    machine = None
    if row[25] is not None:
        machine = Machine(_uuid(row[25]), row[26], bytes.fromhex(row[27] or ""), bool(row[28]))
    return Picture(snapshot, facts, machine)


def _uuid(text: str) -> str:
    """Return an id as answers spell it: SQLite keeps it without hyphens."""
    return text if len(text) == 36 else f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _instant(value: str | None) -> datetime | None:
    """Return an instant as both databases mean it: SQLite keeps it without its time zone."""
    if value is None:
        return None
    instant = datetime.fromisoformat(value)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _rights(value: dict[str, list[Any]] | str | None) -> dict[str, Right]:
    document = orjson.loads(value) if isinstance(value, str) else value
    return {
        key: Right(kind, text, meter, _decimal(amount), overage)
        for key, (kind, text, meter, amount, overage) in sorted((document or {}).items())
    }


def _exhausted(value: list[list[str]] | str | None) -> dict[str, datetime]:
    """Return the meters whose hard allowance is used up, each with the end of the (latest) window it counts in."""
    pairs = orjson.loads(value) if isinstance(value, str) else value or []
    found: dict[str, datetime] = {}
    for meter, text in pairs:
        until = _instant(text)
        if until is not None and until > found.get(meter, datetime.min.replace(tzinfo=UTC)):
            found[meter] = until
    return found


def _decimal(amount: str | None) -> str | None:
    """Return a decimal string without trailing zeros, the same from both databases."""
    if amount is None:
        return None
    return amount.rstrip("0").rstrip(".") if "." in amount else amount
