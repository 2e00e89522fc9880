"""/products."""

import pytest

from licensing.models import AuditEntry, Product
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_scopes, nothing_written


def test_it_makes_a_product(api: Api) -> None:
    answer = api.post("/products", {"code": "atlas", "name": "Atlas", "description": "Maps"})

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {"id", "created_at", "code", "name", "description"}
    assert (made["code"], made["name"], made["description"]) == ("atlas", "Atlas", "Maps")
    assert api.get(f"/products/{made['id']}").json() == made
    assert AuditEntry.objects.filter(action="product.created", object_id=made["id"]).count() == 1


def test_it_refuses_a_code_that_is_taken(world: World, api: Api) -> None:
    with nothing_written():
        answer = api.post("/products", {"code": world.product.code, "name": "Again"})

    assert_problem(answer, 409, "code_taken")


@pytest.mark.parametrize("code", ["", "a b", "ä", "x" * 65, "a/b", " a", "a\n"])
def test_it_refuses_a_code_nobody_could_type(code: str, api: Api) -> None:
    with nothing_written():
        assert_problem(api.post("/products", {"code": code, "name": "x"}), 400, pointer="/code")


@pytest.mark.parametrize("missing", ["code", "name"])
def test_it_wants_code_and_name(missing: str, api: Api) -> None:
    body = {"code": "x", "name": "x"}
    del body[missing]

    assert_problem(api.post("/products", body), 400, pointer=f"/{missing}")


def test_it_says_everything_that_is_wrong_at_once(api: Api) -> None:
    problem = assert_problem(api.post("/products", {"description": 5}), 400)

    assert {error["pointer"] for error in problem["errors"]} == {"/code", "/name", "/description"}


def test_it_changes_only_what_is_said(world: World, api: Api) -> None:
    api.patch(f"/products/{world.product.pk}", {"description": "Maps"})
    changed = api.patch(f"/products/{world.product.pk}", {"name": "Atlas"}).json()

    assert (changed["name"], changed["description"], changed["code"]) == ("Atlas", "Maps", world.product.code)


def test_it_records_no_change_that_is_none(world: World, api: Api) -> None:
    with nothing_written():
        for body in ({}, {"name": world.product.name}):
            assert api.patch(f"/products/{world.product.pk}", body).status_code == 200


def test_it_never_changes_a_code(world: World, api: Api) -> None:
    answer = api.patch(f"/products/{world.product.pk}", {"code": "other"})

    assert_problem(answer, 400, "unknown_field", "/code")
    assert Product.objects.get(pk=world.product.pk).code == world.product.code


def test_it_has_no_product_that_is_not_there(api: Api) -> None:
    assert_problem(api.get(f"/products/{MISSING_ID}"), 404, "not_found")
    assert_problem(api.patch(f"/products/{MISSING_ID}", {}), 404, "not_found")


def test_it_finds_a_product_by_its_code(world: World, api: Api) -> None:
    api.post("/products", {"code": "another", "name": "Another"})

    found = api.get("/products?code=another").json()["results"]

    assert [row["name"] for row in found] == ["Another"]


def test_it_reads_but_does_not_write_with_the_reading_scope(world: World) -> None:
    reader = by_scopes("catalog:read")

    assert reader.get("/products").status_code == 200
    assert_problem(reader.post("/products", {"code": "x", "name": "x"}), 403, "forbidden")
