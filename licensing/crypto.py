"""The key ring: seal, digest, sign. The only importer of `cryptography` and `nacl`.

A ring holds versioned keys for three purposes, each key with an id (`kid`) that travels with what it made:

- `seal`: AES-256-GCM, bound to the place of the value (table, row, field), so that a ciphertext moved to
  another row does not open;
- `digest`: HMAC-SHA-256, to find a secret without storing it;
- `sign`: Ed25519, for statements anyone may verify with the public half.

States, in their order: `pending` (known everywhere, not yet used), `primary` (makes new values; one per purpose),
`active` (still opens, finds and verifies), `disabled` (does nothing, may be enabled again), `destroyed` (its material
is gone). A ring may lack a purpose: then only what needs that purpose fails. Source: ADRs 0005 and 0011.

Where a ring comes from is a `Provider`'s to say, and what its keys do a `Key`'s: the ones here hold their material in
this process, one of a key management service would ask it.

It does not decide what is sealed or when, and keeps no key in the database.
"""

import base64
import ctypes
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import nacl._sodium
import nacl.bindings as sodium
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.utils.module_loading import import_string

from licensing.errors import LicensingError

# By libsodium itself: PyNaCl lets other threads run meanwhile, and where a worker has one core (ADR 0016) handing the
# interpreter over and back costs as much as a signature.
_libsodium = ctypes.PyDLL(nacl._sodium.__file__)
_sign, _verify = _libsodium.crypto_sign_detached, _libsodium.crypto_sign_verify_detached
_sign.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_char_p)
_verify.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_char_p)

Purpose = Literal["seal", "digest", "sign"]
PURPOSES: tuple[Purpose, ...] = ("seal", "digest", "sign")
STATES = ("pending", "primary", "active", "disabled", "destroyed")
MENDS = {
    "disabled": "It is disabled. If it must be used again, run: manage.py keyring enable {kid}",
    "destroyed": "It was destroyed. What it made is lost, unless a backup of the ring still has it.",
}


class KeyRingError(LicensingError):
    """The key ring is missing, malformed, or lacks a key that is needed."""

    code = "key_ring"


class KeyRingIncomplete(KeyRingError):
    """The key ring lacks a key that this installation works with. Nothing is changed until it is restored."""


class NotAuthentic(LicensingError):
    """A sealed value or signature does not belong where it was found, or was altered."""

    code = "not_authentic"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value belongs: it opens nowhere else."""

    table: str
    row: str
    field: str

    def bound(self, kid: str) -> bytes:
        """Return the associated data: every part with its length, so that no two places read alike."""
        return b"".join(
            len(part).to_bytes(2, "big") + part
            for part in (value.encode() for value in ("v1", self.table, self.row, self.field, kid))
        )


class Key(Protocol):
    """What a key of a ring can do; of which of these depends on its purpose."""

    @property
    def kid(self) -> str: ...
    @property
    def purpose(self) -> Purpose: ...
    @property
    def state(self) -> str: ...
    @property
    def created_at(self) -> str: ...

    def encrypt(self, nonce: bytes, value: bytes, bound: bytes) -> bytes:
        """Return the AES-256-GCM ciphertext."""

    def decrypt(self, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
        """Return what was encrypted. Raises `NotAuthentic`."""

    def mac(self, message: bytes) -> bytes:
        """Return the HMAC-SHA-256."""

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature."""

    def public_bytes(self) -> bytes:
        """Return the Ed25519 public key."""


@dataclass(frozen=True)
class RingKey:
    """One key of the ring, with its material; that never shows in a repr."""

    kid: str
    purpose: Purpose
    state: str
    created_at: str
    material: bytes = field(repr=False)
    changed_at: str = ""

    @cached_property
    def aead(self) -> AESGCM:
        return AESGCM(self.material)

    @cached_property
    def _pair(self) -> tuple[bytes, bytes]:
        """The Ed25519 public key and the secret one as libsodium takes it, which signs and verifies in half the time
        (ADR 0015)."""
        public, secret = sodium.crypto_sign_seed_keypair(self.material)
        return public, secret

    def encrypt(self, nonce: bytes, value: bytes, bound: bytes) -> bytes:
        return self.aead.encrypt(nonce, value, bound)

    def decrypt(self, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
        try:
            return self.aead.decrypt(nonce, sealed, bound)
        except (InvalidTag, ValueError):  # ValueError: a nonce of impossible length
            raise NotAuthentic("A sealed value does not belong where it was found.") from None

    def mac(self, message: bytes) -> bytes:
        return hmac.digest(self.material, message, hashlib.sha256)

    def sign(self, message: bytes) -> bytes:
        signature = ctypes.create_string_buffer(64)
        _sign(signature, None, message, len(message), self._pair[1])
        return signature.raw

    def public_bytes(self) -> bytes:
        return self._pair[0]


class KeyRing:
    """The keys of this installation. Immutable: a changed ring is a new object."""

    def __init__(self, keys: Iterable[Any]) -> None:
        self.keys: tuple[Any, ...] = tuple(keys)  # each is a `Key`
        self._by_id = {key.kid: key for key in self.keys}
        if len(self._by_id) != len(self.keys):
            raise KeyRingError("The key ring names one key id twice. Restore it from a backup.")
        self._primary: dict[str, Any] = {}
        self._usable: dict[str, list[Any]] = {}
        for purpose in PURPOSES:
            primaries = [key for key in self.keys if key.purpose == purpose and key.state == "primary"]
            if len(primaries) > 1:
                raise KeyRingError(
                    f"The key ring has {len(primaries)} primary keys for '{purpose}'. Restore it from a backup."
                )
            if primaries:
                self._primary[purpose] = primaries[0]
            self._usable[purpose] = self._in_order(purpose)

    def key(self, kid: str, purpose: Purpose) -> Any:
        """Return a `Key` by its id. Raises `KeyRingError` naming the id when the ring lacks it or may not use it."""
        key = self._by_id.get(kid)
        if key is None or key.purpose != purpose:
            raise KeyRingError(f"The key ring lacks the key '{kid}' ({purpose}). Restore it from a backup.")
        if key.state in MENDS:
            raise KeyRingError(f"The key '{kid}' ({purpose}) cannot be used. {MENDS[key.state].format(kid=kid)}")
        return key

    def primary(self, purpose: Purpose) -> Any:
        """Return the `Key` that makes new values. Raises `KeyRingError` where the ring has none."""
        found = self._primary.get(purpose)
        if found is None:
            raise KeyRingError(
                f"The key ring has no primary key for '{purpose}'. Restore it from a backup (manage.py keyring "
                f"restore), or run: manage.py keyring promote KID"
            )
        return found

    def usable(self, purpose: Purpose) -> list[Any]:
        """Return the keys that may open, find or verify: the primary first, then the newest."""
        return self._usable[purpose]

    def _in_order(self, purpose: Purpose) -> list[Any]:
        keys = [key for key in self.keys if key.purpose == purpose and key.state not in MENDS]
        return sorted(keys, key=lambda key: (key.state == "primary", key.created_at), reverse=True)

    def dump(self) -> str:
        """Return the ring as JSON, with its key material."""
        rows = [
            {
                "kid": key.kid,
                "purpose": key.purpose,
                "state": key.state,
                "created_at": key.created_at,
                **({"changed_at": key.changed_at} if key.changed_at else {}),
                "material": base64.b64encode(key.material).decode(),
            }
            for key in self.keys
        ]
        return json.dumps({"version": 1, "keys": rows}, indent=1)

    @classmethod
    def parse(cls, text: str) -> "KeyRing":
        """Return the ring written in `text`. Raises `KeyRingError` when it is not one."""
        try:
            document = json.loads(text)
            keys = [
                RingKey(
                    kid=str(row["kid"]),
                    purpose=row["purpose"],
                    state=row["state"],
                    created_at=str(row["created_at"]),
                    material=base64.b64decode(row["material"], validate=True),
                    changed_at=str(row.get("changed_at", "")),
                )
                for row in document["keys"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise KeyRingError(
                f"The key ring cannot be read ({type(error).__name__}). Restore it from a backup."
            ) from None
        if not keys:
            raise KeyRingError("The key ring is empty. Restore it from a backup: manage.py keyring restore")
        for key in keys:
            # A kid travels inside sealed values, between dots, and in columns of 32 characters.
            if (
                not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", key.kid)
                or key.purpose not in PURPOSES
                or key.state not in STATES
                or len(key.material) != (0 if key.state == "destroyed" else 32)
            ):
                raise KeyRingError(f"The key ring's key '{key.kid}' is malformed. Restore it from a backup.")
        return cls(keys)

    @classmethod
    def generate(cls) -> "KeyRing":
        """Return a new ring with one primary key per purpose."""
        return cls(make_key(purpose, state="primary") for purpose in PURPOSES)


def make_key(purpose: Purpose, *, state: str = "pending") -> RingKey:
    """Return a new random key."""
    stamp = datetime.now(UTC)
    kid = f"{purpose}-{stamp:%Y%m%d}-{secrets.token_hex(4)}"
    return RingKey(kid, purpose, state, stamp.isoformat(), secrets.token_bytes(32))


_lock = threading.Lock()
_loaded: KeyRing | None = None


def ring() -> KeyRing:
    """Return this installation's ring, read once per process.

    Raises:
        KeyRingError: the ring is missing or malformed; production never makes one by itself.
    """
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = provider().load()
    return _loaded


def forget() -> None:
    """Read the ring anew at its next use."""
    global _loaded
    _loaded = None


def use(fresh: KeyRing) -> None:
    """Use this ring from now on: what a process does that has read a changed one."""
    global _loaded
    _loaded = fresh


class Provider(Protocol):
    """Where a ring comes from."""

    def load(self) -> KeyRing:
        """Return the ring. Raises `KeyRingError`."""

    def version(self) -> object:
        """Return what is different once the ring has changed, None where that cannot be seen."""


class Environment:
    """The ring as JSON in KEYRING, for a secret store that hands out variables. It never changes under a process."""

    def load(self) -> KeyRing:
        return KeyRing.parse(settings.KEYRING)

    def version(self) -> object:
        return None


class File:
    """The ring in the private file KEYRING_FILE."""

    def load(self) -> KeyRing:
        return _load_file()

    def version(self) -> object:
        try:
            found = os.stat(settings.KEYRING_FILE)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def provider() -> Provider:
    """Return where the ring comes from: the class settings.KEYRING_PROVIDER names, else environment or file."""
    if settings.KEYRING_PROVIDER:
        chosen: Provider = import_string(settings.KEYRING_PROVIDER)()
        return chosen
    return Environment() if settings.KEYRING else File()


def _load_file() -> KeyRing:
    if not settings.KEYRING_FILE:
        raise KeyRingError("No key ring is configured. Set KEYRING_FILE (or KEYRING) to one.")
    path = Path(settings.KEYRING_FILE)
    if not path.exists():
        if not settings.KEYRING_CREATE:
            raise KeyRingError(
                "The file that KEYRING_FILE names does not exist. Restore it from a backup; for a new "
                "installation run: manage.py keyring add --new"
            )
        write(KeyRing.generate(), path, replace=False)
    return KeyRing.parse(path.read_text(errors="replace"))


def write(new: KeyRing, path: Path, *, replace: bool = True) -> None:
    """Write a ring to a private file, whole or not at all; without `replace`, the first writer wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(new.dump())
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            try:
                os.link(draft, path)
            except FileExistsError:
                return
    finally:
        draft.unlink(missing_ok=True)
    forget()


_incomplete = ""


def refuse_writes(why: str) -> None:
    """Have every change refused from now on, for this reason; none ("") lets them go on."""
    global _incomplete
    _incomplete = why


def incomplete() -> str:
    """Return why every change is refused, empty when none is."""
    return _incomplete


def require_whole() -> None:
    """Raise `KeyRingIncomplete` while writes are refused. Every audit entry asks, so every change does."""
    if _incomplete:
        raise KeyRingIncomplete(_incomplete)


def b64(data: bytes) -> str:
    """Return base64url without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """Return the bytes of canonical base64url without padding. Raises `NotAuthentic` for anything else."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise NotAuthentic("That is not base64url.") from None
    if b64(data) != text:
        raise NotAuthentic("That is not canonical base64url.")
    return data


def seal(value: bytes, place: Place) -> str:
    """Return `value` sealed for `place` under the primary key: `v1.<kid>.<nonce>.<ciphertext>`."""
    return seal_under(ring().primary("seal"), value, place)


def seal_under(key: Key, value: bytes, place: Place) -> str:
    """Return `value` sealed for `place` under this very key."""
    nonce = os.urandom(12)
    return f"v1.{key.kid}.{b64(nonce)}.{b64(key.encrypt(nonce, value, place.bound(key.kid)))}"


def unseal(sealed: str, place: Place) -> bytes:
    """Return what was sealed for `place`.

    Raises:
        NotAuthentic: it was altered, or sealed for another place.
        KeyRingError: the ring lacks its key.
    """
    return unseal_under(ring().key(_parts(sealed)[1], "seal"), sealed, place)


def unseal_under(key: Key, sealed: str, place: Place) -> bytes:
    """Return what was sealed for `place` under this very key. Raises `NotAuthentic`."""
    parts = _parts(sealed)
    try:
        return key.decrypt(unb64(parts[2]), unb64(parts[3]), place.bound(key.kid))
    except NotAuthentic:
        raise NotAuthentic(f"A sealed value in {place.table}.{place.field} does not belong there.") from None


def data_key(kid: str, material: bytes) -> Key:
    """Return a key of 32 bytes that is not of the ring, but kept somewhere sealed under one that is."""
    return RingKey(kid, "seal", "primary", "", material)


def _parts(sealed: str) -> list[str]:
    parts = sealed.split(".")
    if len(parts) != 4 or parts[0] != "v1":
        raise NotAuthentic("A sealed value is malformed.")
    return parts


def digest(value: bytes, *, kind: str) -> tuple[str, bytes]:
    """Return the kid and the 32-byte keyed digest of `value`, under the primary key.

    `kind` separates domains: the same value digested as another kind is another digest.
    """
    key = ring().primary("digest")
    return key.kid, _mac(key, value, kind)


def digests(value: bytes, *, kind: str) -> list[bytes]:
    """Return the digest of `value` under every usable key, so that look-ups survive a rotation."""
    return [_mac(key, value, kind) for key in ring().usable("digest")]


def digest_under(kid: str, value: bytes, *, kind: str) -> bytes:
    """Return the digest of `value` under this very key. Raises `KeyRingError` when the ring lacks it."""
    return _mac(ring().key(kid, "digest"), value, kind)


def mac(value: bytes, *, kind: str) -> bytes:
    """Return the 32-byte proof that `value` was said by this installation, under the primary digest key."""
    return _mac(ring().primary("digest"), value, kind)


def _mac(key: Key, value: bytes, kind: str) -> bytes:
    return key.mac(kind.encode() + b"\x00" + value)


def sign(message: bytes) -> tuple[str, bytes]:
    """Return the kid and the Ed25519 signature of `message` under the primary signing key."""
    key = ring().primary("sign")
    return key.kid, key.sign(message)


def verify(message: bytes, signature: bytes, kid: str) -> None:
    """Raise `NotAuthentic` unless `signature` over `message` is by our key `kid`."""
    try:
        public = ring().key(kid, "sign").public_bytes()
    except KeyRingError:
        raise NotAuthentic("The signature does not fit.") from None
    verify_with(public, message, signature)


def public_key(kid: str) -> bytes | None:
    """Return the public half of a signing key in whatever state it is, None once it is destroyed.

    For what was signed while the key was good; `verify` is for what somebody presents now.
    Raises `KeyRingError` when the ring has no such key.
    """
    for key in ring().keys:
        if key.kid == kid and key.purpose == "sign":
            public: bytes | None = None if key.state == "destroyed" else key.public_bytes()
            return public
    raise KeyRingError(f"The key ring lacks the key '{kid}' (sign). Restore it from a backup.")


def jwks() -> dict[str, Any]:
    """Return the public signing keys as a JSON Web Key Set (RFC 7517, RFC 8037)."""
    return {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "use": "sig",
                "alg": "EdDSA",
                "kid": key.kid,
                "x": b64(key.public_bytes()),
            }
            for key in ring().usable("sign")
        ]
    }


def verify_with(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raise `NotAuthentic` unless `signature` over `message` is by this Ed25519 key (32 bytes) of somebody else."""
    # libsodium reads as many bytes as it expects, whatever it is given.
    if len(public_key) != 32 or len(signature) != 64:
        raise NotAuthentic("The signature does not fit.")
    if _verify(signature, message, len(message), public_key) != 0:
        raise NotAuthentic("The signature does not fit.")


def encrypt_to(public_key: bytes, plaintext: bytes, *, typ: str, cty: str) -> str:
    """Return `plaintext` as a compact JWE that only the holder of this X25519 key (32 bytes) opens.

    `ECDH-ES` with `A256GCM`, a new key pair each time.
    Raises `NotAuthentic` for a key of a known weak point. Source: RFC 7518 section 4.6, RFC 8037 section 3.2.
    """
    ephemeral = X25519PrivateKey.generate()
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise NotAuthentic("That is no X25519 key to encrypt to.") from None
    own = b64(ephemeral.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    header = {
        "alg": "ECDH-ES",
        "enc": "A256GCM",
        "epk": {"kty": "OKP", "crv": "X25519", "x": own},
        "typ": typ,
        "cty": cty,
    }
    protected = b64(json.dumps(header, separators=(",", ":")).encode())
    algorithm = b"A256GCM"
    about = len(algorithm).to_bytes(4, "big") + algorithm + bytes(8) + (256).to_bytes(4, "big")
    key = ConcatKDFHash(SHA256(), 32, about).derive(shared)
    nonce = os.urandom(12)
    sealed = AESGCM(key).encrypt(nonce, plaintext, protected.encode())
    return f"{protected}..{b64(nonce)}.{b64(sealed[:-16])}.{b64(sealed[-16:])}"
