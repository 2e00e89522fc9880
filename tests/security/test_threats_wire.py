"""Threats over the wire, each by its number in docs/threat-model.md: false servers, replays, copies, downgrades.

Where there is an implementation that is not ours (http-message-signatures, PyJWT, joserfc), it judges.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import time_machine
from django.utils import timezone
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, InvalidSignature, algorithms
from joserfc import jwt as jose
from joserfc.jwk import OKPKey
from requests import Request

from licensing import crypto, tokens
from licensing.crypto import KeyRing, NotAuthentic
from licensing.models import Anomaly
from tests.api.conftest import Api, World, assert_problem, by_key, caller, make_world
from tests.api.running import database_beside, running
from tests.api.test_signed_answers import PUBLIC_URL, Exchange, exchanged, public_keys, verify
from tests.api.test_signed_clients import call, machine
from tests.factories import make_license_and_key
from tests.licensing.test_signatures import BENT, NOW, REWRITTEN
from tests.servers import Redis
from tests.signing import Signer, for_other_libraries

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _public_url(settings: Any) -> None:
    settings.PUBLIC_URL = PUBLIC_URL
    settings.ALLOWED_HOSTS = ["*"]


@contextlib.contextmanager
def another_ring() -> Iterator[None]:
    """Be a server that has everything but our keys."""
    crypto.use(KeyRing.generate())
    try:
        yield
    finally:
        crypto.forget()


def asked(key: str) -> Exchange:
    who = by_key(key)
    return exchanged("POST", "/validate", who.post("/validate", {}), who)


# --- T1: a false server -----------------------------------------------------------------------------


def test_t01_a_look_alike_says_valid_and_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    published = public_keys()
    answers = []
    with another_ring():
        world = make_world()
        for _ in range(50):
            answers.append(asked(world.key))
    monkeypatch.setattr("tests.api.test_signed_answers.public_keys", lambda: published)
    [key] = [each for each in published["keys"] if each["kid"] == crypto.ring().primary("sign").kid]

    for answer in answers:
        said = httpx.Response(answer.status, content=answer.body).json()
        assert (answer.status, said["valid"]) == (200, True)
        with pytest.raises((InvalidSignature, KeyError)):
            verify(answer)
        # Even under our key's own name.
        named = answer.headers["signature-input"].split('keyid="')[1].split('"')[0]
        answer.headers["signature-input"] = answer.headers["signature-input"].replace(named, key["kid"])
        with pytest.raises(InvalidSignature):
            verify(answer)
        with pytest.raises(jwt.InvalidTokenError):
            jwt.decode(said["token"], jwt.PyJWK(key).key, ["EdDSA"], options={"verify_aud": False})


def test_t01_no_byte_of_an_answer_may_be_another(world: World) -> None:
    answer = asked(world.key)
    assert verify(answer).body == answer.body
    accepted = []

    for place in range(len(answer.body)):
        changed = bytearray(answer.body)
        changed[place] ^= 1
        accepted += _believed(answer, body=bytes(changed))
    for name in ("signature", "signature-input", "content-digest"):
        value = answer.headers[name]
        for place in range(len(value)):
            other = chr(ord(value[place]) ^ 1)
            accepted += _believed(answer, headers={**answer.headers, name: value[:place] + other + value[place + 1 :]})
    for status in set(range(200, 600)) - {200}:
        accepted += _believed(answer, status=status)

    # What is left is the same signature in other words: the bits of base64 that nobody reads.
    assert [each for each in accepted if _meant(each) != _meant(answer)] == []


def _believed(answer: Exchange, **changed: Any) -> list[Exchange]:
    bent = Exchange(**{name: getattr(answer, name) for name in Exchange.__slots__} | changed)
    try:
        verify(bent)
    except InvalidSignature:
        return []
    return [bent]


def _meant(answer: Exchange) -> Any:
    made = b64decode(answer.headers["signature"].split(":")[1])
    label = answer.headers["signature"].split("=")[0]
    return answer.status, answer.body, made, label, answer.headers["signature-input"], answer.headers["content-digest"]


# --- T2: an old answer ------------------------------------------------------------------------------


def test_t02_an_answer_fits_no_other_request(world: World) -> None:
    answers = [asked(world.key) for _ in range(15)]

    fitting = 0
    for mine in answers:
        for other in answers:
            replayed = Exchange(mine.method, mine.url, mine.nonce, other.status, other.headers, other.body)
            with contextlib.suppress(InvalidSignature):
                verify(replayed)
                fitting += 1
                assert other is mine

    assert fitting == len(answers)
    [one, *_] = answers
    for bent in (
        {"url": one.url.replace("validate", "activations")},
        {"method": "GET"},
        {"nonce": one.nonce[:-1]},
        {"status": 201},
        {"body": answers[1].body},
    ):
        assert _believed(one, **bent) == []


# --- T3: a captured request -------------------------------------------------------------------------

FLOATING = """
from datetime import UTC, datetime
from tests.factories import make_license_and_key
license, key = make_license_and_key(at=datetime.now(UTC), seat_limit=500, activation_limit=500, seat_kind="floating")
print(json.dumps({"key": key}))
"""


@pytest.mark.parametrize("memory", ["Redis", "database"])
def test_t03_a_hundred_copies_at_once_have_one_effect(memory: str, settings: Any) -> None:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(Redis()).url() if memory == "Redis" else ""
        url = stack.enter_context(database_beside())
        workers = 2 if redis else 1
        server = stack.enter_context(running(seed=FLOATING, database_url=url, workers=workers, REDIS_URL=redis))
        settings.PUBLIC_URL = server.url
        signer = registered(server.url, server.seeds["key"])
        captured = signer.headers("POST", "/api/v1/leases", b"{}")

        def send(_: int) -> httpx.Response:
            return httpx.post(
                f"{server.url}/api/v1/leases",
                content=b"{}",
                headers={**captured, "content-type": "application/json"},
                timeout=60,
            )

        with ThreadPoolExecutor(25) as clients:
            answers = list(clients.map(send, range(100)))
        again = send(0)

    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[201] == 1
    assert set(statuses) <= {201, 401, 503}  # 503: on a busy machine a memory may be late, and then refuses
    assert {answer.json()["code"] for answer in answers if answer.status_code == 401} == {"request_replayed"}
    assert again.json()["code"] == "request_replayed"


def registered(url: str, key: str, fingerprint: str = "machine-of-ada-0001") -> Signer:
    """Activate a machine with a key of its own at a real server."""
    signer = Signer()
    body = Api.encoded({"fingerprint": fingerprint, "public_key": signer.jwk})
    own = {"authorization": f"License {key}", "x-licentia-nonce": secrets.token_urlsafe(18)}
    own |= {"content-type": "application/json", **signer.headers("POST", "/api/v1/activations", body)}
    answer = httpx.post(f"{url}/api/v1/activations", content=body, headers=own)
    assert answer.status_code == 201, answer.text
    signer.keyid = answer.json()["id"]
    path = f"/api/v1/activations/{signer.keyid}"
    for _ in range(50):  # Redis was found empty just now: for a moment the server takes no signature
        if httpx.get(url + path, headers=signer.headers("GET", path)).status_code == 200:
            return signer
        time.sleep(0.2)
    raise AssertionError("The server takes no signature.")


def test_t03_it_takes_a_request_another_library_signed_and_takes_it_once(world: World) -> None:
    signer = machine(world.key)

    class Keys(HTTPSignatureKeyResolver):
        def resolve_private_key(self, key_id: str) -> Any:
            return signer.key

    def sent() -> dict[str, str]:
        digest = signer.headers("POST", "/", b"{}")["content-digest"]
        request = Request(
            "POST",
            f"{PUBLIC_URL}/api/v1/validate",
            data=b"{}",
            headers={"x-licentia-counter": "40", "content-digest": digest},
        ).prepare()
        HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys()).sign(
            request,
            key_id=signer.keyid,
            nonce=secrets.token_urlsafe(18),
            covered_component_ids=("@method", "@target-uri", "content-digest", "x-licentia-counter"),
            use_existing_digest=True,
        )
        return {name.lower(): str(value) for name, value in request.headers.items() if name.lower() != "content-length"}

    captured = sent()
    ask = caller(None, nonce=None)

    assert ask.post("/validate", b"{}", **captured).json()["valid"]
    assert_problem(ask.post("/validate", b"{}", **captured), 401, "request_replayed")
    assert_problem(ask.post("/validate", b'{"version":"1"}', **captured), 401, "content_digest_mismatch")


# --- T5: a copied machine ---------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 3, 10])
def test_t05_a_copy_is_noticed_within_two_requests_of_both(ahead: int, world: World) -> None:
    original = machine(world.key)
    for _ in range(ahead):
        assert call(original, "POST", "/validate", {}).status_code == 200
    copy = Signer(original.keyid)
    copy.key = original.key
    reached = next(original.counters)
    original.counters, copy.counters = count(reached), count(reached)  # copied with everything else

    said = [call(which, "POST", "/validate", {}).status_code for which in (original, copy, original, copy)]

    assert said == [200, 401, 200, 401]
    assert Anomaly.objects.get(rule="cloned_installation").object_id == original.keyid


def test_t05_a_copied_fingerprint_alone_speaks_for_nobody(world: World) -> None:
    original = machine(world.key)

    spoofed = by_key(world.key).post("/validate", {"fingerprint": "machine-of-ada-0001"})
    guessed = call(Signer(original.keyid), "POST", "/validate", {"fingerprint": "machine-of-ada-0001"})

    assert_problem(spoofed, 403, "signed_client_required")
    assert_problem(guessed, 401, "signature_wrong")


# --- T9: the client's clock -------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [timedelta(days=-400), timedelta(days=400)], ids=["turned back", "ahead"])
def test_t09_the_server_goes_by_its_own_clock_alone(clock: timedelta, db: None) -> None:
    now = timezone.now()
    _, over = make_license_and_key(at=now - timedelta(days=30), expires_at=now - timedelta(days=1))
    _, soon = make_license_and_key(at=now, expires_at=now + timedelta(hours=2))
    _, long = make_license_and_key(at=now)
    claimed = (now + clock).strftime("%a, %d %b %Y %H:%M:%S GMT")

    said = [by_key(key).post("/validate", {}, date=claimed).json() for key in (over, soon, long)]

    assert [each["code"] for each in said] == ["expired", "valid", "valid"]
    for each, life in zip(said, (300, 7_200, 86_400), strict=True):
        assert abs(datetime.fromisoformat(each["checked_at"]) - now) < timedelta(minutes=1)
        claims = jwt.decode(each["token"], options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] <= life


# --- T23: a signing key leaks -----------------------------------------------------------------------


def test_t23_a_leaked_signing_key_is_out_of_use_within_seconds(tmp_path: Path, settings: Any) -> None:
    """The drill of docs/operations.md, at a server that goes on answering."""
    database = f"sqlite:///{tmp_path}/drill.sqlite3"
    ring = tmp_path / "ring.json"
    crypto.write(KeyRing.generate(), ring)
    settings.KEYRING, settings.KEYRING_FILE = "", str(ring)
    crypto.forget()
    stolen = crypto.ring().primary("sign")
    forged = jwt.encode(
        {"sub": "x", "valid": True},
        for_other_libraries(stolen),
        "EdDSA",
        headers={"kid": stolen.kid, "typ": tokens.TYPE},
    )
    assert tokens.read(forged)["valid"]

    with running(
        seed=FLOATING, database_url=database, workers=1, REDIS_URL="", KEYRING_FILE=str(ring), KEYRING=""
    ) as server:
        began = time.monotonic()
        manage = _manage_at(database, ring)
        kid = manage("add", "--purpose", "sign").split()[0]
        for _ in range(100):  # until the server has read the new key, by itself
            promoted = manage("promote", kid, may_fail=True)
            if "primary" in promoted:
                break
            time.sleep(0.2)
        manage("disable", stolen.kid)
        while stolen.kid in {each["kid"] for each in _published(server.url)}:
            assert time.monotonic() - began < 60
            time.sleep(0.1)
        took = time.monotonic() - began
        answer = httpx.post(
            f"{server.url}/api/v1/validate",
            json={},
            headers={"authorization": f"License {server.seeds['key']}", "x-licentia-nonce": "n" * 22},
        )
        print(f"from the first command to the last process: {took:.1f} s")

    crypto.forget()
    assert jwt.get_unverified_header(answer.json()["token"])["kid"] == kid
    assert f'keyid="{kid}"' in answer.headers["signature-input"]
    with pytest.raises(NotAuthentic):
        tokens.read(forged)
    assert took < 60


def _manage_at(database: str, ring: Path) -> Any:
    def manage(*arguments: str, may_fail: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", "keyring", *arguments],
            env={**os.environ, "DATABASE_URL": database, "KEYRING": "", "KEYRING_FILE": str(ring), "REDIS_URL": ""},
            capture_output=True,
            text=True,
        )
        assert may_fail or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return manage


def _published(url: str) -> Any:
    return httpx.get(f"{url}/.well-known/jwks.json").json()["keys"]


# --- T25: downgrades --------------------------------------------------------------------------------


def test_t25_no_bent_signature_gets_an_answer(world: World) -> None:
    path, ask = "/api/v1/validate", caller(None, nonce=None)
    with time_machine.travel(NOW, tick=False):  # the list is written for this instant
        signer = machine(world.key)
        assert call(signer, "POST", "/validate", {}).status_code == 200
        sent = [signer.headers("POST", path, b"{}", **bend) for _, bend, _ in BENT]
        sent += [rewrite(signer.headers("POST", path, b"{}")) for _, rewrite in REWRITTEN]
        sent = [headers for headers in sent if all(value.isascii() for value in headers.values())]
        answers = [replace(ask, address=f"10.9.0.{n}").post("/validate", b"{}", **each) for n, each in enumerate(sent)]

    assert [each for each, answer in zip(sent, answers, strict=True) if answer.status_code not in (400, 401)] == []
    assert len(answers) >= 60


def test_t25_a_token_of_another_library_is_read_and_only_of_our_kind() -> None:
    key = crypto.ring().primary("sign")
    claims = {"sub": "x", "code": "valid"}
    head = {"alg": "EdDSA", "kid": key.kid, "typ": tokens.TYPE}
    jose_key = OKPKey.import_key({**key_of(key), "kid": key.kid})

    assert tokens.read(jwt.encode(claims, for_other_libraries(key), "EdDSA", headers=head)) == claims
    assert tokens.read(jose.encode(head, claims, jose_key, algorithms=["EdDSA"])) == claims
    for bent in ({"typ": "JWT"}, {"kid": "another"}, {"typ": "license-file+jwt"}, {"crit": ["exp"]}):
        with pytest.raises(NotAuthentic):
            tokens.read(jwt.encode(claims, for_other_libraries(key), "EdDSA", headers=head | bent))
    for algorithm in ("HS256", "none"):
        secret = None if algorithm == "none" else "s" * 32
        with pytest.raises(NotAuthentic):
            tokens.read(jwt.encode(claims, secret, algorithm, headers={**head, "alg": algorithm}))


def key_of(key: Any) -> dict[str, str]:
    public = next(each for each in crypto.jwks()["keys"] if each["kid"] == key.kid)
    return {"kty": "OKP", "crv": "Ed25519", "x": public["x"], "d": crypto.b64(key.material)}


def test_t25_nothing_unsigned_speaks_where_clients_must_sign(db: None) -> None:
    license, key = make_license_and_key(require_signed_clients=True, at=timezone.now())
    signer = machine(key)

    assert call(signer, "POST", "/validate", {}).json()["valid"]
    for body in ({}, {"fingerprint": "machine-of-ada-0001"}, {"license": str(license.pk)}):
        assert_problem(by_key(key).post("/validate", body), 403, "signed_client_required")
    unsigned = {"x-licentia-counter": "77", "x-licentia-activation": signer.keyid}
    assert_problem(caller(None, nonce=None).post("/validate", b"{}", **unsigned), 401, "unauthenticated")
