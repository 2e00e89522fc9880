"""/seats."""

from datetime import UTC, datetime, timedelta

import pytest

from licensing import lifecycle, seats
from licensing.models import License, Seat
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_key, nothing_written, own_server
from tests.factories import BY, make_license

NOW = datetime.now(UTC)


def test_it_assigns_a_seat(world: World) -> None:
    answer = own_server(world).post("/seats", {"license": str(world.license.pk), "holder": " Eve@Example.com "})

    assert answer.status_code == 201
    seat = answer.json()
    assert set(seat) == {"id", "created_at", "license", "holder", "state", "assigned_at", "released_at"}
    assert (seat["holder"], seat["state"], seat["released_at"]) == ("eve@example.com", "assigned", None)
    assert License.objects.get(pk=world.license.pk).seats_used == 2


def test_it_answers_the_same_holder_with_the_seat_they_have(world: World, api: Api) -> None:
    answer = api.post("/seats", {"license": str(world.license.pk), "holder": "ADA@example.com"})

    assert answer.status_code == 200
    assert answer.json()["id"] == str(world.seat.pk)
    assert License.objects.get(pk=world.license.pk).seats_used == 1


def test_it_refuses_one_holder_too_many(api: Api) -> None:
    license = make_license(at=NOW, seat_limit=1)
    api.post("/seats", {"license": str(license.pk), "holder": "ada@example.com"})

    with nothing_written():
        answer = api.post("/seats", {"license": str(license.pk), "holder": "eve@example.com"})

    assert_problem(answer, 409, "no_seat_available")
    assert License.objects.get(pk=license.pk).seats_used == 1


def test_it_refuses_a_blocked_holder(world: World, api: Api) -> None:
    seats.block(seat=world.seat, reason="Left", by=BY, at=NOW)

    answer = api.post("/seats", {"license": str(world.license.pk), "holder": "ada@example.com"})

    assert_problem(answer, 409, "seat_is_blocked")


@pytest.mark.parametrize(
    ("terms", "code"),
    [({"seat_kind": "floating"}, "seats_not_named"), ({"duration": timedelta(days=1)}, "license_not_usable")],
)
def test_it_refuses_where_the_license_has_no_seats_to_assign(terms: dict[str, object], code: str, api: Api) -> None:
    license = make_license(at=NOW - timedelta(days=2), **terms)

    with nothing_written():
        answer = api.post("/seats", {"license": str(license.pk), "holder": "ada@example.com"})

    assert_problem(answer, 409, code)


def test_it_refuses_on_a_revoked_license(world: World, api: Api) -> None:
    lifecycle.revoke(license=world.license, reason="Refunded", by=BY, at=NOW)

    answer = api.post("/seats", {"license": str(world.license.pk), "holder": "eve@example.com"})

    assert_problem(answer, 409, "license_not_usable")


@pytest.mark.parametrize("holder", ["", " ", "x", "a@b", "a b@example.com", "a@example.com\nb@example.com", "@", "ä"])
def test_it_wants_an_email_address(holder: str, world: World, api: Api) -> None:
    with nothing_written():
        for path, body in (
            ("/seats", {"license": str(world.license.pk), "holder": holder}),
            (f"/seats/{world.seat.pk}/transfer", {"holder": holder}),
        ):
            assert_problem(api.post(path, body), 400, pointer="/holder")


def test_it_releases_a_seat_once_and_for_all(world: World, api: Api) -> None:
    path = f"/seats/{world.seat.pk}"

    first, again = api.delete(path), api.delete(path)

    assert (first.status_code, first.content, again.status_code) == (204, b"", 204)
    assert api.get(path).json()["state"] == "released"
    assert License.objects.get(pk=world.license.pk).seats_used == 0


def test_it_refuses_to_release_too_often(api: Api) -> None:
    license = make_license(at=NOW, seat_churn_limit=0, churn_window=timedelta(days=30))
    seat = api.post("/seats", {"license": str(license.pk), "holder": "ada@example.com"}).json()

    with nothing_written():
        assert_problem(api.delete(f"/seats/{seat['id']}"), 409, "seat_churn_exceeded")
        answer = api.post(f"/seats/{seat['id']}/transfer", {"holder": "eve@example.com"})
        assert_problem(answer, 409, "seat_churn_exceeded")


def test_it_hands_a_seat_over(world: World, api: Api) -> None:
    answer = api.post(f"/seats/{world.seat.pk}/transfer", {"holder": "eve@example.com"})

    assert answer.status_code == 200
    assert answer.json()["id"] != str(world.seat.pk)
    assert answer.json()["holder"] == "eve@example.com"
    assert Seat.objects.get(pk=world.seat.pk).state == "released"
    assert License.objects.get(pk=world.license.pk).seats_used == 1


def test_it_hands_nothing_over_twice(world: World, api: Api) -> None:
    path = f"/seats/{world.seat.pk}/transfer"
    api.post(path, {"holder": "eve@example.com"})

    with nothing_written():
        assert_problem(api.post(path, {"holder": "zoe@example.com"}), 409, "seat_released")


def test_it_hands_no_seat_to_somebody_who_has_one(world: World, api: Api) -> None:
    api.post("/seats", {"license": str(world.license.pk), "holder": "eve@example.com"})

    with nothing_written():
        answer = api.post(f"/seats/{world.seat.pk}/transfer", {"holder": "eve@example.com"})

    assert_problem(answer, 409, "holder_has_seat")


def test_it_knows_another_customers_seat_as_little_as_a_missing_one(world: World) -> None:
    server = own_server(world)

    for pk in (world.other_seat.pk, MISSING_ID):
        assert_problem(server.get(f"/seats/{pk}"), 404, "not_found")
        assert_problem(server.delete(f"/seats/{pk}"), 404, "not_found")
        answer = server.post(f"/seats/{pk}/transfer", {"holder": "eve@example.com"})
        assert_problem(answer, 404, "not_found")
    assert Seat.objects.get(pk=world.other_seat.pk).state == "assigned"


def test_it_is_no_call_for_a_license_key(world: World) -> None:
    assert_problem(by_key(world.key).get("/seats"), 403, "forbidden")


def test_it_pages_through_the_seats_newest_first(world: World, api: Api) -> None:
    for number in range(4):
        api.post("/seats", {"license": str(world.license.pk), "holder": f"holder-{number}@example.com"})

    pages, path = [], f"/seats?license={world.license.pk}&limit=2"
    while path:
        page = api.get(path).json()
        pages.append([row["holder"] for row in page["results"]])
        path = (page["next"] or "").partition("/api/v1")[2]

    assert pages == [
        ["holder-3@example.com", "holder-2@example.com"],
        ["holder-1@example.com", "holder-0@example.com"],
        ["ada@example.com"],
    ]
    assert page["previous"]


def test_it_filters_by_holder_in_any_spelling_and_by_state(world: World, api: Api) -> None:
    api.delete(f"/seats/{world.other_seat.pk}")

    holders = api.get("/seats?holder=ADA@example.com").json()["results"]
    released = api.get("/seats?state=released").json()["results"]

    assert [row["id"] for row in holders] == [str(world.seat.pk)]
    assert [row["id"] for row in released] == [str(world.other_seat.pk)]
