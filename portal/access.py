"""Get-or-404 helpers: the only way a view obtains a customer's object. And who may sign up: nobody by themselves."""

from typing import Any
from uuid import UUID

from allauth.account.adapter import DefaultAccountAdapter
from django.http import Http404, HttpRequest

from billing.models import Statement
from licensing.api.door import client_address, request_id_of
from licensing.audit import Actor
from licensing.models import Activation, Lease, License, Member, Seat, WebhookEndpoint
from licensing.states import EndpointState


class AccountAdapter(DefaultAccountAdapter):
    """People are invited as members; nobody signs up."""

    def get_client_ip(self, request: HttpRequest) -> str:
        """Return the client's address as the rest of the product sees it: behind a proxy, not the proxy's."""
        return client_address(request) or ""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False


def license_or_404(request: HttpRequest, license_id: UUID) -> tuple[License, Member]:
    """Return a license of a customer the signed-in person acts for, and their membership there."""
    license = (
        License.objects.select_related("customer", "product", "plan_revision__plan")
        .prefetch_related("holds")
        .filter(pk=license_id, issued_at__isnull=False)
        .first()
    )
    member = _member(request, license.customer_id) if license else None
    if license is None or member is None:
        raise Http404
    return license, member


def seat_or_404(request: HttpRequest, seat_id: UUID) -> tuple[Seat, Member]:
    """Return a seat on a license of a customer the signed-in person acts for, and their membership there."""
    seat = Seat.objects.select_related("license").filter(pk=seat_id).first()
    member = _member(request, seat.license.customer_id) if seat else None
    if seat is None or member is None:
        raise Http404
    return seat, member


def lease_or_404(request: HttpRequest, lease_id: UUID) -> tuple[Lease, Member]:
    """Return a lease on a license of a customer the signed-in person acts for, and their membership there."""
    lease = Lease.objects.select_related("license__product", "activation").filter(pk=lease_id).first()
    member = _member(request, lease.license.customer_id) if lease else None
    if lease is None or member is None:
        raise Http404
    return lease, member


def machine_or_404(request: HttpRequest, activation_id: UUID) -> tuple[Activation, Member]:
    """Return a machine of a license of a customer the signed-in person acts for, and their membership there."""
    machine = Activation.objects.select_related("license__product").filter(pk=activation_id).first()
    member = _member(request, machine.license.customer_id) if machine else None
    if machine is None or member is None:
        raise Http404
    return machine, member


def statement_or_404(request: HttpRequest, statement_id: UUID) -> tuple[Statement, Member]:
    """Return a statement of a customer the signed-in person acts for, and their membership there."""
    statement = Statement.objects.select_related("customer").filter(pk=statement_id).first()
    member = _member(request, statement.customer_id) if statement else None
    if statement is None or member is None:
        raise Http404
    return statement, member


def endpoint_or_404(request: HttpRequest, endpoint_id: UUID) -> tuple[WebhookEndpoint, Member]:
    """Return a webhook endpoint of a customer the signed-in person acts for, and their membership there."""
    rows = WebhookEndpoint.objects.exclude(state=EndpointState.DELETED).select_related("customer")
    endpoint = rows.filter(pk=endpoint_id, customer__isnull=False).first()
    member = _member(request, endpoint.customer_id) if endpoint and endpoint.customer_id else None
    if endpoint is None or member is None:
        raise Http404
    return endpoint, member


def actor_of(request: HttpRequest, member: Member | None = None) -> Actor:
    """Return the signed-in person as the audit record names them."""
    user: Any = request.user
    return Actor(
        kind="member" if member else "staff",
        id=str(user.pk),
        label=user.email,
        role=member.role if member else ("superuser" if user.is_superuser else "staff"),
        address=client_address(request),
        request_id=request_id_of(request),
    )


def _member(request: HttpRequest, customer_id: UUID) -> Member | None:
    return Member.objects.filter(customer_id=customer_id, user_id=request.user.pk or 0).first()
