"""/license-files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from licentia_client.offline import FileRefused, Machine, make_request
from licentia_client.offline import LicenseFile as ReadFile

from licensing import activations, crypto
from licensing.models import Activation, License, LicenseFile
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    nothing_written,
    own_server,
    secrets_in,
)
from tests.api.test_leases import signing_machine
from tests.factories import BY, make_license, make_license_and_key

pytestmark = pytest.mark.django_db

NOW = datetime.now(UTC)
FINGERPRINT = "machine-0123456789"


def request_of(folder: Path, fingerprint: str = FINGERPRINT, **more: Any) -> str:
    return make_request(folder / "machine", fingerprint=fingerprint, name="Plant 7", **more)


def test_it_answers_a_request_file_with_a_license_file(api: Api, tmp_path: Path) -> None:
    license = make_license(at=NOW)

    answer = api.post("/license-files", {"license": str(license.pk), "request": request_of(tmp_path)})

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {"id", "license", "activation", "issued_at", "expires_at", "encrypted", "file"}
    assert made["activation"] == str(Activation.objects.get(license=license).pk)
    read = ReadFile.read(made["file"], keys=crypto.jwks(), machine=Machine.open(tmp_path / "machine"))
    assert read.license == str(license.pk)
    assert not read.clock_rolled_back


def test_it_encrypts_to_the_machine(api: Api, tmp_path: Path) -> None:
    license = make_license(at=NOW)
    asked = {"license": str(license.pk), "request": request_of(tmp_path), "encrypt": True}

    made = api.post("/license-files", asked).json()

    assert made["encrypted"]
    assert str(license.pk) not in made["file"]
    assert ReadFile.read(made["file"], keys=crypto.jwks(), machine=Machine.open(tmp_path / "machine")).license
    request_of(tmp_path / "other")
    with pytest.raises(FileRefused):
        ReadFile.read(made["file"], keys=crypto.jwks(), machine=Machine.open(tmp_path / "other" / "machine"))


def test_it_answers_once_what_was_asked_twice(api: Api, tmp_path: Path) -> None:
    asked = {"license": str(make_license(at=NOW).pk), "request": request_of(tmp_path)}

    first = api.post("/license-files", asked, idempotency_key="one")
    again = api.post("/license-files", asked, idempotency_key="one")

    assert again.content == first.content
    assert LicenseFile.objects.count() == 1


def test_it_shows_its_records_without_the_files(api: Api, tmp_path: Path) -> None:
    license = make_license(at=NOW)
    made = api.post("/license-files", {"license": str(license.pk), "request": request_of(tmp_path)}).json()

    listed = api.get(f"/license-files?license={license.pk}").json()["results"]
    shown = api.get(f"/license-files/{made['id']}")

    assert listed == [shown.json()] == [{name: value for name, value in made.items() if name != "file"}]
    assert secrets_in(shown) == []


def test_it_expires_when_asked_and_refuses_what_is_too_far(api: Api, tmp_path: Path) -> None:
    asked = {"license": str(make_license(at=NOW).pk), "request": request_of(tmp_path)}
    soon = (NOW + timedelta(days=2)).replace(microsecond=0)

    made = api.post("/license-files", asked | {"expires_at": soon.isoformat()})
    too_far = api.post("/license-files", asked | {"expires_at": (NOW + timedelta(days=99)).isoformat()})

    assert datetime.fromisoformat(made.json()["expires_at"]) == soon
    assert_problem(too_far, 400, pointer="/expires_at")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda text: "hello", "malformed"),
        (lambda text: text.replace("REQUEST", "REQUIEM"), "malformed"),
        (lambda text: text.replace("\n", ""), "malformed"),
    ],
)
def test_it_points_at_a_request_it_cannot_take(spoil: Any, code: str, api: Api, tmp_path: Path) -> None:
    asked = {"license": str(make_license(at=NOW).pk), "request": spoil(request_of(tmp_path))}

    with nothing_written():
        assert_problem(api.post("/license-files", asked), 400, code, "/request")


def test_it_points_at_a_request_that_was_changed(api: Api, tmp_path: Path) -> None:
    mine, other = request_of(tmp_path), request_of(tmp_path / "other")
    bodies = ["".join(text.splitlines()[1:-1]).split(".") for text in (mine, other)]
    token = f"{bodies[0][0]}.{bodies[0][1]}.{bodies[1][2]}"
    lines = [token[start : start + 64] for start in range(0, len(token), 64)]
    text = "\n".join([mine.splitlines()[0], *lines, mine.splitlines()[-1], ""])

    answer = api.post("/license-files", {"license": str(make_license(at=NOW).pk), "request": text})

    assert_problem(answer, 400, "request_not_authentic", "/request")


def test_it_refuses_an_old_request(api: Api, tmp_path: Path) -> None:
    text = request_of(tmp_path, wall=lambda: (NOW - timedelta(days=30)).timestamp())

    answer = api.post("/license-files", {"license": str(make_license(at=NOW).pk), "request": text})

    assert_problem(answer, 400, "request_out_of_date", "/request")


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"offline_period": timedelta()}, "offline_not_allowed"),
        ({"activation_limit": 0}, "activation_limit_reached"),
        ({"seat_kind": "floating", "seat_limit": 0}, "no_seat_available"),
        ({"duration": timedelta(seconds=1)}, "license_not_usable"),
    ],
)
def test_it_refuses_what_the_terms_do_not_allow(terms: dict[str, Any], code: str, api: Api, tmp_path: Path) -> None:
    license = make_license(at=NOW - timedelta(minutes=1), **terms)

    with nothing_written():
        answer = api.post("/license-files", {"license": str(license.pk), "request": request_of(tmp_path)})

    assert_problem(answer, 409, code)


def test_it_refuses_another_key_for_the_same_machine(api: Api, tmp_path: Path) -> None:
    license = make_license(at=NOW)
    api.post("/license-files", {"license": str(license.pk), "request": request_of(tmp_path)})

    answer = api.post("/license-files", {"license": str(license.pk), "request": request_of(tmp_path / "other")})

    assert_problem(answer, 409, "activation_key_conflict")


def test_it_is_made_for_a_machine_that_is_activated(world: World) -> None:
    asked = {"license": str(world.license.pk), "fingerprint": world.activation.fingerprint}

    answer = own_server(world).post("/license-files", asked)

    assert answer.status_code == 201
    assert answer.json()["activation"] == str(world.activation.pk)


def test_it_knows_no_machine_that_is_not_activated(world: World, api: Api) -> None:
    for fingerprint in (FINGERPRINT, world.other_activation.fingerprint):
        asked = {"license": str(world.license.pk), "fingerprint": fingerprint}
        assert_problem(api.post("/license-files", asked), 404, "not_found")


def test_it_asks_for_one_of_request_and_fingerprint(api: Api, tmp_path: Path) -> None:
    asked = {"license": str(make_license(at=NOW).pk)}

    assert_problem(api.post("/license-files", asked), 400, pointer="/request")
    both = asked | {"request": request_of(tmp_path), "fingerprint": FINGERPRINT}
    assert_problem(api.post("/license-files", both), 400, pointer="/fingerprint")


def test_it_works_with_a_license_key(tmp_path: Path) -> None:
    license, key = make_license_and_key(at=NOW)

    answer = by_key(key).post("/license-files", {"request": request_of(tmp_path)})

    assert answer.status_code == 201
    assert answer.json()["license"] == str(license.pk)


def test_it_takes_a_signing_machine_for_itself(tmp_path: Path) -> None:
    license, key = make_license_and_key(at=NOW)
    machine = signing_machine(key, FINGERPRINT)

    made = machine("POST", "/license-files", {})
    other = machine("POST", "/license-files", {"request": request_of(tmp_path)})

    assert made.status_code == 201
    assert made.json()["activation"] == str(Activation.objects.get(license=license).pk)
    assert_problem(other, 400, pointer="/request")


def test_it_knows_another_customers_license_as_little_as_a_missing_one(world: World, tmp_path: Path) -> None:
    for pk in (world.other_license.pk, MISSING_ID):
        asked = {"license": str(pk), "request": request_of(tmp_path)}
        assert_problem(own_server(world).post("/license-files", asked), 404, "not_found")
        assert_problem(by_key(world.key).post("/license-files", asked), 404, "not_found")


def test_it_needs_the_scope_that_machines_need(api: Api) -> None:
    license = make_license(at=NOW)
    activations.activate(license=license, fingerprint=FINGERPRINT, by=BY, at=NOW)
    asked = {"license": str(license.pk), "fingerprint": FINGERPRINT}

    assert by_scopes("activations").post("/license-files", asked).status_code == 201
    assert_problem(by_scopes("leases").post("/license-files", asked), 403, "forbidden")
    assert License.objects.get(pk=license.pk).activations_used == 1
