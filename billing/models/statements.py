"""Statements: what a customer owes for a period, and the lines it is made of."""

from django.db import models
from django.db.models import F, Q

from billing.models.prices import PriceRevision
from billing.states import LineKind, StatementState
from licensing.models import Customer, License, Term
from licensing.models.base import Row


class Statement(Row):
    """What a customer owes for a period in one currency. Amounts are in minor units. From `final` on nothing of it
    changes but that it is paid or void; corrections are lines of a later one. `bill_to` is whom it was made out to."""

    PERSONAL = ("bill_to",)

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="statements")
    currency = models.CharField(max_length=3)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    state = models.CharField(max_length=16, choices=StatementState, default=StatementState.DRAFT)
    number = models.PositiveIntegerField(null=True, blank=True)
    refreshed_at = models.DateTimeField(null=True, blank=True)
    final_at = models.DateTimeField(null=True, blank=True)
    due_at = models.DateTimeField(null=True, blank=True)
    paid_at = models.DateTimeField(null=True, blank=True)
    void_at = models.DateTimeField(null=True, blank=True)
    void_reason = models.TextField(blank=True)
    replaces = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="replaced_by", editable=False
    )
    subtotal_minor = models.BigIntegerField(default=0)
    tax_rate = models.DecimalField(max_digits=6, decimal_places=4, default=0)
    tax_minor = models.BigIntegerField(default=0)
    total_minor = models.BigIntegerField(default=0)
    bill_to = models.TextField(blank=True)
    gateway_invoice = models.CharField(max_length=128, blank=True)

    class Meta:
        ordering = ["-starts_at", "-id"]
        indexes = [models.Index(fields=["state", "ends_at"], name="statement_by_state")]
        constraints = [
            models.UniqueConstraint(
                fields=["customer", "currency", "starts_at"],
                condition=~Q(state="void"),
                name="one_statement_per_customer_and_period",
            ),
            models.UniqueConstraint(fields=["customer", "number"], name="statement_number_is_unique_per_customer"),
            models.CheckConstraint(condition=Q(state__in=StatementState.values), name="statement_state_is_known"),
            models.CheckConstraint(
                condition=Q(state="draft", number=None, final_at=None)
                | ~Q(state="draft") & Q(number__isnull=False, final_at__isnull=False),
                name="statement_has_its_number_once_final",
            ),
            models.CheckConstraint(
                condition=Q(total_minor=F("subtotal_minor") + F("tax_minor")), name="statement_adds_up"
            ),
            models.CheckConstraint(condition=Q(ends_at__gt=F("starts_at")), name="statement_ends_after_it_starts"),
        ]

    def __str__(self) -> str:
        return str(self.number or "draft")


class StatementLine(Row):
    """One line of a statement: what for, for which stretch of which license, under which price.

    An adjustment names the line it `adjusts`, if any. With `corrects` it is ours, computed anew with every refresh:
    what that final statement's period owes now beyond what was billed for it. Without, a person made it.
    """

    statement = models.ForeignKey(Statement, on_delete=models.PROTECT, related_name="lines")
    position = models.PositiveIntegerField()
    kind = models.CharField(max_length=16, choices=LineKind)
    license = models.ForeignKey(License, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    term = models.ForeignKey(Term, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    price_revision = models.ForeignKey(PriceRevision, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    meter = models.SlugField(max_length=64, blank=True)
    description = models.CharField(max_length=300)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    quantity = models.DecimalField(max_digits=30, decimal_places=6, null=True, blank=True)
    unit_amount = models.DecimalField(max_digits=30, decimal_places=12, null=True, blank=True)
    amount_minor = models.BigIntegerField()
    adjusts = models.ForeignKey("self", on_delete=models.PROTECT, null=True, blank=True, related_name="adjustments")
    corrects = models.ForeignKey(Statement, on_delete=models.PROTECT, null=True, blank=True, related_name="corrections")
    reason = models.TextField(blank=True)

    class Meta:
        ordering = ["statement", "position"]
        constraints = [
            models.UniqueConstraint(fields=["statement", "position"], name="line_position_is_unique_per_statement"),
            models.CheckConstraint(condition=Q(kind__in=LineKind.values), name="line_kind_is_known"),
        ]

    def __str__(self) -> str:
        return self.description
