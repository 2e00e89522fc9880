"""How customers are billed."""

from decimal import Decimal
from typing import Any

import pytest

from billing import accounts
from billing.models import BillingAccount
from licensing.errors import Invalid
from licensing.models import AuditEntry
from tests.factories import AT, BY, make_customer

pytestmark = pytest.mark.django_db


def test_it_opens_an_account_and_changes_it_later() -> None:
    customer = make_customer()

    accounts.describe(customer=customer, currency="EUR", tax_rate=Decimal("19"), address="Main Street 1", by=BY, at=AT)
    accounts.describe(customer=customer, currency="EUR", tax_rate=Decimal("7.7"), address="Main Street 1", by=BY, at=AT)

    account = BillingAccount.objects.get()
    opened, changed = AuditEntry.objects.filter(action__startswith="billing_account").order_by("id")
    assert (account.customer, account.currency, account.tax_rate) == (customer, "EUR", Decimal("7.7000"))
    assert (opened.action, opened.customer_id) == ("billing_account.opened", customer.pk)
    assert opened.after == {"currency": "EUR", "tax_rate": "19", "tax_id": "", "address": "changed"}
    assert (changed.action, changed.after) == ("billing_account.changed", {"tax_rate": "7.7"})


def test_it_records_no_change_that_is_none() -> None:
    customer = make_customer()
    for _ in range(2):
        accounts.describe(customer=customer, currency="USD", by=BY, at=AT)

    assert AuditEntry.objects.filter(action__startswith="billing_account").count() == 1


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"currency": "eur"}, "/currency"),
        ({"currency": "EURO"}, "/currency"),
        ({"currency": "EUR\n"}, "/currency"),
        ({"tax_rate": Decimal("-1")}, "/tax_rate"),
        ({"tax_rate": Decimal("100.01")}, "/tax_rate"),
        ({"tax_rate": Decimal("1.00001")}, "/tax_rate"),
        ({"tax_rate": Decimal("NaN")}, "/tax_rate"),
    ],
)
def test_it_refuses_what_no_statement_could_use(values: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as refused:
        accounts.describe(customer=make_customer(), **{"currency": "EUR", "by": BY, "at": AT} | values)

    assert refused.value.pointer == pointer
    assert not BillingAccount.objects.exists()
