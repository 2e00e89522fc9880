"""Posting to addresses that others chose: to the public internet only, in bounded time, taking in bounded bytes.

The name is resolved once, every address it has must be public, and the connection goes to one of those very
addresses: a name that answers otherwise a second time gains nothing. Redirects are answers like any other, never
followed; no proxy of the environment is used. It knows nothing of webhooks.

Source: OWASP SSRF prevention; threat T19.
"""

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from licensing.errors import Invalid

LONGEST_URL = 500
MOST_BYTES = 64 * 1024  # of an answer, with its head; what comes after that is not read
BODY_SECONDS = 1.0  # for the start of an answer's body, which only people read
SECONDS = 10.0  # for everything: name, connection, TLS, sending, the answer's head

# Addresses that `ipaddress` calls global and that lead, or may lead, somewhere inside.
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in ("::/96", "64:ff9b:1::/48", "fec0::/10", "2001::/32", "5f00::/16", "192.88.99.0/24", "168.63.129.16/32")
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(Exception):
    """The address is not one we connect to."""


class Unanswered(Exception):
    """No answer came: no name, no connection, no TLS, or none in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the first bytes of the body, and how long it all took."""

    status: int
    body: bytes
    retry_after: str
    seconds: float


def check(url: str) -> str:
    """Return the address as it is kept.

    Raises:
        Invalid: it is no https address of the public internet; what it resolves to is looked at when it is used.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Invalid("That is no web address.", pointer="/url") from None
    if len(url) > LONGEST_URL or not url.isascii() or any(ord(each) <= 32 or each == "\\" for each in url):
        raise Invalid(f"An address has at most {LONGEST_URL} characters, all of them ASCII.", pointer="/url")
    if parts.scheme != "https" and not (parts.scheme == "http" and not settings.PRODUCTION):
        raise Invalid("The address begins with https://.", pointer="/url")
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.fragment or port == 0:
        raise Invalid("Give scheme, host and path; no user, no password, no fragment.", pointer="/url")
    try:
        literal = ipaddress.ip_address(parts.hostname)
    except ValueError:
        literal = None
    if literal is not None and not acceptable(parts.hostname):
        raise Invalid("This is no address of the public internet.", pointer="/url")
    return url


def acceptable(address: str) -> bool:
    """Return whether we connect to this address: a public one, or where the settings say so our own machine."""
    try:
        found: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found.version == 6:
        embedded = found.ipv4_mapped or found.sixtofour
        if embedded is None and found in _NAT64:
            embedded = ipaddress.ip_address(int(found) & 0xFFFF_FFFF)
        if embedded is not None:
            return acceptable(str(embedded))
    if found.is_loopback:
        return bool(settings.WEBHOOKS_TO_LOOPBACK)
    if any(found.version == network.version and found in network for network in _NOT_PUBLIC):
        return False
    return bool(found.is_global) and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def post(
    *, url: str, body: bytes, headers: Mapping[str, str], seconds: float = SECONDS, most_bytes: int = MOST_BYTES
) -> Answer:
    """Post `body`, and return what came back.

    Raises:
        AddressRefused: the address is not one we connect to, or its name resolves to one that is not.
        Unanswered: there was no answer in time.
    """
    begun = time.monotonic()
    until = begun + seconds
    try:
        url = check(url)
    except Invalid as error:
        raise AddressRefused(error.detail) from None
    parts = urlsplit(url)
    assert parts.hostname is not None
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        family, address = _resolve(parts.hostname, port, until)
        with socket.socket(family, socket.SOCK_STREAM) as plain:
            plain.settimeout(_left(until))
            plain.connect(address)
            if not secure:
                return _exchange(plain, parts, body, headers, begun, until, most_bytes)
            plain.settimeout(_left(until))
            with ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) as wrapped:
                return _exchange(wrapped, parts, body, headers, begun, until, most_bytes)
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(f"{type(error).__name__}: {error}"[:200]) from error


def _resolve(host: str, port: int, until: float) -> tuple[socket.AddressFamily, Any]:
    """Return the one address to connect to, every address of the name having been looked at."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    # A resolver takes its own time; the thread is left to it when that is more than ours.
    asking = threading.Thread(target=ask, name="resolve", daemon=True)
    asking.start()
    asking.join(_left(until))
    if not found:
        raise TimeoutError("The name was not resolved in time.")
    if isinstance(found[0], Exception):
        raise Unanswered(f"The name cannot be resolved: {found[0]}"[:200])
    for *_, address in found[0]:
        if not acceptable(str(address[0])):
            raise AddressRefused("The name leads to an address that is not of the public internet.")
    family, _, _, _, address = found[0][0]
    return family, address


def _exchange(
    connected: socket.socket,
    parts: Any,
    body: bytes,
    headers: Mapping[str, str],
    begun: float,
    until: float,
    most_bytes: int,
) -> Answer:
    host = parts.netloc
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""])
    connected.settimeout(_left(until))
    connected.sendall(head.encode("ascii") + body)
    # Never read from another way than by `_Bounded`, which keeps to the time and the bytes.
    bounded = _Bounded(connected, until, most_bytes)
    response = http.client.HTTPResponse(_Readable(bounded), method="POST")  # type: ignore[arg-type]
    response.begin()
    bounded.until = min(until, time.monotonic() + BODY_SECONDS)
    try:
        start = response.read1(1024)
    except (OSError, http.client.HTTPException):  # an answer is its status: a body that does not come changes nothing
        start = b""
    return Answer(response.status, start, response.headers.get("Retry-After", ""), time.monotonic() - begun)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("It took too long.")
    return left


class _Bounded(io.RawIOBase):
    """Reads from a socket until a point in time, and so many bytes: a byte a second ends as soon as silence does."""

    def __init__(self, connected: socket.socket, until: float, most_bytes: int) -> None:
        self._connected, self.until, self._most = connected, until, most_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._most <= 0:
            raise OSError("The answer is too long.")
        self._connected.settimeout(_left(self.until))
        count = self._connected.recv_into(buffer, min(len(buffer), self._most))
        self._most -= count
        return count


class _Readable:
    """What `HTTPResponse` takes for a socket."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._raw, 1024)
