"""API credentials, and the answers kept for repeated requests."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.models.customers import Customer


class Credential(Row):
    """A secret by which a server of the vendor (no customer) or of a customer calls the API.

    Only a keyed digest is stored; the secret is shown once, when it is made.
    """

    SECRET = ("digest",)

    name = models.CharField(max_length=200)
    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, null=True, blank=True, related_name="credentials")
    digest_kid = models.CharField(max_length=32)
    digest = models.BinaryField(max_length=32, unique=True)
    last4 = models.CharField(max_length=4)
    scopes = models.JSONField(default=list)
    allowed_addresses = models.JSONField(default=list, blank=True)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)

    history = history(leaving_out=SECRET)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(expires_at__gt=models.F("created_at")), name="credential_expires_after_it_is_made"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class IdempotencyRecord(Row):
    """The sealed answer to a request that carried an Idempotency-Key, for 24 hours.

    Written in the transaction of the effect it answers for: either both exist or neither.
    """

    SECRET = ("sealed_answer",)

    principal = models.CharField(max_length=64)
    key_digest = models.BinaryField(max_length=32)
    request_digest = models.BinaryField(max_length=32)
    sealed_answer = models.TextField(blank=True)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["principal", "key_digest"], name="idempotency_key_is_used_once_per_principal"
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)
