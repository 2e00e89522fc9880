"""Without the server: request files, license files, borrowed leases, and a clock that cannot be turned back for time.

`Machine.open` keeps a machine's own keys and its clock's memory in a private folder. `make_request` writes the request
file that somebody carries to the vendor's portal; `LicenseFile.read` takes the license file that comes back, and
`BorrowedLease.read` the token of a lease that was borrowed, with the server's public keys pinned and no network at all.

The clock: what counts as now is the last time the server vouched for (the issue of a file, a signed answer) plus all
time seen passing since, by the wall clock or by the uptime of the machine, whichever saw more. It never goes back. A
wall clock that does is reported (`clock_rolled_back`), and wins nothing. What is remembered lies in two places, under a
MAC by the machine's key; when it is gone from both, the file at hand is refused and a new request is needed.

What it cannot notice: time that passes while no program runs and of which the machine keeps no trace, and a whole
folder put back from a copy. Both end at the next contact with the server. Source: the server's docs/offline.md,
RFC 7515, RFC 7516, RFC 7638, RFC 7800.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from licentia_client.files import NotPrivate, locked, read_private, require_private_folder, write

FILE_TYPE = "license-file+jwt"
SEALED_TYPE = "license-file+jwe"
LEASE_TYPE = "lease+jwt"
VERDICT_TYPE = "license+jwt"
REQUEST_TYPE = "activation-request+jwt"
TOLERANCE_SECONDS = 300.0
# What a look at a clock that stands still, or was set back since the last look, counts as.
STANDSTILL_SECONDS = 3600.0
LONGEST = 65_536
_NOT_OURS = {
    FILE_TYPE: "That is no license file.",
    LEASE_TYPE: "That is no lease.",
    VERDICT_TYPE: "That is no verdict.",
}
_PROCESS = secrets.token_hex(8)


class FileRefused(Exception):
    """The license file or lease cannot be used; `code` says why.

    `malformed`, `not_authentic`: it is none, was changed, or is not by a pinned key. `wrong_machine`, `wrong_product`:
    it is for another. `expired`: it is over. `superseded`: it does not answer this machine's last request.
    `state_lost`: what was remembered of the clock is gone; make a new request. `not_private`: others on this machine
    can read its keys; `detail` says how to mend it.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class Time:
    """What counts as now (seconds since 1970), and whether the machine's clock was found turned back."""

    now: float
    rolled_back: bool


class Machine:
    """This machine: its keys, its fingerprint, and its clock's memory, in a private folder.

    `second` is the other place the clock's memory is kept in, beside the folder unless said otherwise; `traces` are
    files whose last change shows how far the machine's clock was (the two places, if nothing is said). `wall` and
    `uptime` read the clocks; a test gives its own.
    """

    def __init__(
        self,
        folder: Path,
        document: dict[str, Any],
        *,
        second: Path | None = None,
        wall: Callable[[], float] = time.time,
        uptime: Callable[[], tuple[str, float]] | None = None,
        traces: Iterable[Path] | None = None,
    ) -> None:
        self.folder = folder
        self.fingerprint: str = document["fingerprint"]
        self.name: str = document.get("name", "")
        self.platform: str = document.get("platform", "")
        self.pending: str = document.get("pending", "")
        self.fresh: bool = document.get("fresh", False)
        self._signing = Ed25519PrivateKey.from_private_bytes(_unb64(document["signing"]))
        self._sealing = X25519PrivateKey.from_private_bytes(_unb64(document["sealing"]))
        places = (folder / "clock", second or folder.with_name(f".{folder.name}.clock"))
        self.clock = Clock(
            places,
            guard=folder / "clock.lock",
            key=hashlib.sha256(b"licentia clock\x00" + _raw(self._signing)).digest(),
            wall=wall,
            uptime=uptime or _uptime,
            traces=places if traces is None else traces,
        )

    @classmethod
    def open(
        cls, folder: str | Path, *, fingerprint: str = "", name: str = "", platform: str = "", **how: Any
    ) -> "Machine":
        """Return the machine kept in `folder`; with a `fingerprint`, make it there if there is none.

        Raises:
            FileRefused: `state_lost`, what lies there was changed, or is another machine's; `not_private`, others can
                read it.
        """
        path = Path(folder)
        kept = path / "machine.json"
        if not kept.exists() and fingerprint:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                require_private_folder(path)  # no key is put where others look in
            except NotPrivate as error:
                raise FileRefused("not_private", str(error)) from None
            with locked(path / "machine.lock"):  # two processes at the first start make one machine
                if not kept.exists():
                    document = {
                        "fingerprint": fingerprint,
                        "name": name,
                        "platform": platform,
                        "signing": _b64(_raw(Ed25519PrivateKey.generate())),
                        "sealing": _b64(_raw(X25519PrivateKey.generate())),
                        "fresh": True,
                    }
                    write(kept, cls(path, document, **how)._document())
        try:
            require_private_folder(path)
            document = json.loads(read_private(kept))
            machine = cls(path, document, **how)
            whole = hmac.compare_digest(machine._mac(document), str(document.get("mac", "")))
        except NotPrivate as error:
            raise FileRefused("not_private", str(error)) from None
        except (OSError, ValueError, KeyError, TypeError, FileRefused):
            raise FileRefused("state_lost", "There is no usable machine in this folder. Make a new request.") from None
        if not whole or (fingerprint and fingerprint != machine.fingerprint):
            raise FileRefused("state_lost", "What is kept of this machine was changed. Make a new request.")
        return machine

    @property
    def jwk(self) -> dict[str, str]:
        """The public key the machine signs with."""
        return {"crv": "Ed25519", "kty": "OKP", "x": _b64(_raw_public(self._signing.public_key()))}

    @property
    def thumbprint(self) -> str:
        """The RFC 7638 thumbprint of that key."""
        return _b64(hashlib.sha256(_json(self.jwk)).digest())

    def sign(self, message: bytes) -> bytes:
        """Return the machine's Ed25519 signature of a message."""
        return self._signing.sign(message)

    def vouched(
        self, at: float, *, told: bool = False, note: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> Time:
        """Take the server's word for the time, from a signed answer to a request just made; see `Clock.vouched`."""
        if self.fresh:  # else an old file without a request could turn the clock back after this
            with self._kept():
                self.fresh = False
        return self.clock.vouched(at, told=told, note=note)

    def request(self, *, product: str = "") -> str:
        """Return a new request file's text. Only a file that answers it is taken from then on."""
        with self._kept():
            self.pending = nonce = secrets.token_urlsafe(24)
        header = {"alg": "EdDSA", "typ": REQUEST_TYPE, "jwk": self.jwk}
        claims = {
            "fingerprint": self.fingerprint,
            "name": self.name,
            "platform": self.platform,
            "product": product,
            "enc_key": {"crv": "X25519", "kty": "OKP", "x": _b64(_raw_public(self._sealing.public_key()))},
            "nonce": nonce,
            "iat": int(self.clock.wall()),
        }
        message = f"{_b64(_json(header))}.{_b64(_json({name: value for name, value in claims.items() if value != ''}))}"
        return _armour("LICENTIA ACTIVATION REQUEST", f"{message}.{_b64(self._signing.sign(message.encode()))}")

    def take(self, nonce: str, issued_at: float) -> Time:
        """Return what counts as now, once a license file is looked at. Only the answer to the last request says what
        time it is, and once: else an old file would turn the clock back again and again. Any other says what time it
        is at least.

        Raises:
            FileRefused: `superseded`, the file answers another request, and nothing of its time is remembered.
        """
        if self.pending or self.fresh:
            with self._kept():
                answer = bool(self.pending) and hmac.compare_digest(self.pending, nonce)
                if answer or (self.fresh and not nonce):
                    now = self.clock.vouched(issued_at)
                    self.pending, self.fresh = "", False
                    return now
        if self.pending and not self.clock.known:
            raise FileRefused("superseded", "The file does not answer this machine's last request.")
        self.clock.seen(issued_at)
        return self.clock.now()

    def unseal(self, token: str) -> str:
        """Return what is inside a JWE to this machine (ECDH-ES, A256GCM). Raises `FileRefused`."""
        parts = token.split(".")
        header = _header(parts[0], {"alg", "enc", "typ", "cty", "epk"}, _NOT_OURS[FILE_TYPE])
        epk = header["epk"]
        wanted = {"alg": "ECDH-ES", "enc": "A256GCM", "typ": SEALED_TYPE, "cty": FILE_TYPE}
        if len(parts) != 5 or parts[1] or {name: header[name] for name in wanted} != wanted:
            raise FileRefused("malformed", "That is no license file.")
        if (
            not isinstance(epk, dict)
            or set(epk) != {"kty", "crv", "x"}
            or (epk["kty"], epk["crv"]) != ("OKP", "X25519")
        ):
            raise FileRefused("malformed", "That is no license file.")
        iv, text, tag = (_unb64(part) for part in parts[2:])
        if len(iv) != 12 or len(tag) != 16:
            raise FileRefused("malformed", "That is no license file.")
        try:
            shared = self._sealing.exchange(X25519PublicKey.from_public_bytes(_unb64(epk["x"])))
            key = _concat_kdf(shared, b"A256GCM", 256)
            return AESGCM(key).decrypt(iv, text + tag, parts[0].encode()).decode()
        except (InvalidTag, ValueError):
            raise FileRefused("not_authentic", "The file is sealed for another machine, or was changed.") from None

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Change what is kept: as it is now, for another process may have changed it, and by nobody else meanwhile."""
        kept = self.folder / "machine.json"
        with locked(self.folder / "machine.lock"):
            with contextlib.suppress(OSError, ValueError):
                document = json.loads(read_private(kept))
                if hmac.compare_digest(self._mac(document), str(document.get("mac", ""))):
                    self.pending, self.fresh = document["pending"], document["fresh"]
            before = (self.pending, self.fresh)
            yield
            if (self.pending, self.fresh) != before:
                write(kept, self._document())

    def _document(self) -> str:
        document = {
            "fingerprint": self.fingerprint,
            "name": self.name,
            "platform": self.platform,
            "signing": _b64(_raw(self._signing)),
            "sealing": _b64(_raw(self._sealing)),
            "pending": self.pending,
            "fresh": self.fresh,
        }
        return json.dumps({**document, "mac": self._mac(document)})

    def _mac(self, document: Mapping[str, Any]) -> str:
        said = {name: value for name, value in document.items() if name != "mac"}
        key = hashlib.sha256(b"licentia machine\x00" + _raw(self._signing)).digest()
        return _b64(hmac.digest(key, _json(said), hashlib.sha256))


class Clock:
    """Time as the server vouched for it, and what passed since: it never goes back (see the module).

    Beside it, under the same MAC and in the same two places, `notes` of what the server last said.
    """

    def __init__(
        self,
        places: tuple[Path, ...],
        *,
        guard: Path,
        key: bytes,
        wall: Callable[[], float],
        uptime: Callable[[], tuple[str, float]],
        traces: Iterable[Path],
    ) -> None:
        self.wall = wall
        self._places, self._key, self._uptime, self._traces = places, key, uptime, tuple(traces)
        self._guard = guard

    @property
    def known(self) -> bool:
        """Whether anything is remembered."""
        return self._load() is not None

    @property
    def rolled_back(self) -> bool:
        """Whether the clock was found turned back since the server last vouched for the time: tell it so."""
        state = self._load()
        return bool(state and state["rolled_back"])

    @property
    def server_at(self) -> float:
        """When the server last vouched for the time."""
        state = self._load()
        return float(state["server"]) if state else 0.0

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted last, JSON; nothing when it was never vouched for, or is gone."""
        state = self._load()
        return dict(state.get("notes", {})) if state else {}

    def vouched(
        self, at: float, *, told: bool = False, note: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> Time:
        """Take the server's word for what time it is and go on from there: only for an answer that is new, bound to a
        request just made. `told` says that the server was told of a clock turned back, which is settled then: one that
        stays as far behind is no news. `note` makes the new notes from those there are; no other process comes
        between."""
        with locked(self._guard):
            state, wall, (boot, ticks) = self._load(), self.wall(), self._uptime()
            ahead = wall - at
            rolled_back = ahead < min(state["ahead"] if state else 0.0, 0.0) - TOLERANCE_SECONDS
            rolled_back = rolled_back or bool(state and state["rolled_back"] and not told)
            notes = state.get("notes", {}) if state else {}
            looked = {"wall": wall, "high": wall, "ahead": ahead, "boot": boot, "ticks": ticks}
            said = {"mark": at, "server": at, "rolled_back": rolled_back, "notes": note(notes) if note else notes}
            self._save({**looked, **said})
        return Time(at, rolled_back)

    def seen(self, at: float) -> None:
        """Note what the server said of the time in something that may be old: it is that late at least."""
        with locked(self._guard):
            state = self._load()
            if state is not None and at > state["server"]:
                self._save({**state, "server": at, "mark": max(at, state["mark"])})

    def now(self) -> Time:
        """Return what counts as now, and remember it.

        Raises:
            FileRefused: `state_lost`, nothing is remembered.
        """
        with locked(self._guard):
            return self._now()

    def _now(self) -> Time:
        state = self._load()
        if state is None:
            raise FileRefused("state_lost", "What was remembered of the clock is gone. Make a new request.")
        wall, (boot, ticks) = self.wall(), self._uptime()
        ran = ticks - state["ticks"] if boot == state["boot"] else 0.0
        high = max(state["high"], wall, self._trace())
        passed = max(wall - state["wall"], ran)
        if state["wall"] < state["high"] - TOLERANCE_SECONDS:  # the clock was behind what it had shown before
            if ran > 0:
                passed = ran
            elif wall >= state["high"] - TOLERANCE_SECONDS:  # put right again: it says itself how late it is
                passed = wall - state["ahead"] - state["mark"]
        if passed <= 0:  # nothing says how long it was, and honest clocks move
            passed = STANDSTILL_SECONDS
        mark = max(state["mark"] + passed, high - state["ahead"])
        behind = max(high, mark + state["ahead"]) - wall
        rolled_back = state["rolled_back"] or behind > TOLERANCE_SECONDS
        looked = {"wall": wall, "high": high, "boot": boot, "ticks": ticks}
        self._save({**state, **looked, "mark": mark, "rolled_back": rolled_back})
        return Time(mark, rolled_back)

    def _trace(self) -> float:
        """Return the latest change of the files looked at: somebody's clock was that far already."""
        latest = 0.0
        for path in self._traces:
            with contextlib.suppress(OSError):
                latest = max(latest, path.stat().st_mtime)
        return latest

    def _load(self) -> dict[str, Any] | None:
        found = []
        for path in self._places:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, FileRefused):
                document = json.loads(path.read_text())
                state = document["state"]
                if hmac.compare_digest(_b64(hmac.digest(self._key, _json(state), hashlib.sha256)), document["mac"]):
                    found.append(state)
        return max(found, key=lambda state: state["turn"]) if found else None

    def _save(self, state: dict[str, Any]) -> None:
        last = self._load()
        state = {**state, "turn": (last["turn"] if last else 0) + 1}
        text = json.dumps({"state": state, "mac": _b64(hmac.digest(self._key, _json(state), hashlib.sha256))})
        for path in self._places:
            write(path, text)


@dataclass(frozen=True, slots=True)
class LicenseFile:
    """A license file that holds for this machine now. `terms` are the license's as they were when it was issued."""

    license: str
    product: str
    terms: Mapping[str, Any]
    issued_at: float
    expires_at: float
    revision: int
    clock_rolled_back: bool
    claims: Mapping[str, Any]

    @classmethod
    def read(
        cls, text: str, *, keys: Mapping[str, Any], machine: Machine, product: str = "", issuer: str = ""
    ) -> "LicenseFile":
        """Return the license in a file, if it can be used on this machine now. `keys` is the server's key set, pinned.

        Ask again at least once an hour while the program runs: that is how time is seen passing.

        Raises:
            FileRefused: see there.
        """
        token = _unarmour("LICENTIA LICENSE FILE", text)
        if token.count(".") == 4:
            token = machine.unseal(token)
        claims = verified(token, keys, typ=FILE_TYPE, whole=("revision", "offline_max"), texts=("fingerprint",))
        if not isinstance(claims.get("terms"), dict) or not isinstance(claims.get("nonce", ""), str):
            raise FileRefused("malformed", "The file is of a form this program does not know. Update it.")
        if (product and claims["aud"] != product) or (issuer and claims["iss"] != issuer):
            raise FileRefused("wrong_product", "The file is for another product, or by another vendor.")
        bound = claims.get("cnf", {"jkt": machine.thumbprint})
        if claims["fingerprint"] != machine.fingerprint or bound != {"jkt": machine.thumbprint}:
            raise FileRefused("wrong_machine", "The file is for another machine.")
        time_ = machine.take(claims.get("nonce", ""), claims["iat"])
        over = min(claims["exp"], claims["iat"] + claims["offline_max"])
        if max(time_.now, claims["nbf"]) >= over or time_.now >= machine.clock.server_at + claims["offline_max"]:
            raise FileRefused("expired", "The file has expired. Make a new request, or connect to the server.")
        return cls(
            license=claims["sub"],
            product=claims["aud"],
            terms=claims["terms"],
            issued_at=claims["iat"],
            expires_at=over,
            revision=claims["revision"],
            clock_rolled_back=time_.rolled_back,
            claims=claims,
        )


@dataclass(frozen=True, slots=True)
class BorrowedLease:
    """A borrowed lease that holds for this machine now, without the server, until `expires_at`."""

    id: str
    license: str
    product: str
    issued_at: float
    expires_at: float
    clock_rolled_back: bool

    @classmethod
    def read(
        cls, token: str, *, keys: Mapping[str, Any], machine: Machine, product: str = "", issuer: str = ""
    ) -> "BorrowedLease":
        """Return the lease of a token, as checking out with `offline` answers it, if it can be used on this machine
        now. `keys` is the server's key set, pinned. Ask again at least once an hour, as with a license file.

        Raises:
            FileRefused: see there; `malformed` also for a lease that was not borrowed.
        """
        claims = verified(token, keys, typ=LEASE_TYPE, texts=("lease", "fingerprint"))
        if claims.get("offline") is not True:
            raise FileRefused("malformed", "This lease was not borrowed: it holds with the server only.")
        if (product and claims["aud"] != product) or (issuer and claims["iss"] != issuer):
            raise FileRefused("wrong_product", "The lease is for another product, or by another vendor.")
        if claims["fingerprint"] != machine.fingerprint:
            raise FileRefused("wrong_machine", "The lease is another machine's.")
        time_ = machine.take("", claims["iat"])
        if max(time_.now, claims["nbf"]) >= claims["exp"]:
            raise FileRefused("expired", "The lease has expired. Connect to the server.")
        return cls(
            id=claims["lease"],
            license=claims["sub"],
            product=claims["aud"],
            issued_at=claims["iat"],
            expires_at=claims["exp"],
            clock_rolled_back=time_.rolled_back,
        )


def make_request(
    folder: str | Path, *, fingerprint: str, name: str = "", platform: str = "", product: str = "", **how: Any
) -> str:
    """Return the text of a request file for this machine, whose keys are kept in `folder` (made at the first time)."""
    return Machine.open(folder, fingerprint=fingerprint, name=name, platform=platform, **how).request(product=product)


# --- strict reading ---------------------------------------------------------------------------------


def verified(
    token: str, keys: Mapping[str, Any], *, typ: str, whole: Iterable[str] = (), texts: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the claims of a token of the server's of this very type. Times are the caller's to judge.

    `whole` and `texts` name claims it needs beside the usual, whole numbers and texts. Raises `FileRefused`.
    """
    parts = token.split(".")
    if len(parts) != 3 or len(token) > LONGEST:
        raise FileRefused("malformed", _NOT_OURS[typ])
    header = _header(parts[0], {"alg", "kid", "typ"}, _NOT_OURS[typ])
    if header["alg"] != "EdDSA" or header["typ"] != typ:
        raise FileRefused("malformed", _NOT_OURS[typ])
    known = {key["kid"]: key for key in keys["keys"] if (key.get("kty"), key.get("crv")) == ("OKP", "Ed25519")}
    key = known.get(header["kid"]) if isinstance(header["kid"], str) else None
    if key is None:
        raise FileRefused("not_authentic", "It is signed by a key that is not pinned.")
    try:
        Ed25519PublicKey.from_public_bytes(_unb64(key["x"])).verify(_unb64(parts[2]), f"{parts[0]}.{parts[1]}".encode())
    except (InvalidSignature, ValueError):
        raise FileRefused("not_authentic", "Its signature does not fit: it was changed.") from None
    claims = _object(_unb64(parts[1]), _NOT_OURS[typ])
    numbers, words = ("iat", "nbf", "exp", "ver", *whole), ("iss", "aud", "sub", "jti", *texts)
    if not all(type(claims.get(name)) is int for name in numbers) or claims["ver"] != 1:
        raise FileRefused("malformed", "It is of a form this program does not know. Update it.")
    if not all(isinstance(claims.get(name), str) for name in words):
        raise FileRefused("malformed", "It is of a form this program does not know. Update it.")
    return claims


def _header(part: str, names: set[str], otherwise: str) -> dict[str, Any]:
    header = _object(_unb64(part), otherwise)
    if set(header) != names:
        raise FileRefused("malformed", otherwise)
    return header


def _object(text: bytes, otherwise: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("A name stands twice.")
        return found

    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FileRefused("malformed", otherwise)
    return value


def _armour(label: str, token: str) -> str:
    lines = [token[start : start + 64] for start in range(0, len(token), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def _unarmour(label: str, text: str) -> str:
    """Return the token in a file that is armoured just so; only line ends may be those of Windows."""
    pattern = rf"-----BEGIN {label}-----\n((?:[A-Za-z0-9_.-]{{64}}\n)*[A-Za-z0-9_.-]{{1,64}})\n-----END {label}-----\n?"
    found = re.fullmatch(pattern, text.replace("\r\n", "\n")) if len(text) <= 2 * LONGEST else None
    if found is None:
        raise FileRefused("malformed", "That is no license file, or it was changed on its way.")
    return found[1].replace("\n", "")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    """Return the bytes of base64url in its one canonical form."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, TypeError):
        raise FileRefused("malformed", "That is not base64url.") from None
    if _b64(data) != text:
        raise FileRefused("malformed", "That is not canonical base64url.")
    return data


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _concat_kdf(shared: bytes, algorithm: bytes, bits: int) -> bytes:
    """Return the key of ECDH-ES by direct agreement (RFC 7518, 4.6.2): one round of SHA-256 is enough for 256 bits."""
    info = len(algorithm).to_bytes(4, "big") + algorithm + b"\x00" * 8 + bits.to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + shared + info).digest()


def _raw(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def _raw_public(key: Ed25519PublicKey | X25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _uptime() -> tuple[str, float]:
    """Return which run of the machine this is, else of the program, and for how long: no clock setting changes it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, float(Path("/proc/uptime").read_text().split()[0])  # read, for what a library says may be faked
    except (OSError, ValueError, IndexError):
        return _PROCESS, time.perf_counter()
