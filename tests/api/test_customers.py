"""/customers."""

import pytest

from licensing.models import AuditEntry, Customer
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    nothing_written,
    other_server,
    own_server,
    without_request_id,
)


def test_it_makes_a_customer(api: Api) -> None:
    answer = api.post("/customers", {"code": "acme", "name": "Acme", "email": "it@acme.example"})

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {"id", "created_at", "code", "name", "email"}
    assert (made["code"], made["name"], made["email"]) == ("acme", "Acme", "it@acme.example")
    assert api.get(f"/customers/{made['id']}").json() == made


def test_it_makes_one_without_an_address(api: Api) -> None:
    for number, body in enumerate(({}, {"email": ""})):
        assert api.post("/customers", {"code": f"c-{number}", "name": "C", **body}).json()["email"] == ""


def test_it_refuses_a_code_that_is_taken(world: World, api: Api) -> None:
    with nothing_written():
        answer = api.post("/customers", {"code": world.customer.code, "name": "Again"})

    assert_problem(answer, 409, "code_taken")


@pytest.mark.parametrize("email", ["x", "a@b", f"{'x' * 250}@example.com", "a@example.com, b@example.com"])
def test_it_wants_an_email_address_or_none(email: str, world: World, api: Api) -> None:
    with nothing_written():
        assert_problem(api.post("/customers", {"code": "x", "name": "x", "email": email}), 400, pointer="/email")
        assert_problem(api.patch(f"/customers/{world.customer.pk}", {"email": email}), 400, pointer="/email")


def test_it_changes_only_what_is_said_and_records_no_address(world: World, api: Api) -> None:
    path = f"/customers/{world.customer.pk}"
    api.patch(path, {"email": "it@acme.example"})

    changed = api.patch(path, {"name": "Acme"}).json()

    assert (changed["name"], changed["email"]) == ("Acme", "it@acme.example")
    assert not any("acme.example" in str((entry.before, entry.after)) for entry in AuditEntry.objects.all())


def test_it_never_changes_a_code(world: World, api: Api) -> None:
    assert_problem(api.patch(f"/customers/{world.customer.pk}", {"code": "x"}), 400, "unknown_field", "/code")


def test_it_shows_a_customer_to_itself_alone(world: World) -> None:
    mine = own_server(world).get("/customers").json()["results"]
    missing = other_server(world).get(f"/customers/{MISSING_ID}")
    foreign = other_server(world).get(f"/customers/{world.customer.pk}")

    assert [row["id"] for row in mine] == [str(world.customer.pk)]
    assert_problem(foreign, 404, "not_found")
    assert without_request_id(foreign) == without_request_id(missing)


def test_it_deletes_no_customer(world: World, api: Api) -> None:
    assert_problem(api.delete(f"/customers/{world.customer.pk}"), 405, "method_not_allowed")
    assert Customer.objects.filter(pk=world.customer.pk).exists()


def test_it_finds_a_customer_by_its_code(world: World, api: Api) -> None:
    found = api.get(f"/customers?code={world.customer.code}").json()["results"]

    assert [row["id"] for row in found] == [str(world.customer.pk)]
