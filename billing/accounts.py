"""How a customer is billed: currency, tax, address. One account a customer, made when it is first described."""

import re
from datetime import datetime
from decimal import Decimal

from django.db import transaction

from billing.models import BillingAccount
from licensing import audit
from licensing.audit import Actor
from licensing.errors import Invalid
from licensing.models import Customer

_CURRENCY = re.compile(r"[A-Z]{3}")


def describe(
    *, customer: Customer, currency: str, by: Actor, at: datetime, tax_rate: Decimal = Decimal(), tax_id: str = "",
    address: str = "",
) -> BillingAccount:  # fmt: skip
    """Say how a customer is billed from the next statement on; what is final stays as it is.

    `tax_rate` is in percent, with four places. The audit entry says that the address changed, not to what.

    Raises:
        Invalid: a currency that is no ISO 4217 code in form, or a rate that is no percentage.
    """
    check_currency(currency)
    if not tax_rate.is_finite() or not 0 <= tax_rate <= 100 or tax_rate != round(tax_rate, 4):
        raise Invalid("A tax rate is a percentage from 0 to 100 with at most four places.", pointer="/tax_rate")
    with transaction.atomic():
        Customer.objects.select_for_update(no_key=True).get(pk=customer.pk)
        row = BillingAccount.objects.filter(customer=customer).first()
        made = row is None
        if row is None:
            row = BillingAccount(created_at=at, customer=customer)
        old, new = audit.differences(
            {} if made else {"currency": row.currency, "tax_rate": row.tax_rate, "tax_id": row.tax_id},
            {"currency": currency, "tax_rate": tax_rate, "tax_id": tax_id},
        )
        if row.address != address:
            new["address"] = "changed"
        if new:
            row.currency, row.tax_rate, row.tax_id, row.address = currency, tax_rate, tax_id, address
            row.save()
            verb = "opened" if made else "changed"
            audit.record(action=f"billing_account.{verb}", by=by, on=row, at=at, before={} if made else old, after=new)
    return row


def check_currency(currency: str) -> None:
    """Raise `Invalid` for what does not look like an ISO 4217 code."""
    if not _CURRENCY.fullmatch(currency):
        raise Invalid("A currency is its ISO 4217 code of three capital letters, like EUR.", pointer="/currency")
