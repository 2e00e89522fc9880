"""/credit-grants: prepaid credit, granted and voided by the vendor, seen by whose license it is."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing import metering
from billing.metering import Sent
from licensing.models import AuditEntry
from licensing.models.allowances import Counter, CreditGrant
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_key, nothing_written, other_server, own_server
from tests.billing.test_metering import make_metered, snapshot
from tests.factories import make_meter

PATH = "/credit-grants"


@pytest.fixture
def meter(db: None) -> str:
    metering.forget()
    return make_meter(code="calls").meter.code


def body(world: World, **more: Any) -> dict[str, Any]:
    return {"license": str(world.license.pk), "meter": "calls", "amount": "5", **more}


def test_it_grants_credit(api: Api, world: World, meter: str) -> None:
    later = (datetime.now(UTC) + timedelta(days=30)).isoformat()

    answer = api.post(PATH, body(world, priority=3, expires_at=later, reason="Sorry"))

    assert answer.status_code == 201, answer.content
    shown = answer.json()
    row = CreditGrant.objects.get()
    assert (shown["id"], shown["license"], shown["meter"]) == (str(row.pk), str(world.license.pk), "calls")
    assert (Decimal(shown["amount"]), Decimal(shown["drawn"]), shown["priority"]) == (5, 0, 3)
    assert (row.priority, row.reason, row.expires_at) == (3, "Sorry", datetime.fromisoformat(later))
    assert AuditEntry.objects.get(action="credit.granted").reason == "Sorry"
    assert api.get(f"{PATH}/{row.pk}").json() == shown


def test_it_lists_by_license_and_meter_and_only_what_is_the_callers(api: Api, world: World, meter: str) -> None:
    make_meter(code="other")
    made = [
        api.post(PATH, {**body(world), **what}).json()["id"]
        for what in ({}, {"meter": "other"}, {"license": str(world.other_license.pk)})
    ]

    def ids(who: Api, query: str = "") -> list[str]:
        return sorted(row["id"] for row in who.get(PATH + query).json()["results"])

    assert ids(api) == sorted(made)
    assert ids(api, f"?license={world.license.pk}") == sorted(made[:2])
    assert ids(api, f"?license={world.license.pk}&meter=other") == made[1:2]
    assert ids(own_server(world)) == ids(by_key(world.key)) == sorted(made[:2])
    assert ids(other_server(world)) == ids(by_key(world.other_key)) == made[2:]
    assert_problem(api.get(f"{PATH}?license=x"), 400)


def test_a_grant_that_is_voided_is_drawn_on_no_more_and_keeps_what_was_drawn(
    api: Api, world: World, meter: str
) -> None:
    now = datetime.now(UTC)
    license = make_metered("calls", 10, at=now - timedelta(minutes=1))
    made = api.post(PATH, {**body(world), "license": str(license.pk)}).json()
    metering.consume(license=snapshot(license), sent=Sent("e1", "calls", Decimal(12)), source="t", at=datetime.now(UTC))

    answer = api.post(f"{PATH}/{made['id']}/void", {"reason": "Paid back"})
    with nothing_written():
        again = api.post(f"{PATH}/{made['id']}/void", {"reason": "Paid back"})

    assert answer.status_code == again.status_code == 200
    assert again.json() == answer.json()
    assert Decimal(answer.json()["drawn"]) == 2
    assert datetime.fromisoformat(answer.json()["expires_at"]) <= datetime.now(UTC)
    assert AuditEntry.objects.get(action="credit.voided").reason == "Paid back"
    counter = Counter.objects.get(license=license)
    assert (counter.ceiling, counter.exhausted) == (12, True)
    sent = {"license": str(license.pk), "event_id": "e2", "meter": "calls"}
    assert_problem(api.post("/usage", sent), 409, "allowance_exhausted")


@pytest.mark.parametrize(
    ("what", "status", "pointer"),
    [
        ({"amount": "0"}, 400, "/amount"),
        ({"amount": "-1"}, 400, "/amount"),
        ({"amount": "1000000000000000"}, 400, "/amount"),
        ({"meter": "other"}, 400, "/meter"),
        ({"priority": 32_768}, 400, "/priority"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 400, "/expires_at"),
        ({"license": MISSING_ID}, 404, None),
    ],
)
def test_it_says_what_is_wrong(what: Any, status: int, pointer: str | None, api: Api, world: World, meter: str) -> None:
    with nothing_written():
        answer = api.post(PATH, body(world) | what)

    assert_problem(answer, status, None, pointer)


def test_only_the_vendor_grants_and_voids(api: Api, world: World, meter: str) -> None:
    made = api.post(PATH, body(world)).json()["id"]
    callers, other = (own_server(world), by_key(world.key)), other_server(world)

    with nothing_written():
        for who in callers:
            assert_problem(who.post(PATH, body(world)), 403, "forbidden")
            assert_problem(who.post(f"{PATH}/{made}/void", {"reason": "x"}), 403, "forbidden")
        assert_problem(api.post(f"{PATH}/{made}/void", {}), 400, pointer="/reason")
        assert_problem(api.post(f"{PATH}/{MISSING_ID}/void", {"reason": "x"}), 404, "not_found")
        assert_problem(other.get(f"{PATH}/{made}"), 404, "not_found")
        assert_problem(api.delete(f"{PATH}/{made}"), 405)
