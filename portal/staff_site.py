"""The staff site: our admin, its frame, and what every staff page is checked for.

It gives the pages who is acting, keeps secrets out of addresses, relaxes the content security policy for the
theme's scripts and no further, and shows where the jobs stand. Pages of models are the apps'.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import wraps
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from csp.decorators import csp_replace
from django.contrib import messages
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import Count, ExpressionWrapper, F, FloatField, Q, Sum
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import path, reverse
from django.utils import timezone
from unfold.sites import UnfoldAdminSite

from licensing import audit
from licensing.audit import Actor

# The theme's Alpine evaluates attributes and sets styles inline; no script of another origin, none inline.
CONTENT_SECURITY_POLICY = {
    "default-src": [SELF],
    "script-src": [SELF, UNSAFE_EVAL],
    "style-src": [SELF, UNSAFE_INLINE],
    "img-src": [SELF, "data:"],
    "object-src": [NONE],
    "base-uri": [NONE],
    "frame-ancestors": [NONE],
    "form-action": [SELF],
}


class StaffSite(UnfoldAdminSite):
    """The admin site of the vendor's staff."""

    index_template = "admin/staff/index.html"
    index_title = "Overview"
    enable_nav_sidebar = True

    def actor_of(self, request: HttpRequest) -> Actor:
        """Return the signed-in person as the audit record names them."""
        from portal import access

        return access.actor_of(request)

    def get_urls(self) -> list[Any]:
        # The theme's search sends what is typed, as it is typed, in the address: here that could be a key.
        urls = [url for url in super().get_urls() if getattr(url, "name", None) != "search"]
        return [
            path("look-up/", self.admin_view(self.look_up), name="look_up"),
            path("rules/", self.admin_view(self.rules), name="rules"),
            path("rules/<slug:rule_id>/", self.admin_view(self.rule), name="rule"),
            path("usage/", self.admin_view(self.usage), name="usage"),
            path("usage/correct/", self.admin_view(self.correct_usage), name="correct_usage"),
            path("statements/<uuid:pk>/statement.<slug:form>", self.admin_view(self.statement), name="statement_file"),
            *urls,
        ]

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Callable[..., Any]:
        return _framed(super().admin_view(view, cacheable))

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method == "GET" and REDIRECT_FIELD_NAME not in request.GET:
            # The theme's form posts to its own address: without this, staff would land on the customers' pages.
            query = urlencode({REDIRECT_FIELD_NAME: reverse("admin:index")})
            return HttpResponseRedirect(f"{request.path}?{query}")
        return _framed(super().login)(request, extra_context)

    def look_up(self, request: HttpRequest) -> HttpResponse:
        """Find a license from whatever a customer sent."""
        from licensing.admin import look_up

        return look_up.view(request, site=self, by=self.actor_of(request))

    def rules(self, request: HttpRequest) -> HttpResponse:
        """Show the rules by which anomalies are found, and how each stands."""
        from licensing.admin import rules

        return rules.view(request, site=self)

    def rule(self, request: HttpRequest, rule_id: str) -> HttpResponse:
        """Show one rule, and change its thresholds."""
        from licensing.admin import rules

        return rules.one(request, rule_id, site=self, by=self.actor_of(request))

    def usage(self, request: HttpRequest) -> HttpResponse:
        """Show what a license used: its counters, credit, totals and events."""
        from billing.admin import usage

        return usage.view(request, site=self)

    def correct_usage(self, request: HttpRequest) -> HttpResponse:
        """Correct what one event reported, by another one."""
        from billing.admin import usage

        return usage.correct(request, site=self, by=self.actor_of(request))

    def statement(self, request: HttpRequest, pk: UUID, form: str) -> HttpResponse:
        """Send a statement as a file, the same that the customer gets."""
        from billing.models import Statement
        from portal import downloads

        if not request.user.has_perm("billing.view_statement"):
            raise PermissionDenied
        row = get_object_or_404(Statement, pk=pk)
        file = downloads.statement(row, form)
        audit.saw(row=row, by=self.actor_of(request), at=timezone.now())
        return file

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().index(request, {**_overview(request, timezone.now()), **(extra_context or {})})


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the sidebar: what this person may see, in the words of the house."""
    groups: list[tuple[str, list[tuple[str, str, str, str]]]] = [
        (
            "Support",
            [
                ("Look up", "search", "admin:look_up", "licensing.view_license"),
                _list("Licenses", "key", "license"),
                _list("Seats", "event_seat", "seat"),
                _list("Machines", "computer", "activation"),
                _list("Leases", "timelapse", "lease"),
                _list("License files", "description", "licensefile"),
                _list("Holds", "pause_circle", "hold"),
                _list("Keys", "password", "licensekey"),
                _list("Terms", "date_range", "term"),
            ],
        ),
        (
            "Catalog",
            [
                _list("Products", "inventory_2", "product"),
                _list("Releases", "new_releases", "release"),
                _list("Plans", "sell", "plan"),
                _list("Plan revisions", "rule", "planrevision"),
                _list("Entitlements", "checklist", "entitlement"),
            ],
        ),
        (
            "Billing",
            [
                ("Usage", "monitoring", "admin:usage", "billing.view_usageevent"),
                _list("Credit", "savings", "creditgrant"),
                _list("Reservations", "bookmark", "reservation"),
                _list("Statements", "receipt_long", "statement", "billing"),
                _list("Statement lines", "list_alt", "statementline", "billing"),
                _list("Billing accounts", "account_balance", "billingaccount", "billing"),
                _list("Meters", "speed", "meter", "billing"),
                _list("Meter revisions", "tune", "meterrevision", "billing"),
                _list("Prices", "payments", "price", "billing"),
                _list("Price revisions", "request_quote", "pricerevision", "billing"),
            ],
        ),
        (
            "Payments",
            [
                _list("Payments", "paid", "payment", "billing"),
                _list("Refunds and disputes", "undo", "reversal", "billing"),
                _list("Gateway invoices", "outgoing_mail", "gatewayinvoice", "billing"),
                _list("Gateway messages", "mark_email_read", "gatewayevent", "billing"),
                _list("Dunning steps", "notifications", "dunningstep", "billing"),
                _list("Holds for payment", "front_hand", "dunninghold", "billing"),
            ],
        ),
        (
            "Changes of scheme",
            [
                _list("Scheme changes", "swap_horiz", "schemechange"),
                _list("Rollouts", "rocket_launch", "rollout", "billing"),
                _list("Licenses in rollouts", "checklist_rtl", "rolloutmember", "billing"),
                _list("Differences", "compare_arrows", "rolloutdifference", "billing"),
            ],
        ),
        (
            "Customers",
            [
                _list("Customers", "apartment", "customer"),
                _list("Members", "group", "member"),
                _list("API credentials", "vpn_key", "credential"),
            ],
        ),
        (
            "Evidence",
            [
                _list("Anomalies", "warning", "anomaly"),
                ("Rules", "gavel", "admin:rules", "licensing.view_anomaly"),
                _list("Changes of rules", "history", "rulerevision"),
                _list("Audit record", "history_edu", "auditentry"),
                _list("Audit chain", "link", "auditlink"),
                _list("Checkpoints", "verified", "auditcheckpoint"),
                _list("Refusals", "block", "decisionrecord"),
            ],
        ),
        (
            "System",
            [
                _list("Jobs", "schedule", "jobstate"),
                _list("Outbox", "outbox", "outboxmessage"),
                _list("Reminders", "notifications", "reminder"),
                _list("Webhook endpoints", "webhook", "webhookendpoint"),
                _list("Webhook log", "cell_tower", "webhookdelivery"),
                _list("Kept answers", "replay", "idempotencyrecord"),
                ("Staff and people", "person", "admin:portal_user_changelist", "portal.view_user"),
                ("Wrong passwords", "lock", "admin:axes_accessattempt_changelist", "axes.view_accessattempt"),
                ("Staff groups", "groups", "admin:auth_group_changelist", "auth.view_group"),
            ],
        ),
    ]
    return [
        {
            "title": title,
            "separator": True,
            "items": [
                {"title": name, "icon": icon, "link": reverse(view)}
                for name, icon, view, permission in items
                if request.user.has_perm(permission)
            ],
        }
        for title, items in groups
        if any(request.user.has_perm(permission) for *_, permission in items)
    ]


def _list(name: str, icon: str, model: str, app: str = "licensing") -> tuple[str, str, str, str]:
    return (name, icon, f"admin:{app}_{model}_changelist", f"{app}.view_{model}")


def _framed(view: Callable[..., Any]) -> Callable[..., Any]:
    """Return the view behind what every staff page is checked for, before it asks who is there: a redirect to the
    login would carry the address along."""

    @wraps(view)
    def framed(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return _without_secrets(request) or view(request, *args, **kwargs)

    return csp_replace(CONTENT_SECURITY_POLICY)(framed)


def _without_secrets(request: HttpRequest) -> HttpResponse | None:
    """Refuse an address that holds what looks like a key or secret: back to the page without it, with a hint."""
    from licensing.admin.base import looks_secret

    if any("\x00" in value for _, values in request.GET.lists() for value in values):
        return HttpResponseBadRequest("The address holds a NUL character.", content_type="text/plain")
    in_path = looks_secret(request.path)
    if not in_path and not any(looks_secret(value) for _, values in request.GET.lists() for value in values):
        return None
    messages.warning(
        request,
        "That looks like a license key or a secret. It was not searched for: keys do not belong in an address. "
        "Paste a license key into “Look up” instead.",
    )
    return HttpResponseRedirect(reverse("admin:index") if in_path else request.path)


def _overview(request: HttpRequest, at: datetime) -> dict[str, Any]:
    from licensing import sweeps
    from licensing.admin.system import lag_said, standing_said
    from licensing.models import Anomaly, OutboxMessage
    from licensing.states import AnomalyState

    user: Any = request.user
    overview: dict[str, Any] = {"may_look_up": user.has_perm("licensing.view_license")}
    if user.has_perm("licensing.view_jobstate"):
        standings = [sweeps.standing(job, at=at) for job in sweeps.every()]
        overview["jobs"] = [(job, standing_said(job), lag_said(job)) for job in standings]
    if user.has_perm("licensing.view_anomaly"):
        overview["anomalies"] = list(Anomaly.objects.exclude(state=AnomalyState.RESOLVED).order_by("-last_at")[:8])
    if user.has_perm("licensing.view_outboxmessage"):
        overview["undelivered"] = OutboxMessage.objects.filter(
            Q(delivered_at=None), Q(given_up_at=None), due_at__lte=at
        )[:1000].count()
    if user.has_perm("billing.view_statement"):
        overview["owed"] = _owed(at)
    if user.has_perm("billing.view_usageevent"):
        overview["near"] = _near_their_limits(at)
    return overview


def _owed(at: datetime) -> list[dict[str, Any]]:
    """Return what is open by standing: how many statements, and how much in each currency."""
    from billing import words
    from billing.models import Statement
    from billing.states import StatementState

    final = Q(state=StatementState.FINAL)
    page = reverse("admin:billing_statement_changelist")
    found = []
    for name, rows, query in (
        ("Overdue", final & Q(due_at__lte=at), "state__exact=final"),
        ("To be paid", final & (Q(due_at=None) | Q(due_at__gt=at)), "state__exact=final"),
        ("Drafts", Q(state=StatementState.DRAFT), "state__exact=draft"),
    ):
        totals = Statement.objects.filter(rows).order_by("currency").values("currency")
        for each in totals.annotate(count=Count("pk"), total=Sum("total_minor")):
            amount = words.money(each["total"], each["currency"])
            found.append({"name": name, "count": each["count"], "amount": amount, "url": f"{page}?{query}"})
    return found


def _near_their_limits(at: datetime) -> list[dict[str, Any]]:
    """Return the counters of now that hold the most of their allowance, from 80 % on."""
    from licensing.admin.base import quantity
    from licensing.models import Counter

    held = F("used") + F("reserved")
    rows = (
        Counter.objects.filter(starts_at__lte=at, ends_at__gt=at, allowance__gt=0)
        .annotate(part=ExpressionWrapper(held * Decimal(100) / F("allowance"), output_field=FloatField()))
        .filter(part__gte=80)
        .select_related("license__customer", "license__product")
        .order_by("-part")[:8]
    )
    return [
        {
            "name": f"{row.license.customer}: {row.license.product}",
            "meter": row.meter,
            "used": f"{quantity(row.used)} of {quantity(row.allowance)}",
            "percent": int(row.part),
            "url": f"{reverse('admin:usage')}?license={row.license_id}",
        }
        for row in rows
    ]
