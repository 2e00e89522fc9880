"""GET /usage."""

from datetime import UTC, datetime, timedelta

import pytest

from billing import rollups
from tests.api.conftest import Api, World, assert_problem, by_key, by_scopes, other_server, own_server
from tests.factories import AT, make_meter, make_usage

FIRST = datetime(2026, 1, 30, tzinfo=UTC)
SPAN = "from=2026-01-30T00:00:00Z&to=2026-02-03T00:00:00Z"


@pytest.fixture
def meter(world: World) -> str:
    """Usage of three days in two months, the last of it not rolled up."""
    revision = make_meter(code="calls", dimensions=["region"])
    for hours, region in ((0, "eu"), (1, "eu"), (30, "us"), (72, None)):
        make_usage(
            license=world.license,
            revision=revision,
            at=FIRST + timedelta(hours=hours),
            quantity="1.25",
            dimensions=region and {"region": region},
        )
        if hours == 30:
            rollups.roll_up(at=AT)
    return "calls"


def told(api: Api, world: World, query: str) -> list[tuple[str, str]]:
    answer = api.get(f"/usage?license={world.license.pk}&{query}")
    assert answer.status_code == 200, answer.content
    return [(each["start"], each["quantity"]) for each in answer.json()["results"]]


def test_it_tells_usage_by_hour_day_and_month(api: Api, world: World, meter: str) -> None:
    assert told(api, world, SPAN) == [
        ("2026-01-30T00:00:00Z", "2.5"),
        ("2026-01-31T00:00:00Z", "1.25"),
        ("2026-02-02T00:00:00Z", "1.25"),
    ]
    assert told(api, world, f"{SPAN}&window=hour&meter={meter}")[:2] == [
        ("2026-01-30T00:00:00Z", "1.25"),
        ("2026-01-30T01:00:00Z", "1.25"),
    ]
    assert told(api, world, f"{SPAN}&window=month") == [
        ("2026-01-30T00:00:00Z", "3.75"),  # the part of the month that was asked for
        ("2026-02-01T00:00:00Z", "1.25"),
    ]
    assert told(api, world, "from=2026-01-01T00:00:00Z&to=2026-02-01T00:00:00Z&window=month") == [
        ("2026-01-01T00:00:00Z", "3.75")
    ]


def test_it_tells_all_of_a_window(api: Api, world: World, meter: str) -> None:
    answer = api.get(f"/usage?license={world.license.pk}&{SPAN}&meter={meter}&group_by=region&window=month").json()

    assert answer["results"] == [
        {
            "start": "2026-01-30T00:00:00Z",
            "end": "2026-02-01T00:00:00Z",
            "meter": "calls",
            "quantity": "2.5",
            "group": {"region": "eu"},
        },
        {
            "start": "2026-01-30T00:00:00Z",
            "end": "2026-02-01T00:00:00Z",
            "meter": "calls",
            "quantity": "1.25",
            "group": {"region": "us"},
        },
        {
            "start": "2026-02-01T00:00:00Z",
            "end": "2026-02-03T00:00:00Z",
            "meter": "calls",
            "quantity": "1.25",
            "group": {"region": ""},
        },
    ]


def test_the_holder_of_a_key_asks_for_its_own(world: World, meter: str) -> None:
    mine = by_key(world.key)

    assert len(mine.get(f"/usage?{SPAN}").json()["results"]) == 3
    assert by_key(world.other_key).get(f"/usage?{SPAN}").json() == {"results": []}
    assert_problem(mine.get(f"/usage?{SPAN}&license={world.other_license.pk}"), 404, "not_found")


def test_it_is_for_the_customer_alone_and_by_scope(world: World, meter: str) -> None:
    path = f"/usage?license={world.license.pk}&{SPAN}"

    assert own_server(world).get(path).status_code == 200
    assert_problem(other_server(world).get(path), 404, "not_found")
    assert_problem(by_scopes("usage").get(path), 403)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("to=2026-02-01T00:00:00Z", "/from"),
        ("from=yesterday", "/from"),
        ("from=2026-02-01T00:00:00", "/from"),
        ("from=2026-02-01T00:00:00Z&to=2026-02-01T00:00:00Z", "/from"),
        ("from=2026-02-01T00:00:00Z&to=9999999", "/to"),
        (f"{SPAN}&window=year", "/window"),
        (f"{SPAN}&meter=nothing", "/meter"),
        (f"{SPAN}&group_by=region", "/meter"),
        (f"{SPAN}&meter=calls&group_by=colour", "/group_by"),
        (f"{SPAN}&until=now", "/until"),
        ("from=2024-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "/to"),
        ("from=2025-01-01T00:00:00Z&to=2025-03-01T00:00:00Z&window=hour", "/to"),
        ("from=2025-01-01T00:00:00Z&to=2025-03-01T00:00:00Z&meter=calls&group_by=region", "/to"),
        ("from=2010-01-01T00:00:00Z&to=2026-01-01T00:00:00Z&window=month", "/to"),
        ("from=9999-12-31T23:00:00Z&to=9999-12-31T23:59:59Z&window=hour", "/from"),
    ],
)
def test_it_says_what_is_wrong_with_a_question(api: Api, world: World, meter: str, query: str, pointer: str) -> None:
    assert_problem(api.get(f"/usage?license={world.license.pk}&{query}"), 400, pointer=pointer)


def test_it_wants_a_server_to_say_whose(api: Api) -> None:
    assert_problem(api.get(f"/usage?{SPAN}"), 400, pointer="/license")
