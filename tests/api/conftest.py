"""A client for the API tests, and a small world with two customers in it."""

import io
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
import redis
from django.apps import apps
from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse
from django.test import Client
from django.test.client import ClientHandler

from billing import meters, prices
from billing.models import MeterRevision, PriceRevision
from licensing import activations, anomalies, credentials, feed, seats
from licensing.models import (
    Activation,
    Anomaly,
    AuditEntry,
    Customer,
    DecisionRecord,
    License,
    Member,
    Plan,
    PlanRevision,
    Product,
    Seat,
)
from licensing.states import Severity
from portal.door import HOT, fast_door
from tests.factories import (
    BY,
    make_credential,
    make_customer,
    make_license_and_key,
    make_member,
    make_meter,
    make_plan,
    make_price,
    make_product,
    make_revision,
)

BASE = "/api/v1"
MISSING_ID = "01890000-0000-7000-8000-000000000000"
_addresses = count(1)


class ByTheFastDoor(ClientHandler):
    """Django's test client in front of the whole WSGI application, as a server has it."""

    def __call__(self, environ: dict[str, Any]) -> Any:
        if (environ["REQUEST_METHOD"], environ["PATH_INFO"]) not in HOT:
            return super().__call__(environ)
        began: list[Any] = []
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read())
        body = fast_door(super().__call__)(environ, lambda status, headers: began.extend((status, headers)))
        response = HttpResponse(b"".join(body), status=int(began[0][:3]), headers=dict(began[1]))
        response.wsgi_request = WSGIRequest(environ)  # type: ignore[attr-defined]
        return response


_client = Client(raise_request_exception=False)  # one for all: the API sets no cookie
_by_django = _client.handler


@pytest.fixture(autouse=True)
def _long_begun(_nothing_left_over: None) -> None:
    """Redis has been there for long: nobody is asked to wait until it is known what was lost with it."""
    patience = time.monotonic() + 10
    while settings.REDIS_URL:
        try:
            feed.call("SET", f"{settings.REDIS_KEY_PREFIX}:nonces:epoch", 1)
            return
        except redis.RedisError:  # it answers within milliseconds, but on a machine that is busy with other tests
            if time.monotonic() > patience:
                raise
            feed.forget()
            time.sleep(0.2)


@pytest.fixture(autouse=True)
def _door(request: pytest.FixtureRequest) -> None:
    """Call by the door that was asked for."""
    chosen = request.config.getoption("--door")
    if chosen is None:
        chosen = "fast" if request.config.getoption("--database") == "sqlite" else "django"
    _client.handler = ByTheFastDoor(False) if chosen == "fast" else _by_django


@dataclass(frozen=True, slots=True)
class Api:
    """One caller at the API. What is no bytes is sent as JSON; `json()` of the answer reads it."""

    authorization: str | None
    address: str
    nonce: str | None

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.authorization is not None:
            sent.setdefault("authorization", self.authorization)
        if self.nonce is not None:
            sent.setdefault("x-licentia-nonce", self.nonce)
        content_type = sent.pop("content-type", "application/json")
        data = self.encoded(body)
        return _client.generic(
            method,
            path if path.startswith(("/.well", BASE)) else BASE + path,
            data,
            content_type=content_type if data else "",
            headers=sent,
            REMOTE_ADDR=self.address,
        )

    @staticmethod
    def encoded(body: Any) -> bytes:
        return body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

    def get(self, path: str, **headers: str) -> Any:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.request("POST", path, body, **headers)

    def patch(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.request("PATCH", path, body, **headers)

    def delete(self, path: str, **headers: str) -> Any:
        return self.request("DELETE", path, **headers)


def caller(authorization: str | None, *, nonce: str | None = "") -> Api:
    """Return a caller at an address of their own, so that no other test has used up its patience."""
    number = next(_addresses)
    address = f"10.{secrets.randbelow(256)}.{number // 250 % 256}.{number % 250 + 1}"
    return Api(authorization, address, secrets.token_urlsafe(18) if nonce == "" else nonce)


def by_secret(secret: str) -> Api:
    return caller(f"Bearer {secret}")


def by_key(key: str) -> Api:
    return caller(f"License {key}")


def by_scopes(*scopes: str, customer: Customer | None = None) -> Api:
    """Return a server whose credential holds these scopes, the customer's or the vendor's."""
    return by_secret(make_credential(scopes=list(scopes), customer=customer)[1])


@pytest.fixture
def api(db: None) -> Api:
    """The vendor's server, with every scope."""
    return by_secret(make_credential()[1])


def assert_problem(answer: Any, status: int, code: str | None = None, pointer: str | None = None) -> dict[str, Any]:
    """Hold an answer to RFC 9457 and to our members of it; return it."""
    assert answer.status_code == status, (answer.status_code, answer.content[:600])
    assert answer["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer.content)
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert problem["status"] == status
    assert problem["type"] == f"urn:licentia:problem:{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer["X-Request-Id"]
    for error in problem["errors"]:
        assert set(error) == {"pointer", "code", "detail"}
        assert error["pointer"] == "" or error["pointer"].startswith("/")
    if code is not None:
        assert problem["code"] == code, problem
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]], problem
    return problem


def without_request_id(answer: Any) -> dict[str, Any]:
    """Return a problem without what is different in every answer."""
    return {name: value for name, value in answer.json().items() if name != "request_id"}


def row_counts() -> dict[str, int]:
    """Return how many rows each of our tables holds; decision records come later, from another thread."""
    models = [model for app in ("licensing", "billing", "portal") for model in apps.get_app_config(app).get_models()]
    return {model._meta.label: model._default_manager.count() for model in models if model is not DecisionRecord}


@contextmanager
def nothing_written() -> Iterator[None]:
    before = row_counts()
    yield
    assert row_counts() == before


def secrets_in(answer: Any) -> list[str]:
    """Return what an answer holds that looks like a license key or a credential's secret."""
    return re.findall(
        r"LIC1-(?:[0-9A-Z]{5}-){6}[0-9A-Z]{5}|(?:lsk|whsec)_[A-Za-z0-9+/=_-]{20,}", answer.content.decode()
    )


@dataclass(frozen=True, slots=True)
class World:
    """Two customers, each with a license, its key, and everything that hangs from it."""

    customer: Customer
    other_customer: Customer
    third_customer: Customer
    product: Product
    plan: Plan
    revision: PlanRevision
    draft: PlanRevision
    license: License
    key: str
    other_license: License
    other_key: str
    seat: Seat
    other_seat: Seat
    activation: Activation
    other_activation: Activation
    member: Member
    other_member: Member
    credential_id: Any
    anomaly: Anomaly
    audit_entry: AuditEntry
    meter: MeterRevision
    meter_draft: MeterRevision
    price: PriceRevision
    price_planned: PriceRevision
    price_draft: PriceRevision


@pytest.fixture
def world(db: None) -> World:
    return make_world()


def make_world() -> World:
    now = datetime.now(UTC)
    product = make_product()
    plan = make_plan(product=product)
    revision = make_revision(plan=plan)
    draft = make_revision(plan=make_plan(product=product), publish=False)
    customer, other = make_customer(), make_customer()
    license, key = make_license_and_key(customer=customer, plan_revision=revision, at=now)
    other_license, other_key = make_license_and_key(customer=other, plan_revision=revision, at=now)
    make_member(customer=customer)
    make_member(customer=other)
    meter = make_meter()
    price = make_price(plan=plan, components=[{"kind": "flat", "amount": "5.00"}])
    anomalies.flag(
        rule="tests",
        severity=Severity.LOW,
        object_kind="license",
        object_id=str(license.pk),
        license_id=license.pk,
        at=now,
        evidence={"seen": 1},
    )
    return World(
        customer=customer,
        other_customer=other,
        third_customer=make_customer(),
        product=product,
        plan=plan,
        revision=revision,
        draft=draft,
        license=license,
        key=key,
        other_license=other_license,
        other_key=other_key,
        seat=seats.assign(license=license, holder="ada@example.com", by=BY, at=now).seat,
        other_seat=seats.assign(license=other_license, holder="bob@example.com", by=BY, at=now).seat,
        activation=activations.activate(license=license, fingerprint="a" * 32, by=BY, at=now).activation,
        other_activation=activations.activate(license=other_license, fingerprint="b" * 32, by=BY, at=now).activation,
        member=make_member(customer=customer, role="viewer"),
        other_member=make_member(customer=other, role="viewer"),
        credential_id=make_credential(customer=customer)[0].pk,
        anomaly=Anomaly.objects.get(license=license),
        audit_entry=AuditEntry.objects.filter(license_id=license.pk).latest("id"),
        meter=meter,
        meter_draft=meters.draft(meter=meter.meter, by=BY, at=now),
        price=price,
        price_planned=prices.publish(
            revision=prices.draft(price=price.price, by=BY, at=now),
            effective_at=now + timedelta(days=30),
            by=BY,
            at=now,
        ),
        price_draft=prices.draft(price=price.price, by=BY, at=now),
    )


def own_server(world: World) -> Api:
    return by_secret(make_credential(customer=world.customer)[1])


def other_server(world: World) -> Api:
    return by_secret(make_credential(customer=world.other_customer)[1])


ALL_SCOPES = list(credentials.SCOPES)
