"""T8: usage is never counted twice, whatever is sent again."""

import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing import metering
from billing.metering import Sent
from billing.models import UsageEvent, UsageId
from licensing.models.allowances import Counter
from tests.billing.test_metering import make_metered, snapshot
from tests.concurrency.together import together
from tests.factories import AT, make_meter

pytestmark = pytest.mark.django_db(transaction=True)


def test_t08_what_is_sent_again_is_counted_once() -> None:
    """Four hundred events, a fifth of them sent again, out of order, singly and in batches, by eight clients at once;
    some of what comes again comes after the month, and after the time in which new events are accepted."""
    metering.forget()
    make_meter(code="calls")
    license = make_metered("calls", 10_000)
    picture = snapshot(license)
    chance = random.Random(8)
    events = [
        Sent(f"e{number}", "calls", Decimal(chance.randint(1, 9)), AT + timedelta(seconds=chance.randint(0, 200_000)))
        for number in range(400)
    ]
    sent = [*events, *chance.sample(events, 80)]
    chance.shuffle(sent)
    at = AT + timedelta(days=3)

    def client(mine: list[Sent]) -> list[metering.Receipt]:
        half = len(mine) // 2
        receipts = metering.consume_batch(sent=[(picture, one) for one in mine[:half]], source="t", at=at)
        return receipts + [metering.consume(license=picture, sent=one, source="t", at=at) for one in mine[half:]]

    results = together(*(lambda mine=sent[start::8]: client(mine) for start in range(8)))
    later = metering.consume_batch(sent=[(picture, one) for one in events], source="t", at=at + timedelta(days=60))

    statuses = [receipt.status for result in results for receipt in result]
    assert (statuses.count("counted"), statuses.count("duplicate")) == (400, 80)
    assert {receipt.status for receipt in later} == {"duplicate"}
    total = sum((one.quantity for one in events), Decimal())
    assert sum((Decimal(one.used) for one in Counter.objects.filter(license=license)), Decimal()) == total
    assert _events(license) == (400, total)
    assert UsageId.objects.filter(license_id=license.pk).count() == 400


def test_t08_an_id_is_not_counted_again_under_another_time() -> None:
    """The memory of ids is not partitioned by time: a unique index that holds the time would let this through."""
    metering.forget()
    make_meter(code="calls")
    license = make_metered("calls", 10_000)
    picture = snapshot(license)
    at = AT + timedelta(days=33)

    def send(when: Any) -> Any:
        return metering.consume(license=picture, sent=Sent("e1", "calls", Decimal(1), when), source="t", at=at)

    send(AT)
    for when in (at, AT + timedelta(seconds=1), None):
        with pytest.raises(metering.EventConflict):
            send(when)

    assert _events(license) == (1, 1)


def _events(license: Any) -> tuple[int, Decimal]:
    quantities = UsageEvent.objects.filter(license_id=license.pk).values_list("quantity", flat=True)
    return len(quantities), sum(quantities, Decimal())
