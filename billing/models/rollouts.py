"""Rollouts: a whole cohort of licenses moved to another plan revision, step by step, with what was found on the way."""

from django.db import models
from django.db.models import Q

from billing.states import DifferenceKind, MemberState, RolloutStage
from licensing.models import License, Plan, PlanRevision, SchemeChange
from licensing.models.base import Row


class Rollout(Row):
    """The move of a plan's licenses to a plan revision. `stage` is what was asked for and last finished; the work of it
    stands in the members' rows, so that a process killed anywhere is taken up by the next.

    `live_dropped` is how many live requests could not be compared, for want of room or for a fault.
    `percent` is how much of the cohort is to be switched. `stopped_at`: no license is touched until it is resumed.
    """

    code = models.SlugField(max_length=64, unique=True)
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="+")
    plan_revision = models.ForeignKey(PlanRevision, on_delete=models.PROTECT, related_name="+")
    reason = models.TextField()
    stage = models.CharField(max_length=16, choices=RolloutStage, default=RolloutStage.PREPARED)
    percent = models.PositiveSmallIntegerField(default=0)
    enlisted_at = models.DateTimeField(null=True, blank=True)
    stopped_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    live_dropped = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=Q(stage__in=RolloutStage.values), name="rollout_stage_is_known"),
            models.CheckConstraint(condition=Q(percent__lte=100), name="rollout_percent_is_at_most_100"),
        ]

    def __str__(self) -> str:
        return self.code


class RolloutMember(Row):
    """One license in a rollout, and how far it has come. `place` (0 to 99) says at which percentage it is switched.

    `change` holds the license's row as it was before, to the byte.
    """

    rollout = models.ForeignKey(Rollout, on_delete=models.PROTECT, related_name="members")
    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="rollout_memberships")
    place = models.PositiveSmallIntegerField()
    state = models.CharField(max_length=16, choices=MemberState, default=MemberState.PENDING)
    change = models.OneToOneField(SchemeChange, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    findings = models.JSONField(default=list)
    rehearsed_at = models.DateTimeField(null=True, blank=True)
    shadowed_at = models.DateTimeField(null=True, blank=True)
    settled_at = models.DateTimeField(null=True, blank=True)
    verified_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["rollout", "license"]
        indexes = [models.Index(fields=["rollout", "state", "license"], name="rollout_member_by_state")]
        constraints = [
            models.UniqueConstraint(fields=["rollout", "license"], name="license_is_once_in_a_rollout"),
            models.UniqueConstraint(
                fields=["license"],
                condition=Q(state__in=("pending", "switched")),
                name="license_is_in_one_open_rollout",
            ),
            models.CheckConstraint(condition=Q(state__in=MemberState.values), name="rollout_member_state_is_known"),
            models.CheckConstraint(
                condition=~Q(state__in=("switched", "final")) | Q(change__isnull=False),
                name="rollout_member_has_its_change_once_switched",
            ),
        ]

    def __str__(self) -> str:
        return str(self.license_id)


class RolloutDifference(Row):
    """That a license would be charged, limited or answered otherwise under the new terms: what, and why."""

    rollout = models.ForeignKey(Rollout, on_delete=models.PROTECT, related_name="differences")
    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=16, choices=DifferenceKind)
    subject = models.CharField(max_length=200)
    before = models.CharField(max_length=300, blank=True)
    after = models.CharField(max_length=300, blank=True)
    reason = models.TextField()

    class Meta:
        ordering = ["rollout", "license", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["rollout", "license", "kind", "subject", "before", "after"],
                name="rollout_difference_is_said_once",
            ),
            models.CheckConstraint(condition=Q(kind__in=DifferenceKind.values), name="difference_kind_is_known"),
        ]

    def __str__(self) -> str:
        return f"{self.subject}: {self.before} -> {self.after}"


class LiveComparison(Row):
    """How live requests of a member were answered by its terms, and would have been by the rollout's: how many were
    compared since `since_at`, when it was as if switched, and how many differed.

    `used` is what would have been used of each hard allowance by now, by meter and month. The row of a member that is
    no longer pending stays as it was.
    """

    member = models.OneToOneField(RolloutMember, on_delete=models.PROTECT, related_name="live")
    since_at = models.DateTimeField()
    last_at = models.DateTimeField()
    compared = models.PositiveBigIntegerField(default=0)
    differed = models.PositiveBigIntegerField(default=0)
    used = models.JSONField(default=dict)

    class Meta:
        ordering = ["member"]
        constraints = [
            models.CheckConstraint(condition=Q(differed__lte=models.F("compared")), name="live_differed_of_compared")
        ]

    def __str__(self) -> str:
        return f"{self.differed} of {self.compared}"
