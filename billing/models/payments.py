"""Payments: what was paid for a statement, what the payment gateway knows of it, and what was done meanwhile."""

from django.db import models
from django.db.models import Q

from billing.models.statements import Statement
from billing.states import DunningAct, GatewayOutcome, InvoiceState, PaymentSource, ReversalKind
from licensing.models import Hold, License
from licensing.models.base import Row


class GatewayInvoice(Row):
    """The invoice at the payment gateway that asks for a statement's total: one each, and how sending it goes.

    The row stands before anything is sent. `next_at` is when it is looked at again, and the claim
    of the run that does.
    """

    statement = models.OneToOneField(Statement, on_delete=models.PROTECT, related_name="at_gateway")
    state = models.CharField(max_length=16, choices=InvoiceState, default=InvoiceState.WAITING)
    external_id = models.CharField(max_length=128, blank=True)
    url = models.URLField(max_length=2000, blank=True, help_text="Where the customer pays.")
    days_until_due = models.PositiveIntegerField(editable=False)
    told_minor = models.BigIntegerField(default=0, help_text="How much of what came past the gateway it knows of.")
    usage_sent_at = models.DateTimeField(null=True, blank=True)
    seen_at = models.DateTimeField(null=True, blank=True, help_text="When it was last compared with the gateway.")
    attempts = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField()
    last_error = models.TextField(blank=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["state", "next_at"], name="gateway_invoice_due")]
        constraints = [
            models.UniqueConstraint(
                fields=["external_id"], condition=~Q(external_id=""), name="gateway_invoice_is_of_one_statement"
            ),
            models.CheckConstraint(condition=Q(state__in=InvoiceState.values), name="gateway_invoice_state_is_known"),
        ]

    def __str__(self) -> str:
        return self.external_id or "not sent yet"


class GatewayEvent(Row):
    """A signed message of the gateway that was taken: its id, so that it has its effect once. Never changes."""

    event_id = models.CharField(max_length=255, unique=True)
    kind = models.CharField(max_length=128)
    object_id = models.CharField(max_length=255, blank=True)
    occurred_at = models.DateTimeField()
    outcome = models.CharField(max_length=16, choices=GatewayOutcome)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(condition=Q(outcome__in=GatewayOutcome.values), name="event_outcome_is_known")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.event_id}"


class Payment(Row):
    """Money that came in for a statement, in minor units of its currency, or credit of an earlier one, `credit_of`,
    that was set off against it. Never changes."""

    statement = models.ForeignKey(Statement, on_delete=models.PROTECT, related_name="payments")
    source = models.CharField(max_length=16, choices=PaymentSource)
    amount_minor = models.BigIntegerField()
    reference = models.CharField(max_length=255)
    credit_of = models.ForeignKey(
        Statement, on_delete=models.PROTECT, null=True, blank=True, related_name="credit_used", editable=False
    )
    reason = models.TextField(blank=True)

    class Meta:
        ordering = ["created_at"]
        constraints = [
            models.UniqueConstraint(fields=["source", "reference"], name="payment_is_recorded_once"),
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="payment_is_positive"),
            models.CheckConstraint(condition=Q(source__in=PaymentSource.values), name="payment_source_is_known"),
        ]

    def __str__(self) -> str:
        return self.reference


class Reversal(Row):
    """What was done at the gateway against the money for a statement: a refund, a credit note, a dispute; amounts in
    minor units. `returned_minor` went back to the customer, `credited_minor` is asked for no more, both only while it
    `stands`: a refund can fail, a dispute be won. `status` is the gateway's word. Nothing else of it changes.
    """

    statement = models.ForeignKey(Statement, on_delete=models.PROTECT, related_name="reversals")
    kind = models.CharField(max_length=16, choices=ReversalKind)
    reference = models.CharField(max_length=255, unique=True)
    returned_minor = models.BigIntegerField(default=0)
    credited_minor = models.BigIntegerField(default=0)
    stands = models.BooleanField(default=True)
    status = models.CharField(max_length=64, blank=True)

    class Meta:
        ordering = ["created_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(returned_minor__gte=0, credited_minor__gte=0), name="reversal_is_not_negative"
            ),
            models.CheckConstraint(condition=Q(kind__in=ReversalKind.values), name="reversal_kind_is_known"),
        ]

    def __str__(self) -> str:
        return self.reference


class DunningStep(Row):
    """A reminder sent, or a hold placed, `days` after a statement was due: each once. Never changes."""

    statement = models.ForeignKey(Statement, on_delete=models.PROTECT, related_name="dunning_steps")
    days = models.PositiveIntegerField()
    act = models.CharField(max_length=16, choices=DunningAct)

    class Meta:
        ordering = ["statement", "days"]
        constraints = [
            models.UniqueConstraint(fields=["statement", "days", "act"], name="dunning_step_is_taken_once"),
            models.CheckConstraint(condition=Q(act__in=DunningAct.values), name="dunning_act_is_known"),
        ]

    def __str__(self) -> str:
        return f"{self.act} after {self.days} days"


class DunningHold(Row):
    """A statement for whose sake a license is held. The hold is lifted with the last statement that wants it."""

    statement = models.ForeignKey(Statement, on_delete=models.PROTECT, related_name="dunning_holds")
    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="+")
    hold = models.ForeignKey(Hold, on_delete=models.PROTECT, related_name="+")
    released_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["created_at"]
        constraints = [
            models.UniqueConstraint(fields=["statement", "license"], name="statement_holds_a_license_once"),
        ]

    def __str__(self) -> str:
        return f"hold for {self.statement_id}"
