"""Signed statements: the compact JWS a verdict travels in.

Header `{"alg":"EdDSA","kid":…,"typ":"license+jwt"}`; the public keys stand at /.well-known/jwks.json.
Source: CONTRACT "POST /validate", RFC 7515, RFC 8725 (one algorithm, explicit type).
"""

from functools import lru_cache
from typing import Any

import msgspec
import orjson

from licensing import crypto

TYPE = "license+jwt"
LONGEST = 65_536


@lru_cache(maxsize=64)
def _header(kid: str, typ: str) -> bytes:
    return crypto.b64(orjson.dumps({"alg": "EdDSA", "kid": kid, "typ": typ})).encode()


def sign(claims: dict[str, Any], *, typ: str = TYPE) -> str:
    """Return the claims as a compact JWS of this type under the primary signing key."""
    kid = crypto.ring().primary("sign").kid
    message = _header(kid, typ) + b"." + crypto.b64(orjson.dumps(claims)).encode()
    signed_by, signature = crypto.sign(message)
    if signed_by != kid:
        raise crypto.KeyRingError("The signing key changed while a token was signed. Try again.")
    return f"{message.decode()}.{crypto.b64(signature)}"


def read(token: str, *, typ: str = TYPE) -> dict[str, Any]:
    """Return the claims of a token of ours of this very type: one kind of statement never passes for another.

    Raises:
        NotAuthentic: too long, malformed, another type or algorithm, an unknown key, or a wrong signature.
            Times are the caller's to judge.
    """
    parts = token.split(".")
    if len(token) > LONGEST or len(parts) != 3:
        raise crypto.NotAuthentic("That is not a license token.")
    try:
        header = msgspec.json.decode(crypto.unb64(parts[0]), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise crypto.NotAuthentic("That is not a license token.") from None
    if set(header) != {"alg", "kid", "typ"} or header["alg"] != "EdDSA" or header["typ"] != typ:
        raise crypto.NotAuthentic("That is not a license token.")
    crypto.verify(f"{parts[0]}.{parts[1]}".encode(), crypto.unb64(parts[2]), header["kid"])
    claims: dict[str, Any] = orjson.loads(crypto.unb64(parts[1]))
    return claims
