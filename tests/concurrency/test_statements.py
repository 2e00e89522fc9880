"""Statements at the same time: numbers without gaps, each period final once, nothing billed twice.

`test_it_gives_a_number_twice_without_the_lock` is the twin: it proves that the race these tests drive is a real one.
"""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from billing import jobs, statements
from billing.models import BillingAccount, Statement
from licensing import sweeps
from licensing.catalog import Grant
from licensing.models import License
from tests.concurrency.together import kinds, together
from tests.factories import BY, make_license, make_meter, make_plan, make_price, make_revision, make_usage

pytestmark = pytest.mark.django_db(transaction=True)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 4, 10, tzinfo=UTC)


def make_billed() -> tuple[License, Any]:
    """Return a license with usage in January, February and March, whose three months wait to be closed."""
    meter, plan = make_meter(), make_plan()
    code = meter.meter.code
    make_price(plan=plan, components=[{"kind": "usage", "meter": code, "model": "per_unit", "amount": "0.10"}])
    none = Grant("calls", "allowance", meter=code, amount=Decimal(0), overage="charge")
    license = make_license(plan_revision=make_revision(plan=plan, scheme="usage", grants=[none]), at=FIRST)
    BillingAccount.objects.create(customer=license.customer, created_at=FIRST)
    for month in (1, 2, 3):
        use(license, meter, datetime(2026, month, 15, tzinfo=UTC))
    statements.open_months(customer=license.customer, at=LATER)
    return license, meter


def use(license: License, meter: Any, at: datetime) -> None:
    make_usage(license=license, revision=meter, at=at, quantity=10)


def close(statement: Statement) -> Any:
    return lambda: statements.close(statement=statement, by=BY, at=LATER)


def test_it_numbers_without_gaps_and_closes_each_once() -> None:
    license, _ = make_billed()
    drafts = list(Statement.objects.filter(state="draft"))

    results = together(*(close(draft) for draft in drafts * 3))

    assert kinds(results) == {"Statement": 3, "StatementNotDraft": 6}
    assert sorted(Statement.objects.values_list("number", flat=True)) == [1, 2, 3]
    assert BillingAccount.objects.get(customer=license.customer).last_number == 3


def test_it_gives_a_number_twice_without_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that read the last number before either writes it give the same one: the database refuses the second."""
    make_billed()
    drafts = list(Statement.objects.filter(state="draft"))[:2]
    both = threading.Barrier(2)

    def unlocked(customer_id: Any, at: Any) -> BillingAccount:
        account = BillingAccount.objects.select_related("customer").get(customer_id=customer_id)
        both.wait(20)
        return account

    monkeypatch.setattr(statements, "lock_account", unlocked)
    if transaction.get_connection().vendor == "sqlite":  # whose writers come one by one, whatever we lock
        monkeypatch.setattr(both, "wait", lambda patience: None)

    results = together(*(close(draft) for draft in drafts))

    one_by_one = transaction.get_connection().vendor == "sqlite"
    assert kinds(results) == ({"Statement": 2} if one_by_one else {"Statement": 1, "IntegrityError": 1})


def test_it_loses_nothing_while_events_come_and_jobs_refresh_and_close() -> None:
    license, meter = make_billed()

    def late() -> None:
        for day in range(1, 6):
            use(license, meter, datetime(2026, 3, day, tzinfo=UTC))

    acts = [lambda job=job: sweeps.run(job, at=LATER) for job in jobs.JOBS * 2]
    results = together(late, late, *acts)
    for _ in range(2):
        sweeps.run(jobs.STATEMENT_REFRESH, at=LATER + timedelta(days=1))

    assert not [result for result in results if isinstance(result, Exception)]
    assert list(Statement.objects.filter(state="final").order_by("number").values_list("number", flat=True)) == [
        1,
        2,
        3,
    ]
    owed = sum(Statement.objects.values_list("subtotal_minor", flat=True))
    assert owed == (3 + 10) * 100  # each of ten cents, once
