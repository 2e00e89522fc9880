"""A change of scheme in the middle of everything: no request fails, and each event is of the term its time says."""

import time
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from billing import changes, metering, statements
from billing.metering import Sent
from billing.models import UsageEvent
from licensing import lifecycle, pictures, schemes, seats, validation
from licensing.catalog import Grant
from licensing.decision import Scope
from licensing.models import License, Seat, Term
from licensing.models.allowances import Counter
from licensing.pictures import Question
from tests.concurrency.test_seats import wrong_with
from tests.concurrency.together import kinds, together
from tests.factories import AT, BY, make_license, make_meter, make_plan, make_price, make_revision

pytestmark = pytest.mark.django_db(transaction=True)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _one_meter(transactional_db: None) -> None:
    metering.forget()
    make_meter(code="calls")


def offer(product: Any = None, *, amount: int, **terms: Any) -> Any:
    plan = make_plan(**({"product": product} if product else {}))
    make_price(plan=plan, components=[{"kind": "seats", "amount": "10.00"}, CALL])
    calls = Grant("calls", "allowance", meter="calls", amount=Decimal(amount))
    return make_revision(plan=plan, scheme="both", grants=[calls], **terms)


CALL = {"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.50"}


class Clock:
    """A time that passes as fast as the real one, from a given instant on."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self) -> datetime:
        return AT + DAY + timedelta(seconds=time.monotonic() - self.began)


def picture(license: License) -> Any:
    found = pictures.read(Question.of("id", str(license.pk), Scope()))
    assert found is not None
    return found.snapshot


def test_it_switches_in_the_middle_of_two_hundred_requests() -> None:
    old = offer(amount=60, seat_limit=10)
    new = offer(old.plan.product, amount=30, seat_limit=5)
    license = make_license(plan_revision=old)
    shown, clock = picture(license), Clock()
    switched: list[datetime] = []

    def requests(number: int) -> list[Any]:
        answers: list[Any] = []
        for turn in range(5):
            try:
                match (number + turn) % 3:
                    case 0:
                        answers.append(validation.verdict_for_staff(license_id=license.pk, at=clock()).verdict)
                    case 1:
                        sent = Sent(f"{number}-{turn}", "calls", Decimal(1))
                        answers.append(metering.consume(license=shown, sent=sent, source="t", at=clock()))
                    case _:
                        holder = f"{number}-{turn}@example.com"
                        answers.append(seats.assign(license=license, holder=holder, by=BY, at=clock()))
            except Exception as error:
                answers.append(error)
        return answers

    def switch() -> list[Any]:
        time.sleep(0.15)
        change = changes.change(license=license, plan_revision=new, by=BY, at=clock())
        switched.append(change.starts_at)
        return []

    results = together(*(lambda number=number: requests(number) for number in range(40)), switch)

    answers = [answer for result in results for answer in result]
    assert len(answers) == 200
    assert set(kinds(answers)) <= {"Verdict", "Receipt", "Assigned", "AllowanceExhausted", "NoSeatAvailable"}
    assert all(answer.valid for answer in answers if type(answer).__name__ == "Verdict")
    row = License.objects.get(pk=license.pk)
    assert (row.plan_revision, wrong_with(license.pk)) == (new, "")
    assert Seat.objects.filter(license=license, released_at=None).count() <= 10
    fits(row, switched[0])


def fits(license: License, switched_at: datetime) -> None:
    """Hold events, counters, terms and money to each other."""
    events = list(UsageEvent.objects.filter(license_id=license.pk).values_list("occurred_at", "quantity"))
    windows = {counter.starts_at: counter for counter in Counter.objects.filter(license=license)}
    for counter in windows.values():
        assert counter.used == metering.counted(license.pk, "calls", counter.starts_at, counter.ends_at)
        assert counter.used <= counter.ceiling
    assert sum(counter.used for counter in windows.values()) == sum(quantity for _, quantity in events)
    terms = list(Term.objects.in_force().filter(license=license).order_by("starts_at"))
    assert terms[-1].starts_at == switched_at
    assert not [c for c in windows.values() if c.starts_at < switched_at < c.ends_at]
    month = statements.month_of(AT)
    lines = statements.rated(license=license, starts_at=month.starts_at, ends_at=month.ends_at, at=month.ends_at)
    for line in lines:
        if line.kind == "usage":
            of_term = [quantity for at, quantity in events if (at >= switched_at) == (line.term_id == terms[-1].pk)]
            assert line.quantity == 0 or line.quantity <= sum(of_term)


def test_it_undoes_in_the_middle_of_everything_too() -> None:
    old = offer(amount=60, seat_limit=10)
    new = offer(old.plan.product, amount=500, seat_limit=50)
    license = make_license(plan_revision=old)
    shown, clock = picture(license), Clock()
    changes.change(license=license, plan_revision=new, by=BY, at=clock())
    for number in range(5):
        metering.consume(license=shown, sent=Sent(f"a-{number}", "calls", Decimal(1)), source="t", at=clock())

    def consume(number: int) -> Any:
        sent = Sent(f"b-{number}", "calls", Decimal(1))
        return metering.consume(license=shown, sent=sent, source="t", at=clock())

    results = together(
        *(lambda number=number: consume(number) for number in range(20)),
        *(
            lambda number=number: seats.assign(license=license, holder=f"{number}@example.com", by=BY, at=clock())
            for number in range(12)
        ),
        lambda: changes.undo(license=license, by=BY, at=clock()),
    )

    assert set(kinds(results)) <= {"Receipt", "Assigned", "SchemeChange", "AllowanceExhausted", "NoSeatAvailable"}
    assert (License.objects.get(pk=license.pk).plan_revision, wrong_with(license.pk)) == (old, "")
    counted = list(Counter.objects.filter(license=license).values_list("used", flat=True))
    assert sum(counted) == 25 == UsageEvent.objects.filter(license_id=license.pk).count()


def test_it_leaves_events_in_the_wrong_window_without_the_guard() -> None:
    """The twin: a term opened without its counters leaves one window across two terms."""
    old = offer(amount=60, seat_limit=10)
    license = make_license(plan_revision=old)
    shown, clock = picture(license), Clock()
    metering.consume(license=shown, sent=Sent("a", "calls", Decimal(1)), source="t", at=clock())
    with transaction.atomic():
        at = clock()
        schemes.open_term(license=seats.lock(license.pk), plan_revision=old, starts_at=at, reason="twin", at=at)
    metering.consume(license=shown, sent=Sent("b", "calls", Decimal(1)), source="t", at=clock())

    assert Counter.objects.filter(license=license, starts_at__lt=at, ends_at__gt=at, used=2).count() == 1


def test_two_changes_at_once_leave_one_after_the_other() -> None:
    """Seen before `seats.lock` stopped joining: who had waited found no license."""
    old = offer(amount=60, seat_limit=10)
    others = [offer(old.plan.product, amount=60, seat_limit=10 + number) for number in range(6)]
    license, clock = make_license(plan_revision=old), Clock()
    held = [seats.assign(license=license, holder=f"{n}@example.com", by=BY, at=clock()).seat for n in range(6)]

    results = together(
        *(
            lambda other=other, number=number: lifecycle.change_plan(
                license=license, plan_revision=other, by=BY, at=clock() + timedelta(seconds=number)
            )
            for number, other in enumerate(others)
        ),
        *(lambda seat=seat: seats.release(seat=seat, by=BY, at=clock()) for seat in held),
    )

    assert set(kinds(results)) <= {"License", "Seat", "TermStartsAlready"}
    assert kinds(results)["Seat"] == 6
    last = Term.objects.in_force().filter(license=license).first()
    assert License.objects.get(pk=license.pk).plan_revision_id == last.plan_revision_id
