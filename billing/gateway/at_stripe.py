"""The payment gateway at Stripe, through its official library.

Within a day Stripe's idempotency keys recognise a call that is made again, and before anything is made, what is there
already is looked up by the id of ours that it carries.

Source: docs.stripe.com/api (idempotent requests, invoices, meter events), docs.stripe.com/webhooks/signature.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import stripe

from billing.gateway import (
    TOLERANCE_SECONDS,
    Event,
    GatewayRefused,
    GatewayUnavailable,
    Invoice,
    NotAtGateway,
    Order,
    Returned,
    SignatureInvalid,
)
from billing.states import InvoiceState, ReversalKind

TIMEOUT_SECONDS = 20
# Metadata: an id of ours.
STATEMENT, LINE, ACCOUNT = "licentia_statement", "licentia_line", "licentia_account"
PAYMENT = "licentia_payment"

# Stripe counts these in hundredths although they have no smaller unit. Source: docs.stripe.com/currencies.
_IN_HUNDREDTHS = frozenset({"ISK", "UGX"})
# Stripe counts these in whole units although they have hundredths: sent as ours they would be a hundredfold.
_IN_WHOLE = frozenset({"MGA"})
# Only this way of writing the header: the library's parser is laxer, so one signature would have many spellings.
_SIGNATURE = re.compile(r"t=[1-9][0-9]{0,11}(,v[0-9]=[0-9a-f]{64}){1,8}")


class StripeGateway:
    """`Gateway` at Stripe."""

    def __init__(self, *, key: str, webhook_secret: str, base: str = "") -> None:
        self._webhook_secret = webhook_secret
        self._client = stripe.StripeClient(
            key,
            base_addresses={"api": base} if base else {},
            max_network_retries=0,  # the job tries again, and keeps count where staff see it
            http_client=stripe.RequestsClient(timeout=TIMEOUT_SECONDS),
        )

    def __repr__(self) -> str:
        return "StripeGateway()"  # never the key

    def ensure_customer(self, *, account_id: UUID, name: str, email: str) -> str:
        with _asking():
            # The search lags a minute behind; within a day the idempotency key finds what it does not.
            found = self._client.v1.customers.search({"query": f"metadata['{ACCOUNT}']:'{account_id}'", "limit": 1})
            if found.data:
                return found.data[0].id
            made = self._client.v1.customers.create(
                {"name": name, "metadata": {ACCOUNT: str(account_id)}, **({"email": email} if email else {})},
                {"idempotency_key": f"licentia-customer-{account_id}"},
            )
            return made.id

    def ensure_invoice(self, order: Order) -> Invoice:
        with _asking():
            raw = self._find(order.customer_id, order.statement_id)
            if raw is None:
                raw = self._client.v1.invoices.create(
                    {
                        "customer": order.customer_id,
                        "currency": order.currency.lower(),
                        "description": order.description,
                        "collection_method": "send_invoice",
                        "days_until_due": order.days_until_due,
                        "auto_advance": False,
                        "pending_invoice_items_behavior": "exclude",
                        "metadata": {STATEMENT: str(order.statement_id)},
                    },
                    {"idempotency_key": f"licentia-invoice-{order.statement_id}"},
                )
            if raw.status != "draft":
                return _invoice(self._get(raw.id))
            self._fill(raw.id, order)
            filled = _invoice(self._get(raw.id))
            if (filled.total_minor, filled.currency) != (order.total_minor, order.currency):
                raise GatewayRefused(
                    f"The invoice {filled.id} would ask for {filled.total_minor} {filled.currency}, the statement "
                    f"for {order.total_minor} {order.currency}. Delete the draft at the gateway."
                )
            self._client.v1.invoices.finalize_invoice(
                raw.id, {"auto_advance": False}, {"idempotency_key": f"licentia-finalize-{raw.id}"}
            )
            return _invoice(self._get(raw.id))

    def _fill(self, invoice_id: str, order: Order) -> None:
        there = {
            _ours(item, LINE)
            for item in self._client.v1.invoice_items.list({"invoice": invoice_id, "limit": 100}).auto_paging_iter()
        }
        for item in order.items:
            if item.key not in there:
                self._client.v1.invoice_items.create(
                    {
                        "customer": order.customer_id,
                        "invoice": invoice_id,
                        "currency": order.currency.lower(),
                        "amount": _to_stripe(item.amount_minor, order.currency),
                        "description": item.description[:500],
                        "metadata": {LINE: item.key},
                    },
                    {"idempotency_key": f"licentia-item-{invoice_id}-{item.key}"},
                )

    def find_invoice(self, *, customer_id: str, statement_id: UUID) -> Invoice | None:
        with _asking():
            raw = self._find(customer_id, statement_id)
            return _invoice(self._get(raw.id)) if raw else None

    def _get(self, invoice_id: str) -> stripe.Invoice:
        # Only given when asked for. Source: docs.stripe.com/changelog/dahlia/2026-05-27.
        return self._client.v1.invoices.retrieve(invoice_id, {"expand": ["amount_paid_off_stripe"]})

    def _find(self, customer_id: str, statement_id: UUID) -> stripe.Invoice | None:
        # Listed, not searched: the search lags behind, and here a miss would be a second invoice.
        for raw in self._client.v1.invoices.list({"customer": customer_id, "limit": 100}).auto_paging_iter():
            if _ours(raw, STATEMENT) == str(statement_id):
                return raw
        return None

    def invoice(self, invoice_id: str) -> Invoice:
        with _asking():
            return _invoice(self._get(invoice_id))

    def invoices_since(self, since: datetime) -> Iterator[Invoice]:
        with _asking():
            asked = {
                "created": {"gte": int(since.timestamp())},
                "limit": 100,
                "expand": ["data.amount_paid_off_stripe"],
            }
            for raw in self._client.v1.invoices.list(asked).auto_paging_iter():  # type: ignore[arg-type]
                if _ours(raw, STATEMENT):
                    yield _invoice(raw)

    def settle_outside(self, invoice_id: str) -> Invoice:
        with _asking():
            raw = self._get(invoice_id)
            if raw.status == "draft":
                return self._delete_draft(raw)
            if raw.status in ("open", "uncollectible"):
                self._client.v1.invoices.pay(
                    invoice_id, {"paid_out_of_band": True}, {"idempotency_key": f"licentia-settle-{invoice_id}"}
                )
            return _invoice(self._get(invoice_id))

    def withdraw(self, invoice_id: str) -> Invoice:
        with _asking():
            raw = self._get(invoice_id)
            if raw.status == "draft":
                return self._delete_draft(raw)
            if raw.status in ("open", "uncollectible"):
                self._client.v1.invoices.void_invoice(
                    invoice_id, {}, {"idempotency_key": f"licentia-void-{invoice_id}"}
                )
            return _invoice(self._get(invoice_id))

    def _delete_draft(self, raw: stripe.Invoice) -> Invoice:
        gone = _invoice(raw)
        self._client.v1.invoices.delete(raw.id)
        return Invoice(gone.id, gone.statement_id, InvoiceState.VOID, gone.currency, gone.total_minor, 0, 0, 0, 0, "")

    def settle_part(self, invoice: Invoice, *, payment_id: UUID, amount_minor: int, at: datetime) -> Invoice:
        v1, moment = self._client.v1, int(at.timestamp())
        with _asking():
            paid = v1.invoice_payments.list(
                {"invoice": invoice.id, "limit": 100, "expand": ["data.payment.payment_record"]}
            )
            for each in paid.auto_paging_iter():
                record = getattr(each.payment, "payment_record", None)
                if record is not None and _ours(record, PAYMENT) == str(payment_id):
                    return _invoice(self._get(invoice.id))
            # What is reported and not attached counts nowhere, so a lost answer does no harm.
            value = _to_stripe(amount_minor, invoice.currency)
            made = v1.payment_records.report_payment(
                {
                    "amount_requested": {"currency": invoice.currency.lower(), "value": value},
                    "initiated_at": moment,
                    "outcome": "guaranteed",
                    "guaranteed": {"guaranteed_at": moment},
                    "payment_method_details": {"type": "custom", "custom": {"display_name": "Paid past Stripe"}},
                    "metadata": {PAYMENT: str(payment_id)},
                },
                {"idempotency_key": f"licentia-payment-{payment_id}"},
            )
            v1.invoices.attach_payment(
                invoice.id, {"payment_record": made.id}, {"idempotency_key": f"licentia-attach-{payment_id}"}
            )
            return _invoice(self._get(invoice.id))

    def returned(self, *, about: str, object_id: str) -> list[Returned]:
        v1 = self._client.v1
        with _asking():
            match about:
                case "refund":
                    found = [self._refund(v1.refunds.retrieve(object_id))]
                case "charge":
                    asked = v1.refunds.list({"charge": object_id, "limit": 100})
                    found = [self._refund(raw) for raw in asked.auto_paging_iter()]
                case "dispute":
                    found = [self._dispute(v1.disputes.retrieve(object_id))]
                case "credit_note":
                    found = [self._credit_note(v1.credit_notes.retrieve(object_id))]
                case _:
                    found = []
        return [each for each in found if each is not None]

    def returned_since(self, since: datetime) -> list[Returned]:
        v1 = self._client.v1
        asked: Any = {"created": {"gte": int(since.timestamp())}, "limit": 100}
        with _asking():
            refunds = v1.refunds.list(asked)
            disputes = v1.disputes.list(asked)
            notes = v1.credit_notes.list(asked)
            found = [
                *map(self._refund, refunds.auto_paging_iter()),
                *map(self._dispute, disputes.auto_paging_iter()),
                *map(self._credit_note, notes.auto_paging_iter()),
            ]
        return [each for each in found if each is not None]

    def _invoice_paid_by(self, intent: Any) -> str:
        """Return the invoice a payment was for, or an empty text."""
        if not intent:
            return ""
        asked = {"payment": {"type": "payment_intent", "payment_intent": _id(intent)}, "limit": 1}
        found = self._client.v1.invoice_payments.list(asked).data  # type: ignore[arg-type]
        return _id(found[0].invoice) if found else ""

    def _refund(self, raw: stripe.Refund) -> Returned | None:
        stands = raw.status not in ("failed", "canceled")
        return self._back(raw, ReversalKind.REFUND, self._invoice_paid_by(raw.payment_intent), raw.amount, 0, stands)

    def _dispute(self, raw: stripe.Dispute) -> Returned | None:
        # A warning is a question of the bank's: no money moved yet.
        stands = raw.status not in ("won", "prevented") and not raw.status.startswith("warning")
        return self._back(raw, ReversalKind.DISPUTE, self._invoice_paid_by(raw.payment_intent), raw.amount, 0, stands)

    def _credit_note(self, raw: stripe.CreditNote) -> Returned | None:
        # What it gives back by a refund is that refund.
        back = raw.post_payment_amount - sum(refund.amount_refunded for refund in raw.refunds)
        stands = raw.status == "issued"
        kind = ReversalKind.CREDIT_NOTE
        return self._back(raw, kind, _id(raw.invoice), max(back, 0), raw.pre_payment_amount, stands)

    def _back(
        self, raw: Any, kind: ReversalKind, invoice_id: str, returned: int, credited: int, stands: bool
    ) -> Returned | None:
        if not invoice_id or not returned + credited:
            return None
        currency = str(raw.currency).upper()
        back, less = _from_stripe(returned, currency), _from_stripe(credited, currency)
        return Returned(raw.id, kind, invoice_id, currency, back, less, stands, str(raw.status or ""))

    def report_usage(self, *, customer_id: str, meter: str, quantity: Decimal, at: datetime, key: str) -> None:
        with _asking():
            try:
                self._client.v1.billing.meter_events.create(
                    {
                        "event_name": meter,
                        "identifier": key,
                        "timestamp": int(at.timestamp()),
                        "payload": {"stripe_customer_id": customer_id, "value": f"{quantity.normalize():f}"},
                    },
                    {"idempotency_key": f"licentia-usage-{key}"},
                )
            except stripe.InvalidRequestError as error:
                # The identifier is taken: a try before this one arrived, though its answer did not.
                if "identifier" not in str(error.user_message or "") or "already" not in str(error.user_message or ""):
                    raise

    def read_event(self, *, body: bytes, signature: str) -> Event:
        if not _SIGNATURE.fullmatch(signature):
            raise SignatureInvalid()
        try:
            raw = stripe.Webhook.construct_event(body, signature, self._webhook_secret, tolerance=TOLERANCE_SECONDS)
            about = raw.to_dict()["data"]["object"]
            kind, object_id = str(about.get("object", "")), str(about.get("id", "") or "")
            invoice_id = object_id if kind == "invoice" and raw.type.startswith("invoice.") else ""
            if kind == "invoice_payment":
                invoice_id = str(about.get("invoice", "") or "")
            occurred_at = datetime.fromtimestamp(raw.created, UTC)
            return Event(str(raw.id), str(raw.type), kind, object_id, invoice_id, occurred_at)
        except (stripe.SignatureVerificationError, UnicodeDecodeError, ValueError, AttributeError, KeyError, TypeError):
            raise SignatureInvalid() from None


@contextmanager
def _asking() -> Iterator[None]:
    """Say in our words what went wrong: later may do, or never will. Stripe's words carry no secret of ours."""
    try:
        yield
    except (stripe.APIConnectionError, stripe.RateLimitError) as error:
        raise GatewayUnavailable(_words(error)) from None
    except stripe.StripeError as error:
        status = error.http_status or 500
        if status >= 500 or status == 409:
            raise GatewayUnavailable(_words(error)) from None
        if status == 404:
            raise NotAtGateway(_words(error)) from None
        raise GatewayRefused(_words(error)) from None


def _words(error: stripe.StripeError) -> str:
    """Return what happened without what Stripe quotes of a wrong key."""
    if isinstance(error, stripe.AuthenticationError):
        return "The gateway does not accept our key. See the setting STRIPE_SECRET_KEY."
    said = error.user_message or "no answer"
    return f"{type(error).__name__}: {said}"[:500]


def _to_stripe(amount: int, currency: str) -> int:
    if currency in _IN_WHOLE:
        if amount % 100:
            raise GatewayRefused(
                f"Stripe takes {currency} in whole units only. Adjust the statement to a whole amount."
            )
        return amount // 100
    return amount * 100 if currency in _IN_HUNDREDTHS else amount


def _from_stripe(amount: int, currency: str) -> int:
    if currency in _IN_WHOLE:
        return amount * 100
    if currency not in _IN_HUNDREDTHS:
        return amount
    return amount // 100 if amount % 100 == 0 else amount  # odd cents cannot be ours: told apart by their size


def _id(raw: Any) -> str:
    """Return the id of what is given whole or by its id."""
    return raw if isinstance(raw, str) else str(raw.id)


def _ours(raw: Any, name: str) -> str:
    """Return what we noted on a thing of Stripe's."""
    noted = raw.metadata.to_dict() if raw.metadata else {}
    return str(noted.get(name, ""))


def _invoice(raw: Any) -> Invoice:
    currency = str(raw.currency).upper()
    ours = _ours(raw, STATEMENT)
    try:
        statement_id = UUID(ours) if ours else None
    except ValueError:
        statement_id = None
    return Invoice(
        id=raw.id,
        statement_id=statement_id,
        state=_STATES[raw.status],
        currency=currency,
        total_minor=_from_stripe(raw.total, currency),
        paid_minor=_from_stripe(raw.amount_paid, currency),
        outside_minor=_from_stripe(getattr(raw, "amount_paid_off_stripe", None) or 0, currency),
        asked_minor=_from_stripe(raw.amount_remaining, currency),
        credited_minor=_from_stripe(raw.pre_payment_credit_notes_amount, currency),
        url=raw.hosted_invoice_url or "",
    )


_STATES = {
    "draft": InvoiceState.WAITING,
    "open": InvoiceState.OPEN,
    "paid": InvoiceState.PAID,
    "void": InvoiceState.VOID,
    "uncollectible": InvoiceState.UNCOLLECTIBLE,
}
