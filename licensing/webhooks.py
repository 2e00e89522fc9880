"""Webhooks out: endpoints, their secrets, and the delivery of messages as Standard Webhooks 1.0.

A secret is `whsec_` and 32 random bytes in base64, sealed like license keys, shown once. After a rotation messages
carry the signatures of both secrets for a day. What is sent, and to which endpoints, is `events`; that it is sent is
`outbox`; where a connection may go is `posting`.

Source: https://www.standardwebhooks.com, ADR 0020.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from licensing import anomalies, audit, crypto, events, keyformat, notices, outbox, posting
from licensing.audit import Actor
from licensing.crypto import Place
from licensing.errors import Invalid, Refused
from licensing.ids import uuid7
from licensing.models import Customer, OutboxMessage, WebhookDelivery, WebhookEndpoint
from licensing.states import EndpointState, Severity

PREFIX = "whsec_"
BOTH_FOR = timedelta(days=1)  # how long messages are signed by the former secret too
MOST_ENDPOINTS = 20  # of one customer, and of the vendor: one change is that many messages
DISABLE_AFTER = outbox.GIVE_UP_AFTER
KEPT_FOR = timedelta(days=30)
_SHOWN = 500  # characters of an answer that the log keeps
_DOWN = frozenset({429, 502, 503, 504})  # not about this message: nothing else need be tried now
UNCHANGED: Any = object()


class TooManyEndpoints(Refused):
    """There are as many endpoints as there may be."""

    code = "too_many_endpoints"


class EndpointDisabled(Refused):
    """This endpoint is disabled. Enable it first."""

    code = "endpoint_disabled"


class NotAccepted(Exception):
    """The endpoint answered, and not with 2xx."""


def create(
    *,
    url: str,
    by: Actor,
    at: datetime,
    customer: Customer | None = None,
    event_types: list[str] | None = None,
    description: str = "",
) -> tuple[WebhookEndpoint, str]:
    """Make an endpoint; return it and its secret, which is not shown again.

    Raises:
        Invalid: the address is none we send to, or there is no such event type.
        TooManyEndpoints: the customer, or the vendor, has 20.
    """
    row = WebhookEndpoint(
        id=uuid7(),
        created_at=at,
        customer=customer,
        url=posting.check(url),
        event_types=_types(event_types or [], customer),
        description=description,
    )
    secret = _new_secret()
    row.sealed_secret = crypto.seal(secret.encode(), place_of(row, "sealed_secret"))
    with transaction.atomic():
        live = WebhookEndpoint.objects.exclude(state=EndpointState.DELETED).filter(customer=customer)
        if live.count() >= MOST_ENDPOINTS:
            raise TooManyEndpoints(f"There are {MOST_ENDPOINTS} already. Delete one first.")
        row.save(force_insert=True)
        audit.record(action="webhook_endpoint.created", by=by, on=row, at=at, after=_facts(row))
    return row, secret


def change(
    *,
    endpoint: WebhookEndpoint,
    by: Actor,
    at: datetime,
    url: str = UNCHANGED,
    event_types: list[str] = UNCHANGED,
    description: str = UNCHANGED,
    reason: str = "",
) -> WebhookEndpoint:
    """Change an endpoint. What waits for it goes to the new address. Raises `Invalid`."""
    with transaction.atomic():
        row = _locked(endpoint)
        before = _facts(row)
        if url is not UNCHANGED:
            row.url = posting.check(url)
            row.rests_until = None
        if event_types is not UNCHANGED:
            row.event_types = _types(event_types, row.customer)
        if description is not UNCHANGED:
            row.description = description
        old, new = audit.differences(before, _facts(row))
        if new:
            row.save()
            audit.record(action="webhook_endpoint.changed", by=by, on=row, at=at, before=old, after=new, reason=reason)
    return row


def rotate(*, endpoint: WebhookEndpoint, by: Actor, at: datetime, reason: str = "") -> tuple[WebhookEndpoint, str]:
    """Give the endpoint a new secret, and return it; the former one signs along for a day. Rotating again within that
    day ends the one before at once."""
    secret = _new_secret()
    with transaction.atomic():
        row = _locked(endpoint)
        former = crypto.unseal(row.sealed_secret, place_of(row, "sealed_secret"))
        row.sealed_former_secret = crypto.seal(former, place_of(row, "sealed_former_secret"))
        row.former_until = at + BOTH_FOR
        row.sealed_secret = crypto.seal(secret.encode(), place_of(row, "sealed_secret"))
        row.save()
        audit.record(
            action="webhook_endpoint.rotated",
            by=by,
            on=row,
            at=at,
            after={"former_until": row.former_until},
            reason=reason,
        )
    return row, secret


def disable(*, endpoint: WebhookEndpoint, by: Actor, at: datetime, reason: str = "") -> WebhookEndpoint:
    """Send it nothing from now on; what waits for it becomes dead letters. Doing it twice changes nothing."""
    with transaction.atomic():
        row = _locked(endpoint)
        if row.state == EndpointState.ENABLED:
            row.state, row.disabled_at, row.disabled_reason = EndpointState.DISABLED, at, reason[:200]
            row.save()
            _bury(row, at, "The endpoint was disabled.")
            audit.record(action="webhook_endpoint.disabled", by=by, on=row, at=at, reason=reason)
    return row


def enable(*, endpoint: WebhookEndpoint, by: Actor, at: datetime, reason: str = "") -> WebhookEndpoint:
    """Send it what happens from now on; what it missed is replayed message by message. Twice changes nothing."""
    with transaction.atomic():
        row = _locked(endpoint)
        if row.state == EndpointState.DISABLED:
            row.state, row.disabled_at, row.disabled_reason = EndpointState.ENABLED, None, ""
            row.failing_since, row.failures, row.rests_until = None, 0, None
            row.save()
            audit.record(action="webhook_endpoint.enabled", by=by, on=row, at=at, reason=reason)
    return row


def delete(*, endpoint: WebhookEndpoint, by: Actor, at: datetime, reason: str = "") -> None:
    """Take the endpoint away, with its secrets. Its log stays as long as any. Doing it twice changes nothing."""
    with transaction.atomic():
        row = WebhookEndpoint.objects.select_for_update(no_key=True).get(pk=endpoint.pk)
        if row.state == EndpointState.DELETED:
            return
        row.state, row.disabled_at, row.disabled_reason = EndpointState.DELETED, at, ""
        row.sealed_secret = row.sealed_former_secret = ""
        row.former_until = None
        row.save()
        _bury(row, at, "The endpoint was deleted.")
        audit.record(action="webhook_endpoint.deleted", by=by, on=row, at=at, before=_facts(row), reason=reason)


def test(*, endpoint: WebhookEndpoint, by: Actor, at: datetime) -> UUID:
    """Send a message of type `webhook.test`, as others are sent; return its id. Raises `EndpointDisabled`."""
    with transaction.atomic():
        row = _locked(endpoint)
        if row.state != EndpointState.ENABLED:
            raise EndpointDisabled()
        message_id = events.enqueue(
            endpoint=row, event_type=events.TEST, at=at, data={"endpoint": str(row.pk), "asked_by": by.kind}
        )
        audit.record(action="webhook_endpoint.tested", by=by, on=row, at=at, after={"message": message_id})
    return message_id


def messages(*, endpoint: WebhookEndpoint) -> Any:
    """Return what was and is to be sent to an endpoint, the newest first."""
    return OutboxMessage.objects.filter(kind=events.KIND, target=events.target_of(endpoint)).order_by("-id")


def send(message: OutboxMessage) -> None:
    """Deliver one message: the outbox calls it. What came back is in the log, whatever it was.

    Raises:
        NotNow: the endpoint rests after failures.
        TargetDown: no answer, or one that says the endpoint as a whole cannot.
        NotAccepted: another answer than 2xx.
        NeverDeliverable: the endpoint is disabled, gone, or failing for three days and so disabled now.
    """
    at = message.tried_at or timezone.now()
    endpoint = WebhookEndpoint.objects.get(pk=message.target.removeprefix("webhook:"))
    if endpoint.state != EndpointState.ENABLED:
        raise outbox.NeverDeliverable(f"The endpoint is {endpoint.state}.")
    if endpoint.rests_until is not None and endpoint.rests_until > at:
        raise outbox.NotNow(until=endpoint.rests_until)
    payload = {name: message.payload[name] for name in ("type", "timestamp", "data")}
    body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
    headers = signed(endpoint=endpoint, message_id=str(message.pk), body=body, at=at)
    answer: posting.Answer | None = None
    error = ""
    try:
        answer = posting.post(url=endpoint.url, body=body, headers=headers)
    except (posting.AddressRefused, posting.Unanswered) as why:
        error = keyformat.redact(str(why))[:200]
    WebhookDelivery.objects.create(
        endpoint=endpoint,
        created_at=at,
        message_id=message.pk,
        event_type=payload["type"],
        license_id=message.license_id,
        attempt=message.attempts,
        at=at,
        status=answer.status if answer else None,
        duration_ms=int((answer.seconds if answer else 0) * 1000),
        answer=_words(answer.body) if answer else "",
        error=error,
    )
    if answer is not None and 200 <= answer.status < 300:
        WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
            failures=0, failing_since=None, rests_until=None, delivered_at=at
        )
        return
    _failed(endpoint, at, answer, error)


def signed(*, endpoint: WebhookEndpoint, message_id: str, body: bytes, at: datetime) -> dict[str, str]:
    """Return the headers of a message: signed by the secret, and by the former one while it counts."""
    timestamp = str(int(at.timestamp()))
    sealed = [("sealed_secret", endpoint.sealed_secret)]
    if endpoint.former_until is not None and endpoint.former_until > at:
        sealed.append(("sealed_former_secret", endpoint.sealed_former_secret))
    signatures = []
    for field, value in sealed:
        key = base64.b64decode(crypto.unseal(value, place_of(endpoint, field)).decode().removeprefix(PREFIX))
        digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        signatures.append(f"v1,{base64.b64encode(digest).decode()}")
    return {
        "Content-Type": "application/json",
        "User-Agent": "Licentia-Webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(signatures),
    }


def forget(*, at: datetime, batch: int = 1_000) -> int:
    """Delete a batch of the log that is older than 30 days; return how many."""
    old = WebhookDelivery.objects.filter(at__lt=at - KEPT_FOR).order_by("at").values_list("pk", flat=True)
    return WebhookDelivery.objects.filter(pk__in=list(old[:batch])).delete()[0]


def place_of(row: WebhookEndpoint, field: str) -> Place:
    """Return where a sealed secret of this row belongs."""
    return Place(WebhookEndpoint._meta.db_table, str(row.pk), field)


def _failed(endpoint: WebhookEndpoint, at: datetime, answer: posting.Answer | None, error: str) -> None:
    """Note that the endpoint failed, and raise what the outbox is to make of it."""
    same = WebhookEndpoint.objects.filter(pk=endpoint.pk)
    same.update(failures=F("failures") + 1)
    same.filter(failing_since=None).update(failing_since=at)
    now = same.get()
    assert now.failing_since is not None
    if answer is not None and answer.status == 410:
        _give_up(endpoint, at, "It answered 410 Gone: it wants no more.")
    if at - now.failing_since >= DISABLE_AFTER and now.failures >= outbox.FEWEST_TRIES:
        _give_up(endpoint, at, f"Nothing arrived there since {now.failing_since:%Y-%m-%d %H:%M} UTC.")
    if answer is not None and answer.status not in _DOWN:
        raise NotAccepted(f"It answered {answer.status}.")
    wait = outbox.retry_in(now.failures)
    if answer is not None and re.fullmatch(r"\d{1,5}", answer.retry_after):
        wait = max(wait, min(timedelta(seconds=int(answer.retry_after)), outbox.LONGEST_RETRY))
    same.update(rests_until=at + wait)
    raise outbox.TargetDown(f"It answered {answer.status}." if answer else error, until=at + wait)


def _give_up(endpoint: WebhookEndpoint, at: datetime, why: str) -> None:
    """Disable an endpoint that does not take what is sent, and tell those who can mend it."""
    disable(endpoint=endpoint, by=audit.system("webhooks"), at=at, reason=why)
    anomalies.flag(
        rule="webhook_endpoint_disabled",
        severity=Severity.HIGH,
        object_kind="webhookendpoint",
        object_id=str(endpoint.pk),
        at=at,
        evidence={"customer": str(endpoint.customer_id or ""), "why": why},
    )
    if endpoint.customer_id is not None:
        notices.tell(template="webhook_disabled", customer_id=endpoint.customer_id, at=at, url=endpoint.url, why=why)
    raise outbox.NeverDeliverable(why)


def _bury(endpoint: WebhookEndpoint, at: datetime, why: str) -> None:
    outbox.waiting().filter(target=events.target_of(endpoint)).update(given_up_at=at, last_error=why)


def _locked(endpoint: WebhookEndpoint) -> WebhookEndpoint:
    row = (
        WebhookEndpoint.objects.select_for_update(no_key=True, of=("self",))
        .select_related("customer")
        .get(pk=endpoint.pk)
    )
    if row.state == EndpointState.DELETED:
        raise EndpointDisabled("This endpoint was deleted.")
    return row


def _new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _types(wanted: list[str], customer: Customer | None) -> list[str]:
    offered = events.TYPES if customer is None else events.FOR_CUSTOMERS
    for event_type in wanted:
        if event_type not in offered:
            raise Invalid(f"There is no event type '{event_type[:64]}' to choose.", pointer="/event_types")
    return [event_type for event_type in offered if event_type in wanted]


def _words(body: bytes) -> str:
    """Return the start of an answer as the log keeps it: text without control characters, keys and signatures."""
    text = body.decode(errors="replace")
    text = "".join(each if each.isprintable() or each == "\n" else " " for each in text)
    text = re.sub(r"whsec_[A-Za-z0-9+/=]+|v1,[A-Za-z0-9+/=]{20,}|lsk_[A-Za-z0-9_-]{20,}", "•••", text)
    return keyformat.redact(text)[:_SHOWN]


def _facts(row: WebhookEndpoint) -> dict[str, Any]:
    return {"url": row.url, "event_types": row.event_types, "description": row.description}
