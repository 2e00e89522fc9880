"""Where each periodic job stands, and which reminders were sent."""

from django.db import models

from licensing.models.base import Row
from licensing.models.licenses import License


class JobState(models.Model):
    """One periodic job: how far it has come and how it went. The row outlives workers, beats and brokers.

    A run's key names the stretch of time it is for; keys sort as text. `finished_key` is of the last that was done,
    `run_key` of the last that was begun, by whoever holds `run_token` until `claimed_until`.
    """

    name = models.CharField(max_length=64, primary_key=True)
    watermark_at = models.DateTimeField(null=True, blank=True)
    last_started_at = models.DateTimeField(null=True, blank=True)
    last_finished_at = models.DateTimeField(null=True, blank=True)
    last_count = models.PositiveIntegerField(default=0)
    failures = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    run_key = models.CharField(max_length=32, blank=True, default="")
    run_token = models.UUIDField(null=True, blank=True)
    claimed_until = models.DateTimeField(null=True, blank=True)
    finished_key = models.CharField(max_length=32, blank=True, default="")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Reminder(Row):
    """That the customer was told, so many days ahead, that a license ends at this instant: once, whatever happens."""

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="reminders")
    expires_at = models.DateTimeField()
    days = models.PositiveIntegerField()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["license", "expires_at", "days"], name="a_reminder_is_sent_once_per_expiry_and_stretch"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.days} days before {self.expires_at:%Y-%m-%d}"
