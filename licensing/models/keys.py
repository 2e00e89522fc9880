"""License keys: a keyed digest to find them by, a sealed value to show them from."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row
from licensing.models.licenses import License


class LicenseKey(Row):
    """The secret string that names a license, never stored as it is.

    Kept in a table of its own, without history, so that no list, log or history row of a license can hold it.
    """

    SECRET = ("digest", "sealed")

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="keys")
    digest_kid = models.CharField(max_length=32)
    digest = models.BinaryField(max_length=32, unique=True)
    sealed = models.TextField()
    last5 = models.CharField(max_length=5)
    retired_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["license"], condition=Q(retired_at=None), name="one_live_key_per_license"),
        ]

    def __str__(self) -> str:
        return f"…{self.last5}"
