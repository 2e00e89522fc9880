"""The customer's pages: licenses, seats, key download.

Each view gets its object through `access`, asks one rule to make the change, and shows what `overview` reads or
what the rule answered. No rule stands here, and a key leaves only as a download.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
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

from billing import payments
from billing.models import Statement
from licensing import activations, customers, keys, leases, license_files, seats
from licensing.errors import Forbidden, Invalid, LicensingError, Missing, Refused, TooMany
from licensing.models import Activation, Lease, License, Member, Seat
from licensing.states import SeatKind
from portal import access, downloads, overview, owed, usage
from portal.forms import (
    AssignForm,
    LicenseFilter,
    OfflineForm,
    ReasonForm,
    RevealForm,
    RuleForm,
    SeatFilter,
    TransferForm,
    UsageFilter,
)

KEPT_REASON = "key_download_reason"


@dataclass(frozen=True, slots=True)
class Question:
    """What a page asks before something is taken away or handed over, and the words of its two ways out."""

    template: str
    title: str
    submit: str
    leave: str = "Keep it"
    danger: bool = True


RELEASE = Question("portal/release_seat.html", "Release a seat", "Release the seat")
TRANSFER = Question(
    "portal/transfer_seat.html", "Transfer a seat", "Transfer the seat", "Leave it as it is", danger=False
)
END_LEASE = Question("portal/end_lease.html", "End a lease", "End the lease")
LET_GO = Question("portal/let_go.html", "Let a machine go", "Let it go")


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

    def act(**asked: Any) -> str:
        seats.release(seat=seat, **asked)
        return f"The seat of {seat.holder} is released. Somebody else can have it now."

    return _ask_then(request, RELEASE, seat, member, ReasonForm, act)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def transfer_seat(request: HttpRequest, seat_id: UUID) -> HttpResponse:
    """Ask who gets the seat, then hand it over."""
    seat, member = access.seat_or_404(request, seat_id)

    def act(**asked: Any) -> str:
        heir = seats.transfer(seat=seat, **asked)
        return f"{heir.holder} has the seat of {seat.holder} now."

    return _ask_then(request, TRANSFER, seat, member, TransferForm, act)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def end_lease(request: HttpRequest, lease_id: UUID) -> HttpResponse:
    """Ask whether the lease is to end, then end it."""
    lease, member = access.lease_or_404(request, lease_id)

    def act(**asked: Any) -> str:
        leases.end(lease=lease, **asked)
        return "The lease is ended. Somebody else can work now."

    return _ask_then(request, END_LEASE, lease, member, ReasonForm, act)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def let_go(request: HttpRequest, activation_id: UUID) -> HttpResponse:
    """Ask whether the machine is to be let go, then let it go."""
    machine, member = access.machine_or_404(request, activation_id)

    def act(**asked: Any) -> str:
        activations.deactivate(activation=machine, **asked)
        return f"{machine.name or 'The machine'} is let go. Another one can have its place."

    return _ask_then(request, LET_GO, machine, member, ReasonForm, act)


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


@login_required
@never_cache
@require_safe
def usage_of_license(request: HttpRequest, license_id: UUID) -> HttpResponse:
    """Show what a license used: this period, and the history of one meter."""
    found, _ = access.license_or_404(request, license_id)
    meters = usage.counted(found)
    dimensions = {each.code: each.dimensions for each in meters}
    asked = request.GET.get("meter", "")
    meter = asked if asked in dimensions else next(iter(dimensions), "")
    apart = request.GET.get("by", "")
    days = request.GET.get("days", "")
    # Another meter may not have the dimension that was asked for: then it is all together.
    filters = UsageFilter(
        {
            "meter": meter,
            "days": days if days in map(str, usage.SPANS) else usage.SPANS[0],
            "by": apart if apart in dimensions.get(meter, []) else "",
        },
        meters=[(each.code, each.name) for each in meters],
        dimensions=dimensions.get(meter, []),
    )
    page = usage.page_of_usage(
        license=found,
        meters=meters,
        meter=meter,
        days=int(filters.value("days")),
        dimension=filters.value("by"),
        at=timezone.now(),
    )
    return render(request, "portal/usage.html", {"page": page, "filters": filters})


@login_required
@never_cache
@require_safe
def statements(request: HttpRequest) -> HttpResponse:
    """List the statements of every customer for whom the person may see money."""
    found = owed.list_of_statements(user=request.user, asked=request.GET, path=request.path, at=timezone.now())
    return render(request, "portal/statements.html", {"found": found})


@login_required
@never_cache
@require_safe
def statement(request: HttpRequest, statement_id: UUID) -> HttpResponse:
    """Show one statement with its lines."""
    found = _payable(request, statement_id)
    page = owed.page_of_statement(found, timezone.now())
    # The link was kept when the invoice was made: a page never waits for the gateway.
    context = {"page": page, "pay_url": payments.link(found), "still_open": owed.still_open(found)}
    return render(request, "portal/statement.html", context)


@login_required
@never_cache
@require_safe
def statement_file(request: HttpRequest, statement_id: UUID, form: str) -> HttpResponse:
    """Send a statement as a file: as PDF once it is final, as CSV always."""
    return downloads.statement(_payable(request, statement_id), form)


def _payable(request: HttpRequest, statement_id: UUID) -> Statement:
    """Return a statement the person may see. Raises `PermissionDenied` for a member who may not see money."""
    found, member = access.statement_or_404(request, statement_id)
    if member.role not in customers.MAY_SEE_MONEY:
        raise PermissionDenied("Only owners and billing can see statements. Ask one of them.")
    return found


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


def _ask_then(
    request: HttpRequest,
    question: Question,
    row: Seat | Lease | Activation,
    member: Member,
    form_class: type[RuleForm],
    act: Callable[..., str],
) -> HttpResponse:
    """Ask by a form, then let `act` do it with what the form says, and say what it returns on the license's page."""
    _only(customers.MAY_MANAGE_SEATS, member)
    form = form_class(request.POST if request.method == "POST" else None)
    status = 400 if form.errors else 200
    if form.is_valid():
        try:
            done = act(by=access.actor_of(request, member), at=timezone.now(), **form.cleaned_data)
        except LicensingError as error:
            form.blame(error)
            status = _status_of(error)
        else:
            messages.success(request, done)
            return redirect("portal:license", license_id=row.license_id)
    if form.errors:
        form.focus_on_error()
    row.refresh_from_db()
    shown: dict[str, Any]
    match row:
        case Seat():
            shown, over = {"seat": overview.seat_line(row)}, row.released_at
        case Lease():
            shown, over = {"lease": overview.lease_line(row, timezone.now())}, row.ended_at
        case Activation():
            shown, over = {"machine": overview.machine_alone(row, timezone.now())}, row.deactivated_at
    context = {
        **shown,
        "question": question,
        "over": over,
        "license_id": row.license_id,
        "product": row.license.product.name,
        "form": form,
    }
    return render(request, question.template, context, status=status)


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
