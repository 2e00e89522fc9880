"""Totals of usage: rolled up by hour, day and month, and read for any stretch of time.

A roll-up is recomputed from the events, never incremented, so running it twice, late or again after it was killed
changes nothing. What it costs grows with what changed: the hours named by `UsageChange` rows, which whoever inserts
events writes in the same transaction. `totals` and `series` take whole windows from roll-ups where those are current,
and the rest (cut windows, hours with changes that wait) from the events: they are right whether or not a roll-up ran.

It prices nothing, and repairs nothing: `reconcile` says what differs, a person decides, `rebuild` does it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q

from billing import aggregates
from billing.aggregates import CHANGES, EVENTS, ROLLUPS, Params, Part, identity, instant, words
from billing.models import MeterRevision, Rollup, UsageChange, UsageEvent
from billing.states import COUNTED_LIVE, Aggregation, Window
from billing.windows import ACCEPTED_AHEAD, ACCEPTED_BACK, ARCHIVE
from licensing import anomalies, audit
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import Counter, JobState, License
from licensing.states import Severity

BATCH = {"postgresql": 1_000_000, "sqlite": 20_000}  # change rows in one transaction
WORK_MEMORY = "256MB"  # of PostgreSQL's, for the groups of a batch
PLACES = Decimal("0.000001")
_LEVELS: tuple[str, ...] = (Window.MONTH, Window.DAY, Window.HOUR)
_TAKEN, _FRESH = "billing_rollup_taken", "billing_rollup_fresh"


class EventsArchived(Refused):
    """The events of that time are archived: only whole hours can be told, and no groups."""

    code = "events_archived"


@dataclass(frozen=True, slots=True)
class Total:
    """What a meter revision makes of the events of a stretch of time, for one group of dimensions."""

    meter: str
    meter_revision_id: UUID
    group: dict[str, str]
    quantity: Decimal
    meter_name: str


@dataclass(frozen=True, slots=True)
class WindowTotal:
    """The total of one window of a series: of the part of it that was asked for."""

    starts_at: datetime
    ends_at: datetime
    total: Total


@dataclass(frozen=True, slots=True)
class Rolled:
    """What a roll-up has done."""

    changes: int
    hours: int
    batches: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Two records of the same usage that do not agree. `kind` is the rule of the anomaly."""

    kind: str
    license_id: UUID
    meter: str
    window: str
    starts_at: datetime
    recorded: Decimal | None
    counted: Decimal | None


# --- rolling up -------------------------------------------------------------------------------------


def roll_up(*, at: datetime, batch: int | None = None, progress: Callable[[Rolled], None] | None = None) -> Rolled:
    """Recompute every hour that events came in for, with its day and month; return how much was done.

    One transaction a batch of change rows: killed half-way, the batch has not happened and its change rows are still
    there. Change rows that are not committed yet are not seen, and come next time.
    """
    limit = batch or BATCH[connection.vendor]
    done = Rolled(0, 0, 0)
    while True:
        changes, hours, archived = _roll_up_once(limit)
        if archived:
            anomalies.flag(
                rule="usage_of_archived_time",
                severity=Severity.MEDIUM,
                object_kind="usageevent",
                object_id="archive",
                at=at,
                evidence={"hours": archived},
            )
        if changes:
            done = Rolled(done.changes + changes, done.hours + hours, done.batches + 1)
        if progress is not None and changes:
            progress(done)
        if changes < limit:
            return done


def _roll_up_once(limit: int) -> tuple[int, int, int]:
    with _alone() as cursor:
        changes = _take(cursor, limit)
        archived = hours = 0
        if changes:
            if (floor := archived_before()) is not None:
                cursor.execute(f"DELETE FROM {_TAKEN} WHERE hour < %s", [instant(floor)])
                archived = cursor.rowcount
            hours = _recompute(cursor)
        cursor.execute(f"DROP TABLE {_TAKEN}")
        return changes, hours, archived


def _take(cursor: Any, limit: int) -> int:
    """Take away change rows, and put the hours they name into the table of those to recompute; return how many rows.

    What is taken is what was seen, row by row: a change committed meanwhile stays for the next time. Rows of a license
    are taken together, so that an hour is seldom recomputed twice.
    """
    chosen = f"FROM {CHANGES} ORDER BY license_id, hour, meter_revision_id LIMIT %s"
    if connection.vendor == "postgresql":
        _make_taken(cursor)
        cursor.execute(
            f"WITH gone AS (DELETE FROM {CHANGES} WHERE ctid = ANY(ARRAY(SELECT ctid {chosen}))"
            " RETURNING license_id, meter_revision_id, hour),"
            f" kept AS (INSERT INTO {_TAKEN} SELECT DISTINCT license_id, meter_revision_id, hour FROM gone)"
            " SELECT COUNT(*) FROM gone",
            [limit],
        )
        return int(cursor.fetchone()[0])
    # It has one writer, so nothing is committed between the two.
    _make_taken(cursor, f"SELECT DISTINCT license_id, meter_revision_id, hour FROM (SELECT * {chosen}) seen", [limit])
    cursor.execute(f"DELETE FROM {CHANGES} WHERE id IN (SELECT id {chosen})", [limit])
    return int(cursor.rowcount)


def _make_taken(cursor: Any, query: str = "", params: Params | None = None) -> None:
    query = query or f"SELECT license_id, meter_revision_id, hour FROM {CHANGES} WHERE 1 = 0"
    cursor.execute(f"CREATE TEMPORARY TABLE {_TAKEN} AS {query}", params or [])


@contextmanager
def _alone() -> Iterator[Any]:
    """Be the one that writes roll-ups: of two with different pictures of a day the older could write last.

    Each day then holds, when it is written, every hour committed before, and what comes later has changes that wait.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":  # SQLite has one writer anyway
            cursor.execute("SET LOCAL statement_timeout = 0")
            cursor.execute("SET LOCAL lock_timeout = 0")
            cursor.execute("SET LOCAL jit = off")
            cursor.execute("SET LOCAL enable_memoize = off")  # no hour is looked up twice
            cursor.execute(f"SET LOCAL work_mem = '{WORK_MEMORY}'")
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('billing rollups'))")
        yield cursor


def _recompute(cursor: Any) -> int:
    """Recompute the hours that were taken, then the days and months they are in; return how many hours."""
    if connection.vendor == "postgresql":
        cursor.execute(f"ANALYZE {_TAKEN}")
    cursor.execute(f"SELECT meter_revision_id, COUNT(*), MIN(hour), MAX(hour) FROM {_TAKEN} GROUP BY meter_revision_id")
    taken = {
        str(revision): (hours, aggregates.moment(first), aggregates.moment(last))
        for revision, hours, first, last in cursor.fetchall()
    }
    for revision in MeterRevision.objects.filter(pk__in=taken):
        hours, first, last = taken[str(identity(revision.pk))]
        assert first is not None
        assert last is not None
        keep, new = _keep, False
        if _are_many(cursor, revision, hours, first, last + timedelta(hours=1)):
            keep, events = _keep_taken, _events_between(revision, first, last + timedelta(hours=1))
            new = not Rollup.objects.filter(meter_revision=revision).exists()
        else:
            events = _events_of_hours(revision, first, last + timedelta(hours=1))
        keep(cursor, Window.HOUR, *aggregates.from_events(**events), new=new)
        if revision.aggregation == Aggregation.UNIQUE:
            keep(cursor, Window.HOUR, *aggregates.from_events(**events, values=True), group="grp", new=new)
        for window in (Window.DAY, Window.MONTH):
            _, these = aggregates.made_of(revision, window)
            start, end = words().start[window].format("hour"), words().end[window].format("c.start")
            source, where = _each(
                f"(SELECT DISTINCT license_id, meter_revision_id, {start} AS start FROM {_of(revision)} mine) c",
                f"{ROLLUPS} r",
                f"r.license_id = c.license_id AND r.meter_revision_id = c.meter_revision_id AND {these}"
                f" AND r.starts_at >= c.start AND r.starts_at < {end}",
            )
            coarser: dict[str, Any] = {"revision": revision, "window": window, "of": "c.start"}
            _keep(cursor, window, *aggregates.from_rollups(**coarser, source=source, where=where, params=[]))
    return sum(hours for hours, _, _ in taken.values())


def _keep(cursor: Any, window: str, query: str, params: Params, group: str = "''", *, new: bool = False) -> None:
    """Write totals, in place of those there are. `new` says that there are none, which takes half the time."""
    cursor.execute(
        f'INSERT INTO {ROLLUPS} (license_id, meter_revision_id, "window", starts_at, "group", quantity, events,'
        f" first_at, last) SELECT license_id, meter_revision_id, %s, starts_at, {group}, quantity, events,"
        f" first_at, last FROM ({query}) fresh WHERE 1 = 1{'' if new else _REPLACING}",
        [window, *params],
    )


_REPLACING = (
    ' ON CONFLICT (license_id, meter_revision_id, "window", starts_at, "group") DO UPDATE SET'
    " quantity = excluded.quantity, events = excluded.events, first_at = excluded.first_at, last = excluded.last"
)


def _keep_taken(cursor: Any, window: str, query: str, params: Params, group: str = "''", *, new: bool = False) -> None:
    """Keep what a query over more than the hours taken says of those. It is put down first: PostgreSQL lets several
    processes work on CREATE TABLE AS, never on INSERT, nor on what reads a temporary table."""
    cursor.execute(f"CREATE TEMPORARY TABLE {_FRESH} AS {query}", params)
    taken = f"SELECT license_id, meter_revision_id, hour FROM {_TAKEN}"
    these = f"SELECT * FROM {_FRESH} WHERE (license_id, meter_revision_id, starts_at) IN ({taken})"
    _keep(cursor, window, these, [], group, new=new)
    cursor.execute(f"DROP TABLE {_FRESH}")


def _events_of_hours(revision: MeterRevision, starts_at: datetime, ends_at: datetime) -> dict[str, Any]:
    """Return which events are of the hours taken, each hour looked up by the key, in the partitions of their time."""
    end = words().end[Window.HOUR].format("c.hour")
    source, where = _each(
        f"{_of(revision)} c",
        f"{EVENTS} e",
        "e.license_id = c.license_id AND e.meter_revision_id = c.meter_revision_id AND e.occurred_at >= c.hour"
        f" AND e.occurred_at < {end} AND e.occurred_at >= %s AND e.occurred_at < %s",
    )
    return {
        "revision": revision,
        "source": source,
        "where": where,
        "params": [instant(starts_at), instant(ends_at)],
        "of": "c.hour",
    }


def _events_between(revision: MeterRevision, starts_at: datetime, ends_at: datetime) -> dict[str, Any]:
    """Return which events are of a time, all looked through once."""
    where = "e.occurred_at >= %s AND e.occurred_at < %s"
    return {"revision": revision, "where": where, "params": [starts_at, ends_at]}


def _of(revision: MeterRevision) -> str:
    return f"(SELECT * FROM {_TAKEN} WHERE meter_revision_id = '{identity(revision.pk)}')"


# How many events can be looked through while an hour is looked up by the key, and an event of it read (measured).
_EVENTS_AN_HOUR, _EVENTS_AN_EVENT = 80, 8
_EVENT_BYTES = 150  # about what an event takes in its table
_ASKED_HOURS, _ASKED_EVENTS = 20, 1_000


def _are_many(cursor: Any, revision: MeterRevision, hours: int, starts_at: datetime, ends_at: datetime) -> bool:
    """Return whether the hours taken are so many of what there is that all events of their time are better looked
    through. A few of the hours tell how many events are in each, the size of the partitions how many there are.

    Left to itself the planner of PostgreSQL 15 reads all events for 200 hours and looks up 144,000 (measured).
    """
    if connection.vendor != "postgresql":
        return False
    cursor.execute(
        "SELECT COALESCE(SUM(pg_relation_size(c.oid)), 0) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = %s::regclass AND (c.relname = %s OR c.relname BETWEEN %s AND %s)",
        [
            UsageEvent._meta.db_table,
            f"{UsageEvent._meta.db_table}_default",
            *(f"{UsageEvent._meta.db_table}_y{at:%Ym%m}" for at in (starts_at, ends_at)),
        ],
    )
    between = float(cursor.fetchone()[0]) / _EVENT_BYTES
    if hours * _EVENTS_AN_HOUR > between:
        return True
    end = words().end[Window.HOUR].format("c.hour")
    cursor.execute(
        f"SELECT COUNT(*) FROM (SELECT * FROM {_of(revision)} mine LIMIT {_ASKED_HOURS}) c CROSS JOIN LATERAL"
        f" (SELECT 1 FROM {EVENTS} e WHERE e.license_id = c.license_id AND e.occurred_at >= c.hour"
        f" AND e.occurred_at < {end} LIMIT {_ASKED_EVENTS}) e"
    )
    each = cursor.fetchone()[0] / min(hours, _ASKED_HOURS)
    return bool(hours * (_EVENTS_AN_HOUR + each * _EVENTS_AN_EVENT) > between)


def _each(outer: str, inner: str, where: str) -> tuple[str, str]:
    """Return source and condition of a join that looks up `inner` for each of `outer`, whatever the planner thinks."""
    if connection.vendor == "postgresql":
        name = inner.split()[-1]
        return f"{outer} CROSS JOIN LATERAL (SELECT * FROM {inner} WHERE {where} OFFSET 0) {name}", "1 = 1"
    return f"{outer} CROSS JOIN {inner}", where


def pending(*, license_id: UUID | None = None, before: datetime | None = None) -> bool:
    """Return whether changes wait for a roll-up: of a license or of any, of hours before an instant or of any."""
    rows = UsageChange.objects.all()
    if license_id is not None:
        rows = rows.filter(license_id=license_id)
    if before is not None:
        rows = rows.filter(hour__lt=before)
    return rows.exists()


def archived_before() -> datetime | None:
    """Return up to when events are archived: of before there are only roll-ups. None where all events are there."""
    return JobState.objects.filter(name=ARCHIVE).values_list("watermark_at", flat=True).first()


# --- reading ----------------------------------------------------------------------------------------


def totals(
    *, license_id: UUID, starts_at: datetime, ends_at: datetime, meter: str | None = None, by: tuple[str, ...] = ()
) -> list[Total]:
    """Return what was used from `starts_at` up to, not including, `ends_at`: of one meter or of all, by dimensions.

    Events of different meter revisions are totalled apart. A time-weighted sum is in seconds; the last value before
    the stretch counts from its start, of a retired revision until it could no longer receive events. An event inserted
    without its `UsageChange` row is seen only where events are read: in cut hours, hours that wait, and groups.

    Raises:
        EventsArchived: the stretch begins or ends within an hour whose events are archived, or groups of then.
    """
    return [
        total.total
        for revision in _revisions(license_id, meter)
        for total in _measured(license_id, revision, [(starts_at, ends_at)], Window.MONTH, by)
    ]


def series(
    *,
    license_id: UUID,
    starts_at: datetime,
    ends_at: datetime,
    window: str,
    meter: str | None = None,
    by: tuple[str, ...] = (),
) -> list[WindowTotal]:
    """Return the totals of each hour, day or month (in UTC) between two instants; the first and last may be cut.

    Windows without usage are left out. Raises `EventsArchived` as `totals` does.
    """
    cuts, cursor = list[tuple[datetime, datetime]](), starts_at
    while cursor < ends_at:
        end = min(_end(_start(cursor, window), window), ends_at)
        cuts.append((cursor, end))
        cursor = end
    found = [
        total
        for revision in _revisions(license_id, meter)
        for total in _measured(license_id, revision, cuts, window, by)
    ]
    return sorted(found, key=lambda each: (each.starts_at, each.total.meter))


def _revisions(license_id: UUID, meter: str | None) -> list[MeterRevision]:
    """Return the meter revisions the license has any usage under."""
    mine = {"license_id": license_id, "meter_revision_id": OuterRef("pk")}
    rows = MeterRevision.objects.filter(
        Exists(Rollup.objects.filter(window=Window.MONTH, **mine)) | Exists(UsageChange.objects.filter(**mine))
    )
    if meter is not None:
        rows = rows.filter(meter__code=meter)
    return list(rows.select_related("meter").order_by("meter__code", "number"))


Cut = tuple[datetime, datetime]


def _measured(
    license_id: UUID, revision: MeterRevision, cuts: Sequence[Cut], coarsest: str, by: tuple[str, ...]
) -> Iterator[WindowTotal]:
    """Yield the totals of stretches that follow each other; whole windows up to the coarsest are read as one row."""
    if not cuts:
        return
    floor = archived_before()
    if by and floor is not None and cuts[0][0] < floor:
        raise EventsArchived(f"Groups can be told from {floor:%Y-%m-%d} on: older events are archived.")
    reading = _Reading(license_id, revision, floor)
    found: Iterable[tuple[Cut, dict[tuple[str, ...], Decimal]]]
    if revision.aggregation == Aggregation.UNIQUE:  # numbers of different values are not joined: each cut has its own
        asked = [(reading, place, cut) for place, cut in enumerate(cuts)]
        found = zip(cuts, _groups_at_once(revision, asked, by), strict=True)
    else:
        found = reading.joined(cuts, coarsest, by)
    for (starts_at, ends_at), groups in found:
        for group, quantity in sorted(groups.items()):
            named = dict(zip(by, group, strict=True))
            meter = revision.meter
            total = Total(meter.code, revision.pk, named, quantity.quantize(PLACES), meter.name)
            yield WindowTotal(starts_at, ends_at, total)


class _Reading:
    """One reading of a license's usage under one meter revision.

    What waits for a roll-up is looked up first: whatever was committed before is then either among the hours read from
    events, or in the roll-ups read after it.
    """

    def __init__(
        self,
        license_id: UUID,
        revision: MeterRevision,
        floor: datetime | None,
        waiting: Iterable[datetime] | None = None,
    ) -> None:
        self.license_id, self.revision, self.floor = license_id, revision, floor
        if waiting is not None:
            self.waiting = sorted(each for each in waiting if floor is None or each >= floor)
            return
        rows = UsageChange.objects.filter(license_id=license_id, meter_revision_id=revision.pk)
        if floor is not None:
            rows = rows.filter(hour__gte=floor)
        self.waiting = sorted(set(rows.values_list("hour", flat=True)))
        self.rows = Rollup.objects.filter(license_id=license_id, meter_revision_id=revision.pk)

    # What can be joined: everything but numbers of different values.

    def joined(
        self, cuts: Sequence[Cut], coarsest: str, by: tuple[str, ...]
    ) -> Iterator[tuple[Cut, dict[tuple[str, ...], Decimal]]]:
        starts_at, ends_at = cuts[0][0], cuts[-1][1]
        weighted = self.revision.aggregation == Aggregation.TIME_WEIGHTED_SUM
        if by:
            parts = self._of_events([*([(None, starts_at)] if weighted else []), (starts_at, ends_at)], by)
        else:
            rows, stretches = self._pieces(cuts, coarsest)
            parts = [*self._of_rollups(rows), *self._of_pieces(stretches)]
            if weighted:
                parts += self._before(starts_at)
        groups: dict[tuple[str, ...], list[Part]] = {}
        for part in sorted(parts, key=lambda each: (each.starts_at, each.first_at or each.starts_at)):
            groups.setdefault(part.group, []).append(part)
        for cut in cuts:
            found = {group: self._fold(cut, own) for group, own in groups.items()}
            yield cut, {group: quantity for group, quantity in found.items() if quantity is not None}

    def _fold(self, cut: Cut, parts: list[Part]) -> Decimal | None:
        """Return the total of a stretch from the parts of it and, of a time-weighted sum, from those before."""
        inside = [part for part in parts if cut[0] <= part.starts_at < cut[1]]
        match self.revision.aggregation:
            case Aggregation.SUM | Aggregation.COUNT:
                return sum((part.quantity for part in inside), Decimal()) if inside else None
            case Aggregation.MAX:
                return max((part.quantity for part in inside), default=None)
            case Aggregation.LATEST:
                return inside[-1].quantity if inside else None
        before = [part for part in parts if part.starts_at < cut[0]]
        stop = cut[1]
        if self.revision.retired_at is not None:
            stop = min(stop, self.revision.retired_at + ACCEPTED_AHEAD)
        held, since, quantity = None, cut[0], Decimal()
        if before:
            held = before[-1].last
        if (held is None and not inside) or stop <= cut[0]:
            return None
        for part in inside:
            assert part.first_at is not None
            quantity += (held or 0) * _seconds(part.first_at - since) + part.quantity
            held, since = part.last, part.ends_at
        return quantity + (held or 0) * _seconds(stop - since)

    def _pieces(self, cuts: Sequence[Cut], coarsest: str) -> tuple[list[tuple[str, datetime, datetime]], list[Cut]]:
        """Return which roll-ups the stretches are covered by, as runs of windows, and what only events tell."""
        runs, stretches = list[tuple[str, datetime, datetime]](), list[Cut]()
        levels = _LEVELS[_LEVELS.index(coarsest) :]

        def cover(starts_at: datetime, ends_at: datetime, level: int) -> None:
            if level == len(levels):
                self._need_events(starts_at)
                if stretches and stretches[-1][1] == starts_at:
                    starts_at = stretches.pop()[0]
                stretches.append((starts_at, ends_at))
                return
            window, at = levels[level], starts_at
            while at < ends_at:
                start = _start(at, window)
                whole, end = _end(start, window), min(_end(start, window), ends_at)
                if at == start and end == whole and not self._waits(start, whole):
                    if runs and runs[-1][0] == window and runs[-1][2] == start:
                        start = runs.pop()[1]
                    runs.append((window, start, whole))
                else:
                    cover(at, end, level + 1)
                at = end

        for starts_at, ends_at in cuts:
            cover(starts_at, ends_at, 0)
        return runs, stretches

    def _waits(self, starts_at: datetime, ends_at: datetime) -> bool:
        position = bisect_left(self.waiting, starts_at)
        return position < len(self.waiting) and self.waiting[position] < ends_at

    def _need_events(self, starts_at: datetime) -> None:
        if self.floor is not None and starts_at < self.floor:
            raise EventsArchived(f"Before {self.floor:%Y-%m-%d} only whole hours can be told: events are archived.")

    def _of_rollups(self, runs: list[tuple[str, datetime, datetime]]) -> list[Part]:
        if not runs:
            return []
        which = Q()
        for window, starts_at, ends_at in runs:
            which |= Q(window=window, starts_at__gte=starts_at, starts_at__lt=ends_at)
        return [_part(row) for row in self.rows.filter(which, group="")]

    def _of_events(self, stretches: Sequence[tuple[datetime | None, datetime]], by: tuple[str, ...]) -> list[Part]:
        """Return the totals of events by hour; the first and the last hour of a stretch may be cut. One query each."""
        parts = list[Part]()
        for starts_at, ends_at in stretches:
            where, params = "e.license_id = %s AND e.occurred_at < %s", [identity(self.license_id), instant(ends_at)]
            if starts_at is not None:
                where, params = f"{where} AND e.occurred_at >= %s", [*params, instant(starts_at)]
            query, params = aggregates.from_events(
                revision=self.revision, where=where, params=params, by=by, until=ends_at
            )
            parts += self._parts(query, params, starts_at, ends_at)
        return parts

    def _of_pieces(self, stretches: Sequence[Cut]) -> list[Part]:
        """Return the totals of events by hour, of as many stretches as there are by one query. Only the first hour of
        the first and the last hour of the last may be cut."""
        if len(stretches) < 2:
            return self._of_events(stretches, ())
        starts_at, ends_at = stretches[0][0], stretches[-1][1]
        given = orjson.dumps([{"first": str(instant(first)), "last": str(instant(last))} for first, last in stretches])
        if connection.vendor == "postgresql":
            outer, first, last = "json_to_recordset(%s::json) s(first timestamptz, last timestamptz)", "first", "last"
        else:
            outer, first, last = "json_each(%s) s", "value ->> 'first'", "value ->> 'last'"
        source, where = _each(
            outer,
            f"{EVENTS} e",
            f"e.license_id = %s AND e.occurred_at >= s.{first} AND e.occurred_at < s.{last}"
            " AND e.occurred_at >= %s AND e.occurred_at < %s",
        )
        query, params = aggregates.from_events(
            revision=self.revision,
            source=source,
            where=where,
            params=[given.decode(), identity(self.license_id), instant(starts_at), instant(ends_at)],
            until=ends_at,
        )
        return self._parts(query, params, starts_at, ends_at)

    def _parts(self, query: str, params: Params, starts_at: datetime | None, ends_at: datetime) -> list[Part]:
        parts = list[Part]()
        with connection.cursor() as cursor:
            cursor.execute(query, params)
            for row in cursor.fetchall():
                start = aggregates.moment(row[2])
                assert start is not None
                parts.append(
                    Part(
                        starts_at=start if starts_at is None else max(start, starts_at),
                        ends_at=min(start + timedelta(hours=1), ends_at),
                        quantity=aggregates.number(row[3]) or Decimal(),
                        events=row[4],
                        first_at=aggregates.moment(row[5]),
                        last=aggregates.number(row[6]),
                        group=tuple(value or "" for value in row[7:]),
                    )
                )
        return parts

    def _before(self, starts_at: datetime) -> list[Part]:
        """Return the last total before an instant: of a roll-up, or of events that none holds yet."""
        hour = _start(starts_at, Window.HOUR)
        stretches: list[Cut] = [(hour, starts_at)] if hour < starts_at else []
        rows = self.rows.filter(window=Window.HOUR, group="", starts_at__lt=hour).exclude(starts_at__in=self.waiting)
        row = rows.order_by("-starts_at").first()
        # The newest change that waits may have no event that counts: look further back, but not past the roll-up.
        waiting = [each for each in self.waiting if each < hour and (row is None or each > row.starts_at)]
        for stretch in [*stretches, *((each, each + timedelta(hours=1)) for each in reversed(waiting))]:
            self._need_events(stretch[0])
            if parts := self._of_events([stretch], ()):
                return parts[-1:]
        return [_part(row)] if row else []


def totals_of(wanted: Mapping[UUID, Sequence[Cut]]) -> dict[UUID, list[list[Total]]]:
    """Return the totals of stretches of time of many licenses, as `totals` does of each: of every license a list for
    each of its stretches.

    It asks the database a number of times that depends only on how many meter revisions there are. Raises
    `EventsArchived` as `totals` does.
    """
    floor, ids = archived_before(), list(wanted)
    # First what waits, then roll-ups: see `_Reading`.
    waiting: dict[tuple[UUID, UUID], set[datetime]] = {}
    changed = UsageChange.objects.filter(license_id__in=ids).order_by()
    for license_id, revision_id, hour in changed.values_list("license_id", "meter_revision_id", "hour").distinct():
        waiting.setdefault((license_id, revision_id), set()).add(hour)
    months = Rollup.objects.filter(license_id__in=ids, window=Window.MONTH, group="").order_by()
    used = set(months.values_list("license_id", "meter_revision_id").distinct()) | waiting.keys()
    found: dict[UUID, list[list[Total]]] = {each: [[] for _ in cuts] for each, cuts in wanted.items()}
    revisions = MeterRevision.objects.filter(pk__in={revision_id for _, revision_id in used}).select_related("meter")
    for revision in revisions.order_by("meter__code", "number"):
        readings = [
            _Reading(license_id, revision, floor, waiting.get((license_id, revision.pk), ()))
            for license_id in ids
            if (license_id, revision.pk) in used
        ]
        asked = [(reading, place, cut) for reading in readings for place, cut in enumerate(wanted[reading.license_id])]
        for (reading, place, _), quantity in zip(asked, _read_at_once(revision, asked), strict=True):
            if quantity is not None:
                total = Total(revision.meter.code, revision.pk, {}, quantity.quantize(PLACES), revision.meter.name)
                found[reading.license_id][place].append(total)
    return found


Asked = Sequence[tuple[_Reading, int, Cut]]
_Given = tuple[int, UUID, str, datetime, datetime]  # as `aggregates.given` takes it


def _read_at_once(revision: MeterRevision, asked: Asked) -> list[Decimal | None]:
    """Return what was used under the revision in each of the stretches."""
    if revision.aggregation == Aggregation.UNIQUE:
        return _counted_at_once(revision, asked)
    runs, stretches = list[_Given](), list[_Given]()
    for n, (reading, _, cut) in enumerate(asked):
        whole, cut_off = reading._pieces([cut], Window.MONTH)
        runs += [(n, reading.license_id, window, *span) for window, *span in whole]  # type: ignore[misc]
        stretches += [(n, reading.license_id, "", *span) for span in cut_off]
    parts: dict[int, list[Part]] = {}
    for n, part in [*_rolled_up(revision, runs), *_of_events(revision, stretches)]:
        parts.setdefault(n, []).append(part)
    if revision.aggregation == Aggregation.TIME_WEIGHTED_SUM:
        for n, part in _held_before(revision, asked):
            parts.setdefault(n, []).append(part)
    ordered = (sorted(parts.get(n, ()), key=lambda each: each.starts_at) for n in range(len(asked)))
    return [reading._fold(cut, own) for (reading, _, cut), own in zip(asked, ordered, strict=True)]


def _rolled_up(revision: MeterRevision, runs: Sequence[_Given]) -> Iterator[tuple[int, Part]]:
    if not runs:
        return
    source, params = aggregates.given(runs)
    source, where = aggregates.joined(source, f"{ROLLUPS} r", _OF_RUN + " AND r.\"group\" = ''")
    query = f'SELECT w.n, r.starts_at, r."window", r.quantity, r.events, r.first_at, r.last FROM {source} WHERE {where}'
    for n, start, window, quantity, events, first_at, last in _rows(query, [*params, identity(revision.pk)]):
        starts_at = aggregates.moment(start)
        assert starts_at is not None
        kept = (aggregates.number(quantity) or Decimal(), events, aggregates.moment(first_at), aggregates.number(last))
        yield n, Part(starts_at, _end(starts_at, window), *kept)


_OF_RUN = (
    'r.license_id = w.license_id AND r.meter_revision_id = %s AND r."window" = w.level'
    " AND r.starts_at >= w.first AND r.starts_at < w.last"
)


def _events_of(revision: MeterRevision, stretches: Sequence[_Given]) -> dict[str, Any]:
    """Return which events are of the stretches, looked up in the partitions of their time."""
    source, params = aggregates.given(stretches)
    mine = "e.license_id = w.license_id AND e.occurred_at >= w.first AND e.occurred_at < w.last"
    source, where = aggregates.joined(
        source, f"{EVENTS} e", f"{mine} AND e.occurred_at >= %s AND e.occurred_at < %s AND e.meter_revision_id = %s"
    )
    bounds = [instant(min(each[3] for each in stretches)), instant(max(each[4] for each in stretches))]
    given = [*params, *bounds, identity(revision.pk)]
    return {"revision": revision, "source": source, "where": where, "params": given, "window": "", "of": "w.n"}


def _of_events(revision: MeterRevision, stretches: Sequence[_Given]) -> Iterator[tuple[int, Part]]:
    if not stretches:
        return
    numbered = [(place, *stretch[1:]) for place, stretch in enumerate(stretches)]
    query, params = aggregates.from_events(**_events_of(revision, numbered), to="w.last")
    for row in _rows(query, params):
        n, _, _, starts_at, ends_at = stretches[row[2]]
        kept = (aggregates.number(row[3]) or Decimal(), row[4], aggregates.moment(row[5]), aggregates.number(row[6]))
        yield n, Part(starts_at, ends_at, *kept)


def _held_before(revision: MeterRevision, asked: Asked) -> Iterator[tuple[int, Part]]:
    """Yield the value each stretch begins with."""
    for reading, _, (starts_at, _) in asked:
        if starts_at != _start(starts_at, Window.HOUR):
            reading._need_events(_start(starts_at, Window.HOUR))
    source, given = aggregates.given([(n, one.license_id, "", *cut) for n, (one, _, cut) in enumerate(asked)])
    query, params = aggregates.last_before(revision=revision, source=source, params=given, floor=asked[0][0].floor)
    for n, last in _rows(query, params):
        if last is not None:
            starts_at = asked[n][2][0] - timedelta(microseconds=1)
            yield n, Part(starts_at, starts_at, Decimal(), 1, starts_at, aggregates.number(last))


def _counted_at_once(revision: MeterRevision, asked: Asked) -> list[Decimal | None]:
    """Return the numbers of different values: of whole windows from roll-ups, else counted anew."""
    whole, runs, stretches = list[_Given](), list[_Given](), list[_Given]()
    for n, (reading, _, cut) in enumerate(asked):
        for window in _LEVELS:
            if cut == (_start(cut[0], window), _end(cut[0], window)) and not reading._waits(*cut):
                whole.append((n, reading.license_id, window, *cut))
                break
        else:
            rolled, cut_off = reading._pieces([cut], Window.HOUR)
            runs += [(n, reading.license_id, window, *span) for window, *span in rolled]  # type: ignore[misc]
            stretches += [(n, reading.license_id, "", *span) for span in cut_off]
    found = {n: part.quantity for n, part in _rolled_up(revision, whole)}
    queries, params = list[str](), Params()
    if runs:
        source, given = aggregates.given(runs)
        source, where = aggregates.joined(source, f"{ROLLUPS} r", _OF_RUN + " AND r.\"group\" <> ''")
        queries.append(f'SELECT w.n, r."group" AS grp FROM {source} WHERE {where}')
        params += [*given, identity(revision.pk)]
    if stretches:
        query, more = aggregates.from_events(**_events_of(revision, stretches), values=True)
        queries.append(f"SELECT starts_at AS n, grp FROM ({query}) of_events")
        params += more
    if queries:
        union = " UNION ALL ".join(queries)
        counted = _rows(f"SELECT n, COUNT(DISTINCT grp) FROM ({union}) all_values GROUP BY n", params)
        found |= {n: Decimal(number) for n, number in counted}
    return [found.get(n) or None for n in range(len(asked))]


def _groups_at_once(revision: MeterRevision, asked: Asked, by: tuple[str, ...]) -> list[dict[tuple[str, ...], Decimal]]:
    """Return the numbers of different values by dimensions, whose values no roll-up tells apart; those that are 0 are
    left out."""
    if not by:
        return [{(): number} if number else {} for number in _counted_at_once(revision, asked)]
    found = list[dict[tuple[str, ...], Decimal]]({} for _ in asked)
    cuts = [(n, reading.license_id, "", *cut) for n, (reading, _, cut) in enumerate(asked)]
    query, params = aggregates.from_events(**_events_of(revision, cuts), by=by)
    for row in _rows(query, params):
        if row[3]:
            found[row[2]][tuple(value or "" for value in row[7:])] = Decimal(row[3])
    return found


def _rows(query: str, params: Params) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, params)
        return cursor.fetchall()


def _part(row: Rollup) -> Part:
    return Part(
        starts_at=row.starts_at,
        ends_at=_end(row.starts_at, row.window),
        quantity=row.quantity,
        events=row.events,
        first_at=row.first_at,
        last=row.last,
    )


def _start(at: datetime, window: str) -> datetime:
    at = at.astimezone(UTC)
    match window:
        case Window.HOUR:
            return at.replace(minute=0, second=0, microsecond=0)
        case Window.DAY:
            return at.replace(hour=0, minute=0, second=0, microsecond=0)
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _end(start: datetime, window: str) -> datetime:
    match window:
        case Window.HOUR:
            return start + timedelta(hours=1)
        case Window.DAY:
            return start + timedelta(days=1)
    return _start(start + timedelta(days=32), Window.MONTH)


def _seconds(duration: timedelta) -> Decimal:
    return Decimal(duration // timedelta(microseconds=1)) / 1_000_000


# --- reconciling ------------------------------------------------------------------------------------


def reconcile(*, at: datetime, since: datetime | None = None) -> list[Difference]:
    """Compare counters, events and roll-ups of what may still change, or since an instant; return what differs, each
    recorded as an anomaly. Nothing is repaired.

    Every comparison is one statement, so that usage counted meanwhile is on both sides or on neither; hours that wait
    for a roll-up are left out.
    """
    since = since or _start(at - ACCEPTED_BACK - timedelta(days=1), Window.DAY)
    if (floor := archived_before()) is not None:
        since = max(since, floor)
    found = [*_counters_that_differ(since), *_rollups_that_differ(since)]
    for difference in found:
        anomalies.flag(
            rule=difference.kind,
            severity=Severity.CRITICAL,
            object_kind="license",
            object_id=str(difference.license_id),
            license_id=difference.license_id,
            at=at,
            evidence={
                "meter": difference.meter,
                "window": difference.window,
                "starts_at": difference.starts_at,
                "recorded": difference.recorded,
                "counted_from_events": difference.counted,
            },
        )
    return found


def _counters_that_differ(since: datetime) -> Iterator[Difference]:
    """Yield the counters that begin since then and are not what their events say."""
    counters = f'"{Counter._meta.db_table}"'
    for revisions in _live_revisions().values():
        queries, params = list[str](), Params()
        for revision in revisions:
            query, more = aggregates.from_events(
                revision=revision,
                source=f"{EVENTS} e CROSS JOIN {counters} c",
                where="e.license_id = c.license_id AND e.occurred_at >= c.starts_at AND e.occurred_at < c.ends_at"
                " AND c.meter = %s AND c.starts_at >= %s",
                params=[revision.meter.code, instant(since)],
                window="",
                of="c.starts_at",
            )
            queries.append(query)
            params += more
        meter = revisions[0].meter.code
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT * FROM (SELECT c.license_id, c.starts_at, c.used, COALESCE(s.total, 0) AS total"
                f" FROM {counters} c LEFT JOIN (SELECT license_id, starts_at, SUM(quantity) AS total"
                f" FROM ({' UNION ALL '.join(queries)}) each_revision GROUP BY license_id, starts_at) s"
                " ON s.license_id = c.license_id AND s.starts_at = c.starts_at"
                f" WHERE c.meter = %s AND c.starts_at >= %s) compared WHERE ABS(used - total) > {_TOLERATED}",
                [*params, meter, instant(since)],
            )
            for license_id, starts_at, used, total in cursor.fetchall():
                yield _difference("counter_differs_from_events", license_id, meter, "", starts_at, used, total)


_TOLERATED = "0.0000005"  # SQLite's numbers are binary fractions


def _live_revisions() -> dict[UUID, list[MeterRevision]]:
    found: dict[UUID, list[MeterRevision]] = {}
    rows = MeterRevision.objects.filter(aggregation__in=COUNTED_LIVE).exclude(state="draft").select_related("meter")
    for revision in rows:
        found.setdefault(revision.meter_id, []).append(revision)
    return found


def _rollups_that_differ(since: datetime) -> Iterator[Difference]:
    """Yield the hours that are not what their events say, and the days and months that are not what their hours are."""
    for revision in MeterRevision.objects.exclude(state="draft").select_related("meter"):
        for window in (Window.HOUR, Window.DAY, Window.MONTH):
            start = _end(_start(since, window), window) if _start(since, window) != since else since
            if window == Window.HOUR:
                query, params = aggregates.from_events(
                    revision=revision, where="e.occurred_at >= %s", params=[instant(start)]
                )
            else:
                query, params = aggregates.from_rollups(
                    revision=revision, window=window, where="r.starts_at >= %s", params=[instant(start)]
                )
            end = words().end[window].format("side.starts_at")
            kept = (
                f'SELECT license_id, starts_at, quantity AS kept, NULL AS fresh FROM {ROLLUPS} WHERE "window" = %s'
                " AND \"group\" = '' AND meter_revision_id = %s AND starts_at >= %s"
            )
            sides = (
                "SELECT license_id, starts_at, MAX(kept) AS kept, MAX(fresh) AS fresh FROM"
                f" ({kept} UNION ALL SELECT license_id, starts_at, NULL, quantity FROM ({query}) fresh) each_side"
                " GROUP BY license_id, starts_at"
            )
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT side.license_id, side.starts_at, side.kept, side.fresh FROM ({sides}) side"
                    f" WHERE (side.kept IS NULL OR side.fresh IS NULL OR ABS(side.kept - side.fresh) > {_TOLERATED})"
                    f" AND NOT EXISTS (SELECT 1 FROM {CHANGES} p WHERE p.license_id = side.license_id"
                    " AND p.meter_revision_id = %s AND p.hour >= side.starts_at"
                    f" AND p.hour < {end})",
                    [window, identity(revision.pk), instant(start), *params, identity(revision.pk)],
                )
                for license_id, starts_at, recorded, counted in cursor.fetchall():
                    yield _difference(
                        "rollup_differs_from_events",
                        license_id,
                        revision.meter.code,
                        window,
                        starts_at,
                        recorded,
                        counted,
                    )


def _difference(
    kind: str, license_id: Any, meter: str, window: str, starts_at: Any, recorded: Any, counted: Any
) -> Difference:
    start = aggregates.moment(starts_at)
    assert start is not None
    return Difference(
        kind=kind,
        license_id=license_id if isinstance(license_id, UUID) else UUID(license_id),
        meter=meter,
        window=window,
        starts_at=start,
        recorded=aggregates.number(recorded),
        counted=aggregates.number(counted),
    )


def rebuild(*, license: License, reason: str, by: Actor, at: datetime) -> int:
    """Throw away the roll-ups of a license and make them anew from its events, as a person decided; return how many
    hours there are. What lies before the archive is kept as it is. Raises `Invalid` without a reason."""
    if not reason.strip():
        raise Invalid("Say why it is made anew.", pointer="/reason")
    with _alone() as cursor:
        floor = archived_before()
        rows = Rollup.objects.filter(license_id=license.pk)
        if floor is not None:
            month = _start(floor, Window.MONTH)  # the archive ends with a month
            rows = rows.filter(starts_at__gte=month)
        before = rows.filter(window=Window.HOUR, group="").count()
        rows.delete()
        hour = words().start[Window.HOUR].format("e.occurred_at")
        _make_taken(
            cursor,
            f"SELECT DISTINCT e.license_id, e.meter_revision_id, {hour} AS hour FROM {EVENTS} e"
            " WHERE e.license_id = %s AND e.occurred_at >= %s",
            [identity(license.pk), instant(floor or datetime(1970, 1, 1, tzinfo=UTC))],
        )
        hours = _recompute(cursor)
        cursor.execute(f"DROP TABLE {_TAKEN}")
        audit.record(
            action="usage.rollups_rebuilt",
            by=by,
            on=license,
            at=at,
            before={"hours": before},
            after={"hours": hours},
            reason=reason,
        )
    return hours
