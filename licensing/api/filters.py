"""What lists can be filtered by: named like the fields."""

import re
from typing import Any

from django.utils import timezone
from django_filters import rest_framework as filters

from licensing.errors import Invalid
from licensing.models import (
    Activation,
    Anomaly,
    AuditEntry,
    Credential,
    Customer,
    License,
    Member,
    Plan,
    PlanRevision,
    Product,
    Seat,
)
from licensing.states import LicenseStatus

_WHOLE = re.compile(r"[0-9]{1,9}")


class Filters(filters.FilterSet):
    """The base of ours: a filter without a value is refused, for it would let everything through."""

    def is_valid(self) -> bool:
        for name, value in self.data.items():
            if name in self.filters and value == "":
                raise Invalid("A filter needs a value. Leave it out to see all.", pointer=f"/{name}")
            if isinstance(self.filters.get(name), filters.BooleanFilter) and value not in ("true", "false"):
                raise Invalid(f"{name} is true or false.", pointer=f"/{name}")
            if isinstance(self.filters.get(name), filters.NumberFilter) and not _WHOLE.fullmatch(str(value)):
                raise Invalid(f"{name} is a whole number.", pointer=f"/{name}")
        return bool(super().is_valid())


class Products(Filters):
    class Meta:
        model = Product
        fields = ["code"]


class Plans(Filters):
    product = filters.UUIDFilter(field_name="product_id")

    class Meta:
        model = Plan
        fields = ["code"]


class PlanRevisions(Filters):
    plan = filters.UUIDFilter(field_name="plan_id")

    class Meta:
        model = PlanRevision
        fields = ["state", "scheme"]


class Customers(Filters):
    class Meta:
        model = Customer
        fields = ["code"]


class Members(Filters):
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = Member
        fields = ["role"]


class Licenses(Filters):
    customer = filters.UUIDFilter(field_name="customer_id")
    product = filters.UUIDFilter(field_name="product_id")
    plan = filters.UUIDFilter(field_name="plan_revision__plan_id")
    plan_revision = filters.UUIDFilter(field_name="plan_revision_id")
    status = filters.ChoiceFilter(choices=LicenseStatus.choices, method="by_status")

    class Meta:
        model = License
        fields = ["scheme"]

    def by_status(self, rows: Any, name: str, value: str) -> Any:
        return rows.with_status(value, timezone.now())


class Seats(Filters):
    license = filters.UUIDFilter(field_name="license_id")
    holder = filters.CharFilter(method="by_holder")

    class Meta:
        model = Seat
        fields = ["state"]

    def by_holder(self, rows: Any, name: str, value: str) -> Any:
        return rows.filter(holder=value.strip().lower())


class Activations(Filters):
    license = filters.UUIDFilter(field_name="license_id")

    class Meta:
        model = Activation
        fields = ["fingerprint"]


class Credentials(Filters):
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = Credential
        fields: list[str] = []


class Anomalies(Filters):
    license = filters.UUIDFilter(field_name="license_id")

    class Meta:
        model = Anomaly
        fields = ["rule", "severity", "state"]


class AuditEntries(Filters):
    license = filters.UUIDFilter(field_name="license_id")
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = AuditEntry
        fields = ["action", "object_kind", "object_id"]
