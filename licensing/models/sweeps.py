"""Where each periodic job stands."""

from django.db import models


class JobState(models.Model):
    """One periodic job: how far it has come and how it went. The row outlives workers, beats and brokers."""

    name = models.CharField(max_length=64, primary_key=True)
    watermark_at = models.DateTimeField(null=True, blank=True)
    last_started_at = models.DateTimeField(null=True, blank=True)
    last_finished_at = models.DateTimeField(null=True, blank=True)
    last_count = models.PositiveIntegerField(default=0)
    failures = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
