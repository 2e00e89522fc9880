"""The same message of the gateway twenty times at once, two jobs at once: one effect, one invoice.

`test_it_pays_twice_without_the_guard` is the twin: it proves that the race is a real one.
"""

import threading

import pytest

from billing import dunning, payments
from billing.models import DunningStep, GatewayEvent, Payment, Statement
from licensing.models import AuditEntry, Hold
from tests.billing.conftest import APRIL_4, gate
from tests.concurrency.together import together
from tests.factories import BY, make_final_statement, make_license

__all__ = ["gate"]

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_takes_a_message_delivered_twenty_times_at_once_once(gate):
    statement = make_final_statement()
    payments.send_due(at=APRIL_4)
    body, signature = gate.signed(gate.pay(next(iter(gate.invoices))))

    outcomes = together(*[lambda: payments.receive(body=body, signature=signature, at=APRIL_4)] * 20)

    assert sorted(outcomes) == ["applied"] + ["duplicate"] * 19
    assert (GatewayEvent.objects.count(), Payment.objects.count()) == (1, 1)
    assert AuditEntry.objects.filter(action="statement.paid").count() == 1
    assert Statement.objects.get(pk=statement.pk).state == "paid"


def test_it_pays_twice_without_the_guard(gate):
    make_final_statement()
    applied, both = [], threading.Barrier(2)

    def naive(event_id: str) -> None:
        known = GatewayEvent.objects.filter(event_id=event_id).exists()
        both.wait(30)
        if not known:
            applied.append(event_id)

    together(*[lambda: naive("evt_1")] * 2)

    assert applied == ["evt_1", "evt_1"]


def test_it_makes_one_invoice_though_jobs_run_at_once(gate):
    make_final_statement()

    together(*[lambda: payments.send_due(at=APRIL_4)] * 6)

    assert (len(gate.invoices), len(gate.customers), len(gate.items)) == (1, 1, 2)


def test_it_takes_each_dunning_step_once_though_jobs_run_at_once():
    license = make_license()
    statement = make_final_statement(license=license)
    for days in (3, 7, 14, 21):
        at = Statement.objects.get().due_at + days * (statement.ends_at - statement.starts_at) / 31
        results = together(*[lambda at=at: dunning.run(at=at)] * 4)
        assert [result for result in results if isinstance(result, Exception) or result[1]] == []

    assert DunningStep.objects.count() == 4
    assert Hold.objects.filter(license=license).count() == 1


def test_it_never_leaves_a_hold_when_money_comes_while_it_is_placed():
    license = make_license()
    statement = make_final_statement(license=license)
    at = statement.due_at + 14 * (statement.ends_at - statement.starts_at) / 31
    dunning.run(at=at)
    late = statement.due_at + (statement.ends_at - statement.starts_at)

    together(
        lambda: dunning.run(at=late),
        lambda: payments.record_payment(statement=statement, reason="Cash", by=BY, at=late),
    )

    assert Statement.objects.get().state == "paid"
    assert not Hold.objects.filter(license=license, lifted_at=None).exists()
