"""Where usage events lie: partitions by month on PostgreSQL, one plain table on SQLite; and the archive of old ones.

Partitions are made ahead. A row that finds none lands in the default partition: nothing is lost, but it is an anomaly,
and it is moved when its month is made. Events leave the database in one way, `archive`: written to a file, read back
and compared, and only then let go, in one transaction with the mark that says so. What is rolled up stays. The memory
of ids does not depend on any of it.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from django.db import connection, transaction
from django.db.models import Max, Min, Model, Q

from billing import aggregates, rollups, statements
from billing.models import Statement, UsageEvent, UsageId
from billing.states import StatementState
from billing.windows import ACCEPTED_BACK, ARCHIVE, REMEMBERED
from licensing import anomalies, audit, guards
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import JobState
from licensing.states import Severity

TABLE = UsageEvent._meta.db_table
DEFAULT = f"{TABLE}_default"
MONTHS_BACK, MONTHS_AHEAD = 2, 3
BATCH = 10_000
COLUMNS = tuple(str(field.attname) for field in UsageEvent._meta.concrete_fields if field.name != "pk")


class NotYetArchivable(Refused):
    """Usage of that time may still come, or is not settled."""

    code = "not_yet_archivable"


class ArchiveDiffers(Refused):
    """What was written is not what is in the database; nothing was let go."""

    code = "archive_differs"


@dataclass(frozen=True, slots=True)
class Partition:
    """A month of events; `starts_at` is None for the default partition. `events` is an estimate on PostgreSQL."""

    name: str
    starts_at: datetime | None
    ends_at: datetime | None
    events: int
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Archived:
    """The manifest of an archive file: `sha256` is of the file as it lies there, compressed."""

    file: str
    table: str
    starts_at: str
    ends_at: str
    events: int
    sha256: str
    columns: tuple[str, ...]
    written_at: str


# --- partitions -------------------------------------------------------------------------------------


def ahead(*, at: datetime) -> list[str]:
    """Make the partitions from two months back to three months ahead, and of what lies in the default one; return the
    names of those made. May run twice and concurrently; does nothing on SQLite.

    Rows in the default partition are moved, with an anomaly: somebody did not run this in time.
    """
    if connection.vendor != "postgresql" or not _is_partitioned():
        return []
    wanted = {_month(at, offset) for offset in range(-MONTHS_BACK, MONTHS_AHEAD + 1)}
    astray = _in_default()
    if astray:
        anomalies.flag(
            rule="usage_in_default_partition",
            severity=Severity.MEDIUM,
            object_kind="table",
            object_id=DEFAULT,
            at=at,
            evidence={"events": sum(astray.values()), "months": [f"{month:%Y-%m}" for month in sorted(astray)]},
        )
    made = []
    for month in sorted(wanted | set(astray)):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('billing partitions'))")
            if _name(month) not in {partition.name for partition in partitions()}:
                _make(cursor, month, move=month in astray)
                made.append(_name(month))
    return made


def _is_partitioned() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [DEFAULT])
        return bool(cursor.fetchone()[0])


def _in_default() -> dict[datetime, int]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT date_trunc('month', occurred_at, 'UTC'), COUNT(*) FROM {DEFAULT} GROUP BY 1")
        return dict(cursor.fetchall())


def _make(cursor: Any, month: datetime, *, move: bool) -> None:
    name, end = _name(month), _month(month, 1)
    create = f"CREATE TABLE {name} PARTITION OF {TABLE} FOR VALUES FROM ('{month:%Y-%m-%d} 00:00+00')"
    create += f" TO ('{end:%Y-%m-%d} 00:00+00')"
    if not move:
        # Nobody may put a row of this month into the default partition meanwhile: creating locks it.
        cursor.execute(create)
    else:
        # Out of the table the default partition is without the guards of its rows, for this transaction only.
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(f"ALTER TABLE {TABLE} DETACH PARTITION {DEFAULT}")
        cursor.execute(create)
        bounds = [month, end]
        names = ", ".join(f'"{column}"' for column in COLUMNS)
        cursor.execute(
            f"WITH moved AS (DELETE FROM {DEFAULT} WHERE occurred_at >= %s AND occurred_at < %s RETURNING {names})"
            f" INSERT INTO {TABLE} ({names}) SELECT {names} FROM moved",
            bounds,
        )
        cursor.execute(f"ALTER TABLE {TABLE} ATTACH PARTITION {DEFAULT} DEFAULT")
    guards.guard_partitions(cursor, TABLE)


def partitions() -> list[Partition]:
    """Return the partitions, the oldest first and the default one last; on SQLite the months there are events of."""
    if connection.vendor != "postgresql":
        return [
            Partition(_name(month), month, _month(month, 1), _within(month).count(), None) for month in _plain_months()
        ]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, GREATEST(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid) FROM pg_inherits i"
            " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass ORDER BY c.relname",
            [TABLE],
        )
        found = []
        for name, events, size in cursor.fetchall():
            start = None if name == DEFAULT else datetime.strptime(f"{name[-7:]}+0000", "%Ym%m%z").astimezone(UTC)
            found.append(Partition(name, start, start and _month(start, 1), events, size))
    return sorted(found, key=lambda each: (each.starts_at is None, each.name))


def _name(month: datetime) -> str:
    return f"{TABLE}_y{month:%Ym%m}"


def _month(at: datetime, offset: int) -> datetime:
    number = at.year * 12 + at.month - 1 + offset
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)


def _within(month: datetime) -> Any:
    return UsageEvent.objects.filter(occurred_at__gte=month, occurred_at__lt=_month(month, 1))


def _plain_months() -> list[datetime]:
    span = UsageEvent.objects.aggregate(first=Min("occurred_at"), last=Max("occurred_at"))
    months, month = [], span["first"] and _month(span["first"], 0)
    while month and month <= span["last"]:
        months.append(month)
        month = _month(month, 1)
    return [month for month in months if _within(month).exists()]


# --- archive ----------------------------------------------------------------------------------------


def archive(
    *, before: datetime, to: Path, by: Actor, at: datetime, progress: Callable[[Archived], None] | None = None
) -> list[Archived]:
    """Write the events of each month that ends by `before` to a file in `to`, and let them go; return what was written.

    A month is written, read back, counted again under a lock, marked and let go. Killed anywhere, either all its events
    are still there and the next run writes it anew, or all are in the file.

    Raises:
        Invalid: `before` is not the first of a month.
        NotYetArchivable: events of that time are still accepted, a roll-up of it waits, or a statement of it is a draft
            or may still be corrected.
        ArchiveDiffers: a correction came in while a month was written, or the disk returned something else.
    """
    if before != _month(before, 0):
        raise Invalid("Archive whole months: say the first of a month.", pointer="/before")
    settled(before=before, at=at)
    to.mkdir(parents=True, exist_ok=True)
    _let_go_of_the_rest()
    done = []
    ahead(at=at)  # so that what lies in the default partition is in its month
    for partition in partitions():
        if partition.starts_at is None or partition.ends_at is None or partition.ends_at > before:
            continue
        written = _write(partition, to, at)
        _verify(to, written)
        _let_go(partition, written, by=by, at=at)
        done.append(written)
        if progress is not None:
            progress(written)
    if not done:  # nothing lay there, but from now on it is certain that nothing does
        _mark(before)
    return done


def settled(*, before: datetime, at: datetime) -> None:
    """Raise `NotYetArchivable` unless all usage before an instant has come in, is rolled up and finally billed."""
    if before > at - ACCEPTED_BACK:
        raise NotYetArchivable(f"Events are accepted {ACCEPTED_BACK.days} days back: archive what is older.")
    if rollups.pending(before=before):
        raise NotYetArchivable("Usage of that time waits for a roll-up. Run: manage.py rollup")
    if Statement.objects.filter(Q(state=StatementState.DRAFT) & Q(starts_at__lt=before)).exists():
        raise NotYetArchivable("Statements of that time are drafts. Finish them first.")
    if statements.may_be_rated(before=before, at=at):  # which takes the events: terms begin within an hour
        days = statements.CORRECTED_FOR.days
        raise NotYetArchivable(f"Statements of that time are still corrected, for {days} days: archive what is older.")


def _write(partition: Partition, to: Path, at: datetime) -> Archived:
    """Write a month's events and then its manifest, each whole or not at all."""
    assert partition.starts_at is not None
    path = to / f"{partition.name}.jsonl.gz"
    count, digest = 0, hashlib.sha256()
    with open(f"{path}.part", "wb") as raw:
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0) as file:
            for row in _rows(partition.starts_at):
                file.write(orjson.dumps(row, default=str, option=orjson.OPT_UTC_Z) + b"\n")
                count += 1
        raw.flush()
        os.fsync(raw.fileno())
    with open(f"{path}.part", "rb") as raw:
        while chunk := raw.read(1 << 20):
            digest.update(chunk)
    os.replace(f"{path}.part", path)
    written = Archived(
        file=path.name,
        table=TABLE,
        starts_at=partition.starts_at.isoformat(),
        ends_at=_month(partition.starts_at, 1).isoformat(),
        events=count,
        sha256=digest.hexdigest(),
        columns=COLUMNS,
        written_at=at.isoformat(),
    )
    manifest = to / f"{partition.name}.json"
    with open(f"{manifest}.part", "w") as text:
        json.dump(asdict(written), text, indent=1)
        text.flush()
        os.fsync(text.fileno())
    os.replace(f"{manifest}.part", manifest)
    folder = os.open(to, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return written


def _rows(month: datetime) -> Iterator[dict[str, Any]]:
    rows = _within(month).order_by("license_id", "occurred_at", "event_id").values(*COLUMNS)
    with transaction.atomic():  # one picture, and a cursor on the server
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = 0")
        yield from rows.iterator(chunk_size=BATCH)


def _verify(to: Path, written: Archived) -> None:
    """Read a file back: every line an event of its month, as many as were written, the file as it was hashed."""
    digest, count = hashlib.sha256(), 0
    with open(to / written.file, "rb") as raw:
        while chunk := raw.read(1 << 20):
            digest.update(chunk)
    with gzip.open(to / written.file, "rb") as file:
        for line in file:
            orjson.loads(line)
            count += 1
    if count != written.events or digest.hexdigest() != written.sha256:
        raise ArchiveDiffers(f"{written.file} does not hold what was written to it. Check the disk and run it again.")


def _let_go(partition: Partition, written: Archived, *, by: Actor, at: datetime) -> None:
    assert partition.starts_at is not None
    assert partition.ends_at is not None
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL statement_timeout = 0")
            cursor.execute(f"LOCK TABLE {partition.name} IN SHARE MODE")  # nothing comes in while it is counted
        settled(before=partition.ends_at, at=at)
        if _within(partition.starts_at).count() != written.events:
            raise ArchiveDiffers(f"Events of {partition.starts_at:%Y-%m} came in meanwhile. Run it again.")
        row = _mark(partition.ends_at)
        audit.record(action="usage.archived", by=by, on=row, at=at, after=asdict(written))
        if connection.vendor == "postgresql":
            cursor.execute(f"ALTER TABLE {TABLE} DETACH PARTITION {partition.name}")
            cursor.execute(f"DROP TABLE {partition.name}")
    if connection.vendor != "postgresql":
        _let_go_of_the_rest()


def _let_go_of_the_rest() -> None:
    """Delete what is marked as archived from a plain table, in batches: the guards let only that go."""
    floor = rollups.archived_before()
    if floor is None or connection.vendor == "postgresql":
        return
    while _delete_some(UsageEvent, "occurred_at", floor, BATCH):
        pass


def _mark(before: datetime) -> JobState:
    row, _ = JobState.objects.get_or_create(name=ARCHIVE)
    if row.watermark_at is None or row.watermark_at < before:
        row.watermark_at = before
        row.save(update_fields=["watermark_at"])
    return row


# --- the memory of ids ------------------------------------------------------------------------------


def forget_ids(*, at: datetime, limit: int = BATCH) -> int:
    """Delete some of the ids whose events could not be sent again any more; return how many."""
    return _delete_some(UsageId, "received_at", at - REMEMBERED, limit)


def _delete_some(model: type[Model], instant: str, before: datetime, limit: int) -> int:
    """Delete at most `limit` rows from before an instant, in one transaction; return how many."""
    table, key = model._meta.db_table, ", ".join(str(field.column) for field in model._meta.pk_fields)
    with connection.cursor() as cursor:
        cursor.execute(
            f'DELETE FROM "{table}" WHERE ({key}) IN (SELECT {key} FROM "{table}" WHERE "{instant}" < %s LIMIT %s)',
            [aggregates.instant(before), limit],
        )
        return int(cursor.rowcount)
