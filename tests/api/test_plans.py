"""/plans."""

from tests.api.conftest import MISSING_ID, Api, World, assert_problem, nothing_written
from tests.factories import make_product


def test_it_makes_a_plan_of_a_product(world: World, api: Api) -> None:
    answer = api.post("/plans", {"product": str(world.product.pk), "code": "team", "name": "Team"})

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {"id", "created_at", "product", "code", "name", "description"}
    assert (made["product"], made["code"], made["description"]) == (str(world.product.pk), "team", "")
    assert api.get(f"/plans/{made['id']}").json() == made


def test_it_takes_a_code_once_per_product(world: World, api: Api) -> None:
    with nothing_written():
        answer = api.post("/plans", {"product": str(world.product.pk), "code": world.plan.code, "name": "x"})
    elsewhere = api.post("/plans", {"product": str(make_product().pk), "code": world.plan.code, "name": "x"})

    assert_problem(answer, 409, "code_taken")
    assert elsewhere.status_code == 201


def test_it_has_no_plan_without_its_product(world: World, api: Api) -> None:
    with nothing_written():
        assert_problem(api.post("/plans", {"product": MISSING_ID, "code": "x", "name": "x"}), 404, "not_found")
        assert_problem(api.post("/plans", {"code": "x", "name": "x"}), 400, pointer="/product")


def test_it_renames_a_plan_and_moves_it_nowhere(world: World, api: Api) -> None:
    changed = api.patch(f"/plans/{world.plan.pk}", {"name": "Crew", "description": "Ten people"})
    moved = api.patch(f"/plans/{world.plan.pk}", {"product": str(make_product().pk)})

    assert (changed.json()["name"], changed.json()["description"]) == ("Crew", "Ten people")
    assert_problem(moved, 400, "unknown_field", "/product")


def test_it_lists_the_plans_of_a_product(world: World, api: Api) -> None:
    other = make_product()
    api.post("/plans", {"product": str(other.pk), "code": "x", "name": "Other's"})

    found = api.get(f"/plans?product={other.pk}").json()["results"]

    assert [row["name"] for row in found] == ["Other's"]
    assert [row["id"] for row in api.get(f"/plans?code={world.plan.code}").json()["results"]] == [str(world.plan.pk)]


def test_it_has_no_plan_that_is_not_there(api: Api) -> None:
    assert_problem(api.get(f"/plans/{MISSING_ID}"), 404, "not_found")
