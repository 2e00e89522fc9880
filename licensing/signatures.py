"""HTTP message signatures of clients: what a signed request must cover, and whether the signature fits.

Pure: no database, no cache. Of RFC 9421 this takes what CONTRACT asks for and refuses the rest: one signature, Ed25519,
over `@method`, `@target-uri`, `x-licentia-counter` and, with a body, its `content-digest` (RFC 9530), with `created`,
`nonce` and `keyid`. Whether nonce and counter were used before is for `nonces`.

Source: CONTRACT "Who calls", RFC 9421 sections 2 and 3, RFC 7638, RFC 8037.
"""

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import sha256, sha512
from types import MappingProxyType
from typing import Any

import msgspec
import orjson

from licensing import crypto
from licensing.errors import Invalid, Unauthenticated

# How far a client's clock may be off, and how long a nonce is remembered: longer than any request is accepted. The one
# place for both, so that they cannot drift apart.
SKEW_SECONDS = 60
REMEMBERED_SECONDS = 2 * SKEW_SECONDS + 180
# How far behind the highest a counter may come: requests overtake each other.
WINDOW = 1_024

NEEDED = {"@method", "@target-uri", "x-licentia-counter"}
_LABEL = r"[a-z*][a-z0-9_.*-]*"
_INPUT = re.compile(rf"({_LABEL})=(\(([^()]*)\)((?:;[a-z]+=(?:\d{{1,15}}|\"[ !#-\[\]-~]*\"))*))")
_MADE = re.compile(rf"({_LABEL})=:([A-Za-z0-9+/]{{86}}==):")
_COMPONENT = re.compile(r"\"(@?[a-z0-9-]+)\"")
_PARAMETER = re.compile(r";([a-z]+)=(\d{1,15}|\"[ !#-\[\]-~]*\")")
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,128}")
# Below 2**53: what remembers counters (Lua) has no whole numbers above.
_COUNTER = re.compile(r"[1-9][0-9]{0,14}")
_DIGEST = re.compile(r"(sha-256|sha-512)=:([A-Za-z0-9+/]+={0,2}):")
_HASHES = {"sha-256": sha256, "sha-512": sha512}
_SMALL_ORDER = {
    bytes.fromhex(value)
    for value in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    )
}


class SignatureMalformed(Unauthenticated):
    """The signature of the request cannot be read. See RFC 9421 and the API's documentation."""

    code = "signature_malformed"


class SignatureIncomplete(Unauthenticated):
    """The signature does not cover all it must: @method, @target-uri, x-licentia-counter, and a body's digest."""

    code = "signature_incomplete"


class SignatureStale(Unauthenticated):
    """The request was signed too long ago, or in the future."""

    code = "signature_stale"


class DigestMismatch(Unauthenticated):
    """The body is not the one of the content-digest."""

    code = "content_digest_mismatch"


class SignatureWrong(Unauthenticated):
    """The signature does not fit the request."""

    code = "signature_wrong"


class SignedRequest(msgspec.Struct, frozen=True):
    """What a signed request says of itself, before anybody believes it; `base` is what was signed."""

    keyid: str
    created: int
    nonce: str
    counter: int
    base: bytes
    signature: bytes


def is_signed(headers: Mapping[str, str]) -> bool:
    """Return whether somebody means the request to be signed."""
    return headers.get("signature-input") is not None or headers.get("signature") is not None


def parse(*, method: str, target: str, headers: Mapping[str, str], body: bytes, at: datetime) -> SignedRequest:
    """Return what is said of a request's signature, once everything but the signature itself is found in order.

    Raises:
        SignatureMalformed, SignatureIncomplete, SignatureStale, DigestMismatch: see each.
    """
    said = _INPUT.fullmatch(headers.get("signature-input", "").strip())
    made = _MADE.fullmatch(headers.get("signature", "").strip())
    if said is None or made is None or said[1] != made[1]:
        raise SignatureMalformed()
    signature = b64decode(made[2])
    if b64encode(signature).decode() != made[2]:
        raise SignatureMalformed("The signature is not written in canonical base64.")
    covered = _covered(said[3])
    parameters = _parameters(said[4])
    if not covered.keys() >= NEEDED or (body and "content-digest" not in covered):
        raise SignatureIncomplete()
    if "content-digest" in covered or headers.get("content-digest") is not None:
        _check_digest(headers.get("content-digest", ""), body)
    now = int(at.timestamp())
    created = int(parameters["created"])
    if abs(now - created) > SKEW_SECONDS or int(parameters.get("expires", now + 1)) < now:
        raise SignatureStale(f"The request was signed too long ago, or in the future. Here it is {now}.")
    counter = headers.get("x-licentia-counter", "")
    if not _COUNTER.fullmatch(counter):
        raise SignatureMalformed("x-licentia-counter is a whole number of 1 to 15 digits, without leading zeros.")
    lines = [f"{item}: {_value(name, method, target, headers)}\n" for name, item in covered.items()]
    base = f'{"".join(lines)}"@signature-params": {said[2]}'
    try:
        signed = base.encode("latin-1")
    except UnicodeEncodeError:
        raise SignatureMalformed() from None
    return SignedRequest(parameters["keyid"], created, parameters["nonce"], int(counter), signed, signature)


def verify(signed: SignedRequest, public_key: bytes) -> None:
    """Raise `SignatureWrong` unless the request is signed by this Ed25519 key (32 bytes)."""
    try:
        crypto.verify_with(public_key, signed.base, signed.signature)
    except crypto.NotAuthentic:
        raise SignatureWrong() from None


def public_key_of(jwk: Mapping[str, Any]) -> bytes:
    """Return the Ed25519 key (32 bytes) of a JSON Web Key.

    Raises:
        Invalid: it is another kind of key, a private one, malformed, or of a known weak point.
    """
    wrong = Invalid("A public_key is a JWK of kty OKP, crv Ed25519, with x; never with d.", pointer="/public_key")
    if set(jwk) - {"kty", "crv", "x", "kid", "use", "alg"} or jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519":
        raise wrong
    if jwk.get("alg", "EdDSA") not in ("EdDSA", "Ed25519") or jwk.get("use", "sig") != "sig":
        raise wrong
    try:
        key = crypto.unb64(jwk["x"]) if isinstance(jwk.get("x"), str) else b""
    except (crypto.NotAuthentic, UnicodeEncodeError):
        raise wrong from None
    if len(key) != 32 or key in _SMALL_ORDER:
        raise wrong
    return key


def jwk_of(public_key: bytes) -> dict[str, str]:
    """Return the JSON Web Key of an Ed25519 key."""
    return {"crv": "Ed25519", "kty": "OKP", "x": crypto.b64(public_key)}


def thumbprint(public_key: bytes) -> str:
    """Return the RFC 7638 thumbprint (43 characters) of an Ed25519 key."""
    return crypto.b64(sha256(orjson.dumps(jwk_of(public_key))).digest())


@lru_cache(maxsize=256)
def _covered(inner: str) -> Mapping[str, str]:
    """Return the covered components in their order, as they are written by their names. A client says the same ones
    every time, so they are kept."""
    covered: dict[str, str] = {}
    for item in inner.split(" ") if inner else []:
        found = _COMPONENT.fullmatch(item)
        if found is None or found[1] in covered or len(covered) == 32:
            raise SignatureMalformed()
        covered[found[1]] = item
    return MappingProxyType(covered)


def _parameters(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in _PARAMETER.findall(text):
        quoted = value.startswith('"')
        if name in found or name not in ("created", "expires", "nonce", "keyid", "alg", "tag"):
            raise SignatureMalformed()
        if quoted is (name in ("created", "expires")):
            raise SignatureMalformed()
        found[name] = value[1:-1] if quoted else value
    if not found.keys() >= {"created", "nonce", "keyid"} or found.get("alg", "ed25519") != "ed25519":
        raise SignatureIncomplete("The signature needs created, nonce and keyid; its alg is ed25519.")
    if not _NONCE.fullmatch(found["nonce"]):
        raise SignatureMalformed("A nonce has 22 to 128 characters of A-Z a-z 0-9 _ -")
    return found


def _value(name: str, method: str, target: str, headers: Mapping[str, str]) -> str:
    if name == "@method":
        return method
    if name == "@target-uri":
        return target
    value = headers.get(name)
    if name.startswith("@") or value is None:
        raise SignatureMalformed(f"The signature covers {name}, which cannot be checked here.")
    return str(value).strip()


def _check_digest(text: str, body: bytes) -> None:
    members = [_DIGEST.fullmatch(member.strip()) for member in text.split(",")]
    if not members or None in members:
        raise SignatureMalformed("content-digest is sha-256=:…: or sha-512=:…:")
    for member in members:
        assert member is not None
        if not hmac.compare_digest(b64encode(_HASHES[member[1]](body).digest()).decode(), member[2]):
            raise DigestMismatch()
