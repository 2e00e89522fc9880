"""The staff site: our admin, its frame, and what every staff page is checked for.

It gives the pages who is acting, keeps secrets out of addresses, relaxes the content security policy for the
theme's scripts and no further, and shows where the jobs stand. Pages of models are the apps'.
"""

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from csp.decorators import csp_replace
from django.contrib import messages
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.urls import path, reverse
from django.utils import timezone
from unfold.sites import UnfoldAdminSite

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
        return [path("look-up/", self.admin_view(self.look_up), name="look_up"), *urls]

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
                _list("Audit record", "history_edu", "auditentry"),
                _list("Refusals", "block", "decisionrecord"),
            ],
        ),
        (
            "System",
            [
                _list("Jobs", "schedule", "jobstate"),
                _list("Outbox", "outbox", "outboxmessage"),
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


def _list(name: str, icon: str, model: str) -> tuple[str, str, str, str]:
    return (name, icon, f"admin:licensing_{model}_changelist", f"licensing.view_{model}")


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
        standings = [sweeps.standing(job, at=at) for job in sweeps.JOBS]
        overview["jobs"] = [(job, standing_said(job), lag_said(job)) for job in standings]
    if user.has_perm("licensing.view_anomaly"):
        overview["anomalies"] = list(Anomaly.objects.exclude(state=AnomalyState.RESOLVED).order_by("-last_at")[:8])
    if user.has_perm("licensing.view_outboxmessage"):
        overview["undelivered"] = OutboxMessage.objects.filter(
            Q(delivered_at=None), Q(given_up_at=None), due_at__lte=at
        )[:1000].count()
    return overview
