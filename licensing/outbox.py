"""The outbox: what must be sent is a row first, written in the transaction of its cause.

`enqueue` writes the row, `relay` delivers what is due, at least once, by the handler registered for its kind.
A lost task message or a killed worker costs one beat: the row is the record of the work.
"""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction

from licensing import keyformat
from licensing.models import OutboxMessage

GIVE_UP_AFTER = timedelta(days=3)
FEWEST_TRIES = 12  # half a day of retries, also for what waited three days because no relay ran
FIRST_RETRY = timedelta(seconds=10)
LONGEST_RETRY = timedelta(hours=6)

Handler = Callable[[OutboxMessage], None]


def enqueue(*, kind: str, payload: dict[str, Any], at: datetime, license_id: UUID | None = None) -> OutboxMessage:
    """Write a message in the caller's transaction; it is sent once that is committed."""
    return OutboxMessage.objects.create(kind=kind, payload=payload, license_id=license_id, created_at=at, due_at=at)


def relay(*, handlers: dict[str, Handler], at: datetime, limit: int = 200) -> tuple[int, list[OutboxMessage]]:
    """Deliver what is due. Return how many were delivered, and the messages given up on in this run.

    Each message is locked while it is delivered, so two relays never send one message at the same time; a
    failure is kept on the row and tried again, later each time, for three days.
    """
    delivered, given_up = 0, []
    due = OutboxMessage.objects.filter(delivered_at=None, given_up_at=None, due_at__lte=at)
    for message_id in list(due.order_by("id").values_list("id", flat=True)[:limit]):
        with transaction.atomic():
            message = (
                OutboxMessage.objects.select_for_update(skip_locked=True)
                .filter(id=message_id, delivered_at=None, given_up_at=None, due_at__lte=at)
                .first()
            )
            if message is None:
                continue
            message.attempts += 1
            try:
                with transaction.atomic():
                    handlers[message.kind](message)
            except Exception as error:
                if _postpone(message, error, at):
                    given_up.append(message)
            else:
                message.delivered_at = at
                message.last_error = ""
                delivered += 1
            message.save()
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
