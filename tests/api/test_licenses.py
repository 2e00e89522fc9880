"""/licenses: issue, read, list. What is done to a license stands in test_license_actions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from licensing import keys, lifecycle
from licensing.models import License, LicenseKey
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    nothing_written,
    own_server,
    secrets_in,
)
from tests.factories import BY, make_license, make_plan, make_product

NOW = datetime.now(UTC)
FIELDS = {
    *("id", "created_at", "customer", "product", "plan", "plan_revision", "scheme", "status", "starts_at"),
    *("expires_at", "grace_until", "maintenance_until", "seat_limit", "seats_used", "activation_limit"),
    *("activations_used", "key_last5"),
}


def issue(api: Api, world: World, **more: Any) -> Any:
    return api.post("/licenses", {"customer": str(world.customer.pk), "plan": str(world.plan.pk), **more})


def test_it_issues_a_license_and_tells_its_key_this_once(world: World, api: Api) -> None:
    answer = issue(api, world)

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == FIELDS | {"key"}
    assert (made["customer"], made["plan_revision"]) == (str(world.customer.pk), str(world.revision.pk))
    assert (made["status"], made["seat_limit"], made["seats_used"]) == ("active", 10, 0)
    assert made["key"].endswith(made["key_last5"])
    assert secrets_in(answer) == [made["key"]]
    assert by_key(made["key"]).post("/validate", {}).json()["code"] == "valid"


def test_it_never_tells_a_key_again(world: World, api: Api) -> None:
    made = issue(api, world).json()

    for path in (f"/licenses/{made['id']}", "/licenses?limit=200", "/audit-entries?limit=200", "/schema"):
        answer = api.get(path)
        assert answer.status_code == 200
        assert secrets_in(answer) == []
    assert set(api.get(f"/licenses/{made['id']}").json()) == FIELDS


def test_it_stores_no_key_as_it_is(world: World, api: Api) -> None:
    key = issue(api, world).json()["key"]

    row = LicenseKey.objects.get(last5=key[-5:], license__seats_used=0, license__activations_used=0)

    assert key not in str(row.__dict__)
    assert key.replace("-", "") not in str(row.__dict__)


def test_it_issues_under_a_revision_that_is_named(world: World, api: Api) -> None:
    answer = api.post("/licenses", {"customer": str(world.customer.pk), "plan_revision": str(world.revision.pk)})

    assert answer.status_code == 201


def test_it_issues_with_terms_of_its_own(world: World, api: Api) -> None:
    made = issue(
        api,
        world,
        starts_at="2026-01-01T00:00:00Z",
        expires_at="2030-01-01T01:00:00+01:00",
        seat_limit=None,
        activation_limit=3,
        reason="Order 7",
    ).json()

    assert (made["starts_at"], made["expires_at"]) == ("2026-01-01T00:00:00Z", "2030-01-01T00:00:00Z")
    assert (made["seat_limit"], made["activation_limit"]) == (None, 3)


@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"plan": None}, 400, "/plan"),
        ({"plan_revision": MISSING_ID}, 400, "/plan"),
        ({"customer": MISSING_ID}, 404, None),
        ({"plan": MISSING_ID}, 404, None),
        ({"starts_at": "2030-01-01T00:00:00Z", "expires_at": "2030-01-01T00:00:00Z"}, 400, "/expires_at"),
    ],
)
def test_it_issues_nothing_that_is_not_said_right(
    change: dict[str, Any], status: int, pointer: str | None, world: World, api: Api
) -> None:
    with nothing_written():
        assert_problem(issue(api, world, **change), status, pointer=pointer)


def test_it_wants_a_plan_or_a_revision(world: World, api: Api) -> None:
    assert_problem(api.post("/licenses", {"customer": str(world.customer.pk)}), 400, pointer="/plan")


def test_it_issues_nothing_that_is_not_for_sale(world: World, api: Api) -> None:
    empty = make_plan(product=make_product())

    with nothing_written():
        assert_problem(issue(api, world, plan=str(empty.pk)), 409, "revision_not_published")
        answer = api.post("/licenses", {"customer": str(world.customer.pk), "plan_revision": str(world.draft.pk)})
        assert_problem(answer, 409, "revision_not_published")


@pytest.mark.parametrize(
    ("status", "days"), [("active", 10), ("in_grace", -10), ("expired", -40), ("held", 10), ("revoked", 10)]
)
def test_it_shows_and_finds_the_status_of_now(status: str, days: int, api: Api) -> None:
    begin = NOW - timedelta(days=100)
    license = make_license(at=begin, duration=NOW + timedelta(days=days) - begin, grace_period=timedelta(days=30))
    if status == "held":
        lifecycle.hold(license=license, reason="unpaid", by=BY, at=NOW)
    if status == "revoked":
        lifecycle.revoke(license=license, reason="Refunded", by=BY, at=NOW)

    shown = api.get(f"/licenses/{license.pk}").json()
    found = {each: api.get(f"/licenses?status={each}").json()["results"] for each in ("active", status)}

    assert shown["status"] == status
    assert [row["id"] for row in found[status]] == [str(license.pk)]
    assert status == "active" or found["active"] == []


def test_it_filters_by_customer_product_plan_revision_and_scheme(world: World, api: Api) -> None:
    both = {str(world.license.pk), str(world.other_license.pk)}

    for query, wanted in (
        (f"customer={world.customer.pk}", {str(world.license.pk)}),
        (f"product={world.product.pk}", both),
        (f"plan={world.plan.pk}", both),
        (f"plan_revision={world.revision.pk}&scheme=seats", both),
        (f"plan={MISSING_ID}", set()),
        ("scheme=usage", set()),
    ):
        found = {row["id"] for row in api.get(f"/licenses?{query}").json()["results"]}
        assert found == wanted, query


def test_it_shows_a_license_to_its_customer_alone(world: World) -> None:
    server = own_server(world)

    assert server.get(f"/licenses/{world.license.pk}").status_code == 200
    assert [row["id"] for row in server.get("/licenses").json()["results"]] == [str(world.license.pk)]
    for pk in (world.other_license.pk, MISSING_ID):
        assert_problem(server.get(f"/licenses/{pk}"), 404, "not_found")


def test_it_is_no_call_for_a_license_key(world: World) -> None:
    assert_problem(by_key(world.key).get(f"/licenses/{world.license.pk}"), 403, "forbidden")


def test_it_deletes_and_rewrites_no_license(world: World, api: Api) -> None:
    for method in ("DELETE", "PATCH", "PUT"):
        answer = api.request(method, f"/licenses/{world.license.pk}", {"seat_limit": 1000})
        assert_problem(answer, 405, "method_not_allowed")


def test_it_shows_no_key_of_a_license_that_has_none(world: World, api: Api) -> None:
    draft = lifecycle.prepare(customer=world.customer, plan_revision=world.revision, by=BY, at=NOW)

    shown = api.get(f"/licenses/{draft.pk}").json()

    assert (shown["status"], shown["key_last5"]) == ("draft", None)


def test_it_asks_the_database_as_often_for_many_as_for_one(world: World, django_assert_max_num_queries: Any) -> None:
    api = by_scopes("licenses:read")
    for _ in range(5):
        make_license(plan_revision=world.revision, customer=world.customer, at=NOW)

    with django_assert_max_num_queries(4):
        api.get("/licenses")


def test_it_shows_the_last_five_of_the_newest_key(world: World, api: Api) -> None:
    key = keys.rotate(license=world.license, by=BY, reason="Leaked", at=NOW)

    assert api.get(f"/licenses/{world.license.pk}").json()["key_last5"] == key[-5:]
    assert License.objects.get(pk=world.license.pk).keys.count() == 2
