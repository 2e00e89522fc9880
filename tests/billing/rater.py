"""A second rater, written from docs/pricing.md alone, in fractions. It shares no code with `billing`."""

from fractions import Fraction
from math import ceil
from typing import Any

NONE = ["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND"]
NONE += ["VUV", "XAF", "XOF", "XPF"]
THREE = ["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"]


def minor(amount: Fraction, currency: str) -> int:
    """Half to even: what Python's round of a fraction does."""
    return round(amount * 10 ** (0 if currency in NONE else 3 if currency in THREE else 2))


def length(start: Any, end: Any) -> int:
    span = end - start
    return max(0, (span.days * 86400 + span.seconds) * 10**6 + span.microseconds)


def rate(components: list[dict[str, Any]], case: dict[str, Any]) -> list[tuple[str, int]]:
    """Return (kind, minor units) of each line.

    `case` holds currency, scheme, period, stretch, covered [(start, end)], seats [(count, start, end, paid until)],
    used {meter: quantity}, allowances {meter: (amount, charged beyond)} and credit {meter: quantity drawn}.
    """
    currency = case["currency"]
    whole = length(*case["period"])
    lines: list[tuple[str, int]] = []

    def share(amount: str, start: Any, end: Any) -> Fraction:
        return Fraction(amount) * length(start, end) / whole

    def covered(amount: str) -> Fraction:
        return sum((share(amount, *part) for part in case["covered"]), Fraction(0))

    def of(kind: str) -> list[dict[str, Any]]:
        return [component for component in components if component["kind"] == kind]

    for flat in of("flat"):
        for part in case["covered"]:
            if length(*part):
                lines.append(("flat", minor(share(flat["amount"], *part), currency)))
    if case["scheme"] in ("seats", "both"):
        for fee in of("seats"):
            for count, start, end, paid_until in case["seats"]:
                if count is None:
                    lines.append(("seats", 0))
                elif count and length(start, end):
                    lines.append(("seats", minor(count * share(fee["amount"], start, paid_until), currency)))
                    if end < paid_until:
                        unused = count * share(fee["amount"], end, paid_until)
                        lines.append(("credit", -minor(unused, currency)))
    if case["scheme"] in ("usage", "both"):
        for usage in of("usage"):
            lines += [("usage", minor(amount, currency)) for amount in metered(usage, case)]
    for discount in of("discount"):
        left = sum(amount for _, amount in lines)
        if "percent" in discount:
            off = round(Fraction(left) * Fraction(discount["percent"]) / 100)
        else:
            off = minor(covered(discount["amount"]), currency)
        if min(off, left) > 0:
            lines.append(("discount", -min(off, left)))
    for minimum in of("minimum"):
        missing = minor(covered(minimum["amount"]), currency) - sum(amount for _, amount in lines)
        if missing > 0:
            lines.append(("minimum", missing))
    return lines


def metered(usage: dict[str, Any], case: dict[str, Any]) -> list[Fraction]:
    """Return the exact amounts of a meter's lines."""
    used = Fraction(case["used"].get(usage["meter"], 0))
    if used <= 0:
        return []
    beyond = used
    if usage["meter"] in case["allowances"]:
        included, charged = case["allowances"][usage["meter"]]
        prepaid = Fraction(case.get("credit", {}).get(usage["meter"], 0))
        beyond = max(used - Fraction(included) - prepaid, Fraction(0)) if charged else Fraction(0)
    units = beyond / Fraction(usage.get("per", "1"))
    if usage["model"] == "per_unit":
        return [units * Fraction(usage["amount"])]
    if usage["model"] == "package":
        return [ceil(units / Fraction(usage["size"])) * Fraction(usage["amount"])]
    if usage["model"] == "percentage":
        amount = units * Fraction(usage["percent"]) / 100
        return [max(amount, Fraction(usage.get("minimum", "0"))) if units else Fraction(0)]
    amounts, below = [], Fraction(0)
    for tier in usage["tiers"]:
        end = Fraction(tier["up_to"]) if tier.get("up_to") is not None else units
        flat = Fraction(tier.get("flat", "0"))
        if usage["model"] == "volume":
            if units <= end:
                return [units * Fraction(tier["amount"]) + (flat if units else 0)]
            continue
        inside = min(units, end) - below
        if inside > 0 or not amounts:
            amounts.append(inside * Fraction(tier["amount"]) + (flat if inside > 0 else 0))
        below = max(below, end)
        if units <= end:
            break
    return amounts
