"""POST /licenses/{id}/change-scheme, /change-plan and /undo-change; GET …/changes."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps

from billing.models import Statement
from licensing import sweeps
from licensing.catalog import Grant
from licensing.models import SchemeChange, Term
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_key, by_scopes, nothing_written
from tests.factories import make_plan, make_price, make_revision

SOON = timedelta(days=3)


def instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


@pytest.fixture
def metered(world: World) -> Any:
    """A usage plan of the world's product."""
    calls = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(100), overage="charge")
    revision = make_revision(plan=make_plan(product=world.product), scheme="usage", grants=[calls], seat_limit=None)
    make_price(plan=revision.plan, components=[{"kind": "flat", "amount": "9.50"}])
    make_price(plan=world.plan, components=[{"kind": "seats", "amount": "1.00"}])
    return revision


def do(api: Api, world: World, action: str = "change-scheme", **body: Any) -> Any:
    query = "?preview=true" if body.pop("preview", False) else ""
    if action == "change-scheme":
        body = {"scheme": "usage", "reason": "Asked for"} | body
    return api.post(f"/licenses/{world.license.pk}/{action}{query}", body)


def test_it_changes_the_scheme_under_the_plan_named(world: World, api: Api, metered: Any) -> None:
    answer = do(api, world, plan=str(metered.plan_id))

    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["scheme"], shown["plan_revision"], shown["seat_limit"]) == ("usage", str(metered.pk), None)
    assert shown["seats_used"] == 1
    assert [each["state"] for each in api.get(f"/licenses/{world.license.pk}/changes").json()["results"]] == ["applied"]


def test_it_takes_the_own_plans_revision_or_says_what_to_do(world: World, api: Api) -> None:
    problem = assert_problem(do(api, world), 409, "no_revision_with_scheme")
    assert "Name a plan" in problem["detail"]
    assert_problem(do(api, world, scheme="seats"), 409, "scheme_unchanged")

    calls = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(100))
    newer = make_revision(plan=world.plan, scheme="usage", grants=[calls])

    assert do(api, world).json()["plan_revision"] == str(newer.pk)


def test_it_shows_money_and_limits_before_and_after_and_writes_nothing(world: World, api: Api, metered: Any) -> None:
    billing = {model: model.objects.count() for model in apps.get_app_config("billing").get_models()}

    with nothing_written():
        answer = do(api, world, plan=str(metered.plan_id), preview=True)

    assert answer.status_code == 200, answer.content
    shown = answer.json()
    assert (shown["before"]["scheme"], shown["after"]["scheme"], shown["currency"]) == ("seats", "usage", "EUR")
    limits = {each["name"]: (each["before"], each["after"]) for each in shown["limits"]}
    assert limits["seats"] == ("10", None)
    assert limits["allowance of calls"] == (None, "100, beyond it: charge")
    assert [line["kind"] for line in shown["money_before"]["lines"]] == ["seats"]
    kinds = [line["kind"] for line in shown["money_after"]["lines"]]
    assert "credit" in kinds  # unused seat time
    assert "flat" in kinds
    for side in ("money_before", "money_after"):
        assert Decimal(shown[side]["total"]) == sum(Decimal(line["amount"]) for line in shown[side]["lines"])
    assert {model: model.objects.count() for model in billing} == billing


def test_it_schedules_a_change_and_calls_it_off(world: World, api: Api, metered: Any) -> None:
    at = datetime.now(UTC) + SOON
    body = {"plan": str(metered.plan_id), "at": instant(at)}

    previewed = do(api, world, preview=True, **body)
    scheduled = do(api, world, **body)
    again = do(api, world, "change-plan", **body)
    undone = do(api, world, "undo-change", reason="No longer wished")

    assert (previewed.status_code, previewed.json()["after"]["scheme"]) == (200, "usage")
    assert (scheduled.status_code, scheduled.json()["state"], scheduled.json()["scheme"]) == (202, "scheduled", "usage")
    assert_problem(again, 409, "change_scheduled_already")
    assert (undone.status_code, undone.json()["scheme"]) == (200, "seats")
    assert SchemeChange.objects.get().state == "cancelled"
    assert_problem(do(api, world, "undo-change"), 409, "nothing_to_undo")


def test_it_makes_a_scheduled_change_at_its_instant(world: World, api: Api, metered: Any) -> None:
    at = datetime.now(UTC) + SOON
    do(api, world, "change-plan", plan=str(metered.plan_id), at=instant(at))

    sweeps.run(sweeps.CHANGES, at=at + timedelta(minutes=5))

    assert api.get(f"/licenses/{world.license.pk}").json()["scheme"] == "usage"
    assert abs(Term.objects.filter(license=world.license).first().starts_at - at) < timedelta(seconds=1)


def test_it_undoes_a_change_until_a_statement_of_its_term_is_final(world: World, api: Api, metered: Any) -> None:
    before = api.get(f"/licenses/{world.license.pk}").json()
    do(api, world, plan=str(metered.plan_id))

    undone = do(api, world, "undo-change")
    do(api, world, plan=str(metered.plan_id))
    now = datetime.now(UTC)
    Statement.objects.create(
        customer=world.customer,
        currency="EUR",
        starts_at=now - timedelta(days=31),
        ends_at=now + timedelta(days=1),
        created_at=now,
        state="final",
        number=1,
        final_at=now,
    )

    assert undone.json() == before
    assert_problem(do(api, world, "undo-change"), 409, "change_is_final")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"scheme": "rent"}, "/scheme"),
        ({"reason": ""}, "/reason"),
        ({"at": "yesterday"}, "/at"),
        ({"at": "2020-01-01T00:00:00Z"}, "/at"),
        ({"plan": "team"}, "/plan"),
        ({"more": 1}, "/more"),
    ],
)
def test_it_says_what_is_wrong_with_a_body(
    body: dict[str, Any], pointer: str, world: World, api: Api, metered: Any
) -> None:
    with nothing_written():
        answer = do(api, world, **{"plan": str(metered.plan_id)} | body)

    assert_problem(answer, 400, pointer=pointer)


def test_it_refuses_a_plan_of_another_product_or_scheme(world: World, api: Api, metered: Any) -> None:
    elsewhere = make_revision()
    with nothing_written():
        assert_problem(do(api, world, scheme="seats", plan=str(elsewhere.plan_id)), 409, "other_product")
        assert_problem(do(api, world, scheme="both", plan=str(metered.plan_id)), 400, pointer="/plan")
        assert_problem(do(api, world, plan=MISSING_ID), 404, "not_found")


def test_it_is_for_servers_with_the_scope_only(world: World, metered: Any) -> None:
    holder, reader = by_key(world.key), by_scopes("licenses:read")

    with nothing_written():
        assert_problem(do(holder, world, plan=str(metered.plan_id)), 403)
        assert_problem(do(reader, world, plan=str(metered.plan_id)), 403)


def test_it_does_it_once_for_one_key(world: World, api: Api, metered: Any) -> None:
    body = {"scheme": "usage", "plan": str(metered.plan_id), "reason": "Asked for"}
    path = f"/licenses/{world.license.pk}/change-scheme"

    answers = [api.post(path, body, Idempotency_Key="one") for _ in range(2)]

    assert answers[0].content == answers[1].content
    assert answers[1]["Idempotent-Replayed"] == "true"
    assert SchemeChange.objects.count() == 1
