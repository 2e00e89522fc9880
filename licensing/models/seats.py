"""Seats: one unit of named capacity each."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.models.licenses import License
from licensing.states import SeatState


class Seat(Row):
    """One unit of a license's seats, held by somebody. A released seat stays as a record."""

    PERSONAL = ("holder",)

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="seats")
    holder = models.EmailField(max_length=254)
    state = models.CharField(max_length=16, choices=SeatState)
    assigned_at = models.DateTimeField(null=True, blank=True)
    released_at = models.DateTimeField(null=True, blank=True)

    history = history(leaving_out=PERSONAL)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["license", "released_at"],
                condition=Q(released_at__isnull=False),
                name="seat_churn",
            ),
            models.Index(fields=["released_at"], condition=Q(released_at__isnull=False), name="seat_released"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["license", "holder"],
                condition=Q(released_at=None),
                name="holder_has_one_seat_per_license",
            ),
            models.CheckConstraint(
                condition=Q(state="released", released_at__isnull=False) | ~Q(state="released") & Q(released_at=None),
                name="seat_is_released_at_an_instant",
            ),
            models.CheckConstraint(condition=Q(state__in=SeatState.values), name="seat_state_is_known"),
        ]

    def __str__(self) -> str:
        return f"seat {self.pk}"
