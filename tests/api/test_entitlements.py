"""GET /entitlements."""

from datetime import UTC, datetime
from decimal import Decimal

from licensing import lifecycle
from licensing.catalog import Grant
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    other_server,
    own_server,
    without_request_id,
)
from tests.factories import BY, make_license_and_key

NOW = datetime.now(UTC)


def test_it_tells_what_a_license_grants(api: Api) -> None:
    grants = [
        Grant("export"),
        Grant("region", "value", value="eu"),
        Grant("calls", "allowance", meter="api-calls", amount=Decimal("1000.500000"), overage="charge"),
    ]
    license, key = make_license_and_key(at=NOW, grants=grants)

    shown = by_key(key).get("/entitlements").json()
    asked = api.get(f"/entitlements?license={license.pk}").json()

    assert shown == asked
    assert shown["license"] == str(license.pk)
    assert list(shown["entitlements"]) == ["calls", "export", "region"]
    assert "1000.5" in str(shown["entitlements"]["calls"])
    assert "eu" in str(shown["entitlements"]["region"])


def test_it_wants_a_server_to_say_which_license(api: Api) -> None:
    assert_problem(api.get("/entitlements"), 400, pointer="/license")
    assert_problem(api.get("/entitlements?license=x"), 400, pointer="/license")


def test_it_takes_the_holders_own_id_and_no_others(world: World) -> None:
    holder = by_key(world.key)

    assert holder.get(f"/entitlements?license={world.license.pk}").status_code == 200
    assert_problem(holder.get(f"/entitlements?license={world.other_license.pk}"), 404, "not_found")


def test_it_answers_for_another_customers_license_as_for_none(world: World) -> None:
    missing = own_server(world).get(f"/entitlements?license={MISSING_ID}")
    foreign = other_server(world).get(f"/entitlements?license={world.license.pk}")

    assert_problem(missing, 404, "not_found")
    assert without_request_id(foreign) == without_request_id(missing)


def test_it_tells_it_of_a_stopped_license_too(world: World) -> None:
    lifecycle.hold(license=world.license, reason="unpaid", by=BY, at=NOW)

    assert by_key(world.key).get("/entitlements").status_code == 200


def test_it_has_no_entitlement_by_id(world: World, api: Api) -> None:
    assert_problem(api.get(f"/entitlements/{world.license.pk}"), 404, "not_found")
