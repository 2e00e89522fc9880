"""Calls to a Licentia server, and the proof that it was the server who answered.

Every request carries a fresh nonce; every answer must be signed by a pinned key over its status, its body, the
method, the address and that nonce. What is not so signed is not believed, whatever it says. Source: the server's
docs/api, RFC 9421.
"""

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

COVERED = ('"@status"', '"content-digest"', '"@method";req', '"@target-uri";req', '"x-licentia-nonce";req')
FRESH_SECONDS = 300
_INPUT = re.compile(
    r"licentia=(?P<parameters>\((?P<covered>[^)]*)\);created=(?P<created>\d+);keyid=\"(?P<kid>[^\"]+)\".*)"
)
_SIGNATURE = re.compile(r"licentia=:(?P<value>[A-Za-z0-9+/=]+):")


class NotBelieved(Exception):
    """The answer is not signed by a pinned key for this very request: the server may be an impostor."""


class Refused(Exception):
    """The server said no; `code` and `status` say why."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


@dataclass(frozen=True, slots=True)
class Verdict:
    """May the license be used? `license` holds its terms, `token` the same as a signed statement to keep."""

    valid: bool
    code: str
    detail: str
    license: dict[str, Any] | None
    fresh_until: str
    token: str


@dataclass(frozen=True, slots=True)
class Seat:
    """A named seat; `created` is false when the holder had it already."""

    id: str
    holder: str
    state: str
    created: bool


class Client:
    """Calls one server, by a license key or an API credential.

    `keys` is the server's JSON Web Key Set, pinned: shipped with your program. Without it the set is fetched once over
    the connection, which then is all that vouches for it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        license_key: str = "",
        credential: str = "",
        keys: Mapping[str, Any] | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        if bool(license_key) == bool(credential):
            raise ValueError("Give a license_key or a credential, one of them.")
        self.base_url = base_url.rstrip("/")
        self._authorization = f"License {license_key}" if license_key else f"Bearer {credential}"
        self._http = httpx.Client(timeout=timeout_seconds, follow_redirects=False)
        self._keys = _public_keys(keys or self._http.get(f"{self.base_url}/.well-known/jwks.json").json())

    def validate(self, **question: Any) -> Verdict:
        """Ask whether the license may be used: `fingerprint`, `product`, `version`, `entitlements`, `seat_holder`; with
        a credential also `license` or `license_key`.

        Raises:
            NotBelieved: the answer is not the server's.
            Refused: the caller is not known, or the question is malformed.
        """
        answer = self._call("POST", "/api/v1/validate", question).json()
        return Verdict(**{name: answer[name] for name in Verdict.__slots__})

    def assign_seat(self, license_id: str, holder: str) -> Seat:
        """Take a seat for `holder`. Raises `Refused` with code `no_seat_available` when none is left."""
        answer = self._call("POST", "/api/v1/seats", {"license": license_id, "holder": holder})
        row = answer.json()
        return Seat(row["id"], row["holder"], row["state"], created=answer.status_code == 201)

    def release_seat(self, seat_id: str) -> None:
        """Give a seat back. Doing it twice changes nothing."""
        self._call("DELETE", f"/api/v1/seats/{seat_id}")

    def activate(self, fingerprint: str, **machine: Any) -> str:
        """Bind this machine to the license; return the activation's id."""
        return str(self._call("POST", "/api/v1/activations", {"fingerprint": fingerprint, **machine}).json()["id"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        nonce = secrets.token_urlsafe(18)
        headers = {"authorization": self._authorization, "x-licentia-nonce": nonce}
        if method == "POST" and path != "/api/v1/validate":
            headers["idempotency-key"] = nonce
        url = self.base_url + path
        answer = self._http.request(method, url, json=body, headers=headers)
        self._believe(answer, method, url, nonce)
        if answer.status_code >= 400:
            problem = answer.json()
            raise Refused(answer.status_code, problem["code"], problem["detail"])
        return answer

    def _believe(self, answer: httpx.Response, method: str, url: str, nonce: str) -> None:
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(answer.content).digest()).decode()}:"
        said = _INPUT.fullmatch(answer.headers.get("signature-input", ""))
        made = _SIGNATURE.fullmatch(answer.headers.get("signature", ""))
        if said is None or made is None or answer.headers.get("content-digest") != digest:
            raise NotBelieved("The answer is not signed, or its body was changed.")
        if said["covered"] != " ".join(COVERED) or abs(time.time() - int(said["created"])) > FRESH_SECONDS:
            raise NotBelieved("The answer's signature does not cover this request, or is not fresh.")
        key = self._keys.get(said["kid"])
        if key is None:
            raise NotBelieved("The answer is signed by a key that is not pinned.")
        values = (str(answer.status_code), digest, method, url, nonce)
        base = "".join(f"{name}: {value}\n" for name, value in zip(COVERED, values, strict=True))
        try:
            key.verify(base64.b64decode(made["value"]), f'{base}"@signature-params": {said["parameters"]}'.encode())
        except (InvalidSignature, ValueError):
            raise NotBelieved("The answer's signature does not fit.") from None


def _public_keys(jwks: Mapping[str, Any]) -> dict[str, Ed25519PublicKey]:
    return {
        key["kid"]: Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=="))
        for key in jwks["keys"]
        if key.get("kty") == "OKP" and key.get("crv") == "Ed25519"
    }
