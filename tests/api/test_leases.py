"""/leases."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from licensing import activations, crypto, leases, lifecycle
from licensing.models import Lease, License
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    by_secret,
    caller,
    nothing_written,
    own_server,
)
from tests.factories import BY, make_credential, make_customer, make_license, make_license_and_key
from tests.signing import Signer

pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)
MACHINE = "machine-0123456789"


def make_floating(**terms: Any) -> License:
    return make_license(**{"seat_kind": "floating", "seat_limit": 2, "at": NOW} | terms)


def body(license: License, /, **more: Any) -> dict[str, Any]:
    return {"license": str(license.pk), "fingerprint": MACHINE} | more


def signing_machine(key: str, fingerprint: str) -> Callable[..., Any]:
    """Activate a machine by its own key; return what calls with its signature."""
    signer = Signer()
    asked = Api.encoded({"fingerprint": fingerprint, "public_key": signer.jwk})
    made = by_key(key).post("/activations", asked, **signer.headers("POST", "/api/v1/activations", asked))
    signer.keyid = made.json()["id"]

    def call(method: str, path: str, asked: Any = None) -> Any:
        data = b"" if asked is None else Api.encoded(asked)
        headers = signer.headers(method, f"/api/v1{path}", data)
        return caller(None, nonce=None).request(method, path, data or None, **headers)

    return call


def test_it_checks_a_lease_out(api: Api) -> None:
    license = make_floating()

    answer = api.post("/leases", body(license, ttl_seconds=300))

    assert answer.status_code == 201
    lease = answer.json()
    assert set(lease) == {
        "id", "license", "fingerprint", "offline", "checked_out_at", "expires_at", "ended_at", "ttl_seconds", "token",
    }  # fmt: skip
    assert (lease["license"], lease["fingerprint"], lease["offline"]) == (str(license.pk), MACHINE, False)
    assert (lease["ttl_seconds"], lease["ended_at"]) == (300, None)
    assert License.objects.get(pk=license.pk).seats_used == 1


def test_it_signs_what_it_says(api: Api, settings: Any) -> None:
    license = make_floating()

    lease = api.post("/leases", body(license, offline=True)).json()

    header = jwt.get_unverified_header(lease["token"])
    key = next(jwt.PyJWK(key) for key in crypto.jwks()["keys"] if key["kid"] == header["kid"])
    claims = jwt.decode(
        lease["token"], key, algorithms=["EdDSA"], audience=license.product.code, issuer=settings.PUBLIC_URL
    )
    assert header["typ"] == "lease+jwt"
    assert (claims["sub"], claims["lease"]) == (str(license.pk), lease["id"])
    assert (claims["fingerprint"], claims["offline"], claims["ver"]) == (MACHINE, True, 1)
    assert claims["exp"] == int(datetime.fromisoformat(lease["expires_at"]).timestamp())


def test_it_answers_the_same_machine_with_its_lease(api: Api) -> None:
    license = make_floating()
    first = api.post("/leases", body(license))

    again = api.post("/leases", body(license, ttl_seconds=3600))

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["ttl_seconds"] == 3600
    assert License.objects.get(pk=license.pk).seats_used == 1


def test_it_answers_once_what_was_asked_twice(api: Api) -> None:
    license = make_floating()
    asked = {"license": str(license.pk)}

    first = api.post("/leases", asked, idempotency_key="one")
    again = api.post("/leases", asked, idempotency_key="one")

    assert again.content == first.content
    assert again["Idempotent-Replayed"] == "true"
    assert License.objects.get(pk=license.pk).seats_used == 1


def test_it_refuses_one_too_many_and_says_when_to_come_back(api: Api) -> None:
    license = make_floating(seat_limit=1)
    api.post("/leases", body(license, ttl_seconds=120))

    with nothing_written():
        answer = api.post("/leases", {"license": str(license.pk)})

    problem = json.loads(answer.content)
    assert (answer.status_code, problem["code"]) == (409, "no_seat_available")
    assert 110 <= problem["retry_after"] <= 120
    assert answer["Retry-After"] == str(problem["retry_after"])


@pytest.mark.parametrize(
    ("terms", "asked", "code"),
    [
        ({"seat_kind": "named"}, {}, "seats_not_floating"),
        ({"duration": timedelta(days=1)}, {}, "license_not_usable"),
        ({"offline_period": timedelta()}, {"offline": True}, "offline_not_allowed"),
    ],
)
def test_it_refuses_what_the_terms_do_not_allow(
    terms: dict[str, Any], asked: dict[str, Any], code: str, api: Api
) -> None:
    license = make_floating(**{"at": NOW - timedelta(days=2)} | terms)

    with nothing_written():
        assert_problem(api.post("/leases", body(license, **asked)), 409, code)


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ({"ttl_seconds": 0}, "/ttl_seconds"),
        ({"ttl_seconds": 86_401}, "/ttl_seconds"),
        ({"ttl_seconds": "60"}, "/ttl_seconds"),
        ({"ttl_seconds": 31 * 86_400, "offline": True}, "/ttl_seconds"),
        ({"offline": "yes"}, "/offline"),
        ({"fingerprint": "short"}, "/fingerprint"),
        ({"license": "x"}, "/license"),
        ({"forever": True}, "/forever"),
    ],
)
def test_it_refuses_what_cannot_be(asked: dict[str, Any], pointer: str, api: Api) -> None:
    license = make_floating()

    with nothing_written():
        assert_problem(api.post("/leases", body(license, **asked)), 400, pointer=pointer)


def test_it_renews_a_lease(api: Api) -> None:
    lease = api.post("/leases", body(make_floating(), ttl_seconds=60)).json()

    with nothing_written():
        answer = api.post(f"/leases/{lease['id']}/renew", {"ttl_seconds": 900})
        by_default = api.post(f"/leases/{lease['id']}/renew")

    assert answer.status_code == by_default.status_code == 200
    assert answer.json()["ttl_seconds"] == 900
    assert answer.json()["token"] != lease["token"]


def test_it_renews_nothing_that_ended(api: Api) -> None:
    path = f"/leases/{api.post('/leases', body(make_floating())).json()['id']}"
    api.delete(path)

    assert_problem(api.post(f"{path}/renew"), 409, "lease_ended")


def test_it_checks_a_lease_in_once_and_for_all(api: Api) -> None:
    license = make_floating()
    path = f"/leases/{api.post('/leases', body(license)).json()['id']}"

    first, again = api.delete(path), api.delete(path)

    assert (first.status_code, first.content, again.status_code) == (204, b"", 204)
    assert api.get(path).json()["ended_at"] is not None
    assert api.get(path).json()["ttl_seconds"] == 0
    assert License.objects.get(pk=license.pk).seats_used == 0


def test_it_lists_leases_and_filters_them(api: Api) -> None:
    license, other = make_floating(), make_floating()
    ended = api.post("/leases", body(license)).json()["id"]
    api.delete(f"/leases/{ended}")
    live = api.post("/leases", body(license)).json()["id"]
    api.post("/leases", body(other))

    rows = api.get(f"/leases?license={license.pk}").json()["results"]
    out = api.get(f"/leases?license={license.pk}&live=true").json()["results"]

    assert [row["id"] for row in rows] == [live, ended]
    assert [row["id"] for row in out] == [live]
    assert "token" not in rows[0]


def test_it_works_with_a_license_key() -> None:
    license, key = make_license_and_key(seat_kind="floating", seat_limit=2, at=NOW)
    program = by_key(key)

    lease = program.post("/leases", {"fingerprint": MACHINE})

    assert lease.status_code == 201
    path = f"/leases/{lease.json()['id']}"
    assert program.post(f"{path}/renew").status_code == 200
    assert program.get(path).status_code == 200
    assert program.delete(path).status_code == 204
    assert License.objects.get(pk=license.pk).seats_used == 0


def test_it_knows_another_licenses_lease_as_little_as_a_missing_one() -> None:
    license, other = make_floating(), make_floating()
    key = lifecycle.keys.rotate(license=license, by=BY, reason="tests", at=NOW)
    lease = leases.check_out(license=other, by=BY, at=NOW).lease
    server = by_secret(make_credential(customer=license.customer)[1])

    for who in (by_key(key), server):
        for pk in (lease.pk, MISSING_ID):
            assert_problem(who.get(f"/leases/{pk}"), 404, "not_found")
            assert_problem(who.delete(f"/leases/{pk}"), 404, "not_found")
            assert_problem(who.post(f"/leases/{pk}/renew"), 404, "not_found")
        assert_problem(who.post("/leases", {"license": str(other.pk)}), 404, "not_found")
        assert who.get("/leases").json()["results"] == []
    assert Lease.objects.get(pk=lease.pk).ended_at is None


def test_it_is_what_makes_a_machine_valid() -> None:
    _, key = make_license_and_key(seat_kind="floating", seat_limit=2, seat_required=True, at=NOW)
    program = by_key(key)

    def verdict() -> str:
        return str(program.post("/validate", {"fingerprint": MACHINE}).json()["code"])

    before = verdict()
    lease = program.post("/leases", {"fingerprint": MACHINE, "ttl_seconds": 1}).json()
    during = verdict()
    time.sleep(1.1)
    after = verdict()
    program.delete(f"/leases/{lease['id']}")

    assert (before, during, after) == ("seat_required", "valid", "lease_lapsed")


def test_it_takes_a_signing_machine_for_itself() -> None:
    license, key = make_license_and_key(seat_kind="floating", seat_limit=2, at=NOW)
    machine, other = signing_machine(key, MACHINE), signing_machine(key, "another-machine-01")

    mine = machine("POST", "/leases", {"ttl_seconds": 60})
    theirs = other("POST", "/leases", {})

    assert (mine.status_code, mine.json()["fingerprint"]) == (201, MACHINE)
    row = Lease.objects.get(pk=mine.json()["id"])
    assert row.activation is not None
    assert row.activation.fingerprint == MACHINE
    assert machine("POST", "/leases", {"fingerprint": MACHINE}).status_code == 200
    assert_problem(machine("POST", "/leases", {"fingerprint": "another-machine-01"}), 400, pointer="/fingerprint")
    assert machine("POST", f"/leases/{row.pk}/renew", {}).status_code == 200
    path = f"/leases/{theirs.json()['id']}"
    for refused in (machine("POST", f"{path}/renew", {}), machine("GET", path), machine("DELETE", path)):
        assert_problem(refused, 404, "not_found")
    assert [lease["id"] for lease in machine("GET", "/leases").json()["results"]] == [str(row.pk)]
    assert machine("DELETE", f"/leases/{row.pk}").status_code == 204
    assert License.objects.get(pk=license.pk).seats_used == 1


def test_it_refuses_a_key_where_machines_sign() -> None:
    _, key = make_license_and_key(seat_kind="floating", require_signed_clients=True, at=NOW)
    machine = signing_machine(key, MACHINE)

    assert_problem(by_key(key).post("/leases", {}), 403, "signed_client_required")
    assert machine("POST", "/leases", {}).status_code == 201


def test_it_needs_the_scope(api: Api) -> None:
    license = make_floating()

    assert by_scopes("leases").post("/leases", body(license)).status_code == 201
    assert_problem(by_scopes("activations").post("/leases", body(license)), 403, "forbidden")


def test_it_asks_a_server_which_license(world: World) -> None:
    assert_problem(own_server(world).post("/leases", {}), 400, pointer="/license")


def test_it_names_the_machine_when_it_is_activated(api: Api) -> None:
    license = make_floating(customer=make_customer())
    machine = activations.activate(license=license, fingerprint=MACHINE, by=BY, at=NOW).activation

    lease = api.post("/leases", body(license)).json()

    assert Lease.objects.get(pk=lease["id"]).activation_id == machine.pk


def test_it_says_what_a_fingerprint_looks_like(api: Api) -> None:
    problem = assert_problem(
        api.post("/leases", body(make_floating(), fingerprint="short")), 400, pointer="/fingerprint"
    )

    assert "16 to 128 characters" in problem["detail"]
