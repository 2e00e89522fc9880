"""/members."""

import pytest
from django.contrib.auth import get_user_model

from licensing.models import Member
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, nothing_written, own_server
from tests.factories import make_user


def test_it_lets_a_new_person_act_for_a_customer(world: World, api: Api) -> None:
    body = {"customer": str(world.customer.pk), "email": "New@Example.com", "role": "billing"}

    answer = api.post("/members", body)

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {"id", "created_at", "customer", "email", "role"}
    assert (made["email"], made["role"]) == ("new@example.com", "billing")
    user = get_user_model().objects.get(email="new@example.com")
    assert not user.has_usable_password()
    assert not user.is_staff


def test_it_takes_the_person_who_is_there_already(world: World, api: Api) -> None:
    user = make_user(email="known@example.com")

    answer = api.post("/members", {"customer": str(world.customer.pk), "email": "KNOWN@example.com", "role": "viewer"})

    assert answer.status_code == 201
    assert Member.objects.get(pk=answer.json()["id"]).user_id == user.pk


def test_it_makes_nobody_a_member_twice(world: World, api: Api) -> None:
    body = {"customer": str(world.customer.pk), "email": world.member.user.email, "role": "owner"}

    with nothing_written():
        answer = api.post("/members", body)

    assert_problem(answer, 409, "already_member")
    assert Member.objects.get(pk=world.member.pk).role == "viewer"


def test_it_has_no_member_without_a_customer(api: Api) -> None:
    with nothing_written():
        answer = api.post("/members", {"customer": MISSING_ID, "email": "new@example.com", "role": "viewer"})

    assert_problem(answer, 404, "not_found")


@pytest.mark.parametrize("role", ["", "king", "OWNER", "owner "])
def test_it_knows_only_its_roles(role: str, world: World, api: Api) -> None:
    with nothing_written():
        assert_problem(api.patch(f"/members/{world.member.pk}", {"role": role}), 400, pointer="/role")


def test_it_changes_a_role_and_nothing_else(world: World, api: Api) -> None:
    path = f"/members/{world.member.pk}"

    changed = api.patch(path, {"role": "license_manager"})
    again = api.patch(path, {"role": "license_manager"})

    assert changed.json()["role"] == "license_manager"
    assert again.status_code == 200
    assert_problem(api.patch(path, {"role": "owner", "email": "x@example.com"}), 400, "unknown_field", "/email")
    assert_problem(api.patch(path, {}), 400, pointer="/role")


def test_it_keeps_the_last_owner(world: World, api: Api) -> None:
    owner = Member.objects.get(customer=world.customer, role="owner")

    with nothing_written():
        assert_problem(api.patch(f"/members/{owner.pk}", {"role": "viewer"}), 409, "last_owner")
        assert_problem(api.delete(f"/members/{owner.pk}"), 409, "last_owner")


def test_it_removes_a_member_and_then_has_none(world: World, api: Api) -> None:
    path = f"/members/{world.member.pk}"

    first, again = api.delete(path), api.delete(path)

    assert first.status_code == 204
    assert_problem(again, 404, "not_found")
    assert get_user_model().objects.filter(pk=world.member.user_id).exists()


def test_it_shows_a_customer_its_own_members(world: World) -> None:
    server = own_server(world)

    listed = server.get("/members?role=viewer").json()["results"]

    assert [row["id"] for row in listed] == [str(world.member.pk)]
    assert_problem(server.get(f"/members/{world.other_member.pk}"), 404, "not_found")
