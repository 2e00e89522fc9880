"""Staff pages of who buys: customers, their members, and API credentials."""

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from licensing import credentials, customers
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffHistoryAdmin, list_of, page_of
from licensing.admin.forms import RowForm
from licensing.models import AuditEntry, Credential, Customer, License, Member


@admin.register(Customer)
class CustomerAdmin(StaffHistoryAdmin):
    """Customers: made and changed, never deleted here; the code stays."""

    list_display = ("name", "code", "email", "created_at")
    search_fields = ("code", "name", "email")
    search_help_text = "Code, name or email"
    adds = ("code", "name", "email")
    edits = ("name", "email")

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return customers.create(**form.cleaned_data, by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return customers.change(customer=form.instance, **form.cleaned_data, by=self.by(request), at=at)

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        return {
            "links": [
                ("Licenses", list_of(License, customer__id__exact=row.pk)),
                ("Members", list_of(Member, customer__id__exact=row.pk)),
                ("Credentials", list_of(Credential, customer__id__exact=row.pk)),
                ("Audit record", list_of(AuditEntry, customer_id=row.pk)),
            ]
        }


@admin.register(Member)
class MemberAdmin(StaffHistoryAdmin):
    """Members: added, given a role, removed. A customer keeps at least one owner."""

    shows_personal = ("page", "list")  # whose address it is
    list_display = ("user", "customer", "role", "created_at")
    list_select_related = ("user", "customer")
    list_filter = ("role",)
    search_fields = ("user__email", "customer__code", "customer__name")
    search_help_text = "The person's email, or the customer's code or name"
    autocomplete_fields = ("customer", "user")
    adds = ("customer", "user", "role")
    edits = ("role",)
    uuid_fields = ("customer_id",)
    acts = (
        Act(
            name="remove",
            label="Remove…",
            permission="licensing.delete_member",
            rule=customers.remove_member,
            row_as="member",
            says=lambda member, at: [
                f"{member.user} can no longer act for {member.customer}.",
                "Their account stays, and so do seats they hold.",
            ],
            done="The member is removed.",
            goes_to=lambda member, result: list_of(Member, customer__id__exact=member.customer_id),
            danger=True,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Member]:
        return super().get_queryset(request).select_related("user", "customer")

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return customers.add_member(**form.cleaned_data, by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return customers.change_role(member=form.instance, role=form.cleaned_data["role"], by=self.by(request), at=at)

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [("Person", str(row.user)), ("Customer", str(row.customer)), ("Role", row.get_role_display())]


class CredentialForm(RowForm):
    """A new credential: what it may do, from where, until when."""

    scopes = forms.MultipleChoiceField(
        choices=[
            (scope, scope if shared else f"{scope} (vendor only)") for scope, shared in credentials.SCOPES.items()
        ],
        widget=theme.Checkboxes,
    )
    allowed_addresses = forms.CharField(
        required=False,
        widget=theme.Textarea(attrs={"rows": 3}),
        help_text="Addresses or networks, one a line. Empty: from anywhere.",
    )
    expires_at = forms.SplitDateTimeField(
        required=False, widget=theme.DateTimeInput, help_text="At most a year ahead. Empty: a year from now."
    )

    class Meta:
        model = Credential
        fields = ("name", "customer")
        help_texts = {"customer": "Empty: a credential of the vendor's own."}

    def clean_allowed_addresses(self) -> list[str]:
        return [line.strip() for line in self.cleaned_data["allowed_addresses"].splitlines() if line.strip()]


class StandingFilter(SimpleListFilter):
    """Whether a credential is accepted now."""

    title = "standing"
    parameter_name = "standing"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("accepted", "accepted"), ("expired", "expired"), ("revoked", "revoked")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        now = timezone.now()
        match self.value():
            case "accepted":
                return queryset.filter(revoked_at=None, expires_at__gt=now)
            case "expired":
                return queryset.filter(revoked_at=None, expires_at__lte=now)
            case "revoked":
                return queryset.filter(revoked_at__isnull=False)
        return queryset


@admin.register(Credential)
class CredentialAdmin(StaffHistoryAdmin):
    """API credentials: made (the secret is shown once) and revoked."""

    list_display = ("name", "tail", "customer", "standing", "expires_at", "revoked_at")
    list_select_related = ("customer",)
    list_filter = (StandingFilter,)
    search_fields = ("name", "=last4", "customer__code")
    search_help_text = "Name, last 4 characters, or customer code"
    autocomplete_fields = ("customer",)
    add_form = CredentialForm
    adds = ("name", "customer", "scopes", "allowed_addresses", "expires_at")
    uuid_fields = ("customer_id",)
    acts = (
        Act(
            name="revoke",
            label="Revoke…",
            permission="licensing.change_credential",
            rule=credentials.revoke,
            row_as="credential",
            says=lambda credential, at: [
                "Every request with this credential is refused from now on.",
                "There is no way back: make a new credential instead.",
            ],
            done="The credential is revoked.",
            offered=lambda credential, at: credential.revoked_at is None,
            danger=True,
        ),
    )

    @theme.display(description="secret")
    def tail(self, credential: Credential) -> str:
        return f"lsk_…{credential.last4}"

    @theme.display(description="standing", label={"accepted": "success", "expired": "warning", "revoked": "danger"})
    def standing(self, credential: Credential) -> str:
        return _standing(credential, timezone.now())

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        credential, request.secret = credentials.create(**form.cleaned_data, by=self.by(request), at=at)  # type: ignore[attr-defined]
        return credential

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        return self.show_secret(request, "The credential is made.", request.secret, page_of(obj))  # type: ignore[attr-defined]

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Credential", row.name),
            ("Secret", f"lsk_…{row.last4}"),
            ("Customer", str(row.customer or "the vendor")),
            ("Standing", _standing(row, at)),
        ]


def _standing(credential: Credential, at: datetime) -> str:
    if credential.revoked_at is not None:
        return "revoked"
    return "accepted" if at < credential.expires_at else "expired"
