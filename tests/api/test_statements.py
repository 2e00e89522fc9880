"""/statements: read, also as PDF and CSV; closed, voided, marked as paid. /billing-accounts."""

from datetime import UTC, datetime, timedelta

import pytest

from billing import accounts, payments, statements
from billing.models import Payment, Statement
from licensing.models import AuditEntry
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, nothing_written
from tests.factories import AT, BY, make_final_statement, make_statement


def test_it_shows_a_statement_with_its_lines(world: World, api: Api) -> None:
    statement = make_statement(customer=world.customer)

    shown = api.get(f"/statements/{statement.pk}").json()

    assert set(shown) == {
        *(
            "id",
            "customer",
            "number",
            "state",
            "currency",
            "starts_at",
            "ends_at",
            "refreshed_at",
            "final_at",
            "due_at",
        ),
        *("paid_at", "void_at", "replaces", "subtotal", "tax_rate", "tax", "total", "open", "lines"),
    }
    assert (shown["customer"], shown["state"], shown["number"]) == (str(world.customer.pk), "draft", None)
    assert (shown["starts_at"], shown["ends_at"]) == ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")
    assert (shown["subtotal"], shown["tax"], shown["total"], shown["currency"]) == ("12.34", "0.00", "12.34", "EUR")
    (line,) = shown["lines"]
    assert (line["kind"], line["description"], line["amount"]) == ("adjustment", "Setup", "12.34")


def test_it_lists_without_lines_and_filters_by_customer_state_currency_and_number(world: World, api: Api) -> None:
    statement = make_statement(customer=world.customer)
    other = statements.close(statement=make_statement(), by=BY, at=AT + timedelta(days=40))

    listed = api.get("/statements").json()["results"]

    assert [row["id"] for row in listed] == [str(other.pk), str(statement.pk)]
    assert "lines" not in listed[0]
    for query, found in (
        (f"customer={world.customer.pk}", statement),
        ("state=draft", statement),
        ("state=final", other),
        ("number=1", other),
    ):
        assert [row["id"] for row in api.get(f"/statements?{query}").json()["results"]] == [str(found.pk)], query
    assert api.get("/statements?currency=USD").json()["results"] == []
    for number in ("0.5", "-1", "x", "1" * 30):
        assert_problem(api.get(f"/statements?number={number}"), 400)


def test_it_says_what_is_still_to_be_paid(world: World, api: Api) -> None:
    statement = make_final_statement(customer=world.customer)
    paid = {"amount_minor": 19_00, "by": BY, "at": AT, "reason": "By transfer"}
    payments.record_payment(statement=statement, **paid)

    shown = api.get(f"/statements/{statement.pk}").json()

    assert (shown["total"], shown["open"]) == ("119.00", "100.00")


def test_it_gives_the_documents_as_files(world: World, api: Api) -> None:
    statement = make_statement(customer=world.customer)

    pdf, csv = (api.get(f"/statements/{statement.pk}/{kind}") for kind in ("pdf", "csv"))

    assert pdf["content-type"] == "application/pdf"
    assert pdf["content-disposition"] == 'attachment; filename="statement-draft-2026-03.pdf"'
    assert pdf.content.startswith(b"%PDF-")
    assert csv["content-type"] == "text/csv; charset=utf-8"
    assert b"Setup" in csv.content


def test_it_has_none_that_is_not_there(api: Api) -> None:
    for path in ("", "/pdf", "/csv"):
        assert_problem(api.get(f"/statements/{MISSING_ID}{path}"), 404, "not_found")


def test_it_takes_none(world: World, api: Api) -> None:
    statement = make_statement(customer=world.customer)

    assert_problem(api.post("/statements", {}), 405, "method_not_allowed")
    assert_problem(api.delete(f"/statements/{statement.pk}"), 405, "method_not_allowed")


def test_it_closes_a_draft_when_its_period_is_over(world: World, api: Api) -> None:
    now = datetime.now(UTC)
    month = statements.month_of(now)
    early = make_statement(customer=world.customer, starts_at=month.starts_at, ends_at=month.ends_at)
    due = make_statement(customer=world.other_customer)

    with nothing_written():
        assert_problem(api.post(f"/statements/{early.pk}/close", {}), 409, "statement_not_due")
    shown = api.post(f"/statements/{due.pk}/close")

    assert shown.status_code == 200, shown.content
    assert (shown.json()["state"], shown.json()["number"], shown.json()["total"]) == ("final", 1, "12.34")
    assert AuditEntry.objects.get(action="statement.closed").actor_kind == "credential"
    assert_problem(api.post(f"/statements/{due.pk}/close"), 409, "statement_not_draft")


@pytest.mark.parametrize("replace", [None, False])
def test_it_voids_a_final_one_with_a_reason(replace: bool | None, world: World, api: Api) -> None:
    statement = make_final_statement(customer=world.customer)
    path, body = f"/statements/{statement.pk}/void", {"reason": "Wrong customer"}
    assert_problem(api.post(path, {}), 400, pointer="/reason")

    shown = api.post(path, body if replace is None else {**body, "replace": replace})

    assert shown.status_code == 200, shown.content
    draft = Statement.objects.filter(replaces=statement).first()
    assert (shown.json()["state"], shown.json()["replaced_by"]) == ("void", str(draft.pk) if draft else None)
    assert (draft is None) == (replace is False)
    assert AuditEntry.objects.get(action="statement.voided").reason == "Wrong customer"
    assert_problem(api.post(path, body), 409, "statement_not_final")


def test_it_marks_what_is_open_as_paid_since_an_instant(world: World, api: Api) -> None:
    statement = make_final_statement(customer=world.customer)
    path, since = f"/statements/{statement.pk}/mark-paid", "2026-04-10T08:00:00Z"
    for instant in ("2026-04-01T00:00:00Z", "2099-01-01T00:00:00Z"):
        with nothing_written():
            assert_problem(api.post(path, {"reason": "Transfer", "paid_at": instant}), 400, pointer="/paid_at")

    shown = api.post(path, {"reason": "Transfer", "paid_at": since})

    assert shown.status_code == 200, shown.content
    assert (shown.json()["state"], shown.json()["paid_at"], shown.json()["open"]) == ("paid", since, "0.00")
    payment = Payment.objects.get()
    assert (payment.amount_minor, payment.source, payment.reason) == (119_00, "by_hand", "Transfer")
    with nothing_written():
        assert api.post(path, {"reason": "Again"}).json()["paid_at"] == since


def test_it_marks_as_paid_what_asks_for_nothing(world: World, api: Api) -> None:
    statement = make_final_statement(customer=world.customer, amounts=(-5_00,))

    shown = api.post(f"/statements/{statement.pk}/mark-paid", {"reason": "Set off elsewhere"})

    assert (shown.json()["state"], Payment.objects.count()) == ("paid", 0)


def test_it_shows_and_changes_how_a_customer_is_billed(world: World, api: Api) -> None:
    account = accounts.describe(customer=world.customer, currency="EUR", address="Old Lane 1", by=BY, at=AT)
    accounts.describe(customer=world.other_customer, currency="USD", by=BY, at=AT)
    path = f"/billing-accounts/{account.pk}"
    for body, pointer in (
        ({"currency": "eur"}, "/currency"),
        ({"tax_rate": "101"}, "/tax_rate"),
        ({"tax_rate": "19.00001"}, "/tax_rate"),
        ({"last_number": 7}, "/last_number"),
    ):
        with nothing_written():
            assert_problem(api.patch(path, body), 400, pointer=pointer)

    shown = api.patch(path, {"tax_rate": "19", "tax_id": "DE123"})

    assert shown.status_code == 200, shown.content
    row = shown.json()
    assert (row["currency"], row["tax_rate"], row["tax_id"], row["address"]) == (
        "EUR",
        "19.0000",
        "DE123",
        "Old Lane 1",
    )
    assert set(row) == {"id", "created_at", "customer", "currency", "tax_rate", "tax_id", "address"}
    assert AuditEntry.objects.get(action="billing_account.changed").after == {
        "tax_rate": "19.000000",
        "tax_id": "DE123",
    }
    assert api.get(path).json() == row
    listed = api.get(f"/billing-accounts?customer={world.customer.pk}").json()["results"]
    assert listed == [row]
    assert_problem(api.patch(f"/billing-accounts/{MISSING_ID}", {"tax_id": "x"}), 404, "not_found")
