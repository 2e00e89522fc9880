"""Staff pages of webhook endpoints and their log."""

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from licensing import events, webhooks
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffHistoryAdmin, StaffModelAdmin, link_to, list_of, page_of
from licensing.admin.evidence import license_link
from licensing.admin.forms import NoInputs, OptionalReasonForm, RowForm
from licensing.models import AuditEntry, OutboxMessage, WebhookDelivery, WebhookEndpoint
from licensing.states import EndpointState


class EndpointForm(RowForm):
    """An endpoint; no type chosen is every type."""

    event_types = forms.MultipleChoiceField(
        choices=[(event_type, event_type) for event_type in events.TYPES],
        required=False,
        widget=theme.Checkboxes,
        help_text="None: every type.",
    )


def _live(endpoint: WebhookEndpoint, at: datetime) -> bool:
    return endpoint.state != EndpointState.DELETED


def _standing(endpoint: WebhookEndpoint) -> str:
    if endpoint.state == EndpointState.ENABLED and endpoint.failing_since is not None:
        return "failing"
    return str(endpoint.state)


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(StaffHistoryAdmin):
    """Webhook endpoints of the vendor and of customers: made (the secret is shown once), changed, tested."""

    list_display = ("url", "customer", "standing", "delivered_at", "failing_since", "created_at")
    list_select_related = ("customer",)
    list_filter = ("state",)
    search_fields = ("url", "description", "customer__code")
    search_help_text = "Address, description or customer code"
    autocomplete_fields = ("customer",)
    form = EndpointForm
    adds = ("customer", "url", "description", "event_types")
    edits = ("url", "description", "event_types")
    uuid_fields = ("customer_id",)
    fieldsets = (
        (None, {"fields": ("customer", "url", "description", "event_types")}),
        (
            "Delivery",
            {
                "fields": (
                    *("state", "disabled_at", "disabled_reason", "delivered_at"),
                    *("failing_since", "failures", "rests_until", "former_until"),
                )
            },
        ),
    )
    acts = (
        Act(
            name="test",
            label="Send a test…",
            permission="licensing.change_webhookendpoint",
            rule=webhooks.test,
            row_as="endpoint",
            says=lambda endpoint, at: [f"A message of type webhook.test is sent to {endpoint.url}."],
            done="The test is on its way: see the log.",
            form=NoInputs,
            offered=lambda endpoint, at: endpoint.state == EndpointState.ENABLED,
        ),
        Act(
            name="rotate",
            label="Replace secret…",
            permission="licensing.change_webhookendpoint",
            rule=webhooks.rotate,
            row_as="endpoint",
            says=lambda endpoint, at: ["Messages are signed by both secrets for a day, then by the new one alone."],
            done="The new secret",
            form=OptionalReasonForm,
            offered=_live,
            secret=lambda result: str(result[1]),
        ),
        Act(
            name="disable",
            label="Disable…",
            permission="licensing.change_webhookendpoint",
            rule=webhooks.disable,
            row_as="endpoint",
            says=lambda endpoint, at: [
                "Nothing is sent to it from now on; what waits for it becomes dead letters, which can be sent again."
            ],
            done="The endpoint is disabled.",
            offered=lambda endpoint, at: endpoint.state == EndpointState.ENABLED,
            danger=True,
        ),
        Act(
            name="enable",
            label="Enable…",
            permission="licensing.change_webhookendpoint",
            rule=webhooks.enable,
            row_as="endpoint",
            says=lambda endpoint, at: ["It is sent what happens from now on; what it missed can be sent again."],
            done="The endpoint is enabled.",
            form=OptionalReasonForm,
            offered=lambda endpoint, at: endpoint.state == EndpointState.DISABLED,
        ),
        Act(
            name="delete",
            label="Delete…",
            permission="licensing.change_webhookendpoint",
            rule=webhooks.delete,
            row_as="endpoint",
            says=lambda endpoint, at: ["Its secrets are forgotten and nothing is sent to it any more. Its log stays."],
            done="The endpoint is deleted.",
            offered=_live,
            danger=True,
        ),
    )

    @theme.display(
        description="standing",
        label={"enabled": "success", "failing": "warning", "disabled": "danger", "deleted": "default"},
    )
    def standing(self, endpoint: WebhookEndpoint) -> str:
        return _standing(endpoint)

    def editable(self, row: Any) -> bool:
        return bool(row.state != EndpointState.DELETED)

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        endpoint, request.secret = webhooks.create(**form.cleaned_data, by=self.by(request), at=at)  # type: ignore[attr-defined]
        return endpoint

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return webhooks.change(endpoint=form.instance, **form.cleaned_data, by=self.by(request), at=at)

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        return self.show_secret(request, "The endpoint is made.", request.secret, page_of(obj))  # type: ignore[attr-defined]

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Endpoint", row.url),
            ("Customer", str(row.customer or "the vendor")),
            ("Standing", _standing(row)),
        ]

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        outbox = reverse("admin:licensing_outboxmessage_changelist")
        return {
            "links": [
                ("Log", list_of(WebhookDelivery, endpoint__id__exact=row.pk)),
                ("Messages", f"{outbox}?q={events.target_of(row)}"),
                ("Audit record", list_of(AuditEntry, object_kind="webhookendpoint", object_id=row.pk)),
            ]
        }


class OutcomeFilter(SimpleListFilter):
    """How an attempt ended."""

    title = "outcome"
    parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("taken", "taken"), ("refused", "refused"), ("unanswered", "no answer")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        match self.value():
            case "taken":
                return queryset.filter(status__gte=200, status__lt=300)
            case "refused":
                return queryset.exclude(status__gte=200, status__lt=300).exclude(status=None)
            case "unanswered":
                return queryset.filter(status=None)
        return queryset


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(StaffModelAdmin):
    """Every attempt to deliver a webhook within 30 days, read-only."""

    list_display = ("at", "event_type", "endpoint", "outcome", "attempt", "duration", "license_shown")
    list_select_related = ("endpoint",)
    list_filter = (OutcomeFilter,)
    search_fields = ("event_type", "endpoint__url")
    search_help_text = "Type, address, webhook-id or license id"
    uuid_fields = ("message_id", "license_id", "endpoint_id")
    fieldsets = (
        (None, {"fields": ("at", "event_type", "endpoint", "license_shown", "message", "attempt")}),
        ("Answer", {"fields": ("outcome", "duration", "answer", "error")}),
    )

    @theme.display(description="outcome", label={"no answer": "danger"})
    def outcome(self, row: WebhookDelivery) -> str:
        return str(row.status) if row.status is not None else "no answer"

    @theme.display(description="took")
    def duration(self, row: WebhookDelivery) -> str:
        return f"{row.duration_ms} ms"

    @theme.display(description="license")
    def license_shown(self, row: WebhookDelivery) -> str:
        return license_link(row.license_id)

    @theme.display(description="webhook-id")
    def message(self, row: WebhookDelivery) -> Any:
        found = OutboxMessage.objects.filter(pk=row.message_id).first()
        return link_to(found, str(row.message_id)) if found else str(row.message_id)
