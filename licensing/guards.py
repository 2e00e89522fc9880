"""The database guards: triggers that hold append-only and immutability also against SQL typed by hand.

One of them does something instead: it notes each audit entry for the chain.

This module owns all of them. They are reinstalled after every migrate (SQLite loses a table's triggers when it
remakes it), compared with what is expected at start and by the readiness check, and there is no way here to
lift them. They stop accidents and a captured application, not a database administrator: for that there is
the audit chain.

Source: measured behaviour R8-R12: PostgreSQL triggers are ENABLE ALWAYS, SQLite gets an insert guard because
INSERT OR REPLACE deletes without firing delete triggers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from django.db import connections, models, transaction

from licensing.models import (
    Activation,
    AuditCheckpoint,
    AuditEntry,
    AuditLink,
    AuditWaiting,
    Entitlement,
    Hold,
    KeyCanary,
    Lease,
    License,
    LicenseFile,
    LicenseKey,
    PlanRevision,
    RequestNonce,
    RuleRevision,
    SchemeChange,
    Seat,
    Term,
)

Event = Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"]


@dataclass(frozen=True, slots=True)
class Guard:
    """One rule a trigger holds: refuse `event` on `table` when `condition` (always, if empty).

    `condition` is SQL both vendors read, over OLD and NEW; `{differs}` stands for the null-safe inequality. One that
    `does` something refuses nothing: after the event it runs that statement, on another table.
    """

    name: str
    table: str
    event: Event
    message: str
    condition: str = ""
    only: str = ""  # the one vendor it is for
    does: str = ""
    on: str = ""  # the other table: without it there is no trigger either


def _columns(model: type[models.Model], *, without: tuple[str, ...]) -> list[str]:
    return [str(field.column) for field in model._meta.concrete_fields if field.name not in without]


def changed(model: type[models.Model], *, without: tuple[str, ...] = ()) -> str:
    """Return the condition of an UPDATE that changes any column of the model but these."""
    return " OR ".join(f'OLD."{column}" {{differs}} NEW."{column}"' for column in _columns(model, without=without))


def never_gone(
    model: type[models.Model], what: str, *, unless: str = "", or_same: str = "", replaced_on: str = ""
) -> list[Guard]:
    """Return the guards of rows that are never deleted, however the deletion is spelled.

    `unless` names the rows that may go; `or_same` is a further condition (over the existing row `kept`) under
    which SQLite's INSERT OR REPLACE would silently delete a kept row; `replaced_on` says on which database alone to
    look for that, where a request waits for the insert.
    """
    table, key = model._meta.db_table, model._meta.pk.column
    same = f'kept."{key}" = NEW."{key}"{f" OR ({or_same})" if or_same else ""}'
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
            only=replaced_on,
        ),
        _rowid_stays(table, what),
    ]


def _rowid_stays(table: str, what: str) -> Guard:
    # SQLite's own number of a row: UPDATE OR REPLACE to another row's number would delete that row.
    moved = "OLD.rowid IS NOT NEW.rowid"
    return Guard(f"{table}_rowid", table, "UPDATE", f"{what} is never replaced", moved, only="sqlite")


_others: list[Callable[[], list[Guard]]] = []


def include(source: Callable[[], list[Guard]]) -> None:
    """Hold the guards of an app above this one as well."""
    _others.append(source)


def expected(vendor: str = "") -> list[Guard]:
    """Return every guard there must be, on one database vendor or on all."""
    guards = [*_all(), *(guard for source in _others for guard in source())]
    return [guard for guard in guards if not vendor or guard.only in ("", vendor)]


def _all() -> list[Guard]:
    revision, entitlement = PlanRevision._meta.db_table, Entitlement._meta.db_table
    audit, term, hold = AuditEntry._meta.db_table, Term._meta.db_table, Hold._meta.db_table
    license_, key, seat = License._meta.db_table, LicenseKey._meta.db_table, Seat._meta.db_table
    activation, lease, file = Activation._meta.db_table, Lease._meta.db_table, LicenseFile._meta.db_table
    change = SchemeChange._meta.db_table
    nonce, canary = RequestNonce._meta.db_table, KeyCanary._meta.db_table
    waiting, link, checkpoint = (row._meta.db_table for row in (AuditWaiting, AuditLink, AuditCheckpoint))
    thresholds = RuleRevision._meta.db_table
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
        *never_gone(AuditEntry, "an audit entry"),
        Guard(
            f"{audit}_noted",
            audit,
            "INSERT",
            "every audit entry is noted for the chain",
            does=f'INSERT INTO "{waiting}" ("entry_id") VALUES (NEW."id") ON CONFLICT DO NOTHING',
            on=waiting,
        ),
        Guard(f"{link}_update", link, "UPDATE", "a link of the audit chain never changes"),
        *never_gone(
            AuditLink, "a link of the audit chain", or_same='kept."entry_id" = NEW."entry_id"', replaced_on="sqlite"
        ),
        Guard(f"{checkpoint}_update", checkpoint, "UPDATE", "a checkpoint never changes"),
        *never_gone(AuditCheckpoint, "a checkpoint"),
        Guard(
            f"{revision}_content",
            revision,
            "UPDATE",
            "a published plan revision never changes; make a new revision",
            f"OLD.\"state\" <> 'draft' AND ({changed(PlanRevision, without=('state', 'retired_at'))})",
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
        *never_gone(
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
        Guard(
            f"{term}_update",
            term,
            "UPDATE",
            "a term never changes but that it is undone, once; open a new one",
            f'OLD."undone_at" IS NOT NULL OR NEW."undone_at" IS NULL OR ({changed(Term, without=("undone_at",))})',
        ),
        *never_gone(
            Term,
            "a term",
            or_same='kept."license_id" = NEW."license_id" AND kept."starts_at" = NEW."starts_at"'
            ' AND kept."undone_at" IS NULL AND NEW."undone_at" IS NULL',
        ),
        Guard(
            f"{change}_final",
            change,
            "UPDATE",
            "a change of scheme keeps what was asked for, and its images once it is applied",
            f"({changed(SchemeChange, without=_CHANGE_GOES_ON)})"
            f" OR OLD.\"state\" NOT IN ('scheduled', 'applied') AND ({changed(SchemeChange, without=_ERASED)})"
            f" OR OLD.\"state\" = 'applied' AND ({changed(SchemeChange, without=_CHANGE_ENDS)}"
            f" OR NEW.\"state\" <> 'undone' AND ({changed(SchemeChange, without=_ERASED)}))",
        ),
        *never_gone(
            SchemeChange,
            "a change of scheme",
            or_same='kept."license_id" = NEW."license_id" AND kept."state" = \'scheduled\''
            ' AND NEW."state" = \'scheduled\' OR kept."term_id" = NEW."term_id"',
        ),
        Guard(
            f"{hold}_update",
            hold,
            "UPDATE",
            "a hold is lifted once and otherwise never changes",
            f'OLD."lifted_at" IS NOT NULL OR ({changed(Hold, without=("lifted_at",))})',
        ),
        *never_gone(
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
        *never_gone(License, "an issued license", unless='OLD."issued_at" IS NULL'),
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
        *never_gone(
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
            f'OLD."released_at" IS NOT NULL AND ({changed(Seat, without=("holder",))})'
            f' OR OLD."license_id" {{differs}} NEW."license_id" OR {id_changes}'
            f' OR OLD."holder" {{differs}} NEW."holder" AND EXISTS (SELECT 1 FROM "{seat}" kept'
            ' WHERE kept."id" <> NEW."id" AND kept."license_id" = NEW."license_id"'
            ' AND kept."holder" = NEW."holder" AND kept."released_at" IS NULL AND NEW."released_at" IS NULL)',
        ),
        *never_gone(
            Seat,
            "a seat",
            or_same='kept."license_id" = NEW."license_id" AND kept."holder" = NEW."holder"'
            ' AND kept."released_at" IS NULL AND NEW."released_at" IS NULL',
        ),
        Guard(
            f"{activation}_final",
            activation,
            "UPDATE",
            "a machine let go stays so, and an activation keeps its license, its machine, its key and what it counted",
            'OLD."deactivated_at" IS NOT NULL AND OLD."deactivated_at" {differs} NEW."deactivated_at"'
            ' OR OLD."license_id" {differs} NEW."license_id" OR OLD."fingerprint" {differs} NEW."fingerprint"'
            ' OR OLD."activated_at" {differs} NEW."activated_at" OR NEW."counter_floor" < OLD."counter_floor"'
            ' OR OLD."key_thumbprint" <> \'\' AND (OLD."key_thumbprint" {differs} NEW."key_thumbprint"'
            ' OR OLD."public_key" {differs} NEW."public_key")'
            f' OR OLD."cloned_at" IS NOT NULL AND OLD."cloned_at" {{differs}} NEW."cloned_at" OR {id_changes}'
            f' OR OLD."scope" {{differs}} NEW."scope" AND NEW."deactivated_at" IS NULL AND EXISTS ('
            f'SELECT 1 FROM "{activation}" kept WHERE kept."id" <> NEW."id" AND kept."scope" = NEW."scope"'
            ' AND kept."fingerprint" = NEW."fingerprint" AND kept."deactivated_at" IS NULL)'
            ' OR OLD."key_thumbprint" {differs} NEW."key_thumbprint" AND NEW."deactivated_at" IS NULL AND EXISTS ('
            f'SELECT 1 FROM "{activation}" kept WHERE kept."id" <> NEW."id" AND kept."license_id" = NEW."license_id"'
            ' AND kept."key_thumbprint" = NEW."key_thumbprint" AND kept."deactivated_at" IS NULL)',
        ),
        *never_gone(
            Activation,
            "an activation",
            or_same='kept."deactivated_at" IS NULL AND NEW."deactivated_at" IS NULL AND ('
            'kept."fingerprint" = NEW."fingerprint" AND (kept."license_id" = NEW."license_id"'
            ' OR kept."scope" = NEW."scope") OR kept."license_id" = NEW."license_id"'
            ' AND NEW."key_thumbprint" <> \'\' AND kept."key_thumbprint" = NEW."key_thumbprint")',
        ),
        Guard(
            f"{lease}_final",
            lease,
            "UPDATE",
            "a lease that ended never changes, none is shortened, and each keeps its license and machine",
            f'OLD."ended_at" IS NOT NULL AND ({changed(Lease)})'
            f' OR ({changed(Lease, without=_LEASE_GOES_ON)}) OR NEW."expires_at" < OLD."expires_at"',
        ),
        *never_gone(
            Lease,
            "a lease",
            or_same='kept."license_id" = NEW."license_id" AND NEW."fingerprint" <> \'\''
            ' AND kept."fingerprint" = NEW."fingerprint" AND kept."ended_at" IS NULL AND NEW."ended_at" IS NULL',
        ),
        Guard(f"{file}_update", file, "UPDATE", "the record of a license file never changes"),
        *never_gone(LicenseFile, "the record of a license file"),
        Guard(f"{nonce}_update", nonce, "UPDATE", "the memory of an accepted request never changes"),
        *never_gone(
            RequestNonce,
            "the memory of a request whose counter could come again",
            unless=f'EXISTS (SELECT 1 FROM "{activation}" a WHERE a."id" = OLD."activation_id"'
            ' AND a."counter_floor" >= OLD."counter")',
            or_same='kept."activation_id" = NEW."activation_id"'
            ' AND (kept."nonce" = NEW."nonce" OR kept."counter" = NEW."counter")',
            replaced_on="sqlite",
        ),
        Guard(
            f"{canary}_final",
            canary,
            "UPDATE",
            "a key's canary never changes but once, when the key is destroyed",
            f'OLD."destroyed_at" IS NOT NULL OR ({changed(KeyCanary, without=("destroyed_at",))})',
        ),
        *never_gone(KeyCanary, "a key's canary"),
        Guard(f"{thresholds}_update", thresholds, "UPDATE", "what a rule went by never changes; make a new revision"),
        *never_gone(
            RuleRevision,
            "what a rule went by",
            or_same='kept."rule" = NEW."rule" AND kept."number" = NEW."number"',
            replaced_on="sqlite",
        ),
    ]


# What a change of scheme may still learn, and what of that stays as it is once it is applied.
_ERASED = ("actor_label",)  # of a person who is erased, in whatever state
_CHANGE_GOES_ON = ("state", "applied_at", "ended_at", "refusal", "term", "before", "after", *_ERASED)
_CHANGE_ENDS = ("state", "ended_at", *_ERASED)

# What a live lease may change: it is renewed, borrowed or ended, or its machine's activation becomes known.
_LEASE_GOES_ON = ("activation", "offline", "renewed_at", "expires_at", "ended_at")


def _sqlite(guard: Guard) -> str:
    if guard.does:
        return f'CREATE TRIGGER "guard_{guard.name}" AFTER {guard.event} ON "{guard.table}" BEGIN {guard.does}; END'
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
    if guard.does:
        return (
            f'CREATE OR REPLACE FUNCTION "guard_{guard.name}"() RETURNS trigger LANGUAGE plpgsql AS $guard$ BEGIN '
            f"{guard.does}; RETURN NULL; END $guard$"
        )
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
        for guard in [guard for guard in guards if guard.on and guard.on not in tables]:  # migrated back
            guards.remove(guard)
            at_table = f' ON "{guard.table}"' if connection.vendor == "postgresql" else ""
            cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"{at_table}')
        if connection.vendor == "postgresql":
            # Two migrates at once would replace the same functions: the second waits here.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('licensing guards'))")
            for guard in guards:
                level = "STATEMENT" if guard.event == "TRUNCATE" else "ROW"
                cursor.execute(_postgresql_function(guard))
                cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}" ON "{guard.table}"')
                cursor.execute(
                    f'CREATE TRIGGER "guard_{guard.name}" {"AFTER" if guard.does else "BEFORE"} {guard.event} '
                    f'ON "{guard.table}" FOR EACH {level} EXECUTE FUNCTION "guard_{guard.name}"()'
                )
                # ALWAYS: also under session_replication_role = replica (measured: R12).
                cursor.execute(f'ALTER TABLE "{guard.table}" ENABLE ALWAYS TRIGGER "guard_{guard.name}"')
            for table in sorted({guard.table for guard in guards}):
                guard_partitions(cursor, table)
            return
        for guard in guards:
            if guard.event != "TRUNCATE":
                cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"')
                cursor.execute(_sqlite(guard))


def partitions_of(cursor: Any, table: str) -> list[str]:
    """Return the partitions of a table of PostgreSQL."""
    cursor.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass(%s) ORDER BY 1",
        [f'"{table}"'],
    )
    return [name for (name,) in cursor.fetchall()]


def guard_partitions(cursor: Any, table: str) -> None:
    """Put the guards of a table on its partitions, after one was made.

    PostgreSQL copies the triggers of rows to partitions by itself, as they are, but not those of TRUNCATE: it could
    empty a partition whose table it may not.
    """
    guards = [guard for guard in expected("postgresql") if guard.table == table and guard.event == "TRUNCATE"]
    for partition in partitions_of(cursor, table) if guards else ():
        for guard in guards:
            cursor.execute(_postgresql_function(guard))
            cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}" ON "{partition}"')
            cursor.execute(
                f'CREATE TRIGGER "guard_{guard.name}" BEFORE TRUNCATE ON "{partition}"'
                f' FOR EACH STATEMENT EXECUTE FUNCTION "guard_{guard.name}"()'
            )
            cursor.execute(f'ALTER TABLE "{partition}" ENABLE ALWAYS TRIGGER "guard_{guard.name}"')


def make_way(*, using: str = "default") -> None:
    """Drop the guards before a migration, on SQLite only.

    SQLite refuses to remake a table that a trigger of another table names, and to drop a column that one of its own
    does. Every migrate ends in `install`; one that breaks off leaves these missing, and `missing` says so.
    """
    connection = connections[using]
    if connection.vendor != "sqlite":
        return
    with connection.cursor() as cursor:
        for guard in expected():
            cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"')


# pg_trigger.tgtype of a BEFORE trigger, per row but for TRUNCATE.
_TYPES = {"INSERT": 1 | 2 | 4, "DELETE": 1 | 2 | 8, "UPDATE": 1 | 2 | 16, "TRUNCATE": 2 | 32}


def _type(guard: Guard) -> int:
    return _TYPES[guard.event] & ~2 if guard.does else _TYPES[guard.event]


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
            cursor.execute(
                "SELECT p.relname, c.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent"
                " JOIN pg_class c ON c.oid = i.inhrelid WHERE p.relkind = 'p' AND pg_table_is_visible(p.oid)"
            )
            parts: dict[str, list[str]] = {}
            for table, partition in cursor.fetchall():
                parts.setdefault(table, []).append(partition)
            return [
                guard.name
                for guard in expected(connection.vendor)
                if not all(
                    _same_body(standing.get((f"guard_{guard.name}", table, _type(guard))), _postgresql_function(guard))
                    for table in (guard.table, *parts.get(guard.table, ()))
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
