"""What is used of an allowance: the live counters, prepaid credit, and what is reserved."""

from typing import Any

from django.db import models
from django.db.models import F, Q

from licensing.models.base import Row
from licensing.models.licenses import License
from licensing.states import ReservationState


def quantity(**options: Any) -> Any:
    """Return a field for a quantity: 24 digits before the point, 6 after it."""
    return models.DecimalField(max_digits=30, decimal_places=6, **options)


class Counter(models.Model):
    """The live running figure of one meter on one license for a window: a period, or the part of it under one term.

    A window is half-open, and windows of a license and meter never overlap: a change of scheme ends the current one and
    opens the next. `ceiling` is what may be used and reserved at most, None where nothing is refused. `credit` is what
    was drawn from credit grants for this window; it raises a ceiling. `exhausted`: nothing is left and no credit open,
    which validation shows. The row can be rebuilt from the events (`billing.rollups`).
    """

    pk = models.CompositePrimaryKey("license_id", "meter", "starts_at")
    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="counters")
    meter = models.SlugField(max_length=64)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    allowance = quantity(null=True, blank=True)
    ceiling = quantity(null=True, blank=True)
    used = quantity(default=0)
    reserved = quantity(default=0)
    credit = quantity(default=0)
    exhausted = models.BooleanField(default=False)
    notified_percent = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["license_id", "meter", "-starts_at"]
        # None of these holds what a count moves: a count then touches no index.
        indexes = [
            models.Index(fields=["license"], condition=Q(exhausted=True), name="counter_exhausted"),
            models.Index(
                fields=["ends_at", "license", "meter"], condition=Q(allowance__isnull=False), name="counter_by_end"
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(ceiling=None) | Q(ceiling__gte=F("used") + F("reserved")),
                name="counter_is_within_its_ceiling",
            ),
            models.CheckConstraint(condition=Q(reserved__gte=0), name="counter_reserves_nothing_negative"),
            models.CheckConstraint(condition=Q(credit__gte=0), name="counter_draws_nothing_negative"),
            models.CheckConstraint(condition=Q(ends_at__gt=F("starts_at")), name="counter_ends_after_it_starts"),
        ]

    def __str__(self) -> str:
        return f"{self.meter} from {self.starts_at:%Y-%m-%d}"


class CreditGrant(Row):
    """Prepaid credit of a meter: drawn on once the allowance is used, in the order of priority, then of expiry."""

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="credit_grants")
    meter = models.SlugField(max_length=64)
    amount = quantity()
    drawn = quantity(default=0)
    priority = models.PositiveSmallIntegerField(default=100, help_text="The lowest is drawn on first.")
    starts_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    reason = models.TextField(blank=True)

    class Meta:
        ordering = ["license_id", "meter", "priority", "expires_at", "id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(drawn__gte=0, drawn__lte=F("amount")), name="credit_is_drawn_within_its_amount"
            ),
            models.CheckConstraint(condition=Q(amount__gt=0), name="credit_amount_is_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.amount} {self.meter}"


class Reservation(Row):
    """Part of a hard allowance held before costly work. It lapses by itself; what it became is kept."""

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="reservations")
    meter = models.SlugField(max_length=64)
    counter_starts_at = models.DateTimeField()
    quantity = quantity()
    state = models.CharField(max_length=16, choices=ReservationState, default=ReservationState.OPEN)
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    event_id = models.CharField(max_length=200, blank=True)
    holder = models.CharField(max_length=80, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["expires_at"], condition=Q(state="open"), name="reservation_due")]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=ReservationState.values), name="reservation_state_is_known"),
            models.CheckConstraint(condition=Q(quantity__gt=0), name="reservation_quantity_is_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} {self.meter}"
