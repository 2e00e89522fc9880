"""A statement as a document: PDF for people, CSV for their programs. Reads what is kept; computes nothing but totals.

The same statement always gives the same bytes.
"""

import csv
import io
from datetime import datetime
from decimal import Decimal

from billing import pricing
from billing.models import Statement

# What a spreadsheet takes for the start of a formula. Source: OWASP "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_COLUMNS = (
    *("number", "position", "license", "kind", "meter", "description", "starts_at", "ends_at"),
    *("quantity", "unit_amount", "amount", "currency", "reason"),
)


def as_csv(statement: Statement) -> str:
    """Return the statement's lines as CSV (RFC 4180), the tax as the last: the amounts add up to the total.

    Text that a spreadsheet would run as a formula is led by an apostrophe; numbers stay numbers.
    """
    out = io.StringIO()
    write = csv.writer(out)
    write.writerow(_COLUMNS)
    number = statement.number or ""
    for line in statement.lines.order_by("position"):
        write.writerow(
            [
                *(number, line.position, line.license_id or "", line.kind, line.meter, _harmless(line.description)),
                *(_instant(line.starts_at), _instant(line.ends_at), plain(line.quantity), plain(line.unit_amount)),
                *(amount(line.amount_minor, statement), statement.currency, _harmless(line.reason)),
            ]
        )
    period = _instant(statement.starts_at), _instant(statement.ends_at)
    tax = plain(statement.tax_rate), amount(statement.tax_minor, statement)
    write.writerow([number, "", "", "tax", "", "Tax, in percent", *period, "", *tax, statement.currency, ""])
    return out.getvalue()


def as_pdf(statement: Statement) -> bytes:
    """Return the statement as an A4 PDF. A character that no font of ours has stands there as an empty square."""
    # The library, with its fonts and images, takes over a second to load: no process pays for it that makes none.
    from billing.documents.sheet import Sheet

    page = Sheet(statement)
    page.head()
    page.lines(list(statement.lines.order_by("position")))
    page.totals()
    return bytes(page.output())


def name_of(statement: Statement, ending: str) -> str:
    """Return the name of the document as a file."""
    return f"statement-{statement.number or f'draft-{statement.starts_at:%Y-%m}'}.{ending}"


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _instant(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def amount(minor: int, statement: Statement) -> Decimal:
    """Return an amount in minor units as a number of the statement's currency."""
    return pricing.major(minor, currency=statement.currency)


def plain(value: Decimal | None) -> str:
    """Return the number without needless zeros and without an exponent."""
    if value is None:
        return ""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
