"""/activations: by a server, and by the holder of a license key for its own license."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from licensing import crypto, lifecycle
from licensing.models import Activation, Anomaly, License
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    nothing_written,
)
from tests.factories import BY, make_license_and_key, make_plan, make_revision

NOW = datetime.now(UTC)
MACHINE = {"fingerprint": "f" * 32, "name": "Laptop", "platform": "linux"}


def test_it_activates_a_machine_for_the_holder_of_the_key(world: World) -> None:
    answer = by_key(world.key).post("/activations", MACHINE)

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {
        *("id", "created_at", "license", "fingerprint", "name", "platform"),
        *("seat", "activated_at", "last_seen_at", "deactivated_at", "key_thumbprint"),
    }
    assert made["license"] == str(world.license.pk)
    assert {name: made[name] for name in MACHINE} == MACHINE
    assert (made["seat"], made["deactivated_at"]) == (None, None)


@pytest.mark.parametrize("whose", ["the vendor's", "the customer's"])
def test_it_activates_a_machine_for_a_server(whose: str, world: World) -> None:
    server = by_scopes("activations", customer=world.customer if whose == "the customer's" else None)

    answer = server.post("/activations", {"license": str(world.license.pk), **MACHINE})

    assert answer.status_code == 201


def test_it_wants_a_server_to_say_which_license(api: Api) -> None:
    assert_problem(api.post("/activations", MACHINE), 400, pointer="/license")


def test_it_answers_the_same_machine_again_with_the_activation_it_has(world: World) -> None:
    first = by_key(world.key).post("/activations", MACHINE)
    again = by_key(world.key).post("/activations", {"fingerprint": MACHINE["fingerprint"]})

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["name"] == "Laptop"
    assert License.objects.get(pk=world.license.pk).activations_used == 2


def test_it_binds_the_machine_to_the_seat_of_its_holder(world: World) -> None:
    answer = by_key(world.key).post("/activations", {**MACHINE, "seat_holder": "Ada@example.com"})

    assert answer.json()["seat"] == str(world.seat.pk)


def test_it_refuses_one_machine_too_many(db: None) -> None:
    license, key = make_license_and_key(at=NOW, activation_limit=1)
    assert by_key(key).post("/activations", MACHINE).status_code == 201

    with nothing_written():
        answer = by_key(key).post("/activations", {"fingerprint": "g" * 32})

    assert_problem(answer, 409, "activation_limit_reached")
    assert License.objects.get(pk=license.pk).activations_used == 1


def test_it_refuses_a_machine_that_is_active_on_another_license_of_the_product(db: None) -> None:
    revision = make_revision(plan=make_plan(), fingerprint_scope="product")
    (_, key), (_, other_key) = (make_license_and_key(at=NOW, plan_revision=revision) for _ in range(2))
    by_key(key).post("/activations", MACHINE)

    assert_problem(by_key(other_key).post("/activations", MACHINE), 409, "fingerprint_in_use")


def test_it_wants_a_seat_where_the_plan_does(db: None) -> None:
    _, key = make_license_and_key(at=NOW, seat_required=True)

    for body in (MACHINE, {**MACHINE, "seat_holder": "eve@example.com"}):
        assert_problem(by_key(key).post("/activations", body), 409, "seat_required")


@pytest.mark.parametrize("end", ["held", "revoked"])
def test_it_refuses_machines_on_a_stopped_license(end: str, world: World) -> None:
    if end == "held":
        lifecycle.hold(license=world.license, reason="abuse", by=BY, at=NOW)
    else:
        lifecycle.revoke(license=world.license, reason="Refunded", by=BY, at=NOW)

    with nothing_written():
        assert_problem(by_key(world.key).post("/activations", MACHINE), 409, "license_not_usable")


def test_it_lets_a_machine_go_once_and_for_all(world: World) -> None:
    path = f"/activations/{world.activation.pk}"
    holder = by_key(world.key)

    first, again = holder.delete(path), holder.delete(path)

    assert (first.status_code, first.content, again.status_code) == (204, b"", 204)
    assert License.objects.get(pk=world.license.pk).activations_used == 0
    assert holder.get(path).json()["deactivated_at"] is not None


def test_it_activates_a_machine_anew_after_it_was_let_go(world: World) -> None:
    holder = by_key(world.key)
    holder.delete(f"/activations/{world.activation.pk}")

    answer = holder.post("/activations", {"fingerprint": world.activation.fingerprint})

    assert answer.status_code == 201
    assert answer.json()["id"] != str(world.activation.pk)


def test_it_refuses_to_let_machines_go_too_often(db: None) -> None:
    _, key = make_license_and_key(at=NOW, activation_churn_limit=0, churn_window=timedelta(days=30))
    made = by_key(key).post("/activations", MACHINE).json()

    with nothing_written():
        answer = by_key(key).delete(f"/activations/{made['id']}")

    assert_problem(answer, 409, "activation_churn_exceeded")


def test_it_notes_a_heartbeat(world: World) -> None:
    before = world.activation.last_seen_at

    answer = by_key(world.key).post(f"/activations/{world.activation.pk}/heartbeat")

    assert answer.status_code == 200
    assert datetime.fromisoformat(answer.json()["last_seen_at"]) > before


def test_it_hears_from_a_machine_that_its_clock_was_turned_back(world: World) -> None:
    path = f"/activations/{world.activation.pk}/heartbeat"

    assert by_key(world.key).post(path, {"clock_turned_back": False}).status_code == 200
    assert not Anomaly.objects.filter(rule="clock_turned_back").exists()
    for _ in range(2):
        assert by_key(world.key).post(path, {"clock_turned_back": True}).status_code == 200

    found = Anomaly.objects.get(rule="clock_turned_back")
    assert (found.object_kind, found.object_id) == ("activation", str(world.activation.pk))
    assert (found.license_id, found.severity) == (world.license.pk, "medium")
    assert found.last_at.timestamp() == pytest.approx(NOW.timestamp(), abs=3_600)


def test_it_notes_a_turned_back_clock_where_the_license_may_not_be_used(world: World) -> None:
    lifecycle.revoke(license=world.license, reason="test", by=BY, at=NOW)

    answer = by_key(world.key).post(f"/activations/{world.activation.pk}/heartbeat", {"clock_turned_back": True})

    assert answer.status_code == 409
    assert Anomaly.objects.filter(rule="clock_turned_back").count() == 1


@pytest.mark.parametrize("body", [{"clock_turned_back": "often"}, {"clock_turned_back": None}, {"clock": True}])
def test_it_takes_no_other_word_in_a_heartbeat(body: dict[str, Any], world: World) -> None:
    answer = by_key(world.key).post(f"/activations/{world.activation.pk}/heartbeat", body)

    assert answer.status_code == 400
    assert not Anomaly.objects.filter(rule="clock_turned_back").exists()


def test_it_hears_no_heartbeat_of_a_machine_that_was_let_go(world: World) -> None:
    holder = by_key(world.key)
    holder.delete(f"/activations/{world.activation.pk}")

    assert_problem(holder.post(f"/activations/{world.activation.pk}/heartbeat"), 404, "not_found")


@pytest.mark.parametrize("call", [("GET", ""), ("DELETE", ""), ("POST", "/heartbeat")])
def test_it_knows_another_license_s_machine_as_little_as_a_missing_one(call: tuple[str, str], world: World) -> None:
    method, action = call

    for pk in (world.other_activation.pk, MISSING_ID):
        answer = by_key(world.key).request(method, f"/activations/{pk}{action}")
        assert_problem(answer, 404, "not_found")
    assert Activation.objects.get(pk=world.other_activation.pk).deactivated_at is None


def test_it_pages_and_filters_the_machines(world: World, api: Api) -> None:
    page = api.get(f"/activations?license={world.license.pk}&limit=1").json()
    by_fingerprint = api.get(f"/activations?fingerprint={world.other_activation.fingerprint}").json()

    assert [row["id"] for row in page["results"]] == [str(world.activation.pk)]
    assert (page["next"], page["previous"]) == (None, None)
    assert [row["id"] for row in by_fingerprint["results"]] == [str(world.other_activation.pk)]


def test_it_changes_nothing_while_the_key_ring_lacks_a_key_and_tells_no_client_which(world: World) -> None:
    crypto.refuse_writes("The key ring lacks the key 'seal-lost' (seal).")
    try:
        with nothing_written():
            answer = by_key(world.key).post("/activations", {"fingerprint": "f" * 32})
        asked = by_key(world.key).post("/validate", {})
    finally:
        crypto.refuse_writes("")

    assert_problem(answer, 503, "unavailable")
    assert int(answer["Retry-After"]) > 0
    assert "seal-lost" not in answer.text
    assert asked.json()["valid"]
