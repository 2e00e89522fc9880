"""The calls for webhook endpoints: each translates, then calls one rule function."""

from typing import Any
from uuid import UUID

from django_filters import rest_framework as rest_filters
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from licensing import deliveries, events, webhooks
from licensing.api.base import ApiViewSet, StrictSerializer, once
from licensing.api.filters import Filters
from licensing.api.serializers import IdField, OptionalReason, Reason, Row, TextField
from licensing.api.views import IDEMPOTENT, _named
from licensing.errors import Missing
from licensing.models import Customer, WebhookDelivery, WebhookEndpoint
from licensing.posting import LONGEST_URL
from licensing.states import EndpointState

_STATES = [(state.value, state.label) for state in EndpointState if state != EndpointState.DELETED]


class WebhookEndpoints(Filters):
    customer = rest_filters.UUIDFilter(field_name="customer_id")
    state = rest_filters.ChoiceFilter(choices=_STATES)

    class Meta:
        model = WebhookEndpoint
        fields: list[str] = []


def _event_types(**options: Any) -> serializers.ListField:
    return serializers.ListField(
        child=serializers.ChoiceField(choices=list(events.TYPES)),
        max_length=len(events.TYPES),
        help_text="Empty: every type.",
        **options,
    )


class Endpoint(Row):
    """Where a server is told what happens."""

    customer = IdField(source="customer_id", required=False, allow_null=True)
    url = TextField(max_length=LONGEST_URL)
    description = TextField(required=False, allow_blank=True, max_length=200)
    event_types = _event_types(required=False)
    state = serializers.ChoiceField(choices=_STATES, read_only=True)
    disabled_at = serializers.DateTimeField(read_only=True, allow_null=True)
    disabled_reason = serializers.CharField(read_only=True)
    failing_since = serializers.DateTimeField(read_only=True, allow_null=True)
    delivered_at = serializers.DateTimeField(read_only=True, allow_null=True)
    former_secret_until = serializers.DateTimeField(source="former_until", read_only=True, allow_null=True)


class EndpointWithSecret(Endpoint):
    """An endpoint just made or given a new secret: the only answers that hold one."""

    secret = serializers.CharField(read_only=True)


class ChangedEndpoint(StrictSerializer):
    url = TextField(max_length=LONGEST_URL, required=False)
    description = TextField(required=False, allow_blank=True, max_length=200)
    event_types = _event_types(required=False)


class Delivery(StrictSerializer):
    """One attempt to deliver a message."""

    id = serializers.UUIDField(read_only=True)
    message = serializers.UUIDField(source="message_id", read_only=True, help_text="The `webhook-id`.")
    event_type = serializers.CharField(read_only=True)
    license = serializers.UUIDField(source="license_id", read_only=True, allow_null=True)
    attempt = serializers.IntegerField(read_only=True)
    at = serializers.DateTimeField(read_only=True)
    status = serializers.IntegerField(read_only=True, allow_null=True)
    duration_ms = serializers.IntegerField(read_only=True)
    answer = serializers.CharField(read_only=True)
    error = serializers.CharField(read_only=True)


class Nothing(StrictSerializer):
    """A body that says nothing."""


class SentMessage(StrictSerializer):
    """A message that is on its way."""

    message = serializers.UUIDField(read_only=True, help_text="The `webhook-id`.")


class WebhookEndpointViews(ApiViewSet):
    """Webhook endpoints: who is told what happens."""

    queryset = WebhookEndpoint.objects.exclude(state=EndpointState.DELETED)
    serializer_class = Endpoint
    filterset_class = WebhookEndpoints
    read_scope, write_scope, tenant = "webhooks:read", "webhooks:write", "customer_id"

    @extend_schema(parameters=IDEMPOTENT, responses={201: EndpointWithSecret})
    @once
    def create(self, request: Request) -> Response:
        """Make an endpoint, of the vendor's or of `customer`; a customer's server makes its own. The answer holds the
        secret, this once."""
        body = self.body()
        customer_id = body.pop("customer_id", None) or self.caller.customer_id
        if self.caller.customer_id not in (None, customer_id):
            raise Missing("There is no such thing.")
        customer = _named(Customer, customer_id, "/customer") if customer_id else None
        endpoint, secret = webhooks.create(customer=customer, by=self.by, at=self.at, **body)
        return self.shown(endpoint, status=201, secret=secret)

    @extend_schema(request=ChangedEndpoint, responses=Endpoint)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change the address, the types or the description."""
        row, body = self.get_object(), self.body(ChangedEndpoint)
        return self.shown(webhooks.change(endpoint=row, by=self.by, at=self.at, **body))

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete the endpoint; what waits for it is not sent."""
        webhooks.delete(endpoint=self.get_object(), by=self.by, at=self.at)
        return Response(status=204)

    @extend_schema(parameters=IDEMPOTENT, request=OptionalReason, responses=EndpointWithSecret)
    @action(detail=True, methods=["post"], url_path="rotate-secret")
    @once
    def rotate_secret(self, request: Request, pk: UUID) -> Response:
        """Replace the secret. The answer holds the new one, this once; the former signs along for a day."""
        row, body = self.get_object(), self.body(OptionalReason)
        endpoint, secret = webhooks.rotate(endpoint=row, by=self.by, at=self.at, **body)
        return self.shown(endpoint, secret=secret)

    @extend_schema(parameters=IDEMPOTENT, request=OptionalReason, responses=Endpoint)
    @action(detail=True, methods=["post"])
    @once
    def disable(self, request: Request, pk: UUID) -> Response:
        """Send nothing from now on; what waits becomes dead letters."""
        row, body = self.get_object(), self.body(OptionalReason)
        return self.shown(webhooks.disable(endpoint=row, by=self.by, at=self.at, **body))

    @extend_schema(parameters=IDEMPOTENT, request=OptionalReason, responses=Endpoint)
    @action(detail=True, methods=["post"])
    @once
    def enable(self, request: Request, pk: UUID) -> Response:
        """Send what happens from now on."""
        row, body = self.get_object(), self.body(OptionalReason)
        return self.shown(webhooks.enable(endpoint=row, by=self.by, at=self.at, **body))

    @extend_schema(parameters=IDEMPOTENT, request=None, responses={202: SentMessage})
    @action(detail=True, methods=["post"])
    @once
    def test(self, request: Request, pk: UUID) -> Response:
        """Send a message of type `webhook.test`."""
        row, _ = self.get_object(), self.body(Nothing)
        message_id = webhooks.test(endpoint=row, by=self.by, at=self.at)
        return Response({"message": str(message_id)}, status=202)

    @extend_schema(operation_id="webhook_endpoints_deliveries", responses=Delivery(many=True), filters=False)
    @action(detail=True, methods=["get"])
    def deliveries(self, request: Request, pk: UUID) -> Response:
        """Return the attempts of the last 30 days, the newest first."""
        page = self.paginate_queryset(WebhookDelivery.objects.filter(endpoint=self.get_object()))
        return self.get_paginated_response(Delivery(page, many=True).data)

    @extend_schema(
        parameters=[*IDEMPOTENT, OpenApiParameter("message", UUID, OpenApiParameter.PATH)],
        request=Reason,
        responses={202: SentMessage},
    )
    @action(detail=True, methods=["post"], url_path="deliveries/<uuid:message>/replay")
    @once
    def replay(self, request: Request, pk: UUID, message: UUID) -> Response:
        """Send a message again that was delivered or given up; its `webhook-id` stays."""
        row = webhooks.messages(endpoint=self.get_object()).filter(pk=message).first()
        if row is None:
            raise Missing("There is no such thing.")
        deliveries.replay(message=row, by=self.by, at=self.at, **self.body(Reason))
        return Response({"message": str(row.pk)}, status=202)
