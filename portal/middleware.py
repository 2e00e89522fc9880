"""What every request passes first: its id, the client's address, and for the API a short way of its own.

API requests skip sessions, CSRF and messages (they carry none) and are answered in problem+json and signed
whatever happens. It decides nothing.
"""

from collections.abc import Callable
from typing import Any

import structlog
from django.conf import settings
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.urls import Resolver404, resolve

from licensing import gate
from licensing.api.door import client_address, distrust, django_response, plain_request, request_id_of, unreadable

__all__ = ["AnswerMiddleware", "answer_api", "client_address"]

log = structlog.get_logger(__name__)

API = "/api/v1/"


class PlainHttp(Exception):
    """An API request over plain http, where production speaks https only."""


class NoLength(Exception):
    """A body whose length is not said beforehand."""


class AnswerMiddleware:
    """The outermost middleware; see the module."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        distrust(request)
        request_id = request_id_of(request)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if f"{request.path_info}/".startswith(API):
            return answer_api(request)
        response = self.get_response(request)
        response["X-Request-Id"] = request_id
        return response


def answer_api(request: HttpRequest) -> HttpResponse:
    """Answer an API request: the view's answer or a problem, with its id, never cached, signed when asked."""
    asked = plain_request(request)
    try:
        response = _view_answer(request)
        answer = gate.Answer(response.status_code, response.content, {k.lower(): v for k, v in response.items()})
    except (Resolver404, Http404):
        answer = gate.problem_of(404, "not_found", "Not found", "There is nothing here.", asked.request_id)
    except RequestDataTooBig:
        answer = gate.problem(gate.TooLarge(), request_id=asked.request_id)
    except NoLength:
        detail = "Send the body with a Content-Length, not chunked."
        answer = gate.problem_of(411, "length_required", "Length required", detail, asked.request_id)
    except PlainHttp:
        answer = gate.problem_of(400, "https_required", "https required", "Call this API over https.", asked.request_id)
    except SuspiciousOperation:
        answer = gate.problem_of(400, "malformed", "Bad request", "The request is malformed.", asked.request_id)
    except Exception:
        log.exception("api_error", path=request.path_info)
        answer = gate.problem_of(
            500, "internal_error", "Internal error", "Something went wrong here.", asked.request_id
        )
    answer.headers.setdefault("cache-control", "no-store")
    answer.headers["x-request-id"] = asked.request_id
    answer.headers["x-content-type-options"] = "nosniff"
    if settings.PRODUCTION:
        answer.headers["strict-transport-security"] = f"max-age={settings.SECURE_HSTS_SECONDS}; includeSubDomains"
    answer = gate.sign(asked, answer)
    answer.headers["content-length"] = str(len(answer.body))
    return django_response(answer)


def _view_answer(request: HttpRequest) -> Any:
    if settings.PRODUCTION and not request.is_secure():
        # Not redirected: the key has been on the wire already, and the client must learn of it.
        raise PlainHttp
    request.get_host()
    if request.META.get("HTTP_TRANSFER_ENCODING") and not request.META.get("CONTENT_LENGTH"):
        raise NoLength  # WSGI hands over no such body: taken for empty, a question would lose its conditions
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not length.isascii() or not length.isdigit():
        raise SuspiciousOperation("Content-Length is no number")
    if len(length) > 12 or int(length) > gate.LONGEST_BODY:
        raise RequestDataTooBig
    if unreadable(request):
        raise SuspiciousOperation("The body ended too early")
    match = resolve(request.path_info)
    request.resolver_match = match
    response = match.func(request, *match.args, **match.kwargs)
    if hasattr(response, "render") and callable(response.render):
        response = response.render()
    return response
