"""What all our DRF views share: strict bodies, the caller's tenant, repeated requests."""

from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpResponse
from django.utils import timezone
from rest_framework import serializers, viewsets
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from licensing import decisions, gate, idempotency
from licensing.api.door import plain_request
from licensing.audit import Actor
from licensing.credentials import Caller
from licensing.errors import Refused
from licensing.models import License


class StrictSerializer(serializers.Serializer[Any]):
    """A serializer that refuses what it does not know, and what may only be read."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            writable = {name for name, field in self.fields.items() if not field.read_only}
            unknown = sorted(set(map(str, data)) - writable)
            if unknown:
                raise serializers.ValidationError(
                    {
                        name: serializers.ErrorDetail("There is no such field to set.", code="unknown_field")
                        for name in unknown
                    }
                )
        return super().to_internal_value(data)


class ApiViewSet(viewsets.GenericViewSet[Any]):
    """The base of our views. `tenant` is the path from a row to the customer it belongs to, empty for none."""

    lookup_value_converter = "uuid"
    about: UUID | None = None
    read_scope = ""
    write_scope = ""
    tenant = ""

    @property
    def caller(self) -> Caller:
        return self.request.user  # type: ignore[return-value]

    @property
    def by(self) -> Actor:
        return self.caller.actor

    def get_queryset(self) -> QuerySet[Any]:
        """Return the rows the caller may know of; another customer's are as if they were not there."""
        rows = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return rows.none()
        if self.tenant and self.caller.customer_id is not None:
            rows = rows.filter(**{self.tenant: self.caller.customer_id})
        return rows

    def get_object(self) -> Any:
        """Return the row the address names, and note which license the call is about."""
        row = super().get_object()
        self.about = row.pk if isinstance(row, License) else getattr(row, "license_id", None)
        return row

    def body(self, serializer_class: type[serializers.Serializer[Any]] | None = None, **options: Any) -> dict[str, Any]:
        """Return the checked body. Raises DRF's `ValidationError`."""
        kind = serializer_class or self.get_serializer_class()
        serializer = kind(data=self.request.data, context=self.get_serializer_context(), **options)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def shown(self, row: Any, *, status: int = 200, **more: Any) -> Response:
        """Return a row as an answer."""
        data = self.get_serializer_class()(row, context=self.get_serializer_context()).data
        return Response({**data, **more}, status=status)

    def list(self, request: Request) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        kind = self.get_serializer_class()
        return self.get_paginated_response(kind(page, many=True, context=self.get_serializer_context()).data)

    def retrieve(self, request: Request, pk: Any) -> Response:
        return self.shown(self.get_object())

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "at": getattr(self, "at", None) or timezone.now()}

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.at = timezone.now()
        super().initial(request, *args, **kwargs)

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, Refused):
            decisions.remember(
                request_id=self.caller.request_id,
                at=self.at,
                license_id=self.about or self.caller.license_id,
                caller=f"{'credential' if self.caller.kind == 'B' else 'license'}:{self.caller.id}",
                code=exc.code,
                looked_at=(f"{self.request.method} {self.request.path}",),
            )
        return super().handle_exception(exc)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        allowed = getattr(getattr(request, "_request", request), "allowed", None)
        if allowed is not None:
            for name, value in gate.rate_headers(allowed).items():
                response.headers.setdefault(name, value)
        return super().finalize_response(request, response, *args, **kwargs)


Handler = Callable[..., Response]


def once(handler: Handler) -> Handler:
    """Make a POST handler heed `Idempotency-Key`: the same key and body get the stored answer."""

    @wraps(handler)
    def answer(view: ApiViewSet, request: Request, *args: Any, **kwargs: Any) -> Any:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return handler(view, request, *args, **kwargs)

        def act() -> tuple[int, bytes]:
            try:
                response: Any = handler(view, request, *args, **kwargs)
            except Exception as error:  # what has no answer of its own is raised again by DRF
                response = view.handle_exception(error)
                return response.status_code, response.content
            return response.status_code, JSONRenderer().render(response.data)

        plain = plain_request(request._request)
        stored = idempotency.once(
            principal=f"{view.caller.kind}:{view.caller.id}",
            key=key,
            request=f"{plain.method} {request._request.get_full_path()}\n".encode() + plain.body,
            at=view.at,
            act=act,
        )
        if stored.status >= 400:
            return _as_is(stored, "application/problem+json")
        response = _as_is(stored, "application/json")
        if stored.replayed:
            response["Idempotent-Replayed"] = "true"
        return response

    return answer


def _as_is(stored: idempotency.Answer, content_type: str) -> Any:
    return HttpResponse(stored.body, status=stored.status, content_type=content_type)
