"""Undoing a change, voiding its statement, dunning it and paying it, all at once and again: nobody waits in a ring.

Order of locks: accounts, statement, license. Seen before it was kept to: dunning held a statement and waited for the
license, an undo held the license and waited for the account, a void held the account and waited for the statement.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from billing import changes, dunning, payments, statements
from billing.models import Statement
from licensing.errors import LicensingError
from tests.concurrency.together import together
from tests.factories import BY, make_final_statement, make_license, make_plan, make_revision

pytestmark = pytest.mark.django_db(transaction=True)
SECONDS = 6.0


@pytest.mark.postgres
def test_they_never_wait_in_a_ring() -> None:
    old = make_revision()
    new = make_revision(plan=make_plan(product=old.plan.product))
    license = make_license(plan_revision=old)
    final = make_final_statement(license=license)
    late = final.due_at + timedelta(days=60)
    until = time.monotonic() + SECONDS
    done: dict[str, int] = {}
    clock, ticking = [late], threading.Lock()

    def now() -> Any:
        with ticking:
            clock[0] += timedelta(seconds=1)
            return clock[0]

    def latest() -> Any:
        return Statement.objects.filter(customer=license.customer).exclude(state="void").latest("pk")

    def again(name: str, act: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            while time.monotonic() < until:
                with contextlib.suppress(LicensingError):
                    act()
                    done[name] = done.get(name, 0) + 1

        return run

    def change() -> None:
        with contextlib.suppress(LicensingError):
            changes.change(license=license, plan_revision=new, by=BY, at=now())
        changes.undo(license=license, by=BY, at=now())

    def bill() -> None:
        statements.open_months(customer=license.customer, at=now())

    def void() -> None:
        with transaction.atomic():
            statements.void(statement=latest(), replace=True, by=BY, at=now(), reason="Mistake")
            transaction.set_rollback(True)  # so that there is one to dun again

    def dun() -> None:
        with transaction.atomic():
            dunning._hold(Statement.objects.select_for_update(no_key=True).get(pk=final.pk), now())
            transaction.set_rollback(True)

    def pay() -> None:
        with transaction.atomic():
            payments.record_payment(statement=final, reason="Cash", by=BY, at=now())
            transaction.set_rollback(True)

    acts = {"change": change, "bill": bill, "void": void, "dun": dun, "pay": pay}
    results = together(*(again(name, act) for name, act in acts.items()))
    print(done)

    assert results == [None] * len(acts)
    assert set(done) == set(acts)
