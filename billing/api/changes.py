"""The calls that change a license's plan or scheme, show what that would do, and take it back."""

from decimal import Decimal
from typing import Any
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import changes, pricing
from licensing import schemes
from licensing.api import serializers as shapes
from licensing.api.base import ApiViewSet, StrictSerializer, once
from licensing.api.serializers import IdField, InstantField, TextField
from licensing.api.views import IDEMPOTENT, _named, _revision
from licensing.errors import Invalid
from licensing.models import License, Plan, PlanRevision
from licensing.states import RevisionState, Scheme


class PlanChangeBody(shapes.PlanChange):
    """Which plan (its published revision) or plan revision, and from when: now, unless `at` is given."""

    at = InstantField(required=False)

    validate = shapes.NewLicense.validate


class SchemeChangeBody(StrictSerializer):
    """Which scheme, and from when. Without `plan`, the published revision of the license's own plan must have it."""

    scheme = serializers.ChoiceField(choices=Scheme.choices)
    plan = IdField(required=False)
    at = InstantField(required=False)
    reason = TextField(max_length=1000)


class SchemeChangeRow(shapes.Row):
    """A change of plan or scheme: scheduled, applied, undone, cancelled, or refused with the code of why."""

    license = serializers.UUIDField(source="license_id", read_only=True)
    plan_revision = serializers.UUIDField(source="plan_revision_id", read_only=True)
    scheme = serializers.ChoiceField(choices=Scheme.choices, source="plan_revision.scheme", read_only=True)
    starts_at = serializers.DateTimeField(read_only=True)
    state = serializers.CharField(read_only=True)
    applied_at = serializers.DateTimeField(read_only=True, allow_null=True)
    ended_at = serializers.DateTimeField(read_only=True, allow_null=True)
    refusal = serializers.CharField(read_only=True)
    reason = serializers.CharField(read_only=True)


class PreviewedLimit(StrictSerializer):
    name = serializers.CharField()
    before = serializers.CharField(allow_null=True)
    after = serializers.CharField(allow_null=True)


class PreviewedLine(StrictSerializer):
    kind = serializers.CharField()
    description = serializers.CharField()
    meter = serializers.CharField(allow_blank=True)
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    quantity = serializers.CharField(allow_null=True)
    unit_amount = serializers.CharField(allow_null=True)
    amount = serializers.CharField()


class PreviewedMoney(StrictSerializer):
    lines = PreviewedLine(many=True)
    total = serializers.CharField()


class ChangePreview(StrictSerializer):
    """What a change would do. The money is for the whole month that `starts_at` falls in, with what was used so far."""

    starts_at = serializers.DateTimeField()
    before = shapes.LicenseRow()
    after = shapes.LicenseRow()
    limits = PreviewedLimit(many=True)
    currency = serializers.CharField()
    period_starts_at = serializers.DateTimeField()
    period_ends_at = serializers.DateTimeField()
    money_before = PreviewedMoney()
    money_after = PreviewedMoney()


PARAMETERS = [
    *IDEMPOTENT,
    OpenApiParameter("preview", OpenApiTypes.BOOL, description="true writes nothing and shows what would change"),
]
ANSWERS = {
    200: PolymorphicProxySerializer(
        component_name="ChangedLicense",
        serializers=[shapes.LicenseRow, ChangePreview],
        resource_type_field_name=None,
    ),
    202: SchemeChangeRow,
}


class LicenseChangeViews(ApiViewSet):
    """Changes of a license's plan or scheme: previewed, made, scheduled, taken back."""

    queryset = License.objects.select_related("plan_revision__plan").prefetch_related("holds", "keys")
    serializer_class = shapes.LicenseRow
    read_scope, write_scope, tenant = "licenses:read", "licenses:write", "customer_id"

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        if not getattr(self, "swagger_fake_view", False) and self.caller.customer_id is not None:
            rows = rows.filter(issued_at__isnull=False)
        return rows

    @extend_schema(parameters=PARAMETERS, request=PlanChangeBody, responses=ANSWERS)
    @once
    def change_plan(self, request: Request, pk: UUID) -> Response:
        """Put the license under another plan, or another revision of its own: now (200) or at an instant (202)."""
        row, body = self.get_object(), self.body(PlanChangeBody)
        return self._change(row, _revision(body), body)

    @extend_schema(parameters=PARAMETERS, request=SchemeChangeBody, responses=ANSWERS)
    @once
    def change_scheme(self, request: Request, pk: UUID) -> Response:
        """Charge and limit the license by seats, usage or both: now (200) or at an instant (202)."""
        row, body = self.get_object(), self.body(SchemeChangeBody)
        named = body.pop("plan", None)
        revision = _published(_named(Plan, named, "/plan")) if named else None
        revision = schemes.revision_with(license=row, scheme=body.pop("scheme"), plan_revision=revision)
        return self._change(row, revision, body)

    @extend_schema(parameters=IDEMPOTENT, request=shapes.OptionalReason, responses={200: shapes.LicenseRow})
    @once
    def undo_change(self, request: Request, pk: UUID) -> Response:
        """Call the scheduled change off, or else take the last one back as if it had never been, until a statement of
        its term is final."""
        row, body = self.get_object(), self.body(shapes.OptionalReason)
        changes.undo(license=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @extend_schema(operation_id="licenses_changes_list", responses={200: SchemeChangeRow(many=True)}, filters=False)
    def changes(self, request: Request, pk: UUID) -> Response:
        """Return the license's changes of plan and scheme, the newest first."""
        page = self.paginate_queryset(self.get_object().scheme_changes.select_related("plan_revision"))
        return self.get_paginated_response(SchemeChangeRow(page, many=True).data)

    def _change(self, row: License, revision: PlanRevision, body: dict[str, Any]) -> Response:
        preview, starts_at = self.request.query_params.get("preview", "false"), body.pop("at", None)
        if preview not in ("true", "false"):
            raise Invalid("preview is true or false.", pointer="/preview")
        if preview == "true":
            shown = changes.preview(license=row, plan_revision=revision, by=self.by, at=self.at, starts_at=starts_at)
            return Response(_shown(shown, self.get_serializer_context()))
        change = changes.change(
            license=row, plan_revision=revision, by=self.by, at=self.at, starts_at=starts_at, **body
        )
        if starts_at is not None:
            return Response(SchemeChangeRow(change).data, status=202)
        return self.shown(self.get_object())


def _published(plan: Plan) -> PlanRevision:
    found = PlanRevision.objects.select_related("plan").filter(plan=plan, state=RevisionState.PUBLISHED).first()
    if found is None:
        raise Invalid("This plan has no published revision.", pointer="/plan")
    return found


def _shown(shown: changes.Preview, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "starts_at": shown.starts_at,
        "before": shapes.LicenseRow(shown.before, context=context).data,
        "after": shapes.LicenseRow(shown.after, context=context).data,
        "limits": [{"name": each.name, "before": each.before, "after": each.after} for each in shown.limits],
        "currency": shown.currency,
        "period_starts_at": shown.period.starts_at,
        "period_ends_at": shown.period.ends_at,
        "money_before": _money(shown.money_before, shown.currency),
        "money_after": _money(shown.money_after, shown.currency),
    }


def _money(money: changes.Money, currency: str) -> dict[str, Any]:
    return {
        "lines": [
            {
                "kind": line.kind,
                "description": line.description,
                "meter": line.meter,
                "starts_at": line.starts_at,
                "ends_at": line.ends_at,
                "quantity": None if line.quantity is None else f"{line.quantity.normalize():f}",
                "unit_amount": None if line.unit_amount is None else f"{line.unit_amount.normalize():f}",
                "amount": _amount(line.amount_minor, currency),
            }
            for line in money.lines
        ],
        "total": _amount(money.total_minor, currency),
    }


def _amount(minor: int, currency: str) -> str:
    return f"{Decimal(minor).scaleb(-pricing.places(currency)):f}"
