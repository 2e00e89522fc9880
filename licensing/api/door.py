"""From a WSGI request to the gate's plain values, and back: who is at the door, and nothing else.

There are two doors to one gate, Django's views and the callable in front of Django (`portal.wsgi`). Both read a
request's environment by these functions, so that neither sees another address, id, target or header than the other.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import structlog
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError, connection
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.http.request import split_domain_port, validate_host
from django.http.response import HttpResponseBase

from licensing import anomalies, gate, installation
from licensing.errors import LicensingError, Unavailable
from licensing.ids import uuid7_text

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
Environ = dict[str, Any]


class Headers(Mapping[str, str]):
    """The headers of a WSGI request, by their names in lower case."""

    def __init__(self, environ: Environ) -> None:
        self._environ = environ

    def __getitem__(self, name: str) -> str:
        value: str = self._environ[_variable(name)]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self._environ.get(_variable(name), default)

    def __iter__(self) -> Iterator[str]:
        for name in self._environ:
            if name.startswith("HTTP_"):
                yield name[5:].replace("_", "-").lower()
            elif name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                yield name.replace("_", "-").lower()

    def __len__(self) -> int:
        return sum(1 for _ in self)


@lru_cache(maxsize=256)
def _variable(name: str) -> str:
    upper = name.upper().replace("-", "_")
    return upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{upper}"


def plain_request(request: HttpRequest) -> gate.Request:
    """Return the request in the gate's plain values; the target is built from PUBLIC_URL, never from Host."""
    found: gate.Request | None = getattr(request, "_plain", None)
    if found is None:
        try:
            body = request.body if request.method not in ("GET", "HEAD") else b""
        except (RequestDataTooBig, UnreadablePostError, ValueError):  # ValueError: a length that is no number
            # Half a body must never be taken for an empty one: see `unreadable`.
            body, request._unreadable = b"", True  # type: ignore[attr-defined]
        found = plain(request.META, method=request.method or "", path=request.get_full_path(), body=body)
        request._plain = found  # type: ignore[attr-defined]
    return found


def plain(environ: Environ, *, method: str, path: str, body: bytes) -> gate.Request:
    """Return a WSGI request in the gate's plain values."""
    return gate.Request(
        method=method,
        target=installation.here.public_url + path,
        headers=Headers(environ),
        body=body,
        address=address_of(environ),
        request_id=id_of(environ),
    )


def unreadable(request: HttpRequest) -> bool:
    """Return whether the request's body could not be read, so that nothing may be done for it."""
    plain_request(request)
    return getattr(request, "_unreadable", False)


class Answered(HttpResponseBase):
    """The gate's answer on its way through a view: made into a real response once, when it is finished."""

    def __init__(self, answer: gate.Answer) -> None:  # without a response's own headers: this one is never sent
        self.answer = answer
        self.headers = {}  # type: ignore[assignment]


def django_response(answer: gate.Answer) -> HttpResponse:
    """Return the gate's answer as Django's."""
    return HttpResponse(answer.body, status=answer.status, headers=answer.headers)


def refusal(environ: Environ, request_id: str) -> gate.Answer | None:
    """Return the problem of a request that is not looked at any further, None for one that may come in."""
    if installation.here.production and not _secure(environ):
        # Not redirected: the key has been on the wire already, and the client must learn of it.
        return gate.problem_of(400, "https_required", "https required", "Call this API over https.", request_id)
    if not _host_allowed(environ.get("HTTP_HOST") or environ.get("SERVER_NAME") or "", installation.here.allowed_hosts):
        return gate.problem_of(400, "malformed", "Bad request", "The request is malformed.", request_id)
    length = environ.get("CONTENT_LENGTH") or ""
    if not length and environ.get("HTTP_TRANSFER_ENCODING"):
        # WSGI hands over no such body: taken for empty, a question would lose its conditions.
        detail = "Send the body with a Content-Length, not chunked."
        return gate.problem_of(411, "length_required", "Length required", detail, request_id)
    if length and (not length.isascii() or not length.isdigit()):
        return gate.problem_of(400, "malformed", "Bad request", "The request is malformed.", request_id)
    if length and (len(length) > 12 or int(length) > gate.LONGEST_BODY):
        return gate.problem(gate.TooLarge(), request_id=request_id)
    return None


def _secure(environ: Environ) -> bool:
    if environ.get("wsgi.url_scheme") == "https":
        return True
    return bool(installation.here.trusted_proxies) and environ.get("HTTP_X_FORWARDED_PROTO", "").strip() == "https"


@lru_cache(maxsize=64)
def _host_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    domain, _ = split_domain_port(host)
    return bool(domain) and validate_host(domain, allowed)


def finished(asked: gate.Request, answer: gate.Answer) -> gate.Answer:
    """Return an answer as it leaves, whoever made it: with its id, never cached, signed when asked."""
    headers = answer.headers
    headers.setdefault("cache-control", "no-store")
    headers["x-request-id"] = asked.request_id
    headers["x-content-type-options"] = "nosniff"
    if installation.here.production:
        headers["strict-transport-security"] = f"max-age={installation.here.hsts_seconds}; includeSubDomains"
    answer = gate.sign(asked, answer)
    answer.headers["content-length"] = str(len(answer.body))
    return answer


def broken(error: Exception, request_id: str) -> gate.Answer:
    """Return the answer to a request that something broke under: the database away is said, the rest is not."""
    if isinstance(error, LicensingError):
        return gate.problem(error, request_id=request_id)
    if isinstance(error, OperationalError | InterfaceError):
        anomalies.service_away(name="database", error=error)
        connection.close()
        return gate.problem(Unavailable("The database is away."), request_id=request_id)
    log.exception("api_error")
    return gate.problem_of(500, "internal_error", "Internal error", "Something went wrong here.", request_id)


def request_id_of(request: HttpRequest) -> str:
    """Return the request's id: the one a trusted proxy gave it, or a new one."""
    return id_of(request.META)


def id_of(environ: Environ) -> str:
    """Return the id of a WSGI request: the one a trusted proxy gave it, or a new one; the same each time."""
    known: str | None = environ.get("licentia.request_id")
    if known is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        trusted = given and _trusted(environ.get("REMOTE_ADDR", "")) and _REQUEST_ID.fullmatch(given)
        known = environ["licentia.request_id"] = given if trusted else uuid7_text()
    return known


def client_address(request: HttpRequest, *_: Any) -> str | None:
    """Return the client's address: the nearest untrusted hop; only trusted proxies may name another."""
    return address_of(request.META)


def address_of(environ: Environ) -> str | None:
    """Return the address a WSGI request comes from: the nearest untrusted hop."""
    address: str | None = environ.get("REMOTE_ADDR") or None
    if not _trusted(address or ""):
        return address
    for hop in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")):
        try:
            address = str(ipaddress.ip_address(hop.strip()))
        except ValueError:
            return address
        if not _trusted(address):
            return address
    return address


def distrust(environ: Environ) -> None:
    """Take out what only a trusted proxy may say, when it is not one who says it: that a request came by https."""
    if "HTTP_X_FORWARDED_PROTO" in environ and not _trusted(environ.get("REMOTE_ADDR", "")):
        del environ["HTTP_X_FORWARDED_PROTO"]


@lru_cache(maxsize=1024)
def _trusted(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found.version == network.version and found in network for network in _proxies())


def _proxies() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Return the networks of trusted proxies; what is no network is trusted by nobody, and refused by the checks."""
    networks = []
    for text in installation.here.trusted_proxies:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue
    return networks
