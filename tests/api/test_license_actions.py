"""POST /licenses/{id}/…: what is done to a license."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from licensing import lifecycle
from licensing.models import Activation, AuditEntry, Hold, License, OutboxMessage, Seat, Term
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    nothing_written,
    secrets_in,
)
from tests.factories import BY, make_license, make_plan, make_revision

NOW = datetime.now(UTC)
ACTIONS: dict[str, dict[str, Any]] = {
    "hold": {"reason": "unpaid"},
    "lift": {"reason": "unpaid"},
    "renew": {},
    "revoke": {"reason": "Refunded"},
    "transfer": {"customer": MISSING_ID, "reason": "Sold"},
    "rotate-key": {"reason": "Leaked"},
    "change-limits": {"seat_limit": 5},
    "change-plan": {"plan": MISSING_ID},
}


def do(api: Api, world: World, action: str, body: Any = None, **headers: str) -> Any:
    return api.post(f"/licenses/{world.license.pk}/{action}", body, **headers)


@pytest.mark.parametrize("action", ACTIONS)
def test_it_does_nothing_to_a_license_that_is_not_there(action: str, api: Api) -> None:
    assert_problem(api.post(f"/licenses/{MISSING_ID}/{action}", ACTIONS[action]), 404, "not_found")


@pytest.mark.parametrize("action", ["hold", "renew", "transfer", "change-limits", "change-plan"])
def test_it_does_nothing_more_to_a_revoked_license(action: str, world: World, api: Api) -> None:
    do(api, world, "revoke", {"reason": "Refunded"})
    body = (
        ACTIONS[action]
        | ({"customer": str(world.third_customer.pk)} if action == "transfer" else {})
        | ({"plan": str(world.plan.pk)} if action == "change-plan" else {})
    )

    with nothing_written():
        assert_problem(do(api, world, action, body), 409, "license_not_usable")


# --- hold, lift ---------------------------------------------------------------------------------------


def test_it_holds_a_license_and_lifts_the_hold(world: World, api: Api) -> None:
    held = do(api, world, "hold", {"reason": "unpaid", "note": "Invoice 7"})
    refused = by_key(world.key).post("/validate", {}).json()
    lifted = do(api, world, "lift", {"reason": "unpaid"})

    assert (held.status_code, held.json()["status"]) == (200, "held")
    assert refused["code"] == "held"
    assert (lifted.status_code, lifted.json()["status"]) == (200, "active")
    assert by_key(world.key).post("/validate", {}).json()["code"] == "valid"


def test_it_holds_for_each_reason_once(world: World, api: Api) -> None:
    do(api, world, "hold", {"reason": "unpaid"})
    do(api, world, "hold", {"reason": "abuse"})

    with nothing_written():
        assert_problem(do(api, world, "hold", {"reason": "unpaid"}), 409, "already_held")
    assert do(api, world, "lift", {"reason": "unpaid"}).json()["status"] == "held"
    assert do(api, world, "lift", {"reason": "abuse"}).json()["status"] == "active"
    assert Hold.objects.filter(license=world.license).count() == 2


def test_it_lifts_no_hold_that_is_none(world: World, api: Api) -> None:
    do(api, world, "hold", {"reason": "unpaid"})

    with nothing_written():
        assert_problem(do(api, world, "lift", {"reason": "abuse"}), 409, "not_held")


@pytest.mark.parametrize("reason", ["", "because", "UNPAID"])
def test_it_knows_only_its_reasons_to_hold(reason: str, world: World, api: Api) -> None:
    for action in ("hold", "lift"):
        assert_problem(do(api, world, action, {"reason": reason}), 400, pointer="/reason")


# --- renew ------------------------------------------------------------------------------------------------


def test_it_renews_by_the_plans_duration_or_the_one_given(world: World, api: Api) -> None:
    expiry = License.objects.get(pk=world.license.pk).expires_at
    assert expiry is not None

    by_plan = do(api, world, "renew").json()
    by_day = do(api, world, "renew", {"duration_seconds": 86_400, "reason": "One day more"}).json()

    assert datetime.fromisoformat(by_plan["expires_at"]) == expiry + timedelta(days=365)
    assert datetime.fromisoformat(by_day["expires_at"]) == expiry + timedelta(days=366)


def test_it_renews_nothing_that_never_ends(api: Api) -> None:
    license = make_license(at=NOW, duration=None)

    with nothing_written():
        answer = api.post(f"/licenses/{license.pk}/renew", {"duration_seconds": 86_400})

    assert_problem(answer, 409, "nothing_to_renew")


def test_it_wants_to_know_how_long_where_the_plan_says_nothing(api: Api) -> None:
    license = make_license(at=NOW, duration=None, expires_at=NOW + timedelta(days=1))

    assert_problem(api.post(f"/licenses/{license.pk}/renew"), 400, pointer="/duration_seconds")


def test_it_renews_no_license_beyond_the_end_of_time(world: World, api: Api) -> None:
    far = NOW.replace(year=2999)
    license = make_license(plan_revision=world.revision, at=NOW, expires_at=far)
    century = {"duration_seconds": 3_155_760_000}

    statuses = [api.post(f"/licenses/{license.pk}/renew", century).status_code for _ in range(75)]

    assert set(statuses) == {200, 400}
    assert statuses == sorted(statuses)
    assert api.get(f"/licenses/{license.pk}").status_code == 200


# --- revoke ---------------------------------------------------------------------------------------------------


def test_it_revokes_once_and_for_all(world: World, api: Api) -> None:
    first = do(api, world, "revoke", {"reason": "Refunded"})
    with nothing_written():
        again = do(api, world, "revoke", {"reason": "Refunded twice"})

    assert (first.status_code, first.json()["status"]) == (200, "revoked")
    assert (again.status_code, again.json()["status"]) == (200, "revoked")
    assert OutboxMessage.objects.filter(license_id=world.license.pk).count() == 1


@pytest.mark.parametrize("action", ["revoke", "rotate-key", "transfer"])
@pytest.mark.parametrize("reason", ["", "   ", "\t"])
def test_it_wants_a_reason_for_what_has_no_way_back(action: str, reason: str, world: World, api: Api) -> None:
    with nothing_written():
        for body in (
            {**ACTIONS[action], "reason": reason},
            {k: v for k, v in ACTIONS[action].items() if k != "reason"},
        ):
            assert_problem(do(api, world, action, body), 400, pointer="/reason")


# --- rotate-key, transfer ---------------------------------------------------------------------------------------


def test_it_replaces_the_key_and_tells_the_new_one_this_once(world: World, api: Api) -> None:
    answer = do(api, world, "rotate-key", {"reason": "Leaked"})

    key = answer.json()["key"]
    assert answer.status_code == 200
    assert key != world.key
    assert secrets_in(answer) == [key]
    assert by_key(key).post("/validate", {}).json()["code"] == "valid"
    assert_problem(by_key(world.key).post("/validate", {}), 401, "unauthenticated")
    assert secrets_in(api.get(f"/licenses/{world.license.pk}")) == []
    assert not any(key in str(entry.__dict__) for entry in AuditEntry.objects.all())


def test_it_gives_the_license_to_another_customer_and_leaves_nothing_behind(world: World, api: Api) -> None:
    answer = do(api, world, "transfer", {"customer": str(world.third_customer.pk), "reason": "Sold"})

    assert answer.status_code == 200
    assert answer.json()["customer"] == str(world.third_customer.pk)
    assert (answer.json()["seats_used"], answer.json()["activations_used"]) == (0, 0)
    assert secrets_in(answer) == []
    assert_problem(by_key(world.key).post("/validate", {}), 401, "unauthenticated")
    assert Seat.objects.get(pk=world.seat.pk).state == "released"
    assert Activation.objects.get(pk=world.activation.pk).deactivated_at is not None


def test_it_gives_no_license_to_who_has_it_and_none_to_nobody(world: World, api: Api) -> None:
    with nothing_written():
        own = do(api, world, "transfer", {"customer": str(world.customer.pk), "reason": "Sold"})
        nobody = do(api, world, "transfer", {"customer": MISSING_ID, "reason": "Sold"})

    assert_problem(own, 409, "refused")
    assert_problem(nobody, 404, "not_found")


# --- change-limits, change-plan ------------------------------------------------------------------------------------


def test_it_changes_only_the_limits_that_are_said(world: World, api: Api) -> None:
    seats = do(api, world, "change-limits", {"seat_limit": 20, "reason": "Upsell"}).json()
    machines = do(api, world, "change-limits", {"activation_limit": None}).json()

    assert (seats["seat_limit"], seats["activation_limit"]) == (20, 5)
    assert (machines["seat_limit"], machines["activation_limit"]) == (20, None)


def test_it_throws_nobody_out_when_a_limit_falls(world: World, api: Api) -> None:
    changed = do(api, world, "change-limits", {"seat_limit": 0, "activation_limit": 0}).json()

    assert (changed["seat_limit"], changed["seats_used"]) == (0, 1)
    body = {"license": str(world.license.pk), "holder": "eve@example.com"}
    assert_problem(api.post("/seats", body), 409, "no_seat_available")


def test_it_puts_the_license_under_another_plan(world: World, api: Api) -> None:
    revision = make_revision(plan=make_plan(product=world.product), seat_limit=50)

    by_plan = do(api, world, "change-plan", {"plan": str(revision.plan_id), "reason": "Upgrade"})

    assert by_plan.status_code == 200
    assert (by_plan.json()["plan"], by_plan.json()["seat_limit"]) == (str(revision.plan_id), 50)
    assert Term.objects.filter(license=world.license).count() == 2


def test_it_shows_a_change_of_plan_before_it_is_made(world: World, api: Api) -> None:
    revision = make_revision(plan=make_plan(product=world.product), seat_limit=50)
    before = api.get(f"/licenses/{world.license.pk}").json()

    with nothing_written():
        answer = do(api, world, "change-plan?preview=true", {"plan": str(revision.plan_id)})

    assert answer.status_code == 200
    assert answer.json()["before"] == before
    assert answer.json()["after"] == {
        **before,
        "plan": str(revision.plan_id),
        "plan_revision": str(revision.pk),
        "seat_limit": 50,
    }
    assert api.get(f"/licenses/{world.license.pk}").json() == before


def test_it_refuses_in_the_preview_what_it_refuses_in_earnest(world: World, api: Api) -> None:
    elsewhere = make_revision()

    with nothing_written():
        for path in ("change-plan", "change-plan?preview=true", "change-plan?preview=false"):
            other = do(api, world, path, {"plan_revision": str(elsewhere.pk)})
            draft = do(api, world, path, {"plan_revision": str(world.draft.pk)})
            assert_problem(other, 409, "other_product")
            assert_problem(draft, 409, "revision_not_published")


@pytest.mark.parametrize("preview", ["", "1", "yes", "True", "%00"])
def test_it_previews_only_when_told_so_plainly(preview: str, world: World, api: Api) -> None:
    with nothing_written():
        answer = do(api, world, f"change-plan?preview={preview}", {"plan": str(world.plan.pk)})

    assert_problem(answer, 400, pointer="/preview")


def test_it_keeps_no_preview_for_the_request_in_earnest(world: World, api: Api) -> None:
    revision = make_revision(plan=make_plan(product=world.product), seat_limit=50)
    body = {"plan": str(revision.plan_id)}

    do(api, world, "change-plan?preview=true", body, idempotency_key="one-key")
    in_earnest = do(api, world, "change-plan", body, idempotency_key="one-key")

    assert_problem(in_earnest, 422, "idempotency_key_reused")
    assert License.objects.get(pk=world.license.pk).seat_limit == 10


@pytest.mark.parametrize("body", [{}, {"plan": MISSING_ID, "plan_revision": MISSING_ID}])
def test_it_wants_one_plan_or_one_revision(body: dict[str, str], world: World, api: Api) -> None:
    assert_problem(do(api, world, "change-plan", body), 400, pointer="/plan")


def test_it_does_two_things_in_the_order_they_came(world: World, api: Api) -> None:
    lifecycle.hold(license=world.license, reason="unpaid", by=BY, at=NOW)

    renewed = do(api, world, "renew")

    assert (renewed.status_code, renewed.json()["status"]) == (200, "held")
