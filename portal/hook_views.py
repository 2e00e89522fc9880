"""The customer's pages of webhooks: endpoints, their messages, a test, a new secret.

A secret is shown in the answer that made it, and nowhere else. No rule stands here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from licensing import customers, deliveries, webhooks
from licensing.errors import LicensingError
from licensing.models import Member, WebhookEndpoint
from portal import access, hooks
from portal.forms import AgainForm, EndpointForm, ReasonForm, RuleForm
from portal.views import _status_of


@dataclass(frozen=True, slots=True)
class Ask:
    """What a page asks before an act, and the words of its ways out."""

    title: str
    says: str
    submit: str
    rule: Callable[..., Any]
    done: str
    danger: bool = True


ACTS = {
    "rotate": Ask(
        "Replace the secret",
        "You see the new secret once. For a day messages are signed by both, so that you can change over in that time.",
        "Replace the secret",
        webhooks.rotate,
        "This is the new secret. It is shown only now.",
        danger=False,
    ),
    "disable": Ask(
        "Disable the endpoint",
        "Nothing is sent to it from now on. What waits for it is given up, and can be sent again later.",
        "Disable it",
        webhooks.disable,
        "The endpoint is disabled.",
    ),
    "enable": Ask(
        "Enable the endpoint",
        "It is sent what happens from now on. What it missed you can send again, message by message.",
        "Enable it",
        webhooks.enable,
        "The endpoint is enabled.",
        danger=False,
    ),
    "delete": Ask(
        "Delete the endpoint",
        "Nothing is sent to it any more, and its secret is forgotten. There is no way back.",
        "Delete it",
        webhooks.delete,
        "The endpoint is deleted.",
    ),
}


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def endpoints(request: HttpRequest) -> HttpResponse:
    """List the endpoints of every customer whose webhooks the person may manage; make one."""
    mine = hooks.customers_of(request.user)
    choices = [(str(customer.pk), customer.name) for customer in mine]
    form = EndpointForm(request.POST if request.method == "POST" else None, customers=choices)
    status = 400 if form.errors else 200
    if request.method == "POST" and not mine:
        raise PermissionDenied("Only owners and license managers can do this. Ask one of them.")
    if form.is_valid():
        given = dict(form.cleaned_data)
        chosen = given.pop("customer", None) or str(mine[0].pk)
        customer = next(customer for customer in mine if str(customer.pk) == chosen)
        member = Member.objects.get(customer=customer, user_id=request.user.pk or 0)
        by = access.actor_of(request, member)
        try:
            made, secret = webhooks.create(customer=customer, by=by, at=timezone.now(), **given)
        except LicensingError as error:
            form.blame(error)
            status = _status_of(error)
        else:
            return _secret_page(request, made, secret, "The endpoint is made. This is its secret, shown only now.")
    if form.errors:
        form.focus_on_error()
    context = {"rows": hooks.list_of_endpoints(request.user), "form": form, "may_manage": bool(mine)}
    return render(request, "portal/webhooks.html", context, status=status)


@login_required
@never_cache
@require_safe
def endpoint(request: HttpRequest, endpoint_id: UUID) -> HttpResponse:
    """Show one endpoint with its messages."""
    found, _ = _managed(request, endpoint_id)
    page = hooks.page_of_endpoint(found, asked=request.GET, path=request.path, at=timezone.now())
    return render(request, "portal/webhook.html", {"page": page})


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def change(request: HttpRequest, endpoint_id: UUID) -> HttpResponse:
    """Change where an endpoint is and of what it is told."""
    found, member = _managed(request, endpoint_id)
    initial = {"url": found.url, "description": found.description, "event_types": found.event_types}
    form = EndpointForm(request.POST if request.method == "POST" else None, initial=initial)

    def rule(**given: Any) -> None:
        webhooks.change(endpoint=found, **given)

    ask = Ask("Change the endpoint", "", "Save", rule, "The endpoint is changed.", danger=False)
    return _asked(request, found, member, ask, form)


@login_required
@never_cache
@require_POST
def test(request: HttpRequest, endpoint_id: UUID) -> HttpResponse:
    """Send a test message."""
    found, member = _managed(request, endpoint_id)
    try:
        webhooks.test(endpoint=found, by=access.actor_of(request, member), at=timezone.now())
    except LicensingError as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, "A test message is on its way. Its outcome is below in a moment.")
    return redirect("portal:webhook", endpoint_id=found.pk)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def act(request: HttpRequest, endpoint_id: UUID, name: str) -> HttpResponse:
    """Ask, then rotate, disable, enable or delete."""
    found, member = _managed(request, endpoint_id)
    if name not in ACTS:
        raise Http404
    ask = ACTS[name]
    form = ReasonForm(request.POST if request.method == "POST" else None)
    if name != "rotate":

        def rule(**given: Any) -> None:
            ask.rule(endpoint=found, **given)

        plain = Ask(ask.title, ask.says, ask.submit, rule, ask.done, ask.danger)
        return _asked(request, found, member, plain, form, gone=name == "delete")
    if not form.is_valid():
        return _ask_page(request, found, ask, form)
    by = access.actor_of(request, member)
    rotated, secret = webhooks.rotate(endpoint=found, by=by, at=timezone.now(), **form.cleaned_data)
    return _secret_page(request, rotated, secret, ask.done)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def replay(request: HttpRequest, endpoint_id: UUID, message_id: UUID) -> HttpResponse:
    """Ask why, then send a message again."""
    found, member = _managed(request, endpoint_id)
    message = webhooks.messages(endpoint=found).filter(pk=message_id).first()
    if message is None:
        raise Http404

    def rule(**given: Any) -> None:
        deliveries.replay(message=message, **given)

    says = f"{message.payload['type']} is sent again to {found.url} under its webhook-id."
    ask = Ask("Send again", says, "Send it again", rule, "The message is on its way.", danger=False)
    return _asked(request, found, member, ask, AgainForm(request.POST if request.method == "POST" else None))


def _managed(request: HttpRequest, endpoint_id: UUID) -> tuple[WebhookEndpoint, Member]:
    found, member = access.endpoint_or_404(request, endpoint_id)
    if member.role not in customers.MAY_MANAGE_WEBHOOKS:
        raise PermissionDenied("Only owners and license managers can do this. Ask one of them.")
    return found, member


def _asked(
    request: HttpRequest, found: WebhookEndpoint, member: Member, ask: Ask, form: RuleForm, *, gone: bool = False
) -> HttpResponse:
    """Ask by a form, then let the rule do it, say so and go back to the endpoint, or to the list when it is gone."""
    status = 400 if form.errors else 200
    if form.is_valid():
        try:
            ask.rule(by=access.actor_of(request, member), at=timezone.now(), **form.cleaned_data)
        except LicensingError as error:
            form.blame(error)
            status = _status_of(error)
        else:
            messages.success(request, ask.done)
            return redirect("portal:webhooks") if gone else redirect("portal:webhook", endpoint_id=found.pk)
    return _ask_page(request, found, ask, form, status)


def _ask_page(
    request: HttpRequest, found: WebhookEndpoint, ask: Ask, form: RuleForm, status: int = 200
) -> HttpResponse:
    if form.errors:
        form.focus_on_error()
    context = {"ask": ask, "form": form, "endpoint_id": found.pk, "url": found.url}
    return render(request, "portal/webhook_ask.html", context, status=status)


def _secret_page(request: HttpRequest, found: WebhookEndpoint, secret: str, says: str) -> HttpResponse:
    context = {"secret": secret, "says": says, "endpoint_id": found.pk, "url": found.url}
    answer = render(request, "portal/webhook_secret.html", context)
    answer["Cache-Control"] = "no-store, private"
    return answer
