"""Pricing: each model by its examples, and what must hold of any price. No database."""

import itertools
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from billing import pricing
from billing.pricing import Allowance, AmountTooLarge, InvalidPrice, Rateable, Seats, Span
from tests.billing import rater

MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
WHOLE = Span(MARCH, APRIL)
CASES = 100_000 if os.environ.get("LICENTIA_SOAK") else 20_000


def stretch(starts_at: datetime = MARCH, ends_at: datetime = APRIL, **more: Any) -> Rateable:
    """Return a stretch of March with 10 seats, under both schemes, unless said otherwise."""
    span = Span(starts_at, ends_at)
    usual: dict[str, Any] = {
        "period": WHOLE,
        "stretch": span,
        "covered": [span],
        "scheme": "both",
        "seats": [Seats(10, span, APRIL)],
    }
    return Rateable(**usual | more)


def owed(components: Any, what: Rateable | None = None, currency: str = "EUR") -> list[tuple[str, int]]:
    lines = pricing.rate(pricing.read(components), what or stretch(), currency=currency)
    return [(str(line.kind), line.amount_minor) for line in lines]


def calls(quantity: str, *, included: str | None = None, charged: bool = True, prepaid: str = "0") -> Rateable:
    allowances = {"calls": Allowance(Decimal(included), charged)} if included else {}
    credit = {"calls": Decimal(prepaid)}
    return stretch(scheme="usage", usage={"calls": Decimal(quantity)}, allowances=allowances, credit=credit)


def usage(model: str, **more: Any) -> list[dict[str, Any]]:
    return [{"kind": "usage", "meter": "calls", "model": model} | more]


TIERS = [{"up_to": "1000", "amount": "0.01"}, {"amount": "0.005"}]
FEES = [{"up_to": "10", "amount": "1", "flat": "5"}, {"up_to": None, "amount": "0.5", "flat": "3"}]


@pytest.mark.parametrize(
    ("components", "what", "expected"),
    [
        ([{"kind": "flat", "amount": "49.99"}], stretch(), [4999]),
        ([{"kind": "flat", "amount": "31.00"}], stretch(MARCH + timedelta(days=30)), [100]),
        (usage("per_unit", amount="0.001"), calls("125"), [12]),
        (usage("per_unit", amount="0.001"), calls("375"), [38]),
        (usage("per_unit", amount="1", per="3600"), calls("5400"), [150]),
        (usage("per_unit", amount="0.10"), calls("100", included="50"), [500]),
        (usage("per_unit", amount="0.10"), calls("100", included="50", charged=False), [0]),
        (usage("per_unit", amount="0.10"), calls("100", included="50", prepaid="20"), [300]),
        (usage("per_unit", amount="0.10"), calls("100", included="50", prepaid="60"), [0]),
        (usage("per_unit", amount="0.10"), calls("-4"), []),
        (usage("graduated", tiers=TIERS), calls("2500", included="500"), [1000, 500]),
        (usage("graduated", tiers=TIERS), calls("2500", included="500", prepaid="300"), [1000, 350]),
        (usage("graduated", tiers=TIERS), calls("1000"), [1000]),
        (usage("graduated", tiers=FEES), calls("12"), [1500, 400]),
        (usage("volume", tiers=TIERS), calls("2500", included="500"), [1000]),
        (usage("volume", tiers=FEES), calls("10"), [1500]),
        (usage("volume", tiers=FEES), calls("5", included="5"), [0]),
        (usage("package", size="1000", amount="5"), calls("1000.000001"), [1000]),
        (usage("package", size="1000", amount="5"), calls("2000"), [1000]),
        (usage("percentage", percent="2.5", minimum="10"), calls("100"), [1000]),
        (usage("percentage", percent="2.5", minimum="10"), calls("1000"), [2500]),
        (usage("percentage", percent="2.5", minimum="10"), calls("9", included="10"), [0]),
    ],
)
def test_it_owes_what_the_model_says(components: Any, what: Rateable, expected: list[int]) -> None:
    assert [amount for _, amount in owed(components, what)] == expected


def test_it_discounts_in_order_and_never_below_zero() -> None:
    flat = {"kind": "flat", "amount": "100"}
    ten, fifty, much = ({"kind": "discount"} | more for more in ({"percent": "10"}, {"amount": "50"}, {"amount": "99"}))

    assert owed([flat, ten, fifty]) == [("flat", 10000), ("discount", -1000), ("discount", -5000)]
    assert owed([flat, fifty, ten]) == [("flat", 10000), ("discount", -5000), ("discount", -500)]
    assert owed([flat, fifty, much, ten]) == [("flat", 10000), ("discount", -5000), ("discount", -5000)]


def test_it_fills_up_to_the_minimum_after_discounts() -> None:
    components = [
        {"kind": "minimum", "amount": "120"},
        {"kind": "flat", "amount": "100"},
        {"kind": "discount", "percent": "10"},
    ]

    assert owed(components) == [("flat", 10000), ("discount", -1000), ("minimum", 3000)]


def test_it_charges_seats_in_advance_and_credits_unused_time() -> None:
    change = MARCH + timedelta(days=21)
    seats = [Seats(10, Span(MARCH, change), APRIL), Seats(20, Span(change, APRIL), APRIL)]

    lines = owed([{"kind": "seats", "amount": "31"}], stretch(seats=seats))

    assert lines == [("seats", 31000), ("credit", -10000), ("seats", 20000)]


@pytest.mark.parametrize(("count", "expected"), [(0, []), (None, [("seats", 0)])])
def test_it_charges_nothing_for_no_seats_and_for_seats_without_limit(count: int | None, expected: Any) -> None:
    what = stretch(seats=[Seats(count, WHOLE, APRIL)])

    assert owed([{"kind": "seats", "amount": "31"}], what) == expected


@pytest.mark.parametrize(("currency", "expected"), [("JPY", 12), ("KWD", 12346), ("EUR", 1235), ("USD", 1235)])
def test_it_counts_in_the_minor_unit_of_the_currency(currency: str, expected: int) -> None:
    assert owed([{"kind": "flat", "amount": "12.34567"}], currency=currency) == [("flat", expected)]


@pytest.mark.parametrize(
    ("scheme", "kinds"),
    [("seats", ["flat", "seats"]), ("usage", ["flat", "usage"]), ("both", ["flat", "seats", "usage"])],
)
def test_it_bills_what_the_scheme_says(scheme: str, kinds: list[str]) -> None:
    components = [{"kind": "flat", "amount": "1"}, {"kind": "seats", "amount": "1"}, *usage("per_unit", amount="1")]
    what = replace(stretch(), scheme=scheme, usage={"calls": Decimal(5)})

    assert [kind for kind, _ in owed(components, what)] == kinds


def test_it_refuses_an_amount_that_no_column_holds() -> None:
    with pytest.raises(AmountTooLarge):
        owed(usage("per_unit", amount="1000000"), calls("999999999999999999"))


@pytest.mark.parametrize(
    ("components", "pointer"),
    [
        ({}, ""),
        (["flat"], "/0"),
        ([{}], "/0/kind"),
        ([{"kind": "fee"}], "/0/kind"),
        ([{"kind": "flat"}], "/0/amount"),
        ([{"kind": "flat", "amount": 5}], "/0/amount"),
        ([{"kind": "flat", "amount": "-1"}], "/0/amount"),
        ([{"kind": "flat", "amount": "NaN"}], "/0/amount"),
        ([{"kind": "flat", "amount": "Infinity"}], "/0/amount"),
        ([{"kind": "flat", "amount": "1e99"}], "/0/amount"),
        ([{"kind": "flat", "amount": "0.0000000000001"}], "/0/amount"),
        ([{"kind": "flat", "amount": "1", "extra": 1}], "/0/extra"),
        ([{"kind": "flat", "amount": "1", "name": "x" * 65}], "/0/name"),
        ([{"kind": "seats", "amount": "1"}, {"kind": "seats", "amount": "1"}], "/1"),
        ([{"kind": "minimum", "amount": "1"}, {"kind": "minimum", "amount": "1"}], "/1"),
        ([{"kind": "discount"}], "/0"),
        ([{"kind": "discount", "percent": "1", "amount": "1"}], "/0"),
        ([{"kind": "discount", "percent": "101"}], "/0/percent"),
        ([{"kind": "usage", "model": "per_unit", "amount": "1"}], "/0/meter"),
        (usage("per_thing", amount="1"), "/0/model"),
        (usage("per_unit", amount="1", per="0"), "/0/per"),
        (usage("per_unit", amount="1") * 2, "/1/meter"),
        (usage("package", size="0", amount="1"), "/0/size"),
        (usage("graduated", tiers=[]), "/0/tiers"),
        (usage("graduated", tiers=[{"up_to": "5", "amount": "1"}]), "/0/tiers/0/up_to"),
        (usage("volume", tiers=[{"amount": "1"}, {"amount": "1"}]), "/0/tiers/0/up_to"),
        (
            usage("volume", tiers=[{"up_to": "5", "amount": "1"}, {"up_to": "5", "amount": "1"}, {"amount": "1"}]),
            "/0/tiers/1/up_to",
        ),
    ],
)
def test_it_names_what_is_wrong_with_a_price(components: Any, pointer: str) -> None:
    with pytest.raises(InvalidPrice) as refused:
        pricing.read(components)

    assert refused.value.pointer == pointer


# --- what holds of any price ------------------------------------------------------------------------


def any_number(random: Random, most: int, places: int) -> str:
    return str(Decimal(random.randrange(most * 10**places + 1)).scaleb(-random.randrange(places + 1)))


def any_instant(random: Random) -> datetime:
    return MARCH + random.choice(
        (timedelta(seconds=random.randrange(31 * 86400)), timedelta(days=random.randrange(31)))
    )


def any_usage(random: Random, meter: str) -> dict[str, Any]:
    model = random.choice(("per_unit", "graduated", "volume", "package", "percentage"))
    found: dict[str, Any] = {"kind": "usage", "meter": meter, "model": model}
    if random.random() < 0.3:
        found["per"] = random.choice(("3", "7", "1000", "3600"))
    if model in ("graduated", "volume"):
        ends = sorted(random.sample(range(1, 2000), random.randrange(4)))
        tiers: list[dict[str, Any]] = [{"up_to": str(end)} for end in ends] + [{}]
        for tier in tiers:
            tier["amount"] = any_number(random, 2, 4)
            if random.random() < 0.3:
                tier["flat"] = any_number(random, 20, 2)
        found["tiers"] = tiers
    elif model == "percentage":
        found |= {"percent": any_number(random, 1, 2), "minimum": any_number(random, 20, 2)}
    else:
        found["amount"] = any_number(random, 3, 4)
        if model == "package":
            found["size"] = random.choice(("1", "10", "0.5", "1000"))
    return found


def any_price(random: Random) -> list[dict[str, Any]]:
    components: list[dict[str, Any]] = [
        {"kind": "flat", "amount": any_number(random, 50, 3)} for _ in range(random.randrange(3))
    ]
    components += [any_usage(random, meter) for meter in ("calls", "volume")[: random.randrange(3)]]
    if random.random() < 0.7:
        components.append({"kind": "seats", "amount": any_number(random, 40, 3)})
    for _ in range(random.randrange(3)):
        value = random.choice((("percent", any_number(random, 100, 1)), ("amount", any_number(random, 30, 2))))
        components.append(
            {"kind": "discount", value[0]: value[1] if value[0] == "amount" else str(min(Decimal(value[1]), 100))}
        )
    if random.random() < 0.3:
        components.append({"kind": "minimum", "amount": any_number(random, 900, 2)})
    random.shuffle(components)
    return components


def any_stretch(random: Random) -> Rateable:
    starts_at, ends_at = sorted((any_instant(random), random.choice((APRIL, any_instant(random)))))
    covered, seats = [], []
    ends = sorted(max(starts_at, min(ends_at, any_instant(random))) for _ in range(random.choice((1, 1, 3, 5))))
    bounds = [starts_at, *ends[:-1], random.choice((ends_at, ends[-1]))]
    for began, ended in zip(bounds[::2], bounds[1::2], strict=True):
        covered.append(Span(began, ended))
        paid_until = random.choice((APRIL, ended))
        cuts = sorted(
            {began, ended, *(max(began, min(ended, any_instant(random))) for _ in range(random.randrange(3)))}
        )
        counts = ((random.choice((0, 1, 7, 250, None)), Span(a, b)) for a, b in itertools.pairwise(cuts))
        seats += [Seats(count, span, paid_until) for count, span in counts]
    return Rateable(
        period=WHOLE,
        stretch=Span(starts_at, ends_at),
        covered=covered,
        scheme=random.choice(("seats", "usage", "both")),
        seats=seats,
        usage={meter: Decimal(any_number(random, 4000, 6)) for meter in ("calls", "volume") if random.random() < 0.9},
        allowances={"calls": Allowance(Decimal(any_number(random, 1000, 2)), random.random() < 0.8)}
        if random.random() < 0.5
        else {},
        credit={"calls": Decimal(any_number(random, 1000, 6))} if random.random() < 0.3 else {},
    )


def by_the_book(components: Any, what: Rateable, currency: str) -> list[tuple[str, int]]:
    case = {
        "currency": currency,
        "scheme": what.scheme,
        "period": (what.period.starts_at, what.period.ends_at),
        "covered": [(part.starts_at, part.ends_at) for part in what.covered],
        "seats": [(seats.count, seats.span.starts_at, seats.span.ends_at, seats.paid_until) for seats in what.seats],
        "used": what.usage,
        "allowances": {meter: (one.amount, one.charged_beyond) for meter, one in (what.allowances or {}).items()},
        "credit": what.credit,
    }
    return rater.rate(components, case)


def test_it_agrees_with_a_rater_written_from_the_docs_alone() -> None:
    random = Random(20260301)
    seen = set()
    for _ in range(CASES * 4 // 10):
        components, what = any_price(random), any_stretch(random)
        currency = random.choice(("EUR", "JPY", "KWD"))

        ours = owed(components, what, currency)

        assert ours == by_the_book(components, what, currency), (components, what, currency)
        assert sum(amount for _, amount in ours) >= 0
        seen |= {kind for kind, _ in ours}
    assert seen == {"flat", "seats", "credit", "usage", "discount", "minimum"}


def test_it_never_costs_less_to_use_more() -> None:
    random = Random(20260302)
    for _ in range(CASES * 3 // 10):
        components = [one for one in any_price(random) if one.get("model") != "volume"]
        what = any_stretch(random)
        more = dict(what.usage or {})
        for meter in more:
            more[meter] += Decimal(any_number(random, 300, 6))
        fewer_seats = [seats for seats in what.seats if seats.count is not None]
        what = replace(what, seats=fewer_seats)
        dearer = replace(
            what, usage=more, seats=[replace(one, count=(one.count or 0) + random.randrange(3)) for one in fewer_seats]
        )

        less = sum(amount for _, amount in owed(components, what))

        # Each line rounds by itself, so that the seats' charge and credit may part by one unit a pair.
        assert sum(amount for _, amount in owed(components, dearer)) >= less - len(fewer_seats), (components, what)


def test_it_owes_the_same_for_a_split_stretch_but_for_the_rounding() -> None:
    random = Random(20260303)
    for _ in range(CASES * 3 // 10):
        components = [{"kind": "flat", "amount": any_number(random, 90, 3)}] * random.randrange(2)
        components += [{"kind": "seats", "amount": any_number(random, 90, 3)}]
        count = random.randrange(1, 300)
        cuts = sorted({MARCH, APRIL, *(any_instant(random) for _ in range(random.randrange(1, 5)))})
        parts = [Span(a, b) for a, b in itertools.pairwise(cuts)]
        n = len(parts)

        whole = sum(amount for _, amount in owed(components, stretch(seats=[Seats(count, WHOLE, APRIL)])))
        split = sum(
            amount
            for part in parts
            for _, amount in owed(components, stretch(part.starts_at, part.ends_at, seats=[Seats(count, part, APRIL)]))
        )

        bound = Decimal(n) + (Decimal(n + 1) / 2 if len(components) > 1 else 0)
        assert abs(split - whole) <= bound, (components, count, parts)
