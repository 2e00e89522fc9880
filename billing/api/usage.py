"""The calls that count: each translates, then calls the gate or one rule function."""

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import gate, metering
from billing.api import report
from licensing import allowances, snapshots
from licensing.api.base import ApiViewSet, StrictSerializer, once
from licensing.api.door import Answered, plain_request
from licensing.api.serializers import IdField, InstantField, QuantityField, SecondsField, TextField, WholeNumberField
from licensing.api.views import IDEMPOTENT, _called_license
from licensing.decision import Scope
from licensing.errors import Missing
from licensing.models import License
from licensing.models.allowances import Reservation

_TTL = timedelta(minutes=10)
_NONCE = OpenApiParameter(
    "x-licentia-nonce",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="22 to 128 characters of A-Z a-z 0-9 _ -; needed with a license key; the answer is then signed.",
)


class Dimensions(serializers.DictField):
    child = TextField(max_length=metering.LONGEST_VALUE, allow_blank=True)


class UsageEvent(StrictSerializer):
    """One event. `license` is for a server; without `occurred_at` it occurred when it is received."""

    event_id = TextField(max_length=metering.LONGEST_ID)
    meter = TextField(max_length=64)
    quantity = QuantityField(required=False, help_text="1 where it is left out.")
    occurred_at = serializers.DateTimeField(required=False, allow_null=True)
    dimensions = Dimensions(required=False, allow_null=True)
    sequence = WholeNumberField(required=False, allow_null=True)
    license = IdField(required=False, allow_null=True)


class Receipt(serializers.Serializer[Any]):
    """What was counted. `remaining` is of a hard allowance, null where nothing is refused; a duplicate has none."""

    status = serializers.CharField(help_text="`counted`, or `duplicate`: it was counted before.")
    license = serializers.UUIDField()
    event_id = serializers.CharField()
    meter = serializers.CharField()
    quantity = QuantityField()
    occurred_at = serializers.DateTimeField()
    received_at = serializers.DateTimeField()
    remaining = QuantityField(required=False, allow_null=True)


class UsageBatch(StrictSerializer):
    """Up to a thousand events. `license` is that of the events that name none."""

    events = UsageEvent(many=True, max_length=metering.MOST_AT_ONCE)  # type: ignore[call-arg]  # taken by many
    license = IdField(required=False, allow_null=True)


class Result(serializers.Serializer[Any]):
    """What became of one event of a batch; `code` and `detail` say why it was rejected."""

    event_id = serializers.CharField(allow_null=True)
    status = serializers.CharField(help_text="`counted`, `duplicate` or `rejected`.")
    code = serializers.CharField(required=False)
    detail = serializers.CharField(required=False)


class BatchResults(serializers.Serializer[Any]):
    """What became of a batch, event by event, in the order they were sent."""

    counted = serializers.IntegerField()
    duplicates = serializers.IntegerField()
    rejected = serializers.IntegerField()
    results = Result(many=True)


class _AtTheGate(APIView):
    """A door to the gate, and nothing else: it knows callers and limits, and there is one form to answer in."""

    authentication_classes = ()
    permission_classes = ()
    parser_classes = ()
    default_response_headers: dict[str, str] = {}

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Leave it to the gate."""


class Count(_AtTheGate):
    """Count an event, or tell what was counted."""

    @report.documented
    def get(self, request: Request) -> Any:
        """Return what a license used, by hour, day or month."""
        return report.report(request._request)

    @extend_schema(
        operation_id="usage_count", request=UsageEvent, responses={201: Receipt, 200: Receipt}, parameters=[_NONCE]
    )
    def post(self, request: Request) -> Any:
        """Count an event exactly once: 201 when it was counted, 200 when it had been before."""
        return Answered(gate.usage(plain_request(request._request), timezone.now()))


class CountBatch(_AtTheGate):
    """Count many events."""

    @extend_schema(
        operation_id="usage_count_batch", request=UsageBatch, responses={200: BatchResults}, parameters=[_NONCE]
    )
    def post(self, request: Request) -> Any:
        """Count up to a thousand events, each exactly once; a bad one does not sink the rest."""
        return Answered(gate.usage_batch(plain_request(request._request), timezone.now()))


_TEXT = {"type": "string"}
_CLOUD_EVENT_DATA = {
    "type": "object",
    "description": "What was used: one, if it does not say how much.",
    "properties": {
        "quantity": {"type": "string", "format": "decimal"},
        "dimensions": {"type": "object", "additionalProperties": _TEXT},
        "sequence": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
}
_CLOUD_EVENT = {
    "type": "object",
    "description": "A CloudEvent 1.0, counted under `source id`. Extension attributes are taken and not kept.",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"type": "string", "enum": ["1.0"]},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "format": "uri-reference", "minLength": 1},
        "type": {"type": "string", "minLength": 1, "description": "The code of the meter."},
        "subject": {"type": "string", "format": "uuid", "description": "For a server: the license."},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": _TEXT,
        "data": _CLOUD_EVENT_DATA,
    },
}


class CountEvents(_AtTheGate):
    """Count CloudEvents."""

    @extend_schema(
        operation_id="usage_count_cloudevents",
        request={
            "application/cloudevents+json": _CLOUD_EVENT,
            "application/cloudevents-batch+json": {"type": "array", "maxItems": 1000, "items": _CLOUD_EVENT},
            "application/json": _CLOUD_EVENT_DATA,
        },
        responses={201: Receipt, 200: BatchResults},
        parameters=[_NONCE],
    )
    def post(self, request: Request) -> Any:
        """Count CloudEvents 1.0, in headers, as JSON or as a batch; one is answered as by /usage, many as a batch."""
        return Answered(gate.events(plain_request(request._request), timezone.now()))


_SIGNED = r"-?\d{1,18}(\.\d{1,6})?"


@extend_schema_field({"type": "string", "format": "decimal", "pattern": rf"^{_SIGNED}$"})
class SignedQuantityField(serializers.DecimalField):
    """A quantity, plus or minus, as a decimal string, exact to six places."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_digits=24, decimal_places=6, **options)

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str) or not re.fullmatch(_SIGNED, data, re.ASCII):
            self.fail("invalid")
        return super().to_internal_value(data)


class NewCorrection(StrictSerializer):
    """By how much what was counted is corrected, at the time it occurred, and why. Without `event_id` it gets one."""

    license = IdField()
    meter = TextField(max_length=64)
    quantity = SignedQuantityField()
    occurred_at = InstantField()
    reason = TextField(max_length=1000)
    event_id = TextField(max_length=metering.LONGEST_ID, required=False)
    dimensions = Dimensions(required=False)


class CorrectionReceipt(Receipt):
    """What was counted, plus or minus."""

    quantity = SignedQuantityField()  # type: ignore[assignment]  # plus or minus here


class CorrectionViews(ApiViewSet):
    """Corrections: events of their own, with their author and a reason, beside what was counted."""

    queryset = License.objects.all()
    serializer_class = CorrectionReceipt
    read_scope, write_scope, tenant = "usage:write", "usage:write", "customer_id"
    http_method_names = ["post", "options"]

    @extend_schema(
        operation_id="usage_correct",
        request=NewCorrection,
        responses={201: CorrectionReceipt, 200: CorrectionReceipt},
        parameters=IDEMPOTENT,
    )
    @once
    def create(self, request: Request) -> Response:
        """Correct what was counted: 201 when it was counted, 200 when it had been before."""
        body = self.body(NewCorrection)
        license = _called_license(self, body.pop("license"))
        receipt = metering.correct(license=license, by=self.by, at=self.at, **body)
        return Response(gate.shown(receipt), status=201 if receipt.status == "counted" else 200)


class ShownReservation(serializers.Serializer[Any]):
    """A reservation: part of an allowance that is held until it is committed, released or lapses."""

    id = serializers.UUIDField()
    license = serializers.UUIDField(source="license_id")
    meter = serializers.CharField()
    quantity = QuantityField()
    state = serializers.CharField()
    expires_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    event_id = serializers.CharField(allow_blank=True)


class NewReservation(StrictSerializer):
    """What is held, and for how long: ten minutes if it is not said."""

    license = IdField(required=False)
    meter = TextField(max_length=64)
    quantity = QuantityField()
    ttl_seconds = SecondsField(required=False, max_value=int(allowances.LONGEST_RESERVATION.total_seconds()))


class CommitReservation(StrictSerializer):
    """What was used of it: all, if it is not said."""

    event_id = TextField(max_length=metering.LONGEST_ID, required=False)
    quantity = QuantityField(required=False)
    dimensions = Dimensions(required=False)


class ReservationViews(ApiViewSet):
    """Reservations: part of an allowance, held before costly work."""

    queryset = Reservation.objects.all()
    serializer_class = ShownReservation
    read_scope, write_scope, tenant = "usage", "usage", "license__customer_id"
    http_method_names = ["post", "options"]

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        own = getattr(self.request, "user", None) and self.caller.license_id
        return rows.filter(license_id=own) if own else rows

    @extend_schema(request=NewReservation, responses={201: ShownReservation}, parameters=IDEMPOTENT)
    @once
    def create(self, request: Request) -> Response:
        """Hold part of an allowance."""
        body = self.body(NewReservation)
        license = _called_license(self, body.get("license"))
        found = snapshots.by_id(license.pk, Scope())
        if found is None or not found.picture.snapshot.issued:
            raise Missing("There is no such license.")
        made = metering.reserve(
            license=found.picture.snapshot,
            meter=body["meter"],
            quantity=body["quantity"],
            ttl=body.get("ttl_seconds", _TTL),
            holder=gate.source_of(self.caller),
            at=self.at,
        )
        return self.shown(made, status=201)

    @extend_schema(request=CommitReservation, responses={200: Receipt}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    @once
    def commit(self, request: Request, pk: UUID) -> Response:
        """Count what was used of the reservation; the rest is free again."""
        body = self.body(CommitReservation)
        receipt = metering.commit(
            reservation=self.get_object(),
            quantity=body.get("quantity"),
            event_id=body.get("event_id", ""),
            dimensions=body.get("dimensions"),
            source=gate.source_of(self.caller),
            at=self.at,
        )
        return Response(gate.shown(receipt))

    @extend_schema(request=None, responses={200: ShownReservation}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    @once
    def release(self, request: Request, pk: UUID) -> Response:
        """Give back what is held. Doing it twice changes nothing."""
        row = self.get_object()
        self.body(StrictSerializer)  # there is nothing to say
        return self.shown(allowances.release(reservation=row, at=self.at))


count, count_batch, count_events = (csrf_exempt(each.as_view()) for each in (Count, CountBatch, CountEvents))
