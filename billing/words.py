"""Amounts and prices in words, as pages and documents show them. Reads no database, no clock, no settings."""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from billing import pricing
from billing.pricing import Components, Graduated, Package, Percentage, PerUnit, Tier, Usage, Volume


def quantity(amount: Decimal) -> str:
    """Return a quantity in groups of three digits, without zeros at its end."""
    text = f"{amount:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(minor: int, currency: str) -> str:
    """Return an amount given in minor units as people write it: -1,234.50 EUR."""
    places = pricing.places(currency)
    return f"{Decimal(minor).scaleb(-places):,.{places}f} {currency}"


def unit_price(amount: Decimal, currency: str) -> str:
    """Return a price of one, in the currency itself: with all places it has, and never fewer than the currency's."""
    places = pricing.places(currency)
    exponent = amount.normalize().as_tuple().exponent
    return f"{amount:,.{max(places, -exponent if isinstance(exponent, int) else 0)}f} {currency}"


def limit(name: str, value: str | None) -> str:
    """Return a license's limit in words: what is none of a license is no limit, or no part of it at all."""
    if value:
        return value
    return {"seats": "no limit", "machines": "no limit", "expires_at": "never"}.get(name, "not included")


def price(components: Components, currency: str) -> list[str]:
    """Return what a price asks for, a sentence each, in the order in which it is rated."""
    found = [f"{flat.name or 'Flat fee'}: {unit_price(flat.amount, currency)} a month." for flat in components.flats]
    if components.seats is not None:
        found.append(f"Each seat: {unit_price(components.seats.amount, currency)} a month, in advance.")
    found += [f"{usage.meter}, beyond what is included: {_usage(usage, currency)}" for usage in components.usages]
    for discount in components.discounts:
        if discount.percent is not None:
            off = f"{quantity(discount.percent)} %"
        else:
            off = f"{unit_price(discount.amount or Decimal(), currency)} a month"
        found.append(f"{discount.name or 'Discount'}: {off} off all above.")
    if components.minimum is not None:
        found.append(f"At least {unit_price(components.minimum, currency)} a month.")
    return found


def _usage(usage: Usage, currency: str) -> str:
    per = f" per {quantity(usage.per)}" if usage.per != 1 else " each"
    match usage.model:
        case PerUnit(amount):
            return f"{unit_price(amount, currency)}{per}."
        case Graduated(tiers):
            return f"{'; '.join(_tiers(tiers, currency, per))}. Each part at its own price."
        case Volume(tiers):
            return f"{'; '.join(_tiers(tiers, currency, per))}. All of it at the price of the part the last one is in."
        case Package(size, amount):
            return f"{unit_price(amount, currency)} for each begun package of {quantity(size * usage.per)}."
        case Percentage(percent, minimum):
            least = f", at least {unit_price(minimum, currency)}" if minimum else ""
            return f"{quantity(percent)} % of it{least}."


def _tiers(tiers: Sequence[Tier], currency: str, per: str) -> Iterator[str]:
    below: Decimal | None = None
    for tier in tiers:
        if tier.up_to is None:
            where = f"beyond {quantity(below)}" if below is not None else "any number"
        else:
            where = f"up to {quantity(tier.up_to)}"
        flat = f" and {unit_price(tier.flat, currency)} once" if tier.flat else ""
        yield f"{where}: {unit_price(tier.amount, currency)}{per}{flat}"
        below = tier.up_to
