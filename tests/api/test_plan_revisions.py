"""/plan-revisions."""

from typing import Any

import pytest

from licensing.models import Entitlement, PlanRevision
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, nothing_written, own_server
from tests.factories import make_plan

ALLOWANCE = {"key": "calls", "kind": "allowance", "meter": "api-calls", "amount": "1000.5", "overage": "charge"}


def test_it_drafts_the_first_revision_of_a_plan(api: Api) -> None:
    plan = make_plan()

    answer = api.post(
        "/plan-revisions",
        {
            "plan": str(plan.pk),
            "scheme": "both",
            "seat_limit": 10,
            "activation_limit": None,
            "duration_seconds": 31_536_000,
            "grace_period_seconds": 0,
            "entitlements": [ALLOWANCE, {"key": "export", "kind": "flag"}],
        },
    )

    assert answer.status_code == 201
    made = answer.json()
    assert (made["plan"], made["number"], made["state"]) == (str(plan.pk), 1, "draft")
    assert (made["duration_seconds"], made["grace_period_seconds"]) == (31_536_000, 0)
    assert (made["seat_limit"], made["activation_limit"]) == (10, None)
    calls = next(right for right in made["entitlements"] if right["key"] == "calls")
    assert calls["amount"] == "1000.500000"
    assert api.get(f"/plan-revisions/{made['id']}").json() == made


def test_it_starts_from_the_newest_revision(world: World, api: Api) -> None:
    made = api.post("/plan-revisions", {"plan": str(world.plan.pk), "seat_limit": 20}).json()

    assert (made["number"], made["seat_limit"], made["activation_limit"]) == (2, 20, 5)


def test_it_has_no_revision_without_its_plan(api: Api) -> None:
    with nothing_written():
        assert_problem(api.post("/plan-revisions", {"plan": MISSING_ID}), 404, "not_found")
        assert_problem(api.post("/plan-revisions", {}), 400, pointer="/plan")


@pytest.mark.parametrize(
    ("terms", "pointer"),
    [
        ({"validity_basis": "fixed_date"}, "/fixed_expires_at"),
        ({"fixed_expires_at": "2030-01-01T00:00:00Z"}, "/fixed_expires_at"),
        ({"validity_basis": "from_first_activation", "duration_seconds": None}, "/duration_seconds"),
        ({"duration_seconds": 0}, "/duration_seconds"),
        ({"seat_churn_limit": 5}, "/churn_window_seconds"),
        ({"entitlements": [{"key": "x", "kind": "flag"}, {"key": "x", "kind": "flag"}]}, "/entitlements/1/key"),
        ({"entitlements": [{"key": "x", "kind": "value"}]}, "/entitlements/0/value"),
        ({"entitlements": [{"key": "x", "kind": "flag", "value": "y"}]}, "/entitlements/0/value"),
        ({"entitlements": [{**ALLOWANCE, "amount": None}]}, "/entitlements/0/amount"),
        ({"entitlements": [{**ALLOWANCE, "meter": "no such thing"}]}, "/entitlements/0/meter"),
        ({"entitlements": [{"key": "x", "kind": "flag", "meter": "y"}]}, "/entitlements/0/meter"),
        ({"entitlements": [{"key": "x"}]}, "/entitlements/0/kind"),
        ({"entitlements": [{"key": "x", "kind": "flag", "more": 1}]}, "/entitlements/0/more"),
        ({"entitlements": [{"key": f"x{n}", "kind": "flag"} for n in range(101)]}, "/entitlements"),
    ],
)
def test_it_refuses_terms_that_contradict_each_other(terms: dict[str, Any], pointer: str, api: Api, db: None) -> None:
    plan = make_plan()
    draft = api.post("/plan-revisions", {"plan": str(plan.pk)}).json()

    with nothing_written():
        assert_problem(api.post("/plan-revisions", {"plan": str(plan.pk), **terms}), 400, pointer=pointer)
        assert_problem(api.patch(f"/plan-revisions/{draft['id']}", terms), 400, pointer=pointer)


@pytest.mark.parametrize(
    "amount", [1, 1.5, True, "", "-1", "1e3", "NaN", "Infinity", "1.0000001", "1" * 19, " 1", "+1", "１", ".5", "5."]
)
def test_it_takes_a_quantity_as_an_exact_decimal_string(amount: Any, world: World, api: Api) -> None:
    with nothing_written():
        answer = api.patch(f"/plan-revisions/{world.draft.pk}", {"entitlements": [{**ALLOWANCE, "amount": amount}]})

    assert_problem(answer, 400, pointer="/entitlements/0/amount")


def test_it_edits_a_draft_and_only_what_is_said(world: World, api: Api) -> None:
    path = f"/plan-revisions/{world.draft.pk}"
    api.patch(path, {"entitlements": [ALLOWANCE]})

    changed = api.patch(path, {"seat_limit": None, "trial": True}).json()

    assert (changed["seat_limit"], changed["trial"], changed["activation_limit"]) == (None, True, 5)
    assert [right["key"] for right in changed["entitlements"]] == ["calls"]
    assert api.patch(path, {"entitlements": []}).json()["entitlements"] == []
    assert not Entitlement.objects.filter(plan_revision=world.draft).exists()


def test_it_never_changes_a_published_revision(world: World, api: Api) -> None:
    with nothing_written():
        answer = api.patch(f"/plan-revisions/{world.revision.pk}", {"seat_limit": 1})
        gone = api.delete(f"/plan-revisions/{world.revision.pk}")

    assert_problem(answer, 409, "revision_is_published")
    assert_problem(gone, 409, "revision_is_published")
    assert PlanRevision.objects.get(pk=world.revision.pk).seat_limit == 10


def test_it_publishes_a_draft_in_place_of_the_one_before(world: World, api: Api) -> None:
    draft = api.post("/plan-revisions", {"plan": str(world.plan.pk), "seat_limit": 20}).json()

    published = api.post(f"/plan-revisions/{draft['id']}/publish", {"reason": "More seats"}).json()

    assert published["state"] == "published"
    assert published["published_at"]
    assert api.get(f"/plan-revisions/{world.revision.pk}").json()["state"] == "retired"


def test_it_publishes_without_a_body(world: World, api: Api) -> None:
    assert api.post(f"/plan-revisions/{world.draft.pk}/publish").status_code == 200


def test_it_publishes_nothing_twice(world: World, api: Api) -> None:
    with nothing_written():
        answer = api.post(f"/plan-revisions/{world.revision.pk}/publish")

    assert_problem(answer, 409, "revision_is_published")


def test_it_publishes_no_usage_scheme_that_counts_nothing(world: World, api: Api) -> None:
    api.patch(f"/plan-revisions/{world.draft.pk}", {"scheme": "usage"})

    with nothing_written():
        answer = api.post(f"/plan-revisions/{world.draft.pk}/publish")

    assert_problem(answer, 409, "revision_is_incomplete")


def test_it_retires_what_is_published_once(world: World, api: Api) -> None:
    path = f"/plan-revisions/{world.revision.pk}/retire"

    first, again = api.post(path, {"reason": "Off sale"}), api.post(path)

    assert first.json()["state"] == "retired"
    assert_problem(again, 409, "refused")


def test_it_retires_no_draft(world: World, api: Api) -> None:
    assert_problem(api.post(f"/plan-revisions/{world.draft.pk}/retire"), 409, "refused")


def test_it_discards_a_draft_and_then_has_none(world: World, api: Api) -> None:
    path = f"/plan-revisions/{world.draft.pk}"

    first, again = api.delete(path), api.delete(path)

    assert first.status_code == 204
    assert_problem(again, 404, "not_found")


def test_it_says_what_is_different_between_two_revisions(world: World, api: Api) -> None:
    draft = api.post(
        "/plan-revisions", {"plan": str(world.plan.pk), "seat_limit": 20, "entitlements": [ALLOWANCE]}
    ).json()

    found = api.get(f"/plan-revisions/{draft['id']}/diff?against={world.revision.pk}").json()

    assert found == [
        {"term": "seat limit", "before": "10", "after": "20"},
        {
            "term": "entitlement calls",
            "before": "none",
            "after": "1000.5 api-calls per period, more is charged",
        },
    ]
    assert_problem(api.get(f"/plan-revisions/{draft['id']}/diff?against={MISSING_ID}"), 404, "not_found")


def test_it_shows_customers_no_drafts(world: World) -> None:
    server = own_server(world)

    listed = server.get("/plan-revisions").json()["results"]

    assert [row["id"] for row in listed] == [str(world.revision.pk)]
    assert_problem(server.get(f"/plan-revisions/{world.draft.pk}"), 404, "not_found")


def test_it_lists_the_revisions_of_a_plan(world: World, api: Api) -> None:
    found = api.get(f"/plan-revisions?plan={world.plan.pk}&state=published&scheme=seats").json()["results"]

    assert [row["id"] for row in found] == [str(world.revision.pk)]
