"""What a meter revision makes of its events, as SQL: the same on PostgreSQL and on SQLite but for a few words.

Used for roll-ups, for what no roll-up covers, and to compare the two. It knows nothing of licenses, locks or what is
current; `billing.rollups` does.

How events are ordered where that matters (`latest`, `time_weighted_sum`): by when they occurred, then by `sequence`,
then by when they were received, then by id. A correction of a `count` meter counts by its quantity (-1 takes one
event away), of all others it is an event like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from django.db import connection
from django.utils.dateparse import parse_datetime

from billing.models import MeterRevision, Rollup, UsageChange, UsageEvent
from billing.states import Aggregation, Window

EVENTS, ROLLUPS, CHANGES = (f'"{model._meta.db_table}"' for model in (UsageEvent, Rollup, UsageChange))
Params = list[Any]
# These are made from the values in their order, so each total also keeps what it is joined to the next by.
ORDERED = frozenset({Aggregation.LATEST, Aggregation.TIME_WEIGHTED_SUM})
_NO_INSTANT, _NO_NUMBER = "CAST(NULL AS TIMESTAMPTZ)", "CAST(NULL AS NUMERIC)"
_ORDER = "e.occurred_at, COALESCE(e.sequence, 0), e.received_at, e.event_id"


@dataclass(frozen=True, slots=True)
class Words:
    """What the two databases spell differently; {0} and {1} are instants, `text` takes a column and a name."""

    start: dict[str, str]
    end: dict[str, str]
    seconds: str
    text: str
    least: str
    rounded: str
    apart: str


_WORDS = {
    "postgresql": Words(
        # date_bin costs a fifth of date_trunc with a time zone (measured on 10,000,000 rows).
        start={
            "hour": "date_bin('1 hour', {0}, TIMESTAMPTZ '2000-01-01 00:00+00')",
            "day": "date_bin('1 day', {0}, TIMESTAMPTZ '2000-01-01 00:00+00')",
            "month": "date_trunc('month', {0}, 'UTC')",
        },
        end={
            "hour": "({0} + INTERVAL '1 hour')",
            "day": "({0} + INTERVAL '24 hours')",
            "month": "date_trunc('month', {0} + INTERVAL '32 days', 'UTC')",
        },
        seconds="EXTRACT(EPOCH FROM ({0} - {1}))",
        text="({0} ->> %s)",
        least="LEAST",
        rounded="{0}",
        # Taken apart, the number of different hours is not guessed from the instants: as many as events, too many for a
        # parallel plan. And a bare 0 is cast first, no constant yet, and would rule a parallel plan out.
        apart=" OFFSET '0'",
    ),
    "sqlite": Words(
        start={
            "hour": "(substr({0}, 1, 13) || ':00:00')",
            "day": "(substr({0}, 1, 10) || ' 00:00:00')",
            "month": "(substr({0}, 1, 7) || '-01 00:00:00')",
        },
        end={name: f"datetime({{0}}, '+1 {name}')" for name in ("hour", "day", "month")},
        seconds="(django_timestamp_diff({0}, {1}) / 1000000.0)",
        text="CAST(json_extract({0}, '$.' || json_quote(%s)) AS TEXT)",
        least="MIN",
        rounded="ROUND({0}, 6)",  # sums of binary fractions: the same for whatever order they were added in
        apart="",
    ),
}


def words() -> Words:
    """Return how the database at hand spells it."""
    return _WORDS[connection.vendor]


def instant(value: datetime) -> Any:
    """Return an instant as the database compares it."""
    return connection.ops.adapt_datetimefield_value(value)


def identity(value: UUID) -> Any:
    """Return an id as the database keeps it."""
    return value if connection.features.has_native_uuid_field else value.hex


@dataclass(frozen=True, slots=True)
class Part:
    """The total of one stretch of time, for one group: what `billing.rollups` puts together."""

    starts_at: datetime
    ends_at: datetime
    quantity: Decimal
    events: int
    first_at: datetime | None = None
    last: Decimal | None = None
    group: tuple[str, ...] = ()


def from_events(
    *,
    revision: MeterRevision,
    where: str,
    params: Params,
    window: str = Window.HOUR,
    by: tuple[str, ...] = (),
    source: str = f"{EVENTS} e",
    until: datetime | None = None,
    values: bool = False,
    of: str = "",
    to: str = "",
) -> tuple[str, Params]:
    """Return a query for the totals of a revision's events: license_id, meter_revision_id, starts_at, quantity, events,
    first_at, last, and the groups.

    `source` and `where` say which events `e`, and may say by `of`, an instant of the source, which window each is in.
    An empty `window` makes one total of all, or of each `of`, which may be any value of the source's then; it ends at
    `to`, an instant of the source. `until` cuts the last window.
    `values` gives, of a `unique` meter, its different values as "grp", each counted.
    """
    say, kind = words(), revision.aggregation
    start = of or (say.start[window].format("e.occurred_at") if window else _NO_INSTANT)
    columns = f"e.license_id, e.meter_revision_id, {start} AS starts_at, e.quantity, e.occurred_at, e.kind"
    given: Params = []
    for position, name in enumerate(by):
        columns += f", {say.text.format('e.dimensions')} AS g{position}"
        given.append(name)
    if kind == Aggregation.UNIQUE:
        columns += f", {say.text.format('e.dimensions')} AS seen"
        given.append(revision.unique_by)
    if kind in ORDERED:
        groups = "".join(f", {say.text.format('e.dimensions')}" for _ in by)
        columns += (
            f", LEAD(e.occurred_at) OVER (PARTITION BY e.license_id, {start}{groups} ORDER BY {_ORDER}) AS next_at"
        )
        given += by
    if to:
        columns += f", {to} AS ends_at"
    conditions, more = _counts(revision)
    given += [*params, identity(revision.pk), *more]
    inner = f"SELECT {columns} FROM {source} WHERE {where} AND e.meter_revision_id = %s{conditions}{say.apart}"

    first, last = _NO_INSTANT, _NO_NUMBER
    if kind in ORDERED:
        first, last = "MIN(occurred_at)", "MAX(CASE WHEN next_at IS NULL THEN quantity END)"
    over: Params = []
    match kind:
        case Aggregation.SUM:
            quantity = say.rounded.format("SUM(quantity)")
        case Aggregation.COUNT:
            quantity = say.rounded.format("SUM(CASE WHEN kind = 'correction' THEN quantity ELSE 1 END)")
        case Aggregation.UNIQUE:
            quantity = "COUNT(DISTINCT seen)"
        case Aggregation.MAX:
            quantity = "MAX(quantity)"
        case Aggregation.LATEST:
            quantity = last
        case _:
            end = say.end[window].format("starts_at") if window else "ends_at" if to else ""
            if until is not None:
                end = f"{say.least}({end}, %s)" if end else "%s"
                over = [instant(until)]
            took = say.seconds.format(f"COALESCE(next_at, {end})", "occurred_at")
            quantity = say.rounded.format(f"SUM(quantity * {took})")
    named = "".join(f", g{position}" for position in range(len(by)))
    shown = named
    if values:
        quantity, named, shown = "1", f"{named}, seen", f"{named}, {_value()} AS grp"
        inner = f"SELECT * FROM ({inner}) all_of_them WHERE seen IS NOT NULL"
    query = (
        f"SELECT license_id, meter_revision_id, starts_at, {quantity} AS quantity, COUNT(*) AS events,"
        f" {first} AS first_at, {last} AS last{shown} FROM ({inner}) picked"
        f" GROUP BY license_id, meter_revision_id, starts_at{named}"
    )
    return query, [*over, *given]


def last_before(*, revision: MeterRevision, source: str, params: Params, floor: datetime | None) -> tuple[str, Params]:
    """Return a query for what the last event before each instant of the source said: n and the number, or none. The
    source is `w`, with n, license_id and first; before `floor` only roll-ups tell."""
    conditions, more = _counts(revision)
    mine = "license_id = w.license_id AND {0}.meter_revision_id = %s"
    latest = "e.occurred_at DESC, COALESCE(e.sequence, 0) DESC, e.received_at DESC, e.event_id DESC"
    events = f"SELECT e.quantity FROM {EVENTS} e WHERE e.{mine.format('e')} AND e.occurred_at < w.first{conditions}"
    given: Params = [identity(revision.pk), *more]
    if floor is None:
        return f"SELECT w.n, ({events} ORDER BY {latest} LIMIT 1) FROM {source}", [*given, *params]
    rolled = (
        f"SELECT r.last FROM {ROLLUPS} r WHERE r.{mine.format('r')} AND r.\"window\" = 'hour' AND r.\"group\" = ''"
        " AND r.starts_at < w.first AND r.starts_at < %s ORDER BY r.starts_at DESC LIMIT 1"
    )
    given = [*given, instant(floor), identity(revision.pk), instant(floor)]
    return (
        f"SELECT w.n, COALESCE(({events} AND e.occurred_at >= %s ORDER BY {latest} LIMIT 1), ({rolled})) FROM {source}",
        [*given, *params],
    )


def given(rows: Sequence[tuple[int, UUID, str, datetime, datetime]]) -> tuple[str, Params]:
    """Return a source `w` of rows that are handed to the database in one value: n, license_id, level, first, last."""
    if connection.vendor == "postgresql":
        names = ("n", "license_id", "level", "first", "last")
        value = orjson.dumps([dict(zip(names, row, strict=True)) for row in rows]).decode()
        columns = "n int, license_id uuid, level text, first timestamptz, last timestamptz"
        return f"json_to_recordset(%s::json) AS w({columns})", [value]
    shown = [[n, license_id.hex, level, instant(first), instant(last)] for n, license_id, level, first, last in rows]
    columns = ", ".join(
        f"json_extract(value, '$[{position}]') AS {name}"
        for position, name in enumerate(("n", "license_id", "level", "first", "last"))
    )
    return f"(SELECT {columns} FROM json_each(%s)) w", [orjson.dumps(shown).decode()]


def joined(source: str, table: str, where: str) -> tuple[str, str]:
    """Return source and condition of a join that looks up the table for each row of the source, whatever the planner
    thinks."""
    if connection.vendor == "postgresql":
        name = table.split()[-1]
        return f"{source} CROSS JOIN LATERAL (SELECT * FROM {table} WHERE {where} OFFSET 0) {name}", "1 = 1"
    return f"{source} CROSS JOIN {table}", where


def _value() -> str:
    # A value longer than a group holds is kept by its beginning and its digest: still a different one.
    return "'=' || CASE WHEN LENGTH(seen) <= 400 THEN seen ELSE substr(seen, 1, 400) || MD5(seen) END"


def _counts(revision: MeterRevision) -> tuple[str, Params]:
    """Return the condition that an event counts under the revision's filters."""
    text, params = "", list[Any]()
    for name, allowed in sorted(revision.filters.items()):
        if not allowed:
            return " AND 1 = 0", []
        text += f" AND {words().text.format('e.dimensions')} IN ({', '.join(['%s'] * len(allowed))})"
        params += [name, *map(str, allowed)]
    return text, params


FINER: dict[str, str] = {Window.DAY: Window.HOUR, Window.MONTH: Window.DAY}


def made_of(revision: MeterRevision, window: str) -> tuple[str, str]:
    """Return of which windows a day or a month is made, and the condition of those among the roll-ups `r`."""
    if revision.aggregation == Aggregation.UNIQUE:  # of the different values of its hours
        return Window.HOUR, "r.\"window\" = 'hour' AND r.\"group\" <> ''"
    return FINER[window], f"r.\"window\" = '{FINER[window]}' AND r.\"group\" = ''"


def from_rollups(
    *,
    revision: MeterRevision,
    window: str,
    where: str,
    params: Params,
    source: str = f"{ROLLUPS} r",
    of: str = "",
) -> tuple[str, Params]:
    """Return a query for the totals of days made of hours, or of months made of days: of those, `r`, that `source` and
    `where` say, and may say by `of`, an instant of the source, which window each is in.

    Exact for every aggregation: each total holds what it is joined to the next by, and the different values of a
    `unique` meter are counted by the hours' own rows of them.
    """
    say, kind = words(), revision.aggregation
    finer, these = made_of(revision, window)
    start = of or say.start[window].format("r.starts_at")
    columns = 'r.license_id, r.meter_revision_id, r.quantity, r.events, r.first_at, r.last, r."group" AS grp'
    columns += f", {start} AS starts_at, {say.end[finer].format('r.starts_at')} AS finer_end"
    if kind in ORDERED:
        columns += f", LEAD(r.first_at) OVER (PARTITION BY r.license_id, {start} ORDER BY r.starts_at) AS next_at"
    inner = f"SELECT {columns} FROM {source} WHERE {these} AND r.meter_revision_id = %s AND {where}"
    first, last = _NO_INSTANT, _NO_NUMBER
    if kind in ORDERED:
        first, last = "MIN(first_at)", "MAX(CASE WHEN next_at IS NULL THEN last END)"
    match kind:
        case Aggregation.SUM | Aggregation.COUNT:
            quantity = say.rounded.format("SUM(quantity)")
        case Aggregation.UNIQUE:
            quantity = "COUNT(DISTINCT grp)"
        case Aggregation.MAX:
            quantity = "MAX(quantity)"
        case Aggregation.LATEST:
            quantity = last
        case _:
            held = say.seconds.format(f"COALESCE(next_at, {say.end[window].format('starts_at')})", "finer_end")
            quantity = say.rounded.format(f"SUM(quantity + last * {held})")
    query = (
        f"SELECT license_id, meter_revision_id, starts_at, {quantity} AS quantity, SUM(events) AS events,"
        f" {first} AS first_at, {last} AS last FROM ({inner}) finer"
        " GROUP BY license_id, meter_revision_id, starts_at"
    )
    return query, [identity(revision.pk), *params]


def number(value: Any) -> Decimal | None:
    """Return a number of a query as Decimal; SQLite's are binary fractions, exact to six places."""
    if value is None or isinstance(value, Decimal):
        return value
    return round(Decimal(repr(value)), 6) if isinstance(value, float) else Decimal(value)


def moment(value: Any) -> datetime | None:
    """Return an instant of a query, which SQLite keeps as text."""
    if isinstance(value, str):
        value = parse_datetime(value)
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value
