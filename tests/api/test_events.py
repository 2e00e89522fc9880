"""POST /events: CloudEvents 1.0, sent by the reference client, over the test client and over a real server."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from billing.models import UsageEvent
from tests.api.conftest import Api, World, assert_problem, by_key, by_scopes, other_server, own_server
from tests.api.running import running
from tests.factories import make_meter


@pytest.fixture
def meter(db: None) -> str:
    return make_meter(code="calls", dimensions=["region"]).meter.code


def made(license: Any, id: str = "1", data: Any = None, **more: Any) -> CloudEvent:
    attributes = {"id": id, "source": "/node/7", "type": "calls", "subject": str(license), "time": datetime.now(UTC)}
    return CloudEvent(
        {**attributes, "datacontenttype": "application/json", **more},
        data or {"quantity": "2.5", "dimensions": {"region": "eu"}},
    )


def send(api: Api, message: http.HTTPMessage) -> Any:
    headers = {name.replace("-", "_"): value for name, value in message.headers.items()}
    return api.request("POST", "/events", message.body, **headers)


def batch(*events: Any) -> http.HTTPMessage:
    written = [json.loads(JSONFormat().write(event)) if isinstance(event, CloudEvent) else event for event in events]
    return http.HTTPMessage({"content-type": "application/cloudevents-batch+json"}, json.dumps(written).encode())


@pytest.mark.parametrize("write", [http.to_binary_event, http.to_structured_event])
def test_it_counts_what_the_reference_client_sends(api: Api, world: World, meter: str, write: Any) -> None:
    message = write(made(world.license.pk))

    first, again = send(api, message), send(api, message)

    assert (first.status_code, first.json()["status"]) == (201, "counted"), first.content
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    event = UsageEvent.objects.get()
    assert (event.license_id, event.event_id, event.quantity) == (world.license.pk, "/node/7 1", Decimal("2.5"))
    assert event.dimensions == {"region": "eu"}


def test_it_counts_a_batch_and_one_bad_event_sinks_nothing_else(api: Api, world: World, meter: str) -> None:
    license = world.license.pk
    event, other = made(license), made(license, "2", type="nothing")

    answer = send(api, batch(event, {"id": "x"}, event, other, made(license, "3"))).json()

    assert (answer["counted"], answer["duplicates"], answer["rejected"]) == (2, 1, 2)
    assert [each["status"] for each in answer["results"]] == ["counted", "rejected", "duplicate", "rejected", "counted"]
    assert [each["event_id"] for each in answer["results"]] == [
        "/node/7 1",
        None,
        "/node/7 1",
        "/node/7 2",
        "/node/7 3",
    ]
    assert answer["results"][3]["code"] == "unknown_meter"
    assert UsageEvent.objects.count() == 2
    assert send(api, batch()).json() == {"counted": 0, "duplicates": 0, "rejected": 0, "results": []}


def test_the_same_id_of_another_source_is_another_event(api: Api, world: World, meter: str) -> None:
    for source in ("/node/7", "/node/8"):
        assert send(api, http.to_binary_event(made(world.license.pk, source=source))).status_code == 201

    assert UsageEvent.objects.count() == 2


def test_the_same_event_with_other_content_is_a_conflict(api: Api, world: World, meter: str) -> None:
    send(api, http.to_binary_event(made(world.license.pk)))

    answer = send(api, http.to_binary_event(made(world.license.pk, data={"quantity": 3})))

    assert_problem(answer, 409, "event_conflict")


def test_it_is_the_same_event_by_whatever_mode_and_as_usage(api: Api, world: World, meter: str) -> None:
    event = made(world.license.pk)
    send(api, http.to_binary_event(event))
    same = {
        "event_id": "/node/7 1",
        "meter": "calls",
        "quantity": "2.5",
        "occurred_at": event.get_time().isoformat(),
        "dimensions": {"region": "eu"},
        "license": str(world.license.pk),
    }

    assert send(api, http.to_structured_event(event)).json()["status"] == "duplicate"
    assert send(api, batch(event)).json()["duplicates"] == 1
    assert api.post("/usage", same).json()["status"] == "duplicate"


def test_the_holder_of_a_key_counts_for_its_own_license(world: World, meter: str) -> None:
    holder = by_key(world.key)

    assert send(holder, http.to_binary_event(made(world.license.pk))).status_code == 201
    own = {"specversion": "1.0", "id": "2", "source": "/a", "type": "calls"}
    message = http.HTTPMessage({"content-type": "application/cloudevents+json"}, json.dumps(own).encode())
    assert send(holder, message).status_code == 201
    assert_problem(send(holder, http.to_binary_event(made(world.other_license.pk, "3"))), 404, "not_found")
    assert set(UsageEvent.objects.values_list("license_id", flat=True)) == {world.license.pk}


def test_it_is_for_the_customer_alone_and_by_scope(world: World, meter: str) -> None:
    message = http.to_binary_event(made(world.license.pk))

    assert_problem(send(other_server(world), message), 404, "not_found")
    assert_problem(send(by_scopes("usage:read"), message), 403, "forbidden")
    assert send(own_server(world), message).status_code == 201


def test_it_says_what_is_wrong_with_an_event(api: Api, world: World, meter: str) -> None:
    message = http.to_structured_event(made(world.license.pk))
    wrong = json.loads(message.body)

    for name, value in (("specversion", "0.3"), ("source", ""), ("subject", "x"), ("time", "now")):
        body = json.dumps({**wrong, name: value}).encode()
        assert_problem(send(api, http.HTTPMessage(message.headers, body)), 400, "malformed", f"/{name}")
    assert_problem(send(api, http.HTTPMessage(message.headers, b"{")), 400, "malformed")
    assert_problem(api.post("/events", {"id": "1"}), 400, "malformed")
    avro = http.HTTPMessage({"content-type": "application/cloudevents+avro"}, b"Obj")
    assert_problem(send(api, avro), 415, "unsupported_media_type")
    assert_problem(api.get("/events"), 405)
    assert UsageEvent.objects.count() == 0


SEED = """
import json
from tests.factories import make_credential, make_license, make_meter
from datetime import UTC, datetime
make_meter(code="calls", dimensions=["region"])
print(json.dumps({"license": str(make_license(at=datetime.now(UTC)).pk), "secret": make_credential()[1]}))
"""


def test_the_reference_client_sends_to_a_real_server() -> None:
    with running(seed=SEED) as server:
        license = server.seeds["license"]
        bearer = {"authorization": f"Bearer {server.seeds['secret']}"}
        first, second, third = (made(license, id) for id in ("1", "ü 2", "3"))
        messages = [http.to_binary_event(first), http.to_structured_event(second), batch(third, first)]
        with httpx.Client(base_url=f"{server.url}/api/v1", headers=bearer) as client:
            answers = [
                client.post("/events", headers=message.headers, content=message.body) for message in messages * 2
            ]
            day = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00Z")
            told = client.get("/usage", params={"license": license, "from": day, "meter": "calls"}).json()

    assert [answer.status_code for answer in answers] == [201, 201, 200, 200, 200, 200], answers[0].text
    assert [(answer.json()["counted"], answer.json()["duplicates"]) for answer in answers[2::3]] == [(1, 1), (0, 2)]
    assert [each["quantity"] for each in told["results"]] == ["7.5"]
