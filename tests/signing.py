"""A machine that signs its requests, written from RFC 9421 and the contract alone."""

import base64
import hashlib
import json
import secrets
import time
from itertools import count
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings

COVERED = ("@method", "@target-uri", "x-licentia-counter")


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """Holds a key and a counter; `keyid` is the key's thumbprint until the machine is activated."""

    def __init__(self, keyid: str = "") -> None:
        self.key = Ed25519PrivateKey.generate()
        self.public = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": url64(self.public)}
        members = json.dumps(dict(sorted(self.jwk.items())), separators=(",", ":")).encode()
        self.thumbprint = url64(hashlib.sha256(members).digest())
        self.keyid = keyid or self.thumbprint
        self.counters = count(1)

    def headers(self, method: str, path: str, body: bytes = b"", **instead: Any) -> dict[str, str]:
        """Return the headers that sign this request. `instead` bends a part of it."""
        covered = instead.get("covered", (*COVERED, "content-digest") if body else COVERED)
        algorithm = instead.get("hash", "sha-256")
        hashed = hashlib.new(algorithm.replace("-", ""), body).digest()
        headers = {"x-licentia-counter": str(instead.get("counter", 0) or next(self.counters))}
        if body:
            headers["content-digest"] = f"{algorithm}=:{base64.b64encode(hashed).decode()}:"
        headers |= instead.get("more", {})
        parameters = {
            "created": instead.get("created", int(time.time())),
            "keyid": instead.get("keyid", self.keyid),
            "nonce": instead.get("nonce", secrets.token_urlsafe(18)),
            "alg": "ed25519",
        } | instead.get("parameters", {})
        written = "".join(
            f";{name}={value}" if isinstance(value, int) else f';{name}="{value}"'
            for name, value in parameters.items()
            if value is not None
        )
        names = " ".join(f'"{name}"' for name in covered)
        values = {"@method": method, "@target-uri": settings.PUBLIC_URL + path, **headers}
        lines = [f'"{name}": {values.get(name, "")}' for name in covered]
        base = "\n".join([*lines, f'"@signature-params": ({names}){written}'])
        made = base64.b64encode(self.key.sign(base.encode())).decode()
        label = instead.get("label", "lic")
        return {**headers, "signature-input": f"{label}=({names}){written}", "signature": f"{label}=:{made}:"}


def for_other_libraries(key: Any) -> Ed25519PrivateKey:
    """Return a signing key of a ring as other libraries take it."""
    return Ed25519PrivateKey.from_private_bytes(key.material)
