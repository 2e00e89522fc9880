"""The outbox: what must be sent, once the change that caused it is committed."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row


class OutboxMessage(Row):
    """One mail to send, written in the transaction of its cause; delivered at least once, `id` de-duplicates.

    It holds ids and a template's name, never a key or an address: the relay looks those up when it sends.
    """

    kind = models.CharField(max_length=64)
    license_id = models.UUIDField(null=True, blank=True)
    payload = models.JSONField(default=dict)
    due_at = models.DateTimeField()
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
            )
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(delivered_at=None) | Q(given_up_at=None), name="delivered_or_given_up_not_both"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"
