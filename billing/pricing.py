"""What is owed for a stretch of a license: pure arithmetic from a price, time, seats and quantities to lines.

`Decimal` only, and one rounding rule: each line is rounded once, half to even, to whole minor units (`rounded`). It
reads no database, no clock, no settings; who calls it with what is `billing.statements`.

Source: docs/pricing.md, which says the same in words, with worked examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any

from billing.states import LineKind
from licensing.errors import Invalid
from licensing.states import Scheme

# The decimal places of a currency's minor unit where they are not two. Source: ISO 4217.
_MINOR_UNIT_PLACES = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND"), 0),
    **dict.fromkeys(("VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}

# Wide enough that only a quotient is ever inexact, and that far behind anything `rounded` looks at.
_CONTEXT = Context(prec=80, rounding=ROUND_HALF_EVEN)
_MICROSECOND = timedelta(microseconds=1)
_HUNDRED = Decimal(100)
_SIX_PLACES = Decimal("0.000001")
_MOST_MINOR = 2**63 - 1
_ORDER = {Scheme.SEATS: (True, False), Scheme.USAGE: (False, True), Scheme.BOTH: (True, True)}


class InvalidPrice(Invalid):
    """The components of a price are malformed; `pointer` says which."""

    code = "invalid_price"


class AmountTooLarge(Invalid):
    """A line would be more than an amount can hold."""

    code = "amount_too_large"


# --- what a price is made of ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flat:
    """A fee for the period, prorated."""

    amount: Decimal
    name: str = ""


@dataclass(frozen=True, slots=True)
class PerSeat:
    """A fee for each seat and period, paid in advance; prorated, unused time credited."""

    amount: Decimal


@dataclass(frozen=True, slots=True)
class Tier:
    """Up to and including `up_to` units (None: without end) at `amount` each, and `flat` for reaching it."""

    up_to: Decimal | None
    amount: Decimal
    flat: Decimal = Decimal()


@dataclass(frozen=True, slots=True)
class PerUnit:
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Graduated:
    """Each unit at the price of the tier it falls in."""

    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Volume:
    """All units at the price of the tier the last one falls in."""

    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """`amount` for each begun package of `size` units."""

    size: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Percentage:
    """A percentage of a quantity of money, at least `minimum` where there is any."""

    percent: Decimal
    minimum: Decimal = Decimal()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a meter's quantity beyond its allowance costs; `per` units of the meter are one unit of the model."""

    meter: str
    model: PerUnit | Graduated | Volume | Package | Percentage
    per: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class Discount:
    """Off what stands before it, never below zero: a percentage, or a fixed amount for the period, prorated."""

    percent: Decimal | None = None
    amount: Decimal | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Components:
    """The whole of a price, as `read` found it. `minimum` is the commitment for a period, prorated."""

    flats: tuple[Flat, ...] = ()
    seats: PerSeat | None = None
    usages: tuple[Usage, ...] = ()
    discounts: tuple[Discount, ...] = ()
    minimum: Decimal | None = None


# --- what is rated ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, half-open."""

    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class Seats:
    """How many seats were in force for a stretch of time, paid in advance until `paid_until`; None is without limit,
    which no seat fee can price."""

    count: int | None
    span: Span
    paid_until: datetime


@dataclass(frozen=True, slots=True)
class Allowance:
    """What of a meter is included. Beyond it, quantity is charged only where the plan says so."""

    amount: Decimal
    charged_beyond: bool


@dataclass(frozen=True, slots=True)
class Rateable:
    """Everything a stretch of a license is rated by.

    `period` is what a price's fees are for. `stretch` is the part of it under one term: usage, tiers and allowances
    count in it whole. `covered` are the parts of the stretch in which the license ran, in order: fees are prorated by
    them. `seats` follow each other without a gap through each. `credit` is the prepaid quantity of each meter that was
    drawn beyond its allowance. `names` say how lines call a meter: else by its code.
    """

    period: Span
    stretch: Span
    covered: Sequence[Span]
    scheme: str
    seats: Sequence[Seats] = ()
    usage: Mapping[str, Decimal] | None = None
    allowances: Mapping[str, Allowance] | None = None
    credit: Mapping[str, Decimal] | None = None
    names: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of what is owed. `unit_amount` is in the currency itself, `amount_minor` in its minor units."""

    kind: str
    description: str
    span: Span
    amount_minor: int
    meter: str = ""
    quantity: Decimal | None = None
    unit_amount: Decimal | None = None


def places(currency: str) -> int:
    """Return how many decimal places the currency's minor unit has."""
    return _MINOR_UNIT_PLACES.get(currency, 2)


def rounded(amount: Decimal, *, currency: str) -> int:
    """Return an amount of the currency in whole minor units, half to even. The only rounding of money there is.

    Raises `AmountTooLarge`.
    """
    minor = int(amount.scaleb(places(currency), _CONTEXT).quantize(Decimal(1), ROUND_HALF_EVEN, _CONTEXT))
    if abs(minor) > _MOST_MINOR:
        raise AmountTooLarge(f"{amount} {currency} is more than a statement can hold.")
    return minor


def major(amount_minor: int, *, currency: str) -> Decimal:
    """Return an amount in minor units in the currency itself: 1234 in EUR is 12.34."""
    return Decimal(amount_minor).scaleb(-places(currency), _CONTEXT)


def tax(subtotal_minor: int, *, rate: Decimal, currency: str) -> int:
    """Return the tax of a whole statement in minor units; `rate` is in percent. Rounded once."""
    return rounded(_share(major(subtotal_minor, currency=currency), rate, _HUNDRED), currency=currency)


def rate(price: Components, what: Rateable, *, currency: str) -> list[Line]:
    """Return the lines of a stretch: fees, seats, usage, discounts, and what is missing to the minimum, in this order.

    Their sum is never negative. Raises `AmountTooLarge`.
    """
    of_seats, of_usage = _ORDER[Scheme(what.scheme)]
    lines = _flats(price, what, currency)
    if of_seats and price.seats:
        lines += _seats(price.seats, what, currency)
    if of_usage:
        for usage in price.usages:
            lines += _usage(usage, what, currency)
    for discount in price.discounts:
        lines += _discount(discount, sum(line.amount_minor for line in lines), what, currency)
    if price.minimum:
        missing = rounded(_prorated(price.minimum, what.covered, what), currency=currency)
        missing -= sum(line.amount_minor for line in lines)
        if missing > 0:
            text = f"Up to the minimum commitment of {_number(price.minimum)}"
            whole = Span(what.covered[0].starts_at, what.covered[-1].ends_at)
            lines.append(Line(LineKind.MINIMUM, text, whole, missing))
    return lines


def _flats(price: Components, what: Rateable, currency: str) -> list[Line]:
    return [
        Line(
            LineKind.FLAT,
            flat.name or "Flat fee",
            part,
            rounded(_prorated(flat.amount, [part], what), currency=currency),
            quantity=Decimal(1),
            unit_amount=flat.amount,
        )
        for flat in price.flats
        for part in what.covered
        if _length(part)
    ]


def _seats(price: PerSeat, what: Rateable, currency: str) -> list[Line]:
    """Charge each number of seats until the end of what is paid in advance, and credit what another number cut off."""
    lines = []
    for seats in what.seats:
        if not _length(seats.span) or seats.count == 0:
            continue
        if seats.count is None:
            lines.append(Line(LineKind.SEATS, "Seats without limit", seats.span, 0))
            continue
        count, each = Decimal(seats.count), price.amount
        name = "seat" if seats.count == 1 else "seats"
        paid = Span(seats.span.starts_at, seats.paid_until)
        unused = Span(seats.span.ends_at, seats.paid_until)
        for kind, text, span, sign in (
            (LineKind.SEATS, f"{seats.count} {name}", paid, 1),
            (LineKind.CREDIT, f"Unused time of {seats.count} {name}", unused, -1),
        ):
            if _length(span):
                amount = sign * rounded(_prorated(_CONTEXT.multiply(count, each), [span], what), currency=currency)
                lines.append(Line(kind, text, span, amount, quantity=count, unit_amount=each))
    return lines


def _usage(usage: Usage, what: Rateable, currency: str) -> list[Line]:
    """Return the lines of one meter: none where nothing was used, one that says so where all of it is included."""
    used = max((what.usage or {}).get(usage.meter, Decimal()), Decimal())
    if not used:
        return []
    allowance = (what.allowances or {}).get(usage.meter)
    beyond, text = used, (what.names or {}).get(usage.meter, usage.meter)
    if allowance:
        prepaid = (what.credit or {}).get(usage.meter, Decimal())
        beyond = max(used - allowance.amount - prepaid, Decimal()) if allowance.charged_beyond else Decimal()
        if allowance.amount or prepaid:
            text += f", {_number(used)} used, {_number(allowance.amount)} included"
        if prepaid:
            text += f", {_number(prepaid)} prepaid"
    if usage.per != 1:
        text += f", per {_number(usage.per)}"
    per = usage.per

    # `inside` is in the meter's own units: the one division comes last, so that a tie is a tie.
    def line(text: str, inside: Decimal, each: Decimal | None, amount: Decimal) -> Line:
        shown = _CONTEXT.divide(inside, per).quantize(_SIX_PLACES, ROUND_HALF_EVEN, _CONTEXT)
        minor = rounded(amount, currency=currency)
        return Line(LineKind.USAGE, text, what.stretch, minor, usage.meter, shown, each)

    def priced(tier: Tier, inside: Decimal) -> Decimal:
        flat = _CONTEXT.multiply(tier.flat, per) if inside else Decimal()
        return _CONTEXT.divide(_CONTEXT.add(_CONTEXT.multiply(inside, tier.amount), flat), per)

    match usage.model:
        case PerUnit(each):
            return [line(text, beyond, each, _share(beyond, each, per))]
        case Graduated(tiers):
            lines, below = [], Decimal()
            for tier in tiers:
                end = None if tier.up_to is None else _CONTEXT.multiply(tier.up_to, per)
                inside = (beyond if end is None else min(beyond, end)) - below
                part = f"{text}{_tier_text(below / per, tier)}"
                lines.append(line(part, inside, tier.amount, priced(tier, inside)))
                if end is None or beyond <= end:
                    break
                below = end
            return lines
        case Volume(tiers):
            tier = next(t for t in tiers if t.up_to is None or beyond <= _CONTEXT.multiply(t.up_to, per))
            return [line(text, beyond, tier.amount, priced(tier, beyond))]
        case Package(size, each):
            whole = _CONTEXT.multiply(size, per)
            packages = _CONTEXT.divide(beyond, whole).to_integral_value(ROUND_CEILING)
            text += f", in packages of {_number(size)}"
            return [line(text, _CONTEXT.multiply(packages, per), each, _CONTEXT.multiply(packages, each))]
        case Percentage(percent, minimum):
            amount = _share(beyond, percent, _CONTEXT.multiply(_HUNDRED, per))
            return [line(f"{text}, {_number(percent)} %", beyond, None, max(amount, minimum) if beyond else Decimal())]


def _discount(discount: Discount, subtotal_minor: int, what: Rateable, currency: str) -> list[Line]:
    if discount.percent is not None:
        base = major(subtotal_minor, currency=currency)
        off, text = _share(base, discount.percent, _HUNDRED), f"Discount of {_number(discount.percent)} %"
    else:
        assert discount.amount is not None
        off, text = _prorated(discount.amount, what.covered, what), "Discount"
    minor = min(rounded(off, currency=currency), subtotal_minor)
    return [Line(LineKind.DISCOUNT, discount.name or text, what.stretch, -minor)] if minor > 0 else []


def _length(span: Span) -> int:
    """Return how long the span is in microseconds; an empty one, or one that ends before it starts, is 0."""
    return max((span.ends_at - span.starts_at) // _MICROSECOND, 0)


def _prorated(amount: Decimal, spans: Sequence[Span], what: Rateable) -> Decimal:
    return _share(amount, Decimal(sum(map(_length, spans))), Decimal(_length(what.period)))


def _share(amount: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    return _CONTEXT.divide(_CONTEXT.multiply(amount, part), whole)


def _number(value: Decimal) -> str:
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _tier_text(below: Decimal, tier: Tier) -> str:
    if tier.up_to is None:
        return f", beyond {_number(below)}" if below else ""
    return f", {_number(below)} to {_number(tier.up_to)}"


# --- reading a price --------------------------------------------------------------------------------


def read(components: Any) -> Components:
    """Return the components of a price as they stand in JSON, validated.

    Raises:
        InvalidPrice: with the JSON pointer of what is wrong, and what would be right.
    """
    if not isinstance(components, list):
        raise InvalidPrice("The components of a price are a list.", pointer="")
    flats: list[Flat] = []
    usages: list[Usage] = []
    discounts: list[Discount] = []
    seats: PerSeat | None = None
    minimum: Decimal | None = None
    for index, given in enumerate(components):
        one = _Reader(given, f"/{index}")
        match one.choice("kind", ("flat", "seats", "usage", "minimum", "discount")):
            case "flat":
                flats.append(Flat(one.decimal("amount"), one.text("name")))
            case "seats":
                if seats:
                    raise InvalidPrice("A price has one fee for seats; join the two.", pointer=one.at)
                seats = PerSeat(one.decimal("amount"))
            case "minimum":
                if minimum is not None:
                    raise InvalidPrice("A price has one minimum commitment; keep the larger one.", pointer=one.at)
                minimum = one.decimal("amount")
            case "discount":
                if one.has("percent") == one.has("amount"):
                    raise InvalidPrice("A discount has either a percent or an amount.", pointer=one.at)
                if one.has("percent"):
                    discounts.append(Discount(percent=one.decimal("percent", most=_HUNDRED), name=one.text("name")))
                else:
                    discounts.append(Discount(amount=one.decimal("amount"), name=one.text("name")))
            case "usage":
                usage = _read_usage(one)
                if any(usage.meter == other.meter for other in usages):
                    raise InvalidPrice(f"The meter '{usage.meter}' is priced twice.", pointer=f"{one.at}/meter")
                usages.append(usage)
        one.nothing_else()
    return Components(tuple(flats), seats, tuple(usages), tuple(discounts), minimum)


def _read_usage(one: "_Reader") -> Usage:
    meter = one.text("meter", required=True)
    per = one.decimal("per", positive=True) if one.has("per") else Decimal(1)
    model: PerUnit | Graduated | Volume | Package | Percentage
    match one.choice("model", ("per_unit", "graduated", "volume", "package", "percentage")):
        case "per_unit":
            model = PerUnit(one.decimal("amount"))
        case "graduated":
            model = Graduated(_read_tiers(one))
        case "volume":
            model = Volume(_read_tiers(one))
        case "package":
            model = Package(one.decimal("size", positive=True), one.decimal("amount"))
        case _:
            least = one.decimal("minimum") if one.has("minimum") else Decimal()
            model = Percentage(one.decimal("percent", most=_HUNDRED), least)
    return Usage(meter, model, per)


def _read_tiers(one: "_Reader") -> tuple[Tier, ...]:
    given, at = one.take("tiers"), f"{one.at}/tiers"
    if not isinstance(given, list) or not given:
        raise InvalidPrice("Give a list of at least one tier.", pointer=at)
    tiers: list[Tier] = []
    for index, value in enumerate(given):
        tier = _Reader(value, f"{at}/{index}")
        last = index == len(given) - 1
        if last and tier.has("up_to") and tier.values["up_to"] is not None:
            raise InvalidPrice("The last tier has no end: leave its up_to out.", pointer=f"{tier.at}/up_to")
        up_to = None if last else tier.decimal("up_to", positive=True)
        if last:
            tier.values.pop("up_to", None)
        if up_to is not None and tiers and up_to <= (tiers[-1].up_to or 0):
            raise InvalidPrice("Each tier ends beyond the one before.", pointer=f"{tier.at}/up_to")
        flat = tier.decimal("flat") if tier.has("flat") else Decimal()
        tiers.append(Tier(up_to, tier.decimal("amount"), flat))
        tier.nothing_else()
    return tuple(tiers)


class _Reader:
    """Takes what is known out of a JSON object, so that what is left is not known."""

    def __init__(self, given: Any, at: str) -> None:
        if not isinstance(given, dict):
            raise InvalidPrice("Give an object.", pointer=at)
        self.values, self.at = dict(given), at

    def has(self, name: str) -> bool:
        return name in self.values

    def take(self, name: str) -> Any:
        if name not in self.values:
            raise InvalidPrice(f"'{name}' is missing.", pointer=f"{self.at}/{name}")
        return self.values.pop(name)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.take(name)
        if value not in choices:
            raise InvalidPrice(f"Give one of {', '.join(choices)}.", pointer=f"{self.at}/{name}")
        return str(value)

    def text(self, name: str, *, required: bool = False) -> str:
        value = self.take(name) if required else self.values.pop(name, "")
        if not isinstance(value, str) or len(value) > 64 or (required and not value):
            raise InvalidPrice("Give a text of at most 64 characters.", pointer=f"{self.at}/{name}")
        return value

    def decimal(self, name: str, *, positive: bool = False, most: Decimal = Decimal(10**15)) -> Decimal:
        value, at = self.take(name), f"{self.at}/{name}"
        if isinstance(value, str) and len(value) <= 32:
            try:
                number = Decimal(value)
            except InvalidOperation:
                number = Decimal("NaN")
            exponent = number.as_tuple().exponent
            if isinstance(exponent, int) and exponent >= -12 and 0 <= number <= most and (number or not positive):
                return number
        least = "more than" if positive else "at least"
        raise InvalidPrice(
            f"Give a decimal number as a string, {least} 0 and at most {most}, of at most 12 places.", pointer=at
        )

    def nothing_else(self) -> None:
        for name in self.values:
            raise InvalidPrice(f"'{name}' is not known here.", pointer=f"{self.at}/{name}")
