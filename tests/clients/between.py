"""Whoever stands between a client and its server: passes on, records, bends, answers itself, or lets nothing by."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Asked:
    """A request as it came; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Said:
    """An answer as it goes; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Between:
    """An HTTP server of its own on the loopback. `answer` stands in for passing on; None from it is no answer."""

    behind: str
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    answer: Callable[[Asked], Said | None] | None = None

    def pass_on(self, asked: Asked) -> Said:
        headers = {name: value for name, value in asked.headers.items() if name not in _HOP | {"host"}}
        found = httpx.request(asked.method, self.behind + asked.path, headers=headers, content=asked.body, timeout=30)
        kept = {name.lower(): value for name, value in found.headers.items() if name.lower() not in _HOP}
        return Said(found.status_code, kept, found.content)

    def nobody(self, asked: Asked) -> Said | None:
        return None


@contextmanager
def between(behind: str) -> Iterator[Between]:
    found = Between(behind)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            found.asked.append(asked)
            said = (found.answer or found.pass_on)(asked)
            if said is None:
                self.close_connection = True
                return
            found.said.append(said)
            self.send_response_only(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        do_GET = do_POST = do_DELETE = _do

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jws(key: Ed25519PrivateKey, kid: str, typ: str, claims: dict[str, Any]) -> str:
    """Return a compact JWS as a server makes one."""
    header = {"alg": "EdDSA", "kid": kid, "typ": typ}
    message = f"{url64(json.dumps(header).encode())}.{url64(json.dumps(claims).encode())}"
    return f"{message}.{url64(key.sign(message.encode()))}"


def signed(key: Ed25519PrivateKey, kid: str, url: str, asked: Asked, status: int, body: Any) -> Said:
    """Return an answer signed as a server signs one, written from the documentation alone."""
    content = json.dumps(body).encode()
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"
    lines = {
        '"@status"': str(status),
        '"content-digest"': digest,
        '"@method";req': asked.method,
        '"@target-uri";req': url + asked.path,
    } | {f'"{name}";req': asked.headers[name] for name in ("x-licentia-nonce", "signature") if name in asked.headers}
    parameters = f'({" ".join(lines)});created={int(time.time())};keyid="{kid}";alg="ed25519"'
    base = "".join(f"{name}: {value}\n" for name, value in lines.items()) + f'"@signature-params": {parameters}'
    return Said(
        status,
        {
            "content-type": "application/json",
            "content-digest": digest,
            "signature-input": f"licentia={parameters}",
            "signature": f"licentia=:{base64.b64encode(key.sign(base.encode())).decode()}:",
        },
        content,
    )
