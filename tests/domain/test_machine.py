"""The whole domain against a model in plain dicts: hypothesis draws what is done, once, twice or twice at once, and
after each step everything the database holds is what the model says.

LICENTIA_SEED replays a run; the long form (`make soak`) takes 33,600 steps on each database.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import hypothesis
import pytest
from django.db.models import Sum
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from billing import changes, jobs, metering, rollups, statements
from billing.models import Rollup, Statement, StatementLine, UsageEvent
from licensing import activations, chain, idempotency, leases, lifecycle, seats, snapshots, sweeps, verifying
from licensing.allowances import release as give_back
from licensing.catalog import Grant
from licensing.decision import Scope, decide
from licensing.errors import LicensingError
from licensing.models import (
    Activation,
    AuditEntry,
    Hold,
    Lease,
    License,
    Seat,
    Term,
)
from licensing.models import Counter as Counted
from licensing.models.allowances import Reservation
from tests.concurrency.together import together
from tests.domain import model
from tests.factories import AT, BY, make_customer, make_meter, make_plan, make_price, make_product, make_revision

LONG = bool(os.environ.get("LICENTIA_SOAK"))
SEED = int(os.environ.get("LICENTIA_SEED", random.SystemRandom().randrange(2**32) if LONG else "7"))
PARTS, EXAMPLES, LENGTH = (14, 40, 60) if LONG else (1, 6, 60)
pytestmark = pytest.mark.django_db(transaction=True)

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
HOLDERS = ("ada@example.com", "bob@example.com", "eve@example.com", "joe@example.com")
MACHINES = tuple(f"machine-{number:0>16}" for number in range(4))
SEVERAL = ("once", "once", "once", "twice", "at once")
which = st.integers(0, 1)
times = st.sampled_from(SEVERAL)
holders, machines = st.sampled_from(HOLDERS), st.sampled_from(MACHINES)
plans = st.sampled_from(sorted(model.PLANS))
quantities = st.sampled_from((0, 1, 2.5, 4, 9, 20))
NOW = timedelta()
ages = st.sampled_from((NOW, NOW, NOW, HOUR, 3 * DAY, 10 * DAY, 14 * DAY, 36 * DAY, -10 * MINUTE))
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"holder": HOLDERS[0], "calls": True},
    {"machine": MACHINES[0]},
    {"machine": MACHINES[1], "holder": HOLDERS[1], "calls": True},
)


def sold() -> dict[str, Any]:
    """Publish what the model says is sold; return the revisions by their plans' names."""
    metering.forget()
    make_meter(code="calls")
    product, revisions = make_product(), {}
    for name, terms in model.PLANS.items():
        plan = make_plan(product=product)
        make_price(plan=plan, components=terms["price"])
        grants = []
        if "allowance" in terms:
            amount, overage = terms["allowance"]
            grants = [Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(amount), overage=overage)]
        revisions[name] = make_revision(
            plan=plan,
            scheme=terms["scheme"],
            seat_kind="floating" if terms["floats"] else "named",
            seat_limit=terms["seats"],
            seat_required=terms["floats"] or name == "named",
            activation_limit=terms["machines"],
            duration=model.TERM,
            grace_period=model.GRACE,
            grants=grants,
        )
    return revisions


STEPS: dict[str, tuple[int, Callable[[Any], bool], dict[str, Any]]] = {}


def step(weight: int = 2, when: Callable[[Any], bool] = lambda self: True, **drawn: Any) -> Any:
    """Have it be one of the steps, taken as often as its weight says where `when` allows it."""

    def take(function: Any) -> Any:
        STEPS[function.__name__] = (weight, when, drawn)
        return function

    return take


class Domain(RuleBasedStateMachine):
    """Two licenses of one customer, from their drafts on, and the model of each."""

    revisions: dict[str, Any]
    rows: Sequence[License] = ()
    touched: set[int]  # the places of those that the last step may have changed
    taken: Counter[str]  # how often each answer was given, over all runs

    @initialize(
        first=st.sampled_from(("floating", "floating", *sorted(model.PLANS))),
        second=plans,
        draft=st.integers(0, 3),
        pace=st.integers(0, 2**32),
    )
    def begin(self, first: str, second: str, draft: int, pace: int) -> None:
        self.at, self.number, self.pace = AT + 27 * DAY, 0, random.Random(pace)
        self.final: list[datetime] = []
        self.customer = make_customer()
        self.rows, self.models, self.touched = [], [], {0, 1}
        for name in (first, second):
            row = lifecycle.prepare(customer=self.customer, plan_revision=self.revisions[name], by=BY, at=self.at)
            self.rows.append(row)
            self.models.append(model.drafted(name, self.at))
        for one in range(1 if draft == 1 else 2):
            self.does(one, "once", lambda row: lifecycle.issue_prepared(license=row, by=BY, at=self.at), model.issue)

    # --- doing

    # One rule that draws the step: of many rules hypothesis leaves some out of each run.
    @rule(data=st.data())
    def act(self, data: Any) -> None:
        names = [name for name, (weight, when, _) in STEPS.items() if when(self) for _ in range(weight)]
        name = data.draw(st.sampled_from(names), label="step")
        drawn = {argument: data.draw(strategy, label=argument) for argument, strategy in STEPS[name][2].items()}
        self.at += SECOND if self.pace.random() < 0.6 else self.pace.choice((11 * MINUTE, HOUR, DAY, DAY, 4 * DAY))
        self.number += 1
        getattr(self, name)(**drawn)

    def does(
        self, one: int, times: str, act: Callable[[Any], Any], told: Callable[..., str], *args: Any, at: bool = True
    ) -> None:
        """Have the product and the model do it, and see that both say the same."""
        row, license = self.rows[one], self.models[one]
        self.touched.add(one)
        acts = [partial(said, act, row)] * (1 if times == "once" else 2)
        got = together(*acts) if times == "at once" else [each() for each in acts]
        wanted = [told(license, *args, *([self.at] if at else [])) for _ in acts]
        self.taken[f"{told.__name__}: {wanted[0]}"] += 1
        assert Counter(got) == Counter(wanted), f"{times}: the product said {got}, the model {wanted}"

    @step(1, span=st.sampled_from((HOUR, 6 * HOUR, DAY, 13 * DAY)))
    def let_time_pass(self, span: timedelta) -> None:
        self.at += span

    @step(1, lambda self: not self.models[1]["issued"], times=times)
    def issue(self, times: str) -> None:
        self.does(1, times, lambda row: lifecycle.issue_prepared(license=row, by=BY, at=self.at), model.issue)

    @step(3, one=which, holder=holders, times=times)
    def assign(self, one: int, holder: str, times: str) -> None:
        act = partial(seats.assign, holder=holder, by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.assign, holder)

    @step(one=which, holder=holders, times=times)
    def release(self, one: int, holder: str, times: str) -> None:
        seat = Seat.objects.filter(license=self.rows[one], holder=holder).order_by("-id").first()
        if seat is not None:
            act = partial(seats.release, seat=seat, by=BY, at=self.at)
            self.does(one, times, lambda row: act(), model.release, holder, at=False)

    @step(5, one=which, machine=machines, ttl=st.sampled_from((10 * MINUTE, 5 * HOUR)), times=times)
    def check_out(self, one: int, machine: str, ttl: timedelta, times: str) -> None:
        if model.floats(self.models[1 - one]) and self.number % 4:  # mostly where there is something to check out
            one = 1 - one
        act = partial(leases.check_out, fingerprint=machine, ttl=ttl, by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.check_out, machine, ttl)

    @step(
        4,
        lambda self: any(license["leases"] for license in self.models),
        **{"one": which, "place": st.integers(0, 3), "what": st.sampled_from(("renew", "check in")), "times": times},
    )
    def lease_again(self, one: int, place: int, what: str, times: str) -> None:
        if not self.models[one]["leases"]:
            one = 1 - one
        machine = sorted(self.models[one]["leases"])[place % len(self.models[one]["leases"])]
        lease = Lease.objects.filter(license=self.rows[one], fingerprint=machine).order_by("-id").first()
        assert lease is not None
        if what == "renew":
            act: Any = partial(leases.renew, lease=lease, at=self.at, ttl=HOUR)
            self.does(one, times, lambda row: act(), model.renew_lease, machine, HOUR)
        else:
            act = partial(leases.check_in, lease=lease, by=BY, at=self.at)
            self.does(one, times, lambda row: act(), model.check_in, machine)

    @step(one=which, machine=machines, holder=holders, times=times)
    def activate(self, one: int, machine: str, holder: str, times: str) -> None:
        act = partial(activations.activate, fingerprint=machine, seat_holder=holder, by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.activate, machine, holder)

    @step(one=which, machine=machines, times=times)
    def deactivate(self, one: int, machine: str, times: str) -> None:
        bound = Activation.objects.filter(license=self.rows[one], fingerprint=machine).order_by("-id").first()
        if bound is not None:
            act = partial(activations.deactivate, activation=bound, by=BY, at=self.at)
            self.does(one, times, lambda row: act(), model.deactivate, machine)

    @step(3, one=which, reason=st.sampled_from(("unpaid", "abuse")), other=st.integers(0, 4), times=times)
    def hold_or_lift(self, one: int, reason: str, other: int, times: str) -> None:
        if (reason in self.models[one]["holds"]) != (other == 4):
            act = partial(lifecycle.lift, reason=reason, by=BY, at=self.at)
            self.does(one, times, lambda row: act(license=row), model.lift, reason)
        else:
            act = partial(lifecycle.hold, reason=reason, by=BY, at=self.at)
            self.does(one, times, lambda row: act(license=row), model.hold, reason)

    @step(1, lambda self: self.number > 30, one=which, times=times)  # it ends everything
    def revoke(self, one: int, times: str) -> None:
        act = partial(lifecycle.revoke, reason="Sold on.", by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.revoke)

    @step(3, one=which, key=st.sampled_from("abc"), times=times)
    def renew(self, one: int, key: str, times: str) -> None:
        """A request that comes twice with one idempotency key renews once."""

        def act(row: License) -> Any:
            def renewed() -> tuple[int, bytes]:
                return 200, str(lifecycle.renew(license=row, by=BY, at=self.at).expires_at).encode()

            principal = f"license:{row.pk}"
            return idempotency.once(principal=principal, key=key, request=b"renew", at=self.at, act=renewed)

        self.does(one, times, act, model.renew, key)

    @step(1, one=which, limit=st.sampled_from((0, 1, 2, 4, None)), times=times)
    def limit(self, one: int, limit: int | None, times: str) -> None:
        act = partial(lifecycle.change_limits, seat_limit=limit, by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.limit, limit)

    @step(one=which, plan=plans, times=times)
    def change(self, one: int, plan: str, times: str) -> None:
        act = partial(changes.change, plan_revision=self.revisions[plan], by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.change, plan)

    @step(one=which, plan=plans, delay=st.sampled_from((MINUTE, 7 * HOUR, 2 * DAY)), times=times)
    def schedule(self, one: int, plan: str, delay: timedelta, times: str) -> None:
        starts = self.at + delay
        act = partial(changes.change, plan_revision=self.revisions[plan], starts_at=starts, by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.schedule, plan, starts, at=False)

    @step(
        2,
        lambda self: any(len(license["terms"]) > 1 or license["scheduled"] for license in self.models),
        one=which,
        times=times,
    )
    def undo(self, one: int, times: str) -> None:
        act = partial(changes.undo, by=BY, at=self.at)
        self.does(one, times, lambda row: act(license=row), model.undo, self.final)

    # --- usage

    @step(5, one=which, quantity=quantities, age=ages, times=times)
    def consume(self, one: int, quantity: float, age: timedelta, times: str) -> None:
        self.tell(one, f"e-{self.number}", (quantity, self.at - age), times)

    @step(8, lambda self: self.final, one=which, quantity=st.sampled_from((4, 9)), times=times)
    def consume_late(self, one: int, quantity: float, times: str) -> None:
        """Send an event of a month whose statement is final."""
        when = max(self.final[-1] - HOUR, self.models[one]["starts"])
        self.tell(one, f"l-{self.number}", (quantity, when), times)

    @step(one=which, place=st.integers(0, 5), other=st.booleans(), times=times)
    def consume_again(self, one: int, place: int, other: bool, times: str) -> None:
        """Send an event that was counted before, as it was or with another quantity."""
        known = list(self.models[one]["events"].items())[-6:]
        if known:
            event, row = known[place % len(known)]
            self.tell(one, event, (row["quantity"] + other, row["at"]), times)

    def tell(self, one: int, event: str, content: tuple[float, datetime], times: str) -> None:
        def act(row: License) -> Any:
            sent = report(event, content)
            return metering.consume(license=picture(row), sent=sent, source="tests", at=self.at).status

        self.does(one, times, act, model.consume, event, content)

    @step(one=which, some=st.lists(st.tuples(quantities, ages, st.integers(0, 3)), min_size=2, max_size=5))
    def consume_batch(self, one: int, some: list[tuple[float, timedelta, int]]) -> None:
        """Ids may come twice in a batch, with the same content or another."""
        events = [(f"b-{self.number}-{name}", (quantity, self.at - age)) for quantity, age, name in some]
        snapshot = picture(self.rows[one])
        self.touched.add(one)
        sent = [
            (snapshot, metering.Sent(event, "calls", Decimal(str(quantity)), when))
            for event, (quantity, when) in events
        ]
        receipts = metering.consume_batch(sent=sent, source="tests", at=self.at)
        wanted = [model.consume(self.models[one], *event, self.at) for event in events]
        assert [receipt.code or receipt.status for receipt in receipts] == wanted

    @step(one=which, quantity=st.sampled_from((-3, -0.5, 2, 30)), age=st.sampled_from((HOUR, 11 * DAY)), times=times)
    def correct(self, one: int, quantity: float, age: timedelta, times: str) -> None:
        event, when = f"c-{self.number}", self.at - age

        def act(row: License) -> Any:
            return metering.correct(
                **{"license": row, "meter": "calls", "quantity": Decimal(str(quantity)), "occurred_at": when},
                **{"event_id": event, "reason": "Miscounted.", "by": BY, "at": self.at},
            ).status

        self.does(one, times, act, model.correct, event, (quantity, when))

    @step(3, one=which, quantity=st.sampled_from((1, 6, 15)), ttl=st.sampled_from((5 * MINUTE, 10 * HOUR)))
    def reserve(self, one: int, quantity: float, ttl: timedelta) -> None:
        name = f"h-{self.number}"

        def act(row: License) -> Any:
            asked = {"quantity": Decimal(str(quantity)), "ttl": ttl, "holder": name, "at": self.at}
            return metering.reserve(license=picture(row), meter="calls", **asked)

        self.does(one, "once", act, model.reserve, name, quantity, self.at + ttl)

    @step(
        3,
        lambda self: any(license["held"] for license in self.models),
        **{"one": which, "place": st.integers(0, 3), "share": st.sampled_from((0, 0.5, 1, None)), "times": times},
    )
    def end_reservation(self, one: int, place: int, share: float | None, times: str) -> None:
        """Commit all, half or nothing of what is held, or (None) let it go."""
        if not self.models[one]["held"]:
            one = 1 - one
        names = list(self.models[one]["held"])[-4:]
        name = names[place % len(names)]
        reservation = Reservation.objects.get(license=self.rows[one], holder=name)
        if share is None:
            act: Any = partial(give_back, reservation=reservation, at=self.at)
            self.does(one, times, lambda row: act(), model.let_go, name, at=False)
            return
        quantity = self.models[one]["held"][name]["quantity"] * share
        act = partial(metering.commit, reservation=reservation, quantity=Decimal(str(quantity)), dimensions=None)
        act = partial(act, event_id=f"of-{name}", source="tests", at=self.at)
        self.does(one, times, lambda row: act().status, model.commit, name, quantity)

    # --- jobs

    def job(self, job: sweeps.Job, times: str) -> None:
        """Run a job, twice or twice at once: what it leaves is the same."""
        self.touched = {0, 1}
        run = partial(sweeps.run, job, at=self.at)
        found = together(run, run) if times == "at once" else [run() for _ in range(1 + (times == "twice"))]
        assert not [each for each in found if isinstance(each, Exception)], found

    @step(3, times=times)
    def sweep(self, times: str) -> None:
        for job in (sweeps.EXPIRATION, sweeps.LEASES, sweeps.RESERVATIONS, sweeps.CHANGES, jobs.FOLLOW_UP):
            self.job(job, times)
        for license in self.models:
            model.expire(license, self.at)
            model.reclaim(license, self.at)
            model.lapse(license, self.at)
            model.switch(license, self.at)

    @step(times=times)
    def roll_up(self, times: str) -> None:
        """Hours, days and months are then what their events say."""
        self.job(jobs.ROLL_UP, times)
        for row, license in zip(self.rows, self.models, strict=True):
            wanted: Counter[tuple[str, datetime]] = Counter()
            for event in license["events"].values():
                hour = event["at"].replace(minute=0, second=0, microsecond=0)
                starts = {"hour": hour, "day": hour.replace(hour=0), "month": hour.replace(hour=0, day=1)}
                for window, start in starts.items():
                    wanted[window, start] += event["quantity"]
            kept = Rollup.objects.filter(license_id=row.pk).values_list("window", "starts_at", "quantity")
            assert {(window, start): float(total) for window, start, total in kept} == dict(wanted)
            until = self.at + DAY
            totals = rollups.totals(license_id=row.pk, starts_at=AT - 90 * DAY, ends_at=until, meter="calls")
            assert sum(float(total.quantity) for total in totals) == model.taken(license, AT - 90 * DAY, until)

    @step(4, close=st.booleans(), times=times)
    def bill(self, close: bool, times: str) -> None:
        """Drafts owe what the tests' own rater says; a month that was final is corrected to it by later lines."""
        draft = partial(statements.open_months, customer=self.customer, at=self.at)
        found = together(draft, draft) if times == "at once" else [draft() for _ in range(1 + (times == "twice"))]
        assert not [each for each in found if isinstance(each, Exception)], found
        for due in statements.due(at=self.at) if close else ():
            if due.customer_id == self.customer.pk:
                act = partial(said, lambda row: statements.close(statement=row, by=BY, at=self.at), due)
                got = together(act, act) if times == "at once" else [act()]
                assert Counter(got) == Counter(["ok", "statement_not_draft"][: len(got)])
                self.final.append(due.ends_at)
        statements.open_months(customer=self.customer, at=self.at)
        self.money_adds_up()

    def money_adds_up(self) -> None:
        made = list(Statement.objects.filter(customer=self.customer))
        sums = dict(
            StatementLine.objects.filter(statement__customer=self.customer)
            .values_list("statement_id")
            .annotate(Sum("amount_minor"))
        )
        amounts = StatementLine.objects.filter(statement__customer=self.customer).values_list(
            "statement_id", "corrects_id", "license_id", "amount_minor"
        )
        of: Counter[Any] = Counter()
        for statement, corrects, license, amount in amounts:
            of[corrects or statement, license] += amount
        this_month = model.month(self.at)[0]
        for statement in made:
            assert statement.subtotal_minor == sums.get(statement.pk, 0)
            assert statement.total_minor == statement.subtotal_minor + statement.tax_minor
            if statement.ends_at > this_month - model.CORRECTED:
                for row, license in zip(self.rows, self.models, strict=True):
                    owed = model.owed(license, statement.starts_at, statement.ends_at)
                    assert of[statement.pk, row.pk] == owed, f"{statement.starts_at:%B}: {statement.state}"
        numbers = sorted(statement.number for statement in made if statement.number is not None)
        assert numbers == list(range(1, len(self.final) + 1))
        closed = AuditEntry.objects.filter(action="statement.closed", object_id__in=[str(each.pk) for each in made])
        assert closed.count() == len(self.final)

    # --- seeing

    @invariant()
    def what_was_touched_is_as_the_model_says(self) -> None:
        self.see(self.touched)
        self.touched = set()

    def teardown(self) -> None:
        self.see(set(range(len(self.rows))))

    def see(self, places: set[int]) -> None:
        """See that all the database holds of these licenses is what the model says, no more and no less."""
        if not places:
            return
        ids = [self.rows[place].pk for place in sorted(places)]
        found: dict[Any, dict[str, Any]] = {pk: {"counters": []} for pk in ids}
        for row in License.objects.filter(pk__in=ids):
            found[row.pk]["row"] = row

        def gather(name: str, rows: Any, *columns: str) -> None:
            for pk in ids:
                found[pk][name] = []
            for pk, *values in rows.filter(license_id__in=ids).values_list("license_id", *columns):
                found[pk][name].append(tuple(values) if len(values) > 1 else values[0])

        gather("seated", Seat.objects.filter(released_at=None), "holder")
        gather("out", Lease.objects.filter(ended_at=None), "fingerprint", "expires_at")
        gather("active", Activation.objects.filter(deactivated_at=None), "fingerprint")
        gather("holds", Hold.objects.filter(lifted_at=None), "reason", "placed_at")
        gather("terms", Term.objects.order_by("starts_at"), "starts_at", "plan_revision_id", "undone_at")
        gather("held", Reservation.objects.filter(state="open"), "holder")
        gather("events", UsageEvent.objects.all(), "event_id", "quantity", "occurred_at")
        counters = ("starts_at", "ends_at", "used", "reserved", "allowance", "ceiling")
        gather("counters", Counted.objects.order_by("starts_at"), *counters)
        gather("entries", AuditEntry.objects.order_by(), "action")
        for place, pk in zip(sorted(places), ids, strict=True):
            self.compare(place, found[pk], self.models[place])

    def compare(self, place: int, found: dict[str, Any], license: model.License) -> None:
        row, at = found["row"], self.at
        assert lifecycle.status_of(row, at) == model.status(license, at)
        assert row.plan_revision_id == self.revisions[license["plan"]].pk
        assert (row.seat_limit, row.activation_limit) == (license["seats"], license["machines"])
        assert (row.expires_at, row.grace_until) == (license["expires"], license["expires"] + model.GRACE)
        assert (row.swept_status, row.due_at) == (license["swept"], license["due"])
        assert sorted(found["seated"]) == sorted(license["seated"])
        assert dict(found["out"]) == {name: license["leases"][name]["until"] for name in model.out(license)}
        assert sorted(found["active"]) == sorted(license["active"])
        assert dict(found["holds"]) == license["holds"]
        assert row.seats_used == model.used(license)
        assert row.seats_ceiling == (None if row.seat_limit is None else max(row.seat_limit, row.seats_used))
        assert row.activations_used == len(license["active"])

        terms = [(term["starts"], self.revisions[term["plan"]].pk, term["undone"]) for term in license["terms"]]
        terms.sort(key=lambda term: term[0])
        assert [(start, plan, undone is not None) for start, plan, undone in found["terms"]] == terms

        assert {event: (float(quantity), when) for event, quantity, when in found["events"]} == {
            event: (row["quantity"], row["at"]) for event, row in license["events"].items()
        }
        assert len(found["events"]) == len(license["events"])
        for name, held in license["held"].items():
            # What lapsed may be given back before a sweep, by whoever needs it.
            if held["state"] == "open" and held["until"] <= at and name not in found["held"]:
                held["state"] = "lapsed"
        open_now = [name for name, held in license["held"].items() if held["state"] == "open"]
        assert sorted(found["held"]) == sorted(open_now)
        for start, end, used, reserved, allowance, ceiling in found["counters"]:
            assert (start, end) == model.window(license, start)[:2]
            amount, overage = model.PLANS[model.window(license, start)[2]].get("allowance", (None, "charge"))
            assert (float(used), float(reserved)) == (
                model.taken(license, start, end),
                model.reserved(license, start, end),
            )
            assert allowance == amount
            assert ceiling == (max(amount, used + reserved) if overage == "refuse" else None)
        covered = [span[:2] for span in found["counters"]]
        assert all(any(start <= row["at"] < end for start, end in covered) for row in license["events"].values())

        assert Counter(found["entries"]) == license["entries"]
        asked = ASKED[(self.number + place) % len(ASKED)]
        assert ask(row.pk, at, asked) == model.verdict(license, at, **asked), asked


def said(act: Callable[[Any], Any], row: Any) -> str:
    """Return the code of how it ended, or of what was said."""
    try:
        done = act(row)
    except LicensingError as error:
        return error.code
    return done if isinstance(done, str) else "ok"


def report(event: str, content: tuple[float, datetime]) -> metering.Sent:
    return metering.Sent(event, "calls", Decimal(str(content[0])), content[1])


def picture(row: License) -> Any:
    found = snapshots.by_id(row.pk, Scope())
    assert found is not None
    return found.picture.snapshot


def ask(license: Any, at: datetime, asked: dict[str, Any]) -> str:
    scope = Scope(
        seat_holder=asked.get("holder"),
        fingerprint=asked.get("machine"),
        entitlements=("calls",) if asked.get("calls") else (),
    )
    found = snapshots.by_id(license, scope)
    assert found is not None
    return str(decide(found.picture.snapshot, snapshots.scoped(found, scope), at).code)


@pytest.mark.parametrize("part", range(PARTS))
def test_it_does_what_the_model_says(part: int) -> None:
    seed = SEED + part
    print(f"LICENTIA_SEED={seed}")
    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        stateful_step_count=LENGTH,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    machine = type("Drawn", (Domain,), {"revisions": sold(), "taken": Counter()})
    run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=settings)

    print(dict(machine.taken.most_common()))
    while chain.link():
        pass
    found = verifying.verify(at=datetime.now(UTC))
    assert found.good, found.first
    assert found.size == AuditEntry.objects.count()
