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

    `public_key` is the machine's own Ed25519 key (32 bytes), once it registered one: it then signs its requests.
    `counter_floor` is the highest counter of such a request that is known to be written here: what the nonce
    store starts from when its own memory is gone. `cloned_at` is when a copy of the machine was noticed.
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

    public_key = models.BinaryField(max_length=32, null=True, blank=True, editable=False)
    key_thumbprint = models.CharField(max_length=43, blank=True, editable=False)
    counter_floor = models.PositiveBigIntegerField(default=0, editable=False)
    cloned_at = models.DateTimeField(null=True, blank=True, editable=False)

    history = history(leaving_out=("name", "last_seen_at", "counter_floor", "public_key"))

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
            models.UniqueConstraint(
                fields=["license", "key_thumbprint"],
                condition=Q(deactivated_at=None) & ~Q(key_thumbprint=""),
                name="machine_key_is_active_once_per_license",
            ),
            models.CheckConstraint(
                condition=Q(public_key=None, key_thumbprint="") | Q(public_key__isnull=False) & ~Q(key_thumbprint=""),
                name="machine_key_has_its_thumbprint",
            ),
        ]

    def __str__(self) -> str:
        return f"activation {self.pk}"


class RequestNonce(models.Model):
    """A signed request that was accepted while Redis was away: what keeps it from being accepted again.

    Rows are deleted once no acceptance can reach back to them; their counter then stands in `counter_floor`.
    """

    id = models.BigAutoField(primary_key=True)
    activation = models.ForeignKey(Activation, on_delete=models.CASCADE, related_name="nonces")
    nonce = models.CharField(max_length=128)
    counter = models.PositiveBigIntegerField()
    seen_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["activation", "nonce"], name="nonce_is_accepted_once"),
            models.UniqueConstraint(fields=["activation", "counter"], name="counter_is_accepted_once"),
        ]

    def __str__(self) -> str:
        return f"{self.activation_id} {self.counter}"
