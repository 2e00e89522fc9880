"""/audit-entries: read only."""

from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_key, secrets_in


def test_it_shows_who_did_what(world: World, api: Api) -> None:
    answer = api.post(f"/licenses/{world.license.pk}/hold", {"reason": "abuse", "note": "Seen twice"})

    entry = api.get(f"/audit-entries?license={world.license.pk}&action=license.held").json()["results"][0]

    assert set(entry) == {
        *("id", "created_at", "at", "action", "actor_kind", "actor_id", "object_kind", "object_id"),
        *("license", "customer", "before", "after", "reason", "request_id"),
    }
    assert (entry["actor_kind"], entry["object_kind"], entry["reason"]) == ("credential", "license", "Seen twice")
    assert entry["customer"] == str(world.customer.pk)
    assert entry["request_id"] == answer["X-Request-Id"]
    assert api.get(f"/audit-entries/{entry['id']}").json() == entry


def test_it_names_the_holder_of_a_key_as_the_actor(world: World, api: Api) -> None:
    by_key(world.key).post("/activations", {"fingerprint": "f" * 32})

    entry = api.get("/audit-entries?action=activation.created").json()["results"][0]

    assert (entry["actor_kind"], entry["actor_id"]) == ("license", str(world.license.pk))


def test_it_records_nothing_of_what_was_refused(world: World, api: Api) -> None:
    before = api.get("/audit-entries").json()["results"][0]["id"]
    api.post("/products", {"code": world.product.code, "name": "x"})
    api.post("/products", {"code": "bad code", "name": "x"})

    assert api.get("/audit-entries").json()["results"][0]["id"] == before


def test_it_filters_by_object_and_customer(world: World, api: Api) -> None:
    by_object = api.get(f"/audit-entries?object_kind=seat&object_id={world.seat.pk}").json()["results"]
    by_customer = api.get(f"/audit-entries?customer={world.other_customer.pk}&limit=200").json()["results"]

    assert [entry["action"] for entry in by_object] == ["seat.assigned"]
    assert {entry["customer"] for entry in by_customer} == {str(world.other_customer.pk)}


def test_it_holds_no_key_and_no_secret(world: World, api: Api) -> None:
    api.post(f"/licenses/{world.license.pk}/rotate-key", {"reason": "Leaked"})
    api.post("/credentials", {"name": "CI", "scopes": ["validate"]})

    assert secrets_in(api.get("/audit-entries?limit=200")) == []


def test_it_has_none_that_is_not_there(api: Api) -> None:
    assert_problem(api.get(f"/audit-entries/{MISSING_ID}"), 404, "not_found")


def test_it_takes_and_loses_none(world: World, api: Api) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        path = "/audit-entries" if method == "POST" else f"/audit-entries/{world.audit_entry.pk}"
        assert_problem(api.request(method, path, {}), 405, "method_not_allowed")
