"""Machines that sign: registered with a proof, believed once a request, and never spoken for by a license key."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from licensing import sweeps
from licensing.models import Activation, Anomaly, AuditEntry
from tests.api.conftest import MISSING_ID, Api, World, assert_problem, by_key, caller
from tests.factories import make_license_and_key
from tests.signing import Signer

PRINT = "machine-of-ada-0001"


def register(key: str, signer: Signer, fingerprint: str = PRINT, **more: Any) -> Any:
    body = Api.encoded({"fingerprint": fingerprint, "public_key": signer.jwk, **more.pop("body", {})})
    return by_key(key).post("/activations", body, **signer.headers("POST", "/api/v1/activations", body, **more))


def machine(key: str, fingerprint: str = PRINT) -> Signer:
    signer = Signer()
    answer = register(key, signer, fingerprint)
    assert answer.status_code == 201, answer.content
    signer.keyid = answer.json()["id"]
    return signer


def call(signer: Signer, method: str, path: str, body: Any = None, **instead: Any) -> Any:
    data = Api.encoded(body) if body is not None else b""
    headers = signer.headers(method, "/api/v1" + path, data, **instead)
    return caller(None, nonce=None).request(method, path, data or None, **headers)


def test_it_registers_a_key_that_signs_its_own_registration(world: World) -> None:
    signer = Signer()

    answer = register(world.key, signer)

    assert answer.status_code == 201
    assert answer.json()["key_thumbprint"] == signer.thumbprint
    row = Activation.objects.get(pk=answer.json()["id"])
    assert (bytes(row.public_key), row.counter_floor) == (signer.public, 1)
    assert (
        AuditEntry.objects.filter(action="activation.created").latest("id").after["key_thumbprint"] == signer.thumbprint
    )
    assert register(world.key, signer).status_code == 200


def test_it_gives_an_activation_its_key_once(world: World) -> None:
    assert by_key(world.key).post("/activations", {"fingerprint": PRINT}).status_code == 201
    signer = Signer()

    assert register(world.key, signer).status_code == 200
    assert AuditEntry.objects.filter(action="activation.key_registered").count() == 1
    assert_problem(register(world.key, Signer()), 409, "activation_key_conflict")
    assert_problem(register(world.key, signer, fingerprint="another-machine-02"), 409, "activation_key_conflict")


@pytest.mark.parametrize(
    ("bend", "status", "code"),
    [
        ({"keyid": "not-the-thumbprint"}, 400, "proof_of_possession_required"),
        ({"parameters": {"nonce": None}}, 401, "signature_incomplete"),
        ({"body": {"public_key": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}}}, 400, "invalid"),
    ],
    ids=["another keyid", "no nonce", "weak key"],
)
def test_it_registers_no_key_without_its_proof(bend: Any, status: int, code: str, world: World) -> None:
    assert_problem(register(world.key, Signer(), **bend), status, code)
    assert_problem(
        by_key(world.key).post("/activations", {"fingerprint": PRINT, "public_key": Signer().jwk}),
        400,
        "proof_of_possession_required",
    )
    other = Signer()
    other.jwk, other.keyid = Signer().jwk, other.keyid
    assert register(world.key, other).status_code in (400, 401)
    assert not Activation.objects.filter(fingerprint=PRINT).exists()


def test_it_validates_for_a_machine_that_signs(world: World) -> None:
    signer = machine(world.key)

    answer = call(signer, "POST", "/validate", {})

    assert answer.status_code == 200
    assert (answer.json()["valid"], answer.json()["license"]["id"]) == (True, str(world.license.pk))
    assert '"signature";req' in answer["Signature-Input"]
    assert call(signer, "POST", "/validate", {"fingerprint": PRINT}).json()["valid"]
    assert call(signer, "POST", "/validate", {"fingerprint": "a" * 32}).json()["code"] == "fingerprint_mismatch"
    assert_problem(call(signer, "POST", "/validate", {"license": str(world.other_license.pk)}), 404)


def test_it_lets_a_machine_do_what_is_its_own(world: World) -> None:
    signer = machine(world.key)
    own = f"/activations/{signer.keyid}"

    assert call(signer, "GET", own).status_code == 200
    assert call(signer, "POST", own + "/heartbeat").status_code == 200
    assert call(signer, "GET", "/entitlements").status_code == 200
    assert call(signer, "POST", "/activations", {"fingerprint": PRINT}).status_code == 200
    for other in (f"/activations/{world.activation.pk}", f"/activations/{world.other_activation.pk}"):
        assert_problem(call(signer, "GET", other), 404)
        assert_problem(call(signer, "DELETE", other), 404)
    assert_problem(call(signer, "GET", "/licenses"), 403)
    assert call(signer, "DELETE", own).status_code == 204
    assert_problem(call(signer, "POST", "/validate", {}), 401, "activation_ended")


def test_a_machine_let_go_for_its_silence_is_told_so_and_activates_itself_anew(db: None) -> None:
    now = datetime.now(UTC)
    _, key = make_license_and_key(at=now, activation_dead_after=timedelta(days=30), require_signed_clients=True)
    signer = machine(key)
    assert call(signer, "POST", "/validate", {}).json()["code"] == "valid"

    assert sweeps.run(sweeps.DEAD, at=now + timedelta(days=31)) == 1

    assert_problem(call(signer, "POST", "/validate", {}), 401, "activation_ended")
    assert machine(key).keyid != signer.keyid


def test_it_lets_no_license_key_speak_for_a_machine_with_a_key(world: World) -> None:
    signer = machine(world.key)
    holder = by_key(world.key)

    assert_problem(holder.post("/validate", {"fingerprint": PRINT}), 403, "signed_client_required")
    assert_problem(holder.delete(f"/activations/{signer.keyid}"), 403, "signed_client_required")
    assert_problem(holder.post(f"/activations/{signer.keyid}/heartbeat"), 403, "signed_client_required")
    assert call(signer, "POST", "/validate", {}).json()["valid"]


def test_it_lets_a_license_key_only_activate_where_clients_must_sign(db: None) -> None:
    _, key = make_license_and_key(require_signed_clients=True)
    holder = by_key(key)

    assert_problem(holder.post("/validate", {}), 403, "signed_client_required")
    for path in ("/entitlements", "/activations"):
        assert_problem(holder.get(path), 403, "signed_client_required")
    signer = machine(key)
    assert call(signer, "POST", "/validate", {}).json()["valid"]


def test_it_accepts_a_captured_request_once(world: World) -> None:
    signer = machine(world.key)
    captured = signer.headers("POST", "/api/v1/validate", b"{}")

    statuses = [caller(None, nonce=None).post("/validate", b"{}", **captured).status_code for _ in range(20)]

    assert sorted(statuses) == [200] + [401] * 19
    again = caller(None, nonce=None).post("/validate", b"{}", **captured)
    assert_problem(again, 401, "request_replayed")
    assert '"signature";req' in again["Signature-Input"]  # a refusal is signed too


def test_it_notices_a_copied_installation(world: World) -> None:
    signer = machine(world.key)
    copy = machine_copy = Signer(signer.keyid)
    machine_copy.key = signer.key

    first = call(signer, "POST", "/validate", {}, counter=10)
    assert first.status_code == 200, first.content
    assert_problem(call(copy, "POST", "/validate", {}, counter=10), 401, "counter_reused")

    assert Anomaly.objects.get(rule="cloned_installation").object_id == signer.keyid
    assert call(signer, "POST", "/validate", {}, counter=11).status_code == 200


@pytest.mark.parametrize("keyid", [MISSING_ID, "x", "", "LIC1", "../../etc"])
def test_it_says_the_same_to_every_unknown_machine(keyid: str, world: World) -> None:
    answer = call(Signer(keyid), "POST", "/validate", {}) if keyid else call(Signer(" "), "POST", "/validate", {})

    assert_problem(answer, 401)


def test_it_does_not_fall_back_to_what_is_not_signed(world: World) -> None:
    signer = machine(world.key)
    bare = {"x-licentia-counter": "77", "signature-input": "lic=()"}

    assert_problem(caller(None, nonce=None).post("/validate", b"{}", **bare), 401, "signature_malformed")
    forged = signer.headers("POST", "/api/v1/validate", b"{}")
    forged["signature"] = Signer(signer.keyid).headers("POST", "/api/v1/validate", b"{}")["signature"]
    assert_problem(caller(None, nonce=None).post("/validate", b"{}", **forged), 401, "signature_wrong")


def test_it_says_of_an_unknown_machine_only_that_it_is_unknown(world: World) -> None:
    signer = machine(world.key)
    signer.keyid = MISSING_ID

    assert_problem(call(signer, "POST", "/validate", {}), 401, "signature_unknown")


@pytest.mark.parametrize("counter", ["9" * 16, "9007199254740993", "900000000000000000"])
def test_it_takes_no_counter_that_its_memory_cannot_count(world: World, counter: str) -> None:
    signer = machine(world.key)
    signer.counters = iter([int(counter)])

    assert_problem(call(signer, "POST", "/validate", {}), 401, "signature_malformed")
