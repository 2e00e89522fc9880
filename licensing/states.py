"""Every state and verdict code, and the transitions allowed between states.

Reads no database, no clock, no settings: an instant comes in as an argument. The spelling here is the one
in the database, the API and the docs.
"""

from datetime import datetime

from django.db.models import TextChoices


class RevisionState(TextChoices):
    DRAFT = "draft"
    PUBLISHED = "published"
    RETIRED = "retired"


REVISION_TRANSITIONS = {
    RevisionState.DRAFT: {RevisionState.PUBLISHED},
    RevisionState.PUBLISHED: {RevisionState.RETIRED},
    RevisionState.RETIRED: set(),
}


class Scheme(TextChoices):
    """How use is limited and charged."""

    SEATS = "seats"
    USAGE = "usage"
    BOTH = "both", "seats and usage"


class ChangeState(TextChoices):
    """How far a change of scheme or plan has come. Only the first two ever go on."""

    SCHEDULED = "scheduled"
    APPLIED = "applied"
    UNDONE = "undone"
    CANCELLED = "cancelled"
    REFUSED = "refused"


CHANGE_TRANSITIONS = {
    ChangeState.SCHEDULED: {ChangeState.APPLIED, ChangeState.CANCELLED, ChangeState.REFUSED},
    ChangeState.APPLIED: {ChangeState.UNDONE},
    ChangeState.UNDONE: set(),
    ChangeState.CANCELLED: set(),
    ChangeState.REFUSED: set(),
}


class SeatKind(TextChoices):
    """Whether a seat belongs to a named holder or is taken for a while by whoever comes."""

    NAMED = "named"
    FLOATING = "floating"


class ValidityBasis(TextChoices):
    """What the validity of a license counts from."""

    FROM_ISSUE = "from_issue", "from issue"
    FROM_FIRST_ACTIVATION = "from_first_activation", "from first activation"
    FIXED_DATE = "fixed_date", "until a fixed date"


class RenewalBasis(TextChoices):
    """What a renewal adds its duration to."""

    FROM_EXPIRY = "from_expiry", "from the expiry"
    FROM_NOW = "from_now", "from the renewal"
    FROM_NOW_IF_EXPIRED = "from_now_if_expired", "from the expiry, or from the renewal when already expired"


class FingerprintScope(TextChoices):
    """Where one fingerprint may be active at most once."""

    LICENSE = "license", "once per license"
    PRODUCT = "product", "on one license of the product"


class OutagePolicy(TextChoices):
    """What a validation is answered while the database is away: nothing, or the last known state, marked so."""

    STRICT = "strict"
    LENIENT = "lenient"


class EntitlementKind(TextChoices):
    FLAG = "flag", "on/off"
    VALUE = "value", "fixed value"
    ALLOWANCE = "allowance", "metered allowance"


class Overage(TextChoices):
    """What happens beyond an allowance."""

    REFUSE = "refuse"
    CHARGE = "charge"


class ReservationState(TextChoices):
    OPEN = "open"
    COMMITTED = "committed"
    RELEASED = "released"
    LAPSED = "lapsed"


class LicenseStatus(TextChoices):
    DRAFT = "draft"
    ACTIVE = "active"
    IN_GRACE = "in_grace", "in grace"
    EXPIRED = "expired"
    HELD = "held"
    REVOKED = "revoked"


class HoldReason(TextChoices):
    UNPAID = "unpaid"
    ABUSE = "abuse"
    DISPUTE = "dispute"
    SECURITY = "security"
    STAFF = "staff", "staff decision"
    ANOMALY = "anomaly", "an anomaly to be looked at"


class SeatState(TextChoices):
    """A reserved or blocked seat takes up capacity; a released one does not."""

    RESERVED = "reserved"
    ASSIGNED = "assigned"
    BLOCKED = "blocked"
    RELEASED = "released"


SEAT_TRANSITIONS = {
    SeatState.RESERVED: {SeatState.ASSIGNED, SeatState.BLOCKED, SeatState.RELEASED},
    SeatState.ASSIGNED: {SeatState.BLOCKED, SeatState.RELEASED},
    SeatState.BLOCKED: {SeatState.ASSIGNED, SeatState.RELEASED},
    SeatState.RELEASED: set(),
}


class MemberRole(TextChoices):
    OWNER = "owner"
    LICENSE_MANAGER = "license_manager", "license manager"
    BILLING = "billing"
    VIEWER = "viewer"


class AnomalyState(TextChoices):
    """A snoozed one comes back by itself; until then what it says of its object alerts nobody again."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    SNOOZED = "snoozed"
    RESOLVED = "resolved"


class EndpointState(TextChoices):
    """Whether a webhook endpoint is told. A deleted one stays for its log."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    DELETED = "deleted"


class Severity(TextChoices):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class VerdictCode(TextChoices):
    """Verdict codes in the order they are looked at: the first that applies is the answer."""

    NOT_FOUND = "not_found"
    REVOKED = "revoked"
    HELD = "held"
    NOT_STARTED = "not_started"
    EXPIRED = "expired"
    WRONG_PRODUCT = "wrong_product"
    VERSION_NOT_COVERED = "version_not_covered"
    ACTIVATION_REQUIRED = "activation_required"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    SEAT_REQUIRED = "seat_required"
    LEASE_LAPSED = "lease_lapsed"
    ENTITLEMENT_MISSING = "entitlement_missing"
    ALLOWANCE_EXHAUSTED = "allowance_exhausted"
    IN_GRACE = "in_grace"
    VALID = "valid"


def status_at(
    *,
    at: datetime,
    issued: bool,
    revoked: bool,
    held: bool,
    expires_at: datetime | None,
    grace_until: datetime | None,
) -> LicenseStatus:
    """Return the status the facts of a license add up to at the instant `at`.

    Half-open: at `expires_at` itself the license is no longer active, at `grace_until` no longer in grace.
    """
    if not issued:
        return LicenseStatus.DRAFT
    if revoked:
        return LicenseStatus.REVOKED
    if held:
        return LicenseStatus.HELD
    return timed_status_at(at=at, expires_at=expires_at, grace_until=grace_until)


def timed_status_at(*, at: datetime, expires_at: datetime | None, grace_until: datetime | None) -> LicenseStatus:
    """Return what time alone makes of an issued license: active, in grace or expired."""
    if expires_at is None or at < expires_at:
        return LicenseStatus.ACTIVE
    if grace_until is not None and at < grace_until:
        return LicenseStatus.IN_GRACE
    return LicenseStatus.EXPIRED
