"""/statements: read only, also as PDF and CSV."""

from datetime import timedelta

from billing import payments, statements
from tests.api.conftest import MISSING_ID, Api, World, assert_problem
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
