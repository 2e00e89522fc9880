"""Usage: the events, the memory of their ids, and the totals made of them.

The license's id leads every key, so that the tables can be distributed by it. On PostgreSQL the events are partitioned
by month (see `billing.partitions`); the memory of ids is not, so that the same id is known whatever time it names.
"""

from django.db import models
from django.db.models import Q

from billing.models.meters import MeterRevision
from billing.states import EventKind, Window
from licensing.models.allowances import quantity


class UsageId(models.Model):
    """That an event was counted: the memory that makes counting exact, kept as long as an event may be sent again.

    `digest` is of the event's content, so that the same id with other content is told from a repetition.
    """

    SECRET = ("digest",)

    pk = models.CompositePrimaryKey("license_id", "event_id")
    license_id = models.UUIDField()
    event_id = models.CharField(max_length=200)
    digest = models.BinaryField(max_length=16)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField()

    class Meta:
        ordering = ["license_id", "event_id"]
        indexes = [models.Index(fields=["license_id", "received_at"], name="usage_id_by_age")]

    def __str__(self) -> str:
        return self.event_id


class UsageEvent(models.Model):
    """One immutable reported quantity. Corrections are events of their own, with who and why."""

    pk = models.CompositePrimaryKey("license_id", "occurred_at", "event_id")
    license_id = models.UUIDField()
    occurred_at = models.DateTimeField()
    event_id = models.CharField(max_length=200)
    meter_revision = models.ForeignKey(
        MeterRevision, on_delete=models.PROTECT, db_constraint=False, db_index=False, related_name="+"
    )
    quantity = quantity()
    dimensions = models.JSONField(null=True, blank=True)
    sequence = models.BigIntegerField(null=True, blank=True)
    received_at = models.DateTimeField()
    source = models.CharField(max_length=80)
    kind = models.CharField(max_length=16, choices=EventKind, default=EventKind.USAGE)
    reason = models.TextField(blank=True)

    class Meta:
        ordering = ["license_id", "occurred_at", "event_id"]

    def __str__(self) -> str:
        return self.event_id


class UsageChange(models.Model):
    """That events of an hour came in: written with them, taken away by the roll-up that has counted them.

    One row a transaction and hour, never changed: writers do not wait for each other, nor for a roll-up. On PostgreSQL
    the key is the license's id, hour, meter revision and `id`, on SQLite an index leads with the license's id.
    """

    id = models.BigAutoField(primary_key=True)
    license_id = models.UUIDField()
    meter_revision_id = models.UUIDField()
    hour = models.DateTimeField()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.license_id} {self.hour:%Y-%m-%dT%H}"


class Rollup(models.Model):
    """A total recomputed from events for a window, always of the whole window. How each is made: `billing.rollups`.

    `group` is empty, but for the different values of a `unique` meter within an hour, which have a row each: "=value".
    `first_at` and `last` (of `latest` and `time_weighted_sum`) are when the first event of the window occurred and what
    the last one said. What a time-weighted sum owes to the value carried over into the window is not in `quantity`.
    """

    pk = models.CompositePrimaryKey("license_id", "meter_revision_id", "window", "starts_at", "group")
    license_id = models.UUIDField()
    meter_revision = models.ForeignKey(
        MeterRevision, on_delete=models.PROTECT, db_constraint=False, db_index=False, related_name="+"
    )
    window = models.CharField(max_length=8, choices=Window)
    starts_at = models.DateTimeField()
    group = models.CharField(max_length=512, blank=True)
    quantity = models.DecimalField(max_digits=42, decimal_places=12)
    events = models.BigIntegerField()
    first_at = models.DateTimeField(null=True, blank=True)
    last = models.DecimalField(max_digits=30, decimal_places=6, null=True, blank=True)

    class Meta:
        ordering = ["license_id", "meter_revision_id", "window", "starts_at"]
        constraints = [models.CheckConstraint(condition=Q(window__in=Window.values), name="rollup_window_is_known")]

    def __str__(self) -> str:
        return f"{self.window} {self.starts_at:%Y-%m-%dT%H}"
