"""Staff pages of payments: what came in, what the gateway knows and said, and what was done while nothing came.

All of it is read here. A payment is recorded on its statement's page.
"""

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from billing.admin.told import in_money
from billing.models import DunningHold, DunningStep, GatewayEvent, GatewayInvoice, Payment, Reversal
from licensing.admin import theme
from licensing.admin.base import StaffModelAdmin, link_to


class _OfStatement(StaffModelAdmin):
    """What hangs on a statement: found by its customer or the statement's id."""

    list_select_related: ClassVar[tuple[str, ...]] = ("statement__customer",)
    search_fields: ClassVar[tuple[str, ...]] = ("statement__customer__code", "statement__customer__name")
    search_help_text = "Code or name of the customer, or statement id"
    uuid_fields: ClassVar[tuple[str, ...]] = ("statement_id",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related(*self.list_select_related)

    @theme.display(description="statement")
    def statement_shown(self, row: Any) -> str:
        return link_to(row.statement, f"{row.statement.customer} {row.statement}")


@admin.register(Payment)
class PaymentAdmin(_OfStatement):
    """Payments: through the gateway, or recorded by staff."""

    list_display = ("reference", "statement_shown", "amount_minor", "source", "created_at")
    tells = {"amount_minor": in_money("amount_minor", "amount")}
    list_filter = ("source", "statement__currency")
    search_fields = (*_OfStatement.search_fields, "=reference")
    search_help_text = "Customer, reference, or statement id"
    date_hierarchy = "created_at"
    fieldsets = (
        (None, {"fields": ("statement_shown", "amount_minor", "source", "reference", "reason", "created_at", "id")}),
    )


@admin.register(Reversal)
class ReversalAdmin(_OfStatement):
    """Refunds, credit notes and disputes at the gateway, and how each stands."""

    list_display = (
        "reference",
        "statement_shown",
        "kind",
        "returned_minor",
        "credited_minor",
        "stands",
        "status",
        "created_at",
    )
    list_filter = ("kind", "stands", "statement__currency")
    search_fields = (*_OfStatement.search_fields, "=reference")
    search_help_text = "Customer, the gateway's id, or statement id"
    date_hierarchy = "created_at"
    tells = {
        "returned_minor": in_money("returned_minor", "went back"),
        "credited_minor": in_money("credited_minor", "credited"),
    }


@admin.register(GatewayInvoice)
class GatewayInvoiceAdmin(_OfStatement):
    """Invoices at the gateway: how each stands there, and what went wrong on the way."""

    list_display = ("__str__", "statement_shown", "state_shown", "attempts", "next_at", "seen_at", "last_error")
    list_filter = ("state",)
    search_fields = (*_OfStatement.search_fields, "=external_id")
    search_help_text = "Customer, the gateway's id, or statement id"
    tells = {"told_minor": in_money("told_minor", "paid past it, as it knows")}

    @theme.display(
        description="state",
        ordering="state",
        label={
            "waiting": "warning",
            "open": "info",
            "uncollectible": "danger",
            "paid": "success",
            "void": "default",
            "not_needed": "default",
        },
    )
    def state_shown(self, invoice: GatewayInvoice) -> tuple[str, str]:
        return invoice.state, invoice.get_state_display()


@admin.register(GatewayEvent)
class GatewayEventAdmin(StaffModelAdmin):
    """Signed messages of the gateway, each taken once."""

    list_display = ("kind", "event_id", "object_id", "outcome", "occurred_at", "created_at")
    list_filter = ("outcome", "kind")
    search_fields = ("=event_id", "=object_id")
    search_help_text = "The gateway's id of the message or of the invoice"
    date_hierarchy = "created_at"


@admin.register(DunningStep)
class DunningStepAdmin(_OfStatement):
    """Reminders sent and holds placed for unpaid statements."""

    list_display = ("act", "days", "statement_shown", "created_at")
    list_filter = ("act",)


@admin.register(DunningHold)
class DunningHoldAdmin(_OfStatement):
    """Licenses held for unpaid statements' sake."""

    list_display = ("license_named", "statement_shown", "created_at", "released_at")
    list_filter = (("released_at", admin.EmptyFieldListFilter),)
    list_select_related = ("statement__customer", "license__customer", "license__product")
    search_help_text = "Customer, license id, or statement id"
    uuid_fields = ("statement_id", "license_id")

    @theme.display(description="license")
    def license_named(self, row: DunningHold) -> str:
        return f"{row.license.customer}: {row.license.product}"
