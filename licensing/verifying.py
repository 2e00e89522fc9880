"""Whether the audit record is as it was written: every entry, link and checkpoint recomputed and compared.

`verify` names what is wrong, the first bad entry first. `export` writes the record for somebody who trusts neither us
nor this program: `clients/verify_audit.py` checks it with the public keys alone. Nothing here changes anything.

What is compared, and what none of it can prove, stands in docs/audit.md.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import DatabaseError, connection
from django.db.models import Min

from licensing import audit, chain, checkpoints, crypto, ids
from licensing.audit import Actor
from licensing.checkpoints import Checkpoint
from licensing.crypto import KeyRingError, NotAuthentic
from licensing.errors import LicensingError
from licensing.models import AuditCheckpoint, AuditEntry, AuditLink, AuditWaiting

BATCH = 1_000
NAMED = 20  # problems listed; the rest are counted
UNNUMBERED = timedelta(minutes=1)  # an entry that waits longer for its number is a finding
Told = Callable[[int, int], object]


class AlreadyThere(LicensingError):
    """There is a file of this name. It is not replaced."""

    code = "file_exists"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong. `number` is the place of the chain where it shows, `since` the first one it can have begun at
    where that is another; `entry` the entry, where it is about one. Without a number it is about no place: an entry
    outside the chain, a checkpoint."""

    code: str
    text: str
    number: int | None = None
    since: int | None = None
    entry: str = ""


@dataclass(slots=True)
class Report:
    """What was looked at and what was found. `checkpoints` counts those whose signature was checked."""

    size: int = 0
    head: bytes = chain.START
    since: int = 1
    checkpoints: int = 0
    unsigned: int = 0  # signed by a key that is destroyed since: compared with the chain, their signature not checked
    last_checkpoint_at: datetime | None = None
    waiting: int = 0
    problems: list[Problem] = field(default_factory=list)
    more: int = 0

    @property
    def good(self) -> bool:
        return not self.problems

    @property
    def first(self) -> Problem | None:
        """The problem of the first place of the chain; one without a place when none has one."""
        placed = [problem for problem in self.problems if problem.number is not None]
        return min(placed, key=lambda problem: problem.number or 0) if placed else next(iter(self.problems), None)

    def add(self, problem: Problem) -> None:
        if len(self.problems) < NAMED:
            self.problems.append(problem)
        else:
            self.more += 1


def verify(
    *, at: datetime, files: Iterable[Path] = (), newest: int | None = None, told: Told = lambda done, total: None
) -> Report:
    """Recompute the chain over all entries, or over the `newest` so many, and compare it with every checkpoint of the
    database and of these files. `told` hears how many of how many entries are done. Memory stays bounded.

    A running system is verified too: what comes meanwhile is not looked at.

    Raises `OSError` when a file cannot be read, `KeyRingError` when the ring cannot.
    """
    report = Report()
    elsewhere = [_read_file(path, report) for path in files]  # before the database: it knows all that they know
    known = _known(elsewhere, report)
    total = AuditLink.objects.order_by("-number").values_list("number", flat=True).first() or 0
    report.since = max(total - newest + 1, 1) if newest else 1
    expected = _by_size(known, report)
    _walk(report, expected, total, told)
    _beyond(report, expected)
    _twice(report)
    _outside(report, at)
    report.problems.sort(key=lambda problem: (problem.number is None, problem.number or 0))
    return report


# --- checkpoints --------------------------------------------------------------------------------------


def _read_file(path: Path, report: Report) -> list[tuple[str, Checkpoint]]:
    found = []
    for number, checkpoint in checkpoints.in_file(path):
        if checkpoint is None:
            report.add(Problem("checkpoint_unreadable", f"Line {number} of {path} is no checkpoint."))
        else:
            found.append((f"line {number} of {path}", checkpoint))
    return found


def _known(elsewhere: list[list[tuple[str, Checkpoint]]], report: Report) -> Iterator[tuple[str, Checkpoint]]:
    """Return every checkpoint once, with where it is; what a file has and the database has not is a problem."""
    seen: set[bytes] = set()
    try:
        for row in AuditCheckpoint.objects.order_by("size", "at").iterator(chunk_size=BATCH):
            one = checkpoints.of(row)
            seen.add(_mark(one))
            if row.created_at != row.at:
                report.add(Problem("checkpoint_false", f"The checkpoint {one.id} in the database was altered."))
            yield f"checkpoint {one.id} in the database", one
    except (ValueError, TypeError, AttributeError):
        report.add(Problem("checkpoint_unreadable", "A checkpoint in the database cannot be read."))
    for where, one in (each for file in elsewhere for each in file):
        if _mark(one) not in seen:
            seen.add(_mark(one))
            report.add(
                Problem(
                    "checkpoint_gone", f"The checkpoint {one.id} ({where}, {one.size} entries) is not in the database."
                )
            )
            yield where, one


def _mark(one: Checkpoint) -> bytes:
    return hashlib.sha256(one.line().encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class _Expected:
    head: bytes
    where: str
    at: datetime


def _by_size(known: Iterable[tuple[str, Checkpoint]], report: Report) -> dict[int, list[_Expected]]:
    """Return what credible checkpoints say the chain was at each size; one that is not credible is a problem."""
    expected: dict[int, list[_Expected]] = {}
    for where, one in known:
        try:
            public = crypto.public_key(one.kid)
            if public is not None:
                crypto.verify_with(public, one.text().encode(), one.signature)
        except (NotAuthentic, KeyRingError) as error:
            why = "signed by no key of the ring" if isinstance(error, KeyRingError) else "altered or not ours"
            report.add(Problem("checkpoint_false", f"The {where} is {why} (key {one.kid})."))
            continue
        if public is None:
            report.unsigned += 1
        else:
            report.checkpoints += 1
            report.last_checkpoint_at = max(filter(None, (report.last_checkpoint_at, one.at)))
        said = expected.setdefault(one.size, [])
        if not any(each.head == one.head for each in said):  # an idle hour says the same again
            said.append(_Expected(one.head, where, one.at))
    return expected


# --- the chain ------------------------------------------------------------------------------------------


def _walk(report: Report, expected: dict[int, list[_Expected]], total: int, told: Told) -> None:
    """Recompute link by link. A bad link is one problem, not all after it: each is compared with the one before as it
    stands."""
    before, good_until = chain.START, report.since - 1
    if report.since > 1:
        stood = AuditLink.objects.filter(number=report.since - 1).values_list("chain_hash", flat=True).first()
        before = bytes(stood or chain.START)
    number = report.since - 1
    for links, entries in _batches(report.since):
        for found, entry_id, form, content, stands in links:
            if not isinstance(found, int) or found <= number:
                report.add(
                    Problem("twice", f"The chain has a place {found} more than once.", number, entry=str(entry_id))
                )
                continue
            if found > number + 1:
                report.add(Problem("gap", f"After number {number} comes {found}.", number + 1))
            number = found
            wrong = _wrong(number, entry_id, form, content, entries)
            if wrong is None and chain.chain_hash(before, content) != stands:
                wrong = Problem(
                    "chain",
                    f"Number {number} does not follow from the one before: a link was changed, put in, taken out or "
                    f"moved here, or the chain made anew from a place after {good_until}.",
                    number,
                    good_until + 1,
                    str(entry_id),
                )
            if wrong:
                report.add(wrong)
            before = stands
            if number in expected:
                good_until = _compare(report, number, expected[number], stands, good_until)
        told(min(number, total), total)
    report.size, report.head = number, before


def _wrong(number: int, entry_id: Any, form: int, content: bytes, entries: dict[Any, dict[str, Any] | None]) -> Any:
    """Return what is wrong with the entry of a link, None when nothing is."""
    if form == chain.GONE or entry_id not in entries:
        return Problem("entry_gone", f"The entry {entry_id} is gone.", number, entry=str(entry_id))
    if form not in chain.FORMS:
        return Problem("chain", f"Number {number} is of no form that is known.", number, entry=str(entry_id))
    written = entries[entry_id]
    if written is None or chain.content_hash(form, {name: written[name] for name in chain.FORMS[form]}) != content:
        return Problem("entry_changed", f"The entry {entry_id} is not as it was written.", number, entry=str(entry_id))
    return None


def _compare(report: Report, number: int, expected: list[_Expected], stands: bytes, good_until: int) -> int:
    """Compare one place with what checkpoints say of it; return up to where the chain is known to be as it was."""
    for each in expected:
        if stands == each.head:
            continue
        if not any(problem.number and good_until < problem.number <= number for problem in report.problems):
            report.add(
                Problem(
                    "rewritten",
                    f"The chain up to number {number} is not what it was at {each.at:%Y-%m-%d %H:%M:%S} UTC "
                    f"({each.where}): something from number {good_until + 1} on was changed and the chain made anew.",
                    number,
                    good_until + 1,
                )
            )
        return good_until
    return number


def _batches(since: int) -> Iterator[tuple[list[tuple[Any, Any, int, bytes, bytes]], dict[Any, dict[str, Any] | None]]]:
    """Return links in the order of their numbers, each batch with the entries they name."""
    # As it stands, whatever somebody put there: what no model would read is to be named, not to end the work.
    after: Any = since - 1
    with connection.cursor() as cursor:
        while True:
            cursor.execute(
                'SELECT "number", "entry_id", "form", "content_hash", "chain_hash" '
                f'FROM "{AuditLink._meta.db_table}" WHERE "number" > %s ORDER BY "number" LIMIT {BATCH}',
                [after],
            )
            rows = cursor.fetchall()
            if not rows:
                return
            after = rows[-1][0]
            links = [(row[0], _uuid(row[1]), row[2], _bytes(row[3]), _bytes(row[4])) for row in rows]
            yield links, _entries([link[1] for link in links if isinstance(link[1], UUID)])


def _uuid(value: Any) -> Any:
    try:
        return value if isinstance(value, UUID) else UUID(value)
    except (ValueError, TypeError, AttributeError):
        return value


def _bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, (bytes, memoryview)) else b""


_COLUMNS = tuple(dict.fromkeys(name for form in chain.FORMS.values() for name in form))


def _entries(wanted: list[Any]) -> dict[Any, dict[str, Any] | None]:
    """Return entries by id as the chain writes them down; None for one that cannot even be read."""
    rows = AuditEntry.objects.order_by().values_list("id", *_COLUMNS)
    try:
        return {row[0]: _written(row[1:]) for row in rows.filter(pk__in=wanted)}
    except (ValueError, TypeError, DatabaseError):
        found: dict[Any, dict[str, Any] | None] = {}
        for one in wanted:
            try:
                row = rows.filter(pk=one).first()
            except (ValueError, TypeError, DatabaseError):
                found[one] = None
            else:
                if row is not None:
                    found[one] = _written(row[1:])
        return found


def _written(values: Iterable[Any]) -> dict[str, Any]:
    return {name: chain.plain(value) for name, value in zip(_COLUMNS, values, strict=True)}


def _beyond(report: Report, expected: dict[int, list[_Expected]]) -> None:
    """Name what checkpoints know and the chain does not reach any more."""
    for size in sorted(size for size in expected if size > report.size):
        each = expected[size][0]
        report.add(
            Problem(
                "truncated",
                f"There were {size} entries at {each.at:%Y-%m-%d %H:%M:%S} UTC ({each.where}), now {report.size}.",
                report.size + 1,
            )
        )
        return


def _twice(report: Report) -> None:
    """Name what stands in the chain twice: only where the table's own constraints were lifted."""
    with connection.cursor() as cursor:
        for column in ("number", "entry_id"):
            cursor.execute(
                f'SELECT "{column}", min("number") FROM "{AuditLink._meta.db_table}" '
                f'GROUP BY "{column}" HAVING count(*) > 1 ORDER BY 2 LIMIT {NAMED}'
            )
            for named, number in cursor.fetchall():
                if not any(problem.code == "twice" and problem.number == number for problem in report.problems):
                    report.add(Problem("twice", f"{named} stands in the chain more than once.", number))


def _outside(report: Report, at: datetime) -> None:
    """Name entries without a number: such as were never noted, and such as have waited too long."""
    after: UUID | None = None
    entries = AuditEntry.objects.order_by("id")
    report.waiting = AuditWaiting.objects.count()
    while True:
        try:
            page = list((entries.filter(id__gt=after) if after else entries).values_list("id", flat=True)[: 10 * BATCH])
        except ValueError:
            report.add(Problem("put_in", "An entry has an id that no program of ours writes."))
            return
        if not page:
            return
        after = page[-1]
        within = {"entry_id__gte": page[0], "entry_id__lte": after}
        # Noted before placed: one that is placed meanwhile is seen in one of both.
        noted = set(AuditWaiting.objects.filter(**within).values_list("entry_id", flat=True))
        placed = set(AuditLink.objects.filter(**within).values_list("entry_id", flat=True))
        for one in page:
            if one in placed:
                continue
            if one not in noted:
                report.add(Problem("put_in", f"The entry {one} was put in past the chain.", entry=str(one)))
            elif at - ids.made_at(one) > UNNUMBERED:
                report.add(Problem("unnumbered", f"The entry {one} waits for its number.", entry=str(one)))


# --- the export -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds."""

    first: int
    last: int
    checkpoints: int


def export(*, to: Path, by: Actor, at: datetime, since: int = 1, told: Told = lambda done, total: None) -> Exported:
    """Write the record from number `since` on, with the checkpoints that cover it, as lines of JSON to a new private
    file: whole, or not at all. An audit entry says who took it, where to and how much.

    Raises `AlreadyThere`; `OSError` when it cannot be written.
    """
    if to.exists():
        raise AlreadyThere(f"There is a file {to}. It is not replaced.")
    last = AuditLink.objects.order_by("-number").values_list("number", flat=True).first() or 0
    since = min(max(since, 1), last + 1)
    before = AuditLink.objects.filter(number=since - 1).values_list("chain_hash", flat=True).first()
    draft = to.with_name(f".{to.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    count = 0
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:

            def say(**line: Any) -> None:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")

            say(audit_export=1, first=since, last=last, before=bytes(before or chain.START).hex())
            for links, entries in _batches(since):
                for number, entry_id, form, content, stands in links:
                    if not isinstance(number, int) or number > last:
                        break
                    names, written = chain.FORMS.get(form, ()), entries.get(entry_id)
                    say(
                        number=number,
                        form=form,
                        entry={name: written[name] for name in names} if written else None,
                        content=content.hex(),
                        chain=stands.hex(),
                    )
                told(min(number, last), last)
            rows = AuditCheckpoint.objects.filter(size__gte=since - 1, size__lte=last).order_by("size", "at")
            for row in rows.iterator(chunk_size=BATCH):
                say(checkpoint=json.loads(checkpoints.of(row).line()))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        # Before the file is there: killed in between, there is an entry too many and never one too few.
        audit.exported(
            kind="auditentry",
            by=by,
            at=at,
            after={
                "file": str(to.absolute()),
                "first": since,
                "last": last,
                "entries": last - since + 1,
                "checkpoints": count,
            },
        )
        os.link(draft, to)
    except FileExistsError:
        raise AlreadyThere(f"There is a file {to}. It is not replaced.") from None
    finally:
        draft.unlink(missing_ok=True)
    return Exported(first=since, last=last, checkpoints=count)


def number_since(at: datetime) -> int:
    """Return the number from which on every entry stands that was made at or after an instant."""
    oldest = UUID(int=max(int(at.timestamp() * 1000), 0) << 80)
    found: int | None = AuditLink.objects.filter(entry_id__gte=oldest).aggregate(first=Min("number"))["first"]
    if found is not None:
        return found
    return (AuditLink.objects.order_by("-number").values_list("number", flat=True).first() or 0) + 1
