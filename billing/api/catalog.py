"""The calls for meters and prices, and their revisions: each translates, then calls one rule function.

A customer's server sees what is published of all meters, and of the prices of plans it has a license under.
"""

from typing import Any
from uuid import UUID

from django_filters import rest_framework as rest_filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from billing import meters, prices
from billing.models import Meter, MeterRevision, Price, PriceRevision
from billing.states import Aggregation
from licensing.api.base import ApiViewSet, StrictSerializer, once
from licensing.api.filters import Filters
from licensing.api.serializers import CodeField, Described, IdField, InstantField, OptionalReason, TextField
from licensing.api.serializers import Row as RowShape
from licensing.api.views import IDEMPOTENT, _named, _row
from licensing.models import License, Plan
from licensing.states import RevisionState


class Meters(Filters):
    class Meta:
        model = Meter
        fields = ["code"]


class Prices(Filters):
    plan = rest_filters.UUIDFilter(field_name="plan_id")

    class Meta:
        model = Price
        fields = ["currency"]


class MeterRevisions(Filters):
    class Meta:
        model = MeterRevision
        fields = ["state"]


class PriceRevisions(Filters):
    class Meta:
        model = PriceRevision
        fields = ["state"]


class MeterShape(RowShape):
    code = CodeField()
    name = TextField(max_length=200)
    description = TextField(required=False, allow_blank=True, max_length=2000)


class Counting(StrictSerializer):
    """How a meter counts, as a draft takes it: what is left out stays as it was."""

    aggregation = serializers.ChoiceField(choices=Aggregation.choices, required=False)
    unit = TextField(required=False, allow_blank=True, max_length=32)
    dimensions = serializers.ListField(child=TextField(max_length=40), required=False, max_length=10)
    filters = serializers.DictField(
        child=serializers.ListField(child=TextField(max_length=200), max_length=50), required=False
    )
    unique_by = TextField(required=False, allow_blank=True, max_length=40)


class Numbered(RowShape):
    """What every revision shows of itself."""

    number = serializers.IntegerField(read_only=True)
    state = serializers.ChoiceField(choices=RevisionState.choices, read_only=True)
    published_at = serializers.DateTimeField(read_only=True, allow_null=True)
    retired_at = serializers.DateTimeField(read_only=True, allow_null=True)


class MeterRevisionShape(Counting, Numbered):
    meter = serializers.UUIDField(source="meter_id", read_only=True)


class PriceShape(RowShape):
    plan = IdField(source="plan_id")
    currency = TextField(max_length=3)


class Asked(StrictSerializer):
    """What a price asks for: a list of components (docs/pricing.md). Left out: what the newest revision asks."""

    components = serializers.ListField(child=serializers.DictField(), required=False, max_length=100)


class ChangedComponents(StrictSerializer):
    components = serializers.ListField(child=serializers.DictField(), max_length=100)


class Effective(OptionalReason):
    """From when a price holds: now, if nothing is said."""

    effective_at = InstantField(required=False)


class PriceRevisionShape(Numbered):
    price = serializers.UUIDField(source="price_id", read_only=True)
    effective_at = serializers.DateTimeField(read_only=True, allow_null=True)
    components = serializers.ListField(child=serializers.DictField(), read_only=True)


class _Catalog(ApiViewSet):
    read_scope, write_scope = "catalog:read", "catalog:write"

    @property
    def confined(self) -> bool:
        """Whether the caller is a customer's: it sees no drafts, and prices of its own plans only."""
        return not getattr(self, "swagger_fake_view", False) and self.caller.customer_id is not None


class MeterViews(_Catalog):
    """Meters: what is counted."""

    queryset = Meter.objects.all()
    serializer_class = MeterShape
    filterset_class = Meters

    @extend_schema(parameters=IDEMPOTENT, responses={201: MeterShape})
    @once
    def create(self, request: Request) -> Response:
        return self.shown(meters.create(by=self.by, at=self.at, **self.body()), status=201)

    @extend_schema(request=Described)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        row, body = self.get_object(), self.body(Described)
        meters.describe(
            meter=row,
            name=body.get("name", row.name),
            description=body.get("description", row.description),
            by=self.by,
            at=self.at,
        )
        return self.shown(self.get_object())


class PriceViews(_Catalog):
    """Prices: what a plan costs in one currency."""

    queryset = Price.objects.all()
    serializer_class = PriceShape
    filterset_class = Prices

    def get_queryset(self) -> Any:
        return _seen(self, super().get_queryset())

    @extend_schema(parameters=IDEMPOTENT, responses={201: PriceShape})
    @once
    def create(self, request: Request) -> Response:
        body = self.body()
        plan = _named(Plan, body.pop("plan_id"), "/plan")
        return self.shown(prices.create(plan=plan, by=self.by, at=self.at, **body), status=201)


def _seen(view: _Catalog, rows: Any) -> Any:
    """Return the prices a caller could be asked for: a customer's server learns of no other customer's."""
    if not view.confined:
        return rows
    held = License.objects.filter(customer=view.caller.customer_id, issued_at__isnull=False)
    return rows.filter(plan__in=held.order_by().values("plan_revision__plan"))


class _Revisions(_Catalog):
    """The revisions of one meter or price, which `of` finds by the address; `rules` are those of its module."""

    rules: Any
    named = ""
    draft_shape: type[StrictSerializer]
    edit_shape: type[StrictSerializer]
    publish_shape: type[StrictSerializer]

    def of(self) -> Any:
        """Return whose revisions these are. Raises `Missing`, also for what is not the caller's to see."""
        raise NotImplementedError

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return rows
        rows = rows.filter(**{self.named: self.of()})
        return rows.exclude(state=RevisionState.DRAFT) if self.confined else rows

    def list(self, request: Request, **address: UUID) -> Response:
        return super().list(request)

    def retrieve(self, request: Request, pk: UUID, **address: UUID) -> Response:
        return super().retrieve(request, pk)

    @once
    def create(self, request: Request, **address: UUID) -> Response:
        owner, body = self.of(), self.body(self.draft_shape)
        return self.shown(self.rules.draft(**{self.named: owner}, by=self.by, at=self.at, **body), status=201)

    def partial_update(self, request: Request, pk: UUID, **address: UUID) -> Response:
        row, body = self.get_object(), self.body(self.edit_shape)
        self.rules.edit(revision=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    def destroy(self, request: Request, pk: UUID, **address: UUID) -> Response:
        self.rules.discard(revision=self.get_object(), by=self.by, at=self.at)
        return Response(status=204)

    @action(detail=True, methods=["post"])
    @once
    def publish(self, request: Request, pk: UUID, **address: UUID) -> Response:
        row, body = self.get_object(), self.body(self.publish_shape)
        self.rules.publish(revision=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @action(detail=True, methods=["post"])
    @once
    def retire(self, request: Request, pk: UUID, **address: UUID) -> Response:
        row, body = self.get_object(), self.body(OptionalReason)
        self.rules.retire(revision=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())


@extend_schema_view(
    create=extend_schema(parameters=IDEMPOTENT, request=Counting, responses={201: MeterRevisionShape}),
    partial_update=extend_schema(request=Counting),
    publish=extend_schema(parameters=IDEMPOTENT, request=OptionalReason),
    retire=extend_schema(parameters=IDEMPOTENT, request=OptionalReason),
)
class MeterRevisionViews(_Revisions):
    """Meter revisions: how a meter counts; a published one never changes."""

    queryset = MeterRevision.objects.all()
    serializer_class = MeterRevisionShape
    filterset_class = MeterRevisions
    rules, named = meters, "meter"
    draft_shape, edit_shape, publish_shape = Counting, Counting, OptionalReason

    def of(self) -> Meter:
        return _row(Meter.objects.all(), self.kwargs["meter_id"])


@extend_schema_view(
    create=extend_schema(parameters=IDEMPOTENT, request=Asked, responses={201: PriceRevisionShape}),
    partial_update=extend_schema(request=ChangedComponents),
    publish=extend_schema(parameters=IDEMPOTENT, request=Effective),
    retire=extend_schema(parameters=IDEMPOTENT, request=OptionalReason),
)
class PriceRevisionViews(_Revisions):
    """Price revisions: the components of a price; a published one never changes."""

    queryset = PriceRevision.objects.all()
    serializer_class = PriceRevisionShape
    filterset_class = PriceRevisions
    rules, named = prices, "price"
    draft_shape, edit_shape, publish_shape = Asked, ChangedComponents, Effective

    def of(self) -> Price:
        return _row(_seen(self, Price.objects.all()), self.kwargs["price_id"])
