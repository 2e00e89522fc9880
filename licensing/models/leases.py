"""Leases and license files: what a machine may do for a time, here or offline."""

from django.db import models
from django.db.models import F, Q

from licensing.models.activations import Activation
from licensing.models.base import Row
from licensing.models.licenses import License


class Lease(Row):
    """A time-limited claim on one unit of floating capacity. It counts until it is ended: checked in, or reclaimed
    after it lapsed. `fingerprint` names the machine that took it, if it said so; a machine has one live lease.
    """

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="leases")
    activation = models.ForeignKey(Activation, on_delete=models.PROTECT, null=True, blank=True, related_name="leases")
    fingerprint = models.CharField(max_length=128, blank=True)
    offline = models.BooleanField(default=False, help_text="Borrowed: used without the server until it expires.")
    checked_out_at = models.DateTimeField()
    renewed_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["expires_at"], condition=Q(ended_at=None), name="lease_due"),
            models.Index(fields=["license", "fingerprint"], name="lease_by_machine"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["license", "fingerprint"],
                condition=Q(ended_at=None) & ~Q(fingerprint=""),
                name="machine_has_one_live_lease_per_license",
            ),
            models.CheckConstraint(
                condition=Q(expires_at__gt=F("checked_out_at")), name="lease_expires_after_it_starts"
            ),
        ]

    def __str__(self) -> str:
        return f"lease {self.pk}"


class LicenseFile(Row):
    """An offline license file that was issued: the record of it, not the file. It cannot be taken back before it
    expires, so what is out there must be known."""

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="files")
    activation = models.ForeignKey(Activation, on_delete=models.PROTECT, related_name="files")
    kid = models.CharField(max_length=32)
    encrypted = models.BooleanField(default=False)
    issued_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=Q(expires_at__gt=F("issued_at")), name="license_file_expires_after_issue"),
        ]

    def __str__(self) -> str:
        return f"license file {self.pk}"
