"""The staff page of what a license used: counters, credit, totals, events; and the correction of one event.

Usage tables are keyed by license, so there is no page a row and no list over all licenses: one looks at one license.
Nothing here writes; a correction is `metering.correct`'s.
"""

from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html

from billing import metering
from billing.admin.told import by_name, with_names
from billing.models import Rollup, UsageEvent
from billing.states import EventKind, Window
from licensing.admin import theme
from licensing.admin.base import as_uuid, figure, instant, link_to, list_of, quantity
from licensing.admin.forms import ActForm, why
from licensing.audit import Actor
from licensing.errors import LicensingError
from licensing.models import Counter, CreditGrant, License, Reservation
from licensing.states import ReservationState

EVENTS_A_PAGE = 50
SHOWN = 20


class CorrectionForm(ActForm):
    """By how much, and why."""

    quantity = forms.DecimalField(
        label="Correction",
        max_digits=24,
        decimal_places=6,
        widget=theme.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
        help_text="Added to what was reported: -5 takes five away, 5 adds five.",
    )
    reason = why()


def view(request: HttpRequest, *, site: Any) -> HttpResponse:
    """Show what the license of the address used, or ask for which."""
    if not request.user.has_perm("billing.view_usageevent"):
        raise PermissionDenied
    asked, event_id = request.GET.get("license", ""), request.GET.get("event", "").strip()
    license_id = as_uuid(asked) if asked.strip() else None
    rows = License.objects.select_related("customer", "product")
    license = rows.filter(pk=license_id).first() if license_id else None
    error = "" if license or not asked.strip() else "There is no license with this id. Look it up by its key instead."
    context = {
        **site.each_context(request),
        "title": "Usage",
        "asked": asked.strip()[:60],
        "event": event_id[:200],
        "error": error,
        "license": license,
    }
    if license is not None:
        context |= _shown(request, license, event_id)
    return TemplateResponse(request, "admin/staff/usage.html", context)


def correct(request: HttpRequest, *, site: Any, by: Actor) -> HttpResponse:
    """Ask by how much an event is to be corrected, and why; then have it corrected."""
    if not request.user.has_perms(("billing.view_usageevent", "billing.add_usageevent")):
        raise PermissionDenied
    license, event = _event_or_404(request)
    back = f"{reverse('admin:usage')}?{urlencode({'license': license.pk})}"
    at, posted = timezone.now(), request.method == "POST"
    form = CorrectionForm(request.POST if posted else None, row=event, at=at)
    if posted and form.is_valid():
        try:
            metering.correct(
                license=license,
                meter=event.meter_revision.meter.code,
                occurred_at=event.occurred_at,
                dimensions=event.dimensions,
                by=by,
                at=at,
                **form.arguments(),
            )
        except LicensingError as error:
            form.refuse(error)
        else:
            messages.success(request, "The correction is recorded and counted.")
            return HttpResponseRedirect(back)
    context = {
        **site.each_context(request),
        "title": "Correct usage",
        "facts": [
            ("License", link_to(license, f"{license.customer}: {license.product}")),
            ("Event", event.event_id),
            ("Meter", str(event.meter_revision.meter)),
            ("Quantity", quantity(event.quantity)),
            ("Occurred (UTC)", instant(event.occurred_at)),
            ("Received (UTC)", instant(event.received_at)),
            ("From", event.source),
        ],
        "says": [
            "The event stays as it was reported. A correction is recorded beside it, with your name and reason.",
            "It counts at the time of the event, in the term and the period that were in force then.",
            "On a statement that is final already it becomes an adjustment line of the next one.",
        ],
        "form": form,
        "back": back,
    }
    return TemplateResponse(request, "admin/staff/act.html", context, status=422 if posted else 200)


def _event_or_404(request: HttpRequest) -> tuple[License, UsageEvent]:
    license_id = as_uuid(request.GET.get("license", ""))
    try:
        occurred_at = parse_datetime(request.GET.get("at", ""))
    except ValueError:
        occurred_at = None
    license = (
        License.objects.select_related("customer", "product").filter(pk=license_id).first() if license_id else None
    )
    if license is None or occurred_at is None or occurred_at.tzinfo is None:
        raise Http404
    events = UsageEvent.objects.select_related("meter_revision__meter")
    event = events.filter(
        license_id=license.pk, occurred_at=occurred_at, event_id=request.GET.get("event", "")[:200]
    ).first()
    if event is None:
        raise Http404
    return license, event


def _shown(request: HttpRequest, license: License, event_id: str) -> dict[str, Any]:
    before = _before(request)
    events = UsageEvent.objects.filter(license_id=license.pk).select_related("meter_revision__meter")
    if event_id:
        events = events.filter(event_id=event_id)
    if before is not None:
        occurred_at, last_id = before
        events = events.filter(
            Q(occurred_at__lt=occurred_at) | Q(occurred_at=occurred_at, event_id__lt=last_id),
            occurred_at__lte=occurred_at,
        )
    found = list(events.order_by("-occurred_at", "-event_id")[: EVENTS_A_PAGE + 1])
    last = found[EVENTS_A_PAGE - 1] if len(found) > EVENTS_A_PAGE else None
    may_correct = request.user.has_perm("billing.add_usageevent")
    query = {"license": license.pk, **({"event": event_id} if event_id else {})}
    return {
        "license_link": link_to(license, f"{license.customer}: {license.product}"),
        "may_grant": request.user.has_perm("licensing.add_creditgrant"),
        "grant_url": f"{reverse('admin:licensing_creditgrant_add')}?{urlencode({'license': license.pk})}",
        "tables": [_counters(license), _credit(license), _reservations(license), _months(license)],
        "events": {
            "title": "Events",
            "headers": ["Occurred (UTC)", "Event", "Meter", "Quantity", "Dimensions", "Source", "What it is", ""],
            "figures": ["Quantity"],
            "empty": "There is no event with this id." if event_id else "No event was reported for this license.",
            "rows": [_event_cells(event, may_correct) for event in found[:EVENTS_A_PAGE]],
        },
        "older": (
            f"?{urlencode({**query, 'before': last.occurred_at.isoformat(), 'after': last.event_id})}" if last else ""
        ),
        "newest": f"?{urlencode(query)}" if before is not None else "",
    }


def _before(request: HttpRequest) -> tuple[datetime, str] | None:
    """Return where the page before ended: several events may have occurred at one instant, so by time and id."""
    try:
        found = parse_datetime(request.GET.get("before", ""))
    except ValueError:
        return None
    return (found, request.GET.get("after", "")[:200]) if found and found.tzinfo else None


def _event_cells(event: UsageEvent, may_correct: bool) -> list[Any]:
    query = urlencode({"license": event.license_id, "at": event.occurred_at.isoformat(), "event": event.event_id})
    correction = event.kind == EventKind.CORRECTION
    return [
        instant(event.occurred_at),
        event.event_id,
        str(event.meter_revision.meter),
        figure(quantity(event.quantity)),
        ", ".join(f"{name}: {value}" for name, value in (event.dimensions or {}).items()) or "–",
        event.source,
        f"correction: {event.reason}" if correction else "usage",
        ""
        if correction or not may_correct
        else format_html('<a class="staff-link" href="{}?{}">Correct…</a>', reverse("admin:correct_usage"), query),
    ]


def _counters(license: License) -> dict[str, Any]:
    rows = with_names(Counter.objects.filter(license=license)).order_by("-starts_at", "meter")[:SHOWN]
    return {
        "title": "Counters",
        "headers": ["Meter", "From (UTC)", "To (UTC)", "Used", "Allowance", "Reserved", "At most"],
        "figures": ["Used", "Allowance", "Reserved", "At most"],
        "help": "What is enforced, for each month and each term of the license. Meters that sum or count have one.",
        "empty": "Nothing was counted yet.",
        "rows": [
            [
                by_name(row),
                instant(row.starts_at),
                instant(row.ends_at),
                figure(quantity(row.used)),
                figure(quantity(row.allowance, "none")),
                figure(quantity(row.reserved)),
                figure(quantity(row.ceiling)),
            ]
            for row in rows
        ],
    }


def _credit(license: License) -> dict[str, Any]:
    granted = with_names(CreditGrant.objects.filter(license=license))
    rows = granted.order_by("meter", "priority", "expires_at", "id")[:SHOWN]
    return {
        "title": "Credit",
        "headers": ["Meter", "Left", "Granted", "Priority", "Expires (UTC)", "Reason"],
        "figures": ["Left", "Granted", "Priority"],
        "empty": "No prepaid credit was granted.",
        "rows": [
            [
                link_to(row, by_name(row)),
                figure(quantity(row.amount - row.drawn)),
                figure(quantity(row.amount)),
                figure(row.priority),
                instant(row.expires_at, "never"),
                row.reason or "–",
            ]
            for row in rows
        ],
        "more": list_of(CreditGrant, license__id__exact=license.pk),
    }


def _reservations(license: License) -> dict[str, Any]:
    rows = with_names(Reservation.objects.filter(license=license, state=ReservationState.OPEN))[:SHOWN]
    return {
        "title": "Open reservations",
        "headers": ["Meter", "Quantity", "Expires (UTC)", "Holder"],
        "figures": ["Quantity"],
        "empty": "Nothing is reserved.",
        "rows": [
            [link_to(r, by_name(r)), figure(quantity(r.quantity)), instant(r.expires_at), r.holder or "–"] for r in rows
        ],
        "more": list_of(Reservation, license__id__exact=license.pk),
    }


def _months(license: License) -> dict[str, Any]:
    rows = (
        Rollup.objects.filter(license_id=license.pk, window=Window.MONTH, group="")
        .select_related("meter_revision__meter")
        .order_by("-starts_at", "meter_revision")[:SHOWN]
    )
    return {
        "title": "Totals by month",
        "headers": ["Month", "Meter", "Quantity", "Events"],
        "figures": ["Quantity", "Events"],
        "help": "Rolled up from the events within a minute; what statements charge for.",
        "empty": "Nothing was rolled up yet.",
        "rows": [
            [
                f"{row.starts_at:%Y-%m}",
                str(row.meter_revision),
                figure(quantity(row.quantity)),
                figure(f"{row.events:,}"),
            ]
            for row in rows
        ],
    }
