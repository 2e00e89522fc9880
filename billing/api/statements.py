"""/statements: what a customer owes for a month, also as PDF and CSV; closed, voided, marked as paid by the vendor.
/billing-accounts: how a customer is billed."""

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

from billing import accounts, documents, payments, pricing, statements
from billing.models import BillingAccount, Statement, StatementLine
from billing.states import LineKind, StatementState
from licensing.api.base import ApiViewSet, StrictSerializer, once
from licensing.api.filters import Filters
from licensing.api.serializers import FlagField, InstantField, QuantityField, Reason, TextField
from licensing.api.views import IDEMPOTENT


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


class VoidedStatement(StatementRow):
    replaced_by = serializers.UUIDField(allow_null=True, help_text="The draft that bills the period anew.")


class Void(Reason):
    """Why, and whether the period is billed anew, by a draft that takes over what was adjusted by hand."""

    replace = FlagField(required=False, default=True)


class Paid(Reason):
    """How it was paid, and since when: now, unless `paid_at` is given."""

    paid_at = InstantField(required=False)


class BillingAccountRow(serializers.Serializer[Any]):
    """How a customer is billed: the currency, the tax in percent, and what stands on its statements."""

    id = serializers.UUIDField()
    created_at = serializers.DateTimeField()
    customer = serializers.UUIDField(source="customer_id")
    currency = serializers.CharField()
    tax_rate = serializers.DecimalField(max_digits=6, decimal_places=4, help_text="In percent.")
    tax_id = serializers.CharField()
    address = serializers.CharField()


class ChangedBillingAccount(StrictSerializer):
    """What is left out stays as it is. It is so from the next statement on; what is final never changes."""

    currency = TextField(required=False, max_length=3, help_text="ISO 4217.")
    tax_rate = QuantityField(required=False, help_text="In percent, with at most four places.")
    tax_id = TextField(required=False, allow_blank=True, max_length=64)
    address = TextField(required=False, allow_blank=True, max_length=1000)


class Statements(Filters):
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = Statement
        fields = ["state", "currency", "number"]


class BillingAccounts(Filters):
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = BillingAccount
        fields = ["currency"]


class StatementViews(ApiViewSet):
    """Statements: what is owed for a month. A draft still changes; a final one never does."""

    queryset = Statement.objects.prefetch_related("payments", "reversals")
    serializer_class = StatementRow
    filterset_class = Statements
    read_scope, write_scope, tenant = "billing:read", "billing:write", "customer_id"
    http_method_names = ["get", "head", "post", "options"]

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

    @extend_schema(request=None, responses={200: StatementRow}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    @once
    def close(self, request: Request, pk: UUID) -> Response:
        """Make a draft final, once its period and the time for late events are over."""
        self.body(StrictSerializer)
        statements.close(statement=self.get_object(), by=self.by, at=self.at)
        return self.shown(self.get_object())

    @extend_schema(request=Void, responses={200: VoidedStatement}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    @once
    def void(self, request: Request, pk: UUID) -> Response:
        """Let nothing be owed for a final statement any more; it keeps its number."""
        row, body = self.get_object(), self.body(Void)
        draft = statements.void(statement=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object(), replaced_by=str(draft.pk) if draft else None)

    @extend_schema(request=Paid, responses={200: StatementRow}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"], url_path="mark-paid")
    @once
    def mark_paid(self, request: Request, pk: UUID) -> Response:
        """Record that all that is open came in past the gateway. Paid already: nothing happens."""
        row, body = self.get_object(), self.body(Paid)
        owed = row.state == StatementState.FINAL and statements.open_minor(row) > 0
        rule: Any = payments.record_payment if owed else statements.mark_paid  # as the acts of the staff page
        rule(statement=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())


class BillingAccountViews(ApiViewSet):
    """Billing accounts: how customers are billed. One is made with the first statement, or by staff."""

    queryset = BillingAccount.objects.all()
    serializer_class = BillingAccountRow
    filterset_class = BillingAccounts
    read_scope, write_scope, tenant = "billing:read", "billing:write", "customer_id"
    http_method_names = ["get", "head", "patch", "options"]

    @extend_schema(request=ChangedBillingAccount)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change how the customer is billed from the next statement on."""
        row, body = self.get_object(), self.body(ChangedBillingAccount)
        now = {name: getattr(row, name) for name in ("currency", "tax_rate", "tax_id", "address")}
        accounts.describe(customer=row.customer, by=self.by, at=self.at, **now | body)
        return self.shown(self.get_object())


def _file(content: bytes, kind: str, name: str) -> HttpResponse:
    return HttpResponse(content, content_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
