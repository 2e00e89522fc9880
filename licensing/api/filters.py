"""What lists can be filtered by: named like the fields."""

from typing import Any

from django.utils import timezone
from django_filters import rest_framework as filters

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


class Products(filters.FilterSet):
    class Meta:
        model = Product
        fields = ["code"]


class Plans(filters.FilterSet):
    product = filters.UUIDFilter(field_name="product_id")

    class Meta:
        model = Plan
        fields = ["code"]


class PlanRevisions(filters.FilterSet):
    plan = filters.UUIDFilter(field_name="plan_id")

    class Meta:
        model = PlanRevision
        fields = ["state", "scheme"]


class Customers(filters.FilterSet):
    class Meta:
        model = Customer
        fields = ["code"]


class Members(filters.FilterSet):
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = Member
        fields = ["role"]


class Licenses(filters.FilterSet):
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


class Seats(filters.FilterSet):
    license = filters.UUIDFilter(field_name="license_id")
    holder = filters.CharFilter(method="by_holder")

    class Meta:
        model = Seat
        fields = ["state"]

    def by_holder(self, rows: Any, name: str, value: str) -> Any:
        return rows.filter(holder=value.strip().lower())


class Activations(filters.FilterSet):
    license = filters.UUIDFilter(field_name="license_id")

    class Meta:
        model = Activation
        fields = ["fingerprint"]


class Credentials(filters.FilterSet):
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = Credential
        fields: list[str] = []


class Anomalies(filters.FilterSet):
    license = filters.UUIDFilter(field_name="license_id")

    class Meta:
        model = Anomaly
        fields = ["rule", "severity", "state"]


class AuditEntries(filters.FilterSet):
    license = filters.UUIDFilter(field_name="license_id")
    customer = filters.UUIDFilter(field_name="customer_id")

    class Meta:
        model = AuditEntry
        fields = ["action", "object_kind", "object_id"]
