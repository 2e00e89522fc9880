"""Calls to a Licentia server by a license key or an API credential.

Every request carries a fresh nonce, and only the server's signed answer to that nonce is believed: see `answers`.
Programs on a customer's machine have a key of their own instead: see `signed`.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from licentia_client.answers import Answer, Server


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
        self._authorization = f"License {license_key}" if license_key else f"Bearer {credential}"
        self._server = Server(base_url, keys=keys, timeout_seconds=timeout_seconds)

    def validate(self, **question: Any) -> Verdict:
        """Ask whether the license may be used: `fingerprint`, `product`, `version`, `entitlements`, `seat_holder`; with
        a credential also `license` or `license_key`.

        Raises:
            NotBelieved: the answer is not the server's.
            Refused: the caller is not known, or the question is malformed.
            ServerAway: no answer came.
        """
        answer = self._call("POST", "/api/v1/validate", question).body
        return Verdict(**{name: answer[name] for name in Verdict.__slots__})

    def assign_seat(self, license_id: str, holder: str) -> Seat:
        """Take a seat for `holder`. Raises `Refused` with code `no_seat_available` when none is left."""
        answer = self._call("POST", "/api/v1/seats", {"license": license_id, "holder": holder})
        row = answer.body
        return Seat(row["id"], row["holder"], row["state"], created=answer.status == 201)

    def release_seat(self, seat_id: str) -> None:
        """Give a seat back. Doing it twice changes nothing."""
        self._call("DELETE", f"/api/v1/seats/{seat_id}")

    def activate(self, fingerprint: str, **machine: Any) -> str:
        """Bind this machine to the license; return the activation's id."""
        return str(self._call("POST", "/api/v1/activations", {"fingerprint": fingerprint, **machine}).body["id"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        nonce = secrets.token_urlsafe(18)
        headers = {"authorization": self._authorization, "x-licentia-nonce": nonce}
        if method == "POST" and path != "/api/v1/validate":
            headers["idempotency-key"] = nonce
        data = b"" if body is None else json.dumps(body).encode()
        return self._server.ask(method, path, data, headers=headers).or_refused()
