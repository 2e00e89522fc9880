"""Audit entries: who did what to what, why, when."""

from django.db import models

from licensing.models.base import Row


class AuditEntry(Row):
    """One change, reveal or read that matters, written in the transaction of what it records.

    Append-only (see `guards`). The hash chain refers to entries from a table of its own, so that chaining
    never updates an entry; `id` orders entries until then.
    """

    PERSONAL = ("actor_label", "address")

    at = models.DateTimeField()
    action = models.CharField(max_length=64)
    actor_kind = models.CharField(max_length=16)
    actor_id = models.CharField(max_length=64, blank=True)
    actor_label = models.CharField(max_length=254, blank=True)
    actor_role = models.CharField(max_length=64, blank=True)
    address = models.GenericIPAddressField(null=True, blank=True)
    object_kind = models.CharField(max_length=64)
    object_id = models.CharField(max_length=64)
    license_id = models.UUIDField(null=True, blank=True)
    customer_id = models.UUIDField(null=True, blank=True)
    before = models.JSONField(default=dict)
    after = models.JSONField(default=dict)
    reason = models.TextField(blank=True)
    request_id = models.CharField(max_length=64, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["license_id", "id"], name="audit_by_license"),
            models.Index(fields=["object_kind", "object_id", "id"], name="audit_by_object"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.at:%Y-%m-%d %H:%M:%S}"
