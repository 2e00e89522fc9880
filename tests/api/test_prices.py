"""/prices and their revisions."""

from typing import Any

import pytest

from billing.models import PriceRevision
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_scopes, nothing_written, own_server
from tests.api.routes import FLAT
from tests.factories import make_plan


def test_it_prices_a_plan_in_a_currency_once(world: World, api: Api) -> None:
    body = {"plan": str(world.plan.pk), "currency": "USD"}

    answer = api.post("/prices", body)

    made = answer.json()
    assert answer.status_code == 201
    assert set(made) == {"id", "created_at", "plan", "currency"}
    assert api.get(f"/prices/{made['id']}").json() == made
    assert {row["currency"] for row in api.get(f"/prices?plan={world.plan.pk}").json()["results"]} == {"EUR", "USD"}
    with nothing_written():
        assert_problem(api.post("/prices", body), 409, "price_exists")


@pytest.mark.parametrize(
    ("values", "status", "pointer"),
    [
        ({"currency": "usd"}, 400, "/currency"),
        ({"currency": "EURO"}, 400, "/currency"),
        ({"plan": MISSING_ID}, 404, ""),
    ],
)
def test_it_prices_nothing_it_does_not_know(
    values: dict[str, str], status: int, pointer: str, world: World, api: Api
) -> None:
    with nothing_written():
        answer = api.post("/prices", {"plan": str(world.plan.pk), "currency": "USD"} | values)

    problem = assert_problem(answer, status)
    assert [error["pointer"] for error in problem["errors"]] == ([pointer] if pointer else [])


def test_it_drafts_edits_and_publishes_a_price(world: World, api: Api) -> None:
    price = api.post("/prices", {"plan": str(make_plan().pk), "currency": "EUR"}).json()
    path = f"/prices/{price['id']}/revisions"
    usage = {
        "kind": "usage",
        "meter": world.meter.meter.code,
        "model": "graduated",
        "tiers": [{"up_to": "1000", "amount": "0.01"}, {"amount": "0.005"}],
    }

    drafted = api.post(path, {"components": [FLAT]})
    edited = api.patch(f"{path}/{drafted.json()['id']}", {"components": [FLAT, usage]})
    published = api.post(f"{path}/{drafted.json()['id']}/publish", {"effective_at": "2020-01-01T00:00:00Z"})

    assert drafted.status_code == 201
    assert (drafted.json()["price"], drafted.json()["number"], drafted.json()["state"]) == (price["id"], 1, "draft")
    assert edited.json()["components"] == [FLAT, usage]
    assert (published.json()["state"], published.json()["effective_at"]) == ("published", "2020-01-01T00:00:00Z")
    assert api.post(path).json()["components"] == [FLAT, usage]


@pytest.mark.parametrize(
    ("components", "pointer"),
    [
        ([{"kind": "gift"}], "/components/0/kind"),
        ([{"kind": "flat"}], "/components/0/amount"),
        ([{**FLAT, "amount": 5}], "/components/0/amount"),
        ([{**FLAT, "amount": "1e3000"}], "/components/0/amount"),
        ([FLAT, {**FLAT, "more": "x"}], "/components/1/more"),
        ([{"kind": "usage", "meter": "nobody", "model": "per_unit", "amount": "1"}], "/components/0/meter"),
        ([5], "/components/0"),
        ({}, "/components"),
        ([FLAT] * 101, "/components"),
    ],
)
def test_it_refuses_what_cannot_be_rated_and_points_at_it(
    components: Any, pointer: str, world: World, api: Api
) -> None:
    path = f"/prices/{world.price.price_id}/revisions"

    with nothing_written():
        for answer in (
            api.post(path, {"components": components}),
            api.patch(f"{path}/{world.price_draft.pk}", {"components": components}),
        ):
            assert_problem(answer, 400, pointer=pointer)


def test_it_changes_no_price_for_the_past(world: World, api: Api) -> None:
    path = f"/prices/{world.price.price_id}/revisions/{world.price_draft.pk}/publish"

    with nothing_written():
        assert_problem(api.post(path, {"effective_at": "2026-01-01T00:00:00Z"}), 400, pointer="/effective_at")
        assert_problem(api.post(path), 409, "price_in_effect")  # another is planned already


def test_it_never_changes_what_is_published(world: World, api: Api) -> None:
    path = f"/prices/{world.price.price_id}/revisions/{world.price.pk}"

    with nothing_written():
        assert_problem(api.patch(path, {"components": []}), 409, "revision_is_published")
        assert_problem(api.delete(path), 409, "revision_is_published")
        assert_problem(api.post(f"{path}/publish"), 409, "revision_is_published")
        assert_problem(api.post(f"{path}/retire"), 409, "price_in_effect")


def test_it_takes_back_what_is_planned(world: World, api: Api) -> None:
    path = f"/prices/{world.price.price_id}/revisions/{world.price_planned.pk}/retire"

    assert api.post(path, {"reason": "Not yet"}).json()["state"] == "retired"
    assert_problem(api.post(path), 409, "refused")


def test_it_discards_a_draft(world: World, api: Api) -> None:
    path = f"/prices/{world.price.price_id}/revisions/{world.price_draft.pk}"

    assert api.delete(path).status_code == 204
    assert_problem(api.delete(path), 404, "not_found")
    assert not PriceRevision.objects.filter(pk=world.price_draft.pk).exists()


def test_it_shows_a_customer_published_prices_of_its_own_plans_only(world: World) -> None:
    path = f"/prices/{world.price.price_id}"
    own = own_server(world)
    stranger = by_scopes("catalog:read", customer=world.third_customer)

    assert {row["id"] for row in own.get(f"{path}/revisions").json()["results"]} == {
        str(world.price.pk),
        str(world.price_planned.pk),
    }
    assert stranger.get("/prices").json()["results"] == []
    for hidden in (path, f"{path}/revisions", f"{path}/revisions/{world.price.pk}"):
        assert_problem(stranger.get(hidden), 404, "not_found")


def test_it_reads_but_does_not_write_with_the_reading_scope(world: World) -> None:
    reader = by_scopes("catalog:read")

    assert reader.get("/prices").status_code == 200
    assert_problem(reader.post("/prices", {"plan": str(world.plan.pk), "currency": "USD"}), 403, "forbidden")
