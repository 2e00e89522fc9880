"""Audit entries: who did what to what, why, when."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row


class AuditEntry(Row):
    """One change, reveal or read that matters, written in the transaction of what it records.

    Append-only (see `guards`). The chain refers to entries from a table of its own, so that chaining never updates an
    entry; its number orders them for good, `id` until then. A column more needs a new form in `chain.FORMS`.

    What it says of a person stands in `personal`, by name, sealed under that person's key (see `persons`); the columns
    of these names are then empty. What programs and licenses do is no person's, and stands in the columns.
    """

    PERSONAL = ("actor_label", "address", "personal")

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
    personal = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["license_id", "id"], name="audit_by_license"),
            models.Index(fields=["object_kind", "object_id", "id"], name="audit_by_object"),
            models.Index(fields=["at"], condition=Q(action="key.revealed"), name="audit_of_reveals"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.at:%Y-%m-%d %H:%M:%S}"


class AuditWaiting(models.Model):
    """That an entry has no number yet. A trigger of the database writes the row beside the entry, in its transaction:
    whoever sees the one sees the other, however late that transaction commits (ADR 0019)."""

    entry_id = models.UUIDField(primary_key=True)

    def __str__(self) -> str:
        return str(self.entry_id)


class AuditLink(models.Model):
    """The place of one entry in the chain: a number without gaps, and a hash over this entry and the place before.

    No foreign key: it would have the database follow each link to its entry, and hide a deleted entry's place rather
    than name it. `chain` writes links, `verifying` compares them with what is there.
    """

    number = models.BigIntegerField(primary_key=True)
    entry_id = models.UUIDField(unique=True)
    form = models.PositiveSmallIntegerField()
    content_hash = models.BinaryField(max_length=32)
    chain_hash = models.BinaryField(max_length=32)

    class Meta:
        ordering = ["-number"]
        constraints = [models.CheckConstraint(condition=models.Q(number__gte=1), name="audit_numbers_start_at_one")]

    def __str__(self) -> str:
        return f"entry {self.number}"


class AuditCheckpoint(Row):
    """A signed statement: so many entries there were, and this was the hash of the last one's place."""

    at = models.DateTimeField()
    size = models.BigIntegerField()
    head = models.BinaryField(max_length=32)
    kid = models.CharField(max_length=32)
    signature = models.BinaryField(max_length=64)

    class Meta:
        ordering = ["-size", "-at"]
        indexes = [models.Index(fields=["size", "at"], name="checkpoint_by_size")]

    def __str__(self) -> str:
        return f"{self.size} entries, {self.at:%Y-%m-%d %H:%M:%S}"
