"""The outbox: what must be sent, once the change that caused it is committed."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row


class OutboxMessage(Row):
    """One mail or webhook to send, written in the transaction of its cause; sent at least once, `id` de-duplicates.

    It holds ids and facts, never a key or an address: the relay looks those up when it sends. Messages of one license
    to one target go out in the order of `position`, which counts up within them.
    """

    kind = models.CharField(max_length=64)
    target = models.CharField(max_length=64, blank=True)
    license_id = models.UUIDField(null=True, blank=True)
    customer_id = models.UUIDField(null=True, blank=True)
    position = models.BigIntegerField(default=0)
    payload = models.JSONField(default=dict)
    due_at = models.DateTimeField()
    tried_at = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveIntegerField(default=0)
    delivered_at = models.DateTimeField(null=True, blank=True)
    given_up_at = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["due_at"],
                condition=Q(delivered_at=None, given_up_at=None),
                name="outbox_due",
            ),
            models.Index(
                fields=["target", "license_id", "position"],
                condition=Q(delivered_at=None, given_up_at=None),
                name="outbox_waiting",
            ),
            models.Index(fields=["license_id", "target", "position"], name="outbox_order"),
            models.Index(
                fields=["delivered_at"],
                condition=Q(delivered_at__isnull=False),
                name="outbox_delivered",
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(delivered_at=None) | Q(given_up_at=None), name="delivered_or_given_up_not_both"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"
