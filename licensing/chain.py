"""The audit chain: each entry gets a number without gaps, and a hash over itself and all before it.

Writers do not wait for it. A trigger notes each entry as waiting, in the transaction of the entry; `link`, one at a
time over all processes, gives numbers to what is noted and committed. So an entry whose transaction commits late gets
a late number, and none is passed by. Source: ADR 0019, docs/audit.md.

It signs nothing (`checkpoints`) and compares nothing (`verifying`).
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.utils import timezone

from licensing import ids
from licensing.background import Periodic
from licensing.models import AuditEntry, AuditLink, AuditWaiting

BATCH = 250
TURNS = 40  # batches in one run: ten thousand entries, then others' work is looked at again
LATE = timedelta(seconds=5)  # entries that wait longer say that nothing chains them
INTERVAL_SECONDS = 0.5
START = bytes(32)  # what the first link hashes as the one before it

# The columns a content hash covers. A column more is a new form: what was hashed before stays as it was hashed.
_FIRST = (
    "id",
    "created_at",
    "at",
    "action",
    "actor_kind",
    "actor_id",
    "actor_label",
    "actor_role",
    "address",
    "object_kind",
    "object_id",
    "license_id",
    "customer_id",
    "before",
    "after",
    "reason",
    "request_id",
)
FORMS: dict[int, tuple[str, ...]] = {1: _FIRST, 2: (*_FIRST, "personal")}
FORM = max(FORMS)
GONE = 0  # the form of a link whose entry was not there any more when its number came


@dataclass(frozen=True, slots=True)
class Standing:
    """How the chain stands: how many entries it holds, its last hash, and how long the oldest without a number waits.

    `lag` counts from when the entry was made, so it includes what its own transaction took.
    """

    size: int
    head: bytes
    lag: timedelta


def fields(form: int, values: Iterable[Any]) -> dict[str, Any]:
    """Return the columns of an entry, in the order of the form, as the chain writes them down."""
    return {name: plain(value) for name, value in zip(FORMS[form], values, strict=True)}


def content_hash(form: int, written: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of what `fields` returned: 0x00, then JSON with its form, keys sorted, ASCII, no spaces."""
    text = json.dumps({**written, "form": form}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"\x00" + text.encode()).digest()


def chain_hash(before: bytes, content: bytes) -> bytes:
    """Return the hash of a link: SHA-256 of 0x02, the link before, and the content."""
    return hashlib.sha256(b"\x02" + before + content).digest()


def plain(value: Any) -> Any:
    """Return one stored value as the chain writes it down."""
    match value:
        case None | bool() | int() | float() | str() | dict() | list():
            return value
        case UUID():
            return str(value)
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case bytes() | memoryview():
            return bytes(value).hex()
    return repr(value)  # nothing we write; an edit by hand


def link() -> int:
    """Give numbers to entries that wait, the oldest id first, a batch of them; return how many. 0 while another does.

    What it hashes is read before it begins to write: on SQLite others write meanwhile.
    """
    noted = list(AuditWaiting.objects.order_by("entry_id").values_list("entry_id", flat=True)[:BATCH])
    if not noted:
        return 0
    rows = AuditEntry.objects.filter(pk__in=noted).values_list(*FORMS[FORM])
    contents = {row[0]: content_hash(FORM, fields(FORM, row)) for row in rows}
    with transaction.atomic():
        if not alone():
            return 0
        # Another may have been here since we looked; what is noted twice keeps the place it has.
        waiting = set(AuditWaiting.objects.filter(pk__in=noted).values_list("entry_id", flat=True))
        placed = set(AuditLink.objects.filter(entry_id__in=noted).values_list("entry_id", flat=True))
        last = AuditLink.objects.order_by("-number").first()
        number, before = (last.number, bytes(last.chain_hash)) if last else (0, START)
        links = []
        for entry_id in noted:
            if entry_id not in waiting or entry_id in placed:
                continue
            form, content = FORM, contents.get(entry_id)
            if content is None:  # somebody took it away past the guards: its place stays, for `verifying` to name
                form, content = GONE, bytes(32)
            number, before = number + 1, chain_hash(before, content)
            links.append(
                AuditLink(
                    number=number,
                    entry_id=entry_id,
                    form=form,
                    content_hash=content,
                    chain_hash=before,
                )
            )
        AuditLink.objects.bulk_create(links)
        AuditWaiting.objects.filter(pk__in=[*(each.entry_id for each in links), *placed]).delete()
    return len(links)


def alone(*, wait: bool = False) -> bool:
    """Return whether nobody else extends the chain until this transaction ends, else false; or wait for that."""
    if connection.vendor != "postgresql":
        return True  # a transaction that writes is the only one (transaction_mode IMMEDIATE)
    function = "pg_advisory_xact_lock" if wait else "pg_try_advisory_xact_lock"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {function}(hashtext('licensing audit chain'))")
        return wait or bool(cursor.fetchone()[0])


def begin() -> int:
    """Note the entries that were written before there was a chain; return how many. Does nothing once there is one.

    Only then: an entry that is not noted later on was written past the trigger, and is for `verifying` to name.
    """
    done = 0
    if not AuditLink.objects.exists():
        with transaction.atomic(), connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SET LOCAL statement_timeout = 0")  # once, and all there are
            cursor.execute(
                f'INSERT INTO "{AuditWaiting._meta.db_table}" ("entry_id") SELECT "id" FROM '
                f'"{AuditEntry._meta.db_table}" WHERE NOT EXISTS (SELECT 1 FROM "{AuditLink._meta.db_table}")'
                " ON CONFLICT DO NOTHING"
            )
            done = max(cursor.rowcount, 0)
    return done


def standing(*, at: datetime) -> Standing:
    """Return how the chain stands."""
    last = AuditLink.objects.order_by("-number").first()
    return Standing(
        size=last.number if last else 0,
        head=bytes(last.chain_hash) if last else START,
        lag=lag(at=at),
    )


def lag(*, at: datetime) -> timedelta:
    """Return how long the oldest entry without a number has been there."""
    oldest = AuditWaiting.objects.order_by("entry_id").values_list("entry_id", flat=True).first()
    return max(at - ids.made_at(oldest), timedelta()) if oldest else timedelta()


def number_of(entry_id: UUID) -> int | None:
    """Return the number of an entry, None while it waits."""
    return AuditLink.objects.filter(entry_id=entry_id).values_list("number", flat=True).first()


_followers: list[Callable[[datetime], object]] = []


def follow(by: Callable[[datetime], object]) -> None:
    """Have `by` called after each batch, and at each turn: who makes checkpoints. It raises nothing."""
    if by not in _followers:
        _followers.append(by)


def turn(*, at: datetime) -> int:
    """Link what waits, batch by batch; return how many. What every beat and every process's thread does."""
    done, begun = 0, time.monotonic()
    for _ in range(TURNS):
        now = at + timedelta(seconds=time.monotonic() - begun)
        linked = link() or (begin() and link())
        done += linked
        for follower in _followers:
            follower(now)
        if linked < BATCH:
            break
    return done


_written_to = False


def written() -> None:
    """Take note that an entry is committed: this process's thread links it within half a second."""
    global _written_to
    _written_to = True
    sequencing.wake()


def _sequence() -> bool:
    """Link while this process writes; a process that does not asks nothing."""
    global _written_to
    if not _written_to:
        return False
    _written_to = False
    try:
        turn(at=timezone.now())
        _written_to = _written_to or AuditWaiting.objects.exists()  # another was at it, or one came since
    except Exception:
        _written_to = True
        raise
    return _written_to


sequencing = Periodic("audit-chain", INTERVAL_SECONDS, _sequence)
