"""Staff pages of allowances: prepaid credit, granted with a reason, and what is reserved. Counters are on the page of
usage and on their license's: they are keyed by license and have no page a row."""

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone

from licensing import allowances
from licensing.admin import theme
from licensing.admin.base import figure, quantity
from licensing.admin.forms import RowForm, why
from licensing.admin.licenses import OfLicense
from licensing.models import CreditGrant, Reservation


class GrantForm(RowForm):
    """New credit: of which meter, how much, until when, and why."""

    starts_at = forms.SplitDateTimeField(required=False, widget=theme.DateTimeInput, help_text="Empty: now.")
    reason = why()

    class Meta:
        model = CreditGrant
        fields = ("license", "meter", "amount", "priority", "starts_at", "expires_at", "reason")
        help_texts = {
            "meter": "The meter's code, as the plan's allowance names it.",
            "expires_at": "Empty: the credit does not expire.",
        }


@admin.register(CreditGrant)
class CreditGrantAdmin(OfLicense):
    """Prepaid credit: granted, drawn on by use, never taken back here."""

    list_display = ("meter", "license_shown", "left", "granted", "priority", "starts_at", "expires_at")
    list_filter = ("meter", ("expires_at", admin.EmptyFieldListFilter))
    search_fields = ("=meter", "license__customer__code", "license__customer__name")
    search_help_text = "Meter, customer, or license id"
    autocomplete_fields = ("license",)
    add_form = GrantForm
    adds = ("license", "meter", "amount", "priority", "starts_at", "expires_at", "reason")

    @theme.display(description="left")
    def left(self, row: CreditGrant) -> str:
        return figure(quantity(row.amount - row.drawn))

    @theme.display(description="granted", ordering="amount")
    def granted(self, row: CreditGrant) -> str:
        return figure(quantity(row.amount))

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"priority": 100, **super().get_changeform_initial_data(request)}

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return allowances.grant(**form.cleaned_data, by=self.by(request), at=at)


@admin.register(Reservation)
class ReservationAdmin(OfLicense):
    """Reservations: made and ended by programs, and read here."""

    list_display = ("meter", "license_shown", "held", "state_shown", "expires_at", "ended_at")
    list_filter = ("state",)
    search_fields = ("=meter", "=event_id", "license__customer__code")
    search_help_text = "Meter, event id, customer code, or license id"

    @theme.display(description="quantity", ordering="quantity")
    def held(self, row: Reservation) -> str:
        return figure(quantity(row.quantity))

    @theme.display(
        description="state",
        label={"open": "info", "committed": "success", "released": "default", "lapsed": "warning", "due": "warning"},
    )
    def state_shown(self, row: Reservation) -> str:
        return "due" if row.state == "open" and row.expires_at <= timezone.now() else row.state
