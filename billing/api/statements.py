"""/statements: what a customer owes for each month, also as PDF and CSV. Read only."""

from typing import Any
from uuid import UUID

from django.http import HttpResponse
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from billing import documents, pricing, statements
from billing.models import Statement, StatementLine
from billing.states import LineKind, StatementState
from licensing.api.base import ApiViewSet
from licensing.api.filters import Filters


class MoneyField(serializers.Field[Any, Any, Any, Any]):
    """An amount kept in minor units, shown as a decimal string in the currency of its statement."""

    def __init__(self, source: str, **options: Any) -> None:
        super().__init__(source=source, read_only=True, **options)

    def get_attribute(self, instance: Any) -> Any:
        statement = instance.statement if isinstance(instance, StatementLine) else instance
        return super().get_attribute(instance), statement.currency

    def to_representation(self, value: Any) -> str:
        amount_minor, currency = value
        return f"{pricing.major(amount_minor, currency=currency):f}"


Money = extend_schema_field(OpenApiTypes.DECIMAL)(MoneyField)


@extend_schema_field(OpenApiTypes.DECIMAL)
class OpenMoney(serializers.Field[Any, Any, Any, Any]):
    """What is still to be paid of a statement."""

    def __init__(self, **options: Any) -> None:
        super().__init__(source="*", read_only=True, **options)

    def to_representation(self, value: Statement) -> str:
        owed = max(statements.open_minor(value), 0) if value.state == StatementState.FINAL else 0
        return f"{pricing.major(owed, currency=value.currency):f}"


class StatementRow(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    customer = serializers.UUIDField(source="customer_id")
    number = serializers.IntegerField(allow_null=True, help_text="Null while it is a draft.")
    state = serializers.ChoiceField(choices=StatementState.choices)
    currency = serializers.CharField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    refreshed_at = serializers.DateTimeField(allow_null=True)
    final_at = serializers.DateTimeField(allow_null=True)
    due_at = serializers.DateTimeField(allow_null=True)
    paid_at = serializers.DateTimeField(allow_null=True)
    void_at = serializers.DateTimeField(allow_null=True)
    replaces = serializers.UUIDField(source="replaces_id", allow_null=True)
    subtotal = Money("subtotal_minor")
    tax_rate = serializers.DecimalField(max_digits=6, decimal_places=4, help_text="In percent.")
    tax = Money("tax_minor")
    total = Money("total_minor")
    open = OpenMoney(help_text="What is still to be paid: the total less all payments. Of a draft 0.")


class StatementLineRow(serializers.Serializer[Any]):
    position = serializers.IntegerField()
    kind = serializers.ChoiceField(choices=LineKind.choices)
    license = serializers.UUIDField(source="license_id", allow_null=True)
    term = serializers.UUIDField(source="term_id", allow_null=True)
    price_revision = serializers.UUIDField(source="price_revision_id", allow_null=True)
    meter = serializers.CharField(allow_blank=True)
    description = serializers.CharField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    quantity = serializers.DecimalField(max_digits=30, decimal_places=6, allow_null=True)
    unit_amount = serializers.DecimalField(max_digits=30, decimal_places=12, allow_null=True)
    amount = Money("amount_minor")
    corrects = serializers.UUIDField(
        source="corrects_id", allow_null=True, help_text="The final statement it corrects."
    )
    reason = serializers.CharField(allow_blank=True)


class StatementDetail(StatementRow):
    lines = StatementLineRow(many=True)


class Statements(Filters):
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = Statement
        fields = ["state", "currency", "number"]


class StatementViews(ApiViewSet):
    """Statements: what is owed for a month. A draft still changes; a final one never does."""

    queryset = Statement.objects.prefetch_related("payments", "reversals")
    serializer_class = StatementRow
    filterset_class = Statements
    read_scope, write_scope, tenant = "billing:read", "billing:read", "customer_id"
    http_method_names = ["get", "head", "options"]

    @extend_schema(responses=StatementDetail)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        return Response(StatementDetail(self.get_object(), context=self.get_serializer_context()).data)

    @extend_schema(responses={(200, "application/pdf"): OpenApiTypes.BINARY})
    @action(detail=True)
    def pdf(self, request: Request, pk: UUID) -> HttpResponse:
        """The statement as a PDF, for people."""
        row = self.get_object()
        return _file(documents.as_pdf(row), "application/pdf", documents.name_of(row, "pdf"))

    @extend_schema(responses={(200, "text/csv"): OpenApiTypes.STR})
    @action(detail=True)
    def csv(self, request: Request, pk: UUID) -> HttpResponse:
        """The statement's lines as CSV, the tax as the last."""
        row = self.get_object()
        return _file(documents.as_csv(row).encode(), "text/csv; charset=utf-8", documents.name_of(row, "csv"))


def _file(content: bytes, kind: str, name: str) -> HttpResponse:
    return HttpResponse(content, content_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
