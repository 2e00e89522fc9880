"""The customer's pages: licenses, seats, key download.

Each view gets its object through `access`, asks one rule to make the change, and shows what `overview` reads or
what the rule answered. No rule stands here, and a key leaves only as a download.
"""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from allauth.account.decorators import reauthentication_required
from allauth.core.exceptions import ReauthenticationRequired
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from licensing import customers, keys, leases, license_files, seats
from licensing.errors import Forbidden, Invalid, LicensingError, Missing, Refused, TooMany
from licensing.models import Lease, License, Member, Seat
from licensing.states import SeatKind
from portal import access, overview
from portal.forms import (
    AssignForm,
    EndLeaseForm,
    LicenseFilter,
    OfflineForm,
    ReleaseForm,
    RevealForm,
    RuleForm,
    SeatFilter,
    TransferForm,
)

KEPT_REASON = "key_download_reason"


@login_required
@never_cache
@require_safe
def licenses(request: HttpRequest) -> HttpResponse:
    """List the licenses of every customer the person is a member of."""
    mine = overview.customers_of(request.user)
    if not mine:
        return render(request, "portal/no_memberships.html")
    filters = LicenseFilter(request.GET, products=overview.products_of(request.user))
    status, product = filters.value("status"), filters.value("product")
    found = overview.list_of_licenses(
        user=request.user,
        asked=request.GET,
        path=request.path,
        status=status,
        product=product,
        at=timezone.now(),
    )
    context = {"found": found, "filters": filters, "filtered": bool(status or product), "customers": mine}
    return render(request, "portal/licenses.html", context)


@login_required
@never_cache
@require_safe
def license(request: HttpRequest, license_id: UUID) -> HttpResponse:
    """Show one license."""
    found, member = access.license_or_404(request, license_id)
    return _license_page(request, found, member, AssignForm())


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def assign_seat(request: HttpRequest, license_id: UUID) -> HttpResponse:
    """Give somebody a seat. Reached by GET (after signing in again, say), show the license."""
    found, member = access.license_or_404(request, license_id)
    if request.method != "POST":
        return redirect("portal:license", license_id=found.pk)
    _only(customers.MAY_MANAGE_SEATS, member)
    form = AssignForm(request.POST)
    if not form.is_valid():
        return _license_page(request, found, member, form, status=400)
    try:
        made = seats.assign(
            license=found,
            holder=form.cleaned_data["holder"],
            by=access.actor_of(request, member),
            at=timezone.now(),
        )
    except LicensingError as error:
        form.blame(error)
        return _license_page(request, found, member, form, status=_status_of(error))
    words = "now has a seat." if made.created else "has a seat already. Nothing was changed."
    messages.success(request, f"{made.seat.holder} {words}")
    return redirect("portal:license", license_id=found.pk)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def release_seat(request: HttpRequest, seat_id: UUID) -> HttpResponse:
    """Ask whether the seat is to be released, then release it."""
    seat, member = access.seat_or_404(request, seat_id)
    _only(customers.MAY_MANAGE_SEATS, member)
    form = ReleaseForm(request.POST if request.method == "POST" else None)
    if not form.is_valid():
        return _seat_page(request, "portal/release_seat.html", seat, form)
    try:
        seats.release(
            seat=seat,
            by=access.actor_of(request, member),
            at=timezone.now(),
            reason=form.cleaned_data["reason"],
        )
    except LicensingError as error:
        form.blame(error)
        return _seat_page(request, "portal/release_seat.html", seat, form, status=_status_of(error))
    messages.success(request, f"The seat of {seat.holder} is released. Somebody else can have it now.")
    return redirect("portal:license", license_id=seat.license_id)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def transfer_seat(request: HttpRequest, seat_id: UUID) -> HttpResponse:
    """Ask who gets the seat, then hand it over."""
    seat, member = access.seat_or_404(request, seat_id)
    _only(customers.MAY_MANAGE_SEATS, member)
    form = TransferForm(request.POST if request.method == "POST" else None)
    if not form.is_valid():
        return _seat_page(request, "portal/transfer_seat.html", seat, form)
    try:
        heir = seats.transfer(
            seat=seat,
            to=form.cleaned_data["to"],
            by=access.actor_of(request, member),
            at=timezone.now(),
            reason=form.cleaned_data["reason"],
        )
    except LicensingError as error:
        form.blame(error)
        return _seat_page(request, "portal/transfer_seat.html", seat, form, status=_status_of(error))
    messages.success(request, f"{heir.holder} has the seat of {seat.holder} now.")
    return redirect("portal:license", license_id=seat.license_id)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def end_lease(request: HttpRequest, lease_id: UUID) -> HttpResponse:
    """Ask whether the lease is to end, then end it."""
    lease, member = access.lease_or_404(request, lease_id)
    _only(customers.MAY_MANAGE_SEATS, member)
    form = EndLeaseForm(request.POST if request.method == "POST" else None)
    if not form.is_valid():
        return _lease_page(request, lease, form)
    try:
        leases.end(
            lease=lease,
            by=access.actor_of(request, member),
            at=timezone.now(),
            reason=form.cleaned_data["reason"],
        )
    except LicensingError as error:
        form.blame(error)
        return _lease_page(request, lease, form, status=_status_of(error))
    messages.success(request, "The lease is ended. Somebody else can work now.")
    return redirect("portal:license", license_id=lease.license_id)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def activate_offline(request: HttpRequest, license_id: UUID) -> HttpResponse:
    """Take the request file of a machine without a network, then send its license file."""
    found, member = access.license_or_404(request, license_id)
    _only(customers.MAY_MANAGE_SEATS, member)
    terms, at = found.plan_revision, timezone.now()
    named = terms.seat_required and terms.seat_kind == SeatKind.NAMED
    if request.method != "POST":
        return _offline_page(request, found, OfflineForm(named=named))
    form = OfflineForm(request.POST, request.FILES, named=named)
    if not form.is_valid():
        return _offline_page(request, found, form, status=400)
    try:
        asked = license_files.read_request(form.cleaned_data["request"], at)
        issued = license_files.issue(
            license=found,
            by=access.actor_of(request, member),
            at=at,
            request=asked,
            encrypt=asked.encryption_key is not None,
            seat_holder=form.cleaned_data.get("seat_holder") or None,
        )
    except LicensingError as error:
        form.blame(error)
        return _offline_page(request, found, form, status=_status_of(error))
    name = f"{found.product.code}-{re.sub('[^A-Za-z0-9]', '', issued.record.activation.fingerprint)[-8:]}"
    return HttpResponse(
        issued.text,
        content_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{name}.lic"', "Cache-Control": "no-store"},
    )


def _back_here_after_password(
    view: Callable[..., HttpResponseBase],
) -> Callable[..., HttpResponseBase]:
    """Ask for the password unless it was given lately, and come back to the page by GET.

    allauth would replay a suspended POST from its own page: the file would arrive while the browser stays on the
    password form. So the page is shown again instead, with the reason that was typed.
    """
    guarded = reauthentication_required(view)

    @wraps(view)
    def wrapped(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        try:
            return guarded(request, **kwargs)
        except ReauthenticationRequired:
            if request.method == "POST":
                request.session[KEPT_REASON] = request.POST.get("reason", "")[:200]
            return redirect(f"{reverse('account_reauthenticate')}?{urlencode({'next': request.path})}")

    return wrapped


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def download_key(request: HttpRequest, license_id: UUID) -> HttpResponseBase:
    """Ask for the password and a reason, then send the key as a file."""
    # Before the password is asked for: who may not have the key is told so at once.
    _only(customers.MAY_REVEAL_KEYS, access.license_or_404(request, license_id)[1])
    return _download_key(request, license_id=license_id)


@_back_here_after_password
def _download_key(request: HttpRequest, *, license_id: UUID) -> HttpResponse:
    found, member = access.license_or_404(request, license_id)
    if request.method != "POST":
        return _key_page(request, found, RevealForm(initial={"reason": request.session.pop(KEPT_REASON, "")}))
    form = RevealForm(request.POST)
    if not form.is_valid():
        return _key_page(request, found, form, status=400)
    try:
        key = keys.reveal(
            license=found,
            by=access.actor_of(request, member),
            reason=form.cleaned_data["reason"],
            at=timezone.now(),
        )
    except LicensingError as error:
        form.blame(error)
        return _key_page(request, found, form, status=_status_of(error))
    name = f"{found.product.code}-license-key-{key[-5:]}.txt"
    return HttpResponse(
        f"{key}\n",
        content_type="text/plain; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


def closed(request: HttpRequest) -> HttpResponse:
    """Answer for the sign-in pages we do not offer."""
    raise Http404


def home(request: HttpRequest) -> HttpResponse:
    """Lead an address cut short to the licenses."""
    return redirect("portal:licenses")


def _license_page(
    request: HttpRequest, found: License, member: Member, form: AssignForm, status: int = 200
) -> HttpResponse:
    if form.errors:
        # Read afresh: what refused the change is what the page must show.
        found, member = access.license_or_404(request, found.pk)
        form.focus_on_error()
    filters = SeatFilter(request.GET)
    search, state = filters.value("q"), filters.value("state")
    page = overview.page_of_license(
        license=found,
        member=member,
        asked=request.GET,
        path=reverse("portal:license", args=[found.pk]),
        search=search,
        state=state,
        at=timezone.now(),
    )
    context = {"page": page, "filters": filters, "filtered": bool(search or state), "form": form}
    return render(request, "portal/license.html", context, status=status)


def _seat_page(
    request: HttpRequest, template: str, seat: Seat, form: RuleForm, status: int | None = None
) -> HttpResponse:
    if form.errors:
        form.focus_on_error()
    seat.refresh_from_db()
    context = {
        "seat": overview.seat_line(seat),
        "license_id": seat.license_id,
        "product": seat.license.product.name,
        "form": form,
    }
    return render(request, template, context, status=status or (400 if form.errors else 200))


def _lease_page(request: HttpRequest, lease: Lease, form: RuleForm, status: int | None = None) -> HttpResponse:
    if form.errors:
        form.focus_on_error()
    lease.refresh_from_db()
    context = {
        "lease": overview.lease_line(lease, timezone.now()),
        "license_id": lease.license_id,
        "product": lease.license.product.name,
        "form": form,
    }
    return render(request, "portal/end_lease.html", context, status=status or (400 if form.errors else 200))


def _offline_page(request: HttpRequest, found: License, form: OfflineForm, status: int = 200) -> HttpResponse:
    if form.errors:
        form.focus_on_error()
    context = {
        "license_id": found.pk,
        "product": found.product.name,
        "plan": found.plan_revision.plan.name,
        "offline": overview.offline_words(found),
        "form": form,
    }
    return render(request, "portal/activate_offline.html", context, status=status)


def _key_page(request: HttpRequest, found: License, form: RevealForm, status: int = 200) -> HttpResponse:
    if form.errors:
        form.focus_on_error()
    context = {
        "license_id": found.pk,
        "product": found.product.name,
        "plan": found.plan_revision.plan.name,
        "customer": found.customer.name,
        "form": form,
    }
    return render(request, "portal/download_key.html", context, status=status)


def _only(roles: frozenset[Any], member: Member) -> None:
    if member.role not in roles:
        raise PermissionDenied("Only owners and license managers can do this. Ask one of them.")


def _status_of(error: LicensingError) -> int:
    match error:
        case Refused():
            return 409
        case Missing():
            return 404
        case TooMany():
            return 429
        case Invalid():
            return 400
        case Forbidden():
            return 403
        case _:
            return 503
