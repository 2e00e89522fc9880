"""Staff pages of how customers are billed."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from billing import accounts
from billing.models import BillingAccount, Statement
from licensing.admin.base import StaffHistoryAdmin, list_of
from licensing.models import License


@admin.register(BillingAccount)
class BillingAccountAdmin(StaffHistoryAdmin):
    """Billing accounts: opened and changed; what is final stays as it is."""

    shows_personal = ("page",)
    list_display = ("customer", "currency", "tax_shown", "tax_id", "created_at")
    list_select_related = ("customer",)
    list_filter = ("currency",)
    search_fields = ("customer__code", "customer__name", "=tax_id")
    search_help_text = "Code or name of the customer, or tax id"
    autocomplete_fields = ("customer",)
    adds = ("customer", "currency", "tax_rate", "tax_id", "address")
    edits = ("currency", "tax_rate", "tax_id", "address")
    uuid_fields = ("customer_id",)
    fieldsets = (
        (None, {"fields": ("customer", "currency", "tax_rate", "tax_id", "address")}),
        ("Kept by the system", {"fields": ("last_number", "gateway_customer", "created_at", "id")}),
    )

    @admin.display(description="tax", ordering="tax_rate")
    def tax_shown(self, account: BillingAccount) -> str:
        return f"{account.tax_rate.normalize():f} %"

    def get_queryset(self, request: HttpRequest) -> QuerySet[BillingAccount]:
        return super().get_queryset(request).select_related("customer")

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return accounts.describe(**form.cleaned_data, by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return accounts.describe(customer=form.instance.customer, **form.cleaned_data, by=self.by(request), at=at)

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        return {
            "links": [
                ("Statements", list_of(Statement, customer__id__exact=row.customer_id)),
                ("Licenses", list_of(License, customer__id__exact=row.customer_id)),
            ]
        }
