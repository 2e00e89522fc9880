"""Activations: our record of the machines a license is bound to."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.models.licenses import License
from licensing.models.seats import Seat


class Activation(Row):
    """One machine bound to a license. A deactivated one stays as a record.

    `scope` is what the fingerprint must be unique in: the license's id, or the product's when the plan
    revision says one machine may be active on one license of the product only.
    """

    PERSONAL = ("name",)

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="activations")
    seat = models.ForeignKey(Seat, on_delete=models.PROTECT, null=True, blank=True, related_name="activations")
    scope = models.UUIDField()
    fingerprint = models.CharField(max_length=128)
    name = models.CharField(max_length=200, blank=True)
    platform = models.CharField(max_length=64, blank=True)
    activated_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    deactivated_at = models.DateTimeField(null=True, blank=True)

    history = history(leaving_out=("name", "last_seen_at"))

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["license", "deactivated_at"],
                condition=Q(deactivated_at__isnull=False),
                name="activation_churn",
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["license", "fingerprint"],
                condition=Q(deactivated_at=None),
                name="machine_is_active_once_per_license",
            ),
            models.UniqueConstraint(
                fields=["scope", "fingerprint"],
                condition=Q(deactivated_at=None),
                name="machine_is_active_once_per_scope",
            ),
        ]

    def __str__(self) -> str:
        return f"activation {self.pk}"
