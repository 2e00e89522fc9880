"""What no body, header or query may do: end in a 500, leave something half-written, or tell who has which key."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.utils import timezone

from licensing import keyformat, keys
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    _client,
    assert_problem,
    by_key,
    by_secret,
    caller,
    nothing_written,
    other_server,
    own_server,
    without_request_id,
)
from tests.api.routes import FLAT, HOOK, ROUTES, WRITING, Route
from tests.factories import BY, make_credential

DEEP = 100_000
NO_OBJECTS = {
    "nothing": b" ",
    "unfinished": b'{"name": ',
    "no UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"name": "x"}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": -Infinity}',
    "lone surrogate": b'{"name": "\\ud800"}',
    "surrogates reversed": b'{"name": "\\udc00\\ud800"}',
    "lone surrogate as a name": b'{"\\ud800": 1}',
    "raw control character": b'{"name": "\x00"}',
    "two documents": b'{"name": "x"} {"name": "y"}',
    "trailing comma": b'{"name": "x",}',
    "deep list": b"[" * DEEP,
    "deep object": b'{"name":' * DEEP,
    "deep and closed": b'{"name":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "list": b"[]",
    "list of objects": b'[{"name": "x"}]',
    "number": b"5",
    "huge number": b"1" * 5_000,
    "text": b'"name"',
    "null": b"null",
    "true": b"true",
}
TEXT_IS_NOT = (True, 5, 5.5, 2**60, 10**30, [], ["x"], {}, {"x": 1}, None, "nul\x00nul", "x" * 100_000)
NUMBER_IS_NOT = (True, "5", "", 5.5, 5.0, [], [5], {}, -1, 2**32, 2**63, 2**64, 10**30, 1e300, "x" * 1000)
FLAG_IS_NOT = ("true", "yes", 1, 0, 1.0, [], {}, "")
LIST_IS_NOT = (True, 5, "x", {}, {"0": "x"}, None, [None], [[]], [5], [{}], ["x\x00"], ["x" * 1000] * 300)


def full_bodies(world: World) -> dict[str, dict[str, Any]]:
    """Return for each writing route a body with every field it knows."""
    reason = {"reason": "Because"}
    terms = {
        "scheme": "seats",
        "trial": False,
        "seat_kind": "named",
        "seat_limit": 5,
        "seat_required": False,
        "seat_churn_limit": 5,
        "activation_limit": 5,
        "activation_required": False,
        "activation_churn_limit": 5,
        "fingerprint_scope": "license",
        "churn_window_seconds": 86400,
        "activation_dead_after_seconds": 86400,
        "validity_basis": "fixed_date",
        "duration_seconds": 86400,
        "fixed_expires_at": "2099-01-01T00:00:00Z",
        "renewal_basis": "from_expiry",
        "grace_period_seconds": 86400,
        "maintenance_seconds": 86400,
        "entitlements": [{"key": "export", "kind": "flag"}],
    }
    counting = {
        "aggregation": "unique",
        "unit": "people",
        "dimensions": ["person"],
        "filters": {"person": ["ada"]},
        "unique_by": "person",
    }
    return {
        "POST /validate": {
            "license": str(world.license.pk),
            "license_key": world.key,
            "fingerprint": "a" * 32,
            "product": "atlas",
            "version": "1.0.0",
            "entitlements": ["export"],
            "seat_holder": "ada@example.com",
        },
        "POST /activations": {
            "license": str(world.license.pk),
            "fingerprint": "f" * 32,
            "name": "Laptop",
            "platform": "linux",
            "seat_holder": "ada@example.com",
        },
        "POST /activations/{activation}/heartbeat": {"clock_turned_back": True},
        "POST /usage": {
            "license": str(world.license.pk),
            "event_id": "e1",
            "meter": "calls",
        },
        "POST /usage/batch": {"license": str(world.license.pk), "events": [{"event_id": "e1", "meter": "calls"}]},
        "POST /usage/corrections": {
            "license": str(world.license.pk),
            "meter": "calls",
            "quantity": "-1",
            "occurred_at": "2026-01-01T00:00:00Z",
            "event_id": "e1",
            **reason,
        },
        "POST /credit-grants": {
            "license": str(world.license.pk),
            "meter": "calls",
            "amount": "5",
            "priority": 1,
            "starts_at": "2026-01-01T00:00:00Z",
            "expires_at": "2099-01-01T00:00:00Z",
            **reason,
        },
        "POST /credit-grants/{credit_grant}/void": reason,
        "POST /reservations": {
            "license": str(world.license.pk),
            "meter": "calls",
            "quantity": "1",
            "ttl_seconds": 60,
        },
        "POST /reservations/{reservation}/commit": {"event_id": "e1", "quantity": "1"},
        "POST /leases": {
            "license": str(world.license.pk),
            "ttl_seconds": 60,
            "offline": False,
            "fingerprint": "f" * 32,
        },
        "POST /leases/{lease}/renew": {"ttl_seconds": 60},
        "POST /license-files": {
            "license": str(world.license.pk),
            "request": "-----BEGIN LICENTIA ACTIVATION REQUEST-----",
            "fingerprint": "a" * 32,
            "expires_at": f"{timezone.now() + timedelta(days=30):%Y-%m-%dT00:00:00Z}",
            "encrypt": False,
            "seat_holder": "ada@example.com",
        },
        "POST /seats": {"license": str(world.license.pk), "holder": "eve@example.com"},
        "POST /seats/{seat}/transfer": {"holder": "eve@example.com"},
        "POST /products": {"code": "new", "name": "New", "description": "New"},
        "PATCH /products/{product}": {"name": "New", "description": "New"},
        "POST /plans": {"product": str(world.product.pk), "code": "new", "name": "New", "description": "New"},
        "PATCH /plans/{plan}": {"name": "New", "description": "New"},
        "POST /plan-revisions": {"plan": str(world.plan.pk), **terms},
        "PATCH /plan-revisions/{draft}": terms,
        "POST /plan-revisions/{draft}/publish": reason,
        "POST /plan-revisions/{revision}/retire": reason,
        "POST /meters": {"code": "new", "name": "New", "description": "New"},
        "PATCH /meters/{meter}": {"name": "New", "description": "New"},
        "POST /meters/{meter}/revisions": counting,
        "PATCH /meters/{meter}/revisions/{meter_draft}": counting,
        "POST /meters/{meter}/revisions/{meter_draft}/publish": reason,
        "POST /meters/{meter}/revisions/{meter_revision}/retire": reason,
        "POST /prices": {"plan": str(world.plan.pk), "currency": "USD"},
        "POST /prices/{price}/revisions": {"components": [FLAT]},
        "PATCH /prices/{price}/revisions/{price_draft}": {"components": [FLAT]},
        "POST /prices/{price}/revisions/{price_draft}/publish": {"effective_at": "2099-01-01T00:00:00Z", **reason},
        "POST /prices/{price}/revisions/{price_planned}/retire": reason,
        "POST /statements/{statement}/close": {},
        "POST /statements/{final_statement}/void": {"replace": True, **reason},
        "POST /statements/{final_statement}/mark-paid": {"paid_at": "2026-04-10T00:00:00Z", **reason},
        "PATCH /billing-accounts/{account}": {
            "currency": "EUR",
            "tax_rate": "19",
            "tax_id": "DE1",
            "address": "Lane 1",
        },
        "POST /customers": {"code": "new", "name": "New", "email": "new@example.com"},
        "PATCH /customers/{customer}": {"name": "New", "email": "new@example.com"},
        "POST /members": {"customer": str(world.customer.pk), "email": "new@example.com", "role": "viewer"},
        "PATCH /members/{member}": {"role": "billing"},
        "POST /licenses": {
            "customer": str(world.customer.pk),
            "plan": str(world.plan.pk),
            "starts_at": "2026-01-01T00:00:00Z",
            "expires_at": "2099-01-01T00:00:00Z",
            "seat_limit": 5,
            "activation_limit": 5,
            **reason,
        },
        "POST /licenses/{license}/hold": {"reason": "unpaid", "note": "Late"},
        "POST /licenses/{license}/lift": {"reason": "unpaid", "note": "Paid"},
        "POST /licenses/{license}/renew": {"duration_seconds": 86400, **reason},
        "POST /licenses/{license}/revoke": reason,
        "POST /licenses/{license}/transfer": {"customer": str(world.third_customer.pk), **reason},
        "POST /licenses/{license}/rotate-key": reason,
        "POST /licenses/{license}/change-limits": {"seat_limit": 5, "activation_limit": 5, **reason},
        "POST /licenses/{license}/change-plan": {"plan_revision": str(world.revision.pk), **reason},
        "POST /licenses/{license}/change-scheme": {
            "scheme": "seats",
            "plan": str(world.plan.pk),
            "at": "2099-01-01T00:00:00Z",
            **reason,
        },
        "POST /licenses/{license}/undo-change": reason,
        "POST /credentials": {
            "name": "CI",
            "customer": str(world.customer.pk),
            "scopes": ["validate"],
            "allowed_addresses": ["10.0.0.0/8"],
            "expires_at": f"{timezone.now() + timedelta(days=30):%Y-%m-%dT00:00:00Z}",
        },
        "POST /webhook-endpoints": {
            "customer": str(world.customer.pk),
            "url": HOOK,
            "event_types": ["license.held"],
            "description": "Ours",
        },
        "PATCH /webhook-endpoints/{endpoint}": {"url": HOOK, "event_types": ["license.held"], "description": "Ours"},
        "POST /webhook-endpoints/{endpoint}/rotate-secret": reason,
        "POST /webhook-endpoints/{endpoint}/disable": reason,
        "POST /webhook-endpoints/{endpoint}/enable": reason,
        "POST /webhook-endpoints/{endpoint}/test": {},
        "POST /webhook-endpoints/{endpoint}/deliveries/{message}/replay": reason,
    }


NULLABLE = {
    # null says "no limit", "perpetual", "the vendor's own"
    *("seat_limit", "activation_limit", "seat_churn_limit", "activation_churn_limit"),
    *("churn_window_seconds", "duration_seconds", "grace_period_seconds", "maintenance_seconds"),
    *("fixed_expires_at", "activation_dead_after_seconds"),
}


def wrong_values(name: str, value: Any, route: Route) -> tuple[Any, ...]:
    match value:
        case bool():
            return FLAG_IS_NOT
        case int():
            return (*NUMBER_IS_NOT, 2**31) if name.endswith("_limit") else NUMBER_IS_NOT
        case dict():
            wrong: tuple[Any, ...] = tuple(each for each in TEXT_IS_NOT if each != {})
        case list() if str(route) == "POST /usage/batch":  # what its events are is each event's own result
            return tuple(each for each in LIST_IS_NOT if not isinstance(each, list))
        case list():
            wrong = LIST_IS_NOT
        case _:
            wrong = TEXT_IS_NOT
    nullable = (
        name in NULLABLE
        or str(route) in ("POST /validate", "POST /usage/batch")
        or (str(route) in ("POST /credentials", "POST /webhook-endpoints") and name == "customer")
    )
    return tuple(each for each in wrong if each is not None) if nullable else wrong


@pytest.mark.parametrize("route", WRITING, ids=str)
def test_it_refuses_a_body_that_is_no_json_object(route: Route, world: World, api: Api) -> None:
    path = route.path(world)

    with nothing_written():
        for name, body in NO_OBJECTS.items():
            answer = api.request(route.method, path, body)
            assert answer.status_code == 400, (name, answer.status_code, answer.content[:300])
            assert_problem(answer, 400)


@pytest.mark.parametrize("route", WRITING, ids=str)
def test_it_refuses_each_field_of_the_wrong_kind_and_points_at_it(route: Route, world: World, api: Api) -> None:
    path = route.path(world)
    body = full_bodies(world)[str(route)]

    with nothing_written():
        for name, value in body.items():
            for wrong in wrong_values(name, value, route):
                answer = api.request(route.method, path, {**body, name: wrong})
                said = (name, repr(wrong)[:60], answer.status_code, answer.content[:300])
                assert answer.status_code == 400, said
                pointers = [error["pointer"] for error in assert_problem(answer, 400)["errors"]]
                assert [pointer for pointer in pointers if f"{pointer}/".startswith(f"/{name}/")], said


@pytest.mark.parametrize("route", WRITING, ids=str)
def test_it_refuses_unknown_and_read_only_fields(route: Route, world: World, api: Api) -> None:
    path = route.path(world)
    body = full_bodies(world)[str(route)]

    with nothing_written():
        for name, pointer in (
            ("surprise", "/surprise"),
            ("id", "/id"),
            ("created_at", "/created_at"),
            ("key", "/key"),
            ("a/b~c", "/a~1b~0c"),
            ("", "/"),
        ):
            answer = api.request(route.method, path, {**body, name: "x"})
            problem = assert_problem(answer, 400)
            assert pointer in [error["pointer"] for error in problem["errors"]], problem


@pytest.mark.parametrize("route", WRITING, ids=str)
def test_it_takes_nothing_but_json_of_at_most_a_mebibyte(route: Route, world: World, api: Api) -> None:
    path = route.path(world)
    body = json.dumps(full_bodies(world)[str(route)]).encode()

    with nothing_written():
        too_large = api.request(route.method, path, body + b" " * 1_048_577)
        assert_problem(too_large, 413, "body_too_large")
        for content_type in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/jsonx",
            "application/problem+json",
            "json",
            "",
        ):
            answer = api.request(route.method, path, body, content_type=content_type)
            assert_problem(answer, 415, "unsupported_media_type")


def test_it_takes_json_however_its_type_is_written(api: Api) -> None:
    for number, content_type in enumerate(
        ("application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;x=y")
    ):
        answer = api.post("/products", {"code": f"p-{number}", "name": "P"}, content_type=content_type)
        assert answer.status_code == 201, content_type


@pytest.mark.parametrize("length", ["x", "-1", "²", "1e3", "99999999999999999999"])
def test_it_refuses_a_length_that_is_none(length: str, api: Api) -> None:
    with nothing_written():
        answer = _client.generic(
            "POST",
            "/api/v1/products",
            b'{"code": "x", "name": "x"}',
            content_type="application/json",
            headers={"authorization": api.authorization},
            REMOTE_ADDR=api.address,
            CONTENT_LENGTH=length,
        )

    assert answer.status_code in (400, 413)
    assert answer["Content-Type"] == "application/problem+json"


def _paths() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for route in ROUTES:
        found.setdefault(route.template, set()).add(route.method)
    shapes: dict[str, set[str]] = {}
    for template, methods in found.items():
        shapes.setdefault(_shape(template), set()).update(methods)
    return {template: shapes[_shape(template)] for template in found}


def _shape(template: str) -> str:
    revision = r"\{(draft|(meter|price)_(draft|planned|revision))\}"
    return re.sub(revision, "{revision}", template.partition("?")[0])


@pytest.mark.parametrize(("template", "methods"), _paths().items())
def test_it_refuses_a_wrong_method_and_says_which_are_right(
    template: str, methods: set[str], world: World, api: Api
) -> None:
    route = next(route for route in ROUTES if route.template == template)
    right = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    path = route.path(world)

    with nothing_written():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"):
            if method in methods:
                continue
            answer = api.request(method, path, {})
            assert_problem(answer, 405, "method_not_allowed")
            assert set(answer["Allow"].split(", ")) == right, method


@pytest.mark.parametrize("route", [route for route in ROUTES if route.method == "GET"], ids=str)
def test_it_answers_head_as_get_without_the_body(route: Route, world: World, api: Api) -> None:
    answer = api.request("HEAD", route.path(world))

    assert answer.status_code == 200
    assert answer.content == b""


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_it_never_breaks_on_options(route: Route, world: World, api: Api) -> None:
    path = route.path(world)

    with nothing_written():
        answer = api.request("OPTIONS", path)

    assert answer.status_code in (200, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/licenses/",
        "/licenses/1",
        "/licenses/%00",
        "/licenses/%FF%FE",
        "/licenses/../products",
        f"/licenses/{MISSING_ID}/delete",
        "/licenses/" + "x" * 5_000,
        "//licenses",
        "/",
    ],
)
def test_it_answers_a_problem_where_nothing_is(path: str, api: Api) -> None:
    assert_problem(api.get(path), 404, "not_found")


def test_it_answers_a_problem_at_the_base_itself(api: Api) -> None:
    assert_problem(api.get("/api/v1"), 404, "not_found")


LISTS = ("products", "plans", "plan-revisions", "customers", "members", "licenses", "seats", "activations")
ALL_LISTS = (*LISTS, "credentials", "anomalies", "audit-entries")


@pytest.mark.parametrize("name", ALL_LISTS)
def test_it_refuses_a_limit_that_is_none(name: str, api: Api) -> None:
    for limit in ("0", "201", "-1", "1.5", "x", "", "%00", "1e2", "9" * 5_000, "²", "%D9%A1"):
        assert_problem(api.get(f"/{name}?limit={limit}"), 400, pointer="/limit")


@pytest.mark.parametrize("name", ALL_LISTS)
def test_it_answers_a_broken_cursor_with_a_problem(name: str, world: World, api: Api) -> None:
    for cursor in ("x", "%00", "%FF", "cD14", "cD0lMDA=", "bz05OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "x" * 5_000):
        # cD14 is p=x, cD0lMDA= is p=%00, the long one an offset beyond any number
        answer = api.get(f"/{name}?cursor={cursor}")
        assert answer.status_code in (200, 400, 404), (cursor, answer.content[:200])


@pytest.mark.parametrize(
    "query",
    [
        "/plans?product=x",
        "/plan-revisions?plan=5",
        "/plan-revisions?state=gone",
        "/plan-revisions?scheme=",
        "/members?customer=%00",
        "/members?role=king",
        "/licenses?customer=x",
        "/licenses?status=alive",
        "/licenses?scheme=%00",
        "/licenses?plan=x",
        "/seats?license=x",
        "/seats?holder=%00",
        "/seats?state=%F0%28%8C%28",
        "/activations?license=x",
        "/activations?fingerprint=%00",
        "/credentials?customer=x",
        "/anomalies?severity=x",
        "/audit-entries?license=x",
        "/audit-entries?action=%00",
        "/entitlements",
        "/entitlements?license=",
        "/entitlements?license=x",
        "/entitlements?license=%00",
        "/products?code=%00",
        "/products?code=",
        "/licenses?customer=",
        "/licenses?status=",
        "/seats?license=",
        "/seats?holder=",
        "/audit-entries?customer=&limit=5",
        "/customers?code=%00",
    ],
)
def test_it_refuses_a_wrong_filter(query: str, world: World, api: Api) -> None:
    answer = api.get(query)

    assert_problem(answer, 400)


@pytest.mark.parametrize("against", ["", "?against=", "?against=x", "?against=%00"])
def test_it_wants_another_revision_to_compare_with(against: str, world: World, api: Api) -> None:
    answer = api.get(f"/plan-revisions/{world.revision.pk}/diff{against}")

    assert_problem(answer, 400, pointer="/against")


FAR = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00")
NO_INSTANTS = (
    *("", "x", "2026-01-01", "20260101T000000Z", "2026-01-01T00:00:00", "2026-01-01 00:00:00Z", "2026-W01-1"),
    *("2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-01T25:00:00Z", "-2026-01-01T00:00:00Z"),
)


@pytest.mark.parametrize("value", [*FAR, *NO_INSTANTS])
def test_it_takes_only_instants_of_rfc_3339_that_a_license_can_have(value: str, world: World, api: Api) -> None:
    issue = full_bodies(world)["POST /licenses"]
    draft = full_bodies(world)["POST /plan-revisions"]

    with nothing_written():
        for path, body, name in (
            ("/licenses", issue, "starts_at"),
            ("/licenses", issue, "expires_at"),
            ("/plan-revisions", draft, "fixed_expires_at"),
        ):
            assert_problem(api.post(path, {**body, name: value}), 400, pointer=f"/{name}")
        credential = {"name": "CI", "scopes": ["validate"], "expires_at": value}
        assert_problem(api.post("/credentials", credential), 400, pointer="/expires_at")


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%Sz", "%Y-%m-%dt%H:%M:%S.5+01:00", "%Y-%m-%dT%H:%M:%S-00:00"])
def test_it_takes_every_form_of_rfc_3339(form: str, api: Api) -> None:
    value = f"{timezone.now() + timedelta(days=90):{form}}"

    answer = api.post("/credentials", {"name": "CI", "scopes": ["validate"], "expires_at": value})

    assert answer.status_code == 201
    assert answer.json()["expires_at"].endswith("Z")


@pytest.mark.parametrize("form", ["urn:uuid:{}", "{{{}}}", "{} ", "{}0"])
def test_it_takes_an_id_in_its_one_form(form: str, world: World, api: Api) -> None:
    body = {"license": form.format(world.license.pk), "holder": "eve@example.com"}

    with nothing_written():
        assert_problem(api.post("/seats", body), 400, pointer="/license")


def test_it_takes_an_id_in_capitals(world: World, api: Api) -> None:
    answer = api.post("/seats", {"license": str(world.license.pk).upper(), "holder": "eve@example.com"})

    assert answer.status_code == 201
    assert answer.json()["license"] == str(world.license.pk)


def test_it_takes_the_last_of_two_values_of_one_name_or_none(api: Api) -> None:
    answer = api.post("/products", b'{"code": "first", "name": "x", "code": "second"}')

    assert answer.status_code == 400 or answer.json()["code"] == "second"


@pytest.mark.parametrize("key", ["", " " * 256, "x" * 256, "grün", "a\tb", "a\x7fb"])
def test_it_refuses_an_idempotency_key_that_is_none(key: str, api: Api) -> None:
    with nothing_written():
        answer = api.post("/products", {"code": "x", "name": "x"}, idempotency_key=key)

    assert_problem(answer, 400, pointer="/Idempotency-Key")


# --- who has which key --------------------------------------------------------------------------------

LICENSE_KEY_CALLS: dict[str, Callable[[Api, World], Any]] = {
    "validate": lambda who, world: who.post("/validate", {}),
    "activate": lambda who, world: who.post("/activations", {"fingerprint": "f" * 32}),
    "machines": lambda who, world: who.get("/activations"),
    "machine": lambda who, world: who.get(f"/activations/{world.activation.pk}"),
    "entitlements": lambda who, world: who.get("/entitlements"),
    "seats": lambda who, world: who.get("/seats"),
}


@pytest.mark.parametrize("call", LICENSE_KEY_CALLS)
def test_it_says_the_same_of_a_key_never_made_and_a_key_taken_back(call: str, world: World) -> None:
    keys.rotate(license=world.license, by=BY, reason="Leaked", at=world.license.starts_at)

    never_made = LICENSE_KEY_CALLS[call](by_key(keyformat.generate()), world)
    taken_back = LICENSE_KEY_CALLS[call](by_key(world.key), world)

    assert_problem(never_made, 401, "unauthenticated")
    assert without_request_id(taken_back) == without_request_id(never_made)
    assert sorted(taken_back.headers) == sorted(never_made.headers)


def test_it_says_the_same_of_an_unknown_key_and_another_customers(world: World) -> None:
    server = own_server(world)

    def verdict(body: dict[str, str]) -> dict[str, Any]:
        answer = server.post("/validate", body)
        assert answer.status_code == 200
        said = answer.json()
        claims = jwt.decode(said.pop("token"), options={"verify_signature": False})
        for name in ("checked_at", "fresh_until"):
            said.pop(name)
        return said | {"claims": {k: v for k, v in claims.items() if k not in ("jti", "iat", "nbf", "exp")}}

    unknown = verdict({"license_key": keyformat.generate()})

    assert unknown["code"] == "not_found"
    assert unknown["license"] is None
    assert verdict({"license_key": world.other_key}) == unknown
    assert verdict({"license": str(world.other_license.pk)}) == unknown
    assert verdict({"license": MISSING_ID}) == unknown
    assert verdict({"license": str(world.other_license.pk), "license_key": world.key}) == unknown


@pytest.mark.parametrize("path", ["/seats", "/activations"])
def test_it_says_the_same_of_no_license_and_another_customers(path: str, world: World) -> None:
    def asked(license_id: object) -> Any:
        return other_server(world).post(
            path,
            {"license": str(license_id)}
            | ({"holder": "eve@example.com"} if path == "/seats" else {"fingerprint": "f" * 32}),
        )

    missing, foreign = asked(MISSING_ID), asked(world.license.pk)

    assert_problem(missing, 404, "not_found")
    assert without_request_id(foreign) == without_request_id(missing)


def test_it_says_the_same_of_every_credential_it_does_not_accept(world: World) -> None:
    _, secret = make_credential()
    changed = secret[:-1] + ("A" if secret[-1] != "A" else "B")

    answers = [
        by_secret(text).get("/licenses")
        for text in (changed, "lsk_" + "x" * 43, "lsk_", "x", "lsk_" + "x" * 5_000, world.key)
    ]

    for answer in answers:
        assert_problem(answer, 401, "unauthenticated")
        assert without_request_id(answer) == without_request_id(answers[0])
        assert answer["WWW-Authenticate"] == 'Bearer realm="licentia", License realm="licentia"'


def test_it_repeats_no_key_and_no_secret_in_a_refusal(world: World) -> None:
    mistyped = world.key[:-1] + ("0" if world.key[-1] != "0" else "1")
    _, secret = make_credential()

    answers = [
        by_key(mistyped).post("/validate", {}),
        own_server(world).post("/validate", {"license_key": mistyped}),
        own_server(world).post("/validate", {world.key: 1}),
        caller(f"Bearer {secret}x").get("/licenses"),
        caller(f"Basic {secret}").get("/licenses"),
    ]

    assert [answer.status_code for answer in answers[:2]] == [401, 400]
    for answer in (*answers[:2], *answers[3:]):
        assert mistyped[5:20] not in answer.content.decode()
        assert secret[4:] not in answer.content.decode()
