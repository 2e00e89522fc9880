"""Licenses, the holds on them and the terms they ran under."""

from datetime import datetime

from django.db import models
from django.db.models import Exists, F, OuterRef, Q

from licensing.models.base import Row, history
from licensing.models.catalog import PlanRevision, Product
from licensing.models.customers import Customer
from licensing.states import ChangeState, HoldReason, LicenseStatus, Scheme


class LicenseQuerySet(models.QuerySet["License"]):
    """Questions about many licenses at once, spelled as `states.status_at` spells them for one."""

    def with_status(self, status: str, at: datetime) -> "LicenseQuerySet":
        """Return the licenses whose status at the instant `at` is `status`."""
        held = Exists(Hold.objects.filter(license=OuterRef("pk"), lifted_at=None))
        unexpired = Q(expires_at=None) | Q(expires_at__gt=at)
        graced = Q(expires_at__lte=at, grace_until__gt=at)
        issued, standing = Q(issued_at__isnull=False), Q(issued_at__isnull=False, revoked_at=None)
        conditions = {
            LicenseStatus.DRAFT: Q(issued_at=None),
            LicenseStatus.REVOKED: issued & Q(revoked_at__isnull=False),
            LicenseStatus.HELD: standing & held,
            LicenseStatus.ACTIVE: standing & ~held & unexpired,
            LicenseStatus.IN_GRACE: standing & ~held & graced,
            LicenseStatus.EXPIRED: standing & ~held & ~unexpired & ~graced,
        }
        return self.filter(conditions[LicenseStatus(status)])


class License(Row):
    """One customer's right to use one product for a time, under one plan revision.

    Instants are facts, `status` follows from them (`states.status_at`). `swept_status` is what the expiration
    sweep last recorded, and `due_at` the next instant at which time alone changes it: the sweep reads only
    what is due. A ceiling is the limit enforced right now: it equals the limit, or what is in use when the
    limit fell below that, and then falls with each release. `terms_mac` proves that a rule wrote the terms
    (see `licensing.proofs`).
    """

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="licenses")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="licenses")
    plan_revision = models.ForeignKey(PlanRevision, on_delete=models.PROTECT, related_name="licenses")
    scheme = models.CharField(max_length=16, choices=Scheme)
    revision = models.PositiveBigIntegerField(default=1, editable=False)
    updated_at = models.DateTimeField(editable=False)

    issued_at = models.DateTimeField(null=True, blank=True)
    starts_at = models.DateTimeField()
    first_activated_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    grace_until = models.DateTimeField(null=True, blank=True)
    maintenance_until = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    transferred_at = models.DateTimeField(null=True, blank=True, editable=False)

    seat_limit = models.PositiveIntegerField(null=True, blank=True)
    seats_ceiling = models.PositiveIntegerField(null=True, blank=True)
    seats_used = models.PositiveIntegerField(default=0)
    activation_limit = models.PositiveIntegerField(null=True, blank=True)
    activations_ceiling = models.PositiveIntegerField(null=True, blank=True)
    activations_used = models.PositiveIntegerField(default=0)

    swept_status = models.CharField(max_length=16, choices=LicenseStatus, default=LicenseStatus.ACTIVE)
    due_at = models.DateTimeField(null=True, blank=True)

    terms_kid = models.CharField(max_length=32, blank=True, editable=False)
    terms_mac = models.BinaryField(max_length=32, null=True, blank=True)

    objects = LicenseQuerySet.as_manager()
    history = history(leaving_out=("swept_status", "due_at", "terms_kid", "terms_mac"))

    class Meta:
        ordering = ["-id"]
        permissions = [
            ("issue_license", "Can issue and renew licenses"),
            ("hold_license", "Can hold and lift licenses"),
            ("revoke_license", "Can revoke licenses"),
            ("reveal_key", "Can reveal license keys"),
            ("manage_seats", "Can assign and release seats and machines"),
        ]
        indexes = [
            models.Index(fields=["due_at"], condition=Q(due_at__isnull=False), name="license_due"),
            models.Index(fields=["customer", "id"], name="license_by_customer"),
            models.Index(fields=["issued_at"], name="license_by_issue"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(seats_ceiling=None) | Q(seats_used__lte=F("seats_ceiling")),
                name="seats_used_is_within_ceiling",
            ),
            models.CheckConstraint(
                condition=Q(seat_limit=None, seats_ceiling=None)
                | Q(seat_limit__isnull=False, seats_ceiling__isnull=False, seats_ceiling__gte=F("seat_limit")),
                name="seats_ceiling_is_at_least_the_limit",
            ),
            models.CheckConstraint(
                condition=Q(activations_ceiling=None) | Q(activations_used__lte=F("activations_ceiling")),
                name="activations_used_is_within_ceiling",
            ),
            models.CheckConstraint(
                condition=Q(activation_limit=None, activations_ceiling=None)
                | Q(
                    activation_limit__isnull=False,
                    activations_ceiling__isnull=False,
                    activations_ceiling__gte=F("activation_limit"),
                ),
                name="activations_ceiling_is_at_least_the_limit",
            ),
            models.CheckConstraint(
                condition=Q(seats_ceiling=None) | Q(seats_ceiling=F("seat_limit")) | Q(seats_ceiling=F("seats_used")),
                name="seats_ceiling_is_the_limit_or_what_is_used",
            ),
            models.CheckConstraint(
                condition=Q(activations_ceiling=None)
                | Q(activations_ceiling=F("activation_limit"))
                | Q(activations_ceiling=F("activations_used")),
                name="activations_ceiling_is_the_limit_or_what_is_used",
            ),
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(expires_at__gt=F("starts_at")),
                name="license_expires_after_it_starts",
            ),
            models.CheckConstraint(
                condition=Q(grace_until=None) | Q(expires_at__isnull=False, grace_until__gte=F("expires_at")),
                name="grace_ends_after_expiry",
            ),
            models.CheckConstraint(condition=Q(scheme__in=Scheme.values), name="license_scheme_is_known"),
        ]

    def __str__(self) -> str:
        return str(self.pk)


class Hold(Row):
    """One open reason to stop a license. Lifting it is final for this row; a new reason is a new row."""

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="holds")
    reason = models.CharField(max_length=16, choices=HoldReason)
    note = models.TextField(blank=True)
    placed_at = models.DateTimeField()
    lifted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-placed_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["license", "reason"], condition=Q(lifted_at=None), name="one_open_hold_per_reason"
            ),
            models.CheckConstraint(
                condition=Q(lifted_at=None) | Q(lifted_at__gte=F("placed_at")),
                name="hold_is_lifted_after_it_is_placed",
            ),
            models.CheckConstraint(condition=Q(reason__in=HoldReason.values), name="hold_reason_is_known"),
        ]

    def __str__(self) -> str:
        return self.get_reason_display()


class TermQuerySet(models.QuerySet["Term"]):
    def in_force(self) -> "TermQuerySet":
        """Return the terms that were not undone: what every rule and every line of money goes by."""
        return self.filter(undone_at=None)


class Term(Row):
    """A stretch of a license under one scheme and plan revision.

    It stores only its start, so that no gap and no overlap can exist: it ends where the next in force begins (ADR
    0003). One that was undone stays, and counts as if it had never been (ADR 0017).
    """

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="terms")
    starts_at = models.DateTimeField()
    scheme = models.CharField(max_length=16, choices=Scheme)
    plan_revision = models.ForeignKey(PlanRevision, on_delete=models.PROTECT, related_name="terms")
    reason = models.TextField(blank=True)
    undone_at = models.DateTimeField(null=True, blank=True)

    objects = TermQuerySet.as_manager()

    class Meta:
        ordering = ["-starts_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["license", "starts_at"], condition=Q(undone_at=None), name="term_starts_once_per_license"
            ),
            models.CheckConstraint(condition=Q(scheme__in=Scheme.values), name="term_scheme_is_known"),
        ]

    def __str__(self) -> str:
        return f"{self.scheme} from {self.starts_at:%Y-%m-%d}"


class SchemeChange(Row):
    """One change of a license to another plan revision: to come, made, or undone, with who asked for it.

    `before` and `after` are the license's row on either side of it (`schemes.image`), so that it can be undone.
    """

    PERSONAL = ("actor_label",)

    license = models.ForeignKey(License, on_delete=models.PROTECT, related_name="scheme_changes")
    plan_revision = models.ForeignKey(PlanRevision, on_delete=models.PROTECT, related_name="+")
    starts_at = models.DateTimeField()
    reason = models.TextField(blank=True)
    actor_kind = models.CharField(max_length=16)
    actor_id = models.CharField(max_length=64, blank=True)
    actor_label = models.CharField(max_length=254, blank=True)
    actor_role = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=16, choices=ChangeState)
    applied_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    refusal = models.CharField(max_length=64, blank=True)
    term = models.OneToOneField(Term, on_delete=models.PROTECT, null=True, blank=True, related_name="opened_by")
    before = models.JSONField(null=True, blank=True)
    after = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["starts_at"], condition=Q(state="scheduled"), name="scheme_change_due"),
            models.Index(fields=["license", "id"], name="scheme_change_by_license"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["license"], condition=Q(state="scheduled"), name="one_scheduled_change_per_license"
            ),
            models.CheckConstraint(condition=Q(state__in=ChangeState.values), name="scheme_change_state_is_known"),
            models.CheckConstraint(
                condition=Q(state__in=("applied", "undone"), applied_at__isnull=False, term__isnull=False)
                | Q(state__in=("scheduled", "cancelled", "refused"), applied_at=None, term=None),
                name="scheme_change_has_its_term_once_applied",
            ),
        ]

    def __str__(self) -> str:
        return f"to {self.plan_revision} at {self.starts_at:%Y-%m-%d %H:%M}"
