"""POST /validate. What it refuses stands in test_bad_input and test_wrong_credential; its verdicts in full in
tests/licensing/test_decision.py."""

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from licensing import activations, crypto, keyformat, lifecycle, seats
from licensing.models import AuditEntry
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    by_secret,
    own_server,
    secrets_in,
)
from tests.factories import BY, make_license_and_key

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def verdict(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.content
    assert answer["Content-Type"] == "application/json"
    said: dict[str, Any] = answer.json()
    assert set(said) == {"valid", "code", "detail", "license", "checked_at", "fresh_until", "degraded", "token"}
    assert said["valid"] is (said["code"] in ("valid", "in_grace"))
    return said


def test_it_finds_a_good_license_valid(world: World) -> None:
    said = verdict(by_key(world.key).post("/validate", {}))

    assert said["code"] == "valid"
    assert said["license"] == {
        "id": str(world.license.pk),
        "plan": world.plan.code,
        "scheme": "seats",
        "status": "active",
        "expires_at": (world.license.starts_at + timedelta(days=365)).isoformat().replace("+00:00", "Z"),
        "grace_until": None,
        "seats": {"limit": 10, "used": 1},
        "entitlements": {},
    }
    assert said["degraded"] is False


def test_it_takes_no_body_for_an_empty_one(world: World) -> None:
    assert verdict(by_key(world.key).post("/validate"))["code"] == "valid"


def test_it_finds_the_license_a_server_names_by_key_by_id_or_by_both(world: World, api: Api) -> None:
    for who in (api, own_server(world), by_scopes("validate")):
        for body in (
            {"license_key": world.key},
            {"license": str(world.license.pk)},
            {"license_key": world.key, "license": str(world.license.pk)},
        ):
            assert verdict(who.post("/validate", body))["license"]["id"] == str(world.license.pk)


def test_it_finds_nothing_where_key_and_id_name_two_licenses(world: World, api: Api) -> None:
    said = verdict(api.post("/validate", {"license_key": world.key, "license": str(world.other_license.pk)}))

    assert (said["code"], said["license"]) == ("not_found", None)


@pytest.mark.parametrize("body", [{"license_key": keyformat.generate()}, {"license": MISSING_ID}], ids=["key", "id"])
def test_it_has_a_verdict_also_for_what_is_not_there(body: dict[str, str], api: Api) -> None:
    said = verdict(api.post("/validate", body))

    assert (said["valid"], said["code"], said["license"]) == (False, "not_found", None)


def test_it_wants_a_server_to_say_which_license(api: Api) -> None:
    for body in ({}, {"license": None}, {"license_key": None, "license": None}):
        assert_problem(api.post("/validate", body), 400, pointer="/license_key")


def test_it_tells_a_server_of_a_mistyped_key(world: World, api: Api) -> None:
    mistyped = world.key[:-1] + ("0" if world.key[-1] != "0" else "1")

    assert_problem(api.post("/validate", {"license_key": mistyped}), 400, "license_key_mistyped", "/license_key")


def test_it_takes_the_holders_own_id_and_no_others(world: World) -> None:
    holder = by_key(world.key)

    assert verdict(holder.post("/validate", {"license": str(world.license.pk)}))["code"] == "valid"
    assert_problem(holder.post("/validate", {"license": str(world.other_license.pk)}), 404, "not_found")
    assert_problem(holder.post("/validate", {"license": MISSING_ID}), 404, "not_found")


def test_it_takes_no_second_key_from_the_holder_of_one(world: World) -> None:
    for key in (world.key, world.other_key):
        answer = by_key(world.key).post("/validate", {"license_key": key})
        assert_problem(answer, 400, pointer="/license_key")


def test_it_says_each_verdict_as_data(world: World) -> None:
    holder = by_key(world.key)
    at = world.license.starts_at

    def code(**body: Any) -> str:
        return str(verdict(holder.post("/validate", body))["code"])

    assert code(product="other") == "wrong_product"
    assert code(product=world.product.code, version="1.0") == "valid"
    assert code(fingerprint="x" * 32) == "fingerprint_mismatch"
    assert code(fingerprint="a" * 32) == "valid"
    assert code(seat_holder="eve@example.com") == "seat_required"
    assert code(seat_holder=" Ada@Example.com") == "valid"
    assert code(entitlements=["export"]) == "entitlement_missing"
    assert code(entitlements=[]) == "valid"

    lifecycle.hold(license=world.license, reason="unpaid", by=BY, at=at)
    assert code() == "held"
    lifecycle.lift(license=world.license, reason="unpaid", by=BY, at=at)
    assert code() == "valid"
    lifecycle.revoke(license=world.license, reason="Refunded", by=BY, at=at)
    assert code() == "revoked"


@pytest.mark.parametrize(
    ("days", "code"), [(-1, "valid"), (1, "in_grace"), (40, "expired")], ids=["before", "in grace", "after"]
)
def test_it_follows_the_clock(days: int, code: str, db: None) -> None:
    expiry = NOW - days * DAY
    _, key = make_license_and_key(
        at=NOW - 400 * DAY, duration=expiry - (NOW - 400 * DAY), grace_period=30 * DAY, seat_limit=1
    )

    said = verdict(by_key(key).post("/validate", {}))

    assert said["code"] == code
    assert said["license"]["status"] == {"valid": "active"}.get(code, code)


def test_it_finds_a_license_that_starts_tomorrow_not_started(db: None) -> None:
    _, key = make_license_and_key(at=NOW, starts_at=NOW + DAY)

    assert verdict(by_key(key).post("/validate", {}))["code"] == "not_started"


def test_it_sees_what_has_changed_at_once(world: World, api: Api) -> None:
    holder = by_key(world.key)
    seats.assign(license=world.license, holder="eve@example.com", by=BY, at=NOW)
    assert verdict(holder.post("/validate", {}))["license"]["seats"]["used"] == 2

    seats.release(seat=world.seat, by=BY, at=NOW)
    activations.deactivate(activation=world.activation, by=BY, at=NOW)

    assert verdict(holder.post("/validate", {}))["license"]["seats"]["used"] == 1
    assert verdict(holder.post("/validate", {"seat_holder": "ada@example.com"}))["code"] == "seat_required"


def test_it_puts_the_terms_into_the_token(world: World) -> None:
    said = verdict(by_key(world.key).post("/validate", {"fingerprint": "a" * 32}))

    claims = jwt.decode(said["token"], options={"verify_signature": False})

    assert claims["sub"] == str(world.license.pk)
    assert claims["aud"] == world.product.code
    assert claims["terms"] == said["license"]
    assert (claims["valid"], claims["code"]) == (True, "valid")
    assert claims["fingerprint"] == "a" * 32
    assert claims["iat"] == claims["nbf"] < claims["exp"] <= claims["iat"] + 86_400
    checked, fresh = (datetime.fromisoformat(said[name]) for name in ("checked_at", "fresh_until"))
    assert checked < fresh < datetime.fromtimestamp(claims["exp"], UTC) + timedelta(seconds=1)


def test_it_gives_no_token_that_outlives_the_license(db: None) -> None:
    license, key = make_license_and_key(at=NOW - DAY, expires_at=datetime.now(UTC) + timedelta(minutes=10))

    said = verdict(by_key(key).post("/validate", {}))

    claims = jwt.decode(said["token"], options={"verify_signature": False})
    assert license.expires_at is not None
    assert claims["exp"] <= license.expires_at.timestamp()


def test_it_gives_a_refusal_a_short_token_that_is_stale_at_once(world: World) -> None:
    said = verdict(by_key(world.key).post("/validate", {"product": "other"}))

    claims = jwt.decode(said["token"], options={"verify_signature": False})
    assert claims["valid"] is False
    assert claims["exp"] - claims["iat"] == 300
    assert said["fresh_until"] == said["checked_at"]


def test_it_repeats_no_key_and_changes_nothing(world: World, api: Api) -> None:
    entries = AuditEntry.objects.count()

    answers = [by_key(world.key).post("/validate", {}), api.post("/validate", {"license_key": world.key})]

    assert [secrets_in(answer) for answer in answers] == [[], []]
    assert AuditEntry.objects.count() == entries


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"entitlements": ["ok", 1]}, "/entitlements/1"),
        ({"entitlements": ["ok", "not ok"]}, "/entitlements/1"),
        ({"entitlements": ["x"] * 101}, "/entitlements"),
        ({"product": "no such/thing"}, "/product"),
        ({"product": ""}, "/product"),
        ({"version": "1" * 65}, "/version"),
        ({"version": "1.0\n"}, "/version"),
        ({"fingerprint": "short"}, "/fingerprint"),
        ({"fingerprint": "a" * 129}, "/fingerprint"),
        ({"fingerprint": "a" * 20 + "\n"}, "/fingerprint"),
        ({"seat_holder": "nobody"}, "/seat_holder"),
        ({"license": "x"}, "/license"),
    ],
)
def test_it_points_at_what_is_wrong(body: dict[str, Any], pointer: str, world: World) -> None:
    assert_problem(by_key(world.key).post("/validate", body), 400, pointer=pointer)


def test_it_looks_once_into_the_database(world: World, django_assert_max_num_queries: Any) -> None:
    holder = by_key(world.key)
    holder.post("/validate", {})

    with django_assert_max_num_queries(1):
        holder.post("/validate", {"fingerprint": "a" * 32, "seat_holder": "ada@example.com", "version": "1.0"})


def test_it_does_not_say_unknown_of_what_a_missing_key_of_the_ring_may_hide(world: World) -> None:
    unknown = keyformat.written(keyformat.generate())
    callers = [
        (by_key(unknown), {}),
        (by_scopes("validate"), {"license_key": unknown}),
        (by_secret("lsk_" + "x" * 43), {}),
    ]
    crypto.refuse_writes("The key ring lacks the key 'digest-lost' (digest).")
    try:
        answers = [who.post("/validate", body) for who, body in callers]
        known = by_key(world.key).post("/validate", {})
    finally:
        crypto.refuse_writes("")

    for answer in answers:
        assert_problem(answer, 503, "unavailable")
    assert verdict(known)["valid"]
