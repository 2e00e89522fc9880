"""License files: request in, file out, and nothing that was changed on the way."""

import base64
import json
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from joserfc import jwe, jws
from joserfc.jwk import KeySet, OKPKey

from licensing import activations, crypto, leases, license_files, lifecycle
from licensing.activations import ActivationKeyConflict, ActivationLimitReached
from licensing.catalog import Grant
from licensing.errors import Invalid, Missing
from licensing.leases import OfflineNotAllowed
from licensing.license_files import RequestMalformed, RequestNotAuthentic, RequestOutOfDate
from licensing.models import Activation, AuditEntry, Lease, License, LicenseFile
from licensing.seats import LicenseNotUsable, NoSeatAvailable
from tests.factories import AT, BY, make_license

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
FINGERPRINT = "machine-0123456789"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk_of(key: Any, curve: str = "Ed25519") -> dict[str, str]:
    return {"kty": "OKP", "crv": curve, "x": b64(key.public_key().public_bytes_raw())}


def armoured(token: str, label: str = license_files.REQUEST_LABEL) -> str:
    lines = "\n".join(token[start : start + 64] for start in range(0, len(token), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


class Machine:
    """An offline machine, made of other people's code: PyJWT signs, joserfc opens."""

    def __init__(self) -> None:
        self.key, self.sealing = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()

    def request(self, at: datetime = AT, header: dict[str, Any] | None = None, **claims: Any) -> str:
        said = {
            "fingerprint": FINGERPRINT,
            "name": "Plant 7",
            "platform": "linux",
            "enc_key": jwk_of(self.sealing, "X25519"),
            "nonce": "n" * 22,
            "iat": int(at.timestamp()),
        } | claims
        said = {name: value for name, value in said.items() if value is not None}
        return armoured(self.sign(said, header))

    def sign(self, claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
        shown = {"typ": license_files.REQUEST_TYPE, "jwk": jwk_of(self.key)} | (header or {})
        return jwt.encode(claims, self.key, algorithm="EdDSA", headers=shown)


def token_of(file: str) -> str:
    lines = file.splitlines()
    assert lines[0] == "-----BEGIN LICENTIA LICENSE FILE-----"
    assert lines[-1] == "-----END LICENTIA LICENSE FILE-----"
    assert all(len(line) == 64 for line in lines[1:-2])
    return "".join(lines[1:-1])


def issue(license: License, at: datetime = AT, machine: Machine | None = None, **more: Any) -> license_files.Issued:
    request = license_files.read_request((machine or Machine()).request(at), at)
    return license_files.issue(license=license, request=request, by=BY, at=at, **more)


def claims_of(issued: license_files.Issued) -> dict[str, Any]:
    """Return what the file says, verified by joserfc with the public keys alone."""
    read = jws.deserialize_compact(
        token_of(issued.text), KeySet.import_key_set(crypto.jwks()), algorithms=["Ed25519", "EdDSA"]
    )
    assert read.headers()["typ"] == "license-file+jwt"
    claims: dict[str, Any] = json.loads(read.payload)
    return claims


def test_it_activates_the_machine_and_states_the_terms():
    license = make_license(
        offline_period=30 * DAY, grace_period=DAY, maintenance=90 * DAY,
        grants=[Grant("export"), Grant("support", kind="value", value="gold")],
    )  # fmt: skip
    machine = Machine()

    issued = issue(license, machine=machine)

    activation = Activation.objects.get(license=license)
    claims = claims_of(issued)
    assert bytes(activation.public_key) == machine.key.public_key().public_bytes_raw()
    assert (activation.fingerprint, activation.name, activation.platform) == (FINGERPRINT, "Plant 7", "linux")
    assert (claims["sub"], claims["aud"]) == (str(license.pk), license.product.code)
    assert claims["iat"] == claims["nbf"] == int(AT.timestamp())
    assert claims["exp"] == int((AT + 30 * DAY).timestamp())
    assert claims["offline_max"] == 30 * 86_400
    assert claims["cnf"] == {"jkt": OKPKey.import_key(jwk_of(machine.key)).thumbprint()}
    assert claims["fingerprint"] == FINGERPRINT
    assert claims["nonce"] == "n" * 22
    assert claims["revision"] == License.objects.get(pk=license.pk).revision
    terms = claims["terms"]
    assert (terms["plan"], terms["scheme"], terms["status"]) == (license.plan_revision.plan.code, "seats", "active")
    assert terms["entitlements"] == {"export": True, "support": "gold"}
    assert terms["limits"] == {"seats": 10, "machines": 5}
    assert terms["seats"]["limit"] == 10
    assert terms["expires_at"] == "2027-03-01T12:00:00Z"
    assert terms["grace_until"] == "2027-03-02T12:00:00Z"
    assert terms["maintenance_until"] == "2026-05-30T12:00:00Z"


def test_it_is_verified_by_pyjwt_with_a_public_key_alone(settings):
    issued = issue(make_license())

    token = token_of(issued.text)
    kid = jwt.get_unverified_header(token)["kid"]
    key = next(jwt.PyJWK(each) for each in crypto.jwks()["keys"] if each["kid"] == kid)
    claims = jwt.decode(token, key, algorithms=["EdDSA"], issuer=settings.PUBLIC_URL, options={
        "verify_aud": False, "verify_exp": False, "verify_nbf": False, "verify_iat": False,
    })  # fmt: skip

    assert claims["jti"] == str(issued.record.pk)
    assert issued.record.kid == kid


def test_it_records_each_file_with_an_entry():
    license = make_license()

    issued = issue(license)

    record = LicenseFile.objects.get()
    entry = AuditEntry.objects.get(action="license_file.issued")
    assert (record.license_id, record.activation.fingerprint) == (license.pk, FINGERPRINT)
    assert (record.issued_at, record.expires_at, record.encrypted) == (AT, AT + 30 * DAY, False)
    assert (entry.object_id, entry.license_id, entry.customer_id) == (
        str(issued.record.pk), license.pk, license.customer_id,
    )  # fmt: skip


def test_it_takes_a_machine_once_however_many_files_it_gets():
    license, machine = make_license(activation_limit=1), Machine()

    for _ in range(3):
        issue(license, machine=machine)

    assert License.objects.get(pk=license.pk).activations_used == 1
    assert LicenseFile.objects.count() == 3


def test_it_refuses_a_machine_too_many_and_writes_nothing():
    license = make_license(activation_limit=1)
    activations.activate(license=license, fingerprint="x" * 16, by=BY, at=AT)

    with pytest.raises(ActivationLimitReached):
        issue(license)

    assert not LicenseFile.objects.exists()


def test_it_refuses_another_key_for_the_same_machine():
    license = make_license()
    issue(license)

    with pytest.raises(ActivationKeyConflict):
        issue(license)

    assert LicenseFile.objects.count() == 1


def test_it_expires_with_the_license_at_the_latest():
    license = make_license(duration=10 * DAY)
    graced = make_license(duration=10 * DAY, grace_period=5 * DAY)

    assert issue(license).record.expires_at == AT + 10 * DAY
    assert issue(graced).record.expires_at == AT + 15 * DAY


def test_it_expires_when_asked():
    assert issue(make_license(), expires_at=AT + 3 * DAY).record.expires_at == AT + 3 * DAY


def test_it_knows_the_end_that_its_own_activation_began():
    license = make_license(validity_basis="from_first_activation", duration=7 * DAY)

    issued = issue(license)

    assert issued.record.expires_at == AT + 7 * DAY
    assert claims_of(issued)["terms"]["expires_at"] == "2026-03-08T12:00:00Z"


@pytest.mark.parametrize("wanted", [AT, AT - DAY, AT + 31 * DAY])
def test_it_refuses_an_expiry_that_cannot_be(wanted):
    with pytest.raises(Invalid) as refused:
        issue(make_license(), expires_at=wanted)

    assert refused.value.pointer == "/expires_at"


def test_it_refuses_where_the_plan_allows_no_offline_use():
    with pytest.raises(OfflineNotAllowed):
        issue(make_license(offline_period=timedelta()))

    assert not Activation.objects.exists()


@pytest.mark.parametrize("stop", ["hold", "revoke", "expire"])
def test_it_refuses_a_license_that_cannot_be_used(stop):
    license = make_license(duration=DAY)
    at = AT
    if stop == "hold":
        lifecycle.hold(license=license, reason="abuse", by=BY, at=AT)
    elif stop == "revoke":
        lifecycle.revoke(license=license, reason="r", by=BY, at=AT)
    else:
        at = AT + 2 * DAY

    with pytest.raises(LicenseNotUsable):
        issue(license, at=at)


def test_it_is_made_for_a_machine_that_is_activated_already():
    license = make_license()
    activation = activations.activate(license=license, fingerprint=FINGERPRINT, by=BY, at=AT).activation

    issued = license_files.issue(license=license, activation=activation, by=BY, at=AT)

    claims = claims_of(issued)
    assert "cnf" not in claims
    assert "nonce" not in claims
    assert claims["fingerprint"] == FINGERPRINT


def test_it_is_not_made_for_a_machine_that_was_let_go():
    license = make_license()
    activation = activations.activate(license=license, fingerprint=FINGERPRINT, by=BY, at=AT).activation
    ended = activations.deactivate(activation=activation, by=BY, at=AT)

    for machine in (ended, None):
        with pytest.raises(Missing):
            license_files.issue(license=license, activation=machine, by=BY, at=AT)


def test_it_refuses_a_request_for_another_product():
    request = license_files.read_request(Machine().request(product="other"), AT)

    with pytest.raises(Invalid) as refused:
        license_files.issue(license=make_license(), request=request, by=BY, at=AT)

    assert refused.value.pointer == "/request"


def test_it_borrows_a_unit_where_seats_float():
    license = make_license(seat_kind="floating", seat_limit=1)
    machine = Machine()

    issued = issue(license, machine=machine)
    issue(license, machine=machine)

    lease = Lease.objects.get()
    assert (lease.offline, lease.expires_at) == (True, issued.record.expires_at)
    assert claims_of(issued)["terms"]["seats"]["used"] == 1
    with pytest.raises(NoSeatAvailable):
        license_files.issue(
            license=license,
            request=license_files.read_request(Machine().request(fingerprint="another-machine-1"), AT),
            by=BY,
            at=AT,
        )
    assert License.objects.get(pk=license.pk).activations_used == 1
    leases.check_in(lease=lease, by=BY, at=AT)
    assert License.objects.get(pk=license.pk).seats_used == 0


# --- encrypted --------------------------------------------------------------------------------------


def opened(machine: Machine, file: str) -> Any:
    secret = {**jwk_of(machine.sealing, "X25519"), "d": b64(machine.sealing.private_bytes_raw())}
    return jwe.decrypt_compact(token_of(file), OKPKey.import_key(secret))


def test_it_is_read_by_the_machine_alone_when_encrypted():
    machine, stranger = Machine(), Machine()

    issued = issue(make_license(), machine=machine, encrypt=True)

    found = opened(machine, issued.text)
    assert found.headers()["typ"] == "license-file+jwe"
    assert found.headers()["cty"] == "license-file+jwt"
    inner = license_files.Issued(issued.record, armoured(found.plaintext.decode(), license_files.LABEL))
    assert claims_of(inner)["fingerprint"] == FINGERPRINT
    assert issued.record.encrypted
    with pytest.raises(Exception, match=".*"):
        opened(stranger, issued.text)


def test_it_encrypts_to_no_key_that_is_not_there():
    request = license_files.read_request(Machine().request(enc_key=None), AT)

    with pytest.raises(Invalid) as refused:
        license_files.issue(license=make_license(), request=request, encrypt=True, by=BY, at=AT)

    assert refused.value.pointer == "/encrypt"


# --- requests ---------------------------------------------------------------------------------------


def test_it_reads_a_request_with_the_line_ends_of_windows():
    machine = Machine()

    assert license_files.read_request(machine.request().replace("\n", "\r\n"), AT).fingerprint == FINGERPRINT


@pytest.mark.parametrize("change", [1, 0x80])
def test_it_accepts_no_request_with_a_byte_flipped(change):
    text = Machine().request().encode()
    accepted = []
    for position in range(len(text)):
        flipped = bytearray(text)
        flipped[position] ^= change
        try:
            license_files.read_request(flipped.decode("latin-1"), AT)
        except (RequestMalformed, RequestNotAuthentic):
            continue
        accepted.append(position)

    assert accepted == []


def test_it_accepts_no_file_with_a_byte_flipped():
    """The file as anybody reads it: taken out of its armour, verified by the public keys."""
    text = issue(make_license()).text
    keys, accepted = KeySet.import_key_set(crypto.jwks()), []
    for position in range(len(text)):
        flipped = bytearray(text.encode())
        flipped[position] ^= 1
        try:
            token = license_files.unarmour(license_files.LABEL, flipped.decode())
            jws.deserialize_compact(token, keys, algorithms=["EdDSA", "Ed25519"])
        except Exception:  # whatever the library says: it was not taken
            continue
        accepted.append((position, chr(flipped[position])))

    assert accepted == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "-----BEGIN LICENTIA ACTIVATION REQUEST-----\n\n-----END LICENTIA ACTIVATION REQUEST-----\n",
        "-----BEGIN LICENTIA LICENSE FILE-----\na.b.c\n-----END LICENTIA LICENSE FILE-----\n",
        armoured("a.b.c"),
        armoured("a.b"),
        armoured("!" * 30),
        armoured(f"{b64(b'[' * 900)}.{b64(b'{}')}.{b64(b'x')}"),
        armoured("x" * 9_000),
        " " + armoured("a.b.c"),
        "x\x00" * 30,
    ],
)
def test_it_says_what_is_no_request(text):
    with pytest.raises(RequestMalformed) as refused:
        license_files.read_request(text, AT)

    assert (refused.value.code, refused.value.pointer) == ("malformed", "/request")


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "license+jwt"},
        {"kid": "sign-1"},
        {"crit": ["exp"]},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(32))}},
        {"jwk": {"kty": "OKP", "crv": "X25519", "x": b64(b"x" * 32)}},
        {"jwk": "key"},
        {"jwk": None},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(b"x" * 31)}},
    ],
)
def test_it_refuses_a_header_that_is_not_just_so(header):
    with pytest.raises(RequestMalformed):
        license_files.read_request(Machine().request(header=header), AT)


@pytest.mark.parametrize(
    "claims",
    [
        {"fingerprint": "short"},
        {"fingerprint": None},
        {"fingerprint": 7},
        {"nonce": "short"},
        {"nonce": None},
        {"name": "x" * 201},
        {"name": "line\nbreak"},
        {"platform": ["linux"]},
        {"iat": "now"},
        {"iat": True},
        {"iat": -1},
        {"iat": 10**20},
        {"admin": True},
        {"enc_key": "x"},
        {"enc_key": {"kty": "OKP", "crv": "X25519", "x": "AA"}},
        {"enc_key": {"kty": "OKP", "crv": "X25519", "x": b64(b"x" * 32), "d": b64(b"x" * 32)}},
    ],
)
def test_it_refuses_a_claim_that_cannot_be(claims):
    machine = Machine()
    said = {"fingerprint": FINGERPRINT, "nonce": "n" * 22, "iat": int(AT.timestamp())} | claims
    token = jwt.api_jws.encode(
        json.dumps({name: value for name, value in said.items() if value is not None}).encode(),
        machine.key,
        algorithm="EdDSA",
        headers={"typ": license_files.REQUEST_TYPE, "jwk": jwk_of(machine.key)},
    )

    with pytest.raises(RequestMalformed):
        license_files.read_request(armoured(token), AT)


def test_it_refuses_a_name_that_stands_twice():
    machine = Machine()
    text = f'{{"fingerprint":"{FINGERPRINT}","fingerprint":"{"x" * 16}","nonce":"{"n" * 22}","iat":1}}'
    token = jwt.api_jws.encode(
        text.encode(), machine.key, algorithm="EdDSA",
        headers={"typ": license_files.REQUEST_TYPE, "jwk": jwk_of(machine.key)},
    )  # fmt: skip

    with pytest.raises(RequestMalformed):
        license_files.read_request(armoured(token), AT)


def test_it_refuses_a_request_signed_by_another_key():
    text = Machine().request(header={"jwk": jwk_of(Ed25519PrivateKey.generate())})

    with pytest.raises(RequestNotAuthentic) as refused:
        license_files.read_request(text, AT)

    assert (refused.value.code, refused.value.pointer) == ("request_not_authentic", "/request")


@pytest.mark.parametrize(("age", "fine"), [(7 * DAY, True), (8 * DAY, False), (-DAY, True), (-2 * DAY, False)])
def test_it_takes_a_request_for_a_week(age, fine):
    text = Machine().request(AT - age)

    if fine:
        assert license_files.read_request(text, AT).made_at == AT - age
        return
    with pytest.raises(RequestOutOfDate) as refused:
        license_files.read_request(text, AT)
    assert "by its own clock" in refused.value.detail
