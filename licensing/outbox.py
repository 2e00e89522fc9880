"""The outbox: what must be sent is a row first, written in the transaction of its cause.

`enqueue` writes the row, `relay` delivers what is due, at least once, by the handler registered for its kind.
A lost task message or a killed worker costs one beat: the row is the record of the work.
"""

import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import DatabaseError
from django.db.models import F

from licensing import keyformat
from licensing.models import OutboxMessage

log = structlog.get_logger(__name__)

GIVE_UP_AFTER = timedelta(days=3)
FEWEST_TRIES = 12  # half a day of retries, also for what waited three days because no relay ran
FIRST_RETRY = timedelta(seconds=10)
CLAIM = timedelta(minutes=5)
LONGEST_RETRY = timedelta(hours=6)

Handler = Callable[[OutboxMessage], None]


def enqueue(*, kind: str, payload: dict[str, Any], at: datetime, license_id: UUID | None = None) -> OutboxMessage:
    """Write a message in the caller's transaction; it is sent once that is committed."""
    return OutboxMessage.objects.create(kind=kind, payload=payload, license_id=license_id, created_at=at, due_at=at)


def relay(*, handlers: dict[str, Handler], at: datetime, limit: int = 200) -> tuple[int, list[OutboxMessage]]:
    """Deliver what is due. Return how many were delivered, and the messages given up on in this run.

    A message is claimed before it is delivered, so two relays do not send it at the same time, and no transaction is
    open meanwhile: a slow target holds nobody up. A failure is kept on the row and tried again, later each time, for
    three days; a relay that dies leaves its claim, which lapses.
    """
    delivered, given_up = 0, []
    begun = time.monotonic()
    due = OutboxMessage.objects.filter(delivered_at=None, given_up_at=None, due_at__lte=at)
    for message_id in list(due.order_by("id").values_list("id", flat=True)[:limit]):
        until = at + timedelta(seconds=time.monotonic() - begun) + CLAIM
        claimed = due.filter(id=message_id).update(attempts=F("attempts") + 1, due_at=until)
        if not claimed:
            continue
        message = OutboxMessage.objects.get(id=message_id)
        try:
            handlers[message.kind](message)
        except Exception as error:
            if _postpone(message, error, at):
                given_up.append(message)
        else:
            message.delivered_at = at
            message.last_error = ""
            delivered += 1
        try:
            message.save()
        except DatabaseError as error:  # the claim lapses and it is sent again: at least once, never not at all
            log.error("outbox_not_noted", message=str(message.pk), error=str(error))
    return delivered, given_up


def _postpone(message: OutboxMessage, error: Exception, at: datetime) -> bool:
    """Keep the failure and the next try on the row; return whether it is given up."""
    message.last_error = keyformat.redact(f"{type(error).__name__}: {error}")[:2000]
    if at - message.created_at >= GIVE_UP_AFTER and message.attempts >= FEWEST_TRIES:
        message.given_up_at = at
        return True
    wait = min(FIRST_RETRY * 2 ** min(message.attempts - 1, 20), LONGEST_RETRY)
    message.due_at = at + wait * random.uniform(0.8, 1.2)  # noqa: S311  jitter, not a secret
    return False


def lag(*, at: datetime) -> timedelta:
    """Return how long the oldest undelivered message has been due."""
    oldest = (
        OutboxMessage.objects.filter(delivered_at=None, given_up_at=None)
        .order_by("due_at")
        .values_list("due_at", flat=True)
        .first()
    )
    return max(at - oldest, timedelta()) if oldest else timedelta()
