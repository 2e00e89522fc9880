"""Payments: a statement has one invoice whatever fails on the way, and money that came in makes it paid once."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, transaction

from billing import dunning, gateway, jobs, payments, statements
from billing.gateway import GatewayRefused, at_stripe
from billing.models import BillingAccount, GatewayEvent, GatewayInvoice, Payment, Reversal, Statement
from billing.payments import GatewayOff
from licensing import sweeps
from licensing.errors import Invalid
from licensing.models import Anomaly, AuditEntry
from portal.logs import redact
from tests.billing.conftest import APRIL_4
from tests.factories import BY, make_customer, make_final_statement, make_license
from tests.stripe_fake import KEY, WEBHOOK_SECRET, StripeFake

pytestmark = pytest.mark.django_db
AT, HOUR, DAY = APRIL_4, timedelta(hours=1), timedelta(days=1)


def send(at: Any = AT) -> tuple[int, int]:
    return payments.send_due(at=at)


def receive(gate: StripeFake, event: dict[str, Any], at: Any = AT) -> str:
    body, signature = gate.signed(event)
    return payments.receive(body=body, signature=signature, at=at)


def only(gate: StripeFake) -> dict[str, Any]:
    assert len(gate.invoices) == 1, gate.invoices
    return next(iter(gate.invoices.values()))


def rules() -> list[str]:
    return sorted(Anomaly.objects.values_list("rule", flat=True))


def sent(gate: StripeFake, **statement: Any) -> tuple[Statement, dict[str, Any]]:
    """Return a statement whose invoice is open at the gateway, and that."""
    row = make_final_statement(**statement)
    assert send() == (1, 0)
    return row, only(gate)


def test_it_asks_for_the_statement_s_very_total_line_by_line_with_the_tax_apart(gate):
    statement, invoice = sent(gate, amounts=(100_00, 33_33, -20_01))

    row = GatewayInvoice.objects.get()
    statement.refresh_from_db()
    amounts = [item["amount"] for item in gate.items.values()]
    assert (invoice["status"], invoice["total"], invoice["currency"]) == ("open", statement.total_minor, "eur")
    assert amounts == [100_00, 33_33, -20_01, statement.tax_minor]
    assert [item["description"] for item in gate.items.values()][-1] == "Tax 19 %"
    assert (row.state, row.external_id, statement.gateway_invoice) == ("open", invoice["id"], invoice["id"])
    assert payments.link(statement) == invoice["hosted_invoice_url"]
    assert AuditEntry.objects.filter(action="statement.invoiced").count() == 1


def test_it_sends_a_statement_once_and_makes_a_customer_once(gate):
    customer = make_customer()
    make_final_statement(customer=customer)
    make_final_statement(customer=customer, starts_at=AT - 90 * DAY, ends_at=AT - 60 * DAY)

    first, second = send(), send(AT + HOUR)

    assert (first, second) == ((2, 0), (0, 0))
    assert (len(gate.invoices), len(gate.customers)) == (2, 1)
    assert BillingAccount.objects.get(customer=customer).gateway_customer in gate.customers


def test_it_sends_nothing_without_a_gateway():
    statement = make_final_statement()

    assert send() == (0, 0)
    assert payments.reconcile(at=AT) == (0, 0)
    assert not GatewayInvoice.objects.exists()
    assert payments.link(statement) == ""
    with pytest.raises(GatewayOff):
        payments.receive(body=b"{}", signature="", at=AT)


def test_it_asks_for_nothing_where_nothing_is_owed(gate):
    make_final_statement(amounts=(-50_00,))

    assert send() == (0, 0)
    assert not gate.invoices


CALLS = (
    "GET /v1/customers/search",
    "POST /v1/customers",
    "GET /v1/invoices",
    "POST /v1/invoices",
    "POST /v1/invoiceitems",
    "GET /v1/invoiceitems",
)


@pytest.mark.parametrize("again_after", [timedelta(minutes=10), timedelta(days=3)], ids=["soon", "after days"])
@pytest.mark.parametrize("how", ["500", "429", "reset", "lost"])
@pytest.mark.parametrize("call", CALLS)
def test_it_makes_one_invoice_whatever_fails_on_the_way(gate, call, how, again_after):
    statement = make_final_statement(amounts=(10_00, 20_00))
    gate.fail(how, on=call)

    failed = send()
    row = GatewayInvoice.objects.get()
    shown = (row.state, row.attempts, bool(row.last_error), rules())
    gate.at += again_after
    again = send(AT + again_after)

    assert (failed, again) == ((0, 1), (1, 0))
    assert shown == ("waiting", 1, True, ["gateway_failed"])
    assert (only(gate)["total"], only(gate)["status"]) == (statement.total_minor, "open")
    assert (len(gate.customers), len(gate.items)) == (1, 3)
    row.refresh_from_db()
    assert (row.state, row.last_error, row.attempts) == ("open", "", 0)


def test_it_makes_one_invoice_though_every_answer_is_lost_once(gate):
    statement = make_final_statement(amounts=(10_00, 20_00))
    at = AT
    for call in ("POST /v1/customers", "POST /v1/invoices", "POST /v1/invoiceitems", "POST /v1/invoices/in_"):
        gate.fail("lost", on=call)
    for _ in range(8):
        send(at)
        at += 7 * HOUR
        gate.at = at

    assert (only(gate)["total"], only(gate)["status"], len(gate.items)) == (statement.total_minor, "open", 3)
    assert len(gate.customers) == 1
    assert GatewayInvoice.objects.get().state == "open"


def test_it_waits_longer_with_each_failure_and_claims_nothing_twice(gate):
    make_final_statement()
    gate.fail("500", times=3)
    waits = []
    at = AT
    for _ in range(3):
        send(at)
        row = GatewayInvoice.objects.get()
        waits.append(row.next_at - at)
        at = row.next_at

    assert waits == [timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=4)]
    assert send(at - timedelta(seconds=1)) == (0, 0)
    assert payments.lag(at=at + HOUR) == HOUR
    assert send(at) == (1, 0)


def test_it_gives_up_waiting_for_a_slow_answer_and_finds_what_came_of_it(gate, monkeypatch):
    monkeypatch.setattr(at_stripe, "TIMEOUT_SECONDS", 0.2)
    make_final_statement()
    gate.fail("slow", on="POST /v1/invoices", seconds=0.6)

    assert send() == (0, 1)
    assert send(AT + HOUR) == (1, 0)
    assert only(gate)["status"] == "open"


def test_it_never_opens_an_invoice_over_another_amount(gate):
    make_final_statement()
    gate.fail("lost", on="POST /v1/invoices")
    send()
    invoice = only(gate)
    gate._new_item({"customer": invoice["customer"], "invoice": invoice["id"], "currency": "eur", "amount": "1"})

    assert send(AT + HOUR) == (0, 1)
    assert only(gate)["status"] == "draft"
    assert "Delete the draft" in GatewayInvoice.objects.get().last_error


def test_it_says_that_the_key_is_wrong_without_saying_the_key(gate, settings):
    settings.STRIPE_SECRET_KEY = "sk_test_wrong_0123456789abcdef"
    make_final_statement()

    assert send() == (0, 1)
    row = GatewayInvoice.objects.get()
    assert "STRIPE_SECRET_KEY" in row.last_error
    assert "0123456789" not in row.last_error + str(Anomaly.objects.get().evidence)
    assert Anomaly.objects.get().severity == "high"


def test_it_keeps_the_gateway_s_secrets_out_of_logs_and_of_its_own_picture(gate):
    said = redact(f"{KEY} {WEBHOOK_SECRET} sk_live_{'a' * 24} {gateway.configured()!r}")

    assert "0123456789" not in said
    assert "aaaaaaaa" not in said


def test_it_takes_a_payment_by_webhook_once(gate):
    statement, invoice = sent(gate)
    event = gate.pay(invoice["id"])

    outcomes = [receive(gate, event), receive(gate, event), receive(gate, gate.event("invoice.paid", invoice))]

    statement.refresh_from_db()
    assert outcomes == ["applied", "duplicate", "applied"]
    assert (statement.state, statement.paid_at) == ("paid", AT)
    assert [(row.amount_minor, row.source) for row in Payment.objects.all()] == [(statement.total_minor, "gateway")]
    assert AuditEntry.objects.filter(action="statement.paid").count() == 1
    assert rules() == []
    assert payments.link(statement) == ""


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (3, 0, 1, 2)])
def test_it_does_not_mind_the_order_of_messages(gate, order):
    statement, invoice = sent(gate)
    events = [
        gate.event("invoice.finalized", invoice),
        gate.event("invoice.payment_failed", invoice),
        gate.event("invoice.updated", invoice),
    ]
    events.append(gate.pay(invoice["id"]))

    outcomes = {receive(gate, events[place]) for place in order}

    statement.refresh_from_db()
    assert (outcomes, statement.state, GatewayInvoice.objects.get().state) == ({"applied"}, "paid", "paid")
    assert rules() == []  # a failure told late is none any more


def test_it_takes_a_payment_that_is_told_before_we_know_the_invoice_s_id(gate):
    statement = make_final_statement()
    gate.fail("lost", on="POST /v1/invoices/in_")
    send()
    assert GatewayInvoice.objects.get().external_id == ""

    outcome = receive(gate, gate.pay(only(gate)["id"]))

    statement.refresh_from_db()
    assert (outcome, statement.state, statement.gateway_invoice) == ("applied", "paid", only(gate)["id"])
    assert send(AT + HOUR) == (0, 0)


def test_it_believes_the_gateway_and_not_what_a_message_says(gate):
    statement, invoice = sent(gate)

    receive(gate, gate.event("invoice.paid", invoice | {"status": "paid", "amount_paid": invoice["total"]}))

    statement.refresh_from_db()
    assert (statement.state, Payment.objects.count()) == ("final", 0)


def test_it_records_what_it_does_not_know_and_does_nothing(gate, caplog):
    stranger = {"id": "in_stranger", "object": "invoice", "metadata": {}}

    outcomes = [
        receive(gate, gate.event("customer.created", {"id": "cus_1", "object": "customer"})),
        receive(gate, gate.event("something.new", {"object": "what"})),
        receive(gate, gate.event("invoice.paid", stranger)),
    ]

    assert outcomes == ["ignored", "ignored", "unknown"]
    assert GatewayEvent.objects.count() == 3
    event = GatewayEvent.objects.get(outcome="unknown")
    said = [record.msg for record in caplog.records if "message_not_of_gateway" in str(record.msg)]
    assert [(each["event_id"], each["kind"], each["object_id"]) for each in said] == [
        (event.event_id, "invoice.paid", "in_stranger")
    ]
    assert event.get_outcome_display() == "not known at the gateway"


def test_it_keeps_nothing_of_a_message_whose_invoice_cannot_be_looked_at(gate):
    statement, invoice = sent(gate)
    event = gate.pay(invoice["id"])
    gate.fail("500", on="GET /v1/invoices/")

    with pytest.raises(gateway.GatewayUnavailable):
        receive(gate, event)
    kept = GatewayEvent.objects.count()

    assert (kept, receive(gate, event)) == (0, "applied")
    statement.refresh_from_db()
    assert statement.state == "paid"


def test_it_says_when_a_payment_failed(gate):
    _, invoice = sent(gate)

    receive(gate, gate.event("invoice.payment_failed", invoice))

    assert rules() == ["payment_failed"]


def test_it_catches_up_with_messages_that_never_came(gate):
    statement, invoice = sent(gate)
    gate.pay(invoice["id"])

    looked = payments.reconcile(at=AT + HOUR)

    statement.refresh_from_db()
    assert (looked, statement.state, rules()) == ((1, 0), "paid", [])
    assert payments.reconcile(at=AT + HOUR) == (0, 0)


def test_it_flags_what_differs_at_the_gateway_and_changes_nothing(gate):
    statement, invoice = sent(gate)
    gate.invoices[invoice["id"]] |= {"total": 1, "status": "void"}
    gate._new(gate.invoices, "in", "invoice", {**invoice, "id": "in_999999"})
    gate.invoices["in_999999"] = gate.invoices.popitem()[1] | {"id": "in_999999", "created": int(AT.timestamp())}
    strange = {"licentia_statement": "019a0000-0000-7000-8000-000000000000"}
    gate.invoices["in_888888"] = {**invoice, "id": "in_888888", "metadata": strange}

    looked = payments.reconcile(at=AT + HOUR)

    statement.refresh_from_db()
    assert (looked, statement.state, Payment.objects.count()) == ((1, 0), "final", 0)
    assert rules() == ["invoice_differs", "invoice_given_up", "invoice_unknown", "second_invoice"]


def test_it_flags_an_invoice_that_is_gone(gate):
    _, invoice = sent(gate)
    del gate.invoices[invoice["id"]]

    assert payments.reconcile(at=AT + HOUR) == (0, 1)
    assert rules() == ["invoice_missing"]


def test_it_does_not_take_too_little_for_paid(gate):
    statement, invoice = sent(gate)
    event = gate.pay(invoice["id"])
    gate.invoices[invoice["id"]]["amount_paid"] -= 1

    receive(gate, event)

    statement.refresh_from_db()
    assert (statement.state, payments.received_minor(statement)) == ("final", statement.total_minor - 1)
    assert rules() == ["paid_too_little"]


def test_it_records_a_payment_by_hand_and_tells_the_gateway(gate):
    statement, invoice = sent(gate)

    payments.record_payment(statement=statement, reason="Bank transfer", reference="B-1", by=BY, at=AT + HOUR)
    told = send(AT + HOUR)
    receive(gate, gate.events[-1], AT + HOUR)

    statement.refresh_from_db()
    assert (statement.state, told, invoice["status"]) == ("paid", (1, 0), "paid")
    assert [(row.source, row.reference) for row in Payment.objects.all()] == [("by_hand", "B-1")]
    assert (GatewayInvoice.objects.get().state, rules()) == ("paid", [])


def test_it_says_when_a_statement_is_paid_twice(gate):
    statement, invoice = sent(gate)
    gate.pay(invoice["id"])
    payments.record_payment(statement=statement, reason="Cash", by=BY, at=AT)

    payments.reconcile(at=AT + HOUR)

    assert payments.received_minor(statement) == 2 * statement.total_minor
    assert rules() == ["paid_too_much"]


def test_it_records_parts_until_nothing_is_open():
    statement = make_final_statement()

    payments.record_payment(statement=statement, amount_minor=19_00, reason="Part", reference="1", by=BY, at=AT)
    again = payments.record_payment(statement=statement, amount_minor=19_00, reason="x", reference="1", by=BY, at=AT)
    part = Statement.objects.get().state
    rest = payments.record_payment(statement=statement, reason="Rest", by=BY, at=AT)

    assert (again.amount_minor, part, rest.amount_minor) == (19_00, "final", 100_00)
    assert (Statement.objects.get().state, Payment.objects.count()) == ("paid", 2)
    with pytest.raises(statements.StatementNotFinal):
        payments.record_payment(statement=statement, reason="More", by=BY, at=AT)


@pytest.mark.parametrize(
    "wrong", [{"reason": " "}, {"amount_minor": 0}, {"amount_minor": -1}, {"amount_minor": 119_01}], ids=str
)
def test_it_refuses_a_payment_without_reason_or_of_a_wrong_amount(wrong):
    with pytest.raises(Invalid):
        payments.record_payment(**{"statement": make_final_statement(), "reason": "Cash", "by": BY, "at": AT} | wrong)
    assert not Payment.objects.exists()


def test_it_withdraws_the_invoice_of_a_void_statement(gate):
    statement, invoice = sent(gate)
    statements.void(statement=statement, replace=False, by=BY, at=AT, reason="Wrong customer")

    assert send(AT + HOUR) == (1, 0)
    assert (invoice["status"], GatewayInvoice.objects.get().state) == ("void", "void")
    assert send(AT + 2 * HOUR) == (0, 0)


def test_it_leaves_nothing_open_of_a_statement_settled_while_an_answer_was_lost(gate):
    statement = make_final_statement()
    gate.fail("lost", on="POST /v1/invoices")
    send()
    statements.void(statement=statement, replace=False, by=BY, at=AT, reason="Wrong")

    assert send(AT + HOUR) == (1, 0)
    assert not gate.invoices
    assert GatewayInvoice.objects.get().state == "void"


def test_it_needs_no_invoice_for_what_was_paid_before_it_was_sent(gate):
    statement = make_final_statement()
    gate.fail("500", on="GET /v1/customers")
    send()
    payments.record_payment(statement=statement, reason="Cash", by=BY, at=AT)

    assert send(AT + HOUR) == (1, 0)
    assert (GatewayInvoice.objects.get().state, len(gate.invoices)) == ("not_needed", 0)


def test_it_mirrors_usage_once_when_asked_to(gate, settings):
    settings.STRIPE_METER_EVENTS = True
    gate._new(gate.meters, "mtr", "billing.meter", {"event_name": "calls"})
    make_final_statement(amounts=(1_00, 2_00))
    gate.fail("lost", on="POST /v1/billing/meter_events")

    first, second, third = send(), send(AT + HOUR), send(AT + 2 * HOUR)

    assert (first, second, third) == ((0, 1), (1, 0), (0, 0))
    assert [event["payload"]["value"] for event in gate.meter_events] == ["10", "20"]
    assert only(gate)["status"] == "open"


@pytest.mark.parametrize(("currency", "minor", "asked"), [("ISK", 1_000, 1_190_00), ("MGA", 1_000_00, 1_190)])
def test_it_counts_currencies_as_the_gateway_does(gate, currency, minor, asked):
    make_final_statement(currency=currency, amounts=(minor,))

    assert send() == (1, 0)
    assert (only(gate)["total"], rules()) == (asked, [])


def test_it_sends_no_part_of_a_unit_that_the_gateway_cannot_count(gate):
    make_final_statement(currency="MGA", amounts=(1_000_10,))

    assert send() == (0, 1)
    assert "whole units" in GatewayInvoice.objects.get().last_error


def test_it_leaves_an_invoice_open_at_the_gateway_s_other_key(gate):
    make_final_statement()
    gate._answers["licentia-invoice-" + str(Statement.objects.get().pk)] = (AT, "POST /v1/x", {}, 200, {})

    assert send() == (0, 1)
    assert "IdempotencyError" in GatewayInvoice.objects.get().last_error
    with pytest.raises(GatewayRefused):
        gateway.configured().ensure_invoice(payments._order(GatewayInvoice.objects.get(), next(iter(gate.customers))))


@pytest.mark.parametrize("model", [GatewayEvent, Payment])
def test_it_never_changes_or_forgets_a_record(gate, model):
    _, invoice = sent(gate)
    receive(gate, gate.pay(invoice["id"]))

    for act in (lambda: model.objects.update(created_at=AT + DAY), lambda: model.objects.all().delete()):
        with pytest.raises(DatabaseError), transaction.atomic():
            act()
    assert model.objects.count() == 1


def test_its_jobs_run(gate):
    statement = make_final_statement()

    assert sweeps.run(jobs.GATEWAY_INVOICES, at=AT) == 1
    gate.pay(only(gate)["id"])
    assert sweeps.run(jobs.GATEWAY_RECONCILIATION, at=AT + HOUR) == 1
    statement.refresh_from_db()
    assert statement.state == "paid"


# --- a part, and what goes back ---------------------------------------------------------------------


def paid(gate: StripeFake) -> tuple[Statement, dict[str, Any]]:
    """Return a statement over 119.00 that was paid at the gateway, and its invoice."""
    statement, invoice = sent(gate)
    receive(gate, gate.pay(invoice["id"]))
    statement.refresh_from_db()
    assert statement.state == "paid"
    return statement, invoice


def reversals() -> list[tuple[Any, ...]]:
    rows = Reversal.objects.order_by("created_at")
    return [(row.kind, row.returned_minor, row.credited_minor, row.stands, row.status) for row in rows]


def test_it_asks_only_for_what_is_open_once_a_part_came_by_hand(gate):
    statement, invoice = sent(gate)
    payments.record_payment(statement=statement, amount_minor=19_00, reason="Part", by=BY, at=AT)
    untold = payments.link(statement)

    told = send(AT + HOUR)

    assert (untold, told, invoice["amount_remaining"], invoice["status"]) == ("", (1, 0), 100_00, "open")
    assert payments.link(statement) == invoice["hosted_invoice_url"]
    assert statements.open_minor(statement) == 100_00
    receive(gate, gate.pay(invoice["id"]), AT + HOUR)
    payments.reconcile(at=AT + 2 * HOUR)
    statement.refresh_from_db()
    amounts = sorted(Payment.objects.values_list("source", "amount_minor"))
    assert (statement.state, amounts, rules()) == ("paid", [("by_hand", 19_00), ("gateway", 100_00)], [])
    assert send(AT + 3 * HOUR) == (0, 0)


def test_it_asks_only_for_what_is_open_when_a_part_came_before_the_invoice(gate):
    statement = make_final_statement()
    payments.record_payment(statement=statement, amount_minor=19_00, reason="Part", by=BY, at=AT)

    assert send() == (1, 0)
    assert (only(gate)["total"], only(gate)["amount_remaining"]) == (119_00, 100_00)


@pytest.mark.parametrize("again_after", [timedelta(minutes=10), timedelta(days=3)], ids=["soon", "after days"])
@pytest.mark.parametrize("how", ["500", "429", "reset", "lost", "500_after"])
@pytest.mark.parametrize(
    "call", ["GET /v1/invoice_payments", "POST /v1/payment_records", "POST /v1/invoices/in_", "GET /v1/invoices/in_"]
)
def test_it_tells_a_part_once_whatever_fails_on_the_way(gate, call, how, again_after):
    statement, invoice = sent(gate)
    payments.record_payment(statement=statement, amount_minor=19_00, reason="Part", by=BY, at=AT)
    gate.fail(how, on=call)

    failed = send(AT)
    if how == "500_after" and call.startswith("POST /v1/p"):
        again_after = timedelta(days=3)  # Stripe keeps that answer for a day
    gate.at += again_after
    again = send(AT + again_after)

    assert (failed, again) == ((0, 1), (1, 0))
    assert (invoice["amount_remaining"], len(gate.invoice_payments)) == (100_00, 1)


def test_it_settles_the_rest_when_the_last_part_came_by_hand(gate):
    statement, invoice = sent(gate)
    payments.record_payment(statement=statement, amount_minor=19_00, reason="Part", by=BY, at=AT)
    send(AT + HOUR)
    payments.record_payment(statement=statement, reason="Rest", by=BY, at=AT + HOUR)

    assert send(AT + 2 * HOUR) == (1, 0)
    payments.reconcile(at=AT + 3 * HOUR)
    assert (invoice["status"], GatewayInvoice.objects.get().state, rules()) == ("paid", "paid", [])
    assert payments.received_minor(statement) == 119_00


def test_it_takes_what_the_customer_pays_in_parts(gate):
    statement, invoice = sent(gate)

    outcomes = [receive(gate, gate.pay(invoice["id"], 40_00)), receive(gate, gate.event("invoice.updated", invoice))]
    part = statements.open_minor(statement)
    outcomes.append(receive(gate, gate.pay(invoice["id"])))

    statement.refresh_from_db()
    assert (outcomes, part, statement.state) == (["applied"] * 3, 79_00, "paid")
    assert sorted(Payment.objects.values_list("amount_minor", flat=True)) == [40_00, 79_00]
    assert rules() == []


def test_it_records_a_refund_once_and_the_statement_stays_paid(gate):
    statement, invoice = paid(gate)
    event = gate.refund(invoice["id"], 19_00)
    about_it = gate.event("refund.created", next(iter(gate.refunds.values())))

    outcomes = [receive(gate, event), receive(gate, event), receive(gate, about_it)]

    statement.refresh_from_db()
    assert outcomes == ["applied", "duplicate", "applied"]
    assert reversals() == [("refund", 19_00, 0, True, "succeeded")]
    assert (statement.state, statements.open_minor(statement), rules()) == ("paid", 19_00, ["refunded"])
    assert AuditEntry.objects.filter(action="payment.refund").count() == 1
    payments.reconcile(at=AT + 2 * HOUR)
    assert (len(reversals()), rules(), dunning.run(at=AT + 60 * DAY)) == (1, ["refunded"], (0, 0))


def test_it_hears_of_a_refund_before_the_payment(gate):
    statement, invoice = sent(gate)
    came = gate.pay(invoice["id"])

    outcomes = [receive(gate, gate.refund(invoice["id"], 119_00)), receive(gate, came)]

    statement.refresh_from_db()
    assert (outcomes, statement.state) == (["applied", "applied"], "paid")
    assert (payments.received_minor(statement), len(reversals())) == (119_00, 1)


def test_it_asks_again_for_a_part_that_went_back(gate):
    statement, invoice = sent(gate)
    receive(gate, gate.pay(invoice["id"], 40_00))

    receive(gate, gate.refund(invoice["id"], 40_00))

    statement.refresh_from_db()
    assert (statement.state, statements.open_minor(statement)) == ("final", 119_00)


def test_it_says_when_a_refund_failed_after_all(gate):
    statement, invoice = paid(gate)
    receive(gate, gate.refund(invoice["id"], 19_00, status="pending"))

    receive(gate, gate.becomes(gate.refunds, "failed", "refund.failed"))

    assert reversals() == [("refund", 19_00, 0, False, "failed")]
    assert (statements.open_minor(statement), rules()) == (0, ["refund_failed", "refunded"])


def test_it_takes_a_credit_note_of_an_open_invoice_off_what_is_asked(gate):
    license = make_license()
    statement, invoice = sent(gate, license=license)
    for day in (3, 7, 14, 21):
        dunning.run(at=statement.due_at + day * DAY)
    held = license.holds.filter(lifted_at=None).count()
    receive(gate, gate.credit(invoice["id"], 19_00), AT + 60 * DAY)
    part = statements.open_minor(statement)

    receive(gate, gate.pay(invoice["id"]), AT + 60 * DAY)

    statement.refresh_from_db()
    assert (held, part, statement.state) == (1, 100_00, "paid")
    assert reversals() == [("credit_note", 0, 19_00, True, "issued")]
    assert (license.holds.filter(lifted_at=None).count(), rules()) == (0, ["credited"])


def test_a_credit_note_over_all_that_is_open_settles_the_statement(gate):
    statement, invoice = sent(gate)

    receive(gate, gate.credit(invoice["id"], 119_00))

    statement.refresh_from_db()
    assert (statement.state, Payment.objects.count(), rules()) == ("paid", 0, ["credited"])


def test_it_counts_a_credit_note_that_gives_back_by_refund_once(gate):
    statement, invoice = paid(gate)

    receive(gate, gate.credit(invoice["id"], 19_00, by_refund=True))
    payments.reconcile(at=AT + HOUR)

    assert reversals() == [("refund", 19_00, 0, True, "succeeded")]
    assert statements.open_minor(statement) == 19_00


def test_it_says_when_a_credit_note_is_withdrawn(gate):
    statement, invoice = sent(gate)
    receive(gate, gate.credit(invoice["id"], 19_00))
    invoice["amount_due"] += 19_00
    gate._remain(invoice)

    receive(gate, gate.becomes(gate.credit_notes, "void", "credit_note.voided"))

    assert (statements.open_minor(statement), rules()) == (119_00, ["credit_withdrawn", "credited"])


@pytest.mark.parametrize(
    ("end", "open_minor", "said"), [("won", 0, ["disputed"]), ("lost", 119_00, ["dispute_lost", "disputed"])]
)
def test_it_follows_a_dispute_to_its_end_in_any_order(gate, end, open_minor, said):
    license = make_license()
    statement, invoice = sent(gate, license=license)
    receive(gate, gate.pay(invoice["id"]))
    opened = gate.dispute(invoice["id"])
    receive(gate, opened)
    meanwhile = statements.open_minor(statement)
    late = gate.event("charge.dispute.updated", opened["data"]["object"])

    receive(gate, gate.becomes(gate.disputes, end, "charge.dispute.closed"))
    receive(gate, late)

    statement.refresh_from_db()
    assert (meanwhile, statement.state, statements.open_minor(statement)) == (119_00, "paid", open_minor)
    assert reversals() == [("dispute", 119_00, 0, end == "lost", end)]
    assert (rules(), license.holds.count()) == (said, 0)


def test_it_takes_no_question_of_the_bank_for_money_gone(gate):
    statement, invoice = paid(gate)

    receive(gate, gate.dispute(invoice["id"], status="warning_needs_response"))

    assert (statements.open_minor(statement), reversals()[0][3], rules()) == (0, False, ["disputed"])


def test_it_finds_by_itself_what_was_done_by_hand_at_the_gateway(gate):
    statement, invoice = paid(gate)
    gate.refund(invoice["id"], 10_00)
    gate.dispute(invoice["id"])
    gate.credit(invoice["id"], 5_00)

    looked = payments.reconcile(at=AT + HOUR)

    statement.refresh_from_db()
    assert (looked, statement.state) == ((1, 0), "paid")
    assert sorted(kind for kind, *_ in reversals()) == ["credit_note", "dispute", "refund"]
    assert rules() == ["credited", "disputed", "refunded"]


def test_it_finds_how_an_old_dispute_ended(gate):
    statement, invoice = paid(gate)
    receive(gate, gate.dispute(invoice["id"]))
    gate.becomes(gate.disputes, "lost", "charge.dispute.closed")
    gate.at += 60 * DAY

    payments.reconcile(at=AT + 60 * DAY)

    assert (reversals()[0][4], "dispute_lost" in rules()) == ("lost", True)
    assert statements.open_minor(statement) == 119_00


def test_it_says_when_an_open_invoice_asks_for_something_else(gate):
    statement, invoice = sent(gate)
    invoice |= {"amount_due": 1, "amount_remaining": 1}  # e.g. a balance of the customer's at Stripe was taken off

    payments.reconcile(at=AT + HOUR)

    assert (rules(), statements.open_minor(statement)) == (["invoice_asks_otherwise"], 119_00)


@pytest.mark.parametrize(("act", "kind"), [("void", "invoice.voided"), ("mark_uncollectible", "invoice.updated")])
def test_it_still_asks_though_the_invoice_is_given_up_there(gate, act, kind):
    license = make_license()
    statement, invoice = sent(gate, license=license)
    gate._act(invoice, act, {})

    outcome = receive(gate, gate.event(kind, invoice))

    statement.refresh_from_db()
    assert (outcome, statement.state, rules()) == ("applied", "final", ["invoice_given_up"])
    assert payments.link(statement) == ""
    assert dunning.run(at=statement.due_at + 3 * DAY) == (1, 0)


def test_it_says_when_money_came_for_a_void_statement_until_it_went_back(gate):
    statement, invoice = sent(gate)
    payments.record_payment(statement=statement, amount_minor=19_00, reason="Part", by=BY, at=AT)
    statements.void(statement=statement, replace=False, by=BY, at=AT, reason="Wrong")

    send(AT + HOUR)

    assert (invoice["status"], rules()) == ("void", ["paid_although_void"])


@pytest.mark.parametrize("how", ["500", "429", "reset"])
@pytest.mark.parametrize("call", ["GET /v1/refunds", "GET /v1/invoice_payments", "GET /v1/invoices/in_"])
def test_it_keeps_nothing_of_a_refund_that_cannot_be_looked_at(gate, call, how):
    _, invoice = paid(gate)
    event = gate.refund(invoice["id"], 19_00)
    gate.fail(how, on=call)

    with pytest.raises(gateway.GatewayUnavailable):
        receive(gate, event)
    kept = reversals()

    assert (kept, receive(gate, event), len(reversals())) == ([], "applied", 1)


def test_it_believes_no_message_about_a_refund_that_is_not_there(gate):
    _, invoice = paid(gate)
    lie = gate.event("refund.created", {"id": "re_lie", "object": "refund", "amount": 119_00})

    assert (receive(gate, lie), reversals()) == ("unknown", [])
    assert invoice["status"] == "paid"


@pytest.mark.parametrize("amounts", [(0,), (-5_00,)], ids=["nothing", "less than nothing"])
def test_it_keeps_what_is_owed_to_the_customer_away_from_the_gateway(gate, amounts):
    make_final_statement(amounts=amounts)

    assert (send(), payments.reconcile(at=AT + HOUR)) == ((0, 0), (0, 0))
    assert (gate.invoices, gate.customers, GatewayInvoice.objects.count()) == ({}, {}, 0)


def test_what_went_back_is_never_forgotten_nor_another_amount(gate):
    _, invoice = paid(gate)
    receive(gate, gate.refund(invoice["id"], 19_00))

    for act in (lambda: Reversal.objects.update(returned_minor=1), lambda: Reversal.objects.all().delete()):
        with pytest.raises(DatabaseError), transaction.atomic():
            act()
    assert reversals()[0][1] == 19_00
