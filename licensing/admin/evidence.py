"""Staff pages of what happened: the audit record and its chain, refusals, anomalies. Only anomalies can be acted on."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.apps import apps
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.contrib.auth import get_user_model
from django.db.models import Case, Q, When
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html

from licensing import anomalies, audit, chain, checkpoints, rules
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffHistoryAdmin, StaffModelAdmin, as_uuid, instant, told
from licensing.admin.forms import ActForm, NoInputs, SpanField, why
from licensing.errors import Invalid, LicensingError
from licensing.models import Anomaly, AuditCheckpoint, AuditEntry, AuditLink, DecisionRecord, JobState
from licensing.states import AnomalyState, Severity, VerdictCode

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

    shows_personal = ()  # who reads the record would write it
    list_display = ("at", "action", "actor", "object_kind", "object_id", "reason_shown")
    list_filter = (SinceFilter, KindFilter, ActorFilter)
    search_fields = ("action",)
    search_help_text = "Action, actor's email, request id, or any id"
    fieldsets = (
        ("What", {"fields": ("action", "about", "on_license", "before", "after", "reason")}),
        ("Who", {"fields": ("actor_kind", "actor_label", "actor_role", "actor_id", "address", "request_id")}),
        ("When", {"fields": ("at", "number", "id")}),
    )

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        entry = super().get_object(request, object_id, from_field)
        return audit.opened([entry])[0] if entry else None

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        shown = super().get_changelist_instance(request)
        shown.result_list = audit.opened(shown.result_list)
        return shown

    @theme.display(description="number in the chain")
    def number(self, entry: AuditEntry) -> str:
        number = chain.number_of(entry.pk)
        if number is None:
            return "It waits for its number."
        return format_html(
            '<a class="staff-link" href="{}">{}</a>', reverse("admin:licensing_auditlink_change", args=[number]), number
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
            people = [
                str(pk) for pk in get_user_model().objects.filter(email=term.lower()).values_list("pk", flat=True)
            ]
            by = Q(actor_label=term) | Q(actor_kind__in=audit.PERSONS, actor_id__in=people)
            queryset = queryset.filter(by | Q(action__startswith=term.lower()) | Q(request_id=term))
        return queryset, False


class ChainAdmin(StaffModelAdmin):
    """How chain and checkpoints stand, above the list of either."""

    list_before_template = "admin/staff/chain.html"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        at = timezone.now()
        stands, last = chain.standing(at=at), checkpoints.latest()
        facts = [
            ("Entries in the chain", f"{stands.size:,}"),
            ("Oldest entry without a number", f"{stands.lag.total_seconds():.1f} s" if stands.lag else "none"),
            ("Last checkpoint", instant(last.at, "none yet") if last else "none yet"),
            ("Entries after it", f"{stands.size - (last.size if last else 0):,}"),
        ]
        shown = {
            "facts": facts,
            "sinks": checkpoints.sinks(at=at),
            "problems": list(checkpoints.problems(at=at).values()),
            "verified": JobState.objects.filter(name="audit-verify").first(),
        }
        return super().changelist_view(request, {"chain": shown, **(extra_context or {})})


@admin.register(AuditLink)
class AuditLinkAdmin(ChainAdmin):
    """The places of audit entries in the chain, read-only."""

    list_display = ("number", "entry_shown", "head")
    search_fields = ("number",)
    search_help_text = "Number, or id of an entry"
    fieldsets = ((None, {"fields": ("number", "entry_shown", "form", "content", "head")}),)

    @theme.display(description="entry")
    def entry_shown(self, link: AuditLink) -> str:
        return format_html(
            '<a class="staff-link staff-mono" href="{}">{}</a>',
            reverse("admin:licensing_auditentry_change", args=[link.entry_id]),
            link.entry_id,
        )

    @theme.display(description="hash of the entry")
    def content(self, link: AuditLink) -> str:
        return format_html('<span class="staff-mono">{}</span>', bytes(link.content_hash).hex())

    @theme.display(description="hash of the chain up to here")
    def head(self, link: AuditLink) -> str:
        return format_html('<span class="staff-mono">{}</span>', bytes(link.chain_hash).hex())

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term, found = search_term.strip(), as_uuid(search_term)
        if found:
            return queryset.filter(entry_id=found), False
        if term:
            queryset = queryset.filter(number=int(term)) if term.isdecimal() and len(term) < 19 else queryset.none()
        return queryset, False


@admin.register(AuditCheckpoint)
class AuditCheckpointAdmin(ChainAdmin):
    """The signed checkpoints, read-only."""

    list_display = ("at", "size", "kid")
    search_fields = ("size",)
    search_help_text = "Number of entries, or id"
    fieldsets = (
        (None, {"fields": ("at", "size", "head_shown", "kid", "signature_shown", "id")}),
        ("As a line for the verifier", {"fields": ("line",)}),
    )

    @theme.display(description="hash of the chain")
    def head_shown(self, row: AuditCheckpoint) -> str:
        return format_html('<span class="staff-mono">{}</span>', bytes(row.head).hex())

    @theme.display(description="signature")
    def signature_shown(self, row: AuditCheckpoint) -> str:
        return format_html('<span class="staff-mono">{}</span>', bytes(row.signature).hex())

    @theme.display(description="line")
    def line(self, row: AuditCheckpoint) -> str:
        return format_html('<span class="staff-mono">{}</span>', checkpoints.of(row).line())

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term, found = search_term.strip(), as_uuid(search_term)
        if found:
            return queryset.filter(pk=found), False
        if term:
            queryset = queryset.filter(size=int(term)) if term.isdecimal() and len(term) < 19 else queryset.none()
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


_ROWS = ("license", "seat", "activation", "anomaly", "auditentry", "customer")


def _evident(name: str, value: Any) -> Any:
    """Return one value of a row of evidence: an instant, a link to what has a page, or as it is."""
    if value is None:
        return "–"
    if name in _ROWS and as_uuid(str(value)):
        return object_link(name, str(value))
    if (name.endswith("_at") or name in ("at", "hour")) and (at := parse_datetime(str(value))):
        return instant(at)
    return value


class ResolutionForm(ActForm):
    """What a person found."""

    resolution = forms.CharField(
        label="What was found",
        widget=theme.Textarea(attrs={"rows": 4}),
        max_length=4000,
        help_text="Kept with the anomaly and in the audit record. No keys.",
    )


class SnoozeForm(ActForm):
    """For how long, and why."""

    span = SpanField(label="For how long", help_text="At most 90 days.")
    reason = why()

    def arguments(self) -> dict[str, Any]:
        return {"until": self.at + self.cleaned_data["span"], "reason": self.cleaned_data["reason"]}

    def refuse(self, error: LicensingError) -> None:
        self.add_error("span" if isinstance(error, Invalid) else None, error.detail)


# Open ones first, the gravest of them on top.
_STANDING = Case(
    When(state=AnomalyState.OPEN, then=0),
    When(state=AnomalyState.ACKNOWLEDGED, then=1),
    When(state=AnomalyState.SNOOZED, then=2),
    default=3,
)
_GRAVITY = Case(*(When(severity=name, then=place) for place, name in enumerate(reversed(Severity.values))), default=9)


@admin.register(Anomaly)
class AnomalyAdmin(StaffHistoryAdmin):
    """Anomalies: looked at, then resolved in a person's words."""

    change_form_template = "admin/licensing/anomaly/change_form.html"

    list_display = ("rule", "severity_shown", "state_shown", "object_kind", "object_id", "count", "last_at")
    list_filter = ("state", "severity", "rule")
    search_fields = ("rule", "object_id")
    search_help_text = "Rule or any id"
    date_hierarchy = "first_at"
    uuid_fields = ("license_id",)
    fieldsets = (
        ("Suspicion", {"fields": ("rule_shown", "severity_shown", "facts", "about", "license")}),
        ("When", {"fields": ("count", "first_at", "last_at", "alerted_at")}),
        ("Judged by", {"fields": ("rule_version", "revision", "thresholds")}),
        ("Resolution", {"fields": ("state", "snoozed_until", "resolution", "resolved_at")}),
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
            name="snooze",
            label="Snooze…",
            permission="licensing.change_anomaly",
            rule=anomalies.snooze,
            row_as="anomaly",
            form=SnoozeForm,
            says=lambda anomaly, at: [
                "Until then nobody is told what this rule says of this object; it is recorded all the same.",
                "Afterwards it is open again by itself.",
            ],
            done="The anomaly is snoozed.",
            offered=lambda anomaly, at: anomaly.state != AnomalyState.RESOLVED,
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
        label={"open": "danger", "acknowledged": "warning", "snoozed": "info", "resolved": "success"},
    )
    def state_shown(self, anomaly: Anomaly) -> str:
        return anomaly.state

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        found = as_uuid(search_term)
        if found:
            same = Q(pk=found) | Q(license_id=found) | Q(object_id=str(found))
            return queryset.filter(same), False
        return super().get_search_results(request, queryset, search_term)

    def get_ordering(self, request: HttpRequest) -> Any:
        return [_STANDING.asc(), _GRAVITY.asc(), "-last_at", "-id"]

    @theme.display(description="rule")
    def rule_shown(self, anomaly: Anomaly) -> str:
        rule = rules.get(anomaly.rule)
        if rule is None:
            return anomaly.rule
        page = reverse("admin:rule", args=[rule.id])
        return format_html('<a class="staff-link" href="{}">{}</a><br>{}', page, rule.id, rule.says)

    @theme.display(description="evidence")
    def facts(self, anomaly: Anomaly) -> Any:
        return told({name: value for name, value in anomaly.evidence.items() if name != "rows"})

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        listed = row.evidence.get("rows")
        if not isinstance(listed, list) or not all(isinstance(line, dict) for line in listed):
            return {}
        names = list(dict.fromkeys(name for line in listed for name in line))
        table = {
            "title": "Evidence",
            "headers": [name.removesuffix("_at").replace("_", " ").capitalize() for name in names],
            "rows": [[_evident(name, line.get(name)) for name in names] for line in listed],
        }
        return {"tables": [table] if listed else []}

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Rule", row.rule),
            ("Severity", row.severity),
            ("Object", object_link(row.object_kind, row.object_id)),
            ("Seen", f"{row.count} times, last at {row.last_at:%Y-%m-%d %H:%M} UTC"),
        ]
