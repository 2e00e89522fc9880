"""What is sold: products, plans, and the immutable plan revisions licenses are pinned to."""

from datetime import timedelta

from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.states import (
    EntitlementKind,
    FingerprintScope,
    OutagePolicy,
    Overage,
    RenewalBasis,
    RevisionState,
    Scheme,
    SeatKind,
    ValidityBasis,
)


class Product(Row):
    """A program the vendor sells. Client programs name it by `code`."""

    code = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=200)
    description = models.TextField(blank=True)

    history = history()

    class Meta:
        ordering = ["code"]

    def __str__(self) -> str:
        return self.name


class Release(Row):
    """When a version of a product came out: a maintenance window covers versions until a date."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="releases")
    version = models.CharField(max_length=64)
    released_at = models.DateTimeField()

    class Meta:
        ordering = ["product", "-released_at"]
        constraints = [
            models.UniqueConstraint(fields=["product", "version"], name="release_version_is_unique_per_product")
        ]

    def __str__(self) -> str:
        return f"{self.product_id} {self.version}"


class Plan(Row):
    """A named offer of a product. What it grants stands in its revisions, one published at a time."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="plans")
    code = models.SlugField(max_length=64)
    name = models.CharField(max_length=200)
    description = models.TextField(blank=True)

    history = history()

    class Meta:
        ordering = ["product", "code"]
        constraints = [models.UniqueConstraint(fields=["product", "code"], name="plan_code_is_unique_per_product")]

    def __str__(self) -> str:
        return self.name


class PlanRevision(Row):
    """The terms a license is pinned to. Once published nothing of it ever changes but published -> retired.

    Every license type (perpetual, subscription, trial, floating, node-locked, named-user, metered, hybrid) is
    a combination of these fields; no code asks for a type.
    """

    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="revisions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=16, choices=RevisionState, default=RevisionState.DRAFT)
    published_at = models.DateTimeField(null=True, blank=True)
    retired_at = models.DateTimeField(null=True, blank=True)

    scheme = models.CharField(max_length=16, choices=Scheme, default=Scheme.SEATS)
    trial = models.BooleanField(default=False, help_text="Offered for trying out, not for sale.")

    seat_kind = models.CharField(max_length=16, choices=SeatKind, default=SeatKind.NAMED)
    seat_limit = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    seat_required = models.BooleanField(
        default=False, help_text="Valid only for somebody with a seat, or, where seats float, a machine with a lease."
    )
    seat_churn_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="Releases and transfers allowed per churn window. Empty: no limit."
    )

    activation_limit = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    activation_required = models.BooleanField(
        default=False, help_text="Valid only on a machine with an activation (node-locked)."
    )
    activation_churn_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="Deactivations allowed per churn window. Empty: no limit."
    )
    fingerprint_scope = models.CharField(max_length=16, choices=FingerprintScope, default=FingerprintScope.LICENSE)
    churn_window = models.DurationField(
        null=True, blank=True, help_text="The window the churn limits count in, e.g. 30 days."
    )
    activation_dead_after = models.DurationField(
        null=True,
        blank=True,
        help_text="A machine not seen for this long is let go, unless it works offline. Empty: never.",
    )

    validity_basis = models.CharField(max_length=32, choices=ValidityBasis, default=ValidityBasis.FROM_ISSUE)
    duration = models.DurationField(null=True, blank=True, help_text="Empty: perpetual.")
    fixed_expires_at = models.DateTimeField(null=True, blank=True)
    renewal_basis = models.CharField(max_length=32, choices=RenewalBasis, default=RenewalBasis.FROM_EXPIRY)
    grace_period = models.DurationField(null=True, blank=True, help_text="Use still allowed after the expiry.")
    maintenance = models.DurationField(
        null=True,
        blank=True,
        help_text="Versions released within this time are covered. Empty: all versions.",
    )

    require_signed_clients = models.BooleanField(
        default=False, help_text="A license key alone only activates machines; these then sign every request."
    )
    outage_policy = models.CharField(
        max_length=16,
        choices=OutagePolicy,
        default=OutagePolicy.STRICT,
        help_text="What is answered while the database is away.",
    )
    outage_tolerance = models.DurationField(
        default=timedelta(hours=24), help_text="How old the last known state may be that a lenient answer is made from."
    )
    lease_duration = models.DurationField(
        default=timedelta(minutes=10), help_text="How long a lease runs unless it is renewed, if nobody says otherwise."
    )
    offline_period = models.DurationField(
        default=timedelta(days=30), help_text="How long a license file or borrowed lease works offline. 0: not at all."
    )

    history = history()

    class Meta:
        ordering = ["plan", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["plan", "number"], name="revision_number_is_unique_per_plan"),
            models.UniqueConstraint(
                fields=["plan"], condition=Q(state="published"), name="one_published_revision_per_plan"
            ),
            models.CheckConstraint(condition=Q(number__gte=1), name="revision_number_starts_at_one"),
            models.CheckConstraint(condition=Q(state__in=RevisionState.values), name="revision_state_is_known"),
            models.CheckConstraint(condition=Q(scheme__in=Scheme.values), name="revision_scheme_is_known"),
            models.CheckConstraint(
                condition=Q(state="draft", published_at=None) | ~Q(state="draft") & Q(published_at__isnull=False),
                name="revision_is_published_at_an_instant",
            ),
            models.CheckConstraint(
                condition=Q(state="retired", retired_at__isnull=False) | ~Q(state="retired") & Q(retired_at=None),
                name="revision_is_retired_at_an_instant",
            ),
            models.CheckConstraint(
                condition=~Q(validity_basis="fixed_date") | Q(fixed_expires_at__isnull=False),
                name="fixed_date_validity_has_its_date",
            ),
            models.CheckConstraint(
                condition=Q(duration=None) | Q(duration__gt=timedelta()), name="revision_duration_is_positive"
            ),
            models.CheckConstraint(
                condition=Q(grace_period=None) | Q(grace_period__gte=timedelta()),
                name="grace_period_is_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(activation_churn_limit=None, seat_churn_limit=None) | Q(churn_window__isnull=False),
                name="churn_limit_has_its_window",
            ),
            models.CheckConstraint(
                condition=Q(activation_dead_after=None) | Q(activation_dead_after__gt=timedelta()),
                name="a_machine_is_not_dead_at_once",
            ),
            models.CheckConstraint(
                condition=Q(outage_policy__in=OutagePolicy.values), name="revision_outage_policy_is_known"
            ),
            models.CheckConstraint(
                condition=Q(
                    outage_tolerance__gte=timedelta(), lease_duration__gt=timedelta(), offline_period__gte=timedelta()
                ),
                name="revision_spans_are_not_negative",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.plan} r{self.number}"


class Entitlement(Row):
    """One named right a revision grants: on/off, a fixed value, or an allowance of a meter per period."""

    plan_revision = models.ForeignKey(PlanRevision, on_delete=models.CASCADE, related_name="entitlements")
    key = models.SlugField(max_length=64)
    kind = models.CharField(max_length=16, choices=EntitlementKind)
    value = models.CharField(max_length=200, blank=True, help_text="For a fixed value.")
    meter = models.SlugField(max_length=64, blank=True, help_text="For a metered allowance.")
    amount = models.DecimalField(max_digits=24, decimal_places=6, null=True, blank=True)
    overage = models.CharField(max_length=16, choices=Overage, default=Overage.REFUSE)

    class Meta:
        ordering = ["key"]
        constraints = [
            models.UniqueConstraint(fields=["plan_revision", "key"], name="entitlement_key_is_unique_per_revision"),
            models.CheckConstraint(
                condition=Q(kind="flag", value="", meter="", amount=None)
                | Q(kind="value", meter="", amount=None) & ~Q(value="")
                | Q(kind="allowance", value="", amount__isnull=False, amount__gte=0) & ~Q(meter=""),
                name="entitlement_holds_what_its_kind_says",
            ),
        ]

    def __str__(self) -> str:
        return self.key
