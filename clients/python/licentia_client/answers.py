"""One way to ask a server and to believe it, for every client here.

An answer is believed if a trusted key signed it over its status, its body, and the request it answers: the method, the
address, and the nonce or the signature that this request alone carries. A 401, 429 or 503 as well. So an answer cannot
be older than its request, whatever any clock says. Source: the server's docs/api, RFC 9421, RFC 9530.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEYS_PATH = "/.well-known/jwks.json"
LONGEST_BODY = 4_194_304
# An answer counts as of when it was made. One that is held back on its way for longer than this is none.
LONGEST_SECONDS = 60.0
_INPUT = re.compile(
    r"licentia=(?P<parameters>\((?P<covered>[^()]*)\);created=(?P<created>[0-9]{1,12});keyid=\"(?P<kid>[\w-]+)\""
    r";alg=\"ed25519\")",
    re.ASCII,
)
_SIGNATURE = re.compile(r"licentia=:(?P<value>[A-Za-z0-9+/]{86}==):")


# Seconds that a sleeping machine goes on counting, where there is such a clock.
_boottime = getattr(time, "CLOCK_BOOTTIME", None)
running: Callable[[], float] = time.monotonic if _boottime is None else partial(time.clock_gettime, _boottime)


class NotBelieved(Exception):
    """The answer is not signed by a trusted key for this very request: the server may be an impostor."""


class UntrustedKey(NotBelieved):
    """The answer is signed by a key that is not trusted, an impostor's or a new one."""


class ServerAway(Exception):
    """No answer came: the network or the server is away, or too slow."""


class Refused(Exception):
    """The server said no; `code` and `status` say why, `retry_after` in how many seconds it makes sense to ask again
    (None where waiting does not help)."""

    def __init__(self, status: int, code: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.retry_after = status, code, detail, retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """A believed answer. `made_at` is the server's clock when it was made, in seconds since 1970; `body` its JSON."""

    status: int
    body: Any
    made_at: float
    retry_after: float | None

    def or_refused(self) -> "Answer":
        """Return the answer if it is not a problem. Raises `Refused`."""
        if self.status < 400:
            return self
        problem = self.body if isinstance(self.body, dict) else {}
        code, detail = problem.get("code", "internal_error"), problem.get("detail", "The server could not answer.")
        raise Refused(self.status, str(code), str(detail), self.retry_after)


class Server:
    """The server at an address, `PUBLIC_URL` as it is configured there, and the keys that it is known by.

    `keys` is the server's JSON Web Key Set, pinned. Without it the set is fetched once over the connection, which then
    is all that vouches for it.
    """

    def __init__(self, base_url: str, *, keys: Mapping[str, Any] | None, timeout_seconds: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._http, self._opened_by = self._open()
        self.keys: Mapping[str, Any] = {}
        self._trusted: dict[str, Ed25519PublicKey] = {}
        self.trust(keys or _json(self._fetch("GET", KEYS_PATH)[1]))

    def trust(self, keys: Mapping[str, Any]) -> None:
        """Believe the keys of this set from now on, and no others. Raises `ValueError`: it is no such set, or empty."""
        try:
            trusted = {
                str(key["kid"]): Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=="))
                for key in keys["keys"]
                if (key.get("kty"), key.get("crv")) == ("OKP", "Ed25519")
            }
        except (KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise ValueError("That is no JSON Web Key Set.") from error
        if not trusted:
            raise ValueError("There is no Ed25519 key in this set.")
        self.keys, self._trusted = keys, trusted

    def current_keys(self) -> tuple[Mapping[str, Any], float]:
        """Return the set of keys the server has now, as one of those that are trusted says, and when it said so.

        Raises: as `ask` does.
        """
        nonce = secrets.token_urlsafe(18)
        path = f"{KEYS_PATH}?signed_by={','.join(self._trusted)}"
        answer = self.ask("GET", path, headers={"x-licentia-nonce": nonce})
        if answer.status != 200 or not isinstance(answer.body, dict) or not answer.body.get("keys"):
            raise ServerAway("The server did not name its keys.")
        return answer.body, answer.made_at

    def ask(self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str]) -> Answer:
        """Return the believed answer to a request, which carries an `x-licentia-nonce` or a `signature` of its own.

        Raises:
            NotBelieved: the answer is not the server's, or not to this request.
            ServerAway: there is none, or it came too late.
        """
        more = {"content-type": "application/json"} if body else {}
        answer, content = self._fetch(method, path, body, {**more, **headers})
        made_at = self._believed(answer, content, method, self.base_url + path, headers)
        after = answer.headers.get("retry-after", "")
        said = _json(content) if content else None
        return Answer(answer.status_code, said, made_at, float(after) if re.fullmatch(r"[0-9]{1,9}", after) else None)

    def _fetch(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[httpx.Response, bytes]:
        if self._opened_by != os.getpid():  # a fork must not talk into its parent's connection
            self._http, self._opened_by = self._open()
        began, content = running(), b""
        try:
            with self._http.stream(method, self.base_url + path, content=body or None, headers=headers) as answer:
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > LONGEST_BODY or running() - began > LONGEST_SECONDS:
                        raise ServerAway("The server's answer is too long, or too slow.")
        except httpx.HTTPError as error:
            raise ServerAway(f"The server did not answer: {type(error).__name__}.") from error
        if running() - began > LONGEST_SECONDS:
            raise ServerAway("The server's answer is too slow.")
        return answer, content

    def _open(self) -> tuple[httpx.Client, int]:
        return httpx.Client(timeout=self._timeout_seconds, follow_redirects=False), os.getpid()

    def _believed(
        self, answer: httpx.Response, content: bytes, method: str, target: str, asked: Mapping[str, str]
    ) -> float:
        """Return when the answer was made. `retry-after` and headers other than the digest are not covered."""
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"
        said = _INPUT.fullmatch(answer.headers.get("signature-input", ""))
        made = _SIGNATURE.fullmatch(answer.headers.get("signature", ""))
        if said is None or made is None or answer.headers.get("content-digest") != digest:
            raise NotBelieved("The answer is not signed, or its body was changed.")
        lines = {
            '"@status"': str(answer.status_code),
            '"content-digest"': digest,
            '"@method";req': method,
            '"@target-uri";req': target,
            **{f'"{name}";req': asked[name] for name in ("x-licentia-nonce", "signature") if name in asked},
        }
        if len(lines) == 4 or said["covered"] != " ".join(lines):
            raise NotBelieved("The answer's signature does not cover this request.")
        key = self._trusted.get(said["kid"])
        if key is None:
            raise UntrustedKey("The answer is signed by a key that is not trusted.")
        base = "".join(f"{name}: {value}\n" for name, value in lines.items())
        signature = base64.b64decode(made["value"])
        if base64.b64encode(signature).decode() != made["value"]:  # four spellings of one signature are three too many
            raise NotBelieved("The answer's signature is not canonical.")
        try:
            key.verify(signature, f'{base}"@signature-params": {said["parameters"]}'.encode())
        except InvalidSignature:
            raise NotBelieved("The answer's signature does not fit.") from None
        return float(said["created"])


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise NotBelieved("The answer is no JSON.") from None
