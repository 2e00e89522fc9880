"""The fast door: hot calls go to the gate without Django in between. No rule stands here; see `licensing.gate`.

Django's own views lead to the same gate, for servers that do without this door.
"""

from collections.abc import Callable, Iterable
from typing import Any

import structlog
from django.utils import timezone

from billing import gate as billing_gate
from licensing import gate
from licensing.api import door

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HOT: dict[tuple[str, str], Callable[..., gate.Answer]] = {
    ("POST", "/api/v1/validate"): gate.validate,
    ("POST", "/api/v1/usage"): billing_gate.usage,
    ("POST", "/api/v1/usage/batch"): billing_gate.usage_batch,
    ("POST", "/api/v1/events"): billing_gate.events,
}
_REASONS = {200: "200 OK", 201: "201 Created"}


def fast_door(behind: Application) -> Application:
    """Return a WSGI application that answers hot calls by the gate itself, and hands everything else on."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        act = HOT.get((environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")))
        if act is None or environ.get("SCRIPT_NAME"):
            return behind(environ, start_response)
        answer = _answered(environ, act)
        start_response(_REASONS.get(answer.status) or f"{answer.status} -", list(answer.headers.items()))
        return [answer.body]

    return application


def _answered(environ: dict[str, Any], act: Callable[..., gate.Answer]) -> gate.Answer:
    door.distrust(environ)
    request_id = door.id_of(environ)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    query = environ.get("QUERY_STRING", "")
    path = environ["PATH_INFO"] + (f"?{query}" if query else "")
    refused = door.refusal(environ, request_id)
    body = b""
    if refused is None:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        try:
            body = environ["wsgi.input"].read(length) if length else b""
        except OSError:
            body = b""
        if len(body) != length:  # half a body must never be taken for a whole one
            refused = gate.problem_of(400, "malformed", "Bad request", "The request is malformed.", request_id)
            body = b""
    asked = door.plain(environ, method=environ["REQUEST_METHOD"], path=path, body=body)
    if refused is not None:
        return door.finished(asked, refused)
    try:
        answer = act(asked, timezone.now())
    except Exception as error:  # whatever broke: the client gets a signed problem
        answer = door.broken(error, request_id)
    return door.finished(asked, answer)
