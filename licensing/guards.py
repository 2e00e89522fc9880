"""The database guards: triggers that hold append-only and immutability also against SQL typed by hand.

This module owns all of them. They are reinstalled after every migrate (SQLite loses a table's triggers when it
remakes it), compared with what is expected at start and by the readiness check, and there is no way here to
lift them. They stop accidents and a captured application, not a database administrator: for that there is
the audit chain.

Source: measured behaviour R8-R12: PostgreSQL triggers are ENABLE ALWAYS, SQLite gets an insert guard because
INSERT OR REPLACE deletes without firing delete triggers.
"""

from dataclasses import dataclass
from typing import Any, Literal

from django.db import connections, models, transaction

from licensing.models import (
    AuditEntry,
    Entitlement,
    Hold,
    License,
    LicenseKey,
    PlanRevision,
    Seat,
    Term,
)

Event = Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"]


@dataclass(frozen=True, slots=True)
class Guard:
    """One rule a trigger holds: refuse `event` on `table` when `condition` (always, if empty).

    `condition` is SQL both vendors read, over OLD and NEW; `{differs}` stands for the null-safe inequality.
    """

    name: str
    table: str
    event: Event
    message: str
    condition: str = ""
    only: str = ""  # the one vendor it is for


def _columns(model: type[models.Model], *, without: tuple[str, ...]) -> list[str]:
    return [str(field.column) for field in model._meta.concrete_fields if field.name not in without]


def _changed(model: type[models.Model], *, without: tuple[str, ...] = ()) -> str:
    return " OR ".join(f'OLD."{column}" {{differs}} NEW."{column}"' for column in _columns(model, without=without))


def _never_gone(model: type[models.Model], what: str, *, unless: str = "", or_same: str = "") -> list[Guard]:
    """Return the guards of rows that are never deleted, however the deletion is spelled.

    `unless` names the rows that may go; `or_same` is a further condition (over the existing row `kept`) under
    which SQLite's INSERT OR REPLACE would silently delete a kept row.
    """
    table = model._meta.db_table
    same = f'kept."id" = NEW."id"{f" OR ({or_same})" if or_same else ""}'
    kept = f"AND NOT ({unless.replace('OLD.', 'kept.')})" if unless else ""
    return [
        Guard(
            f"{table}_delete",
            table,
            "DELETE",
            f"{what} is never deleted",
            f"NOT ({unless})" if unless else "",
        ),
        Guard(f"{table}_truncate", table, "TRUNCATE", f"{what} is never deleted"),
        Guard(
            f"{table}_replace",
            table,
            "INSERT",
            f"{what} is never replaced",
            f'EXISTS (SELECT 1 FROM "{table}" kept WHERE ({same}{{or_same_rowid}}) {kept})',
        ),
        _rowid_stays(table, what),
    ]


def _rowid_stays(table: str, what: str) -> Guard:
    # SQLite's own number of a row: UPDATE OR REPLACE to another row's number would delete that row.
    moved = "OLD.rowid IS NOT NEW.rowid"
    return Guard(f"{table}_rowid", table, "UPDATE", f"{what} is never replaced", moved, only="sqlite")


def expected(vendor: str = "") -> list[Guard]:
    """Return every guard there must be, on one database vendor or on all."""
    return [guard for guard in _all() if not vendor or guard.only in ("", vendor)]


def _all() -> list[Guard]:
    revision, entitlement = PlanRevision._meta.db_table, Entitlement._meta.db_table
    audit, term, hold = AuditEntry._meta.db_table, Term._meta.db_table, Hold._meta.db_table
    license_, key, seat = License._meta.db_table, LicenseKey._meta.db_table, Seat._meta.db_table
    id_changes = 'OLD."id" {differs} NEW."id"'
    draft_parent = (  # the names are ours: nothing in this SQL comes from outside
        f'NOT EXISTS (SELECT 1 FROM "{revision}" r WHERE r."id" = {{row}}."plan_revision_id" AND r."state" = \'draft\')'
    )
    entitlement_rules: list[tuple[Event, str]] = [
        (
            "INSERT",
            f"{draft_parent.format(row='NEW')}"
            f' OR EXISTS (SELECT 1 FROM "{entitlement}" kept WHERE kept."id" = NEW."id"{{or_same_rowid}})',
        ),
        ("UPDATE", f"{draft_parent.format(row='NEW')} OR {draft_parent.format(row='OLD')} OR {id_changes}"),
        ("DELETE", draft_parent.format(row="OLD")),
        ("TRUNCATE", ""),
    ]
    return [
        Guard(f"{audit}_update", audit, "UPDATE", "an audit entry never changes"),
        *_never_gone(AuditEntry, "an audit entry"),
        Guard(
            f"{revision}_content",
            revision,
            "UPDATE",
            "a published plan revision never changes; make a new revision",
            f"OLD.\"state\" <> 'draft' AND ({_changed(PlanRevision, without=('state', 'retired_at'))})",
        ),
        Guard(
            f"{revision}_state",
            revision,
            "UPDATE",
            "a plan revision goes from draft to published to retired and never back",
            'OLD."state" {differs} NEW."state" AND NOT (OLD."state" = \'draft\' AND NEW."state" = \'published\')'
            " AND NOT (OLD.\"state\" = 'published' AND NEW.\"state\" = 'retired')",
        ),
        Guard(
            f"{revision}_retired",
            revision,
            "UPDATE",
            "a retired plan revision never changes",
            'OLD."retired_at" IS NOT NULL AND OLD."retired_at" {differs} NEW."retired_at"',
        ),
        # SQLite's UPDATE OR REPLACE deletes what the changed row collides with, without a delete trigger.
        Guard(
            f"{revision}_overwrite",
            revision,
            "UPDATE",
            "a published plan revision is never replaced",
            f'{id_changes} OR EXISTS (SELECT 1 FROM "{revision}" kept WHERE kept."id" <> NEW."id"'
            ' AND kept."state" <> \'draft\' AND kept."plan_id" = NEW."plan_id" AND (kept."number" = NEW."number"'
            " OR kept.\"state\" = 'published' AND NEW.\"state\" = 'published'))",
        ),
        *_never_gone(
            PlanRevision,
            "a published plan revision",
            unless="OLD.\"state\" = 'draft'",
            or_same='kept."plan_id" = NEW."plan_id" AND (kept."number" = NEW."number"'
            " OR kept.\"state\" = 'published' AND NEW.\"state\" = 'published')",
        ),
        *(
            Guard(
                f"{entitlement}_{event.lower()}",
                entitlement,
                event,
                "the entitlements of a published plan revision never change; make a new revision",
                condition,
            )
            for event, condition in entitlement_rules
        ),
        _rowid_stays(entitlement, "an entitlement"),
        Guard(f"{term}_update", term, "UPDATE", "a term never changes; open a new one"),
        *_never_gone(
            Term,
            "a term",
            or_same='kept."license_id" = NEW."license_id" AND kept."starts_at" = NEW."starts_at"',
        ),
        Guard(
            f"{hold}_update",
            hold,
            "UPDATE",
            "a hold is lifted once and otherwise never changes",
            f'OLD."lifted_at" IS NOT NULL OR ({_changed(Hold, without=("lifted_at",))})',
        ),
        *_never_gone(
            Hold,
            "a hold",
            or_same='kept."license_id" = NEW."license_id" AND kept."reason" = NEW."reason"'
            ' AND kept."lifted_at" IS NULL AND NEW."lifted_at" IS NULL',
        ),
        Guard(
            f"{license_}_final",
            license_,
            "UPDATE",
            "a revoked license stays revoked, an issued one issued, and a license its product's",
            'OLD."revoked_at" IS NOT NULL AND OLD."revoked_at" {differs} NEW."revoked_at"'
            ' OR OLD."issued_at" IS NOT NULL AND OLD."issued_at" {differs} NEW."issued_at"'
            f' OR OLD."product_id" {{differs}} NEW."product_id" OR NEW."revision" < OLD."revision" OR {id_changes}',
        ),
        *_never_gone(License, "an issued license", unless='OLD."issued_at" IS NULL'),
        Guard(
            f"{key}_final",
            key,
            "UPDATE",
            "a license key belongs to its license and stays retired",
            'OLD."license_id" {differs} NEW."license_id" OR OLD."last5" {differs} NEW."last5"'
            ' OR OLD."retired_at" IS NOT NULL AND OLD."retired_at" {differs} NEW."retired_at"'
            f' OR {id_changes} OR OLD."digest" {{differs}} NEW."digest" AND EXISTS (SELECT 1 FROM "{key}" kept'
            ' WHERE kept."id" <> NEW."id" AND kept."digest" = NEW."digest")',
        ),
        *_never_gone(
            LicenseKey,
            "a license key",
            or_same='kept."digest" = NEW."digest" OR kept."license_id" = NEW."license_id"'
            ' AND kept."retired_at" IS NULL AND NEW."retired_at" IS NULL',
        ),
        Guard(
            f"{seat}_final",
            seat,
            "UPDATE",
            "a released seat never changes, and a seat belongs to its license",
            f'OLD."released_at" IS NOT NULL AND ({_changed(Seat, without=("holder",))})'
            f' OR OLD."license_id" {{differs}} NEW."license_id" OR {id_changes}'
            f' OR OLD."holder" {{differs}} NEW."holder" AND EXISTS (SELECT 1 FROM "{seat}" kept'
            ' WHERE kept."id" <> NEW."id" AND kept."license_id" = NEW."license_id"'
            ' AND kept."holder" = NEW."holder" AND kept."released_at" IS NULL AND NEW."released_at" IS NULL)',
        ),
        *_never_gone(
            Seat,
            "a seat",
            or_same='kept."license_id" = NEW."license_id" AND kept."holder" = NEW."holder"'
            ' AND kept."released_at" IS NULL AND NEW."released_at" IS NULL',
        ),
    ]


def _sqlite(guard: Guard) -> str:
    condition = guard.condition.replace("{differs}", "IS NOT")
    condition = condition.replace("{or_same_rowid}", " OR kept.rowid = NEW.rowid")
    when = f"WHEN {condition} " if condition else ""
    return (
        f'CREATE TRIGGER "guard_{guard.name}" BEFORE {guard.event} ON "{guard.table}" '
        f"{when}BEGIN SELECT RAISE(ABORT, '{_quoted(guard.message)}'); END"
    )


_LOCK_REVISION: dict[str, str] = {
    event: f'PERFORM 1 FROM "{PlanRevision._meta.db_table}" r WHERE r."id" = {row}."plan_revision_id" FOR SHARE; '
    for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD"))
}


def _postgresql_function(guard: Guard) -> str:
    condition = guard.condition.replace("{differs}", "IS DISTINCT FROM").replace("{or_same_rowid}", "") or "TRUE"
    # A draft published meanwhile must be seen: the lock waits for whoever publishes it, and holds them off.
    first = (
        _LOCK_REVISION[guard.event]
        if guard.table == Entitlement._meta.db_table and guard.event in _LOCK_REVISION
        else ""
    )
    kept = {"DELETE": "OLD", "TRUNCATE": "NULL"}.get(guard.event, "NEW")
    return (
        f'CREATE OR REPLACE FUNCTION "guard_{guard.name}"() RETURNS trigger LANGUAGE plpgsql AS $guard$ BEGIN {first}'
        f"IF {condition} THEN RAISE EXCEPTION '{_quoted(guard.message).replace('%', '%%')}' "
        f"USING ERRCODE = 'restrict_violation'; END IF; RETURN {kept}; END $guard$"
    )


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def install(*, using: str = "default") -> None:
    """Install every guard whose table exists, replacing what stands. Runs in one transaction, may run twice."""
    connection = connections[using]
    with transaction.atomic(using=using), connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
        guards = [guard for guard in expected(connection.vendor) if guard.table in tables]
        if connection.vendor == "postgresql":
            # Two migrates at once would replace the same functions: the second waits here.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('licensing guards'))")
            for guard in guards:
                level = "STATEMENT" if guard.event == "TRUNCATE" else "ROW"
                cursor.execute(_postgresql_function(guard))
                cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}" ON "{guard.table}"')
                cursor.execute(
                    f'CREATE TRIGGER "guard_{guard.name}" BEFORE {guard.event} ON "{guard.table}" '
                    f'FOR EACH {level} EXECUTE FUNCTION "guard_{guard.name}"()'
                )
                # ALWAYS: also under session_replication_role = replica (measured: R12).
                cursor.execute(f'ALTER TABLE "{guard.table}" ENABLE ALWAYS TRIGGER "guard_{guard.name}"')
            return
        for guard in guards:
            if guard.event != "TRUNCATE":
                cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"')
                cursor.execute(_sqlite(guard))


def make_way(*, using: str = "default") -> None:
    """Drop the guards that name another table than their own, before a migration, on SQLite only.

    SQLite refuses to remake a table that a trigger of another table names. Every migrate ends in `install`; one
    that breaks off leaves these missing, and `missing` says so.
    """
    connection = connections[using]
    if connection.vendor != "sqlite":
        return
    guards = expected()
    with connection.cursor() as cursor:
        for guard in guards:
            if any(f'"{other.table}"' in guard.condition for other in guards if other.table != guard.table):
                cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"')


# pg_trigger.tgtype of a BEFORE trigger, per row but for TRUNCATE.
_TYPES = {"INSERT": 1 | 2 | 4, "DELETE": 1 | 2 | 8, "UPDATE": 1 | 2 | 16, "TRUNCATE": 2 | 32}


def missing(*, using: str = "default") -> list[str]:
    """Return the names of guards that are absent, altered or not always on; empty when all stand."""
    connection = connections[using]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT t.tgname, c.relname, t.tgtype, p.prosrc FROM pg_trigger t "
                "JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid "
                "WHERE NOT t.tgisinternal AND t.tgenabled = 'A' AND t.tgqual IS NULL AND t.tgattr::text = '' "
                "AND pg_table_is_visible(c.oid)"
            )
            standing = {tuple(row[:3]): row[3] for row in cursor.fetchall()}
            return [
                guard.name
                for guard in expected(connection.vendor)
                if not _same_body(
                    standing.get((f"guard_{guard.name}", guard.table, _TYPES[guard.event])),
                    _postgresql_function(guard),
                )
            ]
        cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        found: dict[str, Any] = dict(cursor.fetchall())
        return [
            guard.name
            for guard in expected(connection.vendor)
            if guard.event != "TRUNCATE" and found.get(f"guard_{guard.name}") != _sqlite(guard)
        ]


def _same_body(standing: str | None, function: str) -> bool:
    return standing is not None and standing == function.split("$guard$")[1]
