"""The database guards of billing's tables; how they are held see `licensing.guards`."""

from billing.models import (
    DunningStep,
    GatewayEvent,
    LiveComparison,
    MeterRevision,
    Payment,
    PriceRevision,
    Reversal,
    Rollout,
    RolloutDifference,
    RolloutMember,
    Statement,
    StatementLine,
    UsageEvent,
    UsageId,
)
from billing.windows import ARCHIVE, REMEMBERED
from licensing.guards import Guard, changed, never_gone
from licensing.models import JobState


def expected() -> list[Guard]:
    """Return every guard there must be on the tables of billing."""
    guards: list[Guard] = []
    for model, what in ((MeterRevision, "a meter revision"), (PriceRevision, "a price revision")):
        table = model._meta.db_table
        guards += [
            Guard(
                f"{table}_content",
                table,
                "UPDATE",
                f"{what} never changes once it is published; make a new one",
                f"OLD.\"state\" <> 'draft' AND ({changed(model, without=('state', 'retired_at'))})",
            ),
            Guard(
                f"{table}_state",
                table,
                "UPDATE",
                f"{what} goes from draft to published to retired and never back",
                'OLD."state" {differs} NEW."state" AND NOT (OLD."state" = \'draft\' AND NEW."state" = \'published\')'
                " AND NOT (OLD.\"state\" = 'published' AND NEW.\"state\" = 'retired')",
            ),
            *never_gone(model, what, unless="OLD.\"state\" = 'draft'"),
        ]
    return [*guards, *_statements(), *_usage(), *_rollouts(), *_payments()]


def _statements() -> list[Guard]:
    """A statement that is final says for ever what it said; so do its lines, and none joins them."""
    table, line = Statement._meta.db_table, StatementLine._meta.db_table
    final = f'EXISTS (SELECT 1 FROM "{table}" s WHERE s."id" = {{row}}."statement_id" AND s."state" <> \'draft\')'
    draft = f'EXISTS (SELECT 1 FROM "{table}" s WHERE s."id" = OLD."statement_id" AND s."state" = \'draft\')'
    settled = ("state", "paid_at", "void_at", "void_reason", "gateway_invoice")
    return [
        Guard(
            f"{table}_content",
            table,
            "UPDATE",
            "a statement never changes once it is final; correct it by an adjustment on the next",
            f"OLD.\"state\" <> 'draft' AND ({changed(Statement, without=settled)})"
            f" OR OLD.\"state\" IN ('paid', 'void') AND ({changed(Statement, without=('gateway_invoice',))})",
        ),
        Guard(
            f"{table}_state",
            table,
            "UPDATE",
            "a statement goes from draft to final to paid or void and never back",
            'OLD."state" {differs} NEW."state" AND NOT (OLD."state" = \'draft\' AND NEW."state" = \'final\')'
            " AND NOT (OLD.\"state\" = 'final' AND NEW.\"state\" IN ('paid', 'void'))",
        ),
        *never_gone(
            Statement,
            "a statement",
            unless="OLD.\"state\" = 'draft'",
            or_same='kept."customer_id" = NEW."customer_id" AND (kept."number" = NEW."number"'
            ' OR kept."currency" = NEW."currency" AND kept."starts_at" = NEW."starts_at"'
            " AND kept.\"state\" <> 'void' AND NEW.\"state\" <> 'void')",
        ),
        Guard(f"{line}_insert", line, "INSERT", "a final statement takes no further line", final.format(row="NEW")),
        Guard(
            f"{line}_update",
            line,
            "UPDATE",
            "a line of a final statement never changes",
            f"{final.format(row='OLD')} OR {final.format(row='NEW')}",
        ),
        *never_gone(
            StatementLine,
            "a line of a final statement",
            unless=draft,
            or_same='kept."statement_id" = NEW."statement_id" AND kept."position" = NEW."position"',
        ),
    ]


def _usage() -> list[Guard]:
    """Events go in one way, by the archive: as a whole partition on PostgreSQL; on SQLite, which has none, only those
    before the mark that the archive sets when it has written them. Nothing here costs an insert on PostgreSQL.
    """
    event, known = UsageEvent._meta.db_table, UsageId._meta.db_table
    what, seen = "a usage event", "the memory of a usage event's id"
    archived = (
        f'EXISTS (SELECT 1 FROM "{JobState._meta.db_table}" s WHERE s."name" = \'{ARCHIVE}\''
        ' AND s."watermark_at" > OLD."occurred_at")'
    )
    same = 'kept."license_id" = NEW."license_id" AND kept."occurred_at" = NEW."occurred_at"'
    same += ' AND kept."event_id" = NEW."event_id"'
    days = REMEMBERED.days
    young: list[tuple[str, str]] = [
        ("postgresql", f"OLD.\"received_at\" > CURRENT_TIMESTAMP - INTERVAL '{days} days'"),
        ("sqlite", f"OLD.\"received_at\" > datetime('now', '-{days} days')"),
    ]
    return [
        Guard(f"{event}_update", event, "UPDATE", f"{what} never changes; send a correction"),
        Guard(f"{event}_delete", event, "DELETE", f"{what} is never deleted", only="postgresql"),
        Guard(f"{event}_gone", event, "DELETE", f"{what} is only archived", f"NOT ({archived})", only="sqlite"),
        Guard(f"{event}_truncate", event, "TRUNCATE", f"{what} is never deleted"),
        Guard(
            f"{event}_replace",
            event,
            "INSERT",
            f"{what} is never replaced",
            f'EXISTS (SELECT 1 FROM "{event}" kept WHERE {same})',
            only="sqlite",
        ),
        Guard(f"{known}_update", known, "UPDATE", f"{seen} never changes"),
        *(
            Guard(f"{known}_delete_{vendor}", known, "DELETE", f"{seen} is kept {days} days", condition, only=vendor)
            for vendor, condition in young
        ),
        Guard(f"{known}_truncate", known, "TRUNCATE", f"{seen} is kept {days} days"),
        Guard(
            f"{known}_replace",
            known,
            "INSERT",
            f"{seen} is never replaced",
            f'EXISTS (SELECT 1 FROM "{known}" kept WHERE kept."license_id" = NEW."license_id"'
            ' AND kept."event_id" = NEW."event_id")',
            only="sqlite",
        ),
    ]


def _rollouts() -> list[Guard]:
    """A rollout, whom it was about and what it found are kept for ever."""
    member, difference = RolloutMember._meta.db_table, RolloutDifference._meta.db_table
    goes_on = tuple(
        {field.name for field in RolloutMember._meta.concrete_fields} - {"id", "rollout", "license", "place"}
    )
    return [
        *never_gone(Rollout, "a rollout", or_same='kept."code" = NEW."code"'),
        Guard(
            f"{member}_final",
            member,
            "UPDATE",
            "a member of a rollout keeps its license and its place, and what it became in the end",
            f"({changed(RolloutMember, without=goes_on)}) OR OLD.\"state\" IN ('reverted', 'final')",
        ),
        *never_gone(
            RolloutMember,
            "a member of a rollout",
            or_same='kept."rollout_id" = NEW."rollout_id" AND kept."license_id" = NEW."license_id"',
        ),
        Guard(f"{difference}_update", difference, "UPDATE", "a difference that was found never changes"),
        *never_gone(RolloutDifference, "a difference that was found"),
        *never_gone(
            LiveComparison,
            "a comparison of live requests",
            or_same='kept."member_id" = NEW."member_id"',
            replaced_on="sqlite",
        ),
    ]


def _payments() -> list[Guard]:
    """What came in, from whom we heard of it and what was done meanwhile is a record: it only grows."""
    guards: list[Guard] = []
    for model, what, same in (
        (GatewayEvent, "an event of the gateway", 'kept."event_id" = NEW."event_id"'),
        (Payment, "a payment", 'kept."source" = NEW."source" AND kept."reference" = NEW."reference"'),
        (
            DunningStep,
            "a dunning step",
            'kept."statement_id" = NEW."statement_id" AND kept."days" = NEW."days" AND kept."act" = NEW."act"',
        ),
    ):
        table = model._meta.db_table
        guards.append(Guard(f"{table}_update", table, "UPDATE", f"{what} never changes"))
        # On PostgreSQL there is no INSERT OR REPLACE, and a duplicate must meet its unique key, which waits.
        guards += never_gone(model, what, or_same=same, replaced_on="sqlite")
    table = Reversal._meta.db_table
    return [
        *guards,
        Guard(
            f"{table}_content",
            table,
            "UPDATE",
            "of what was taken back only how it stands changes",
            changed(Reversal, without=("stands", "status")),
        ),
        *never_gone(
            Reversal, "what was taken back", or_same='kept."reference" = NEW."reference"', replaced_on="sqlite"
        ),
    ]
