"""Meters: what is counted. A meter's meaning stands in its revisions, immutable once published, one at a time."""

from django.db import models
from django.db.models import Q

from billing.states import Aggregation
from licensing.models.base import Row, history
from licensing.states import RevisionState


class Meter(Row):
    """What is counted, named by `code` in events, entitlements and prices."""

    code = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=200)
    description = models.TextField(blank=True)

    history = history()

    class Meta:
        ordering = ["code"]

    def __str__(self) -> str:
        return self.name


class MeterRevision(Row):
    """How a meter counts. Events are counted under the revision that was published when they were received.

    `dimensions` are the names an event may carry; `filters` {dimension: [values]} say which events count; `unique_by`
    names the dimension whose different values are counted.
    """

    meter = models.ForeignKey(Meter, on_delete=models.PROTECT, related_name="revisions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=16, choices=RevisionState, default=RevisionState.DRAFT)
    published_at = models.DateTimeField(null=True, blank=True)
    retired_at = models.DateTimeField(null=True, blank=True)
    aggregation = models.CharField(max_length=24, choices=Aggregation, default=Aggregation.SUM)
    unit = models.CharField(max_length=32, blank=True, help_text="As bills spell it, e.g. calls, GiB.")
    dimensions = models.JSONField(default=list, blank=True)
    filters = models.JSONField(default=dict, blank=True)
    unique_by = models.CharField(max_length=64, blank=True)

    history = history()

    class Meta:
        ordering = ["meter", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["meter", "number"], name="meter_revision_number_is_unique"),
            models.UniqueConstraint(
                fields=["meter"], condition=Q(state="published"), name="one_published_revision_per_meter"
            ),
            models.CheckConstraint(condition=Q(state__in=RevisionState.values), name="meter_revision_state_is_known"),
            models.CheckConstraint(
                condition=Q(aggregation__in=Aggregation.values), name="meter_revision_aggregation_is_known"
            ),
            models.CheckConstraint(
                condition=Q(aggregation="unique") & ~Q(unique_by="") | ~Q(aggregation="unique") & Q(unique_by=""),
                name="unique_meter_names_its_dimension",
            ),
            models.CheckConstraint(
                condition=Q(state="draft", published_at=None) | ~Q(state="draft") & Q(published_at__isnull=False),
                name="meter_revision_is_published_at_an_instant",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.meter} r{self.number}"
