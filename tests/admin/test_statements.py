"""Statements from the staff admin: read, final, paid, void, adjusted."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import accounts, statements
from billing.models import BillingAccount, Meter, Payment, Statement, StatementLine
from tests.admin.conftest import act, last_entry, listing, page, sign_in, text_of
from tests.factories import BY, make_license, make_price

pytestmark = pytest.mark.django_db
ACTS = ("refresh", "close", "record-payment", "mark-paid", "adjust", "void")


@pytest.fixture
def draft() -> Statement:
    """A draft over a month that is over, with its grace time: 31 seats, a euro each, and tax of 19 %."""
    end = timezone.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = end if timezone.now() - end > timedelta(days=10) else (end - timedelta(days=1)).replace(day=1)
    start = (end - timedelta(days=1)).replace(day=1)
    license = make_license(at=datetime(2020, 1, 1, tzinfo=UTC), seat_limit=31, duration=None)
    make_price(plan=license.plan_revision.plan, components=[{"kind": "seats", "amount": "1.00"}])
    accounts.describe(customer=license.customer, currency="EUR", tax_rate=Decimal(19), by=BY, at=start)
    statements.open_months(customer=license.customer, at=timezone.now())
    return Statement.objects.get(customer=license.customer, starts_at=start)


def final(draft: Statement) -> Statement:
    return statements.close(statement=draft, by=BY, at=timezone.now())


def test_shows_lines_totals_and_tax(staff: Client, draft: Statement) -> None:
    text = text_of(staff.get(page(draft)))

    assert "31 seats" in text
    assert "31.00 EUR" in text
    assert "Tax 19 %" in text
    assert "5.89 EUR" in text
    assert "36.89 EUR" in text_of(staff.get(listing(Statement)))


def test_amounts_are_money_and_meters_are_named_wherever_a_row_is_read(staff: Client, draft: Statement) -> None:
    Meter.objects.create(code="api-calls", name="Calls of the interface", created_at=draft.created_at)
    line = draft.lines.get()
    line.meter = "api-calls"
    line.save()

    pages = {of: text_of(staff.get(of)) for of in (page(line), listing(StatementLine), page(draft), listing(Statement))}

    for of, text in pages.items():
        assert " minor" not in text.lower(), of
        assert '<span class="staff-amount">31.00 EUR</span>' in text or of == listing(Statement), of
    assert '<span class="staff-amount">36.89 EUR</span>' in pages[listing(Statement)]
    for of in (page(line), listing(StatementLine)):
        assert "Calls of the interface" in pages[of]


def test_making_it_final_is_marked_as_dangerous(staff: Client, draft: Statement) -> None:
    assert "staff-button--do-danger" in text_of(staff.get(act(draft, "close")))
    assert "staff-button--do-danger" not in text_of(staff.get(act(draft, "refresh")))


def test_an_empty_list_offers_a_new_row_only_where_one_can_be_made(staff: Client) -> None:
    payments, accounts_ = text_of(staff.get(listing(Payment))), text_of(staff.get(listing(BillingAccount)))

    assert "There is nothing here yet." in payments
    assert "Create a new item" not in payments
    assert "Add billing account" not in payments
    assert "Add billing account</a>" in accounts_
    assert "Nothing fits what was asked for." in text_of(staff.get(listing(Payment), {"q": "nobody"}))


def test_makes_a_draft_final_and_records_its_payment(staff: Client, draft: Statement) -> None:
    def pay(amount: str, reference: str = "") -> Any:
        values = {"amount": amount, "reference": reference, "reason": "Bank transfer of 3 May"}
        return staff.post(act(draft, "record-payment"), values)

    closed = staff.post(act(draft, "close"))
    again = staff.post(act(draft, "close"))
    part, too_much, rest = pay("6.89", "TX 1"), pay("30.01"), pay("")

    draft.refresh_from_db()
    assert (closed.status_code, again.status_code) == (302, 422)
    assert (part.status_code, too_much.status_code, rest.status_code) == (302, 422, 302)
    assert "up to 30.00 EUR, what is open." in text_of(too_much)
    assert list(draft.payments.values_list("amount_minor", "source")) == [(689, "by_hand"), (3000, "by_hand")]
    assert draft.payments.filter(reference="TX 1").exists()
    assert (draft.state, draft.number) == ("paid", 1)
    assert f"{listing(Payment)}?statement__id__exact={draft.pk}" in text_of(staff.get(page(draft)))
    assert (staff.post(act(draft, "record-payment"), {"reason": "x"})).status_code == 422
    assert (last_entry().action, last_entry().reason) == ("statement.paid", "Bank transfer of 3 May")
    assert last_entry().actor_label == staff.user.email  # type: ignore[attr-defined]


def test_settles_a_statement_that_asks_for_nothing(staff: Client, draft: Statement) -> None:
    statements.adjust(
        customer=draft.customer, amount_minor=-50_00, description="x", reason="x", by=BY, at=draft.starts_at
    )
    draft = Statement.objects.order_by("starts_at")[0]  # an adjustment goes to the oldest that is open
    final(draft)

    text = text_of(staff.get(page(draft)))
    staff.post(act(draft, "mark-paid"), {"reason": "Paid out"})

    draft.refresh_from_db()
    assert act(draft, "mark-paid") in text
    assert act(draft, "record-payment") not in text
    assert draft.state == "paid"


def test_works_a_draft_out_anew(staff: Client, draft: Statement) -> None:
    before = draft.refreshed_at

    assert staff.post(act(draft, "refresh")).status_code == 302

    draft.refresh_from_db()
    assert before is not None
    assert draft.refreshed_at is not None
    assert draft.refreshed_at > before


def test_adjusts_on_the_next_open_statement(staff: Client, draft: Statement) -> None:
    done = final(draft)

    response = staff.post(act(done, "adjust"), {"amount": "-12.50", "description": "Goodwill", "reason": "An outage"})

    line = StatementLine.objects.get(kind="adjustment")
    done.refresh_from_db()
    assert response.headers["Location"] == page(line.statement)
    assert (line.amount_minor, line.description, line.reason) == (-1250, "Goodwill", "An outage")
    assert line.statement.state == "draft"
    assert done.subtotal_minor == 3100


def test_adjusts_a_line_and_says_which(staff: Client, draft: Statement) -> None:
    line = final(draft).lines.get()

    staff.post(act(line, "adjust"), {"amount": "3", "description": "More", "reason": "Missed"})

    made = StatementLine.objects.get(adjusts=line)
    assert (made.amount_minor, made.kind) == (300, "adjustment")


@pytest.mark.parametrize(
    "values", [{"amount": "1.005"}, {"amount": "0"}, {"amount": "x"}, {"reason": ""}, {"description": ""}]
)
def test_an_adjustment_that_makes_no_sense_is_refused(staff: Client, draft: Statement, values: dict[str, Any]) -> None:
    response = staff.post(act(draft, "adjust"), {"amount": "1", "description": "x", "reason": "x"} | values)

    assert response.status_code == 422
    assert not StatementLine.objects.filter(kind="adjustment").exists()


def test_voids_a_statement_and_bills_the_period_anew(staff: Client, draft: Statement) -> None:
    done = final(draft)

    response = staff.post(act(done, "void"), {"replace": "on", "reason": "Wrong address"})

    done.refresh_from_db()
    assert (done.state, done.number, done.void_reason) == ("void", 1, "Wrong address")
    replacement = Statement.objects.get(replaces=done)
    assert response.headers["Location"] == page(replacement)
    assert replacement.state == "draft"


def test_voids_a_statement_for_good(staff: Client, draft: Statement) -> None:
    done = final(draft)

    response = staff.post(act(done, "void"), {"reason": "Given up"})

    assert response.headers["Location"] == page(done)
    assert not Statement.objects.filter(replaces=done).exists()


def test_sends_the_files_the_customer_gets(staff: Client, draft: Statement) -> None:
    def file(form: str) -> Any:
        return staff.get(reverse("admin:statement_file", args=[draft.pk, form]))

    assert file("pdf").status_code == 404
    assert b"31 seats" in file("csv").content
    final(draft)
    assert file("pdf").content.startswith(b"%PDF-")


def test_offers_what_can_be_done_now(staff: Client, draft: Statement) -> None:
    def offered() -> set[str]:
        text = text_of(staff.get(page(draft)))
        return {name for name in ACTS if act(draft, name) in text}

    assert offered() == {"refresh", "close", "adjust"}
    final(draft)
    assert offered() == {"record-payment", "adjust", "void"}


@pytest.mark.parametrize("name", ACTS)
def test_needs_the_permission(draft: Statement, name: str) -> None:
    client = sign_in("billing.view_statement")

    assert client.get(act(draft, name)).status_code == 403
    assert client.post(act(draft, name), {"reason": "x"}).status_code == 403
    assert act(draft, name) not in text_of(client.get(page(draft)))
    draft.refresh_from_db()
    assert draft.state == "draft"


def test_the_files_need_the_permission_too(draft: Statement) -> None:
    path = reverse("admin:statement_file", args=[draft.pk, "csv"])

    assert sign_in("billing.view_meter").get(path).status_code == 403
    assert sign_in("billing.view_statement").get(path).status_code == 200
    assert Client().get(path).status_code == 302
