"""The database guards, against SQL typed by hand: what a person with a client of the database might type."""

import sqlite3
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models.signals import pre_migrate

from licensing import activations, catalog, guards, keys, leases, license_files, lifecycle, seats
from licensing.catalog import Grant
from licensing.models import (
    Activation,
    AuditEntry,
    Entitlement,
    Hold,
    KeyCanary,
    Lease,
    License,
    LicenseFile,
    LicenseKey,
    PlanRevision,
    RequestNonce,
    Seat,
    Term,
)
from tests.factories import AT, BY, make_customer, make_license, make_plan, make_revision

MESSAGES = {guard.message for guard in guards.expected()}
LATER = AT + timedelta(days=1)


@dataclass
class World:
    """One of each row a guard protects, and some that it does not."""

    audit: str
    published: str
    retired: str
    draft: str
    published_right: str
    draft_right: str
    license: str
    revoked: str
    draft_license: str
    key: str
    retired_key: str
    other_key: str
    seat: str
    other_seat: str
    released_seat: str
    open_hold: str
    lifted_hold: str
    term: str
    other_product: str
    machine: str
    other_machine: str
    gone_machine: str
    lease: str
    ended_lease: str
    file: str
    nonce: str
    settled_nonce: str


@pytest.fixture
def world(transactional_db) -> World:
    plan = make_plan()
    grants = [Grant(key="export")]
    retired = make_revision(plan=plan, grants=grants)
    published = make_revision(plan=plan, grants=grants)
    draft = make_revision(plan=plan, grants=grants, publish=False)
    customer = make_customer()
    license = make_license(customer=customer, plan_revision=published)
    other = make_license(customer=customer, plan_revision=published)
    revoked = make_license(customer=customer, plan_revision=published)
    lifecycle.revoke(license=revoked, by=BY, at=AT, reason="test")
    draft_license = lifecycle.prepare(customer=customer, plan_revision=published, by=BY, at=AT)
    keys.rotate(license=license, by=BY, reason="test", at=AT)
    seat = seats.assign(license=license, holder="a@example.com", by=BY, at=AT).seat
    other_seat = seats.assign(license=license, holder="b@example.com", by=BY, at=AT).seat
    released = seats.assign(license=license, holder="c@example.com", by=BY, at=AT).seat
    seats.release(seat=released, by=BY, at=AT)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    lifted = lifecycle.hold(license=license, reason="abuse", by=BY, at=AT)
    lifecycle.lift(license=license, reason="abuse", by=BY, at=AT)
    machine, other_machine, gone_machine = (
        activations.activate(
            license=other,
            fingerprint=f"machine-{number:0>16}",
            by=BY,
            at=AT,
            public_key=bytes([number]) * 32,
            counter=7,
        ).activation
        for number in range(3)
    )
    activations.deactivate(activation=gone_machine, by=BY, at=AT)
    Activation.objects.filter(pk=machine.pk).update(cloned_at=AT)
    floating = make_license(customer=customer, seat_kind="floating", seat_limit=5)
    lease, ended = (
        leases.check_out(license=floating, fingerprint=f"machine-{number:0>16}", by=BY, at=AT).lease
        for number in range(2)
    )
    leases.check_in(lease=ended, by=BY, at=AT)
    file = license_files.issue(license=other, activation=machine, by=BY, at=AT).record
    nonce, settled = (
        RequestNonce.objects.create(activation=machine, nonce=f"nonce-{counter}", counter=counter, seen_at=AT)
        for counter in (8, 7)
    )
    KeyCanary.objects.create(kid="kid-1", purpose="seal", value="v1", created_at=AT)
    KeyCanary.objects.create(kid="kid-2", purpose="seal", value="v1", created_at=AT, destroyed_at=AT)
    ids = {
        "audit": AuditEntry.objects.earliest("id"),
        "published": published,
        "retired": retired,
        "draft": draft,
        "published_right": published.entitlements.get(),
        "draft_right": draft.entitlements.get(),
        "license": license,
        "revoked": revoked,
        "draft_license": draft_license,
        "key": license.keys.get(retired_at=None),
        "retired_key": license.keys.get(retired_at__isnull=False),
        "other_key": other.keys.get(),
        "seat": seat,
        "other_seat": other_seat,
        "released_seat": released,
        "open_hold": license.holds.get(lifted_at=None),
        "lifted_hold": lifted,
        "term": license.terms.get(),
        "other_product": make_plan().product,
        "machine": machine,
        "other_machine": other_machine,
        "gone_machine": gone_machine,
        "lease": lease,
        "ended_lease": ended,
        "file": file,
        "nonce": nonce,
        "settled_nonce": settled,
    }
    return World(**{name: _as_typed(row.pk) for name, row in ids.items()})


def _as_typed(key: Any) -> str:
    return str(key) if isinstance(key, int) else f"'{key.hex}'"


class Client:
    """A database client of its own, as a person would open one: with the database's own defaults."""

    def __init__(self, *before: str) -> None:
        settings = connection.settings_dict
        self.errors: tuple[type[Exception], ...]
        if connection.vendor == "sqlite":
            self.raw: Any = sqlite3.connect(settings["NAME"], isolation_level=None, timeout=10)
            self.errors = (sqlite3.Error,)
        else:
            self.raw = psycopg.connect(
                host=settings["HOST"],
                port=settings["PORT"] or None,
                user=settings["USER"],
                password=settings["PASSWORD"],
                dbname=settings["NAME"],
                autocommit=True,
            )
            self.errors = (psycopg.Error,)
        for statement in before:
            self.raw.execute(statement)

    def said(self, statement: str) -> str:
        """Run the statement, undo it, and return how the database refused it; empty when it did not."""
        self.raw.execute("BEGIN")
        try:
            self.raw.execute(statement)
        except self.errors as error:
            return str(error).splitlines()[0]
        else:
            return ""
        finally:
            self.raw.execute("ROLLBACK")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()


def clients() -> list[tuple[str, ...]]:
    """Return what a client may have typed before it attacks."""
    if connection.vendor == "sqlite":
        return [
            ("PRAGMA recursive_triggers=OFF", "PRAGMA foreign_keys=OFF"),
            ("PRAGMA recursive_triggers=ON", "PRAGMA foreign_keys=OFF"),
            ("PRAGMA recursive_triggers=OFF", "PRAGMA foreign_keys=ON"),
        ]
    return [(), ("SET session_replication_role = replica",), ("SET session_replication_role = origin",)]


def table(model: Any) -> str:
    return f'"{model._meta.db_table}"'


def copied(model: Any, row: str, **changes: str) -> str:
    """Return an INSERT of a row like `row` with some columns in other words."""
    columns = [field.column for field in model._meta.concrete_fields]
    values = [changes.get(column, f'"{column}"') for column in columns]
    names = ", ".join(f'"{column}"' for column in columns)
    key = model._meta.pk.column
    return f"INTO {table(model)} ({names}) SELECT {', '.join(values)} FROM {table(model)} WHERE {key} = {row}"


def typed_by_hand(w: World) -> list[str]:
    """Return statements both databases understand, each of which must be refused."""
    revision, right, audit = table(PlanRevision), table(Entitlement), table(AuditEntry)
    license, key, seat, hold, term = table(License), table(LicenseKey), table(Seat), table(Hold), table(Term)
    statements = []
    for column in [field.column for field in AuditEntry._meta.concrete_fields]:
        statements.append(f'UPDATE {audit} SET "{column}" = "{column}" WHERE id = {w.audit}')
    for column in [field.column for field in PlanRevision._meta.concrete_fields]:
        if column not in ("state", "retired_at"):
            other = "NULL" if PlanRevision._meta.get_field(column.removesuffix("_id")).null else f"'{'7' * 32}'"
            kind = PlanRevision._meta.get_field(column.removesuffix("_id")).get_internal_type()
            if kind == "PositiveIntegerField":
                other = "77"
            elif kind == "BooleanField":
                other = f'NOT "{column}"'
            elif kind in ("CharField",):
                other = "'x'"
            elif kind == "DurationField" and other != "NULL":
                other = "'777777'"
            elif kind == "DateTimeField":
                other = "'2001-01-01 00:00:00+00:00'"
            if other == "NULL" and column in ("seat_churn_limit", "activation_churn_limit"):
                other = "7"
            statements.append(
                f'UPDATE {revision} SET "{column}" = {other} WHERE id = {w.published}'
                f' AND ("{column}" IS NULL OR CAST("{column}" AS TEXT) <> CAST({other} AS TEXT)'
                f" OR {other} IS NULL)"
                if other != "NULL"
                else f'UPDATE {revision} SET "{column}" = NULL WHERE id = {w.published} AND "{column}" IS NOT NULL'
            )
    statements = [each for each in statements if not each.startswith(f"UPDATE {revision}") or _hits(each)]
    machine, lease, nonce, canary = table(Activation), table(Lease), table(RequestNonce), table(KeyCanary)
    for column in [field.column for field in LicenseFile._meta.concrete_fields]:
        statements.append(f'UPDATE {table(LicenseFile)} SET "{column}" = "{column}" WHERE id = {w.file}')
    return [
        *statements,
        f"UPDATE {machine} SET deactivated_at = NULL WHERE id = {w.gone_machine}",
        f"UPDATE {machine} SET deactivated_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.gone_machine}",
        f"UPDATE {machine} SET license_id = {w.license} WHERE id = {w.machine}",
        f"UPDATE {machine} SET fingerprint = 'another-machine-16' WHERE id = {w.machine}",
        f"UPDATE {machine} SET activated_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.machine}",
        f"UPDATE {machine} SET counter_floor = 6 WHERE id = {w.machine}",
        f"UPDATE {machine} SET key_thumbprint = 'x' WHERE id = {w.machine}",
        f"UPDATE {machine} SET key_thumbprint = '', public_key = NULL WHERE id = {w.machine}",
        f"UPDATE {machine} SET public_key = (SELECT public_key FROM {machine} WHERE id = {w.other_machine})"
        f" WHERE id = {w.machine}",
        f"UPDATE {machine} SET cloned_at = NULL WHERE id = {w.machine}",
        f"UPDATE {machine} SET id = '{'7' * 32}' WHERE id = {w.gone_machine}",
        f"DELETE FROM {machine} WHERE id = {w.gone_machine}",
        f"DELETE FROM {machine}",
        f"UPDATE {lease} SET ended_at = NULL WHERE id = {w.ended_lease}",
        f"UPDATE {lease} SET offline = NOT offline WHERE id = {w.ended_lease}",
        f"UPDATE {lease} SET expires_at = '2099-01-01 00:00:00+00:00' WHERE id = {w.ended_lease}",
        f"UPDATE {lease} SET expires_at = '2026-03-01 12:01:00+00:00' WHERE id = {w.lease}",
        f"UPDATE {lease} SET fingerprint = 'another-machine-16' WHERE id = {w.lease}",
        f"UPDATE {lease} SET license_id = {w.license} WHERE id = {w.lease}",
        f"UPDATE {lease} SET checked_out_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.lease}",
        f"UPDATE {lease} SET id = '{'7' * 32}' WHERE id = {w.lease}",
        f"DELETE FROM {lease} WHERE id = {w.ended_lease}",
        f"DELETE FROM {lease} WHERE id = {w.lease}",
        f"DELETE FROM {table(LicenseFile)} WHERE id = {w.file}",
        f"UPDATE {nonce} SET nonce = 'x' WHERE id = {w.nonce}",
        f"UPDATE {nonce} SET counter = 99 WHERE id = {w.settled_nonce}",
        f"UPDATE {nonce} SET seen_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.nonce}",
        f"DELETE FROM {nonce} WHERE id = {w.nonce}",
        f"UPDATE {canary} SET value = 'x' WHERE kid = 'kid-1'",
        f"UPDATE {canary} SET kid = 'kid-3' WHERE kid = 'kid-1'",
        f"UPDATE {canary} SET destroyed_at = NULL WHERE kid = 'kid-2'",
        f"DELETE FROM {canary} WHERE kid = 'kid-1'",
        f"DELETE FROM {canary} WHERE kid = 'kid-2'",
        f"UPDATE {revision} SET state = 'draft' WHERE id = {w.published}",
        f"UPDATE {revision} SET state = 'draft', published_at = NULL WHERE id = {w.published}",
        f"UPDATE {revision} SET state = 'published', retired_at = NULL WHERE id = {w.retired}",
        f"UPDATE {revision} SET state = 'draft', retired_at = NULL, published_at = NULL WHERE id = {w.retired}",
        f"UPDATE {revision} SET retired_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.retired}",
        f"UPDATE {revision} SET seat_limit = 1000",
        f"UPDATE {revision} SET state = 'retired', retired_at = '2026-01-01 00:00:00+00:00' WHERE id = {w.draft}",
        f"UPDATE {revision} SET id = '{'7' * 32}' WHERE id = {w.draft}",
        f"UPDATE {revision} SET id = '{'7' * 32}' WHERE id = {w.published}",
        f"DELETE FROM {revision} WHERE id = {w.published}",
        f"DELETE FROM {revision} WHERE id = {w.retired}",
        f"DELETE FROM {revision}",
        f"UPDATE {right} SET value = 'x' WHERE id = {w.published_right}",
        f"UPDATE {right} SET key = 'import' WHERE id = {w.published_right}",
        f"UPDATE {right} SET plan_revision_id = {w.draft} WHERE id = {w.published_right}",
        f"UPDATE {right} SET plan_revision_id = {w.published}, key = 'more' WHERE id = {w.draft_right}",
        f"UPDATE {right} SET id = '{'7' * 32}' WHERE id = {w.draft_right}",
        f"DELETE FROM {right} WHERE id = {w.published_right}",
        f"DELETE FROM {right}",
        f"INSERT {copied(Entitlement, w.published_right, id=_new(), key=_text('import'))}",
        f"INSERT {copied(Entitlement, w.draft_right, id=_new(), plan_revision_id=_uuid(w.published), key=_text('x'))}",
        f"INSERT {copied(Entitlement, w.draft_right, id=_new(), plan_revision_id=_uuid(w.retired), key=_text('x'))}",
        f"DELETE FROM {audit} WHERE id = {w.audit}",
        f"DELETE FROM {audit}",
        f"UPDATE {term} SET scheme = 'usage' WHERE id = {w.term}",
        f"UPDATE {term} SET reason = reason WHERE id = {w.term}",
        f"DELETE FROM {term} WHERE id = {w.term}",
        f"UPDATE {hold} SET lifted_at = NULL WHERE id = {w.lifted_hold}",
        f"UPDATE {hold} SET note = 'x' WHERE id = {w.lifted_hold}",
        f"UPDATE {hold} SET note = 'x' WHERE id = {w.open_hold}",
        f"UPDATE {hold} SET reason = 'dispute' WHERE id = {w.open_hold}",
        f"UPDATE {hold} SET license_id = {w.revoked} WHERE id = {w.open_hold}",
        f"UPDATE {hold} SET placed_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.open_hold}",
        f"DELETE FROM {hold} WHERE id = {w.open_hold}",
        f"DELETE FROM {hold} WHERE id = {w.lifted_hold}",
        f"UPDATE {license} SET revoked_at = NULL WHERE id = {w.revoked}",
        f"UPDATE {license} SET revoked_at = '2030-01-01 00:00:00+00:00' WHERE id = {w.revoked}",
        f"UPDATE {license} SET issued_at = NULL WHERE id = {w.license}",
        f"UPDATE {license} SET issued_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.license}",
        f"UPDATE {license} SET product_id = {w.other_product} WHERE id = {w.license}",
        f"UPDATE {license} SET revision = 0 WHERE id = {w.license}",
        f"UPDATE {license} SET id = '{'7' * 32}' WHERE id = {w.license}",
        f"UPDATE {license} SET id = '{'7' * 32}' WHERE id = {w.draft_license}",
        f"DELETE FROM {license} WHERE id = {w.license}",
        f"DELETE FROM {license} WHERE id = {w.revoked}",
        f"UPDATE {key} SET retired_at = NULL WHERE id = {w.retired_key}",
        f"UPDATE {key} SET license_id = {w.revoked} WHERE id = {w.key}",
        f"UPDATE {key} SET last5 = '00000' WHERE id = {w.key}",
        f"UPDATE {key} SET id = '{'7' * 32}' WHERE id = {w.key}",
        f"DELETE FROM {key} WHERE id = {w.key}",
        f"DELETE FROM {key} WHERE id = {w.retired_key}",
        f"UPDATE {seat} SET state = 'assigned', released_at = NULL WHERE id = {w.released_seat}",
        f"UPDATE {seat} SET released_at = '2020-01-01 00:00:00+00:00' WHERE id = {w.released_seat}",
        f"UPDATE {seat} SET license_id = {w.revoked} WHERE id = {w.seat}",
        f"UPDATE {seat} SET license_id = {w.revoked} WHERE id = {w.released_seat}",
        f"UPDATE {seat} SET id = '{'7' * 32}' WHERE id = {w.seat}",
        f"DELETE FROM {seat} WHERE id = {w.seat}",
        f"DELETE FROM {seat} WHERE id = {w.released_seat}",
    ]


def _hits(statement: str) -> bool:
    with connection.cursor() as cursor:
        where = statement.partition(" WHERE ")[2]
        cursor.execute(f"SELECT count(*) FROM {table(PlanRevision)} WHERE {where}")
        return cursor.fetchone()[0] == 1


def _new() -> str:
    return _uuid(f"'{'7' * 32}'")


def _uuid(text: str) -> str:
    return f"CAST({text} AS uuid)" if connection.vendor == "postgresql" else text


def _text(text: str) -> str:
    return f"'{text}'"


def replacing(w: World) -> list[str]:
    """Return SQLite's ways to delete a row without saying DELETE: REPLACE, and UPDATE OR REPLACE."""
    same_row = [
        copied(AuditEntry, w.audit, action="'forged'"),
        copied(PlanRevision, w.published, seat_limit="9999"),
        copied(PlanRevision, w.retired, seat_limit="9999"),
        copied(PlanRevision, w.draft, id=w.published, number="77"),
        copied(Entitlement, w.published_right, value="'x'"),
        # The published right's id, under a draft: its own revision loses it.
        copied(Entitlement, w.published_right, plan_revision_id=w.draft, key="'new'"),
        copied(License, w.license, seat_limit="NULL", seats_ceiling="NULL"),
        copied(License, w.revoked, revoked_at="NULL"),
        copied(License, w.draft_license, id=w.license),
        copied(LicenseKey, w.key, last5="'00000'"),
        copied(LicenseKey, w.retired_key, retired_at="NULL"),
        copied(Seat, w.seat, holder="'x@example.com'"),
        copied(Seat, w.released_seat, state="'assigned'", released_at="NULL"),
        copied(Hold, w.lifted_hold, lifted_at="NULL"),
        copied(Hold, w.open_hold, note="'x'"),
        copied(Term, w.term, scheme="'usage'"),
        copied(Activation, w.machine, counter_floor="0"),
        copied(Activation, w.gone_machine, deactivated_at="NULL"),
        copied(Lease, w.lease, expires_at="checked_out_at"),
        copied(Lease, w.ended_lease, ended_at="NULL"),
        copied(LicenseFile, w.file, encrypted="1"),
        copied(RequestNonce, w.nonce, counter="99"),
        copied(KeyCanary, "'kid-1'", value="'x'"),
    ]
    same_fact = [
        copied(Activation, w.machine, id=_new()),
        copied(Activation, w.machine, id=_new(), fingerprint="'another-machine-16'"),
        copied(Lease, w.lease, id=_new()),
        copied(RequestNonce, w.nonce, id="777", counter="99"),
        copied(RequestNonce, w.nonce, id="777", nonce="'x'"),
        copied(PlanRevision, w.published, id=_new()),
        copied(PlanRevision, w.published, id=_new(), number="77"),
        copied(PlanRevision, w.retired, id=_new(), state="'draft'", retired_at="NULL", published_at="NULL"),
        copied(LicenseKey, w.key, id=_new()),
        copied(LicenseKey, w.key, id=_new(), digest="X'00'"),
        copied(LicenseKey, w.retired_key, id=_new()),
        copied(LicenseKey, w.other_key, id=_new(), license_id=w.revoked, retired_at="'2026-01-01'"),
        copied(Seat, w.seat, id=_new()),
        copied(Hold, w.open_hold, id=_new(), note="'x'"),
        copied(Term, w.term, id=_new(), scheme="'usage'"),
        copied(Entitlement, w.published_right, id=_new(), value="''"),
    ]
    revision, right, license = table(PlanRevision), table(Entitlement), table(License)
    key, seat, machine, lease = table(LicenseKey), table(Seat), table(Activation), table(Lease)
    updates = [
        f"{revision} SET id = {w.published} WHERE id = {w.draft}",
        f"{revision} SET number = (SELECT number FROM {revision} WHERE id = {w.published}) WHERE id = {w.draft}",
        f"{revision} SET number = (SELECT number FROM {revision} WHERE id = {w.retired}) WHERE id = {w.draft}",
        f"{revision} SET state = 'published', published_at = '2026-01-01' WHERE id = {w.draft}",
        f"{right} SET id = {w.published_right} WHERE id = {w.draft_right}",
        f"{license} SET id = {w.license} WHERE id = {w.draft_license}",
        f"{license} SET id = {w.revoked} WHERE id = {w.license}",
        f"{key} SET id = {w.other_key} WHERE id = {w.key}",
        f"{key} SET digest = (SELECT digest FROM {key} WHERE id = {w.other_key}) WHERE id = {w.key}",
        f"{seat} SET id = {w.released_seat} WHERE id = {w.seat}",
        f"{seat} SET holder = 'b@example.com' WHERE id = {w.seat}",
        f"{machine} SET id = {w.gone_machine} WHERE id = {w.machine}",
        f"{machine} SET scope = scope, deactivated_at = NULL WHERE id = {w.gone_machine}",
        f"{lease} SET id = {w.ended_lease} WHERE id = {w.lease}",
        f"{table(KeyCanary)} SET kid = 'kid-2' WHERE kid = 'kid-1'",
    ]
    return [
        *(f"INSERT OR REPLACE {each}" for each in same_row + same_fact),
        *(f"REPLACE {each}" for each in same_row[:3]),
        *(f"UPDATE OR REPLACE {each}" for each in updates),
    ]


def truncating() -> list[str]:
    """Return PostgreSQL's ways to empty a guarded table."""
    tables = sorted({guard.table for guard in guards.expected(connection.vendor)})
    return [
        *(f'TRUNCATE "{name}" CASCADE' for name in tables),
        'TRUNCATE "licensing_plan" CASCADE',
        'TRUNCATE "licensing_customer", "licensing_product" CASCADE',
    ]


def upserting(w: World) -> list[str]:
    """Return PostgreSQL's and SQLite's upserts of protected rows."""
    return [
        f"INSERT {copied(AuditEntry, w.audit)} {_where()} ON CONFLICT (id) DO UPDATE SET action = 'forged'",
        f"INSERT {copied(PlanRevision, w.published)} {_where()} ON CONFLICT (id) DO UPDATE SET seat_limit = 9999",
        f"INSERT {copied(License, w.revoked)} {_where()} ON CONFLICT (id) DO UPDATE SET revoked_at = NULL",
        f"INSERT {copied(Term, w.term)} {_where()} ON CONFLICT (id) DO UPDATE SET scheme = 'usage'",
        f"INSERT {copied(Lease, w.ended_lease)} {_where()} ON CONFLICT (id) DO UPDATE SET ended_at = NULL",
        f"INSERT {copied(LicenseFile, w.file)} {_where()} ON CONFLICT (id) DO UPDATE SET kid = 'x'",
        f"INSERT {copied(KeyCanary, _text('kid-1'))} {_where()} ON CONFLICT (kid) DO UPDATE SET value = 'x'",
    ]


def _where() -> str:
    return ""


def test_it_refuses_what_is_typed_by_hand(world):
    statements = typed_by_hand(world) + upserting(world)
    statements += replacing(world) if connection.vendor == "sqlite" else truncating()

    passed = {}
    for before in clients():
        with Client(*before) as client:
            for statement in statements:
                said = client.said(statement)
                if not any(message in said for message in MESSAGES):
                    passed[(*before, statement)] = said

    assert passed == {}
    assert len(statements) > 80


def test_it_allows_what_the_rules_do(world):
    allowed = [
        f"UPDATE {table(PlanRevision)} SET seat_limit = 3 WHERE id = {world.draft}",
        f"UPDATE {table(PlanRevision)} SET state = 'retired', retired_at = '2026-04-01 00:00:00+00:00' "
        f"WHERE id = {world.published}",
        f"DELETE FROM {table(Entitlement)} WHERE id = {world.draft_right}",
        f"UPDATE {table(Hold)} SET lifted_at = '2026-04-01 00:00:00+00:00' WHERE id = {world.open_hold}",
        f"UPDATE {table(License)} SET revoked_at = '2026-04-01 00:00:00+00:00' WHERE id = {world.license}",
        f"UPDATE {table(License)} SET customer_id = customer_id, revision = revision + 1 WHERE id = {world.license}",
        f"UPDATE {table(LicenseKey)} SET retired_at = '2026-04-01 00:00:00+00:00' WHERE id = {world.key}",
        f"UPDATE {table(LicenseKey)} SET sealed = 'v1.new' WHERE id = {world.retired_key}",
        f"UPDATE {table(Seat)} SET holder = 'erased@example.com' WHERE id = {world.released_seat}",
        f"UPDATE {table(Seat)} SET state = 'blocked' WHERE id = {world.seat}",
        f"UPDATE {table(Activation)} SET name = '', last_seen_at = activated_at WHERE id = {world.gone_machine}",
        f"UPDATE {table(Activation)} SET counter_floor = 8 WHERE id = {world.machine}",
        f"UPDATE {table(Activation)} SET scope = {_uuid(world.other_product)} WHERE id = {world.machine}",
        f"UPDATE {table(Lease)} SET expires_at = '2026-03-09 00:00:00+00:00', offline = NOT offline"
        f" WHERE id = {world.lease}",
        f"UPDATE {table(Lease)} SET ended_at = '2026-03-09 00:00:00+00:00' WHERE id = {world.lease}",
        f"UPDATE {table(Lease)} SET ended_at = ended_at WHERE id = {world.ended_lease}",
        f"DELETE FROM {table(RequestNonce)} WHERE id = {world.settled_nonce}",
        f"UPDATE {table(KeyCanary)} SET destroyed_at = '2026-03-09 00:00:00+00:00' WHERE kid = 'kid-1'",
    ]

    with Client() as client:
        said = {statement: client.said(statement) for statement in allowed}

    assert {statement: refused for statement, refused in said.items() if refused} == {}


def test_it_refuses_through_the_orm_too(world):
    with pytest.raises(DatabaseError, match="never changes"), transaction.atomic():
        AuditEntry.objects.update(reason="forged")
    with pytest.raises(DatabaseError, match="never deleted"), transaction.atomic():
        AuditEntry.objects.all()._raw_delete(using="default")
    with pytest.raises(DatabaseError, match="never change"), transaction.atomic():
        Entitlement.objects.filter(plan_revision__state="published").update(value="")
    with pytest.raises(DatabaseError, match="make a new revision"), transaction.atomic():
        PlanRevision.objects.filter(state="published").update(seat_limit=None)


def test_it_lets_a_draft_and_what_hangs_from_it_go(world):
    draft = PlanRevision.objects.get(state="draft")

    catalog.discard(revision=draft, by=BY, at=AT)
    License.objects.get(issued_at=None).delete()

    assert not PlanRevision.objects.filter(state="draft").exists()


# --- missing ----------------------------------------------------------------------------------------


@pytest.fixture
def mended(transactional_db):
    """Whatever a test does to the guards, they stand again afterwards."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS somewhere_else")
    guards.install()


def run(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def dropped(guard: guards.Guard) -> str:
    on = f' ON "{guard.table}"' if connection.vendor == "postgresql" else ""
    return f'DROP TRIGGER "guard_{guard.name}"{on}'


def test_it_finds_every_guard_standing_and_none_twice(db):
    names = [guard.name for guard in guards.expected(connection.vendor)]

    assert guards.missing() == []
    assert len(set(names)) == len(names)
    assert all(len(f"guard_{name}") <= 63 for name in names)


def test_it_sees_each_guard_that_is_dropped(mended):
    for guard in guards.expected(connection.vendor):
        if guard.event == "TRUNCATE" and connection.vendor == "sqlite":
            continue
        run(dropped(guard))
        assert guards.missing() == [guard.name]
        guards.install()
        assert guards.missing() == []


def test_it_sees_a_guard_that_says_something_else(mended):
    guard = guards.expected(connection.vendor)[0]
    if connection.vendor == "sqlite":
        create = f'CREATE TRIGGER "guard_{guard.name}"'
        others = [
            f'{create} BEFORE UPDATE ON "{guard.table}" BEGIN SELECT 1; END',
            f"{create} BEFORE UPDATE ON \"{guard.table}\" WHEN 0 BEGIN SELECT RAISE(ABORT, '{guard.message}'); END",
            f"{create} AFTER UPDATE OF reason ON \"{guard.table}\" BEGIN SELECT RAISE(ABORT, '{guard.message}'); END",
            f"{create} BEFORE UPDATE ON somewhere_else BEGIN SELECT RAISE(ABORT, '{guard.message}'); END",
        ]
    else:
        call = f'EXECUTE FUNCTION "guard_{guard.name}"()'
        others = [
            f'CREATE TRIGGER "guard_{guard.name}" {rest} {call}'
            for rest in (
                f'BEFORE UPDATE ON "{guard.table}" FOR EACH ROW WHEN (false)',
                f'BEFORE UPDATE OF reason ON "{guard.table}" FOR EACH ROW',
                f'BEFORE INSERT ON "{guard.table}" FOR EACH ROW',
                f'BEFORE UPDATE ON "{guard.table}" FOR EACH STATEMENT',
                "BEFORE UPDATE ON somewhere_else FOR EACH ROW",
            )
        ]
    run("CREATE TABLE somewhere_else (reason text)")

    seen = {}
    for other in others:
        run(dropped(guard), other)
        if connection.vendor == "postgresql":
            place = "somewhere_else" if "somewhere_else" in other else guard.table
            run(f'ALTER TABLE "{place}" ENABLE ALWAYS TRIGGER "guard_{guard.name}"')
        seen[other] = guards.missing()
        run(f'DROP TRIGGER "guard_{guard.name}"' + (f' ON "{place}"' if connection.vendor == "postgresql" else ""))
        guards.install()

    assert seen == {other: [guard.name] for other in others}


@pytest.mark.postgres
def test_it_sees_a_guard_that_is_disabled_or_not_always_on(mended):
    guard = guards.expected(connection.vendor)[0]

    seen = {}
    for how in ("DISABLE", "ENABLE", "ENABLE REPLICA"):
        run(f'ALTER TABLE "{guard.table}" {how} TRIGGER "guard_{guard.name}"')
        seen[how] = guards.missing()
        guards.install()

    assert set(map(tuple, seen.values())) == {(guard.name,)}


@pytest.mark.postgres
def test_it_sees_a_guard_whose_function_was_replaced(mended):
    guard = guards.expected(connection.vendor)[0]

    run(
        f'CREATE OR REPLACE FUNCTION "guard_{guard.name}"() RETURNS trigger LANGUAGE plpgsql '
        "AS $$ BEGIN RETURN NEW; END $$"
    )

    assert guards.missing() == [guard.name]


def test_it_sees_every_guard_of_a_table_that_is_gone(mended):
    guard = next(guard for guard in guards.expected(connection.vendor) if guard.table == Term._meta.db_table)
    run(f'ALTER TABLE "{guard.table}" RENAME TO "moved_away"')
    try:
        assert [name for name in guards.missing() if name.startswith(f"{guard.table}_")]
    finally:
        run(f'ALTER TABLE "moved_away" RENAME TO "{guard.table}"')


def test_it_stands_again_after_migrate(mended):
    for guard in guards.expected(connection.vendor):
        if guard.event != "TRUNCATE" or connection.vendor == "postgresql":
            run(dropped(guard))

    call_command("migrate", verbosity=0)

    assert guards.missing() == []


def about_to_migrate(plan: list) -> None:
    pre_migrate.send(sender=apps.get_app_config("licensing"), using="default", plan=plan)


@pytest.mark.parametrize(
    "model",
    [AuditEntry, PlanRevision, Entitlement, License, LicenseKey, Seat, Hold, Term, Activation, Lease, LicenseFile],
)
def test_it_stands_again_after_a_column_was_altered(mended, model):
    old = next(
        field
        for field in model._meta.concrete_fields
        if field.get_internal_type() == "CharField" and not field.remote_field
    )
    new = old.clone()
    new.max_length += 1
    new.set_attributes_from_name(old.name)
    new.model = model

    for before, after in ((old, new), (new, old)):
        about_to_migrate([("a migration", False)])
        with connection.schema_editor() as editor:
            editor.alter_field(model, before, after)
        call_command("migrate", verbosity=0)

        assert guards.missing() == []


@pytest.mark.parametrize("model", [AuditEntry, PlanRevision])
def test_it_sees_what_an_alteration_took_away(mended, model):
    """SQLite remakes the table, and its triggers are gone; PostgreSQL keeps them."""
    old = model._meta.get_field("state" if model is PlanRevision else "action")
    new = old.clone()
    new.max_length += 1
    new.set_attributes_from_name(old.name)
    new.model = model

    about_to_migrate([("a migration", False)])
    with connection.schema_editor() as editor:
        editor.alter_field(model, old, new)
    gone = guards.missing()
    with connection.schema_editor() as editor:
        editor.alter_field(model, new, old)

    assert bool(gone) is (connection.vendor == "sqlite")


def test_it_can_be_installed_twice_and_at_the_same_time_as_nothing(mended):
    guards.install()
    guards.install()

    assert guards.missing() == []


def test_it_makes_no_way_when_there_is_nothing_to_migrate(mended):
    about_to_migrate([])

    assert guards.missing() == []


@pytest.mark.parametrize("table", ["licensing_auditentry", "licensing_term", "licensing_licensekey"])
def test_it_cannot_be_got_around_by_the_row_numbers_of_sqlite(db, table):
    if connection.vendor != "sqlite":
        assert not [guard for guard in guards.expected(connection.vendor) if guard.only == "sqlite"]
        return
    make_license()
    with connection.cursor() as cursor:
        cursor.execute(f'SELECT rowid, * FROM "{table}" LIMIT 1')
        columns = [column[0] for column in cursor.description]
        row = list(cursor.fetchone())
        row[columns.index("id")] = "f" * 32
        for name, value in (("starts_at", "2001-01-01"), ("digest", b"x" * 32), ("license_id", "e" * 32)):
            if name in columns:
                row[columns.index(name)] = value
        marks = ", ".join(["%s"] * len(row))

        with pytest.raises(IntegrityError):
            cursor.execute(f'INSERT OR REPLACE INTO "{table}" ({", ".join(columns)}) VALUES ({marks})', row)
