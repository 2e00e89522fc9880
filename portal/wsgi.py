"""The WSGI entry: the fast door for what client programs ask all day, and Django for the rest.

The fast door carries a request to the same gate as Django's view does, without Django in between: no rule stands here.
Nothing is started unless the database guards stand.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

django = get_wsgi_application()

import structlog  # noqa: E402
from django.utils import timezone  # noqa: E402  needs the apps loaded

from licensing import gate, nonces  # noqa: E402
from licensing.api import door  # noqa: E402
from portal import checks  # noqa: E402

HOT: dict[tuple[str, str], Callable[..., gate.Answer]] = {("POST", "/api/v1/validate"): gate.validate}
_REASONS = {200: "200 OK"}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a hot call by the gate itself, hand everything else to Django."""
    act = HOT.get((environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")))
    if act is None or environ.get("SCRIPT_NAME"):
        return django(environ, start_response)
    answer = _answered(environ, act)
    start_response(_REASONS.get(answer.status) or f"{answer.status} -", list(answer.headers.items()))
    return [answer.body]


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


checks.refuse_to_start_unguarded()
nonces.prepare()
