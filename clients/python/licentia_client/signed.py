"""Calls to a Licentia server by a machine that has a key of its own and signs its requests.

The license key is sent once, to activate, and kept nowhere. From then on each request is signed by the machine's key
under a fresh nonce and a counter that never repeats, and only an answer to that very signature is believed; nothing a
server says makes this client send the license key again. `SignedClient.check` answers all day from memory, and without
the server for as long as its last signed verdict, or a borrowed lease, holds. Source: the server's docs/api, RFC 9421.
"""

import base64
import hashlib
import json
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from licentia_client.answers import Answer, NotBelieved, Refused, Server, ServerAway, UntrustedKey, running
from licentia_client.client import Verdict
from licentia_client.files import Counter, write
from licentia_client.offline import LEASE_TYPE, VERDICT_TYPE, BorrowedLease, FileRefused, Machine, verified

# How soon `check` asks again: after a server that did not answer, or said no.
AWAY_SECONDS = 30.0
REFUSED_SECONDS = 10.0
# `retry-after` is no part of what is signed: nobody on the way may silence this client for longer.
LONGEST_WAIT_SECONDS = 120.0
VOUCHED_SECONDS = 60.0
# How old the set of the server's keys gets before it is asked for again, and how soon after one that was not believed.
KEYS_SECONDS = 86_400.0
KEYS_AGAIN_SECONDS = 30.0
_VERDICTS = 16
# Signed anew once: the server said only that this very request, its clock or its counter, did not fit.
_AGAIN = frozenset({"signature_stale", "counter_stale", "request_replayed"})
# These refuse the question that was asked, all others the license or the machine.
_OF_THE_QUESTION = frozenset(
    {"wrong_product", "version_not_covered", "seat_required", "entitlement_missing", "allowance_exhausted"}
)


# What the server says of a machine it knows by its key, and has let go; nothing else makes it forget its activation.
ENDED = "activation_ended"


class InstallationCopied(Refused):
    """Another installation uses this machine's key: the server has seen this counter before, and has noted it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether the program is allowed right now; true if it is.

    `code` and `detail` are the verdict's, or say why there is none. `source` is what it goes by: the `server`'s answer,
    its last verdict `token`, a borrowed `lease`, or `nothing`. `until` is when that ends without the server (seconds
    since 1970). `clock_rolled_back`: the machine's clock was found turned back, which wins nothing. `copied`: the
    server has seen a copy of this installation.
    """

    allowed: bool
    code: str
    detail: str
    source: Literal["server", "token", "lease", "nothing"] = "nothing"
    license: Mapping[str, Any] | None = None
    until: float | None = None
    clock_rolled_back: bool = False
    copied: bool = False

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as the server gave it. `ttl_seconds` is what was left of it then; `created` is false for a renewal."""

    id: str
    offline: bool
    expires_at: str
    ttl_seconds: int
    token: str
    created: bool


class SignedClient:
    """Calls one server as the machine whose keys are kept by `machine` (`Machine.open`).

    `keys` is the server's JSON Web Key Set, pinned: shipped with your program. Once a day it is renewed from a list
    that one of its keys has signed, and kept in the machine's folder; a key listed no more is believed no more.
    `product`, `version`, `entitlements` and `seat_holder` are what `check` asks about. It asks again after
    `fresh_seconds`, or sooner where the server says so. Threads may share one client, processes one machine's folder;
    one client outlives a fork.
    """

    def __init__(
        self,
        base_url: str,
        *,
        machine: Machine,
        keys: Mapping[str, Any],
        product: str = "",
        version: str = "",
        entitlements: Iterable[str] = (),
        seat_holder: str = "",
        fresh_seconds: float = 3_600.0,
        timeout_seconds: float = 10.0,
    ) -> None:
        self.machine = machine
        self._server = Server(base_url, keys=keys, timeout_seconds=timeout_seconds)
        self._pinned = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
        self._keys_at = 0.0
        self._keys_again = 0.0
        self._counter = Counter(machine.folder)
        asked = {"product": product, "version": version, "entitlements": list(entitlements), "seat_holder": seat_holder}
        self._question = {"fingerprint": machine.fingerprint} | {name: value for name, value in asked.items() if value}
        self._fresh_seconds = fresh_seconds
        self._standing = Standing(False, "unknown", "The server was not asked yet.")
        self._fresh_until = 0.0
        self._ahead = 0.0  # seconds the wall clock is ahead of the server's
        self._vouched_at = float("-inf")
        self._waiting: tuple[float, Refused] | None = None
        self._copied = False
        self._now = 0.0
        self._holds_until = 0.0
        self.forked()
        _clients.add(self)
        self._recall_keys()

    def forked(self) -> None:
        """Begin anew in the child of a fork, where a thread that was asking is gone."""
        self._asking = threading.RLock()
        self._counter.forked()

    @property
    def keys(self) -> Mapping[str, Any]:
        """The server's keys as they are known now: for `LicenseFile.read` and `BorrowedLease.read`."""
        return self._server.keys

    # --- the machine --------------------------------------------------------------------------------

    @property
    def activation(self) -> str:
        """The id of this machine's activation; empty when it has none."""
        with suppress(FileNotFoundError):
            return self._kept_activation.read_text().strip()
        return ""

    @property
    def _kept_activation(self) -> Path:
        return self.machine.folder / "activation"

    def activate(self, license_key: str, *, seat_holder: str = "") -> str:
        """Bind this machine and its key to the license; return the activation's id. The license key is sent once, to a
        server that has proved itself first, and not at all when the machine is activated already.

        Raises:
            NotBelieved: the answer is not the server's.
            ServerAway: no answer came.
            Refused: `activation_limit_reached`, `activation_key_conflict`, `license_key_mistyped`, …
        """
        with self._asking:
            if self.activation:
                return self.activation
            self._prove()
            body = {
                "fingerprint": self.machine.fingerprint,
                "public_key": self.machine.jwk,
                "name": self.machine.name,
                "platform": self.machine.platform,
                "seat_holder": seat_holder,
            }
            more = {"authorization": f"License {license_key}"}
            asked = {name: value for name, value in body.items() if value}
            answer = self._ask("POST", "/api/v1/activations", asked, keyid=self.machine.thumbprint, more=more)
            write(self._kept_activation, str(answer.body["id"]))
            self._fresh_until = 0.0
            return self.activation

    def heartbeat(self) -> None:
        """Tell the server that the machine is still in use, and whether its clock was found turned back; that is
        settled then. Raises as `validate` does."""
        path, turned_back = f"/api/v1/activations/{self._activated()}/heartbeat", self.machine.clock.rolled_back
        answer = self._ask("POST", path, {"clock_turned_back": True} if turned_back else None)
        if turned_back:
            self.machine.vouched(answer.made_at, told=True)

    def deactivate(self) -> None:
        """Let this machine go; its place is free at once. Raises as `validate` does, `activation_churn_exceeded`."""
        if self.activation:
            answer = self._ask("DELETE", f"/api/v1/activations/{self.activation}")
            self._let_go(answer.made_at, "This machine was deactivated.")

    # --- may it run? --------------------------------------------------------------------------------

    def check(self) -> Standing:
        """Return whether the program is allowed right now.

        From memory while that is fresh: no call, no file, a fraction of a microsecond. Else from the server. While the
        server is away, or not believed, or asks to wait, by its last verdict until that ends, or a borrowed lease. Else
        not allowed. It never raises: a folder that cannot be used any more, on a full disk say, ends nothing that the
        server has allowed this process.
        """
        if running() < self._fresh_until:
            return self._standing
        return self._look()

    def validate(self) -> Verdict:
        """Ask the server now; `check` goes by the answer from then on.

        Raises:
            NotBelieved: the answer is not the server's.
            ServerAway: no answer came.
            Refused: the server does not know this machine (any more), or asks to wait; see `retry_after`.
            InstallationCopied: a copy of this machine's key is in use. It can be asked again.
        """
        with self._asking:
            answer = self._ask("POST", "/api/v1/validate", self._question)
            said = answer.body
            verdict = Verdict(**{name: said[name] for name in Verdict.__slots__})
            claims = self._claims(verdict.token)
            if claims is None or (claims["valid"], claims["code"]) != (verdict.valid, verdict.code):
                raise NotBelieved("The verdict and its token do not say the same.")
            record: dict[str, Any] = {"at": answer.made_at, "token": verdict.token}
            if not verdict.valid:
                record = {"at": answer.made_at, "code": verdict.code, "detail": verdict.detail}
            for_all = not verdict.valid and verdict.code not in _OF_THE_QUESTION
            fresh = REFUSED_SECONDS
            if verdict.valid:
                fresh = min(_instant(verdict.fresh_until) - _instant(said["checked_at"]), self._fresh_seconds)
            until = float(claims["exp"]) if verdict.valid else None
            self._holds_until = running() + claims["exp"] - answer.made_at
            self._stand(Standing(verdict.valid, verdict.code, verdict.detail, "server", verdict.license, until), fresh)
            self._vouch(answer.made_at, _noting(self._asked(), record, for_all=for_all))
            return verdict

    def entitlements(self) -> dict[str, Any]:
        """Return what the license grants now. Raises as `validate` does."""
        return dict(self._ask("GET", "/api/v1/entitlements").body)

    # --- leases -------------------------------------------------------------------------------------

    def check_out(self, *, ttl_seconds: int | None = None) -> Lease:
        """Take one unit of floating capacity; this machine's live lease is renewed if it has one.

        Raises: as `validate` does, and `Refused` with `no_seat_available`, `seats_not_floating`.
        """
        return self._lease("/api/v1/leases", {"ttl_seconds": ttl_seconds})

    def borrow(self, *, ttl_seconds: int | None = None) -> Lease:
        """Take one unit along: it holds without the server until it expires, and `check` goes by it then.

        Raises: as `check_out` does, and `Refused` with `offline_not_allowed`.
        """
        lease = self._lease("/api/v1/leases", {"ttl_seconds": ttl_seconds, "offline": True})
        self.check()  # the lease says how long, the last verdict what for
        return lease

    def renew(self, lease_id: str, *, ttl_seconds: int | None = None) -> Lease:
        """Have a lease run on from now, a heartbeat. Raises as `check_out` does, and `Refused` with `lease_ended`."""
        return self._lease(f"/api/v1/leases/{lease_id}/renew", {"ttl_seconds": ttl_seconds})

    def check_in(self, lease_id: str) -> None:
        """Give a lease back; it is free at once, and twice changes nothing. Raises as `validate` does."""
        answer = self._ask("DELETE", f"/api/v1/leases/{lease_id}")
        kept = self.machine.clock.notes.get("lease", {})
        if kept.get("id") == lease_id:
            self._vouch(answer.made_at, lambda notes: {**notes, "lease": {}})

    def borrowed(self) -> BorrowedLease:
        """Return the lease that was borrowed last, if it holds now, without asking anybody.

        Raises:
            FileRefused: `expired`, `state_lost`, …; `malformed` if there is none.
        """
        token = str(self.machine.clock.notes.get("lease", {}).get("token", ""))
        issuer, product = self._server.base_url, self._question.get("product", "")
        return BorrowedLease.read(
            token, keys=self._server.keys, machine=self.machine, product=str(product), issuer=issuer
        )

    def _lease(self, path: str, asked: dict[str, Any]) -> Lease:
        answer = self._ask("POST", path, {name: value for name, value in asked.items() if value is not None})
        row = answer.body
        lease = Lease(
            row["id"], row["offline"], row["expires_at"], row["ttl_seconds"], row["token"], created=answer.status == 201
        )
        if lease.offline:
            try:
                verified(lease.token, self._server.keys, typ=LEASE_TYPE)
            except FileRefused as refused:
                raise NotBelieved(f"The lease's token is not the server's. {refused.detail}") from None
            self._vouch(answer.made_at, lambda notes: {**notes, "lease": {"id": lease.id, "token": lease.token}})
        return lease

    # --- without the server -------------------------------------------------------------------------

    def _look(self) -> Standing:
        with self._asking:
            if running() < self._fresh_until:  # another thread has asked meanwhile
                return self._standing
            try:
                self._recall_keys()
                if self.activation:
                    self._ask_anew()
                elif self._standing.code != ENDED:
                    self._stand(Standing(False, "activation_required", "This machine is not activated."), AWAY_SECONDS)
            except OSError as error:
                self._without_folder(error)
            return self._standing

    def _ask_anew(self) -> None:
        try:
            try:
                self.validate()
            except InstallationCopied:
                self.validate()
            if self.machine.clock.rolled_back:
                with suppress(Refused, NotBelieved, ServerAway):  # told another time
                    self.heartbeat()
        except (NotBelieved, ServerAway) as error:
            self._without(str(error), AWAY_SECONDS)
        except Refused as refused:
            # A request that was not understood, or bent on its way, says nothing of the license.
            if refused.status in (403, 404, 409):
                self._stand(Standing(False, refused.code, refused.detail, "server"), REFUSED_SECONDS)
            elif refused.code != ENDED:
                self._without(refused.detail, refused.retry_after or AWAY_SECONDS)

    def _without_folder(self, error: OSError) -> None:
        """Go by what this process was told, by the time it has been running since: nothing can be remembered."""
        left = self._holds_until - running()
        if running() < self._fresh_until:  # it was answered, and only not noted
            return
        if left > 0:
            standing = replace(self._standing, source="token")
        else:
            detail = f"The folder of this machine cannot be used: {error.strerror or error}."
            standing = Standing(False, "folder_unusable", detail)
        self._standing = standing
        self._fresh_until = running() + (min(AWAY_SECONDS, left) if left > 0 else REFUSED_SECONDS)

    def _without(self, why: str, seconds: float) -> None:
        """Go by what the server said last, and ask again in so many seconds."""
        standing = self._remembered(why)
        if standing.until is not None:
            seconds = min(seconds, standing.until - self._now)
            self._holds_until = running() + standing.until - self._now
        self._stand(standing, min(seconds, LONGEST_WAIT_SECONDS))

    def _remembered(self, why: str) -> Standing:
        record = self.machine.clock.notes.get("verdicts", {}).get(self._asked())
        try:
            time_ = self.machine.clock.now()
        except FileRefused as refused:
            return Standing(False, refused.code, f"{why} {refused.detail}")
        self._now = time_.now
        nothing = Standing(False, "server_away", why, clock_rolled_back=time_.rolled_back)
        if record is None:
            return nothing
        if "code" in record:
            return replace(nothing, code=record["code"], detail=record["detail"])
        claims = self._claims(record["token"])
        if claims is None or not claims["valid"]:
            return nothing  # by a key that is believed no more, perhaps
        known = replace(nothing, allowed=True, code=claims["code"], license=claims["terms"])
        if max(time_.now, claims["nbf"]) < claims["exp"]:
            return replace(known, source="token", until=float(claims["exp"]))
        with suppress(FileRefused):
            lease = self.borrowed()
            if lease.license == claims["sub"]:
                return replace(known, source="lease", until=lease.expires_at)
        return replace(nothing, detail=f"{why} The last verdict has expired.")

    def _claims(self, token: str) -> dict[str, Any] | None:
        """Return what a verdict's token says of this machine; None if it is none of the server's to it."""
        try:
            claims = verified(token, self._server.keys, typ=VERDICT_TYPE, texts=("code",))
        except FileRefused:
            return None
        ours = claims["iss"] == self._server.base_url and claims.get("fingerprint") == self.machine.fingerprint
        ours = ours and (not claims.get("valid") or self._question.get("product") in (None, claims["aud"]))
        return claims if ours and type(claims.get("valid")) is bool and "terms" in claims else None

    def _asked(self) -> str:
        """Return a name for the question, as this activation asks it of this server."""
        about = [self._server.base_url, self.activation, self._question]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]

    def _stand(self, standing: Standing, seconds: float) -> None:
        if not standing.allowed:
            self._holds_until = 0.0
        back = standing.clock_rolled_back or (standing.source == "server" and self.machine.clock.rolled_back)
        self._standing = replace(standing, copied=self._copied, clock_rolled_back=back)
        self._fresh_until = running() + seconds

    def _let_go(self, at: float, detail: str) -> None:
        """Forget the activation and every verdict: the server knows this machine no more."""
        self._stand(Standing(False, ENDED, detail, "server"), REFUSED_SECONDS)
        self._vouch(at, lambda notes: {"keys": notes["keys"]} if "keys" in notes else {})
        self._kept_activation.unlink(missing_ok=True)

    def _vouch(self, at: float, note: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
        """Take the server's word for the time, and note what else it said."""
        if note is not None or running() - self._vouched_at > VOUCHED_SECONDS:
            self.machine.vouched(at, note=note)
            self._vouched_at = running()

    # --- the server's keys --------------------------------------------------------------------------

    def _prove(self) -> None:
        """Have the server prove itself by a key that is trusted, and learn its keys. Raises as `activate` does."""
        self._take_over(*self._server.current_keys())

    def _recall_keys(self) -> bool:
        """Go by the set of keys that is kept, if this or another process has learned one; return whether it is news.

        One that was learned from another pinned set than this program's is let be.
        """
        kept = self.machine.clock.notes.get("keys", {})
        if kept.get("pinned") != self._pinned:
            return False
        self._keys_at = kept["at"]
        if kept["set"] == self._server.keys:
            return False
        self._server.trust(kept["set"])
        return True

    def _learn_keys(self) -> bool:
        """Take over the set of keys as the server names it now, signed by a key of the present set; return whether.

        What is not so signed changes nothing.
        """
        if running() < self._keys_again:
            return False
        self._keys_again = running() + KEYS_AGAIN_SECONDS
        try:
            self._prove()
        except (NotBelieved, ServerAway):
            return False
        return True

    def _take_over(self, keys: Mapping[str, Any], at: float) -> None:
        self._server.trust(keys)
        kept = {"pinned": self._pinned, "set": dict(keys), "at": at}
        self._vouch(at, lambda notes: {**notes, "keys": kept})
        self._keys_at = at

    # --- requests -----------------------------------------------------------------------------------

    def _activated(self) -> str:
        if not self.activation:
            raise Refused(401, "activation_required", "This machine is not activated.")
        return self.activation

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        keyid: str = "",
        more: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer to a signed request; sign it once anew where only clock or counter were off."""
        own = not keyid
        keyid = keyid or self._activated()
        data = b"" if body is None else json.dumps(body).encode()
        with self._asking:
            if self._waiting is not None and running() < self._waiting[0]:
                raise self._waiting[1]
            for last in (False, True):
                try:
                    headers = self._headers(method, path, data, keyid, more)
                    answer = self._server.ask(method, path, data, headers=headers)
                except UntrustedKey:
                    if last or not (self._recall_keys() or self._learn_keys()):
                        raise
                    continue
                self._ahead = self.machine.clock.wall() - answer.made_at
                self._vouch(answer.made_at)
                if answer.made_at - self._keys_at > KEYS_SECONDS:
                    self._learn_keys()
                try:
                    return answer.or_refused()
                except Refused as refused:
                    if own or refused.code not in (ENDED, "counter_reused"):
                        self._heed(refused, answer.made_at)
                    if last or refused.code not in _AGAIN:
                        raise
        raise AssertionError("unreachable")

    def _heed(self, refused: Refused, at: float) -> None:
        """Do what a refusal asks of whoever is refused, whatever they asked for."""
        if refused.status in (429, 503):
            refused.retry_after = min(refused.retry_after or AWAY_SECONDS, LONGEST_WAIT_SECONDS)
            self._waiting = running() + refused.retry_after, refused
        elif refused.code == ENDED:
            self._let_go(at, refused.detail)
        elif refused.code == "counter_stale":
            self._counter.leap()
        elif refused.code == "counter_reused":
            self._counter.leap()
            self._copied = True
            raise InstallationCopied(refused.status, refused.code, refused.detail) from None

    def _headers(
        self, method: str, path: str, body: bytes, keyid: str, more: Mapping[str, str] | None
    ) -> dict[str, str]:
        nonce = secrets.token_urlsafe(16)
        headers = {"x-licentia-counter": str(self._counter.next())}
        values = {"@method": method, "@target-uri": self._server.base_url + path, **headers}
        if body:
            digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
            headers["content-digest"] = values["content-digest"] = f"sha-256=:{digest}:"
        created = int(self.machine.clock.wall() - self._ahead)
        covered = " ".join(f'"{name}"' for name in values)
        parameters = f'({covered});created={created};keyid="{keyid}";nonce="{nonce}";alg="ed25519"'
        base = "".join(f'"{name}": {value}\n' for name, value in values.items()) + f'"@signature-params": {parameters}'
        made = base64.b64encode(self.machine.sign(base.encode())).decode()
        headers |= {"signature-input": f"machine={parameters}", "signature": f"machine=:{made}:"}
        if more:  # a license key goes with it, and asks for a nonce in a header of its own
            headers |= {**more, "x-licentia-nonce": nonce}
        return headers


def _noting(question: str, record: dict[str, Any], *, for_all: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what notes a verdict: for its question, or for every question asked so far. A refusal is always noted; one
    that is noted gives way only to what the server said later."""

    def note(notes: dict[str, Any]) -> dict[str, Any]:
        verdicts: dict[str, dict[str, Any]] = dict(notes.get("verdicts", {}))
        for name in [*(verdicts if for_all else ()), question]:
            known = verdicts.pop(name, None)
            stays = known is not None and "code" in known and "code" not in record and known["at"] >= record["at"]
            verdicts[name] = known if stays and known is not None else record
        return {**notes, "verdicts": dict(list(verdicts.items())[-_VERDICTS:])}

    return note


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


_clients: "weakref.WeakSet[SignedClient]" = weakref.WeakSet()


def _forked() -> None:
    for client in list(_clients):
        client.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
