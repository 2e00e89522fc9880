"""A statement as PDF and CSV."""

import csv
import io
import logging
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing import documents, statements
from billing.models import BillingAccount, Statement
from tests.factories import BY, make_customer, make_license, make_plan, make_price, make_revision

pytestmark = pytest.mark.django_db
MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)


def make_statement(
    *, adjustments: int = 1, name: str = "Żółw & Ωmega GmbH", description: str = "Goodwill"
) -> Statement:
    """Return a final statement of 10 seats and some adjustments of minus one euro."""
    customer = make_customer(name=name)
    BillingAccount.objects.create(
        customer=customer,
        created_at=MARCH,
        tax_rate=Decimal("19"),
        tax_id="DE123",
        address="Hauptstraße 5\n10115 Berlin",
    )
    plan = make_plan()
    make_price(plan=plan, components=[{"kind": "seats", "amount": "31.00"}])
    make_license(plan_revision=make_revision(plan=plan), customer=customer, at=MARCH)
    statements.open_months(customer=customer, at=APRIL - timedelta(seconds=1))
    draft = Statement.objects.get(customer=customer)
    for _ in range(adjustments):
        statements.adjust(
            customer=customer, amount_minor=-100, description=description, reason="An outage", by=BY, at=MARCH
        )
    return statements.close(statement=draft, by=BY, at=APRIL + timedelta(days=3))


def pages(pdf: bytes) -> int:
    return pdf.count(b"/Type /Page\n")


def letters(pdf: bytes) -> set[str]:
    """Return the letters a PDF of fpdf2's shows: its glyphs are numbers, which a map in the file gives letters."""
    return {chr(int(code, 16)) for code in re.findall(rb"<[0-9A-F]{4}> <([0-9A-F]{4})>", pdf)}


def test_it_writes_the_lines_and_the_tax_as_csv_that_add_up_to_the_total() -> None:
    statement = make_statement()

    rows = list(csv.DictReader(io.StringIO(documents.as_csv(statement))))

    assert [(row["kind"], row["amount"]) for row in rows] == [
        ("seats", "310.00"),
        ("adjustment", "-1.00"),
        ("tax", "58.71"),
    ]
    assert sum(Decimal(row["amount"]) for row in rows) == Decimal(statement.total_minor) / 100
    assert rows[0]["starts_at"] == "2026-03-01T00:00:00Z"
    assert (rows[0]["quantity"], rows[0]["unit_amount"], rows[0]["currency"]) == ("10", "31", "EUR")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_it_lets_no_spreadsheet_run_text_as_a_formula(start: str) -> None:
    statement = make_statement(description=f'{start}HYPERLINK("http://evil.example")')

    rows = list(csv.DictReader(io.StringIO(documents.as_csv(statement), newline="")))

    assert rows[1]["description"] == f'\'{start}HYPERLINK("http://evil.example")'
    assert rows[1]["amount"] == "-1.00"


def test_it_gives_the_same_statement_the_same_bytes() -> None:
    statement = make_statement()

    first = documents.as_pdf(statement)

    assert first.startswith(b"%PDF-")
    assert documents.as_pdf(Statement.objects.get(pk=statement.pk)) == first


def test_it_goes_on_to_further_pages() -> None:
    assert pages(documents.as_pdf(make_statement(adjustments=1))) == 1
    assert pages(documents.as_pdf(make_statement(adjustments=25))) == 2


def test_it_shows_letters_beyond_latin_1_and_a_square_for_what_no_font_has(caplog: Any) -> None:
    shown = letters(documents.as_pdf(make_statement(name="Żółw Ω 株式会社")))

    assert set("ŻłΩ□") <= shown
    assert "株" not in shown
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_names_the_file_by_number_or_month() -> None:
    statement = make_statement()

    assert documents.name_of(statement, "pdf") == "statement-1.pdf"
    assert documents.name_of(Statement(starts_at=MARCH), "csv") == "statement-draft-2026-03.csv"
