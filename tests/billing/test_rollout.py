"""A cohort moved to another plan revision: step by step, killed anywhere, rolled back to the byte."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from billing import rollout, statements, words
from billing.models import RolloutDifference, RolloutMember, Statement
from billing.rollout import CodeTaken, FindingsOpen, NotNow, Stopped
from billing.states import RolloutStage
from licensing import activations, anomalies, lifecycle, schemes, seats
from licensing.catalog import Grant
from licensing.errors import Invalid
from licensing.models import AuditEntry, License, Term
from tests.api.running import ROOT, database_beside, migrate, python
from tests.concurrency.together import together
from tests.factories import AT, BY, make_license, make_plan, make_price, make_product, make_revision

DAY = timedelta(days=1)
SOAK = bool(os.environ.get("LICENTIA_SOAK"))


class World:
    """A plan of seats with some licenses, a plan of usage they are to move to, and a clock."""

    def __init__(self, size: int = 6, *, price: bool = True, **terms: Any) -> None:
        self.product = make_product()
        self.old, self.new = make_plan(product=self.product), make_plan(product=self.product)
        self.seats = make_revision(plan=self.old)
        calls = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(100))
        self.usage = make_revision(plan=self.new, **{"scheme": "usage", "seat_limit": None, "grants": [calls]} | terms)
        make_price(plan=self.old, components=[{"kind": "seats", "amount": "31.00"}])
        if price:
            make_price(plan=self.new, components=[{"kind": "flat", "amount": "62.00"}])
        self.licenses = [make_license(plan_revision=self.seats) for _ in range(size)]
        self.at = AT + 14 * DAY

    def clock(self) -> Any:
        self.at += timedelta(seconds=1)
        return self.at

    def prepared(self, code: str = "move") -> Any:
        row = rollout.prepare(
            code=code, plan=self.old, plan_revision=self.usage, reason="new offer", by=BY, at=self.clock()
        )
        self.run(row)
        return row

    def run(self, row: Any) -> int:
        return len(list(rollout.run(rollout=row, by=BY, clock=self.clock)))

    def step(self, row: Any, *stages: str, **more: Any) -> Any:
        for stage in stages:
            rollout.ask(rollout=row, stage=RolloutStage(stage), by=BY, at=self.clock(), **more)
            self.run(row)
        return rollout.standing(row)


@pytest.mark.django_db
def test_a_rollout_of_a_plan_to_itself_needs_licenses_of_another_revision() -> None:
    world = World(2)
    asked: dict[str, Any] = {"plan": world.old, "reason": "new terms", "by": BY, "at": AT}

    with pytest.raises(
        Invalid, match="a rollout of the plan to itself: no license of .* another revision than 1"
    ) as no:
        rollout.prepare(code="itself", plan_revision=world.seats, **asked)
    newer = make_revision(plan=world.old, seat_limit=20)
    made = rollout.prepare(code="newer", plan_revision=newer, **asked)

    assert (no.value.pointer, made.plan_revision) == ("/plan_revision", newer)


def dump() -> dict[str, str]:
    """Return a digest of every row of what a roll back puts back, but the excepted columns of licenses."""
    found = {}
    for table in ("license", "seat", "activation", "lease", "licensekey", "hold", "counter", "customer", "licensefile"):
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM licensing_{table}")
            names = [column[0] for column in cursor.description]
            kept = [place for place, name in enumerate(names) if name not in schemes.NEVER_PUT_BACK]
            rows = sorted(repr([_plain(row[place]) for place in kept]) for row in cursor.fetchall())
        found[table] = f"{len(rows)} {hashlib.sha256(''.join(rows).encode()).hexdigest()}"
    return found


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def grown() -> dict[str, set[Any]]:
    """Return what only grows: every row's key."""
    found = {}
    for table in (
        "licensing_auditentry",
        "licensing_term",
        "licensing_schemechange",
        "licensing_outboxmessage",
        "billing_rollout",
        "billing_rolloutmember",
        "billing_rolloutdifference",
        "billing_livecomparison",
        "billing_usageevent",
    ):
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {table}")
            place = [column[0] for column in cursor.description].index(
                "event_id" if table == "billing_usageevent" else "id"
            )
            found[table] = {str(row[place]) for row in cursor.fetchall()}
    return found


# --- the steps --------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_it_goes_from_rehearsal_to_final() -> None:
    world = World()
    row = world.prepared()

    for stage in ("rehearsed", "shadow"):
        before = dump()
        world.step(row, stage)
        assert dump() == before
    world.step(row, "canary", percent=50)
    some = RolloutMember.objects.filter(state="switched").count()
    stands = world.step(row, "all", "verified")

    assert some == RolloutMember.objects.filter(place__lt=50).count()
    assert (stands.members, stands.left, stands.findings) == ({"switched": 6}, 0, {})
    assert {(each.scheme, each.plan_revision) for each in License.objects.all()} == {("usage", world.usage)}
    assert world.step(row, "final").members == {"final": 6}
    with pytest.raises(NotNow):
        world.step(row, "rolling_back")


@pytest.mark.django_db
@pytest.mark.parametrize("reached", [[], ["rehearsed"], ["shadow"], ["canary"], ["all"], ["verified"]])
def test_it_rolls_back_from_every_step_before_final(reached: list[str]) -> None:
    world = World()
    for number, license in enumerate(world.licenses):
        seats.assign(license=license, holder=f"{number}@example.com", by=BY, at=AT)
    before = dump()
    row = world.prepared()
    order = ["rehearsed", "shadow", "canary", "all", "verified"]
    for stage in order[: order.index(reached[0]) + 1] if reached else []:
        world.step(row, stage, **({"percent": 50} if stage == "canary" else {}))
    between = grown()

    stands = world.step(row, "rolling_back")

    assert dump() == before
    assert stands.stage == "rolled_back"
    assert stands.members == {"reverted": 6}
    assert world.step(row, "rolling_back") == stands  # asked for once more
    assert all(between[table] <= rows for table, rows in grown().items())
    assert Term.objects.in_force().count() == 6
    world.prepared("again")  # they are free for another


@pytest.mark.django_db
def test_it_finds_in_the_rehearsal_what_speaks_against_it() -> None:
    world = World(4, price=False, activation_limit=0, scheme="both", seat_limit=1)
    over, held, revoked, _ = world.licenses
    for number in range(3):
        seats.assign(license=over, holder=f"{number}@example.com", by=BY, at=AT)
    lifecycle.hold(license=held, reason="unpaid", by=BY, at=AT)
    row = world.prepared()
    lifecycle.revoke(license=revoked, reason="refunded", by=BY, at=world.at)

    stands = world.step(row, "rehearsed")

    assert stands.findings == {"no_price": 3, "over_limit": 1, "not_usable": 1, "refused": 1}
    world.step(row, "shadow")
    with pytest.raises(FindingsOpen):
        world.step(row, "all")
    after = world.step(row, "all", accept=True)
    assert after.members == {"switched": 3, "skipped": 1}
    assert License.objects.get(pk=over.pk).seats_used == 3


@pytest.mark.django_db
def test_it_shows_both_ratings_and_both_decisions_side_by_side() -> None:
    world = World(2, activation_required=True)
    seats.assign(license=world.licenses[0], holder="ada@example.com", by=BY, at=AT)
    row = world.prepared()

    world.step(row, "rehearsed", "shadow")

    found = RolloutDifference.objects.filter(license=world.licenses[0])
    money = found.get(kind="money")
    assert (money.before, money.after) == _owed(world, row)
    assert found.get(kind="decision", subject="validate").after == "activation_required"
    assert found.filter(kind="limit", subject="seats", before="10", after="no limit").exists()
    rollout.look_again(rollout=rollout.find("move"), by=BY, at=world.clock())
    world.run(row)
    assert found.filter(kind="limit", subject="seats").count() == 1


def _owed(world: World, row: Any) -> tuple[str, str]:
    switched_at = RolloutMember.objects.get(license=world.licenses[0]).shadowed_at
    month = {"starts_at": AT.replace(day=1, hour=0), "ends_at": AT.replace(month=4, day=1, hour=0), "at": switched_at}
    license = License.objects.get(pk=world.licenses[0].pk)
    terms = [(AT, "seats", world.seats), (switched_at, "usage", world.usage)]
    sums = [statements.rated(license=license, **month), statements.rated(license=license, terms=terms, **month)]
    owed = [words.money(sum(line.amount_minor for line in lines), "EUR") for lines in sums]
    return owed[0], owed[1]


@pytest.mark.django_db
def test_it_stops_and_goes_on() -> None:
    world = World()
    row = world.prepared()
    world.step(row, "rehearsed", "shadow")
    rollout.ask(rollout=row, stage=RolloutStage.ALL, by=BY, at=world.clock())

    with pytest.raises(Stopped):
        for progress in rollout.run(rollout=row, by=BY, clock=world.clock):
            if progress.done == 2:
                rollout.stop(rollout=row, by=BY, at=world.clock())
    assert RolloutMember.objects.filter(state="switched").count() == 2
    rollout.resume(rollout=row, by=BY, at=world.clock())
    world.run(row)

    assert rollout.standing(row).members == {"switched": 6}
    assert world.run(row) == 0


@pytest.mark.django_db
def test_it_keeps_to_its_order() -> None:
    world = World(1)
    row = world.prepared()
    with pytest.raises(CodeTaken):
        world.prepared()
    for stage in ("shadow", "canary", "all", "verified", "final"):
        with pytest.raises(NotNow):
            world.step(row, stage)
    world.step(row, "rehearsed", "shadow")
    for percent in (0, 100):
        with pytest.raises(Invalid, match="percent"):
            world.step(row, "canary", percent=percent)
    world.prepared("second")
    assert rollout.standing(rollout.find("second")).members == {"skipped": 1}


@pytest.mark.django_db
def test_it_leaves_a_license_that_somebody_changed_since_as_it_is() -> None:
    world = World(2)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow", "all")
    own = make_revision(plan=make_plan(product=world.product))
    lifecycle.change_plan(license=world.licenses[0], plan_revision=own, by=BY, at=world.clock())

    stands = world.step(row, "rolling_back")

    assert stands.findings == {"changed_since": 1}
    assert License.objects.get(pk=world.licenses[0].pk).plan_revision == own
    assert License.objects.get(pk=world.licenses[1].pk).plan_revision == world.seats


@pytest.mark.django_db
def test_it_sees_in_the_verification_what_does_not_fit() -> None:
    world = World(3)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow", "all")
    License.objects.filter(pk=world.licenses[0].pk).update(seats_used=1)
    License.objects.filter(pk=world.licenses[1].pk).update(scheme="both")

    stands = world.step(row, "verified")

    texts = [found["text"] for each in RolloutMember.objects.all() for found in each.findings]
    assert stands.left == 2
    assert "1 seats are counted, 0 are taken." in texts
    assert "The terms do not fit their proof." in texts
    with pytest.raises(NotNow):
        world.step(row, "final")
    License.objects.filter(pk=world.licenses[0].pk).update(seats_used=0)
    License.objects.filter(pk=world.licenses[1].pk).update(scheme="usage")
    assert world.step(row, "verified").left == 0


@pytest.mark.django_db
def test_it_keeps_statements_open_until_it_is_final() -> None:
    world = World(1)
    customer = world.licenses[0].customer
    draft = Statement.objects.create(
        customer=customer,
        currency="EUR",
        starts_at=AT.replace(day=1, hour=0),
        ends_at=AT.replace(month=4, day=1, hour=0),
        created_at=AT,
    )
    row = world.prepared()
    held = [statements.held_open(draft)]
    for stages in (["rehearsed", "shadow", "all"], ["verified"], ["final"]):
        world.step(row, *stages)
        held.append(statements.held_open(draft))

    assert held == [False, True, True, False]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM billing_rollout",
        "DELETE FROM billing_rolloutmember",
        "UPDATE billing_rolloutmember SET place = 100",
        "UPDATE billing_rolloutmember SET state = 'pending'",
        "UPDATE billing_rolloutdifference SET after = ''",
        "DELETE FROM billing_rolloutdifference",
    ],
)
def test_it_keeps_its_tables_against_sql_typed_by_hand(statement: str) -> None:
    world = World(1)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow", "rolling_back")

    with pytest.raises(Exception, match="never|keeps"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.django_db(transaction=True)
def test_it_switches_each_license_once_from_several_processes_at_once_and_back() -> None:
    world = World(12)
    before, row = dump(), world.prepared()
    world.step(row, "rehearsed", "shadow")
    rollout.ask(rollout=row, stage=RolloutStage.ALL, by=BY, at=world.clock())

    def act() -> None:
        with contextlib.suppress(NotNow):
            world.run(row)

    assert together(*[act] * 3) == [None] * 3
    assert Term.objects.count() == 24
    assert AuditEntry.objects.filter(action="license.plan_changed").count() == 12
    rollout.ask(rollout=row, stage=RolloutStage.ROLLING_BACK, by=BY, at=world.clock())
    assert together(*[act] * 3) == [None] * 3
    assert AuditEntry.objects.filter(action="license.change_undone").count() == 12
    assert dump() == before


# --- the command, killed ----------------------------------------------------------------------------

SEED = """
from datetime import datetime, timedelta, UTC
from tests.billing import test_rollout as t
print(json.dumps(t.seed({size}, {quietly})))
"""
DUMP = """
from tests.billing import test_rollout as t
print(json.dumps([t.dump(), {name: sorted(rows) for name, rows in t.grown().items()}]))
"""


def seed(size: int, quietly: bool) -> Any:
    """Make `size` licenses of a plan of seats, with seats and machines on some; `quietly` goes on to the shadow."""

    world = World(0)
    customer = make_license(plan_revision=world.seats).customer
    for start in range(0, size - 1, 500):
        with transaction.atomic():
            for number in range(start, min(start + 500, size - 1)):
                license = make_license(plan_revision=world.seats, customer=customer)
                if number % 10 == 0:
                    seats.assign(license=license, holder=f"{number}@example.com", by=BY, at=AT)
                    activations.activate(license=license, fingerprint=f"machine-{number:0>16}", by=BY, at=AT)
                if number % 25 == 0:
                    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    if quietly:
        row = world.prepared()
        world.step(row, "rehearsed", "shadow")
    return {
        "from": f"{world.product.code}/{world.old.code}",
        "to": f"{world.product.code}/{world.new.code}",
    }


@contextlib.contextmanager
def installation() -> Iterator[dict[str, str]]:
    with database_beside() as url, tempfile.TemporaryDirectory(prefix="licentia-rollout-") as folder:
        mine = {
            **os.environ,
            "LICENTIA_ENV": "test",
            "VAR_DIR": folder,
            "DATABASE_URL": url or f"sqlite:///{folder}/rollout.sqlite3",
            "REDIS_KEY_PREFIX": f"licentia-rollout-{os.getpid()}",
            "LOG_LEVEL": "ERROR",
        }
        migrate(mine)
        yield mine


def command(environment: dict[str, str], *words: str) -> Any:
    """Start the real command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "manage.py", "rollout", *words, "--json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(environment: dict[str, str], *words: str) -> Any:
    process = command(environment, *words)
    out, err = process.communicate(timeout=3600)
    assert process.returncode == 0, (words, err[-2000:])
    return json.loads(out)


STEPS = (
    ("prepare", "--from", "{from}", "--to", "{to}", "--reason", "new offer"),
    ("rehearse",),
    ("shadow",),
    ("canary", "--percent", "30"),
    ("all",),
    ("roll-back",),
)


@pytest.mark.django_db
def test_it_is_killed_anywhere_and_rolled_back_to_the_byte() -> None:
    """The real command over a real database, SIGKILLed at random instants: of every step in the long form, of the
    switching and the rolling back in the short one."""
    size, kills = (int(os.environ.get("LICENTIA_ROLLOUT_SIZE", "10000")), 50) if SOAK else (200, 4)
    chance = random.Random(int(os.environ.get("LICENTIA_SEED", "4")))
    shares = (1, 1, 1, 1, 2, 2) if SOAK else (0, 0, 0, 0, 1, 1)
    with installation() as mine:
        seeds = python(SEED.format(size=size, quietly=not SOAK), mine)
        before, first = python(DUMP, mine)
        killed, seen = 0, []
        began = time.monotonic()
        done(mine, "status")
        window = (time.monotonic() - began, 8.0 if SOAK else 0.6)
        for place, (step, *more) in enumerate(STEPS):
            if not shares[place]:
                continue
            words = [step, "move", *(word.format(**seeds) for word in more)]
            killed += _kill(mine, words, sum(shares[: place + 1]) * kills // sum(shares) - killed, window, chance)
            stands = done(mine, *(["resume", "move"] if step == "prepare" else words))
            seen.append((step, killed, stands["members"]))
        after, last = python(DUMP, mine)
    print(*seen, sep="\n")

    assert killed >= (kills * 3 // 4 if SOAK else kills // 2)  # a fast machine is through before the others
    assert [each[2] for each in seen[-2:]] == [{"switched": size}, {"reverted": size}]
    assert after == before
    assert all(set(first[table]) <= set(last[table]) for table in first)
    assert len(last["licensing_schemechange"]) == size


def _kill(
    environment: dict[str, str], words: list[str], wanted: int, window: tuple[float, float], chance: random.Random
) -> int:
    """Start the step and kill it, again and again, from before it has connected on; return how often it was killed.

    `window` is the seconds that a command takes which does nothing, and those of work in which to kill at first.
    """
    killed = through = 0
    idle, work = window
    while killed < wanted and through < 4:
        process = command(environment, *words)
        try:
            process.wait(chance.uniform(idle / 2, idle + work))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        through, work = through + 1, work / 2
        if words[0] == "prepare":  # it is there already: what is left of it is done by
            words = ["resume", "move"]
        else:
            assert process.returncode == 0, process.stderr.read()
    return killed


@pytest.mark.django_db
def test_the_command_says_what_it_did_and_what_to_do() -> None:
    world = World(3)
    names = [f"{world.product.code}/{plan.code}" for plan in (world.old, world.new)]

    def rolled(*words: str) -> Any:
        out = StringIO()
        call_command("rollout", *words, "--json", stdout=out)
        return json.loads(out.getvalue())

    prepared = rolled("prepare", "move", "--from", names[0], "--to", names[1], "--reason", "new offer")
    for step in ("rehearse", "shadow", "all", "verify"):
        stands = rolled(step, "move")

    assert (prepared["stage"], prepared["members"]) == ("prepared", {"pending": 3})
    assert (stands["stage"], stands["members"], stands["left"]) == ("verified", {"switched": 3}, 0)
    assert rolled("findings", "move") == []
    assert {each["kind"] for each in rolled("differences", "move")} >= {"money", "limit"}
    assert [each["code"] for each in rolled("status")] == ["move"]
    assert rolled("final", "move")["members"] == {"final": 3}
    for typed, text in (
        (["roll-back", "move"], "From final a rollout cannot go"),
        (["all", "other"], "There is no rollout other"),
        (["prepare", "new", "--from", "nothing", "--to", names[1]], "Say --from product/plan"),
        (["all"], "Name the rollout"),
        (["roll-back", "move"], "What can follow: nothing"),
        (["prepare", "two words", "--from", names[0], "--to", names[1], "--reason", "x"], "letters, digits"),
    ):
        with pytest.raises(CommandError, match=text):
            call_command("rollout", *typed)


@pytest.mark.django_db
def test_a_license_that_cannot_be_taken_back_yet_keeps_no_other_from_it() -> None:
    world = World(3)
    world.seats = make_revision(plan=world.old, fingerprint_scope="product")
    world.licenses = [make_license(plan_revision=world.seats) for _ in range(3)]
    first = min(world.licenses, key=lambda license: license.pk)
    activations.activate(license=first, fingerprint="f" * 32, by=BY, at=AT)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow", "all")
    elsewhere = make_license(plan_revision=world.usage)
    machine = activations.activate(license=elsewhere, fingerprint="f" * 32, by=BY, at=world.clock()).activation

    assert world.step(row, "rolling_back").left == 1
    assert world.run(row) == 1
    member = RolloutMember.objects.get(license=first)
    assert (member.state, [found["code"] for found in member.findings]) == ("switched", ["fingerprint_in_use"])

    activations.deactivate(activation=machine, by=BY, at=world.clock())
    world.run(row)

    assert rollout.standing(row).stage == "rolled_back"
    first.refresh_from_db()
    assert first.plan_revision_id == world.seats.pk


@pytest.mark.django_db
def test_a_license_whose_terms_were_altered_keeps_no_other_from_being_switched() -> None:
    world = World(3)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow")
    first = min(world.licenses, key=lambda license: license.pk)
    License.objects.filter(pk=first.pk).update(seat_limit=500, seats_ceiling=500)

    stands = world.step(row, "all", "verified")

    assert (stands.members, stands.left) == ({"skipped": 1, "switched": 2}, 0)
    assert stands.findings == {"terms_altered": 1}
    assert anomalies._later[0]["license_id"] == first.pk
    first.refresh_from_db()
    assert (first.plan_revision_id, first.seat_limit) == (world.seats.pk, 500)


@pytest.mark.django_db
def test_a_license_whose_terms_were_altered_since_keeps_no_other_from_going_back() -> None:
    world = World(3)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow", "all")
    first = min(world.licenses, key=lambda license: license.pk)
    License.objects.filter(pk=first.pk).update(seat_limit=500, seats_ceiling=500)

    assert world.step(row, "rolling_back").left == 1
    member = RolloutMember.objects.get(license=first)
    assert (member.state, [found["code"] for found in member.findings]) == ("switched", ["terms_altered"])

    License.objects.filter(pk=first.pk).update(seat_limit=None, seats_ceiling=None)
    world.run(row)
    assert rollout.standing(row).stage == "rolled_back"


@pytest.mark.django_db
def test_it_sees_in_the_verification_machines_that_do_not_fit() -> None:
    world = World(1)
    activations.activate(license=world.licenses[0], fingerprint="f" * 32, by=BY, at=AT)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow", "all")
    License.objects.update(activations_used=2)

    assert world.step(row, "verified").left == 1
    [found] = RolloutMember.objects.get().findings
    assert found["text"] == "2 machines are counted, 1 are active."


@pytest.mark.django_db
def test_it_verifies_a_license_that_was_given_other_limits_since() -> None:
    world = World(1)
    row = world.prepared()
    world.step(row, "rehearsed", "shadow", "all")
    lifecycle.change_limits(license=world.licenses[0], activation_limit=9, by=BY, at=world.clock())

    assert world.step(row, "verified").left == 0
