"""/credentials."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from licensing.models import Credential
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_scopes,
    by_secret,
    nothing_written,
    secrets_in,
)
from tests.factories import make_credential

NOW = datetime.now(UTC)
CI = {"name": "CI", "scopes": ["licenses:read", "validate"]}


def test_it_makes_a_credential_and_tells_its_secret_this_once(api: Api) -> None:
    answer = api.post("/credentials", CI)

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {
        *("id", "created_at", "name", "customer", "scopes", "allowed_addresses"),
        *("expires_at", "revoked_at", "last4", "secret"),
    }
    assert made["secret"].endswith(made["last4"])
    assert secrets_in(answer) == [made["secret"]]
    assert by_secret(made["secret"]).get("/licenses").status_code == 200
    for path in (f"/credentials/{made['id']}", "/credentials", "/audit-entries"):
        assert secrets_in(api.get(path)) == []
    assert "secret" not in api.get(f"/credentials/{made['id']}").json()


def test_it_stores_no_secret_as_it_is(api: Api) -> None:
    made = api.post("/credentials", CI).json()

    assert made["secret"] not in str(Credential.objects.get(pk=made["id"]).__dict__)


def test_it_makes_a_customers_credential_that_sees_only_the_customer(world: World, api: Api) -> None:
    made = api.post("/credentials", {**CI, "customer": str(world.customer.pk)}).json()

    found = by_secret(made["secret"]).get("/licenses").json()["results"]

    assert [row["id"] for row in found] == [str(world.license.pk)]


@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"scopes": []}, 400, "/scopes"),
        ({"scopes": ["licenses:own"]}, 400, "/scopes/0"),
        ({"scopes": ["validate", "*"]}, 400, "/scopes/1"),
        ({"name": ""}, 400, "/name"),
        ({"allowed_addresses": ["x"]}, 400, "/allowed_addresses"),
        ({"allowed_addresses": ["10.0.0.0/33"]}, 400, "/allowed_addresses"),
        ({"allowed_addresses": ["10.0.0.1"] * 101}, 400, "/allowed_addresses"),
        ({"allowed_addresses": [1]}, 400, "/allowed_addresses/0"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 400, "/expires_at"),
        ({"expires_at": "2999-01-01T00:00:00Z"}, 400, "/expires_at"),
        ({"expires_at": None}, 400, "/expires_at"),
        ({"customer": MISSING_ID}, 404, None),
        ({"revoked_at": None}, 400, "/revoked_at"),
    ],
)
def test_it_makes_none_that_is_not_said_right(
    change: dict[str, Any], status: int, pointer: str | None, api: Api
) -> None:
    with nothing_written():
        assert_problem(api.post("/credentials", {**CI, **change}), status, pointer=pointer)


@pytest.mark.parametrize("scope", ["licenses:write", "credentials:write", "audit:read", "anomalies:read"])
def test_it_gives_a_customer_no_scope_of_the_vendors(scope: str, world: World, api: Api) -> None:
    with nothing_written():
        answer = api.post("/credentials", {**CI, "scopes": [scope], "customer": str(world.customer.pk)})

    assert_problem(answer, 400, "scope_not_allowed", "/scopes")


def test_it_lets_nobody_give_more_than_they_have(api: Api) -> None:
    maker = by_scopes("credentials:write", "validate")

    with nothing_written():
        assert_problem(maker.post("/credentials", CI), 400, "scope_not_allowed", "/scopes")
    assert maker.post("/credentials", {"name": "CI", "scopes": ["validate", "validate"]}).json()["scopes"] == [
        "validate"
    ]


def test_it_lives_a_year_unless_said_otherwise(db: None) -> None:
    maker = by_secret(make_credential(expires_at=NOW + timedelta(days=365, hours=12))[1])
    made = maker.post("/credentials", CI).json()
    end = (NOW + timedelta(days=30)).replace(microsecond=0)
    short = maker.post("/credentials", {**CI, "expires_at": end.isoformat()}).json()

    life = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert life == timedelta(days=365)
    assert datetime.fromisoformat(short["expires_at"]) == end


def test_it_outlives_no_maker(db: None) -> None:
    end = NOW + timedelta(days=30)
    maker = by_secret(make_credential(expires_at=end)[1])

    with nothing_written():
        longer = maker.post("/credentials", {**CI, "expires_at": (end + timedelta(seconds=1)).isoformat()})
    unsaid = maker.post("/credentials", CI).json()

    assert_problem(longer, 400, pointer="/expires_at")
    assert datetime.fromisoformat(unsaid["expires_at"]) == end


def test_it_is_good_at_no_address_where_its_maker_is_not(db: None) -> None:
    _, secret = make_credential(allowed_addresses=["192.0.2.0/24"])
    maker = replace(by_secret(secret), address="192.0.2.7")

    with nothing_written():
        for addresses in (["192.0.0.0/16"], ["192.0.2.1", "198.51.100.1"], ["::/0"]):
            answer = maker.post("/credentials", {**CI, "allowed_addresses": addresses})
            assert_problem(answer, 400, pointer="/allowed_addresses")
    unsaid = maker.post("/credentials", CI).json()
    narrower = maker.post("/credentials", {**CI, "allowed_addresses": ["192.0.2.128/25"]}).json()

    assert unsaid["allowed_addresses"] == ["192.0.2.0/24"]
    assert narrower["allowed_addresses"] == ["192.0.2.128/25"]


def test_it_writes_addresses_as_networks(api: Api) -> None:
    made = api.post("/credentials", {**CI, "allowed_addresses": ["10.1.2.3", "10.0.0.7/8", "2001:db8::1"]}).json()

    assert made["allowed_addresses"] == ["10.1.2.3/32", "10.0.0.0/8", "2001:db8::1/128"]


def test_it_revokes_once_and_for_all(api: Api) -> None:
    made = api.post("/credentials", CI).json()
    path = f"/credentials/{made['id']}"

    first, again = api.delete(path), api.delete(path)

    assert (first.status_code, again.status_code) == (204, 204)
    assert api.get(path).json()["revoked_at"]
    assert_problem(by_secret(made["secret"]).get("/licenses"), 401, "unauthenticated")


def test_it_may_revoke_itself(api: Api) -> None:
    made = api.post("/credentials", {"name": "Self", "scopes": ["credentials:write"]}).json()

    assert by_secret(made["secret"]).delete(f"/credentials/{made['id']}").status_code == 204
    assert_problem(by_secret(made["secret"]).delete(f"/credentials/{made['id']}"), 401, "unauthenticated")


def test_it_has_no_credential_that_is_not_there(api: Api) -> None:
    assert_problem(api.get(f"/credentials/{MISSING_ID}"), 404, "not_found")
    assert_problem(api.delete(f"/credentials/{MISSING_ID}"), 404, "not_found")


def test_it_lists_the_credentials_of_a_customer(world: World, api: Api) -> None:
    found = api.get(f"/credentials?customer={world.customer.pk}").json()["results"]

    assert [row["id"] for row in found] == [str(world.credential_id)]
