"""Everything somebody might do to the audit record who owns the database and lifts its guards, at random.

Each of `WAYS` does one thing to a world of a few entries and returns where it began: a number of the chain, an
entry's id, or None where it is about no place. It draws from `random` alone, so a seed does the same again.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import connection, models, transaction

from licensing import audit, chain, checkpoints, crypto, guards, ids
from licensing.models import AuditCheckpoint, AuditEntry, AuditLink, AuditWaiting, Customer
from tests.factories import AT, make_customer

ENTRIES = 14
SIGNED = (5, 9, 14)  # where checkpoints stand
TABLES = tuple(model._meta.db_table for model in (AuditEntry, AuditLink, AuditCheckpoint))


@dataclass
class World:
    """A record with checkpoints, as it was: its size, and where copies of the checkpoints are."""

    file: Path
    size: int = 0
    signed: list[int] = field(default_factory=list)
    forger: Any = field(default_factory=lambda: crypto.make_key("sign", state="primary"))


def build(file: Path) -> World:
    """Write a record, chain it, and sign it now and then; the newest entry is covered."""
    world = World(file)
    customer = make_customer()
    for number in range(AuditEntry.objects.count() + 1, ENTRIES + 1):
        write(customer, number)
        if number in SIGNED:
            while chain.link():
                pass
            row = checkpoints.make(at=AT + timedelta(minutes=number), asked=True)
            assert row is not None
            world.signed.append(row.size)
    world.size = ENTRIES
    file.write_text("".join(f"{checkpoints.of(row).line()}\n" for row in AuditCheckpoint.objects.order_by("size")))
    return world


def write(customer: Customer, number: int) -> AuditEntry:
    with transaction.atomic():
        return audit.record(
            action=f"test.did_{number}",
            by=audit.Actor("staff", str(number), f"s{number}@example.com", "support", "192.0.2.1", f"r-{number}"),
            on=customer,
            at=AT + timedelta(seconds=number),
            before={"n": number},
            after={"n": number + 1, "list": [1, {"deep": None}]},
            reason=f"Because of {number}.",
        )


def lift() -> None:
    """Take the guards of the record away. Only a test may, in a transaction that is taken back."""
    with connection.cursor() as cursor:
        for guard in guards.expected(connection.vendor):
            if guard.table in TABLES:
                on = f' ON "{guard.table}"' if connection.vendor == "postgresql" else ""
                cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"{on}')


Way = Callable[[World, random.Random], int | UUID | None]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


def entries() -> list[AuditEntry]:
    by_id = {row.pk: row for row in AuditEntry.objects.all()}
    return [by_id[entry] for entry in AuditLink.objects.order_by("number").values_list("entry_id", flat=True)]


def another(value: Any, column: Any, draw: random.Random) -> Any:
    """Return a value of the column's type that is not this one; often one that looks much like it."""
    match value:
        case datetime():
            return value + timedelta(microseconds=draw.choice((1, -1, 1_000_000, 86_400_000_000)))
        case UUID():
            return ids.uuid7()
        case dict():
            key = draw.choice(list(value) or ["x"])
            return draw.choice(
                ({**value, key: draw.getrandbits(40)}, {**value, "y": None}, {}) if value else ({"x": 1},)
            )
        case bytes() | memoryview():
            raw = bytearray(value)
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
            return bytes(raw)
        case bool() | int():
            return value + draw.choice((1, 2, 40))
        case None if column.name == "address":
            return "192.0.2.99"
        case None if isinstance(column, models.UUIDField):
            return ids.uuid7()
        case str() if column.name == "address":
            return draw.choice(("192.0.2.2", None, "2001:db8::1"))
        case str():
            at = draw.randrange(len(value) + 1)
            room = (column.max_length or 999) - 1
            return (value[:at] + draw.choice(" a0é") + value[at:])[:room] if draw.random() < 0.7 else f"x{value}"[1:-1]
    raise TypeError(type(value).__name__)


# --- entries --------------------------------------------------------------------------------------------


@way
def edit_an_entry(world: World, draw: random.Random) -> int:
    number = draw.randrange(world.size)
    row = entries()[number]
    column = draw.choice([each for each in AuditEntry._meta.concrete_fields if each.name != "id"])
    was = getattr(row, column.attname)
    new = another(was, column, draw)
    while new == was:
        new = another(was, column, draw)
    AuditEntry.objects.filter(pk=row.pk).update(**{column.attname: new})
    return number + 1


@way
def rename_an_entry(world: World, draw: random.Random) -> int:
    number = draw.randrange(world.size)
    AuditEntry.objects.filter(pk=entries()[number].pk).update(id=ids.uuid7())
    return number + 1


@way
def delete_an_entry(world: World, draw: random.Random) -> int:
    number = draw.randrange(world.size)
    gone(AuditEntry.objects.filter(pk=entries()[number].pk))
    return number + 1


@way
def delete_the_newest_entries(world: World, draw: random.Random) -> int:
    count = draw.randint(1, world.size)
    gone(AuditEntry.objects.filter(pk__in=[row.pk for row in entries()[-count:]]))
    return world.size - count + 1


@way
def put_an_entry_in(world: World, draw: random.Random) -> UUID:
    row = draw.choice(entries())
    row.pk = UUID(int=row.pk.int + draw.randint(1, 9)) if draw.random() < 0.5 else ids.uuid7()
    row.reason = "Was always there."
    row.save(force_insert=True)
    return row.pk


@way
def exchange_two_entries(world: World, draw: random.Random) -> int:
    first, second = sorted(draw.sample(range(world.size), 2))
    one, other = (entries()[each] for each in (first, second))
    one.pk, other.pk = other.pk, one.pk
    one.save(force_update=True)
    other.save(force_update=True)
    return first + 1


# --- the chain ------------------------------------------------------------------------------------------


@way
def edit_a_link(world: World, draw: random.Random) -> int:
    number = draw.randint(1, world.size)
    column = draw.choice([each for each in AuditLink._meta.concrete_fields if each.name != "number"])
    row = AuditLink.objects.get(number=number)
    AuditLink.objects.filter(number=number).update(
        **{column.attname: another(getattr(row, column.attname), column, draw)}
    )
    return number


@way
def renumber_a_link(world: World, draw: random.Random) -> int:
    number = draw.randint(1, world.size)
    AuditLink.objects.filter(number=number).update(number=world.size + draw.randint(1, 9))
    # The last one moved by one leaves the same gap where it was.
    return number


@way
def delete_a_link(world: World, draw: random.Random) -> int:
    number = draw.randint(1, world.size)
    gone(AuditLink.objects.filter(number=number))
    return number


@way
def delete_a_link_and_close_the_gap(world: World, draw: random.Random) -> int:
    number = draw.randint(1, world.size)
    entry = AuditLink.objects.get(number=number).entry_id
    gone(AuditLink.objects.filter(number=number))
    gone(AuditEntry.objects.filter(pk=entry))
    shift(number, -1)
    return number


@way
def delete_the_newest_links(world: World, draw: random.Random) -> int:
    count = draw.randint(1, world.size)
    named = list(AuditLink.objects.filter(number__gt=world.size - count).values_list("entry_id", flat=True))
    gone(AuditLink.objects.filter(entry_id__in=named))
    if draw.random() < 0.7:
        gone(AuditEntry.objects.filter(pk__in=named))
    elif draw.random() < 0.5:
        AuditWaiting.objects.bulk_create(AuditWaiting(entry_id=entry) for entry in named)
    return world.size - count + 1


@way
def put_a_link_in(world: World, draw: random.Random) -> int:
    number = draw.randint(1, world.size)
    row = draw.choice(entries())
    row.pk, row.reason = ids.uuid7(), "Was always there."
    row.save(force_insert=True)
    shift(number, 1)
    before = AuditLink.objects.filter(number=number - 1).first()
    content = hash_of(row)
    AuditLink.objects.create(
        number=number,
        entry_id=row.pk,
        form=chain.FORM,
        content_hash=content,
        chain_hash=chain.chain_hash(bytes(before.chain_hash) if before else chain.START, content),
    )
    if draw.random() < 0.4:
        chain_anew(number)
    return number


@way
def exchange_two_links(world: World, draw: random.Random) -> int:
    first, second = sorted(draw.sample(range(1, world.size + 1), 2))
    one, other = (AuditLink.objects.get(number=each) for each in (first, second))
    AuditLink.objects.filter(number=first).update(number=world.size + 5)
    AuditLink.objects.filter(number=second).update(number=first)
    AuditLink.objects.filter(number=world.size + 5).update(number=second)
    assert one.entry_id != other.entry_id
    if draw.random() < 0.5:
        chain_anew(first)
    return first


@way
def make_the_chain_anew(world: World, draw: random.Random) -> int:
    """Change an entry and every hash after it; perhaps only some way, and without the checkpoints of the database."""
    number = draw.randint(1, world.size)
    row = entries()[number - 1]
    AuditEntry.objects.filter(pk=row.pk).update(reason=f"Never {row.reason}")
    row.refresh_from_db()
    AuditLink.objects.filter(number=number).update(content_hash=hash_of(row))
    chain_anew(number, until=draw.choice((world.size, draw.randint(number, world.size))))
    if draw.random() < 0.5:
        gone(AuditCheckpoint.objects.all())
    return number


# --- checkpoints ----------------------------------------------------------------------------------------


@way
def edit_a_checkpoint(world: World, draw: random.Random) -> None:
    row = draw.choice(list(AuditCheckpoint.objects.order_by("size")))
    column = draw.choice(AuditCheckpoint._meta.concrete_fields)
    new = another(getattr(row, column.attname), column, draw)
    if isinstance(new, str) and new == getattr(row, column.attname):
        new = "another"
    AuditCheckpoint.objects.filter(pk=row.pk).update(**{column.attname: new})


@way
def delete_a_checkpoint(world: World, draw: random.Random) -> None:
    gone(AuditCheckpoint.objects.filter(size=draw.choice(world.signed)))


@way
def sign_a_checkpoint_with_another_key(world: World, draw: random.Random) -> None:
    row = checkpoints.latest()
    assert row is not None
    row.pk, row.size, row.head = ids.uuid7(), draw.randint(1, world.size), draw.randbytes(32)
    row.kid = draw.choice((row.kid, world.forger.kid))
    row.signature = world.forger.sign(checkpoints.of(row).text().encode())
    row.save(force_insert=True)


@way
def edit_the_file(world: World, draw: random.Random) -> None:
    lines = world.file.read_text().splitlines()
    number = draw.randrange(len(lines))
    said = json.loads(lines[number])
    name = draw.choice(list(said))
    match said[name]:
        case int():
            said[name] += draw.choice((1, -1))
        case str() as text:
            at = draw.randrange(len(text) - 2)
            said[name] = (
                text[:at] + draw.choice([sign for sign in "0123456789abcdef" if sign != text[at]]) + text[at + 1 :]
            )
    lines[number] = json.dumps(said)
    world.file.write_text("".join(f"{line}\n" for line in lines))


def gone(rows: Any) -> None:
    rows._raw_delete(using="default")


def shift(number: int, by: int) -> None:
    """Move the places from a number on, one row at a time: no two may have one number meanwhile."""
    numbers = AuditLink.objects.filter(number__gte=number).order_by("-number" if by > 0 else "number")
    for each in list(numbers.values_list("number", flat=True)):
        AuditLink.objects.filter(number=each).update(number=each + by)


def hash_of(row: AuditEntry) -> bytes:
    names = chain.FORMS[chain.FORM]
    row.refresh_from_db()
    return chain.content_hash(chain.FORM, chain.fields(chain.FORM, [getattr(row, name) for name in names]))


def chain_anew(number: int, *, until: int | None = None) -> None:
    """Make the hashes of the chain fit again from a number on."""
    last = AuditLink.objects.filter(number=number - 1).first()
    before = bytes(last.chain_hash) if last else chain.START
    for row in AuditLink.objects.filter(number__gte=number).order_by("number"):
        if until is not None and row.number > until:
            return
        before = chain.chain_hash(before, bytes(row.content_hash))
        AuditLink.objects.filter(number=row.number).update(chain_hash=before)


def seeds(count: int) -> range:
    """Return seeds of this run: TAMPER_SEED=… makes it begin elsewhere, or replays one."""
    begin = int(os.environ.get("TAMPER_SEED", "1"))
    return range(begin, begin + count)
