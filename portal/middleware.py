"""What every request passes first: its id, the client's address, and for the API a short way of its own.

API requests skip sessions, CSRF and messages (they carry none) and are answered in problem+json and signed
whatever happens. It decides nothing.
"""

from collections.abc import Callable
from functools import lru_cache

import structlog
from django.conf import settings
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.urls import Resolver404, ResolverMatch, resolve

from licensing import gate
from licensing.api.door import (
    Answered,
    broken,
    client_address,
    distrust,
    django_response,
    finished,
    plain_request,
    refusal,
    request_id_of,
    unreadable,
)

__all__ = ["AnswerMiddleware", "answer_api", "client_address"]

API = "/api/v1/"


class AnswerMiddleware:
    """The outermost middleware; see the module."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        distrust(request.META)
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
        answer = refusal(request.META, asked.request_id) or _view_answer(request)
    except (Resolver404, Http404):
        answer = gate.problem_of(404, "not_found", "Not found", "There is nothing here.", asked.request_id)
    except RequestDataTooBig:
        answer = gate.problem(gate.TooLarge(), request_id=asked.request_id)
    except SuspiciousOperation:
        answer = gate.problem_of(400, "malformed", "Bad request", "The request is malformed.", asked.request_id)
    except Exception as error:
        answer = broken(error, asked.request_id)
    return django_response(finished(asked, answer))


def _view_answer(request: HttpRequest) -> gate.Answer:
    if unreadable(request):
        raise SuspiciousOperation("The body ended too early")
    match = _resolved(request.path_info, settings.ROOT_URLCONF)
    request.resolver_match = match
    response = match.func(request, *match.args, **match.kwargs)
    if isinstance(response, Answered):
        return response.answer
    if hasattr(response, "render") and callable(response.render):
        response = response.render()
    return gate.Answer(response.status_code, response.content, {k.lower(): v for k, v in response.items()})


@lru_cache(maxsize=512)
def _resolved(path: str, urlconf: str) -> ResolverMatch:
    return resolve(path, urlconf)
