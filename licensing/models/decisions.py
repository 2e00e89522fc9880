"""Decision records: why a validation was refused."""

from django.db import models

from licensing.models.base import Row


class DecisionRecord(Row):
    """One refusal, with the rules looked at. Written in batches, kept 30 days."""

    request_id = models.CharField(max_length=64, db_index=True)
    at = models.DateTimeField(db_index=True)
    license_id = models.UUIDField(null=True, blank=True)
    caller = models.CharField(max_length=64)
    code = models.CharField(max_length=32)
    looked_at = models.JSONField(default=list)

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["license_id", "-at"], name="decision_by_license")]

    def __str__(self) -> str:
        return f"{self.code} {self.request_id}"
