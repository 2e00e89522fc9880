"""What the customer's pages of webhooks show: frozen values. It changes nothing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import QueryDict

from licensing import customers, events, webhooks
from licensing.models import Customer, Member, OutboxMessage, WebhookDelivery, WebhookEndpoint
from licensing.states import EndpointState
from portal.overview import Pages, one_page

MESSAGES_A_PAGE = 20


@dataclass(frozen=True, slots=True)
class Standing:
    """How an endpoint stands: its code, its name, and what that means in a sentence."""

    code: str
    label: str
    sentence: str


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint in the list."""

    id: UUID
    url: str
    description: str
    customer: str
    types: str
    standing: Standing
    delivered_at: datetime | None


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message to an endpoint: what became of it, and what its last attempt brought."""

    id: UUID
    event_type: str
    created_at: datetime
    outcome: Standing
    attempts: int
    duration: str
    answer: str
    may_replay: bool


@dataclass(frozen=True, slots=True)
class EndpointPage:
    """One endpoint, and a page of its messages, the newest first."""

    row: EndpointRow
    event_types: list[str]
    former_until: datetime | None
    messages: list[MessageRow]
    pages: Pages


def customers_of(user: Any) -> list[Customer]:
    """Return the customers whose webhooks the person may manage."""
    mine = Member.objects.filter(user=user, role__in=customers.MAY_MANAGE_WEBHOOKS).select_related("customer")
    return [member.customer for member in mine.order_by("customer__name")]


def list_of_endpoints(user: Any) -> list[EndpointRow]:
    """Return the endpoints of these customers."""
    rows = WebhookEndpoint.objects.exclude(state=EndpointState.DELETED).filter(customer__in=customers_of(user))
    return [_row(row) for row in rows.select_related("customer").order_by("customer__name", "id")]


def page_of_endpoint(endpoint: WebhookEndpoint, *, asked: QueryDict, path: str, at: datetime) -> EndpointPage:
    """Return one endpoint with its messages."""
    rows, pages = one_page(webhooks.messages(endpoint=endpoint), MESSAGES_A_PAGE, asked, "page", path)
    messages = list(rows)
    last: dict[UUID, WebhookDelivery] = {}
    for delivery in WebhookDelivery.objects.filter(message_id__in=[row.pk for row in messages]).order_by("id"):
        last[delivery.message_id] = delivery
    former = endpoint.former_until
    return EndpointPage(
        row=_row(endpoint),
        event_types=endpoint.event_types or list(events.FOR_CUSTOMERS),
        former_until=former if former and former > at else None,
        messages=[_message(row, last.get(row.pk), endpoint) for row in messages],
        pages=pages,
    )


def _row(endpoint: WebhookEndpoint) -> EndpointRow:
    chosen = len(endpoint.event_types)
    return EndpointRow(
        id=endpoint.pk,
        url=endpoint.url,
        description=endpoint.description,
        customer=endpoint.customer.name if endpoint.customer else "",
        types=f"{chosen} event type{'' if chosen == 1 else 's'}" if chosen else "Every event type",
        standing=_standing(endpoint),
        delivered_at=endpoint.delivered_at,
    )


def _standing(endpoint: WebhookEndpoint) -> Standing:
    if endpoint.state != EndpointState.ENABLED:
        return Standing("revoked", "Disabled", endpoint.disabled_reason)
    if endpoint.failing_since is not None:
        return Standing("held", "Failing", f"Since {endpoint.failing_since:%-d %b, %H:%M} UTC. We keep trying.")
    return Standing("active", "Enabled", "")


def _message(row: OutboxMessage, last: WebhookDelivery | None, endpoint: WebhookEndpoint) -> MessageRow:
    ended = row.delivered_at is not None or row.given_up_at is not None
    if row.delivered_at is not None:
        outcome = Standing("active", "Delivered", "")
    elif row.given_up_at is not None:
        outcome = Standing("revoked", "Given up", "")
    elif row.attempts:
        outcome = Standing("held", "Retrying", f"Next try {row.due_at:%-d %b, %H:%M} UTC")
    else:
        outcome = Standing("draft", "Waiting", "")
    answer = ""
    if last is not None:
        answer = f"{last.status} {last.answer}".strip() if last.status is not None else last.error
    return MessageRow(
        id=row.pk,
        event_type=row.payload["type"],
        created_at=row.created_at,
        outcome=outcome,
        attempts=row.attempts,
        duration=f"{last.duration_ms} ms" if last is not None and last.status is not None else "",
        answer=answer or row.last_error,
        may_replay=ended and endpoint.state == EndpointState.ENABLED,
    )
