"""/credit-grants: prepaid credit of a license, granted and voided by the vendor, seen by whose license it is."""

from typing import Any
from uuid import UUID

from django_filters import rest_framework as rest_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from billing import metering
from billing.models import Meter
from licensing import allowances
from licensing.api.base import ApiViewSet, StrictSerializer, once
from licensing.api.filters import Filters
from licensing.api.serializers import IdField, InstantField, QuantityField, Reason, TextField, WholeNumberField
from licensing.api.views import IDEMPOTENT, _called_license
from licensing.models.allowances import CreditGrant


class CreditGrants(Filters):
    license = rest_filters.UUIDFilter(field_name="license_id")

    class Meta:
        model = CreditGrant
        fields = ["meter"]


class ShownCreditGrant(serializers.Serializer[Any]):
    """Prepaid credit of a meter; `drawn` is what was used of it. One that was voided expired at that instant."""

    id = serializers.UUIDField()
    created_at = serializers.DateTimeField()
    license = serializers.UUIDField(source="license_id")
    meter = serializers.CharField()
    amount = QuantityField()
    drawn = QuantityField()
    priority = serializers.IntegerField()
    starts_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    reason = serializers.CharField(allow_blank=True)


class NewCreditGrant(StrictSerializer):
    """How much of which meter: from now on, never expiring and with priority 100, if nothing else is said."""

    license = IdField()
    meter = TextField(max_length=64)
    amount = QuantityField()
    priority = WholeNumberField(required=False, min_value=0, max_value=32_767, help_text="The lowest is drawn first.")
    starts_at = InstantField(required=False)
    expires_at = InstantField(required=False)
    reason = TextField(required=False, allow_blank=True, max_length=1000)


class CreditGrantViews(ApiViewSet):
    """Credit grants: prepaid credit, drawn on where an allowance is used up."""

    queryset = CreditGrant.objects.all()
    serializer_class = ShownCreditGrant
    filterset_class = CreditGrants
    read_scope, write_scope, tenant = "usage:read", "usage:write", "license__customer_id"

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        own = getattr(self.request, "user", None) and self.caller.license_id
        return rows.filter(license_id=own) if own else rows

    @extend_schema(request=NewCreditGrant, responses={201: ShownCreditGrant}, parameters=IDEMPOTENT)
    @once
    def create(self, request: Request) -> Response:
        """Grant credit."""
        body = self.body(NewCreditGrant)
        license = _called_license(self, body.pop("license"))
        if not Meter.objects.filter(code=body["meter"]).exists():
            raise metering.UnknownMeter(pointer="/meter")
        return self.shown(allowances.grant(license=license, by=self.by, at=self.at, **body), status=201)

    @extend_schema(request=Reason, responses={200: ShownCreditGrant}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    @once
    def void(self, request: Request, pk: UUID) -> Response:
        """Let nothing more be drawn from it. Doing it twice changes nothing."""
        row, body = self.get_object(), self.body(Reason)
        return self.shown(allowances.void(grant=row, by=self.by, at=self.at, **body))
