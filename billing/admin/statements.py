"""Staff pages of statements: read, downloaded, and changed only by acts. What is final stays; a correction is a line of
the next one."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse

from billing import payments, pricing, statements, words
from billing.admin.told import by_name, in_money, with_names
from billing.models import DunningStep, GatewayInvoice, Payment, Reversal, Statement, StatementLine
from billing.states import StatementState
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffModelAdmin, figure, instant, link_to, list_of, quantity
from licensing.admin.forms import ActForm, NoInputs, ReasonForm, why
from licensing.audit import Actor

LINES_SHOWN = 500
COLOURS = {"draft": "warning", "final": "info", "paid": "success", "void": "default"}
MAY_CHANGE = "billing.change_statement"


class VoidForm(ReasonForm):
    """Whether the period is billed anew, and why."""

    replace = forms.BooleanField(
        label="Bill the period anew",
        required=False,
        initial=True,
        help_text="By a draft that takes over what was adjusted by hand. Without it the period is given up for good.",
    )
    field_order = ("replace", "reason")


class AdjustForm(ActForm):
    """How much is owed more or less, what for, and why."""

    amount = forms.DecimalField(
        max_digits=15,
        decimal_places=3,
        widget=theme.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
        help_text="In the statement's currency: -12.50 is owed less, 12.50 more. Tax comes on top.",
    )
    description = forms.CharField(max_length=300, widget=theme.TextInput, help_text="As the customer reads it.")
    reason = why(help_text="The customer reads it too. No personal data, no keys.")

    def clean_amount(self) -> int:
        statement = self.row.statement if isinstance(self.row, StatementLine) else self.row
        return _minor(self.cleaned_data["amount"], statement.currency)


class PaymentForm(ActForm):
    """How much came in, under which reference, and how."""

    amount = forms.DecimalField(
        required=False,
        max_digits=15,
        decimal_places=3,
        widget=theme.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
        help_text="In the statement's currency. Empty: all that is open.",
    )
    reference = forms.CharField(
        required=False,
        max_length=255,
        widget=theme.TextInput(attrs={"autocomplete": "off"}),
        help_text="As the bank names it: the same reference is never counted twice.",
    )
    reason = why(help_text="How it was paid. Kept in the audit record. No personal data, no keys.")

    def clean_amount(self) -> int | None:
        amount, statement = self.cleaned_data["amount"], self.row
        if amount is None:
            return None
        minor, (open_minor, said) = _minor(amount, statement.currency), _open(statement)
        if not 0 < minor <= open_minor:
            raise forms.ValidationError(f"Give an amount above zero and up to {said}, what is open.")
        return minor

    def arguments(self) -> dict[str, Any]:
        given = super().arguments()
        return {"amount_minor": given.pop("amount"), **given}


def _minor(amount: Decimal, currency: str) -> int:
    places = pricing.places(currency)
    minor = amount.scaleb(places)
    if minor != minor.to_integral_value():
        raise forms.ValidationError(f"{currency} has {places} places.")
    return int(minor)


def _open(statement: Statement) -> tuple[int, str]:
    """Return what is to be paid still, in minor units and in words."""
    minor = statements.open_minor(statement)
    return minor, words.money(minor, statement.currency)


def _says_payment(statement: Statement, at: datetime) -> list[str]:
    return [
        f"{_open(statement)[1]} is open. With the last of it the statement is paid, for good.",
        "Then licenses held for its sake are let go, and the payment gateway is told to ask no more.",
    ]


def _adjust(
    *, statement: Statement, amount: int, description: str, reason: str, by: Actor, at: datetime
) -> StatementLine:
    return statements.adjust(
        customer=statement.customer, amount_minor=amount, description=description, reason=reason, by=by, at=at
    )


def _adjust_line(
    *, line: StatementLine, amount: int, description: str, reason: str, by: Actor, at: datetime
) -> StatementLine:
    return statements.adjust(
        customer=line.statement.customer,
        amount_minor=amount,
        description=description,
        reason=reason,
        line=line,
        by=by,
        at=at,
    )


def _refresh(*, statement: Statement, by: Actor, at: datetime) -> Statement:
    return statements.refresh(statement=statement, at=at)


def _in(*states: StatementState) -> Callable[[Any, datetime], bool]:
    return lambda statement, at: statement.state in states


_SAYS_ADJUST = [
    "A line of this amount stands on the customer's next open statement. What is final does not change.",
    "A draft that does not exist yet is made for it.",
]


@admin.register(Statement)
class StatementAdmin(StaffModelAdmin):
    """Statements: what a customer owes for a period."""

    change_form_template = "admin/billing/statement/change_form.html"
    shows_personal = ("page",)
    list_display = ("number_shown", "customer", "period", "state_shown", "total_minor", "due_at", "paid_at")
    list_select_related = ("customer",)
    list_filter = ("state", "currency")
    search_fields = ("customer__code", "customer__name", "=number")
    search_help_text = "Code or name of the customer, or number"
    date_hierarchy = "starts_at"
    uuid_fields = ("customer_id",)
    tells = {
        "subtotal_minor": in_money("subtotal_minor", "subtotal"),
        "tax_minor": in_money("tax_minor", "tax"),
        "total_minor": in_money("total_minor", "total"),
    }
    acts = (
        Act(
            name="refresh",
            label="Work out anew",
            permission=MAY_CHANGE,
            rule=_refresh,
            row_as="statement",
            form=NoInputs,
            says=lambda statement, at: ["It is computed again from what is counted by now. Lines made by hand stay."],
            done="The draft is worked out anew.",
            offered=_in(StatementState.DRAFT),
        ),
        Act(
            name="close",
            label="Make final…",
            permission=MAY_CHANGE,
            rule=statements.close,
            row_as="statement",
            form=NoInputs,
            danger=True,
            says=lambda statement, at: [
                "It gets the customer's next number and never changes again; what comes later is on the next one.",
                "This happens by itself once the period and its grace time are over.",
            ],
            done="The statement is final.",
            offered=_in(StatementState.DRAFT),
        ),
        Act(
            name="record-payment",
            label="Record payment…",
            permission="billing.add_payment",
            rule=payments.record_payment,
            row_as="statement",
            form=PaymentForm,
            says=_says_payment,
            done="The payment is recorded.",
            offered=lambda statement, at: statement.state == StatementState.FINAL and statement.total_minor > 0,
        ),
        Act(
            name="mark-paid",
            label="Mark as settled…",
            permission=MAY_CHANGE,
            rule=statements.mark_paid,
            row_as="statement",
            says=lambda statement, at: ["Nothing is to be paid for it. It is put away as paid; there is no way back."],
            done="The statement is settled.",
            offered=lambda statement, at: statement.state == StatementState.FINAL and statement.total_minor <= 0,
        ),
        Act(
            name="adjust",
            label="Adjust…",
            permission=MAY_CHANGE,
            rule=_adjust,
            row_as="statement",
            form=AdjustForm,
            says=lambda statement, at: _SAYS_ADJUST,
            done="The adjustment stands on this statement.",
            goes_to=lambda statement, line: line.statement,
        ),
        Act(
            name="void",
            label="Void…",
            permission=MAY_CHANGE,
            rule=statements.void,
            row_as="statement",
            form=VoidForm,
            says=lambda statement, at: [
                "It keeps its number and nothing is owed for it any more. There is no way back.",
                "To correct a single line, adjust it instead.",
            ],
            done="The statement is void.",
            offered=_in(StatementState.FINAL),
            goes_to=lambda statement, draft: draft or statement,
            danger=True,
        ),
    )
    fieldsets = (
        (
            "Every field",
            {
                "classes": ("collapse",),
                "fields": (
                    "customer",
                    "currency",
                    "starts_at",
                    "ends_at",
                    "state",
                    "number",
                    "refreshed_at",
                    "final_at",
                    "due_at",
                    "paid_at",
                    "void_at",
                    "void_reason",
                    "replaces",
                    "subtotal_minor",
                    "tax_rate",
                    "tax_minor",
                    "total_minor",
                    "gateway_invoice",
                    "id",
                ),
            },
        ),
    )

    @theme.display(description="number", ordering="number")
    def number_shown(self, statement: Statement) -> str:
        return str(statement)

    @theme.display(description="period", ordering="starts_at")
    def period(self, statement: Statement) -> str:
        return f"{statement.starts_at:%Y-%m}"

    @theme.display(description="state", ordering="state", label=COLOURS)
    def state_shown(self, statement: Statement) -> str:
        return statement.state

    def get_queryset(self, request: HttpRequest) -> QuerySet[Statement]:
        return super().get_queryset(request).select_related("customer")

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Statement", link_to(row, str(row))),
            ("Customer", str(row.customer)),
            ("Period (UTC)", f"{row.starts_at:%Y-%m-%d} to {row.ends_at:%Y-%m-%d}"),
            ("State", row.state),
            ("Total", words.money(row.total_minor, row.currency)),
        ]

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        files = [("pdf", "PDF")] if row.state != StatementState.DRAFT else []
        lines = row.lines.select_related("license__product", "price_revision__price__plan").order_by("position")
        return {
            "colour": COLOURS[row.state],
            "links": [
                (f"Download as {name}", reverse("admin:statement_file", args=[row.pk, form]))
                for form, name in (*files, ("csv", "CSV"))
            ]
            + [
                (name, list_of(model, statement__id__exact=row.pk))
                for name, model in (
                    ("Payments", Payment),
                    ("Taken back", Reversal),
                    ("At the gateway", GatewayInvoice),
                    ("Dunning", DunningStep),
                )
                if model._default_manager.filter(statement=row).exists()
            ],
            "facts": [
                ("Customer", link_to(row.customer)),
                ("From (UTC)", instant(row.starts_at)),
                ("To (UTC)", instant(row.ends_at)),
                ("Refreshed", instant(row.refreshed_at)),
                ("Due", instant(row.due_at)),
                ("Subtotal", words.money(row.subtotal_minor, row.currency)),
                (f"Tax {quantity(row.tax_rate)} %", words.money(row.tax_minor, row.currency)),
                ("Total", words.money(row.total_minor, row.currency)),
                ("Came in", words.money(payments.received_minor(row), row.currency)),
            ],
            "table": {
                "title": "Lines",
                "headers": ["No.", "What", "License", "From (UTC)", "To (UTC)", "Quantity", "Price", "Amount"],
                "figures": ["Quantity", "Amount"],
                "empty": "Nothing is owed so far.",
                "rows": [_cells(line, row.currency) for line in lines[:LINES_SHOWN]],
            },
        }


def _cells(line: StatementLine, currency: str) -> list[Any]:
    return [
        link_to(line, str(line.position)),
        f"{line.description} ({line.reason})" if line.reason else line.description,
        link_to(line.license, str(line.license.product)) if line.license else "–",
        instant(line.starts_at),
        instant(line.ends_at),
        figure(quantity(line.quantity, "")),
        link_to(line.price_revision) if line.price_revision else "–",
        figure(words.money(line.amount_minor, currency)),
    ]


@admin.register(StatementLine)
class StatementLineAdmin(StaffModelAdmin):
    """Lines over all statements, to find where a license or meter was charged."""

    list_display = ("description", "statement_shown", "kind", "meter", "amount_minor", "starts_at")
    list_select_related: ClassVar[tuple[str, ...]] = ("statement__customer",)
    list_filter = ("kind", "statement__state")
    search_fields = ("=meter", "statement__customer__code")
    search_help_text = "Meter, customer code, or license id"
    uuid_fields = ("license_id", "statement_id")
    tells = {"amount_minor": in_money("amount_minor", "amount"), "meter": by_name}
    acts = (
        Act(
            name="adjust",
            label="Adjust…",
            permission=MAY_CHANGE,
            rule=_adjust_line,
            row_as="line",
            form=AdjustForm,
            says=lambda line, at: _SAYS_ADJUST,
            done="The adjustment stands on this statement.",
            offered=lambda line, at: line.statement.state != StatementState.DRAFT,
            goes_to=lambda line, made: made.statement,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[StatementLine]:
        return with_names(super().get_queryset(request).select_related(*self.list_select_related))

    @theme.display(description="statement")
    def statement_shown(self, line: StatementLine) -> str:
        return link_to(line.statement, f"{line.statement.customer} {line.statement}")

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Line", row.description),
            ("Statement", link_to(row.statement, str(row.statement))),
            ("Customer", str(row.statement.customer)),
            ("Amount", words.money(row.amount_minor, row.statement.currency)),
        ]
