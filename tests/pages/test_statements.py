"""The list of statements, the page of one, and its files."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from billing.models import GatewayInvoice, Statement, StatementLine
from tests import factories
from tests.pages.conftest import TODAY
from tests.pages.test_license import text_of

pytestmark = pytest.mark.django_db
LIST = reverse("portal:statements")
FEBRUARY = TODAY.replace(month=2, day=1, hour=0)
MARCH = TODAY.replace(day=1, hour=0)


def url(statement):
    return reverse("portal:statement", args=[statement.pk])


def file_of(statement, form):
    return reverse("portal:statement-file", args=[statement.pk, form])


def make_statement(customer, *lines, **values):
    """Return February's statement over 100.00 and 19 % tax: final, to be paid in two weeks."""
    state = values.pop("state", "final")
    statement = Statement.objects.create(
        **{
            "created_at": MARCH,
            "customer": customer,
            "currency": "EUR",
            "starts_at": FEBRUARY,
            "ends_at": MARCH,
            "subtotal_minor": 10_000,
            "tax_rate": 19,
            "tax_minor": 1_900,
            "total_minor": 11_900,
        }
        | {name: value for name, value in values.items() if name not in ("number", "due_at", "paid_at", "void_at")}
    )
    for number, line in enumerate(lines):
        StatementLine.objects.create(
            **{
                "created_at": MARCH,
                "statement": statement,
                "position": number + 1,
                "kind": "usage",
                "description": "API calls",
                "starts_at": statement.starts_at,
                "ends_at": statement.ends_at,
                "quantity": 12_345,
                "unit_amount": Decimal("0.0025"),
                "amount_minor": 3_086,
            }
            | line
        )
    if state == "draft":
        return statement
    later = {name: values[name] for name in ("paid_at", "void_at") if name in values}
    for name, value in {
        "state": "final",
        "number": values.get("number", 7),
        "final_at": MARCH,
        "due_at": values.get("due_at", TODAY + timedelta(days=14)),
    }.items():
        setattr(statement, name, value)
    statement.save()
    if state != "final":
        statement.state = state
        for name, value in later.items():
            setattr(statement, name, value)
        statement.save()
    return statement


def test_it_lists_statements_with_what_each_comes_to(signed_in):
    member = factories.make_member()
    statement = make_statement(member.customer)
    make_statement(member.customer, state="draft", starts_at=MARCH, ends_at=MARCH.replace(month=4), refreshed_at=TODAY)

    page = text_of(signed_in(member).get(LIST))

    assert page.index("March 2026") < page.index("February 2026")
    assert f'<a href="{url(statement)}">February 2026</a>' in page
    assert "No. 7" in page
    assert "119.00 EUR" in page
    assert "To be paid by 16 March 2026." in page
    assert "Worked out 02 March, 12:00 UTC." in page


def test_it_shows_lines_totals_and_tax_apart(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    twice = {"kind": "adjustment", "amount_minor": -125, "reason": "A client sent twice.", "quantity": None}
    statement = make_statement(member.customer, {"license": license}, twice)

    page = text_of(signed_in(member).get(url(statement)))

    assert "Statement February 2026" in page
    assert "1 to 28 February 2026" in page
    assert "12,345</td>" in page
    assert "0.0025 EUR" in page
    assert "30.86 EUR" in page
    assert "-1.25 EUR" in page
    assert "A client sent twice." in page
    assert "<dt>Subtotal</dt> <dd> 100.00 EUR </dd>" in page
    assert "<dt>Tax, 19 %</dt> <dd> 19.00 EUR </dd>" in page
    assert "<dt>Total</dt> <dd> 119.00 EUR </dd>" in page
    assert reverse("portal:license", args=[license.pk]) in page


@pytest.mark.parametrize(
    ("values", "label", "words"),
    [
        ({"state": "draft"}, "So far", "It grows with use until the period is over"),
        ({"due_at": TODAY}, "Overdue", "It was to be paid by 2 March 2026."),
        ({"state": "paid", "paid_at": TODAY}, "Paid", "Paid on 2 March 2026."),
        ({"state": "void", "void_at": TODAY}, "Void", "nothing is owed for it"),
    ],
)
def test_it_says_where_a_statement_stands(signed_in, values, label, words):
    member = factories.make_member(role="billing")
    statement = make_statement(member.customer, **values)

    page = text_of(signed_in(member).get(url(statement)))

    assert f"{label}</span>" in page
    assert words in page


def test_it_sends_a_final_statement_as_pdf_and_csv(signed_in):
    member = factories.make_member()
    statement = make_statement(member.customer, {})
    client = signed_in(member)

    pdf, csv = client.get(file_of(statement, "pdf")), client.get(file_of(statement, "csv"))

    assert pdf["Content-Disposition"] == 'attachment; filename="statement-7.pdf"'
    assert pdf.content.startswith(b"%PDF-")
    assert csv["Content-Type"] == "text/csv; charset=utf-8"
    assert b"API calls" in csv.content
    assert file_of(statement, "pdf") in client.get(url(statement)).text


def test_it_sends_a_draft_as_csv_only(signed_in):
    member = factories.make_member()
    statement = make_statement(member.customer, state="draft")
    client = signed_in(member)

    assert client.get(file_of(statement, "csv"))["Content-Disposition"].endswith('"statement-draft-2026-02.csv"')
    assert client.get(file_of(statement, "pdf")).status_code == 404
    assert client.get(file_of(statement, "exe")).status_code == 404
    assert file_of(statement, "pdf") not in client.get(url(statement)).text


@pytest.mark.parametrize("role", ["license_manager", "viewer"])
def test_it_shows_no_money_to_other_roles(signed_in, role):
    member = factories.make_member(role=role)
    statement = make_statement(member.customer)
    client = signed_in(member)

    assert "119.00" not in client.get(LIST).text
    assert "Statements are for owners and billing" in client.get(LIST).text
    for path in (url(statement), file_of(statement, "csv"), file_of(statement, "pdf")):
        answer = client.get(path)
        assert answer.status_code == 403
        assert "119" not in answer.text


def test_it_shows_nothing_of_another_customer(signed_in, client):
    statement = make_statement(factories.make_customer())
    stranger = signed_in(factories.make_member())

    assert "119.00" not in stranger.get(LIST).text
    for path in (url(statement), file_of(statement, "csv"), file_of(statement, "pdf")):
        assert stranger.get(path).status_code == 404
        assert client.get(path).status_code == 302


def test_a_role_elsewhere_shows_nothing_here(signed_in):
    """An owner of one customer who only views for another sees the money of the first alone."""
    member = factories.make_member()
    other = factories.make_member(user=member.user, role="viewer")
    make_statement(member.customer, number=41)
    make_statement(other.customer, number=42)

    page = text_of(signed_in(member).get(LIST))

    assert "No. 41" in page
    assert "No. 42" not in page


def test_it_changes_nothing(signed_in):
    member = factories.make_member()
    statement = make_statement(member.customer)

    assert signed_in(member).post(url(statement)).status_code == 405


def test_it_says_so_when_there_are_none(signed_in):
    assert "No statements yet" in signed_in(factories.make_member()).get(LIST).text


def test_the_pages_take_as_many_queries_for_many_lines(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    short = make_statement(member.customer, {"license": license})
    long = make_statement(
        member.customer, *({"license": license} for _ in range(30)), number=8, starts_at=FEBRUARY - timedelta(days=28)
    )
    client = signed_in(member)

    def queries(path):
        with CaptureQueriesContext(connection) as found:
            assert client.get(path).status_code == 200
        return len(found)

    few = queries(LIST)
    for number in range(1, 30):
        make_statement(member.customer, number=100 + number, starts_at=FEBRUARY - timedelta(days=40 * number))

    assert queries(LIST) == few
    assert queries(url(long)) == queries(url(short))
    assert max(few, queries(url(long))) <= 12


def at_gateway(statement, **values):
    return GatewayInvoice.objects.create(
        **{"created_at": MARCH, "next_at": MARCH, "statement": statement, "days_until_due": 14, "state": "open"}
        | {"external_id": "in_1", "url": "https://pay.example.com/in_1"}
        | values
    )


def test_it_leads_to_where_a_statement_is_paid(signed_in):
    """Without a gateway being asked: none is configured here."""
    member = factories.make_member(role="billing")
    statement = make_statement(member.customer)
    client = signed_in(member)
    assert "Pay</a>" not in text_of(client.get(url(statement)))

    at_gateway(statement)

    assert 'href="https://pay.example.com/in_1" rel="noreferrer">Pay</a>' in text_of(client.get(url(statement)))


@pytest.mark.parametrize(
    ("state", "kept"),
    [("draft", {}), ("paid", {}), ("void", {}), ("final", {"state": "waiting"}), ("final", {"url": ""})],
)
def test_it_leads_nowhere_when_nothing_is_to_be_paid_there(signed_in, state, kept):
    member = factories.make_member()
    ended = {"paid": {"paid_at": TODAY}, "void": {"void_at": TODAY}}.get(state, {})
    statement = make_statement(member.customer, state=state, **ended)
    at_gateway(statement, **kept)

    assert "Pay</a>" not in text_of(signed_in(member).get(url(statement)))


@pytest.mark.parametrize("role", ["license_manager", "viewer"])
def test_it_shows_the_way_to_pay_to_nobody_who_may_not_see_money(signed_in, role):
    member = factories.make_member(role=role)
    statement = make_statement(member.customer)
    at_gateway(statement)

    assert "pay.example.com" not in signed_in(member).get(url(statement)).text
