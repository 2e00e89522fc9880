"""/meters and their revisions."""

from typing import Any

import pytest

from billing.models import MeterRevision
from licensing.models import AuditEntry
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_scopes, nothing_written, own_server
from tests.factories import make_meter


def test_it_makes_a_meter(api: Api) -> None:
    answer = api.post("/meters", {"code": "api_calls", "name": "API calls"})

    made = answer.json()
    assert answer.status_code == 201
    assert set(made) == {"id", "created_at", "code", "name", "description"}
    assert api.get(f"/meters/{made['id']}").json() == made
    assert [row["id"] for row in api.get("/meters?code=api_calls").json()["results"]] == [made["id"]]
    assert AuditEntry.objects.filter(action="meter.created", object_id=made["id"]).count() == 1


def test_it_refuses_a_code_that_is_taken(world: World, api: Api) -> None:
    with nothing_written():
        answer = api.post("/meters", {"code": world.meter.meter.code, "name": "Again"})

    assert_problem(answer, 409, "code_taken")


def test_it_changes_how_a_meter_is_called_and_never_its_code(world: World, api: Api) -> None:
    path = f"/meters/{world.meter.meter_id}"

    assert api.patch(path, {"name": "Calls"}).json()["name"] == "Calls"
    assert_problem(api.patch(path, {"code": "other"}), 400, "unknown_field", "/code")


def test_it_drafts_edits_and_publishes_how_a_meter_counts(api: Api) -> None:
    meter = api.post("/meters", {"code": "people", "name": "People"}).json()
    path = f"/meters/{meter['id']}/revisions"
    terms = {"aggregation": "unique", "dimensions": ["person", "region"], "unique_by": "person"}

    drafted = api.post(path, terms)
    edited = api.patch(f"{path}/{drafted.json()['id']}", {"filters": {"region": ["eu"]}, "unit": "people"})
    published = api.post(f"{path}/{drafted.json()['id']}/publish", {"reason": "Go"})

    assert drafted.status_code == 201
    assert (drafted.json()["meter"], drafted.json()["number"], drafted.json()["state"]) == (meter["id"], 1, "draft")
    assert (edited.json()["filters"], edited.json()["unique_by"]) == ({"region": ["eu"]}, "person")
    assert published.json()["state"] == "published"
    assert published.json()["published_at"]
    assert [row["state"] for row in api.get(f"{path}?state=published").json()["results"]] == ["published"]


def test_it_follows_one_revision_by_the_next(world: World, api: Api) -> None:
    path = f"/meters/{world.meter.meter_id}/revisions"

    api.post(f"{path}/{world.meter_draft.pk}/publish")

    states = {row["number"]: row["state"] for row in api.get(path).json()["results"]}
    assert states == {1: "retired", 2: "published"}


@pytest.mark.parametrize(
    ("terms", "pointer"),
    [
        ({"aggregation": "median"}, "/aggregation"),
        ({"aggregation": "unique"}, "/unique_by"),
        ({"dimensions": ["A b"]}, "/dimensions/0"),
        ({"filters": {"region": ["eu"]}}, "/filters/region"),
        ({"filters": {"region": "eu"}}, "/filters/region"),
        ({"more": 1}, "/more"),
    ],
)
def test_it_refuses_terms_that_contradict_each_other(
    terms: dict[str, Any], pointer: str, world: World, api: Api
) -> None:
    path = f"/meters/{world.meter.meter_id}/revisions"

    with nothing_written():
        assert_problem(api.post(path, terms), 400, pointer=pointer)
        assert_problem(api.patch(f"{path}/{world.meter_draft.pk}", terms), 400, pointer=pointer)


def test_it_never_changes_what_is_published_and_retires_it_once(world: World, api: Api) -> None:
    path = f"/meters/{world.meter.meter_id}/revisions/{world.meter.pk}"

    with nothing_written():
        for answer in (api.patch(path, {"unit": "x"}), api.delete(path), api.post(f"{path}/publish")):
            assert_problem(answer, 409, "revision_is_published")
    assert api.post(f"{path}/retire").json()["state"] == "retired"
    assert_problem(api.post(f"{path}/retire"), 409, "refused")


def test_it_discards_a_draft(world: World, api: Api) -> None:
    path = f"/meters/{world.meter.meter_id}/revisions/{world.meter_draft.pk}"

    assert api.delete(path).status_code == 204
    assert_problem(api.delete(path), 404, "not_found")
    assert not MeterRevision.objects.filter(pk=world.meter_draft.pk).exists()


def test_it_has_no_revision_of_another_meter_or_of_none(world: World, api: Api) -> None:
    other = make_meter()

    assert_problem(api.get(f"/meters/{other.meter_id}/revisions/{world.meter.pk}"), 404, "not_found")
    with nothing_written():
        assert_problem(api.post(f"/meters/{MISSING_ID}/revisions", {}), 404, "not_found")
        assert_problem(api.get(f"/meters/{MISSING_ID}/revisions"), 404, "not_found")


def test_it_shows_customers_no_drafts(world: World) -> None:
    path, server = f"/meters/{world.meter.meter_id}/revisions", own_server(world)

    assert [row["id"] for row in server.get(path).json()["results"]] == [str(world.meter.pk)]
    assert_problem(server.get(f"{path}/{world.meter_draft.pk}"), 404, "not_found")


def test_it_reads_but_does_not_write_with_the_reading_scope(world: World) -> None:
    reader = by_scopes("catalog:read")

    assert reader.get("/meters").status_code == 200
    assert_problem(reader.post("/meters", {"code": "x", "name": "x"}), 403, "forbidden")
