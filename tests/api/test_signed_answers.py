"""Signed answers, verified by implementations that are not ours: http-message-signatures, PyJWT and joserfc, with
nothing of us but /.well-known/jwks.json."""

import json
import secrets
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import HTTPMessageVerifier, InvalidSignature, MappingKeyResolver
from http_message_signatures.algorithms import ED25519
from joserfc import jws
from joserfc import jwt as jose
from joserfc.errors import BadSignatureError
from joserfc.jwk import KeySet

from licensing import crypto
from licensing.models import IdempotencyRecord
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    by_secret,
    caller,
    own_server,
)

PUBLIC_URL = "https://licenses.example.com"
COVERED = ('"@status"', '"content-digest"', '"@method";req', '"@target-uri";req', '"x-licentia-nonce";req')


@pytest.fixture(autouse=True)
def _public_url(settings: Any) -> None:
    settings.PUBLIC_URL = PUBLIC_URL
    settings.ALLOWED_HOSTS = ["*"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request as its sender knows it, and the answer as it came."""

    method: str
    url: str
    nonce: str
    status: int
    headers: dict[str, str]
    body: bytes


def exchanged(method: str, path: str, answer: Any, who: Api) -> Exchange:
    assert who.nonce is not None
    url = PUBLIC_URL + ("/api/v1" + path)
    return Exchange(
        method,
        url,
        who.nonce,
        answer.status_code,
        {name.lower(): value for name, value in answer.items()},
        answer.content,
    )


def verify(exchange: Exchange) -> Any:
    """Raise `InvalidSignature` unless the answer is the server's to this very request."""
    request = SimpleNamespace(method=exchange.method, url=exchange.url, headers={"x-licentia-nonce": exchange.nonce})
    message = SimpleNamespace(status_code=exchange.status, headers=exchange.headers, url=exchange.url, request=request)
    keys = {
        key["kid"]: Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(key["x"] + "=="))
        for key in public_keys()["keys"]
    }
    verifier = HTTPMessageVerifier(
        signature_algorithm=ED25519, key_resolver=MappingKeyResolver(public_keys=keys, private_keys={})
    )
    results = verifier.verify(message, max_age=timedelta(seconds=60), require_components=COVERED, body=exchange.body)
    assert len(results) == 1
    return results[0]


def public_keys() -> Any:
    answer = caller(None, nonce=None).get("/.well-known/jwks.json")
    assert answer.status_code == 200
    assert answer["Content-Type"] == "application/jwk-set+json"
    return json.loads(answer.content)


def answers(world: World, settings: Any) -> dict[int, Exchange]:
    """Return one answer of each status the API gives, each to a request with a nonce."""
    found = {}

    def ask(who: Api, method: str, path: str, body: Any = None, **headers: str) -> None:
        answer = who.request(method, path, body, **headers)
        found[answer.status_code] = exchanged(method, path, answer, who)

    def who() -> Api:
        return by_scopes("licenses:read", "seats:read", "seats:write", "catalog:write")

    seat = f"/seats/{world.seat.pk}"
    product = {"code": "x", "name": "X"}
    ask(by_key(world.key), "POST", "/validate", {"fingerprint": "a" * 32})
    ask(who(), "POST", "/products", product)
    ask(who(), "DELETE", seat)
    ask(who(), "GET", "/licenses?limit=x")
    ask(by_secret("lsk_" + "x" * 43), "GET", "/licenses")
    ask(who(), "GET", "/anomalies")
    ask(who(), "GET", f"/licenses/{MISSING_ID}?status=active&limit=5")
    ask(who(), "PUT", "/products", product)
    ask(who(), "POST", "/products", product)
    ask(who(), "POST", "/products", b" " * 1_048_577)
    ask(who(), "POST", "/products", product, content_type="text/plain")
    once = who()
    ask(once, "POST", "/products", {"code": "y", "name": "Y"}, idempotency_key="key-1")
    ask(once, "POST", "/products", product, idempotency_key="key-1")
    IdempotencyRecord.objects.update(sealed_answer="v1.spoiled.x.y")
    ask(once, "POST", "/products", {"code": "y", "name": "Y"}, idempotency_key="key-1")
    settings.THROTTLES = {**settings.THROTTLES, "credential": (0.01, 1)}
    tired = who()
    for _ in range(2):
        ask(tired, "GET", "/licenses")
    return found


def test_it_signs_every_answer_to_a_request_with_a_nonce(world: World, settings: Any) -> None:
    found = answers(world, settings)

    assert sorted(found) == [200, 201, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500]
    for status, exchange in found.items():
        result = verify(exchange)
        assert result.covered_components['"@status"'] == str(status)
        assert result.covered_components['"@target-uri";req'] == exchange.url
        assert result.covered_components['"x-licentia-nonce";req'] == exchange.nonce
        assert result.body == exchange.body


def test_it_lets_no_part_of_any_answer_be_changed(world: World, settings: Any) -> None:
    for exchange in answers(world, settings).values():
        digest = f"sha-256=:{b64encode(sha256(b'{}').digest()).decode()}:"
        changed = {
            "status": replace(exchange, status=200 if exchange.status != 200 else 201),
            "body": replace(exchange, body=exchange.body + b" "),
            "body and digest": replace(exchange, body=b"{}", headers={**exchange.headers, "content-digest": digest}),
            "nonce": replace(exchange, nonce=secrets.token_urlsafe(18)),
            "method": replace(exchange, method="GET" if exchange.method != "GET" else "POST"),
            "path": replace(exchange, url=exchange.url.replace("/api/v1/", "/api/v1/other/")),
            "query": replace(exchange, url=exchange.url + "&x=1"),
            "host": replace(exchange, url=exchange.url.replace(PUBLIC_URL, "https://evil.example.com")),
            "scheme": replace(exchange, url=exchange.url.replace("https://", "http://")),
        }
        for part, forged in changed.items():
            try:
                verify(forged)
            except InvalidSignature:
                continue
            raise AssertionError(f"an answer {exchange.status} verifies with another {part}")


def test_it_takes_no_signature_of_one_answer_for_another(world: World) -> None:
    holder = by_key(world.key)
    valid = exchanged("POST", "/validate", holder.post("/validate", {}), holder)
    refused = exchanged("POST", "/validate", holder.post("/validate", {"product": "other"}), holder)

    signature = {name: valid.headers[name] for name in ("signature", "signature-input")}

    with pytest.raises(InvalidSignature):
        verify(replace(refused, headers={**refused.headers, **signature}))


def test_it_signs_replayed_answers_for_the_new_request(world: World) -> None:
    server = by_scopes("catalog:write")
    body = {"code": "x", "name": "X"}
    server.post("/products", body, idempotency_key="key-1")
    later = replace(server, nonce=secrets.token_urlsafe(18))

    answer = later.post("/products", body, idempotency_key="key-1")

    assert answer["Idempotent-Replayed"] == "true"
    verify(exchanged("POST", "/products", answer, later))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example.com"},
        {"host": "licenses.example.com:8443"},
        {"x_forwarded_host": "evil.example.com"},
        {"x_forwarded_proto": "http"},
        {"forwarded": "host=evil.example.com;proto=http"},
    ],
    ids=str,
)
def test_it_signs_for_its_own_address_whatever_host_is_asked(headers: dict[str, str], world: World) -> None:
    holder = by_key(world.key)

    answer = holder.post("/validate", {}, **headers)

    assert answer.status_code == 200
    verify(exchanged("POST", "/validate", answer, holder))


def test_it_links_pages_to_its_own_address_whatever_host_is_asked(world: World, api: Api) -> None:
    page = api.get("/licenses?limit=1", host="evil.example.com").json()

    assert page["next"].startswith(f"{PUBLIC_URL}/api/v1/licenses?")


def test_it_signs_for_a_host_it_does_not_serve(world: World, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["licenses.example.com", "testserver"]
    holder = by_key(world.key)

    answer = holder.post("/validate", {}, host="evil.example.com")

    assert_problem(answer, 400, "malformed")
    verify(exchanged("POST", "/validate", answer, holder))


@pytest.mark.parametrize("path", ["/nothing", "/licenses/%3F%C3%A4", "/licenses?x=%20y", "/schema"])
def test_it_signs_where_nothing_is_or_nobody_asks_who(path: str, db: None) -> None:
    who = caller(None)

    answer = who.get(path)

    verify(exchanged("GET", path, answer, who))


def test_it_says_the_digest_of_every_body_and_signs_only_when_asked(world: World) -> None:
    unsigned = by_secret("lsk_" + "x" * 43)
    for who in (replace(unsigned, nonce=None), replace(unsigned, nonce="short"), replace(unsigned, nonce="!" * 30)):
        answer = who.get("/licenses")
        digest = b64encode(sha256(answer.content).digest()).decode()
        assert answer["Content-Digest"] == f"sha-256=:{digest}:"
        assert "Signature" not in answer
        assert "Signature-Input" not in answer


def test_it_binds_the_answer_to_a_signature_in_place_of_a_nonce(world: World) -> None:
    server = replace(own_server(world), nonce=None)
    signature = "sig1=:" + b64encode(b"x" * 64).decode() + ":"

    answer = server.get("/licenses", signature=signature)

    assert '"signature";req' in answer["Signature-Input"]
    assert "x-licentia-nonce" not in answer["Signature-Input"]


def test_it_marks_no_answer_for_keeping(world: World, settings: Any) -> None:
    for exchange in answers(world, settings).values():
        assert exchange.headers["cache-control"] == "no-store"
        assert exchange.headers["x-content-type-options"] == "nosniff"


# --- when signing fails: the one place where a part of ours is made to fail --------------------------------


def _broken(key: Any, message: bytes) -> bytes:
    raise crypto.KeyRingError("the signing key is gone")


@pytest.mark.parametrize(
    "ask",
    [
        lambda world: by_key(world.key).post("/validate", {}),
        lambda world: own_server(world).get("/licenses"),
        lambda world: caller(None).get("/licenses"),
        lambda world: caller(None).get("/nothing"),
        lambda world: caller(None).post("/validate", b"\xff"),
    ],
    ids=["validate", "list", "refusal", "nothing there", "bad input"],
)
def test_it_answers_nothing_at_all_when_it_cannot_sign(ask: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crypto.RingKey, "sign", _broken)

    answer = ask(world)

    assert answer.status_code == 500
    assert answer.content == b""
    assert "Signature" not in answer


def test_it_says_no_more_than_that_it_failed_when_it_cannot_make_a_token(
    world: World, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto.RingKey, "sign", _broken)

    answer = replace(api, nonce=None).post("/validate", {"license_key": world.key})

    problem = assert_problem(answer, 500, "internal_error")
    assert "signing key" not in json.dumps(problem)


# --- the list of keys ---------------------------------------------------------------------------------------


def key_list(query: str = "", nonce: str | None = "n" * 22) -> Exchange:
    path = "/.well-known/jwks.json" + query
    answer = caller(None, nonce=nonce).get(path)
    headers = {name.lower(): value for name, value in answer.items()}
    return Exchange("GET", PUBLIC_URL + path, nonce or "", answer.status_code, headers, answer.content)


@pytest.fixture
def rotated() -> Iterator[list[str]]:
    """A ring with a primary, a former, a disabled and a pending signing key, by their kids in this order."""
    former = crypto.ring()
    states = ("primary", "active", "disabled", "pending")
    keys = [crypto.make_key("sign", state=state) for state in states]
    crypto.use(crypto.KeyRing([*(key for key in former.keys if key.purpose != "sign"), *keys]))
    yield [key.kid for key in keys]
    crypto.use(former)


def signed_by(exchange: Exchange) -> str:
    verify(exchange)
    return exchange.headers["signature-input"].partition('keyid="')[2].partition('"')[0]


def test_it_signs_the_list_of_keys_for_whoever_sends_a_nonce(rotated: list[str]) -> None:
    signed, plain = key_list(), key_list(nonce=None)

    assert signed_by(signed) == rotated[0]
    assert signed.headers["cache-control"] == "no-store"
    assert "signature" not in plain.headers
    assert (plain.headers["cache-control"], plain.headers["vary"]) == ("public, max-age=300", "x-licentia-nonce")
    assert signed.body == plain.body
    with pytest.raises(InvalidSignature):
        verify(replace(signed, nonce="m" * 22))


def test_it_signs_the_list_by_a_key_the_program_knows_while_that_is_in_use(rotated: list[str]) -> None:
    primary, former, disabled, pending = rotated

    assert signed_by(key_list(f"?signed_by={former}")) == former
    assert signed_by(key_list(f"?signed_by={disabled},{former}")) == former
    assert signed_by(key_list(f"?signed_by={former},{primary}")) == primary
    assert signed_by(key_list(f"?signed_by={pending}")) == pending
    for unknown in (disabled, "nobody", "", ",", "%00", "%22;x=%22"):
        assert signed_by(key_list(f"?signed_by={unknown}")) == primary
    assert disabled not in {key["kid"] for key in json.loads(key_list().body)["keys"]}


def test_it_lists_no_keys_unsigned_when_it_cannot_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crypto.RingKey, "sign", _broken)

    assert (key_list().status, key_list().body) == (500, b"")


# --- tokens ---------------------------------------------------------------------------------------------------


def token(world: World, **body: Any) -> str:
    return str(by_key(world.key).post("/validate", body).json()["token"])


def test_it_makes_tokens_that_pyjwt_reads(world: World) -> None:
    text = token(world)

    keys = jwt.PyJWKSet.from_dict(public_keys())
    header = jwt.get_unverified_header(text)
    claims = jwt.decode(
        text,
        keys[header["kid"]].key,
        algorithms=["EdDSA"],
        audience=world.product.code,
        issuer=PUBLIC_URL,
        options={"require": ["iss", "aud", "sub", "jti", "iat", "nbf", "exp"]},
    )

    assert header == {"alg": "EdDSA", "kid": header["kid"], "typ": "license+jwt"}
    assert claims["sub"] == str(world.license.pk)
    assert claims["ver"] == 1


def test_it_makes_tokens_that_joserfc_reads(world: World) -> None:
    registry = jws.JWSRegistry(algorithms=["EdDSA"])

    read = jose.decode(token(world), KeySet.import_key_set(public_keys()), algorithms=["EdDSA"], registry=registry)

    assert read.header["typ"] == "license+jwt"
    assert read.claims["terms"]["id"] == str(world.license.pk)
    assert read.claims["valid"] is True


def test_it_lets_no_part_of_a_token_be_changed(world: World) -> None:
    refused = token(world, product="other")
    header, payload, signature = refused.split(".")
    claims = json.loads(urlsafe_b64decode(payload + "=="))
    forged = b64encode(json.dumps({**claims, "valid": True}).encode()).decode().rstrip("=")
    keys = KeySet.import_key_set(public_keys())
    key = jwt.PyJWKSet.from_dict(public_keys())[jwt.get_unverified_header(refused)["kid"]].key

    with pytest.raises(BadSignatureError):
        jose.decode(f"{header}.{forged}.{signature}", keys, algorithms=["EdDSA"])
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(f"{header}.{forged}.{signature}", key, algorithms=["EdDSA"], options={"verify_aud": False})


def test_it_publishes_keys_that_can_only_verify(db: None) -> None:
    keys = public_keys()["keys"]

    assert keys
    for key in keys:
        assert set(key) == {"kty", "crv", "use", "alg", "kid", "x"}
        assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("OKP", "Ed25519", "sig", "EdDSA")
        assert len(urlsafe_b64decode(key["x"] + "==")) == 32
