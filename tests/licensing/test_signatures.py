"""Signed requests: what must be covered, and that nothing of one can be changed."""

import base64
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms
from requests import Request

from licensing import signatures
from licensing.errors import Invalid, Unauthenticated
from tests.signing import COVERED, Signer, url64

NOW = datetime.fromtimestamp(1_800_000_000, UTC)
PATH = "/api/v1/validate?a=b"
BODY = b'{"fingerprint":"ffffffffffffffff"}'


def signed(signer: Signer, body: bytes = BODY, **instead: Any) -> dict[str, Any]:
    instead.setdefault("created", int(NOW.timestamp()))
    return {
        "method": "POST",
        "target": "http://127.0.0.1:8000" + PATH,
        "headers": signer.headers("POST", PATH, body, **instead),
        "body": body,
    }


def accept(signer: Signer, request: dict[str, Any]) -> signatures.SignedRequest:
    found = signatures.parse(**request, at=NOW)
    signatures.verify(found, signer.public)
    return found


@pytest.fixture(autouse=True)
def _public_url(settings: Any) -> None:
    settings.PUBLIC_URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize("body", [BODY, b""])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
def test_it_accepts_a_signed_request(body: bytes, algorithm: str) -> None:
    signer = Signer("some-activation")

    found = accept(signer, signed(signer, body, hash=algorithm, counter=7))

    assert (found.keyid, found.counter, found.created) == ("some-activation", 7, int(NOW.timestamp()))


def test_it_accepts_what_another_library_signs() -> None:
    signer = Signer("k")

    class Keys(HTTPSignatureKeyResolver):
        def resolve_private_key(self, key_id: str) -> Any:
            return signer.key

    request = Request(
        "POST",
        "http://127.0.0.1:8000/api/v1/validate",
        data=BODY,
        headers={
            "x-licentia-counter": "3",
            "content-digest": signer.headers("POST", "/", BODY)["content-digest"],
        },
    ).prepare()
    HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys()).sign(
        request,
        key_id="k",
        nonce="n" * 24,
        covered_component_ids=("@method", "@target-uri", "content-digest", "x-licentia-counter"),
        use_existing_digest=True,
    )
    headers = {name.lower(): value for name, value in request.headers.items()}

    found = signatures.parse(method="POST", target=str(request.url), headers=headers, body=BODY, at=datetime.now(UTC))

    signatures.verify(found, signer.public)
    assert found.counter == 3


def test_it_lets_no_byte_of_a_signed_request_be_changed() -> None:
    signer = Signer("some-activation")
    original = signed(signer, counter=41)
    accept(signer, original)
    tried = 0

    def refused(**changed: Any) -> None:
        nonlocal tried
        tried += 1
        with pytest.raises(Unauthenticated):
            accept(signer, {**original, **changed})

    for name in ("method", "target"):
        text = original[name]
        for place in range(len(text)):
            refused(**{name: text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]})
    for place in range(len(BODY)):
        refused(body=BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :])
    for name, text in original["headers"].items():
        for place in range(len(text)):
            for bit in (1, 2, 32):
                changed = text[:place] + chr(ord(text[place]) ^ bit) + text[place + 1 :]
                refused(headers={**original["headers"], name: changed})
    for name in original["headers"]:
        refused(headers={other: value for other, value in original["headers"].items() if other != name})
    assert tried > 1_000


PLAIN = (*COVERED, "content-digest")
# What is bent, and the code of the refusal.
BENT: list[tuple[str, dict[str, Any], str]] = [
    *((f"without {name}", {"covered": [n for n in PLAIN if n != name]}, "signature_incomplete") for name in PLAIN),
    ("nothing covered", {"covered": ()}, "signature_incomplete"),
    *((f"without {name}", {"parameters": {name: None}}, "signature_incomplete") for name in ("nonce", "keyid")),
    *(
        (f"alg {alg}", {"parameters": {"alg": alg}}, "signature_incomplete")
        for alg in ("hmac-sha256", "none", "rsa-v1_5-sha256", "rsa-pss-sha512", "ecdsa-p256-sha256", "Ed25519", "")
    ),
    *((f"{n} s old", {"created": int(NOW.timestamp()) - n}, "signature_stale") for n in (61, 3600, 10**8)),
    *((f"{n} s ahead", {"created": int(NOW.timestamp()) + n}, "signature_stale") for n in (61, 3600, 10**8)),
    ("expired", {"parameters": {"expires": int(NOW.timestamp()) - 1}}, "signature_stale"),
    *(
        (f"nonce {nonce!r}", {"nonce": nonce}, "signature_malformed")
        for nonce in ("short", "n" * 21, "n" * 129, "n" * 22 + " ", "n" * 22 + "+", "")
    ),
    *(
        (f"counter {counter!r}", {"counter": counter}, "signature_malformed")
        for counter in ("-1", "+1", "01", "1.0", "1e3", " ", "x", "1" * 19, "0x1", "\u0661")
    ),
    *(
        (f"covers {name}", {"covered": (*PLAIN, name)}, "signature_malformed")
        for name in ("@status", "@query-param", "@unknown", "x-not-there", "@signature-params", "@request-response")
    ),
    ("covered twice", {"covered": (*PLAIN, "@method")}, "signature_malformed"),
    *(
        (f"parameter {name}", {"parameters": {name: value}}, "signature_malformed")
        for name, value in {"crit": "x", "jku": "https://evil.example", "jwk": "{}", "x": 1, "created": "1"}.items()
    ),
    *((f"label {label!r}", {"label": label}, "signature_malformed") for label in ("", "A", "1a", "a b", "a,b", "ü")),
]


@pytest.mark.parametrize(("instead", "code"), [(i, c) for _, i, c in BENT], ids=[n for n, _, _ in BENT])
def test_it_refuses_what_is_not_in_order(instead: dict[str, Any], code: str) -> None:
    signer = Signer("k")

    with pytest.raises(Unauthenticated) as refused:
        accept(signer, signed(signer, **instead))

    assert refused.value.code == code


REWRITTEN: list[tuple[str, Any]] = [
    (
        "component with parameter",
        lambda h: h | {"signature-input": h["signature-input"].replace('"@method"', '"@method";req')},
    ),
    (
        "two signatures",
        lambda h: (
            h
            | {"signature-input": h["signature-input"] + ", b=();created=1", "signature": h["signature"] + ", b=:AA==:"}
        ),
    ),
    ("labels differ", lambda h: h | {"signature": h["signature"].replace("lic=", "cil=")}),
    ("upper-case component", lambda h: h | {"signature-input": h["signature-input"].replace("@method", "@METHOD")}),
    ("tabs between", lambda h: h | {"signature-input": h["signature-input"].replace(" ", "\t")}),
    ("no padding", lambda h: h | {"signature": h["signature"].replace("==", "")}),
    ("url-safe base64", lambda h: h | {"signature": "lic=:" + url64(b"\xff" * 64) + "==:"}),
    ("short signature", lambda h: h | {"signature": "lic=:" + base64.b64encode(b"s" * 63).decode() + ":"}),
    ("long signature", lambda h: h | {"signature": "lic=:" + base64.b64encode(b"s" * 65).decode() + ":"}),
    ("zero signature", lambda h: h | {"signature": "lic=:" + base64.b64encode(bytes(64)).decode() + ":"}),
    ("not base64", lambda h: h | {"signature": "lic=:" + "!" * 88 + ":"}),
    ("string signature", lambda h: h | {"signature": 'lic="x"'}),
    ("empty signature", lambda h: h | {"signature": ""}),
    ("empty input", lambda h: h | {"signature-input": ""}),
    ("md5 digest", lambda h: h | {"content-digest": "md5=:AAAA:"}),
    (
        "two digests, one wrong",
        lambda h: (
            h | {"content-digest": h["content-digest"] + ", sha-512=:" + base64.b64encode(b"0" * 64).decode() + ":"}
        ),
    ),
    ("unpadded digest", lambda h: h | {"content-digest": h["content-digest"].replace("=:", ":")[:-1]}),
    ("empty digest", lambda h: h | {"content-digest": ""}),
    ("no quotes", lambda h: h | {"signature-input": h["signature-input"].replace('"@method"', "@method")}),
    ("latin letters", lambda h: h | {"x-licentia-counter": "1ü"}),
]


@pytest.mark.parametrize("rewrite", [r for _, r in REWRITTEN], ids=[n for n, _ in REWRITTEN])
def test_it_refuses_what_is_written_otherwise(rewrite: Any) -> None:
    signer = Signer("k")
    request = signed(signer)

    with pytest.raises(Unauthenticated):
        accept(signer, {**request, "headers": rewrite(request["headers"])})


def test_it_knows_many_ways_to_be_wrong() -> None:
    assert len(BENT) + len(REWRITTEN) >= 60


def test_it_remembers_longer_than_it_accepts() -> None:
    assert signatures.REMEMBERED_SECONDS > 2 * signatures.SKEW_SECONDS


# --- keys -------------------------------------------------------------------------------------------

X = Signer().jwk["x"]


def test_it_reads_a_key_and_names_it_by_its_thumbprint() -> None:
    # RFC 8037 appendix A.2 and A.3
    key = signatures.public_key_of({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})

    assert signatures.thumbprint(key) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "RSA", "n": "x", "e": "AQAB"},
        {"kty": "OKP", "crv": "X25519", "x": X},
        {"kty": "OKP", "crv": "Ed25519", "x": X, "d": X},
        {"kty": "OKP", "crv": "Ed25519", "x": X, "jku": "https://evil.example"},
        {"kty": "OKP", "crv": "Ed25519", "x": X, "alg": "none"},
        {"kty": "OKP", "crv": "Ed25519", "x": X + "="},
        {"kty": "OKP", "crv": "Ed25519", "x": X[:-2]},
        {"kty": "OKP", "crv": "Ed25519", "x": 5},
        {"kty": "OKP", "crv": "Ed25519", "x": url64(bytes(32))},
        {"kty": "OKP", "crv": "Ed25519", "x": url64(b"\x01" + bytes(31))},
    ],
    ids=["empty", "rsa", "x25519", "private", "jku", "alg none", "padded", "short", "number", "zero", "one"],
)
def test_it_takes_no_other_key(jwk: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        signatures.public_key_of(jwk)


def test_it_is_quick() -> None:
    signer = Signer("k")
    request = signed(signer)
    began = time.perf_counter()
    for _ in range(200):
        accept(signer, request)

    assert (time.perf_counter() - began) / 200 < 0.005
