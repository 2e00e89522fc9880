"""billing.cloudevents: the content modes as the reference client makes them, and what the specification refuses."""

import base64
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from billing import cloudevents
from billing.cloudevents import Event, FormatUnknown, NotACloudEvent, event_id

LICENSE = "01890000-0000-7000-8000-000000000001"
AT = datetime(2026, 1, 31, 12, 30, 15, 250_000, tzinfo=UTC)
ATTRIBUTES = {"specversion": "1.0", "id": "7", "source": "/node/7", "type": "calls", "subject": LICENSE}
MEANT = Event(UUID(LICENSE), "/node/7 7", "calls", Decimal("1.5"), AT, {"region": "eu"}, 3)
DATA = {"quantity": "1.5", "dimensions": {"region": "eu"}, "sequence": 3}


def made(**more: Any) -> CloudEvent:
    return CloudEvent({**ATTRIBUTES, "datacontenttype": "application/json", "time": AT, **more}, DATA)


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def structured(change: dict[str, Any] | None = None, without: str = "") -> bytes:
    event = {**ATTRIBUTES, "data": DATA, **(change or {})}
    event.pop(without, None)
    return json.dumps(event).encode()


def one(body: bytes, content_type: str = "application/cloudevents+json", **headers: str) -> Event:
    found = cloudevents.read({"content-type": content_type, **headers}, body)
    assert not found.batch
    (event,) = found.events
    assert isinstance(event, Event)
    return event


def in_headers(change: dict[str, str] | None = None, without: str = "", body: bytes = b'{"quantity": 1}') -> Event:
    headers = {f"ce-{name}": value for name, value in ATTRIBUTES.items()}
    headers |= {"content-type": "application/json", **(change or {})}
    headers.pop(without, None)
    (event,) = cloudevents.read(headers, body).events
    assert isinstance(event, Event)
    return event


@pytest.mark.parametrize("write", [http.to_binary_event, http.to_structured_event])
def test_it_reads_what_the_reference_client_makes(write: Any) -> None:
    message = write(made(traceparent="00-ab-cd-01"))

    found = cloudevents.read(lower(message.headers), message.body)

    assert found == cloudevents.Reading([MEANT], batch=False)


def test_it_reads_a_batch_and_what_is_wrong_sinks_nothing_else() -> None:
    written = json.loads(JSONFormat().write(made()))
    body = json.dumps([written, {**written, "id": ""}, 7, {**written, "id": "8"}]).encode()

    found = cloudevents.read({"content-type": "application/cloudevents-batch+json; charset=UTF-8"}, body)

    assert found.batch
    first, empty, number, last = found.events
    assert first == MEANT
    assert isinstance(empty, NotACloudEvent)
    assert empty.pointer == "/1/id"
    assert isinstance(number, NotACloudEvent)
    assert number.pointer == "/2"
    assert isinstance(last, Event)
    assert last.event_id == "/node/7 8"


def test_it_takes_an_empty_batch() -> None:
    assert cloudevents.read({"content-type": "application/cloudevents-batch+json"}, b"[]").events == []


@pytest.mark.parametrize("body", [b"{}", b"7", b"[", b"", json.dumps([{}] * 1001).encode()])
def test_it_refuses_what_is_no_batch(body: bytes) -> None:
    with pytest.raises(NotACloudEvent):
        cloudevents.read({"content-type": "application/cloudevents-batch+json"}, body)


def test_it_leaves_open_what_is_not_said() -> None:
    event = one(structured({"data": {"quantity": 2}, "time": None}, without="subject"))

    assert event == Event(None, "/node/7 7", "calls", Decimal(2), None, None, None)


@pytest.mark.parametrize("data", [{}, None, {"dimensions": {}}])
def test_an_event_without_a_quantity_is_one(data: Any) -> None:
    assert one(structured({"data": data})).quantity == 1
    assert one(structured(without="data")).quantity == 1
    assert in_headers(body=b"").quantity == 1


def test_it_keeps_a_quantity_to_the_last_digit() -> None:
    body = structured().replace(b'"1.5"', b"12345678901234567.123456")

    assert one(body).quantity == Decimal("12345678901234567.123456")


def test_it_reads_data_in_base64() -> None:
    encoded = base64.b64encode(json.dumps(DATA).encode()).decode()

    assert one(structured({"data_base64": encoded}, without="data")).quantity == Decimal("1.5")


@pytest.mark.parametrize(
    ("change", "without", "pointer"),
    [
        ({}, "id", "/id"),
        ({}, "source", "/source"),
        ({}, "type", "/type"),
        ({}, "specversion", "/specversion"),
        ({"id": ""}, "", "/id"),
        ({"id": 7}, "", "/id"),
        ({"id": None}, "", "/id"),
        ({"id": "a\u0007"}, "", "/id"),
        ({"source": ""}, "", "/source"),
        ({"source": "no uri"}, "", "/source"),
        ({"source": "/50%"}, "", "/source"),
        ({"type": ""}, "", "/type"),
        ({"specversion": "0.3"}, "", "/specversion"),
        ({"specversion": 1.0}, "", "/specversion"),
        ({"subject": ""}, "", "/subject"),
        ({"subject": "atlas"}, "", "/subject"),
        ({"time": "yesterday"}, "", "/time"),
        ({"time": "2026-01-31T12:00:00"}, "", "/time"),
        ({"time": "2026-02-31T12:00:00Z"}, "", "/time"),
        ({"time": "2026-01-31"}, "", "/time"),
        ({"time": 1769862615}, "", "/time"),
        ({"dataschema": "/relative"}, "", "/dataschema"),
        ({"dataschema": ""}, "", "/dataschema"),
        ({"datacontenttype": "text/plain"}, "", "/datacontenttype"),
        ({"datacontenttype": "json"}, "", "/datacontenttype"),
        ({"Upper": "x"}, "", "/Upper"),
        ({"with-dash": "x"}, "", "/with-dash"),
        ({"extension": {"a": 1}}, "", "/extension"),
        ({"extension": 2**31}, "", "/extension"),
        ({"extension": 1.5}, "", "/extension"),
        ({"data_base64": "e30="}, "", "/data_base64"),
        ({"data_base64": "!"}, "data", "/data_base64"),
        ({"data_base64": 7}, "data", "/data_base64"),
        ({"data": 7}, "", "/data"),
        ({"data": {"quantity": True}}, "", "/data/quantity"),
        ({"data": {"quantity": "many"}}, "", "/data/quantity"),
        ({"data": {"quantity": "NaN"}}, "", "/data/quantity"),
        ({"data": {"quantity": "1", "unit": "GiB"}}, "", "/data/unit"),
        ({"data": {"quantity": "1", "dimensions": {"a": 1}}}, "", "/data/dimensions"),
        ({"data": {"quantity": "1", "dimensions": []}}, "", "/data/dimensions"),
        ({"data": {"quantity": "1", "sequence": "1"}}, "", "/data/sequence"),
        ({"data": {"quantity": "1", "sequence": False}}, "", "/data/sequence"),
    ],
)
def test_it_says_what_is_wrong_with_an_event(change: dict[str, Any], without: str, pointer: str) -> None:
    with pytest.raises(NotACloudEvent) as refused:
        one(structured(change, without))

    assert refused.value.pointer == pointer
    assert refused.value.detail.endswith((".", '."'))


@pytest.mark.parametrize("value", ["text", 2**31 - 1, -(2**31), True, "", None])
def test_it_takes_any_extension_of_the_right_form(value: Any) -> None:
    assert one(structured({"myextension": value})).quantity == Decimal("1.5")


def test_it_decodes_headers_once() -> None:
    event = in_headers({"ce-id": "%E2%82%AC%20%2525", "ce-source": '"/node/7"', "ce-time": "2026-01-31T12:00:00Z"})

    assert event.event_id == "/node/7 € %25"
    assert event.occurred_at == datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "without", "body", "pointer"),
    [
        ({"ce-id": "%ff"}, "", b"{}", "/id"),
        ({"ce-id": "\xe9"}, "", b"{}", "/id"),
        ({"ce-datacontenttype": "application/json"}, "", b"{}", "/datacontenttype"),
        ({}, "ce-type", b'{"quantity": 1}', "/type"),
        ({}, "", b"{", "/data"),
        ({"ce-under_score": "x"}, "", b"{}", "/under_score"),
    ],
)
def test_it_says_what_is_wrong_with_headers(change: dict[str, str], without: str, body: bytes, pointer: str) -> None:
    with pytest.raises(NotACloudEvent) as refused:
        in_headers(change, without, body)

    assert refused.value.pointer == pointer


def test_it_says_how_to_send_one_where_there_is_none() -> None:
    with pytest.raises(NotACloudEvent, match="application/cloudevents"):
        cloudevents.read({"content-type": "application/json"}, b"{}")


@pytest.mark.parametrize(
    "content_type",
    ["application/cloudevents+avro", "application/cloudevents", "application/cloudevents+json; charset=latin-1"],
)
def test_it_takes_json_alone(content_type: str) -> None:
    with pytest.raises(FormatUnknown):
        one(structured(), content_type)
    with pytest.raises(FormatUnknown):
        in_headers({"content-type": "application/xml"})


@given(st.lists(st.tuples(st.sampled_from(["a", "/a", "a/b"]), st.text("ab/ ", min_size=1, max_size=6)), min_size=2))
def test_no_two_events_share_an_id(named: list[tuple[str, str]]) -> None:
    assert len({event_id(*each) for each in named}) == len(set(named))


def test_a_long_id_is_told_by_its_digest() -> None:
    long = [event_id("/a", "x" * 300 + end) for end in "ab"]

    assert long[0] != long[1]
    assert all(len(each) <= 200 for each in long)
    assert event_id("/a", "x" * 197) == "/a " + "x" * 197
    assert event_id("/a", "\u200b").startswith("sha256:")


def test_times_are_the_same_instant_in_any_offset() -> None:
    event = one(structured({"time": "2026-01-31t14:30:15.25+02:00"}))

    assert event.occurred_at == AT
    assert event.occurred_at.utcoffset() == timedelta()
