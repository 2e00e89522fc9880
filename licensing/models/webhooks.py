"""Webhook endpoints and what was sent to them."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.models.customers import Customer
from licensing.states import EndpointState


class WebhookEndpoint(Row):
    """Where somebody's server is told what happens: the vendor's (no customer) of everything, a customer's of theirs.

    The secrets are sealed. While `former_until` is ahead, messages are signed by both, so that a receiver can change
    over without losing one. A deleted endpoint stays for its log, without secrets.
    """

    SECRET = ("sealed_secret", "sealed_former_secret")

    customer = models.ForeignKey(
        Customer, on_delete=models.PROTECT, null=True, blank=True, related_name="webhook_endpoints"
    )
    url = models.CharField(max_length=500)
    description = models.CharField(max_length=200, blank=True)
    event_types = models.JSONField(default=list, blank=True, help_text="Empty: every type.")
    sealed_secret = models.TextField(blank=True)
    sealed_former_secret = models.TextField(blank=True)
    former_until = models.DateTimeField(null=True, blank=True)
    state = models.CharField(max_length=16, choices=EndpointState, default=EndpointState.ENABLED)
    disabled_at = models.DateTimeField(null=True, blank=True)
    disabled_reason = models.CharField(max_length=200, blank=True)
    failing_since = models.DateTimeField(null=True, blank=True)
    failures = models.PositiveIntegerField(default=0, help_text="Attempts that failed since the last one that did not.")
    rests_until = models.DateTimeField(null=True, blank=True, help_text="Nothing is tried before.")
    delivered_at = models.DateTimeField(null=True, blank=True, help_text="When something last arrived there.")

    history = history(leaving_out=(*SECRET, "failing_since", "failures", "rests_until", "delivered_at"))

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=EndpointState.values), name="endpoint_state_is_known"),
            models.CheckConstraint(
                condition=Q(state="deleted") | ~Q(sealed_secret=""), name="endpoint_has_a_secret_until_deleted"
            ),
        ]

    def __str__(self) -> str:
        return self.url


class WebhookDelivery(Row):
    """One attempt to deliver a message to an endpoint: when, how long it took and what came back, cut and redacted.

    `message_id` is the webhook-id the receiver saw; the outbox row of that id may be gone by now.
    """

    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.PROTECT, related_name="deliveries")
    message_id = models.UUIDField()
    event_type = models.CharField(max_length=64)
    license_id = models.UUIDField(null=True, blank=True)
    attempt = models.PositiveIntegerField()
    at = models.DateTimeField()
    status = models.PositiveIntegerField(null=True, blank=True, help_text="HTTP; empty when no answer came.")
    duration_ms = models.PositiveIntegerField()
    answer = models.TextField(blank=True)
    error = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "webhook deliveries"
        indexes = [
            models.Index(fields=["endpoint", "-id"], name="delivery_by_endpoint"),
            models.Index(fields=["message_id"], name="delivery_by_message"),
            models.Index(fields=["at"], name="delivery_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} {self.at:%Y-%m-%d %H:%M:%S}"
