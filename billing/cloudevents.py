"""CloudEvents 1.0 as usage events: a pure reader of one request, in all three content modes of the HTTP binding.

`subject` is the license's id, `type` the meter's code, `time` when it occurred, and `data` is `{quantity?, dimensions?,
sequence?}`: one, where there is no quantity. Other attributes are checked for their form and otherwise ignored. It
knows no license and counts nothing.

Source: CloudEvents 1.0.2, its JSON event format and its HTTP protocol binding.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec

from licensing.errors import Invalid, LicensingError

LONGEST_EVENT_ID = 200
LARGEST_BATCH = 1000
_decoder = msgspec.json.Decoder(float_hook=Decimal)
_ATTRIBUTE = re.compile(r"[a-z0-9]+")
_URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+", re.ASCII)
# What a CloudEvents string never holds: control characters, surrogates, code points that are no characters.
_NO_STRING = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)")
_DATA = ("quantity", "dimensions", "sequence")


class NotACloudEvent(Invalid):
    """This is no CloudEvent 1.0 that speaks of usage."""

    code = "malformed"


class FormatUnknown(LicensingError):
    """CloudEvents are taken as application/cloudevents+json, as application/cloudevents-batch+json, or in headers."""

    code = "unsupported_media_type"


@dataclass(frozen=True, slots=True)
class Event:
    """One usage event, as POST /usage takes it. `license_id` and `occurred_at` are None where the sender said none."""

    license_id: UUID | None
    event_id: str
    meter: str
    quantity: Decimal
    occurred_at: datetime | None
    dimensions: dict[str, str] | None
    sequence: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a request holds, in its order; of a batch what is wrong stands in its place, and sinks nothing else."""

    events: list[Event | NotACloudEvent]
    batch: bool


def read(headers: Mapping[str, str], body: bytes) -> Reading:
    """Return the usage events of a request; `headers` by their names in lower case.

    Raises:
        NotACloudEvent: the request as a whole is malformed or, where it is no batch, its one event.
        FormatUnknown: it is in another format than JSON.
    """
    media_type, charset = _media_type(headers.get("content-type", ""))
    if not media_type.startswith("application/cloudevents"):
        return Reading([_binary(headers, body)], batch=False)
    if media_type not in ("application/cloudevents+json", "application/cloudevents-batch+json"):
        raise FormatUnknown()
    if charset not in ("", "utf-8", "us-ascii"):
        raise FormatUnknown("CloudEvents in JSON are in UTF-8.")
    found = _json(body, "")
    if media_type == "application/cloudevents+json":
        return Reading([_structured(found, "")], batch=False)
    if not isinstance(found, list):
        raise NotACloudEvent("A batch is an array of events.")
    if len(found) > LARGEST_BATCH:
        raise NotACloudEvent(f"A batch has at most {LARGEST_BATCH} events.")
    events: list[Event | NotACloudEvent] = []
    for position, item in enumerate(found):
        try:
            events.append(_structured(item, f"/{position}"))
        except NotACloudEvent as error:
            events.append(error)
    return Reading(events, batch=True)


def event_id(source: str, id: str) -> str:
    """Return the id an event is counted under: `source id`, since it is the two that name an event. A source has no
    space in it, so that no two events share one; what is longer than 200 characters, or cannot be printed, is its
    SHA-256."""
    whole = f"{source} {id}"
    fits = len(whole) <= LONGEST_EVENT_ID and whole.isprintable()
    return whole if fits else f"sha256:{sha256(whole.encode()).hexdigest()}"


# --- content modes ----------------------------------------------------------------------------------


def _binary(headers: Mapping[str, str], body: bytes) -> Event:
    """Return the event whose attributes are headers and whose data is the body."""
    attributes: dict[str, Any] = {}
    for header in headers:
        if header.startswith("ce-"):
            name = header[3:]
            if name == "datacontenttype":
                raise NotACloudEvent("In binary mode Content-Type says what the data is.", pointer="/datacontenttype")
            attributes[name] = _header_value(headers[header], f"/{name}")
    if not attributes:
        raise NotACloudEvent(
            "Send a CloudEvent: its attributes in ce- headers, or Content-Type application/cloudevents+json."
        )
    if content_type := headers.get("content-type"):
        attributes["datacontenttype"] = content_type
    if not body:
        return _event(attributes, None, "")
    media_type, _ = _media_type(content_type or "application/json")
    if not _is_json(media_type):
        raise FormatUnknown("The data of a usage event is JSON: Content-Type application/json.")
    return _event(attributes, _json(body, "/data"), "")


def _header_value(value: str, pointer: str) -> str:
    """Return an attribute from its header: quotes taken off, percent-encoded UTF-8 decoded, once each."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        # A server hands headers over in Latin-1; what is not ASCII in them had to be percent-encoded.
        return unquote_to_bytes(value.encode("ascii")).decode("utf-8")
    except UnicodeError:
        raise NotACloudEvent("Percent-encode in UTF-8 what is not ASCII in a header.", pointer=pointer) from None


def _structured(found: Any, at: str) -> Event:
    """Return the event that is one JSON object, attributes and data."""
    if not isinstance(found, dict):
        raise NotACloudEvent("An event is a JSON object.", pointer=at)
    attributes = {name: value for name, value in found.items() if name not in ("data", "data_base64")}
    attributes = {name: value for name, value in attributes.items() if value is not None}  # null: not there
    data = found.get("data")
    encoded = found.get("data_base64")
    if encoded is not None:
        if "data" in found:
            raise NotACloudEvent("Data is in data or in data_base64, not in both.", pointer=f"{at}/data_base64")
        try:
            data = _json(base64.b64decode(encoded, validate=True), f"{at}/data_base64")
        except (TypeError, ValueError, binascii.Error):
            raise NotACloudEvent("data_base64 is Base64.", pointer=f"{at}/data_base64") from None
    content_type = attributes.get("datacontenttype")
    if isinstance(content_type, str) and _MEDIA_TYPE.match(content_type) and not _is_json(_media_type(content_type)[0]):
        raise NotACloudEvent("The data of a usage event is JSON: application/json.", pointer=f"{at}/datacontenttype")
    return _event(attributes, data, at)


# --- one event --------------------------------------------------------------------------------------


def _event(attributes: dict[str, Any], data: Any, at: str) -> Event:
    for name, value in attributes.items():
        if not _ATTRIBUTE.fullmatch(name):
            raise NotACloudEvent(
                "The name of an attribute is lower-case letters and digits.", pointer=f"{at}/{_escaped(name)}"
            )
        _check_value(name, value, f"{at}/{name}")
    version = _text(attributes, "specversion", at)
    if version != "1.0":
        raise NotACloudEvent("specversion is 1.0.", pointer=f"{at}/specversion")
    id, meter = _text(attributes, "id", at), _text(attributes, "type", at)
    source = _text(attributes, "source", at)
    if not _URI_REFERENCE.fullmatch(source):
        raise NotACloudEvent("source is a URI or a path, as /billing/node-7.", pointer=f"{at}/source")
    if "datacontenttype" in attributes and not _MEDIA_TYPE.match(_text(attributes, "datacontenttype", at)):
        raise NotACloudEvent("datacontenttype is a media type.", pointer=f"{at}/datacontenttype")
    if "dataschema" in attributes:
        schema = _text(attributes, "dataschema", at)
        if not _URI_REFERENCE.fullmatch(schema) or not _SCHEME.match(schema):
            raise NotACloudEvent("dataschema is an absolute URI.", pointer=f"{at}/dataschema")
    quantity, dimensions, sequence = _usage(data, f"{at}/data")
    return Event(
        license_id=_license(attributes, at),
        event_id=event_id(source, id),
        meter=meter,
        quantity=quantity,
        occurred_at=_time(attributes, at),
        dimensions=dimensions,
        sequence=sequence,
    )


def _check_value(name: str, value: Any, pointer: str) -> None:
    match value:
        case bool():
            return
        case int() if -(2**31) <= value < 2**31:
            return
        case str():
            if _NO_STRING.search(value):
                raise NotACloudEvent("No control characters in an attribute.", pointer=pointer)
            return
    raise NotACloudEvent(f"{name} is a text, a whole number of 32 bits, true or false.", pointer=pointer)


def _text(attributes: dict[str, Any], name: str, at: str) -> str:
    value = attributes.get(name)
    if not isinstance(value, str) or not value:
        raise NotACloudEvent(f"{name} is a text that is not empty.", pointer=f"{at}/{name}")
    return value


def _license(attributes: dict[str, Any], at: str) -> UUID | None:
    if "subject" not in attributes:
        return None
    try:
        return UUID(_text(attributes, "subject", at))
    except ValueError:
        raise NotACloudEvent("subject is the id of the license.", pointer=f"{at}/subject") from None


def _time(attributes: dict[str, Any], at: str) -> datetime | None:
    if "time" not in attributes:
        return None
    text = _text(attributes, "time", at)
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise NotACloudEvent("time is RFC 3339, as 2026-01-31T12:00:00Z.", pointer=f"{at}/time") from None


def _usage(data: Any, at: str) -> tuple[Decimal, dict[str, str] | None, int | None]:
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise NotACloudEvent('data is an object, as {"quantity": "1"}.', pointer=at)
    for name in data:
        if name not in _DATA:
            raise NotACloudEvent(f"data has {', '.join(_DATA)}, nothing else.", pointer=f"{at}/{_escaped(name)}")
    quantity = data.get("quantity", 1)
    if isinstance(quantity, bool) or not isinstance(quantity, str | int | Decimal):
        raise NotACloudEvent('quantity is a decimal, as "1.5".', pointer=f"{at}/quantity")
    try:
        number = Decimal(quantity)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise NotACloudEvent('quantity is a decimal, as "1.5".', pointer=f"{at}/quantity")
    dimensions = data.get("dimensions")
    if dimensions is not None and not (
        isinstance(dimensions, dict) and all(isinstance(value, str) for value in dimensions.values())
    ):
        raise NotACloudEvent("dimensions is an object of texts.", pointer=f"{at}/dimensions")
    sequence = data.get("sequence")
    if isinstance(sequence, bool) or not isinstance(sequence, int | None):
        raise NotACloudEvent("sequence is a whole number.", pointer=f"{at}/sequence")
    return number, dimensions, sequence


# --- words ------------------------------------------------------------------------------------------


def _media_type(value: str) -> tuple[str, str]:
    """Return a media type and its charset, in lower case."""
    media_type, _, parameters = value.partition(";")
    charset = re.search(r"(?:^|;)\s*charset\s*=\s*\"?([\w-]+)", parameters, re.IGNORECASE)
    return media_type.strip().lower(), charset[1].lower() if charset else ""


def _is_json(media_type: str) -> bool:
    subtype = media_type.partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


def _json(body: bytes, pointer: str) -> Any:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidOperation) as error:
        raise NotACloudEvent(f"This is no JSON: {error}", pointer=pointer) from None


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
