"""Anomalies: recorded suspicions, with evidence and a person's resolution."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.models.licenses import License
from licensing.states import AnomalyState, Severity


class Anomaly(Row):
    """What a rule found suspicious about one object within one hour, however often it saw it."""

    rule = models.CharField(max_length=64)
    severity = models.CharField(max_length=16, choices=Severity)
    object_kind = models.CharField(max_length=64)
    object_id = models.CharField(max_length=64)
    license = models.ForeignKey(License, on_delete=models.PROTECT, null=True, blank=True, related_name="anomalies")
    hour_at = models.DateTimeField()
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    count = models.PositiveIntegerField(default=1)
    evidence = models.JSONField(default=dict)
    state = models.CharField(max_length=16, choices=AnomalyState, default=AnomalyState.OPEN)
    resolution = models.TextField(blank=True)
    resolved_at = models.DateTimeField(null=True, blank=True)

    history = history(leaving_out=("count", "last_at"))

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "anomalies"
        constraints = [
            models.UniqueConstraint(
                fields=["rule", "object_kind", "object_id", "hour_at"],
                name="one_anomaly_per_rule_object_and_hour",
            ),
            models.CheckConstraint(
                condition=Q(state="resolved", resolved_at__isnull=False) & ~Q(resolution="")
                | ~Q(state="resolved") & Q(resolved_at=None),
                name="resolved_anomaly_says_how_and_when",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.rule} {self.first_at:%Y-%m-%d %H:%M}"
