"""The staff pages of rules: what each is suspicious of, by which thresholds, and when it last looked.

Nothing here writes; a change of thresholds is `rules.change`.
"""

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from licensing import rules, watching
from licensing.admin import theme
from licensing.admin.base import StaffModelAdmin, instant, link_to, list_of
from licensing.admin.forms import ActForm, why
from licensing.audit import Actor
from licensing.errors import Invalid, LicensingError
from licensing.models import Anomaly, RuleRevision
from licensing.rules import Current, Rule, Standing
from licensing.states import AnomalyState

COLOURS = {"low": "default", "medium": "info", "high": "warning", "critical": "danger"}
HOLDS = (("no", "Only tell people"), ("yes", "Hold the license it suspects, until a person lifts that"))


class RuleForm(ActForm):
    """One field a threshold, what to do with the license, and why."""

    def __init__(self, *args: Any, row: Any, at: datetime, current: Current, **options: Any) -> None:
        super().__init__(*args, row=row, at=at, **options)
        for name, default in row.thresholds.items():
            self.fields[name] = forms.FloatField(
                label=name.replace("_", " ").capitalize(),
                min_value=0,
                initial=f"{current.thresholds[name]:g}",
                widget=theme.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
                help_text=f"{default:g} unless changed.",
            )
        self.fields["hold"] = forms.ChoiceField(
            label="What it does",
            choices=HOLDS,
            initial="yes" if current.hold else "no",
            widget=theme.Select,
            help_text="A hold for an anomaly is placed once and stays until somebody lifts it.",
        )
        self.fields["reason"] = why()
        self.fields["seen"] = forms.IntegerField(widget=forms.HiddenInput, initial=current.number)

    def arguments(self) -> dict[str, Any]:
        said = dict(self.cleaned_data)
        return {
            "thresholds": {name: said[name] for name in self.row.thresholds},
            "hold": said["hold"] == "yes",
            "reason": said["reason"],
            "seen": said["seen"],
        }

    def refuse(self, error: LicensingError) -> None:
        name = error.pointer.rpartition("/")[2] if isinstance(error, Invalid) else ""
        self.add_error(name if name in self.fields else None, error.detail)


def view(request: HttpRequest, *, site: Any) -> HttpResponse:
    """Show all rules: those that look by themselves first, with when they last did."""
    if not request.user.has_perm("licensing.view_anomaly"):
        raise PermissionDenied
    at = timezone.now()
    standings = watching.standings(at=at)
    context = {
        **site.each_context(request),
        "title": "Rules",
        "silent": [one.rule.id for one in standings if one.silent],
        "tables": [
            {
                "title": "Evaluated every few seconds",
                "headers": ["Rule", "Severity", "Thresholds", "Last looked", "Standing"],
                "rows": [_row(one) for one in standings if one.rule.kind == "job"],
            },
            {
                "title": "Noticed at once, where it happens",
                "headers": ["Rule", "Severity", "Holds"],
                "rows": [
                    [_link(one.rule), _badge(one.rule.severity), "yes" if one.current.hold else "no"]
                    for one in standings
                    if one.rule.kind == "write"
                ],
            },
        ],
    }
    return TemplateResponse(request, "admin/staff/rules.html", context)


def one(request: HttpRequest, rule_id: str, *, site: Any, by: Actor) -> HttpResponse:
    """Show a rule with its history; on POST have it go by other thresholds."""
    if not request.user.has_perm("licensing.view_anomaly"):
        raise PermissionDenied
    rule = rules.get(rule_id)
    if rule is None:
        raise Http404
    may_change = request.user.has_perm("licensing.change_rules")
    at, posted = timezone.now(), request.method == "POST"
    if posted and not may_change:
        raise PermissionDenied
    standing = next(each for each in watching.standings(at=at) if each.rule.id == rule_id)
    form = RuleForm(request.POST if posted else None, row=rule, at=at, current=standing.current)
    if posted and form.is_valid():
        try:
            rules.change(rule=rule_id, by=by, at=at, **form.arguments())
        except LicensingError as error:
            form.refuse(error)
        else:
            messages.success(request, "The rule goes by this from now on.")
            return HttpResponseRedirect(reverse("admin:rule", args=[rule_id]))
    open_ones = Anomaly.objects.filter(rule=rule_id).exclude(state=AnomalyState.RESOLVED).order_by("-last_at")[:20]
    context = {
        **site.each_context(request),
        "title": rule_id,
        "rule": rule,
        "colour": COLOURS[rule.severity],
        "facts": _facts(standing),
        "may_change": may_change,
        "form": form,
        "back": reverse("admin:rules"),
        "tables": [
            {
                "title": "Its anomalies that are not resolved",
                "more": list_of(Anomaly, rule__exact=rule_id),
                "headers": ["Anomaly", "Object", "Seen", "Last at", "State"],
                "rows": [
                    [
                        link_to(row, f"{row.first_at:%Y-%m-%d %H:%M}"),
                        f"{row.object_kind} {row.object_id}",
                        row.count,
                        instant(row.last_at),
                        row.state,
                    ]
                    for row in open_ones
                ],
            },
            {
                "title": "What it went by",
                "headers": ["Revision", "Since", "Thresholds changed", "Holds", "Why"],
                "rows": [
                    [
                        row.number,
                        instant(row.created_at),
                        _said(row.thresholds) or "none",
                        "yes" if row.hold else "no",
                        row.reason,
                    ]
                    for row in RuleRevision.objects.filter(rule=rule_id)
                ],
            },
        ],
    }
    return TemplateResponse(request, "admin/staff/rule.html", context, status=422 if form.errors else 200)


def _row(standing: Standing) -> list[Any]:
    state = "failed" if standing.last_error else "not running" if standing.silent else "looks"
    colour = {"looks": "success"}.get(state, "danger")
    if not standing.silent and standing.ran_at is None:
        state, colour = "not yet", "info"
    return [
        _link(standing.rule),
        _badge(standing.rule.severity),
        _said(standing.current.thresholds),
        instant(standing.ran_at, "never"),
        format_html('<span class="staff-badge staff-badge--{}">{}</span>', colour, state),
    ]


def _facts(standing: Standing) -> list[tuple[str, Any]]:
    rule, current = standing.rule, standing.current
    facts = [("Suspicious of", rule.says), ("Lists", rule.evidence), ("Version", rule.version)]
    if rule.kind == "job":
        facts += [
            ("Last looked", instant(standing.ran_at, "never")),
            ("Judged then", standing.looked_at),
            ("Standing", "not running for more than an hour" if standing.silent else "looks every few seconds"),
        ]
    else:
        facts += [("Noticed", "at once, where it happens")]
    facts += [("Failures", f"{standing.failures}, last: {standing.last_error}")] if standing.failures else []
    facts += [("Thresholds", _said(current.thresholds) or "none")]
    facts += [("Goes by", f"revision {current.number}: {current.reason}" if current.number else "its defaults")]
    return facts


def _said(thresholds: Any) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in thresholds.items())


def _link(rule: Rule) -> str:
    page = reverse("admin:rule", args=[rule.id])
    return format_html('<a class="staff-link" href="{}">{}</a><br>{}', page, rule.id, rule.says)


def _badge(severity: str) -> str:
    return format_html('<span class="staff-badge staff-badge--{}">{}</span>', COLOURS[severity], severity)


@admin.register(RuleRevision)
class RuleRevisionAdmin(StaffModelAdmin):
    """What rules went by, and why that was changed: read-only, the change is on the rule's page."""

    list_display = ("rule", "number", "created_at", "hold", "reason")
    list_filter = ("rule",)
    search_fields = ("rule",)
    search_help_text = "Rule"
    fieldsets = ((None, {"fields": ("rule", "number", "created_at", "thresholds", "hold", "reason", "id")}),)

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        return {"links": [("Rule", reverse("admin:rule", args=[row.rule]))]} if rules.get(row.rule) else {}
