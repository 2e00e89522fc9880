"""Signed statements: other programs' libraries verify them, and nothing that is not ours is read."""

import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from joserfc import jwk
from joserfc import jwt as jose

from licensing import crypto, tokens
from licensing.crypto import NotAuthentic

CLAIMS = {
    "iss": "https://licenses.example.com",
    "aud": "atlas",
    "sub": "0198f2a0-0000-7000-8000-000000000001",
    "ver": 1,
    "code": "valid",
    "terms": {"entitlements": {"export": True, "größe": "8"}},
}


def claims(**changes):
    now = int(datetime.now(UTC).timestamp())
    return CLAIMS | {"iat": now, "nbf": now, "exp": now + 3600} | changes


def made(header: dict | bytes, payload: dict | bytes, *, sign: bool = True) -> str:
    """Return a token with a header and claims of the caller's choice, signed by our key unless told otherwise."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    message = ".".join(crypto.b64(part) for part in parts)
    signature = crypto.b64(crypto.sign(message.encode())[1]) if sign else ""
    return f"{message}.{signature}"


def header(**changes):
    return {"alg": "EdDSA", "kid": crypto.ring().primary("sign").kid, "typ": "license+jwt"} | changes


def test_it_reads_what_it_signed():
    said = claims()

    assert tokens.read(tokens.sign(said)) == said


def test_it_says_algorithm_key_and_type_in_its_header():
    shown = jwt.get_unverified_header(tokens.sign(claims()))

    assert shown == {"alg": "EdDSA", "kid": crypto.ring().primary("sign").kid, "typ": "license+jwt"}


def test_it_is_verified_by_pyjwt_with_the_published_keys():
    said = claims()
    token = tokens.sign(said)
    key = jwt.PyJWKSet.from_dict(crypto.jwks())[jwt.get_unverified_header(token)["kid"]]

    read = jwt.decode(token, key, algorithms=["EdDSA"], audience="atlas", issuer=said["iss"])

    assert read == said


def test_it_is_verified_by_joserfc_with_the_published_keys():
    said = claims()

    read = jose.decode(tokens.sign(said), jwk.KeySet.import_key_set(crypto.jwks()), algorithms=["EdDSA"])

    assert read.claims == said


def test_it_is_refused_by_pyjwt_once_it_is_over():
    over = int((datetime.now(UTC) - timedelta(seconds=1)).timestamp())
    token = tokens.sign(claims(exp=over))
    key = jwt.PyJWKSet.from_dict(crypto.jwks())[jwt.get_unverified_header(token)["kid"]]

    with pytest.raises(jwt.ExpiredSignatureError):
        jwt.decode(token, key, algorithms=["EdDSA"], audience="atlas")


def test_it_signs_under_the_new_key_after_a_rotation_and_still_reads_the_old(settings):
    old = tokens.sign(CLAIMS)
    keys = crypto.ring().keys
    former = [
        crypto.RingKey(k.kid, k.purpose, "active" if k.purpose == "sign" else k.state, k.created_at, k.material)
        for k in keys
    ]
    settings.KEYRING = crypto.KeyRing([*former, crypto.make_key("sign", state="primary")]).dump()
    crypto.forget()
    try:
        new = tokens.sign(CLAIMS)

        assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
        assert tokens.read(old) == tokens.read(new) == CLAIMS
    finally:
        crypto.forget()


def _attacks() -> dict[str, str]:
    good = tokens.sign(CLAIMS)
    head, payload, signature = good.split(".")
    public = crypto.jwks()["keys"][0]
    stranger = crypto.make_key("sign")
    unsigned = made(header(), CLAIMS, sign=False)
    hs256 = f"{crypto.b64(json.dumps(header(alg='HS256')).encode())}.{payload}"
    mac = crypto.b64(crypto.hmac.digest(crypto.unb64(public["x"]), hs256.encode(), "sha256"))
    changed = crypto.b64(json.dumps(CLAIMS | {"code": "revoked"}).encode())
    return {
        "nothing": "",
        "dots": "..",
        "one part": head,
        "two parts": f"{head}.{payload}",
        "four parts": f"{good}.{signature}",
        "five parts, as an encrypted token": f"{good}.{head}.{payload}",
        "no signature": unsigned,
        "no signature, alg none": made(header(alg="none"), CLAIMS, sign=False),
        "our signature, alg none": made(header(alg="none"), CLAIMS),
        "alg nOnE": made(header(alg="nOnE"), CLAIMS),
        "alg HS256 keyed with the public key": f"{hs256}.{mac}",
        "alg RS256": made(header(alg="RS256"), CLAIMS),
        "alg in another case": made(header(alg="eddsa"), CLAIMS),
        "the fully specified alg": made(header(alg="Ed25519"), CLAIMS),
        "alg missing": made({"kid": header()["kid"], "typ": "license+jwt"}, CLAIMS),
        "typ missing": made({"kid": header()["kid"], "alg": "EdDSA"}, CLAIMS),
        "typ of any token": made(header(typ="JWT"), CLAIMS),
        "typ of an access token": made(header(typ="at+jwt"), CLAIMS),
        "typ with its media type": made(header(typ="application/license+jwt"), CLAIMS),
        "kid missing": made({"alg": "EdDSA", "typ": "license+jwt"}, CLAIMS),
        "kid unknown": made(header(kid=stranger.kid), CLAIMS),
        "kid of a sealing key": made(header(kid=crypto.ring().primary("seal").kid), CLAIMS),
        "kid a path": made(header(kid="../../dev/null"), CLAIMS),
        "kid a number": made(header(kid=7), CLAIMS),
        "kid null": made(header(kid=None), CLAIMS),
        "with its own key": made(header(jwk=public), CLAIMS),
        "with a key's address": made(header(jku="https://evil.example.com/jwks.json"), CLAIMS),
        "with a certificate's address": made(header(x5u="https://evil.example.com/"), CLAIMS),
        "with crit": made(header(crit=["exp"]), CLAIMS),
        "with b64 false": made(header(b64="false"), CLAIMS),
        "compressed": made(header(zip="DEF"), CLAIMS),
        "by a stranger's key": f"{head}.{payload}.{crypto.b64(stranger.sign(f'{head}.{payload}'.encode()))}",
        "claims changed": f"{head}.{changed}.{signature}",
        "claims empty": f"{head}..{signature}",
        "header of another, same signature": f"{crypto.b64(json.dumps(header()).encode())}.{payload}.{signature}",
        "signature cut": good[:-4],
        "signature longer": f"{good}AAAA",
        "signature of zeros": f"{head}.{payload}.{crypto.b64(bytes(64))}",
        "signature padded": f"{good}==",
        "signature in standard base64": f"{head}.{payload}.+/+/",
        "header a list": made(b"[]", CLAIMS),
        "header a word": made(b'"EdDSA"', CLAIMS),
        "header no JSON": made(b"{", CLAIMS),
        "header empty": made(b"", CLAIMS),
        "header not UTF-8": made(b'{"alg":"\xff","kid":"a","typ":"b"}', CLAIMS),
        "header a deep nest": made(b"[" * 5_000, CLAIMS),
        "header with a deep nest": made(b'{"alg":' + b"[" * 5_000, CLAIMS),
        "whitespace": f" {good}",
        "newline": f"{good}\n",
        "not ASCII": f"{head}é.{payload}.{signature}",
        "NUL": f"{head}\x00.{payload}.{signature}",
        "far too long": f"{head}.{'A' * 9_000}.{signature}",
        "as JSON": json.dumps({"payload": payload, "protected": head, "signature": signature}),
    }


def _reading(token: str) -> str:
    try:
        return f"read: {tokens.read(token)}"
    except Exception as error:
        return type(error).__name__


def test_it_reads_nothing_that_is_not_its_own():
    attacks = _attacks()

    read = {name: _reading(token) for name, token in attacks.items()}

    assert {name: said for name, said in read.items() if said != "NotAuthentic"} == {}
    assert len(attacks) > 50


def test_it_refuses_a_token_with_any_one_character_changed():
    good = tokens.sign({"a": 1})
    read = []
    for place in range(len(good)):
        for sign in ("A", "B", "_", "."):
            changed = good[:place] + sign + good[place + 1 :]
            if changed != good:
                try:
                    read.append(tokens.read(changed))
                except NotAuthentic:
                    pass

    assert read == []
