"""What people do about messages that were not delivered, or are to be delivered again. Sending itself is `outbox`."""

from datetime import datetime

from django.db import transaction

from licensing import audit
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import OutboxMessage


class StillWaiting(Refused):
    """This message is still to be sent: there is nothing to send again."""

    code = "still_waiting"


def replay(*, message: OutboxMessage, by: Actor, at: datetime, reason: str) -> OutboxMessage:
    """Send a message again that was given up or delivered. Its id stays, so a receiver that has it knows it again.

    It is first again of its license and target where it was, and has all its tries before it.

    Raises:
        StillWaiting: it was neither given up nor delivered.
        Invalid: no reason is given.
    """
    if not reason.strip():
        raise Invalid("Say why it is sent again.", pointer="/reason")
    with transaction.atomic():
        row = OutboxMessage.objects.select_for_update(no_key=True).get(pk=message.pk)
        if row.delivered_at is None and row.given_up_at is None:
            raise StillWaiting()
        audit.record(
            action="outbox.replayed",
            by=by,
            on=row,
            at=at,
            before={"delivered_at": row.delivered_at, "given_up_at": row.given_up_at, "attempts": row.attempts},
            after={"kind": row.kind},
            reason=reason,
        )
        row.delivered_at, row.given_up_at, row.due_at, row.attempts, row.last_error = None, None, at, 0, ""
        row.save()
    return row
