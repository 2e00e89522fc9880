"""What things cost: prices of a plan in a currency, in immutable revisions; and to whom it is billed."""

from django.db import models
from django.db.models import Q

from licensing.models import Customer, Plan
from licensing.models.base import Row, history
from licensing.states import RevisionState


class Price(Row):
    """What a plan costs in one currency. What it says stands in its revisions."""

    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="prices")
    currency = models.CharField(max_length=3)

    history = history()

    class Meta:
        ordering = ["plan", "currency"]
        constraints = [
            models.UniqueConstraint(fields=["plan", "currency"], name="one_price_per_plan_and_currency"),
            models.CheckConstraint(condition=Q(currency__regex=r"^[A-Z]{3}$"), name="price_currency_is_a_code"),
        ]

    def __str__(self) -> str:
        return f"{self.plan} in {self.currency}"


class PriceRevision(Row):
    """The components of a price, as `billing.pricing` reads them. Once published nothing of it ever changes.

    A stretch of a license is rated by the newest revision that is effective where the stretch begins.
    """

    price = models.ForeignKey(Price, on_delete=models.PROTECT, related_name="revisions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=16, choices=RevisionState, default=RevisionState.DRAFT)
    effective_at = models.DateTimeField(null=True, blank=True)
    published_at = models.DateTimeField(null=True, blank=True)
    retired_at = models.DateTimeField(null=True, blank=True)
    components = models.JSONField(default=list)

    history = history()

    class Meta:
        ordering = ["price", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["price", "number"], name="price_revision_number_is_unique"),
            models.CheckConstraint(condition=Q(state__in=RevisionState.values), name="price_revision_state_is_known"),
            models.CheckConstraint(
                condition=Q(state="draft", published_at=None)
                | ~Q(state="draft") & Q(published_at__isnull=False, effective_at__isnull=False),
                name="price_revision_is_published_at_an_instant",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.price} r{self.number}"


class BillingAccount(Row):
    """How a customer is billed: currency, tax, address, and who it is at the payment gateway."""

    PERSONAL = ("address",)

    customer = models.OneToOneField(Customer, on_delete=models.PROTECT, related_name="billing_account")
    currency = models.CharField(max_length=3, default="EUR")
    tax_rate = models.DecimalField(
        max_digits=6, decimal_places=4, default=0, help_text="In percent, on top of every statement."
    )
    tax_id = models.CharField(max_length=64, blank=True)
    address = models.TextField(blank=True)
    last_number = models.PositiveIntegerField(default=0, editable=False)
    gateway_customer = models.CharField(max_length=128, blank=True, editable=False)

    history = history(leaving_out=PERSONAL)

    class Meta:
        ordering = ["customer"]
        constraints = [
            models.CheckConstraint(condition=Q(tax_rate__gte=0, tax_rate__lte=100), name="tax_rate_is_a_percentage"),
            models.CheckConstraint(condition=Q(currency__regex=r"^[A-Z]{3}$"), name="account_currency_is_a_code"),
        ]

    def __str__(self) -> str:
        return f"account of {self.customer_id}"
