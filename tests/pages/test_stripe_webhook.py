"""The door for the payment gateway's messages: signed ones, of a bearable size, answered once their effect is there."""

import pytest

from billing import payments
from billing.models import GatewayEvent, Statement
from licensing import anomalies
from licensing.models import Anomaly
from portal import webhooks
from tests.billing.conftest import APRIL_4, gate
from tests.factories import make_final_statement

__all__ = ["gate"]

pytestmark = pytest.mark.django_db
URL = "/webhooks/stripe"


def post(client, body, signature):
    return client.post(URL, body, content_type="application/json", headers={"Stripe-Signature": signature})


@pytest.fixture
def paid(gate):
    """A signed message that the only statement's invoice is paid."""
    make_final_statement()
    payments.send_due(at=APRIL_4)
    return gate.signed(gate.pay(next(iter(gate.invoices))))


def test_it_takes_a_signed_message_without_a_session_or_csrf(client, paid):
    client.handler.enforce_csrf_checks = True

    answers = [post(client, *paid) for _ in range(2)]

    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"applied"), (200, b"duplicate")]
    assert Statement.objects.get().state == "paid"


def test_it_refuses_what_is_not_signed_and_says_so_to_staff(client, paid):
    answer = post(client, paid[0], "t=1,v1=" + "0" * 64)
    anomalies.record_waiting()

    assert (answer.status_code, answer.content) == (400, b"")
    assert Anomaly.objects.get().rule == "webhook_forged"
    assert not GatewayEvent.objects.exists()


def test_it_reads_no_long_body(client, gate):
    assert post(client, b" " * (webhooks.LONGEST + 1), "").status_code == 413


def test_it_is_not_there_without_a_gateway(client):
    assert post(client, b"{}", "").status_code == 404


def test_it_takes_only_posts(client, gate):
    assert client.get(URL).status_code == 405


def test_it_asks_for_another_delivery_while_the_gateway_is_away(client, gate, paid):
    gate.fail("reset", on="GET /v1/invoices/")

    answers = [post(client, *paid).status_code for _ in range(2)]

    assert answers == [503, 200]
    assert Statement.objects.get().state == "paid"
