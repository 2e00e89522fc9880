"""From Django's request to the gate's plain values, and back: who is at the door, and nothing else."""

import ipaddress
import re
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, UnreadablePostError

from licensing import gate
from licensing.ids import uuid7

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def plain_request(request: HttpRequest) -> gate.Request:
    """Return the request in the gate's plain values; the target is built from PUBLIC_URL, never from Host."""
    found: gate.Request | None = getattr(request, "_plain", None)
    if found is None:
        try:
            body = request.body if request.method not in ("GET", "HEAD") else b""
        except (RequestDataTooBig, UnreadablePostError, ValueError):  # ValueError: a length that is no number
            # Half a body must never be taken for an empty one: see `unreadable`.
            body, request._unreadable = b"", True  # type: ignore[attr-defined]
        found = gate.Request(
            method=request.method or "",
            target=settings.PUBLIC_URL + request.get_full_path(),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            address=client_address(request),
            request_id=request_id_of(request),
        )
        request._plain = found  # type: ignore[attr-defined]
    return found


def unreadable(request: HttpRequest) -> bool:
    """Return whether the request's body could not be read, so that nothing may be done for it."""
    plain_request(request)
    return getattr(request, "_unreadable", False)


def django_response(answer: gate.Answer) -> HttpResponse:
    """Return the gate's answer as Django's."""
    return HttpResponse(answer.body, status=answer.status, headers=answer.headers)


def request_id_of(request: HttpRequest) -> str:
    """Return the request's id: the one a trusted proxy gave it, or a new one."""
    known = getattr(request, "request_id", None)
    if known is None:
        given = request.headers.get("X-Request-Id", "")
        trusted = _trusted(request.META.get("REMOTE_ADDR", "")) and _REQUEST_ID.fullmatch(given)
        known = request.request_id = given if trusted else str(uuid7())  # type: ignore[attr-defined]
    return str(known)


def client_address(request: HttpRequest, *_: Any) -> str | None:
    """Return the client's address: the nearest untrusted hop; only trusted proxies may name another."""
    address = request.META.get("REMOTE_ADDR") or None
    if not _trusted(address or ""):
        return address
    for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        try:
            address = str(ipaddress.ip_address(hop.strip()))
        except ValueError:
            return address
        if not _trusted(address):
            return address
    return address


def distrust(request: HttpRequest) -> None:
    """Take out what only a trusted proxy may say, when it is not one who says it: that a request came by https."""
    if not _trusted(request.META.get("REMOTE_ADDR", "")):
        request.META.pop("HTTP_X_FORWARDED_PROTO", None)


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
    for text in settings.TRUSTED_PROXIES:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue
    return networks
