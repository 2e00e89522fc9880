"""The outbox: what must be sent is a row first, written in the transaction of its cause.

`enqueue` writes the row, `relay` delivers what is due, at least once, by the handler registered for its kind.
A lost task message or a killed worker costs one beat: the row is the record of the work. Messages of one license to
one target go out in order; see docs/webhooks.md for what a dead letter does to those behind it.

It knows nothing of mail or webhooks, and writes no audit entry: people's acts on messages stand in `deliveries`.
"""

import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import DatabaseError, transaction
from django.db.models import Exists, F, Max, OuterRef, Q, QuerySet

from licensing import keyformat
from licensing.models import OutboxMessage

log = structlog.get_logger(__name__)

GIVE_UP_AFTER = timedelta(days=3)
FEWEST_TRIES = 12  # half a day of retries, also for what waited three days because no relay ran
FIRST_RETRY = timedelta(seconds=10)
CLAIM = timedelta(minutes=5)
LONGEST_RETRY = timedelta(hours=6)
KEPT_FOR = timedelta(days=30)  # what was delivered can be looked up, and sent again, for so long
AT_ONCE = 20  # messages claimed together
# A relay begins no delivery later than this after its claim: longer than any delivery takes, it then ends before the
# claim lapses.
LAST_BEGIN = CLAIM - timedelta(minutes=2)
PATIENCE = timedelta(minutes=2)  # how long one run goes on; the next beat takes what is left

Handler = Callable[[OutboxMessage], None]
_handlers: dict[str, Handler] = {}


class TargetDown(Exception):
    """The target as a whole cannot be reached: nothing else that waits for it need be tried before `until`."""

    def __init__(self, text: str, *, until: datetime) -> None:
        super().__init__(text)
        self.until = until


class NotNow(Exception):
    """The target rests until then, and was not tried."""

    def __init__(self, *, until: datetime) -> None:
        super().__init__(f"not before {until}")
        self.until = until


class NeverDeliverable(Exception):
    """The message cannot be delivered, now or later: it is given up at once."""


def deliver(*, kind: str, by: Handler) -> None:
    """Have who makes the messages of a kind deliver them: an app or module above this one."""
    _handlers[kind] = by


def handlers() -> dict[str, Handler]:
    """Return who delivers the kinds of those above."""
    return dict(_handlers)


def enqueue(
    *,
    kind: str,
    payload: dict[str, Any],
    at: datetime,
    license_id: UUID | None = None,
    target: str = "",
    customer_id: UUID | None = None,
) -> OutboxMessage:
    """Write a message in the caller's transaction; it is sent once that is committed.

    Messages of the same license to the same `target` (default: its kind) are sent in the order they were enqueued.
    The caller holds the license's lock, so no two transactions take the same place in that order.
    """
    target = target or kind
    position = 0
    if license_id is not None:
        same = OutboxMessage.objects.filter(license_id=license_id, target=target)
        position = (same.aggregate(last=Max("position"))["last"] or 0) + 1
    return OutboxMessage.objects.create(
        kind=kind,
        target=target,
        payload=payload,
        license_id=license_id,
        customer_id=customer_id,
        position=position,
        created_at=at,
        due_at=at,
    )


def waiting() -> QuerySet[OutboxMessage]:
    """Return what is to be sent yet."""
    return OutboxMessage.objects.filter(delivered_at=None, given_up_at=None)


def relay(
    *, handlers: dict[str, Handler], at: datetime, limit: int = 5_000, patience: timedelta = PATIENCE
) -> tuple[int, list[OutboxMessage]]:
    """Deliver what is due. Return how many were delivered, and the messages given up on in this run.

    Messages are claimed before they are delivered, each by one relay however many run, and no transaction is open
    meanwhile: a slow target holds no lock. A failure is kept on the row and tried again, later each time, for three
    days; a relay that dies leaves its claims, which lapse.
    """
    delivered, given_up = 0, []
    begun = time.monotonic()

    def now() -> datetime:
        return at + timedelta(seconds=time.monotonic() - begun)

    taken = 0
    while taken < limit and now() - at < patience:
        claimed_at = now()
        claimed = _claim(at=at, now=claimed_at, count=min(AT_ONCE, limit - taken))
        if not claimed:
            break
        taken += len(claimed)
        resting: dict[str, datetime] = {}
        for message in claimed:
            if now() - claimed_at > LAST_BEGIN:
                _release(message, until=at)
                continue
            if message.target in resting:
                _release(message, until=resting[message.target])
                continue
            message.tried_at = now()
            try:
                handlers[message.kind](message)
            except NotNow as error:
                resting[message.target] = error.until
                _release(message, until=error.until)
                _make_wait(message, until=error.until, all_of_target=True)
            except Exception as error:
                if _postpone(message, error, at):
                    given_up.append(message)
                if isinstance(error, TargetDown):
                    resting[message.target] = error.until
                _note(message, all_of_target=isinstance(error, TargetDown))
            else:
                message.delivered_at, message.given_up_at, message.last_error = at, None, ""
                delivered += 1
                _note(message)
    return delivered, given_up


def _first() -> Q:
    """Return the condition of being the first that waits of its license and target."""
    earlier = waiting().filter(
        license_id=OuterRef("license_id"), target=OuterRef("target"), position__lt=OuterRef("position")
    )
    return Q(license_id=None) | Q(~Exists(earlier))


def _claim(*, at: datetime, now: datetime, count: int) -> list[OutboxMessage]:
    """Take messages that are due and first of their license and target; no other relay takes them for five minutes."""
    with transaction.atomic():
        rows = waiting().filter(_first(), due_at__lte=at).order_by("due_at", "id")
        claimed = list(rows.select_for_update(no_key=True, skip_locked=True)[:count])
        # An attempt counts from its claim, or one that kills its worker would be made for ever.
        taken = OutboxMessage.objects.filter(pk__in=[row.pk for row in claimed])
        taken.update(due_at=now + CLAIM, attempts=F("attempts") + 1)
    for row in claimed:
        row.attempts += 1
    return claimed


def _release(message: OutboxMessage, *, until: datetime) -> None:
    """Give back what was claimed and not tried."""
    waiting().filter(pk=message.pk).update(due_at=until, attempts=F("attempts") - 1)


def _note(message: OutboxMessage, *, all_of_target: bool = False) -> None:
    ended = message.delivered_at or message.given_up_at
    # What somebody gave up meanwhile, because its target is no longer, stays given up when it merely failed.
    fields = ("due_at", "tried_at", "last_error", *(("delivered_at", "given_up_at") if ended else ()))
    try:
        message.save(update_fields=fields)
        if not ended:
            _make_wait(message, until=message.due_at, all_of_target=all_of_target)
    except DatabaseError as error:  # the claim lapses and it is sent again: at least once, never not at all
        log.error("outbox_not_noted", message=str(message.pk), error=str(error))


def _make_wait(message: OutboxMessage, *, until: datetime, all_of_target: bool) -> None:
    """Have what is behind a message that failed wait as long as it does, so that nobody looks at it over and over."""
    behind = waiting().filter(target=message.target, due_at__lt=until).exclude(pk=message.pk)
    if not all_of_target:
        if message.license_id is None:
            return
        behind = behind.filter(license_id=message.license_id)
    behind.update(due_at=until)


def _postpone(message: OutboxMessage, error: Exception, at: datetime) -> bool:
    """Keep the failure and the next try on the row; return whether it is given up."""
    message.last_error = keyformat.redact(f"{type(error).__name__}: {error}")[:2000]
    given_up = at - message.created_at >= GIVE_UP_AFTER and message.attempts >= FEWEST_TRIES
    if given_up or isinstance(error, NeverDeliverable):
        message.given_up_at = at
        return True
    message.due_at = error.until if isinstance(error, TargetDown) else at + retry_in(message.attempts)
    return False


def retry_in(failures: int) -> timedelta:
    """Return how long to wait after so many failures: 10 s, doubled each time up to 6 h, give or take a fifth."""
    wait = min(FIRST_RETRY * 2 ** min(max(failures - 1, 0), 20), LONGEST_RETRY)
    return wait * random.uniform(0.8, 1.2)  # noqa: S311  jitter, not a secret


def lag(*, at: datetime) -> timedelta:
    """Return how long the oldest message has been due that nothing before it keeps from being sent."""
    oldest = waiting().filter(_first()).order_by("due_at").values_list("due_at", flat=True).first()
    return max(at - oldest, timedelta()) if oldest else timedelta()


def forget(*, at: datetime, batch: int = 1_000) -> int:
    """Delete a batch of what was delivered more than 30 days ago; return how many. Dead letters stay."""
    old = OutboxMessage.objects.filter(delivered_at__lt=at - KEPT_FOR).order_by("delivered_at")
    return OutboxMessage.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:batch])).delete()[0]
