"""POST /usage, /usage/batch and /reservations. What is counted and why not stands in tests/billing."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing import metering
from billing.models import UsageEvent
from licensing import decisions
from licensing.catalog import Grant
from licensing.models import DecisionRecord, License
from tests.api.conftest import MISSING_ID, Api, assert_problem, by_key, by_scopes, caller, nothing_written
from tests.factories import make_customer, make_license_and_key, make_meter
from tests.signing import Signer

pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _one_meter(db: None) -> None:
    metering.forget()
    make_meter(code="calls", dimensions=["region"])


@pytest.fixture
def metered() -> tuple[License, str]:
    return make_metered(10)


def make_metered(amount: int, **more: Any) -> tuple[License, str]:
    grant = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(amount), overage="refuse")
    return make_license_and_key(scheme="usage", grants=[grant], at=NOW - timedelta(days=1), **more)


def event(license: License | None = None, /, **more: Any) -> dict[str, Any]:
    about = {"license": str(license.pk)} if license else {}
    return {"event_id": "e1", "meter": "calls", "quantity": "3"} | about | more


def test_it_counts_an_event_and_says_what_is_left(metered: tuple[License, str], api: Api) -> None:
    license, _ = metered

    answer = api.post("/usage", event(license, quantity="2.50", dimensions={"region": "eu"}, sequence=1))

    assert answer.status_code == 201, answer.content
    said = answer.json()
    assert set(said) == {
        "status",
        "license",
        "event_id",
        "meter",
        "quantity",
        "occurred_at",
        "received_at",
        "remaining",
    }
    assert (said["status"], said["quantity"], said["remaining"]) == ("counted", "2.5", "7.5")
    assert said["occurred_at"] == said["received_at"]
    assert said["occurred_at"].endswith("Z")
    assert "RateLimit" in answer.headers


def test_it_answers_a_repetition_with_what_was_counted(metered: tuple[License, str], api: Api) -> None:
    first = api.post("/usage", event(metered[0])).json()

    answer = api.post("/usage", event(metered[0], quantity="3.0"))

    assert answer.status_code == 200
    del first["remaining"]
    assert answer.json() == first | {"status": "duplicate"}


def test_it_refuses_another_event_of_the_same_id(metered: tuple[License, str], api: Api) -> None:
    api.post("/usage", event(metered[0]))

    assert_problem(api.post("/usage", event(metered[0], quantity="4")), 409, "event_conflict")


def test_it_refuses_what_does_not_fit_and_keeps_why(metered: tuple[License, str], api: Api) -> None:
    assert_problem(api.post("/usage", event(metered[0], quantity="11")), 409, "allowance_exhausted")

    decisions.flush()
    assert DecisionRecord.objects.get().code == "allowance_exhausted"


def test_a_license_key_and_a_machine_count_on_their_own_license(metered: tuple[License, str]) -> None:
    license, key = metered
    signer = Signer()
    asked = Api.encoded({"fingerprint": "machine-0123456789", "public_key": signer.jwk})
    made = by_key(key).post("/activations", asked, **signer.headers("POST", "/api/v1/activations", asked))
    signer.keyid = made.json()["id"]

    by_license = by_key(key).post("/usage", event())
    data = Api.encoded(event(event_id="e2"))
    by_machine = caller(None, nonce=None).post("/usage", data, **signer.headers("POST", "/api/v1/usage", data))

    assert (by_license.status_code, by_machine.status_code) == (201, 201)
    sources = set(UsageEvent.objects.filter(license_id=license.pk).values_list("source", flat=True))
    assert sources == {f"license:{license.pk}", f"activation:{signer.keyid}"}
    assert "Signature" in by_license.headers
    assert "Signature" in by_machine.headers


def test_nobody_counts_on_another_license(metered: tuple[License, str]) -> None:
    license, _ = metered
    _, other_key = make_metered(10)
    stranger = by_scopes("usage", customer=make_customer())

    for who in (by_key(other_key), stranger):
        with nothing_written():
            assert_problem(who.post("/usage", event(license)), 404, "not_found")
    with nothing_written():
        said = stranger.post("/usage/batch", {"license": str(license.pk), "events": [event()]}).json()
    assert said["results"][0]["code"] == "not_found"


def test_it_needs_the_scope(metered: tuple[License, str]) -> None:
    assert_problem(by_scopes("validate").post("/usage", event(metered[0])), 403, "forbidden")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"event_id": ""}, "malformed", "/event_id"),
    ({"event_id": "x" * 201}, "malformed", "/event_id"),
    ({"event_id": "a\x00b"}, "malformed", "/event_id"),
    ({"event_id": 7}, "malformed", "/event_id"),
    ({"quantity": "many"}, "malformed", "/quantity"),
    ({"quantity": "-1"}, "bad_quantity", "/quantity"),
    ({"quantity": "NaN"}, "bad_quantity", "/quantity"),
    ({"quantity": "1.0000001"}, "bad_quantity", "/quantity"),
    ({"quantity": True}, "malformed", "/quantity"),
    ({"occurred_at": "yesterday"}, "malformed", "/occurred_at"),
    ({"occurred_at": "2026-03-01T12:00:00"}, "malformed", "/occurred_at"),
    ({"occurred_at": "1999-03-01T12:00:00Z"}, "too_old", "/occurred_at"),
    ({"occurred_at": "2999-03-01T12:00:00Z"}, "too_far_ahead", "/occurred_at"),
    ({"meter": "other"}, "unknown_meter", "/meter"),
    ({"meter": "nul\x00"}, "unknown_meter", "/meter"),
    ({"dimensions": {"color": "red"}}, "unknown_dimension", "/dimensions"),
    ({"dimensions": {"region": 1}}, "malformed", "/dimensions"),
    ({"sequence": -1}, "malformed", "/sequence"),
    ({"sequence": 2**63}, "malformed", "/sequence"),
    ({"extra": 1}, "unknown_field", "/extra"),
    ({"license": "x"}, "malformed", "/license"),
    ({"license": None}, "malformed", "/license"),
]


@pytest.mark.parametrize(("what", "code", "pointer"), BAD)
def test_it_says_what_is_wrong_with_an_event(
    what: dict[str, Any], code: str, pointer: str, metered: tuple[License, str], api: Api
) -> None:
    with nothing_written():
        problem = assert_problem(api.post("/usage", event(metered[0]) | what), 400, code)

    assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_it_does_not_find_a_license_that_is_not_there(api: Api) -> None:
    assert_problem(api.post("/usage", event(license=MISSING_ID)), 404, "not_found")


def test_a_bad_event_does_not_sink_a_batch(metered: tuple[License, str], api: Api) -> None:
    license, _ = metered
    events: list[Any] = [
        event(),
        event(),
        event(quantity="4"),
        event(event_id="e2", quantity="8"),
        {"event_id": "e3", "meter": 5},
        {"event_id": 5},
        17,
        event(event_id="e4", extra=1),
        event(event_id="e5", license=MISSING_ID),
        event(event_id="e6", quantity="7"),
    ]

    answer = api.post("/usage/batch", {"license": str(license.pk), "events": events})

    assert answer.status_code == 200, answer.content
    said = answer.json()
    assert (said["counted"], said["duplicates"], said["rejected"]) == (2, 1, 7)
    assert [(one["event_id"], one["status"], one.get("code")) for one in said["results"]] == [
        ("e1", "counted", None),
        ("e1", "duplicate", None),
        ("e1", "rejected", "event_conflict"),
        ("e2", "rejected", "allowance_exhausted"),
        ("e3", "rejected", "malformed"),
        (None, "rejected", "malformed"),
        (None, "rejected", "malformed"),
        ("e4", "rejected", "unknown_field"),
        ("e5", "rejected", "not_found"),
        ("e6", "counted", None),
    ]


def test_a_server_counts_for_many_licenses_in_one_batch(api: Api) -> None:
    licenses = [make_metered(10)[0] for _ in range(3)]

    said = api.post("/usage/batch", {"events": [event(one) for one in licenses]}).json()

    assert said["counted"] == 3


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_one_to_a_thousand_events(count: int, metered: tuple[License, str], api: Api) -> None:
    events = [event(event_id=str(number)) for number in range(count)]

    problem = api.post("/usage/batch", {"license": str(metered[0].pk), "events": events})

    assert_problem(problem, 400, "malformed", "/events")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"events": 5}', b'{"events": [{]}', b'{"events": [], "more": 1}'])
def test_it_refuses_what_is_no_batch(body: bytes, api: Api) -> None:
    answer = api.post("/usage/batch", body)

    assert json.loads(assert_problem(answer, 400) and answer.content)["code"] in ("malformed", "unknown_field")


def test_it_tells_what_is_left_beside_the_rights(metered: tuple[License, str], api: Api) -> None:
    license, _ = metered
    api.post("/usage", event(license))

    said = api.get(f"/entitlements?license={license.pk}").json()

    assert said["entitlements"]["calls"] == {
        "meter": "calls",
        "allowance": "10",
        "overage": "refuse",
        "used": "3",
        "remaining": "7",
    }


def test_validation_says_that_nothing_is_left(metered: tuple[License, str], api: Api) -> None:
    license, key = metered
    asked = {"entitlements": ["calls"]}
    assert by_key(key).post("/validate", asked).json()["code"] == "valid"

    api.post("/usage", event(license, quantity="10"))

    assert by_key(key).post("/validate", asked).json()["code"] == "allowance_exhausted"
    assert by_key(key).post("/validate", {}).json()["code"] == "valid"


def test_a_reservation_is_held_committed_and_counted(metered: tuple[License, str]) -> None:
    _, key = metered
    held = by_key(key).post("/reservations", {"meter": "calls", "quantity": "6", "ttl_seconds": 60})
    assert held.status_code == 201, held.content
    assert_problem(by_key(key).post("/usage", event(quantity="5")), 409, "allowance_exhausted")

    answer = by_key(key).post(f"/reservations/{held.json()['id']}/commit", {"quantity": "4", "event_id": "job-1"})

    assert answer.status_code == 200, answer.content
    assert (answer.json()["status"], answer.json()["event_id"], answer.json()["remaining"]) == ("counted", "job-1", "6")
    again = by_key(key).post(f"/reservations/{held.json()['id']}/commit", {"quantity": "4", "event_id": "job-1"})
    assert again.json()["status"] == "duplicate"


def test_a_reservation_is_released(metered: tuple[License, str], api: Api) -> None:
    license, _ = metered
    held = api.post("/reservations", {"license": str(license.pk), "meter": "calls", "quantity": "6"}).json()

    released = api.post(f"/reservations/{held['id']}/release")

    assert (released.status_code, released.json()["state"]) == (200, "released")
    assert api.post(f"/reservations/{held['id']}/release").status_code == 200
    assert_problem(api.post(f"/reservations/{held['id']}/commit", {}), 409, "reservation_ended")


def test_more_than_is_left_is_not_reserved(metered: tuple[License, str], api: Api) -> None:
    asked = {"license": str(metered[0].pk), "meter": "calls", "quantity": "11"}

    assert_problem(api.post("/reservations", asked), 409, "allowance_exhausted")


@pytest.mark.parametrize("when", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59Z"])
def test_it_answers_for_the_ends_of_time(metered: tuple[License, str], api: Api, when: str) -> None:
    license, _ = metered

    assert api.post("/usage", event(license, occurred_at=when)).status_code == 400
    batch = api.post("/usage/batch", {"events": [event(license, occurred_at=when), event(license)]}).json()
    assert (batch["counted"], batch["rejected"]) == (1, 1)
