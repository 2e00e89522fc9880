"""The look-up box: from whatever a customer sent to the license it is about.

POST only, so that a key never stands in an address, a log or a browser's history. A pasted key is never shown
again, and looking one up is recorded.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils import timezone

from licensing import keyformat, keys, lifecycle
from licensing.admin.base import as_uuid, looks_secret, page_of
from licensing.admin.licenses import COLOURS, tail_of
from licensing.audit import Actor
from licensing.errors import LicensingError, Missing
from licensing.models import Activation, License, LicenseKey, Seat

SHOWN = 50


@dataclass(frozen=True, slots=True)
class Found:
    """A license that fits, as the page lists it."""

    url: str
    key: str
    customer: str
    plan: str
    status: str
    colour: str


def view(request: HttpRequest, *, site: AdminSite, by: Actor) -> HttpResponse:
    """Show the box; on POST go to the license, or list those that fit."""
    if not request.user.has_perm("licensing.view_license"):
        raise PermissionDenied
    at = timezone.now()
    context: dict[str, Any] = {**site.each_context(request), "title": "Look up a license", "looked_up": True}
    status = 200
    if request.method == "POST":
        try:
            rows = _find(request, request.POST.get("q", "")[: keyformat.LONGEST + 1].strip(), by, at)
        except LicensingError as error:
            context["error"], status = error.detail, 422
        else:
            if len(rows) == 1:
                return HttpResponseRedirect(page_of(rows[0]))
            context["found"] = [_shown(row, at) for row in rows]
            context["shown"] = SHOWN
    return TemplateResponse(request, "admin/staff/look_up.html", context, status=status)


def _find(request: HttpRequest, text: str, by: Actor, at: datetime) -> list[License]:
    """Return the licenses `text` may mean. Raises `Mistyped`, or `Missing` when there is none."""
    if not text or "\x00" in text:
        raise Missing("Paste a license key, an id, the last 5 characters of a key, or a seat holder's email.")
    if looks_secret(text) or text.upper().startswith(keyformat.PREFIX):
        key = keys.look_up(text, by=by, at=at)
        if key.retired_at is not None:
            words = f"This key was replaced at {key.retired_at:%Y-%m-%d %H:%M} UTC and names nothing any more."
            messages.warning(request, words)
        return [key.license]
    licenses = License.objects.select_related("customer", "product", "plan_revision__plan").prefetch_related(
        "holds", Prefetch("keys", LicenseKey.objects.defer("digest", "sealed"))
    )
    found = as_uuid(text)
    if found is not None:
        rows = licenses.filter(
            Q(pk=found)
            | Q(pk__in=Seat.objects.filter(pk=found).values("license"))
            | Q(pk__in=Activation.objects.filter(pk=found).values("license"))
            | Q(pk__in=LicenseKey.objects.filter(pk=found).values("license"))
        )
    elif "@" in text:
        seats = Seat.objects.filter(holder=text.lower(), released_at=None)
        rows = licenses.filter(pk__in=seats.values("license"))
    else:
        rows = licenses.filter(pk__in=LicenseKey.objects.filter(last5=text.lstrip("…").upper()).values("license"))
    some = list(rows[:SHOWN])
    if not some:
        raise Missing("Nothing was found. Is it complete? A seat holder is found by their exact email address.")
    return some


def _shown(license: License, at: datetime) -> Found:
    status = str(lifecycle.status_of(license, at).label).lower()
    return Found(
        url=page_of(license),
        key=tail_of(license),
        customer=str(license.customer),
        plan=f"{license.product}: {license.plan_revision}",
        status=status,
        colour=COLOURS[status],
    )
