"""Idempotency-Key: a request that is sent twice is done once."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from licensing import crypto
from licensing.models import IdempotencyRecord, License
from tests.api.conftest import (
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    by_secret,
    nothing_written,
    own_server,
)
from tests.api.routes import ROUTES, Route

ONCE = [route for route in ROUTES if route.once]


def test_it_is_heeded_by_every_post_that_changes_something() -> None:
    by_event_id = {"POST /usage", "POST /usage/batch", "POST /events"}
    changing = {str(route) for route in ROUTES if route.method == "POST"} - {"POST /validate"} - by_event_id

    assert {str(route) for route in ONCE} == changing


@pytest.mark.parametrize("route", [route for route in ONCE if route.vendor < 300], ids=str)
def test_it_answers_a_repeated_request_and_does_nothing(route: Route, world: World, api: Api) -> None:
    path, body = route.path(world), route.payload(world)

    first = api.post(path, body, idempotency_key="key-1")
    with nothing_written():
        again = [api.post(path, body, idempotency_key="key-1") for _ in range(2)]

    assert first.status_code == route.vendor
    assert "Idempotent-Replayed" not in first
    for answer in again:
        assert answer.status_code == first.status_code
        assert answer.content == first.content
        assert answer["Content-Type"] == first["Content-Type"] == "application/json"
        assert answer["Idempotent-Replayed"] == "true"
        assert answer["RateLimit"]


@pytest.mark.parametrize("route", [route for route in ONCE if route.vendor < 300 and route.body], ids=str)
def test_it_refuses_the_key_for_another_request(route: Route, world: World, api: Api) -> None:
    path, body = route.path(world), route.payload(world)
    api.post(path, body, idempotency_key="key-1")

    with nothing_written():
        other_body = api.post(path, json.dumps(body).encode() + b" ", idempotency_key="key-1")
        other_path = api.post("/products", body, idempotency_key="key-1")
        other_query = api.post(f"{path}?x=1", body, idempotency_key="key-1")

    for answer in (other_body, other_query) if route.template == "/products" else (other_body, other_path, other_query):
        assert_problem(answer, 422, "idempotency_key_reused")


@pytest.mark.parametrize("route", ONCE, ids=str)
def test_it_keeps_no_refusal(route: Route, world: World, api: Api) -> None:
    path = route.path(world)

    with nothing_written():
        refused = api.post(path, {"surprise": 1}, idempotency_key="key-1")
    done = api.post(path, route.payload(world), idempotency_key="key-1")

    assert_problem(refused, 400)
    assert done.status_code == route.vendor
    assert "Idempotent-Replayed" not in done


def test_it_does_after_a_refusal_what_has_become_possible(world: World, api: Api) -> None:
    body = {"license": str(world.license.pk), "holder": "eve@example.com"}
    api.post(f"/licenses/{world.license.pk}/change-limits", {"seat_limit": 1})
    assert_problem(api.post("/seats", body, idempotency_key="key-1"), 409, "no_seat_available")
    api.delete(f"/seats/{world.seat.pk}")

    answer = api.post("/seats", body, idempotency_key="key-1")

    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer


def test_it_keeps_each_callers_keys_apart(world: World, api: Api) -> None:
    body = {"license": str(world.license.pk), "holder": "eve@example.com"}

    first = api.post("/seats", body, idempotency_key="key-1")
    other = own_server(world).post("/seats", body, idempotency_key="key-1")
    machine = by_key(world.key).post("/activations", {"fingerprint": "f" * 32}, idempotency_key="key-1")
    other_machine = by_key(world.other_key).post("/activations", {"fingerprint": "f" * 32}, idempotency_key="key-1")

    assert (first.status_code, other.status_code) == (201, 200)
    assert "Idempotent-Replayed" not in other
    assert machine.json()["id"] != other_machine.json()["id"]


def test_it_asks_anew_who_calls_before_it_answers_again(world: World, api: Api) -> None:
    made = api.post("/credentials", {"name": "CI", "scopes": ["catalog:write", "credentials:write"]}).json()
    server = by_secret(made["secret"])
    body = {"code": "x", "name": "X"}
    assert server.post("/products", body, idempotency_key="key-1").status_code == 201
    api.delete(f"/credentials/{made['id']}")

    assert_problem(server.post("/products", body, idempotency_key="key-1"), 401, "unauthenticated")


def test_it_forgets_after_a_day(api: Api) -> None:
    body = {"code": "x", "name": "X"}
    api.post("/products", body, idempotency_key="key-1")
    record = IdempotencyRecord.objects.get()
    assert record.expires_at - record.created_at == timedelta(hours=24)
    IdempotencyRecord.objects.update(expires_at=record.created_at)

    answer = api.post("/products", body, idempotency_key="key-1")

    assert_problem(answer, 409, "code_taken")


def test_it_does_without_a_key_what_it_is_told_each_time(world: World, api: Api) -> None:
    body = {"customer": str(world.customer.pk), "plan": str(world.plan.pk)}

    ids = {api.post("/licenses", body).json()["id"] for _ in range(2)}

    assert len(ids) == 2


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/licenses", lambda world: {"customer": str(world.customer.pk), "plan": str(world.plan.pk)}, "key"),
        ("/licenses/{license}/rotate-key", lambda world: {"reason": "Leaked"}, "key"),
        ("/credentials", lambda world: {"name": "CI", "scopes": ["validate"]}, "secret"),
    ],
)
def test_it_seals_what_it_keeps(path: str, body: Any, name: str, world: World, api: Api) -> None:
    path = path.format(license=world.license.pk)
    first = api.post(path, body(world), idempotency_key="my-own-key-for-this")
    secret = first.json()[name]

    again = api.post(path, body(world), idempotency_key="my-own-key-for-this")

    assert again.json()[name] == secret
    for text in (secret, secret.replace("-", ""), secret.removeprefix("lsk_"), "my-own-key-for-this"):
        assert text not in whole_database()


def whole_database() -> str:
    """Return every value of every row, as the database holds it."""
    found: list[str] = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')
            for row in cursor.fetchall():
                found.extend(
                    bytes(value).decode("latin-1") if isinstance(value, bytes | memoryview) else str(value)
                    for value in row
                )
    return "\n".join(found)


def test_it_opens_no_answer_that_was_moved_to_another_request(api: Api) -> None:
    for number in (1, 2):
        api.post("/products", {"code": f"p-{number}", "name": "P"}, idempotency_key=f"key-{number}")
    first, second = IdempotencyRecord.objects.order_by("id")
    IdempotencyRecord.objects.filter(pk=first.pk).update(sealed_answer=second.sealed_answer)

    answer = api.post("/products", {"code": "p-1", "name": "P"}, idempotency_key="key-1")

    assert_problem(answer, 500, "internal_error")
    assert "p-2" not in answer.content.decode()


def test_it_does_nothing_again_when_the_kept_answer_cannot_be_opened(api: Api, settings: Any) -> None:
    body = {"code": "x", "name": "X"}
    api.post("/products", body, idempotency_key="key-1")
    kept = [key for key in crypto.ring().keys if key.purpose != "seal"]
    settings.KEYRING = crypto.KeyRing([*kept, crypto.make_key("seal", state="primary")]).dump()
    crypto.forget()

    try:
        with nothing_written():
            answer = api.post("/products", body, idempotency_key="key-1")
    finally:
        settings.KEYRING = ""
        crypto.forget()

    assert_problem(answer, 500, "internal_error")


def test_it_takes_any_printable_key(api: Api) -> None:
    for number, key in enumerate(("x", "x" * 255, "a b", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")):
        answer = api.post("/products", {"code": f"p-{number}", "name": "P"}, idempotency_key=key)
        assert answer.status_code == 201, key


def test_it_tells_keys_apart_by_case(api: Api) -> None:
    answers = [api.post("/products", {"code": code, "name": "P"}, idempotency_key=code) for code in ("k", "K")]

    assert [answer.status_code for answer in answers] == [201, 201]


def test_it_needs_no_key_where_doing_it_twice_is_the_same(world: World) -> None:
    server = by_scopes("seats:write")

    answers = [server.delete(f"/seats/{world.seat.pk}", idempotency_key="key-1") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 204]
    assert License.objects.get(pk=world.license.pk).seats_used == 0
