"""POST /usage/corrections: what was counted, corrected by an event of its own with its author and a reason."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing import metering
from billing.models import UsageEvent
from licensing.models import AuditEntry
from licensing.models.allowances import Counter
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_key, nothing_written, own_server
from tests.factories import make_meter

PATH = "/usage/corrections"


@pytest.fixture
def meter(db: None) -> str:
    metering.forget()
    return make_meter(code="calls", dimensions=["region"]).meter.code


def body(world: World, **more: Any) -> dict[str, Any]:
    return {
        "license": str(world.license.pk),
        "meter": "calls",
        "quantity": "-2.5",
        "occurred_at": datetime.now(UTC).isoformat(),
        "reason": "Counted twice",
        **more,
    }


def test_it_counts_a_correction_with_who_and_why(api: Api, world: World, meter: str) -> None:
    answer = api.post(PATH, body(world, event_id="c1", dimensions={"region": "eu"}))

    assert answer.status_code == 201, answer.content
    assert (answer.json()["status"], answer.json()["quantity"], answer.json()["event_id"]) == ("counted", "-2.5", "c1")
    event = UsageEvent.objects.get()
    assert (event.kind, event.reason, event.quantity) == ("correction", "Counted twice", Decimal("-2.5"))
    assert event.dimensions == {"region": "eu"}
    assert event.source.startswith("credential:")
    entry = AuditEntry.objects.get(action="usage.corrected")
    assert (entry.reason, entry.license_id) == ("Counted twice", world.license.pk)
    assert Counter.objects.get(license=world.license).used == Decimal("-2.5")


def test_the_same_again_is_a_duplicate_and_other_content_a_conflict(api: Api, world: World, meter: str) -> None:
    told = body(world, event_id="c1")
    api.post(PATH, told)

    with nothing_written():
        again = api.post(PATH, told)
    other = api.post(PATH, {**told, "quantity": "3"})

    assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    assert_problem(other, 409, "event_conflict")
    assert UsageEvent.objects.count() == AuditEntry.objects.filter(action="usage.corrected").count() == 1


@pytest.mark.parametrize(
    ("what", "status", "code", "pointer"),
    [
        ({"quantity": "0.0000001"}, 400, "invalid", "/quantity"),
        ({"quantity": "1e3"}, 400, "invalid", "/quantity"),
        ({"quantity": "1000000000000000"}, 400, "bad_quantity", "/quantity"),
        ({"reason": " "}, 400, None, "/reason"),
        ({"meter": "other"}, 400, "unknown_meter", "/meter"),
        ({"dimensions": {"color": "red"}}, 400, "unknown_dimension", "/dimensions"),
        ({"occurred_at": "2099-01-01T00:00:00Z"}, 400, "too_far_ahead", "/occurred_at"),
        ({"occurred_at": "2020-01-01T00:00:00Z"}, 409, "not_started", None),
        ({"event_id": "a\nb"}, 400, None, "/event_id"),
        ({"license": MISSING_ID}, 404, "not_found", None),
    ],
)
def test_it_says_what_is_wrong(
    what: Any, status: int, code: str | None, pointer: str | None, api: Api, world: World, meter: str
) -> None:
    with nothing_written():
        answer = api.post(PATH, body(world) | what)

    assert_problem(answer, status, code if code != "invalid" else None, pointer)


def test_it_is_the_vendors_alone(world: World, meter: str) -> None:
    callers = own_server(world), by_key(world.key)

    with nothing_written():
        for who in callers:
            assert_problem(who.post(PATH, body(world)), 403, "forbidden")
