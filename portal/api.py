"""The API's composition: errors as problems, the readable pages, the public keys."""

import re
from typing import Any

import orjson
from csp.constants import SELF, UNSAFE_INLINE
from csp.decorators import csp_update
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.views.decorators.http import require_safe
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework import exceptions

from licensing import crypto, gate
from licensing.api.base import StrictSerializer
from licensing.api.door import django_response, plain_request, request_id_of
from licensing.errors import LicensingError

_CODES = {
    400: ("malformed", "Bad request"),
    401: ("unauthenticated", "Unauthenticated"),
    403: ("forbidden", "Forbidden"),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "Method not allowed"),
    406: ("not_acceptable", "Not acceptable"),
    415: ("unsupported_media_type", "Unsupported media type"),
}


def problem(error: Exception, context: dict[str, Any]) -> HttpResponseBase | None:
    """Return an error of a DRF view as an RFC 9457 problem; None for what has no answer of its own."""
    request_id = request_id_of(context["request"]._request)
    headers: dict[str, str] = {}
    match error:
        case LicensingError():
            return django_response(gate.problem(error, request_id=request_id))
        case exceptions.ValidationError():
            errors = list(_located(error.detail, ""))
            code, detail = errors[0]["code"], errors[0]["detail"]
            title = "Bad request" if len(errors) == 1 else f"{len(errors)} things are wrong"
            return django_response(gate.problem_of(400, _general(code), title, detail, request_id, errors))
        case exceptions.APIException():
            status = error.status_code
            if isinstance(error, exceptions.MethodNotAllowed):
                headers["allow"] = ", ".join(sorted(context["view"].allowed_methods))
            detail = str(error.detail)
        case Http404() | ObjectDoesNotExist():  # the latter: somebody deleted it between the look and the lock
            status, detail = 404, "There is no such thing."
        case PermissionDenied():
            status, detail = 403, "This caller may not do that."
        case ValidationError():
            status, detail = 400, " ".join(error.messages)
        case _:
            return None
    code, title = _CODES.get(status, ("error", "Error"))
    answer = gate.problem_of(status, code, title, detail, request_id)
    answer.headers |= headers
    return django_response(answer)


def _general(code: str) -> str:
    return "unknown_field" if code == "unknown_field" else "malformed"


def _located(detail: Any, pointer: str) -> Any:
    """Yield each of DRF's nested errors with a JSON pointer to what it is about."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            deeper = "" if name == "non_field_errors" else f"/{str(name).replace('~', '~0').replace('/', '~1')}"
            yield from _located(inner, pointer + deeper)
    elif isinstance(detail, list) and any(isinstance(item, dict | list) for item in detail):
        for position, inner in enumerate(detail):
            if inner:
                yield from _located(inner, f"{pointer}/{position}")
    else:
        for item in detail if isinstance(detail, list) else [detail]:
            yield {"pointer": pointer, "code": getattr(item, "code", None) or "invalid", "detail": str(item)}


@require_safe
def jwks(request: HttpRequest) -> HttpResponse:
    """Return the public keys that answers and tokens are verified with; signed, when the request carries a nonce.

    `?signed_by=` names the keys a program trusts. One of them signs that is still in use: so whoever knows any of our
    keys learns of the others, however many rotations it has slept through.
    """
    asked, keys = plain_request(request), crypto.jwks()
    known = request.GET.get("signed_by", "").split(",")
    kid = next((key["kid"] for key in keys["keys"] if key["kid"] in known), "")
    headers = {
        "content-type": "application/jwk-set+json",
        "cache-control": "no-store" if "x-licentia-nonce" in asked.headers else "public, max-age=300",
        "vary": "x-licentia-nonce",
        "access-control-allow-origin": "*",
    }
    return django_response(gate.sign(asked, gate.Answer(200, orjson.dumps(keys), headers), kid=kid))


docs = csp_update({"style-src": [SELF, UNSAFE_INLINE]})(SpectacularSwaggerSplitView.as_view(url_name="schema"))


def document_common_answers(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """Add to every operation the problems it may answer with, which are the same everywhere."""
    schemas = result["components"].setdefault("schemas", {})
    text = {"type": "string"}
    schemas["Problem"] = {
        "type": "object",
        "description": "RFC 9457 problem details.",
        "required": ["type", "title", "status", "detail", "code", "request_id", "errors"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "code": text,
            "request_id": text,
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pointer", "code", "detail"],
                    "properties": {"pointer": text, "code": text, "detail": text},
                },
            },
        },
    }
    for name, schema in schemas.items():
        if name.endswith("Request"):
            schema["additionalProperties"] = False  # unknown fields are refused
        if schema.get("description") == StrictSerializer.__doc__:
            del schema["description"]  # ours about the class, not about the thing
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in result["paths"].items():
        for method, operation in operations.items():
            statuses = {
                "400": "Bad request",
                "401": "Unauthenticated",
                "403": "Forbidden",
                "429": "Too many requests",
            }
            if "{" in path or method in ("post", "get"):
                statuses["404"] = "Not found"
            if method in ("post", "patch"):
                statuses |= {"413": "Body too large", "415": "Unsupported media type"}
            if method in ("post", "patch", "delete"):
                statuses["409"] = "Refused"
            if method == "post":
                statuses["422"] = "Idempotency-Key used for another request"
            for status, description in statuses.items():
                operation["responses"].setdefault(status, {"description": description, "content": content})
            said = operation.get("description", "").partition("\n")[0].rstrip(".")
            operation.setdefault("summary", said or operation["operationId"].replace("_", " ").capitalize())
            by_key = re.match(r"/api/v1/(validate|activations|entitlements|usage|events)", path)
            operation["security"] = [{"credential": []}, *([{"licenseKey": []}] if by_key else [])]
            operation["responses"] = dict(sorted(operation["responses"].items()))
            operation["operationId"] = re.sub(r"^v1_", "", operation["operationId"])
    return result
