"""Staff pages of what happened: the audit record, refusals, anomalies. Only anomalies can be acted on."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.apps import apps
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.db.models import Q
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html

from licensing import anomalies
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffHistoryAdmin, StaffModelAdmin, as_uuid
from licensing.admin.forms import ActForm, NoInputs
from licensing.models import Anomaly, AuditEntry, DecisionRecord
from licensing.states import AnomalyState, VerdictCode

KINDS = (
    "license",
    "seat",
    "activation",
    "customer",
    "member",
    "credential",
    "product",
    "plan",
    "planrevision",
    "release",
    "anomaly",
    "user",
    "group",
)


def license_link(license_id: UUID | None) -> str:
    """Return a link to a license by its id alone: these tables hold no foreign key."""
    if license_id is None:
        return "–"
    return format_html(
        '<a class="staff-link staff-mono" href="{}">{}</a>',
        reverse("admin:licensing_license_change", args=[license_id]),
        license_id,
    )


def object_link(kind: str, object_id: str) -> str:
    """Return a link to what an entry is about, where that has a page."""
    for app in ("licensing", "billing", "portal", "auth"):
        try:
            apps.get_model(app, kind)
            return format_html(
                '<a class="staff-link" href="{}">{} {}</a>',
                reverse(f"admin:{app}_{kind}_change", args=[object_id]),
                kind,
                object_id,
            )
        except (LookupError, NoReverseMatch):
            continue
    return f"{kind} {object_id}"


class KindFilter(SimpleListFilter):
    """What an entry is about: a fixed list, since asking a large table for its kinds is slow."""

    title = "object"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind, kind) for kind in KINDS]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(object_kind=self.value()) if self.value() else queryset


class ActorFilter(SimpleListFilter):
    """Who acted."""

    title = "actor"
    parameter_name = "actor"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind, kind) for kind in ("staff", "member", "credential", "license", "system")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(actor_kind=self.value()) if self.value() else queryset


class SinceFilter(SimpleListFilter):
    """How long ago."""

    title = "time"
    parameter_name = "since"
    SPANS = {
        "hour": ("the last hour", timedelta(hours=1)),
        "day": ("the last day", timedelta(days=1)),
        "week": ("the last week", timedelta(days=7)),
        "month": ("the last 30 days", timedelta(days=30)),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, words) for name, (words, _) in self.SPANS.items()]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        span = self.SPANS.get(self.value() or "")
        return queryset.filter(at__gte=timezone.now() - span[1]) if span else queryset


@admin.register(AuditEntry)
class AuditEntryAdmin(StaffModelAdmin):
    """The audit record: read-only, for everybody, always."""

    list_display = ("at", "action", "actor", "object_kind", "object_id", "reason_shown")
    list_filter = (SinceFilter, KindFilter, ActorFilter)
    search_fields = ("action",)
    search_help_text = "Action, actor's email, request id, or any id"
    fieldsets = (
        ("What", {"fields": ("action", "about", "on_license", "before", "after", "reason")}),
        ("Who", {"fields": ("actor_kind", "actor_label", "actor_role", "actor_id", "address", "request_id")}),
        ("When", {"fields": ("at", "id")}),
    )

    @theme.display(description="actor")
    def actor(self, entry: AuditEntry) -> str:
        return entry.actor_label or f"{entry.actor_kind} {entry.actor_id}".strip()

    @theme.display(description="reason")
    def reason_shown(self, entry: AuditEntry) -> str:
        return entry.reason if len(entry.reason) <= 60 else f"{entry.reason[:59]}…"

    @theme.display(description="object")
    def about(self, entry: AuditEntry) -> str:
        return object_link(entry.object_kind, entry.object_id)

    @theme.display(description="license")
    def on_license(self, entry: AuditEntry) -> str:
        return license_link(entry.license_id)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term, found = search_term.strip(), as_uuid(search_term)
        if found:
            same = Q(pk=found) | Q(license_id=found) | Q(customer_id=found) | Q(object_id=str(found))
            return queryset.filter(same | Q(request_id=str(found))), False
        if term:
            queryset = queryset.filter(Q(action__startswith=term.lower()) | Q(actor_label=term) | Q(request_id=term))
        return queryset, False


@admin.register(DecisionRecord)
class DecisionRecordAdmin(StaffModelAdmin):
    """Why validations were refused, for 30 days."""

    list_display = ("at", "code_shown", "license_shown", "caller", "request_id")
    list_filter = (SinceFilter, "code")
    search_fields = ("request_id",)
    search_help_text = "Request id or license id"
    uuid_fields = ("license_id",)
    fieldsets = ((None, {"fields": ("at", "code_shown", "looked_at", "license_shown", "caller", "request_id")}),)

    @theme.display(description="verdict", ordering="code")
    def code_shown(self, record: DecisionRecord) -> str:
        return str(VerdictCode(record.code).label) if record.code in VerdictCode.values else record.code

    @theme.display(description="license")
    def license_shown(self, record: DecisionRecord) -> str:
        return license_link(record.license_id)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term, found = search_term.strip(), as_uuid(search_term)
        if found:
            return queryset.filter(Q(pk=found) | Q(license_id=found) | Q(request_id=str(found))), False
        return (queryset.filter(request_id=term) if term else queryset), False


class ResolutionForm(ActForm):
    """What a person found."""

    resolution = forms.CharField(
        label="What was found",
        widget=theme.Textarea(attrs={"rows": 4}),
        max_length=4000,
        help_text="Kept with the anomaly and in the audit record. No keys.",
    )


@admin.register(Anomaly)
class AnomalyAdmin(StaffHistoryAdmin):
    """Anomalies: looked at, then resolved in a person's words."""

    list_display = ("rule", "severity_shown", "state_shown", "object_kind", "object_id", "count", "last_at")
    list_filter = ("state", "severity", "rule")
    search_fields = ("rule", "object_id")
    search_help_text = "Rule or any id"
    date_hierarchy = "first_at"
    uuid_fields = ("license_id",)
    fieldsets = (
        ("Suspicion", {"fields": ("rule", "severity", "evidence", "about", "license", "count", "first_at", "last_at")}),
        ("Resolution", {"fields": ("state", "resolution", "resolved_at")}),
    )
    acts = (
        Act(
            name="acknowledge",
            label="Acknowledge…",
            permission="licensing.change_anomaly",
            rule=anomalies.acknowledge,
            row_as="anomaly",
            form=NoInputs,
            says=lambda anomaly, at: ["Others see that somebody looks at it. It stays until it is resolved."],
            done="The anomaly is acknowledged.",
            offered=lambda anomaly, at: anomaly.state == AnomalyState.OPEN,
        ),
        Act(
            name="resolve",
            label="Resolve…",
            permission="licensing.change_anomaly",
            rule=anomalies.resolve,
            row_as="anomaly",
            form=ResolutionForm,
            says=lambda anomaly, at: ["It is closed with your words. The same suspicion makes a new anomaly."],
            done="The anomaly is resolved.",
            offered=lambda anomaly, at: anomaly.state != AnomalyState.RESOLVED,
        ),
    )

    @theme.display(description="object")
    def about(self, anomaly: Anomaly) -> str:
        return object_link(anomaly.object_kind, anomaly.object_id)

    @theme.display(
        description="severity",
        ordering="severity",
        label={"low": "default", "medium": "info", "high": "warning", "critical": "danger"},
    )
    def severity_shown(self, anomaly: Anomaly) -> str:
        return anomaly.severity

    @theme.display(
        description="state",
        ordering="state",
        label={"open": "danger", "acknowledged": "warning", "resolved": "success"},
    )
    def state_shown(self, anomaly: Anomaly) -> str:
        return anomaly.state

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        found = as_uuid(search_term)
        if found:
            same = Q(pk=found) | Q(license_id=found) | Q(object_id=str(found))
            return queryset.filter(same), False
        return super().get_search_results(request, queryset, search_term)

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Rule", row.rule),
            ("Severity", row.severity),
            ("Object", object_link(row.object_kind, row.object_id)),
            ("Seen", f"{row.count} times, last at {row.last_at:%Y-%m-%d %H:%M} UTC"),
        ]
