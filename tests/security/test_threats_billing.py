"""T18, a forged billing webhook: nothing but what the payment gateway signed, as it signed it, lately, once."""

import json
import random
import time

import pytest

from billing import gateway, payments
from billing.gateway import SignatureInvalid
from billing.models import GatewayEvent, Payment, Statement
from tests.billing.conftest import APRIL_4, gate
from tests.factories import make_final_statement

__all__ = ["gate"]

pytestmark = pytest.mark.django_db
MUTATIONS = 10_000


def _bent(body: bytes, header: str, dice: random.Random) -> tuple[bytes, str]:
    """Return the message, changed somewhere: never as it was."""
    at = dice.randrange(len(body))
    spot = dice.randrange(len(header))
    stamp, signature = header.split(",v1=")
    match dice.randrange(14):
        case 0:
            return body[:at] + bytes([body[at] ^ (1 << dice.randrange(8))]) + body[at + 1 :], header
        case 1:
            return body[:at] + body[at + dice.randint(1, 9) :], header
        case 2:
            return body[:at] + dice.randbytes(dice.randint(1, 9)) + body[at:], header
        case 3:
            return body + dice.choice([b" ", b"\n", b"\x00", b"{}", b"\xef\xbb\xbf"]), header
        case 4:
            return body, header[:spot] + chr(ord(header[spot]) ^ (1 << dice.randrange(7))) + header[spot + 1 :]
        case 5:
            return body, header[:spot] + header[spot + dice.randint(1, 9) :]
        case 6:
            return body, header[:spot] + dice.choice(" ,=+_0٣v\u200b") + header[spot:]
        case 7:
            return body, f"t={int(stamp[2:]) + dice.choice([-1, 1]) * dice.randint(1, 10**6)},v1={signature}"
        case 8:
            return body, f"{stamp},v1={dice.randbytes(32).hex()}"
        case 9:
            return body, f"{stamp},v0={signature}"
        case 10:
            return body, dice.choice(["", "t=", "v1=", ",", stamp, f"v1={signature}", f"{stamp},v1=", "null"])
        case 11:
            return body, f"{stamp},v1={signature.upper()}"
        case 12:
            return json.dumps(json.loads(body)).encode(), header
        case _:
            return body[::-1], header


def test_t18_no_forged_webhook_is_taken(gate):
    dice = random.Random(18)
    make_final_statement()
    payments.send_due(at=APRIL_4)
    invoice_id = next(iter(gate.invoices))
    body, header = gate.signed(gate.pay(invoice_id))
    asked = gate.calls.copy()
    door = gateway.configured()
    taken, tried = [], set()
    while len(tried) < MUTATIONS:
        forged = _bent(body, header, dice)
        if forged == (body, header) or forged in tried:
            continue
        tried.add(forged)
        try:
            door.read_event(body=forged[0], signature=forged[1])
            taken.append(forged)
        except SignatureInvalid:
            pass

    assert taken == []
    # The whole way too: nothing is kept, nothing asked of the gateway.
    for forged_body, forged_header in sorted(tried)[:500]:
        with pytest.raises(SignatureInvalid):
            payments.receive(body=forged_body, signature=forged_header, at=APRIL_4)
    assert (GatewayEvent.objects.count(), Payment.objects.count(), gate.calls) == (0, 0, asked)
    assert payments.receive(body=body, signature=header, at=APRIL_4) == "applied"
    assert Statement.objects.get().state == "paid"


def test_t18_an_old_message_or_another_s_secret_is_not_taken(gate):
    event = gate.event("invoice.paid", {"id": "in_1", "object": "invoice"})
    door = gateway.configured()

    for message in (
        gate.signed(event, at=time.time() - gateway.TOLERANCE_SECONDS - 2),
        gate.signed(event, secret="whsec_another"),
        gate.signed(event, secret=""),
    ):
        with pytest.raises(SignatureInvalid):
            door.read_event(body=message[0], signature=message[1])
    assert door.read_event(body=gate.signed(event)[0], signature=gate.signed(event)[1]).id == event["id"]


def test_t18_a_message_signed_by_whoever_stole_the_secret_pays_nothing(gate):
    make_final_statement()
    payments.send_due(at=APRIL_4)
    invoice = next(iter(gate.invoices.values()))
    lie = gate.event("invoice.paid", invoice | {"status": "paid", "amount_paid": invoice["total"]})
    body, header = gate.signed(lie)

    payments.receive(body=body, signature=header, at=APRIL_4)

    assert (Statement.objects.get().state, Payment.objects.count()) == ("final", 0)
