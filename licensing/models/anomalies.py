"""Anomalies: recorded suspicions, the rules' thresholds and runs, and the observations that rules judge by."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.models.licenses import License
from licensing.states import AnomalyState, Severity


class Anomaly(Row):
    """What a rule found suspicious about one object within one hour, however often it saw it.

    `rule_version`, `revision` and `thresholds` are what it was judged by when it was first seen: the rule as the code
    has it, and the thresholds people gave it (revision 0: its defaults). `alerted_at` is when people were told, or when
    it was decided that they had been.
    """

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
    snoozed_until = models.DateTimeField(null=True, blank=True)
    rule_version = models.PositiveIntegerField(default=0)
    revision = models.PositiveIntegerField(default=0)
    thresholds = models.JSONField(default=dict, blank=True)
    alerted_at = models.DateTimeField(null=True, blank=True, editable=False)

    history = history(leaving_out=("count", "last_at", "alerted_at"))

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "anomalies"
        permissions = [("receive_alerts", "Is told of anomalies by mail")]
        indexes = [
            models.Index(fields=["id"], condition=Q(alerted_at=None), name="anomaly_to_alert"),
            models.Index(fields=["snoozed_until"], condition=Q(state="snoozed"), name="anomaly_to_wake"),
        ]
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
            models.CheckConstraint(
                condition=Q(state="snoozed", snoozed_until__isnull=False) | ~Q(state="snoozed") & Q(snoozed_until=None),
                name="snoozed_anomaly_says_until_when",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.rule} {self.first_at:%Y-%m-%d %H:%M}"


class RuleRevision(Row):
    """The thresholds of a rule from an instant on, who decides them said in the audit record. Never changes.

    `thresholds` holds only what differs from the rule's defaults; `hold` whether the rule stops the license by itself.
    """

    rule = models.CharField(max_length=64)
    number = models.PositiveIntegerField()
    thresholds = models.JSONField(default=dict, blank=True)
    hold = models.BooleanField(default=False)
    reason = models.TextField()

    class Meta:
        ordering = ["rule", "-number"]
        permissions = [("change_rules", "Can change the thresholds of rules")]
        constraints = [
            models.UniqueConstraint(fields=["rule", "number"], name="rule_revision_number_is_unique"),
            models.CheckConstraint(condition=~Q(reason=""), name="rule_revision_says_why"),
        ]

    def __str__(self) -> str:
        return f"{self.rule} r{self.number}"


class RuleRun(models.Model):
    """When a rule last looked, and how far: what it has not looked at since, nobody has."""

    rule = models.CharField(max_length=64, primary_key=True)
    ran_at = models.DateTimeField(null=True, blank=True)
    looked_at = models.PositiveIntegerField(default=0, help_text="How many objects it judged in its last run.")
    failures = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)

    class Meta:
        ordering = ["rule"]

    def __str__(self) -> str:
        return self.rule


class Observation(models.Model):
    """That `value` was seen with `subject`, how often within its slot of time, first and last when.

    What it means depends on the kind: see `licensing.observations`, the only writer. Rows go after a time; none holds
    an address, a key or a name.
    """

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=24)
    subject = models.CharField(max_length=64)
    value = models.CharField(max_length=128)
    slot_at = models.DateTimeField()
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    count = models.PositiveIntegerField(default=1)

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["kind", "last_at"], name="observation_by_age")]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "subject", "slot_at", "value"], name="one_observation_per_value_and_slot"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"
