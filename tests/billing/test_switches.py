"""Generated changes of scheme, now, late and undone: what each license owes is what a second rater says.

The second rater (`tests.billing.rater`) is written from docs/pricing.md alone. What it is given here comes from what
was asked for, not from what was stored.
"""

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from billing import changes, statements
from billing.models import UsageChange, UsageEvent
from licensing import lifecycle, switches
from licensing.catalog import Grant
from tests.billing import rater
from tests.factories import BY, make_license, make_meter, make_plan, make_price, make_product, make_revision

SOAK = bool(os.environ.get("LICENTIA_SOAK"))
SWITCHES, EACH = (10_000, 20) if SOAK else (300, 12)
START = datetime(2026, 3, 9, 7, 30, 11, tzinfo=UTC)
CALLS = "calls"
# Per offer: for how many days a license runs, None for ever; and what a renewal counts from.
RUNS = [(None, "from_expiry"), (9, "from_now"), (None, "from_expiry"), (11, "from_expiry"), (8, "from_now_if_expired")]
OFFERS: list[tuple[str, int | None, tuple[str, str] | None, list[dict[str, Any]]]] = [
    ("seats", 10, None, [{"kind": "seats", "amount": "31.00"}]),
    ("seats", 3, None, [{"kind": "flat", "amount": "7.77"}, {"kind": "seats", "amount": "9.99"}]),
    (
        "usage",
        None,
        ("50", "charge"),
        [{"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.035"}],
    ),
    (
        "usage",
        4,
        ("10", "refuse"),
        [
            {"kind": "flat", "amount": "12.00"},
            {"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.1"},
            {"kind": "minimum", "amount": "20.00"},
        ],
    ),
    (
        "both",
        5,
        ("20.5", "charge"),
        [
            {"kind": "seats", "amount": "12.34"},
            {
                "kind": "usage",
                "meter": "calls",
                "model": "graduated",
                "tiers": [{"up_to": "100", "amount": "0.05"}, {"up_to": None, "amount": "0.01", "flat": "1.00"}],
            },
            {"kind": "discount", "percent": "12.5"},
        ],
    ),
]


@dataclass
class Case:
    """One license, what it was put under and when, and what it used."""

    license: Any
    terms: list[tuple[datetime, int]]
    expires_at: datetime | None = None
    ran_since: datetime = START
    ran: list[tuple[datetime, datetime]] = field(default_factory=list)
    events: list[tuple[datetime, Decimal]] = field(default_factory=list)
    switched: int = 0

    def lapse_until(self, at: datetime) -> None:
        """Note that it does not run from its expiry to `at`, if that is later."""
        if self.expires_at is not None and self.expires_at < at:
            self.ran.append((self.ran_since, self.expires_at))
            self.ran_since = at

    def put_under(self, at: datetime, offer: int) -> None:
        """An expiry stays, unless the new terms have none, or are the first to have one."""
        days = RUNS[offer][0]
        if days is None or self.expires_at is None:
            self.lapse_until(at)
            self.expires_at = at + timedelta(days=days) if days else None
        self.terms.append((at, offer))

    def renewed(self, at: datetime) -> None:
        days, basis = RUNS[self.terms[-1][1]]
        assert days
        assert self.expires_at
        counts_from = self.expires_at
        if basis == "from_now" or (basis == "from_now_if_expired" and at > self.expires_at):
            counts_from = at
            self.lapse_until(at)
        self.expires_at = max(self.expires_at, counts_from + timedelta(days=days))


@pytest.fixture
def offers(db: None) -> list[Any]:
    product = make_product()
    made = []
    for (scheme, seats, allowance, components), (days, basis) in zip(OFFERS, RUNS, strict=True):
        plan = make_plan(product=product)
        make_price(plan=plan, components=components)
        grants = []
        if allowance is not None:
            grants = [Grant(CALLS, "allowance", meter=CALLS, amount=Decimal(allowance[0]), overage=allowance[1])]
        terms = {"duration": timedelta(days=days) if days else None, "renewal_basis": basis}
        made.append(make_revision(plan=plan, scheme=scheme, seat_limit=seats, grants=grants, **terms))
    return made


def generate(chance: random.Random, offers: list[Any], meter: Any, customer: Any) -> Case:
    first = chance.randrange(len(offers))
    license = make_license(plan_revision=offers[first], customer=customer, at=START)
    case, at = Case(license, []), START
    case.put_under(START, first)
    for _ in range(EACH):
        at += timedelta(seconds=chance.randrange(1, 86400 * 5), microseconds=chance.choice((0, 1, 999_999)))
        offer = chance.randrange(len(offers))
        match chance.choice(("now", "now", "late", "undone", "undone late", "renew", "renew")):
            case "renew":
                if RUNS[case.terms[-1][1]][0] and case.expires_at is not None:
                    lifecycle.renew(license=license, by=BY, at=at)
                    case.renewed(at)
                continue
            case "now":
                changes.change(license=license, plan_revision=offers[offer], by=BY, at=at)
                case.put_under(at, offer)
            case "late":
                starts_at = at
                at = _late(license, offers[offer], at, chance)
                case.put_under(starts_at, offer)
            case "undone":
                changes.change(license=license, plan_revision=offers[offer], by=BY, at=at)
                at += timedelta(seconds=chance.randrange(1, 86400))
                changes.undo(license=license, by=BY, at=at)
            case _:
                at = _late(license, offers[offer], at, chance) + timedelta(seconds=chance.randrange(1, 86400))
                changes.undo(license=license, by=BY, at=at)
        case.switched += 1
    span = int((at - START).total_seconds()) + 86400
    # Some at the very instants of the switches, which belong to what starts there.
    when = [start for start, _ in case.terms] + [START + timedelta(seconds=chance.randrange(span)) for _ in range(EACH)]
    case.events = [(each, Decimal(chance.randrange(1, 60_000_000)) / 1_000_000) for each in when]
    UsageEvent.objects.bulk_create(
        UsageEvent(
            license_id=license.pk,
            occurred_at=each,
            event_id=f"{number}",
            meter_revision=meter,
            quantity=quantity,
            received_at=each,
            source="tests",
        )
        for number, (each, quantity) in enumerate(case.events)
    )
    UsageChange.objects.bulk_create(
        UsageChange(
            license_id=license.pk, meter_revision_id=meter.pk, hour=each.replace(minute=0, second=0, microsecond=0)
        )
        for each, _ in case.events
    )
    return case


def _late(license: Any, revision: Any, at: datetime, chance: random.Random) -> datetime:
    """Schedule a change for `at` and carry it out late; return when it was made."""
    change = switches.schedule(
        license=license, plan_revision=revision, starts_at=at, by=BY, at=at - timedelta(microseconds=1)
    )
    made_at = at + timedelta(seconds=chance.randrange(1, 7200))
    assert switches.carry_out(change_id=change.pk, at=made_at)
    return made_at


def owed(case: Case, month: Any) -> list[tuple[str, int]]:
    """Return what the second rater makes of a month, from what was asked for."""
    lines: list[tuple[str, int]] = []
    for place, (term_start, offer) in enumerate(case.terms):
        next_start = case.terms[place + 1][0] if place + 1 < len(case.terms) else month.ends_at
        start, end = max(term_start, month.starts_at), min(next_start, month.ends_at)
        if start >= end:
            continue
        scheme, seats, allowance, components = OFFERS[offer]
        covered = []
        for began, ended in [*case.ran, (case.ran_since, case.expires_at or month.ends_at)]:
            if max(start, began) < min(end, ended):
                covered.append((max(start, began), min(end, ended), max(min(end, ended), min(month.ends_at, ended))))
        used = sum((quantity for at, quantity in case.events if start <= at < end), Decimal())
        lines += rater.rate(
            components,
            {
                "currency": "EUR",
                "scheme": scheme,
                "period": (month.starts_at, month.ends_at),
                "stretch": (start, end),
                "covered": [(began, ended) for began, ended, _ in covered],
                "seats": [(seats, began, ended, paid_until) for began, ended, paid_until in covered],
                "used": {CALLS: used},
                "allowances": {CALLS: (allowance[0], allowance[1] == "charge")} if allowance else {},
            },
        )
    return lines


def test_it_charges_generated_switches_as_a_second_rater_does(offers: list[Any]) -> None:
    chance = random.Random(seed := int(os.environ.get("LICENTIA_SEED", "20")))
    meter, customer = make_meter(code=CALLS), make_license(plan_revision=offers[0]).customer
    switched, compared, lapsed, different, kinds = 0, 0, 0, [], Counter[str]()
    while switched < SWITCHES:
        with transaction.atomic():
            case = generate(chance, offers, meter, customer)
        switched += case.switched
        lapsed += len(case.ran)
        until, month = case.terms[-1][0] + timedelta(days=40), statements.month_of(START)
        case.license.refresh_from_db()
        while month.starts_at < until:
            lines = statements.rated(
                license=case.license, starts_at=month.starts_at, ends_at=month.ends_at, at=month.ends_at
            )
            ours, theirs = [(line.kind, line.amount_minor) for line in lines], owed(case, month)
            kinds.update(kind for kind, _ in ours)
            compared += 1
            if sorted(map(_said, ours)) != sorted(map(_said, theirs)):
                different.append((case.license.pk, month.starts_at, ours, theirs))
            month = statements.month_of(month.ends_at)
    found = f"{lapsed} lapses, {compared} months, {len(different)} different, lines {dict(kinds)}"
    print(f"seed {seed}: {switched} switches, {found}")

    assert different[:3] == []
    assert lapsed
    assert {"seats", "credit", "usage", "flat", "discount", "minimum"} <= set(kinds)


def _said(line: tuple[str, int]) -> tuple[str, int]:
    return str(line[0]), line[1]
