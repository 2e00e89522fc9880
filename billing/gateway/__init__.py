"""The payment gateway: what we ask of one. How Stripe does it is `at_stripe`.

It knows nothing of our rows. Every call may be made again after a crash or a lost answer, at any time. No call belongs
inside a transaction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from django.conf import settings

from billing.states import InvoiceState, ReversalKind
from licensing.errors import LicensingError, Refused

TOLERANCE_SECONDS = 300  # how old a signed message may be
TAX = "tax"  # the key of the line that is the tax


class GatewayUnavailable(LicensingError):
    """The payment gateway does not answer, or asks to be left alone for a while. Try again later."""

    code = "gateway_unavailable"


class GatewayRefused(LicensingError):
    """The payment gateway refused what was asked; asked again it will refuse again, until somebody mends the cause."""

    code = "gateway_refused"


class NotAtGateway(GatewayRefused):
    """The payment gateway has no such thing."""

    code = "not_at_gateway"


class SignatureInvalid(Refused):
    """This message was not signed by the payment gateway within the last minutes."""

    code = "signature_invalid"


@dataclass(frozen=True, slots=True)
class Item:
    """A line to be charged. `key` is unique on its invoice and always the same; the amount is in our minor units."""

    key: str
    description: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Order:
    """An invoice to be made: the same statement must always be ordered in the same words."""

    statement_id: UUID
    customer_id: str
    currency: str
    description: str
    total_minor: int
    days_until_due: int
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice as it stands at the gateway. Amounts in our minor units; `outside_minor` of what is paid was paid past
    the gateway, as it was told; `asked_minor` is what it asks for still, `credited_minor` what it asks for no more."""

    id: str
    statement_id: UUID | None
    state: InvoiceState
    currency: str
    total_minor: int
    paid_minor: int
    outside_minor: int
    asked_minor: int
    credited_minor: int
    url: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A refund, credit note or dispute as it stands at the gateway, and the invoice it is about. In our minor units:
    `returned_minor` went back, `credited_minor` is asked for no more, if it `stands`."""

    id: str
    kind: ReversalKind
    invoice_id: str
    currency: str
    returned_minor: int
    credited_minor: int
    stands: bool
    status: str


@dataclass(frozen=True, slots=True)
class Event:
    """A signed message. `invoice_id` is empty when it is about something else: `about` says what."""

    id: str
    kind: str
    about: str
    object_id: str
    invoice_id: str
    occurred_at: datetime


class Gateway(Protocol):
    """What we ask of a payment gateway. Each call raises `GatewayUnavailable` or `GatewayRefused`."""

    def ensure_customer(self, *, account_id: UUID, name: str, email: str) -> str:
        """Return the id of the one customer of this account, made if need be."""

    def ensure_invoice(self, order: Order) -> Invoice:
        """Return the one invoice of this statement, made, filled and opened if need be."""

    def find_invoice(self, *, customer_id: str, statement_id: UUID) -> Invoice | None:
        """Return the invoice of this statement, if there is one."""

    def invoice(self, invoice_id: str) -> Invoice:
        """Return the invoice as it stands now."""

    def invoices_since(self, since: datetime) -> Iterator[Invoice]:
        """Yield the invoices that carry an id of ours and were made since then."""

    def settle_outside(self, invoice_id: str) -> Invoice:
        """Have it take the invoice for paid elsewhere."""

    def settle_part(self, invoice: Invoice, *, payment_id: UUID, amount_minor: int, at: datetime) -> Invoice:
        """Have it ask for so much less, which came in past it; the same payment counts once."""

    def withdraw(self, invoice_id: str) -> Invoice:
        """Have it take no more money for the invoice."""

    def returned(self, *, about: str, object_id: str) -> list[Returned]:
        """Return what went back as it stands now: by refund, charge, dispute or credit note. Nothing of another kind,
        or that is about no invoice."""

    def returned_since(self, since: datetime) -> list[Returned]:
        """Return what went back since then."""

    def report_usage(self, *, customer_id: str, meter: str, quantity: Decimal, at: datetime, key: str) -> None:
        """Mirror a total of usage; the same key counts once within a day."""

    def read_event(self, *, body: bytes, signature: str) -> Event:
        """Return what a signed message says. Raises `SignatureInvalid`."""


def configured() -> Gateway | None:
    """Return the gateway of this installation, or None when it has none."""
    if not (settings.STRIPE_SECRET_KEY and settings.STRIPE_WEBHOOK_SECRET):
        return None
    # Stripe's library takes a third of a second to load, which commands and most processes never need.
    from billing.gateway.at_stripe import StripeGateway

    return StripeGateway(
        key=settings.STRIPE_SECRET_KEY, webhook_secret=settings.STRIPE_WEBHOOK_SECRET, base=settings.STRIPE_API_BASE
    )
