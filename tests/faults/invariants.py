"""What must hold after every fault, asked of the database in plain SQL and of the clients' books.

Each check returns how much it looked at and, in sentences, what is wrong. The numbers are those of docs/reliability.md.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import redis

from tests import canary
from tests.billing import rater
from tests.faults.world import INCLUDED, PRICE, SEATS, World

EDITS = 200 if os.environ.get("LICENTIA_SOAK") else 12

Found = tuple[int, list[str]]


def seats(world: World) -> Found:
    """I1: the counter is what is assigned, and never more than the limit."""
    rows = world.rows(
        "SELECT l.id, l.seats_used, (SELECT count(*) FROM licensing_seat s WHERE s.license_id = l.id"
        " AND s.released_at IS NULL) FROM licensing_license l"
    )
    wrong = [f"{license}: {used} counted, {held} assigned" for license, used, held in rows if not used == held <= SEATS]
    return len(rows), wrong


def usage(world: World) -> Found:
    """I2: what was acknowledged is there once; what was not, at most once; counters say the same."""
    rows = world.rows("SELECT event_id, CAST(quantity AS float), license_id FROM billing_usageevent")
    times = Counter(row[0] for row in rows)
    wrong = [f"{event} is there {number} times" for event, number in times.items() if number > 1]
    wrong += [f"{event} was acknowledged and is gone" for event in world.book.acknowledged - set(times)]
    wrong += [f"{event} was never sent" for event in set(times) - world.book.sent]
    sums: Counter[str] = Counter()
    for _, quantity, license in rows:
        sums[str(license)] += quantity
    counters: Counter[str] = Counter()
    for license, used in world.rows("SELECT license_id, CAST(used AS float) FROM licensing_counter"):
        counters[str(license)] += used
    wrong += [f"{key}: {counters[key]} counted, events say {sums[key]}" for key in sums if counters[key] != sums[key]]
    return len(rows), wrong


def audit(world: World) -> Found:
    """I3: no change without its entry, no entry without its change, and the chain of all of them verifies."""
    looked, wrong = world.check("record")
    for action, kind, changed in (
        ("seat.assigned", "seat", "SELECT id FROM licensing_seat"),
        ("seat.released", "seat", "SELECT id FROM licensing_seat WHERE released_at IS NOT NULL"),
        ("license.revoked", "license", "SELECT id FROM licensing_license WHERE revoked_at IS NOT NULL"),
    ):
        found = world.rows(f"SELECT object_id FROM licensing_auditentry WHERE action = '{action}'")
        entries = Counter(_same(row[0]) for row in found)
        rows = {_same(row[0]) for row in world.rows(changed)}
        looked += len(rows)
        wrong += [f"{kind} {each} has {entries[each]} entries {action}" for each in rows if entries[each] != 1]
        wrong += [f"an entry {action} about {each} without its change" for each in set(entries) - rows]
    known = {_same(row[0]) for row in world.rows("SELECT id FROM licensing_seat")}
    wrong += [
        f"seat {each} was acknowledged and is gone" for each in map(_same, world.book.assigned) if each not in known
    ]
    return looked, wrong


def tampering(world: World) -> Found:
    """I4: whatever is edited behind the triggers is found."""
    return world.check("tampering", seed=world.dice.randrange(2**32), edits=EDITS)


def rolled_back(world: World) -> Found:
    """I7: a cohort moved to other terms and back is what it was, to the byte."""
    seeds = world.server.seeds
    code = f"move-{time.time_ns()}"
    return world.check("rolled_back", old=seeds["revision"], new=seeds["other_terms"], code=code)


def jobs_again(world: World) -> Found:
    """I9: the periodic jobs, run once more and twice at once, change nothing."""
    return world.check("jobs_again")


def money(world: World) -> Found:
    """I11: each statement is the sum of its lines, and these what the tests' own rater makes of the events."""
    wrong = []
    found = world.rows("SELECT id, starts_at, ends_at, subtotal_minor, tax_minor, total_minor FROM billing_statement")
    used = world.rows("SELECT license_id, occurred_at, CAST(quantity AS float) FROM billing_usageevent")
    started = dict(world.rows("SELECT id, starts_at FROM licensing_license"))
    for statement, start, end, subtotal, tax, total in found:
        lines = world.rows(
            f"SELECT license_id, amount_minor FROM billing_statementline WHERE statement_id = '{statement}'"
        )
        owed = Counter[str]()
        for license, amount in lines:
            owed[_same(license)] += amount
        if sum(owed.values()) != subtotal or subtotal + tax != total:
            wrong.append(f"statement {statement} is {total}, its lines {sum(owed.values())}")
        period = _instant(start), _instant(end)
        for license, _ in world.good:
            begun = next(_instant(at) for key, at in started.items() if _same(key) == _same(license))
            stretch = max(period[0], begun), period[1]
            counted = sum(
                (Fraction(each) for key, at, each in used if _same(key) == _same(license) and _in(at, stretch)),
                Fraction(0),
            )
            case = {"currency": "EUR", "scheme": "both", "period": period, "stretch": stretch}
            case |= {"allowances": {"calls": (INCLUDED, True)}}
            case |= {"covered": [stretch] if stretch[0] < stretch[1] else [], "seats": [], "used": {"calls": counted}}
            wanted = sum(amount for _, amount in rater.rate(PRICE, case))
            if owed[_same(license)] != wanted:
                wrong.append(f"license {license} owes {wanted} from {start} on, billed is {owed[_same(license)]}")
    return len(found) * len(world.good), wrong if found else ["there is no statement"]


def _instant(at: object) -> datetime:
    found = at if isinstance(at, datetime) else datetime.fromisoformat(str(at))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _in(at: object, stretch: tuple[datetime, datetime]) -> bool:
    return stretch[0] <= _instant(at) < stretch[1]


def secrets(world: World) -> Found:
    """I5: no license key in a log, a mail, a file or a value of Redis."""
    places: list[tuple[str, bytes]] = []
    folder = Path(world.server.environment["VAR_DIR"])
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size < 200_000_000:
            places.append((str(path.relative_to(folder)), path.read_bytes()))
    for name, server in (("cache", world.cache_server), ("broker", world.broker_server)):
        with redis.Redis.from_url(server.url()) as client:
            places += [(name, key + (client.dump(key) or b"")) for key in client.scan_iter(count=1000)]
    keys = [key for _, key in world.good + world.doomed]
    plain = [key.encode() for key in keys] + [key.replace("-", "").encode() for key in keys]
    wrong = [f"a key stands in {name}" for name, text in places if any(each in text for each in plain)]
    assert canary.forms(keys[0])  # the thorough search over every form has a test of its own
    return len(places) * len(plain), wrong


def outbox(world: World) -> Found:
    """I8: every revocation has one message; what was delivered is in the mail folder at least once."""
    rows = world.rows("SELECT id, license_id, delivered_at FROM licensing_outboxmessage WHERE kind = 'mail.license'")
    of = Counter(_same(row[1]) for row in rows)
    wrong = [f"license {each} has {of[_same(each)]} messages" for each in world.book.revoked if of[_same(each)] != 1]
    mails = "".join(path.read_text() for path in (world.folder / "mail").glob("*")).replace("-", "")
    wrong += [f"{key} was delivered and is in no mail" for key, _, at in rows if at and _same(key) not in mails]
    if world.delivered:
        wrong += [f"{key} was not delivered" for key, _, at in rows if not at]
    return len(rows), wrong


def answers(which: str) -> Callable[[World], Found]:
    """I6, I10, I12: what the clients found wrong while they asked."""

    def look(world: World) -> Found:
        wrong = [each.partition(" ")[2] for each in world.book.violations if each.startswith(f"{which} ")]
        kind = {"I6": "validate", "I10": "licenses", "I12": ""}[which]
        return sum(number for name, number in world.book.answers.items() if name.startswith(kind)), wrong

    return look


def alerted(world: World, rules: set[str], since: str, seconds: float = 60.0) -> Found:
    """I13: each of the rules has an anomaly that was seen since the fault began."""
    until = time.monotonic() + seconds
    while True:
        found = {row[0] for row in world.rows(f"SELECT rule FROM licensing_anomaly WHERE last_at >= '{since}'")}
        if rules <= found or time.monotonic() > until:
            return len(rules), [f"nobody said {rule}" for rule in sorted(rules - found)]
        time.sleep(0.25)


ALL: dict[str, Callable[[World], Found]] = {
    "I1": seats,
    "I2": usage,
    "I3": audit,
    "I4": tampering,
    "I5": secrets,
    "I6": answers("I6"),
    "I7": rolled_back,
    "I8": outbox,
    "I9": jobs_again,
    "I10": answers("I10"),
    "I11": money,  # of what the jobs have just made
    "I12": answers("I12"),
}


def _same(key: object) -> str:
    return str(key).replace("-", "")
