"""The shapes of the API: what a body may hold, what an answer shows. No rule stands here.

Times are RFC 3339 UTC, durations seconds, quantities decimal strings (CONTRACT "HTTP").
"""

import re
from datetime import timedelta
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from licensing import credentials, fingerprints, lifecycle
from licensing.api.base import StrictSerializer
from licensing.models import License
from licensing.states import (
    EntitlementKind,
    FingerprintScope,
    HoldReason,
    LicenseStatus,
    MemberRole,
    OutagePolicy,
    Overage,
    RenewalBasis,
    Scheme,
    SeatKind,
    ValidityBasis,
    VerdictCode,
)

LARGEST_LIMIT = 2_000_000_000
LONGEST_SECONDS = 3_155_760_000
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_QUANTITY = re.compile(r"\d{1,18}(\.\d{1,6})?", re.ASCII)


class WholeNumberField(serializers.IntegerField):
    """A whole number written as one: no text, no fraction, no boolean."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return data


class SecondsField(WholeNumberField):
    """A time span in whole seconds, up to a hundred years."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"min_value": 1, "max_value": LONGEST_SECONDS, **options})

    def run_validation(self, data: Any = serializers.empty) -> Any:
        seconds = super().run_validation(data)  # its limits are looked at first: a span has limits of its own
        return timedelta(seconds=seconds) if isinstance(seconds, int) else seconds

    def to_representation(self, value: Any) -> int:
        return int(value.total_seconds())


class LimitField(WholeNumberField):
    """A limit; null is no limit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"min_value": 0, "max_value": LARGEST_LIMIT, "allow_null": True, **options})


class TextField(serializers.CharField):
    """Text written as text: a number is not taken for one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class PatternField(serializers.RegexField):
    """Text of one pattern, written as text and taken as it is."""

    def __init__(self, pattern: str, **options: Any) -> None:
        super().__init__(rf"^{pattern}\Z", **{"trim_whitespace": False, **options})

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class FingerprintField(PatternField):
    """A machine's fingerprint."""

    default_error_messages = {"invalid": fingerprints.FORM}

    def __init__(self, **options: Any) -> None:
        super().__init__(fingerprints.PATTERN.pattern, **options)


class CodeField(PatternField):
    """The short name of a thing: letters, digits, hyphen, underscore."""

    def __init__(self, **options: Any) -> None:
        super().__init__(r"[-a-zA-Z0-9_]+", **{"max_length": 64, **options})


class IdField(serializers.UUIDField):
    """An id in its one form; a number is not taken for one."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str) or not _ID.fullmatch(data):
            self.fail("invalid", value=str(data)[:60])
        return super().to_internal_value(data)


class FlagField(serializers.BooleanField):
    """true or false, and nothing that only sounds like it."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=str(data)[:60])
        return data


class InstantField(serializers.DateTimeField):
    """An instant as RFC 3339 writes it, with its offset, in a year a license can have something to do with."""

    default_error_messages = {"out_of_range": "The year is one from 1970 to 2999."}

    def to_internal_value(self, value: Any) -> Any:
        if not isinstance(value, str) or not _INSTANT.fullmatch(value):
            self.fail("invalid", format="RFC 3339: YYYY-MM-DDThh:mm:ss[.ffffff] and Z or +hh:mm")
        instant = super().to_internal_value(value.upper())
        if not 1970 <= instant.year <= 2999:
            self.fail("out_of_range")
        return instant


@extend_schema_field({"type": "string", "format": "decimal", "pattern": rf"^{_QUANTITY.pattern}$"})
class QuantityField(serializers.DecimalField):
    """A quantity of 0 or more as a decimal string, exact to six places."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_digits=24, decimal_places=6, **{"min_value": 0, **options})

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str) or not _QUANTITY.fullmatch(data):
            self.fail("invalid")
        return super().to_internal_value(data)


class Row(StrictSerializer):
    id = serializers.UUIDField(read_only=True)
    created_at = serializers.DateTimeField(read_only=True)


class Product(Row):
    code = CodeField()
    name = TextField(max_length=200)
    description = TextField(required=False, allow_blank=True, max_length=2000)


class Described(StrictSerializer):
    """What may be changed of a product or plan."""

    name = TextField(max_length=200, required=False)
    description = TextField(required=False, allow_blank=True, max_length=2000)


class Plan(Row):
    product = IdField(source="product_id")
    code = CodeField()
    name = TextField(max_length=200)
    description = TextField(required=False, allow_blank=True, max_length=2000)


class Entitlement(StrictSerializer):
    key = CodeField()
    kind = serializers.ChoiceField(choices=EntitlementKind.choices)
    value = TextField(required=False, allow_blank=True, max_length=200)
    meter = CodeField(required=False, allow_blank=True)
    amount = QuantityField(required=False, allow_null=True)
    overage = serializers.ChoiceField(choices=Overage.choices, required=False)


class Terms(StrictSerializer):
    """The terms of a revision, as a draft takes them: what is left out stays as it was."""

    scheme = serializers.ChoiceField(choices=Scheme.choices, required=False)
    trial = FlagField(required=False)
    seat_kind = serializers.ChoiceField(choices=SeatKind.choices, required=False)
    seat_limit = LimitField(required=False)
    seat_required = FlagField(required=False)
    seat_churn_limit = LimitField(required=False)
    activation_limit = LimitField(required=False)
    activation_required = FlagField(required=False)
    activation_churn_limit = LimitField(required=False)
    fingerprint_scope = serializers.ChoiceField(choices=FingerprintScope.choices, required=False)
    churn_window_seconds = SecondsField(source="churn_window", required=False, allow_null=True)
    activation_dead_after_seconds = SecondsField(source="activation_dead_after", required=False, allow_null=True)
    validity_basis = serializers.ChoiceField(choices=ValidityBasis.choices, required=False)
    duration_seconds = SecondsField(source="duration", required=False, allow_null=True)
    fixed_expires_at = InstantField(required=False, allow_null=True)
    renewal_basis = serializers.ChoiceField(choices=RenewalBasis.choices, required=False)
    grace_period_seconds = SecondsField(source="grace_period", required=False, allow_null=True, min_value=0)
    maintenance_seconds = SecondsField(source="maintenance", required=False, allow_null=True)
    require_signed_clients = FlagField(required=False)
    outage_policy = serializers.ChoiceField(choices=OutagePolicy.choices, required=False)
    outage_tolerance_seconds = SecondsField(source="outage_tolerance", required=False, min_value=0)
    lease_duration_seconds = SecondsField(source="lease_duration", required=False)
    offline_period_seconds = SecondsField(source="offline_period", required=False, min_value=0)
    entitlements = Entitlement(many=True, required=False, max_length=100)  # type: ignore[call-arg]  # taken by many


class NewPlanRevision(Terms):
    plan = IdField()


class PlanRevision(Terms, Row):
    plan = serializers.UUIDField(source="plan_id", read_only=True)
    number = serializers.IntegerField(read_only=True)
    state = serializers.CharField(read_only=True)
    published_at = serializers.DateTimeField(read_only=True, allow_null=True)
    retired_at = serializers.DateTimeField(read_only=True, allow_null=True)


class Difference(StrictSerializer):
    term = serializers.CharField()
    before = serializers.CharField()
    after = serializers.CharField()


class Customer(Row):
    code = CodeField()
    name = TextField(max_length=200)
    email = serializers.EmailField(required=False, allow_blank=True, max_length=254)


class ChangedCustomer(StrictSerializer):
    name = TextField(max_length=200, required=False)
    email = serializers.EmailField(required=False, allow_blank=True, max_length=254)


class Member(Row):
    customer = IdField(source="customer_id")
    email = serializers.EmailField(source="user.email", max_length=254)
    role = serializers.ChoiceField(choices=MemberRole.choices)


class ChangedMember(StrictSerializer):
    role = serializers.ChoiceField(choices=MemberRole.choices)


class LicenseRow(Row):
    """A license. `status` is worked out from its dates and holds at the instant of the answer."""

    customer = serializers.UUIDField(source="customer_id", read_only=True)
    product = serializers.UUIDField(source="product_id", read_only=True)
    plan = serializers.UUIDField(source="plan_revision.plan_id", read_only=True)
    plan_revision = serializers.UUIDField(source="plan_revision_id", read_only=True)
    scheme = serializers.ChoiceField(choices=Scheme.choices, read_only=True)
    status = serializers.SerializerMethodField()
    starts_at = serializers.DateTimeField(read_only=True)
    expires_at = serializers.DateTimeField(read_only=True, allow_null=True)
    grace_until = serializers.DateTimeField(read_only=True, allow_null=True)
    maintenance_until = serializers.DateTimeField(read_only=True, allow_null=True)
    seat_limit = serializers.IntegerField(read_only=True, allow_null=True)
    seats_used = serializers.IntegerField(read_only=True)
    activation_limit = serializers.IntegerField(read_only=True, allow_null=True)
    activations_used = serializers.IntegerField(read_only=True)
    key_last5 = serializers.SerializerMethodField()

    @extend_schema_field(serializers.ChoiceField(choices=LicenseStatus.choices))
    def get_status(self, row: License) -> str:
        return str(lifecycle.status_of(row, self.context["at"]))

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_key_last5(self, row: License) -> str | None:
        return next((key.last5 for key in row.keys.all() if key.retired_at is None), None)


class IssuedLicense(LicenseRow):
    """A license just issued or given a new key: the only answers that hold a key."""

    key = serializers.CharField(read_only=True)


class NewLicense(StrictSerializer):
    """Who gets what. Give `plan` for its published revision, or `plan_revision`."""

    customer = IdField()
    plan = IdField(required=False)
    plan_revision = IdField(required=False)
    starts_at = InstantField(required=False)
    expires_at = InstantField(required=False)
    seat_limit = LimitField(required=False)
    activation_limit = LimitField(required=False)
    reason = TextField(required=False, allow_blank=True, max_length=1000)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("plan" in attrs) == ("plan_revision" in attrs):
            raise serializers.ValidationError({"plan": "Give either plan or plan_revision."})
        return attrs


class Reason(StrictSerializer):
    reason = TextField(max_length=1000)


class OptionalReason(StrictSerializer):
    reason = TextField(required=False, allow_blank=True, max_length=1000)


class HoldReasonBody(StrictSerializer):
    reason = serializers.ChoiceField(choices=HoldReason.choices)
    note = TextField(required=False, allow_blank=True, max_length=1000)


class Renewal(OptionalReason):
    duration_seconds = SecondsField(required=False)


class PlanChange(OptionalReason):
    plan = IdField(required=False)
    plan_revision = IdField(required=False)

    validate = NewLicense.validate


class LimitChange(OptionalReason):
    seat_limit = LimitField(required=False)
    activation_limit = LimitField(required=False)


class Transfer(Reason):
    customer = IdField()


class Seat(Row):
    license = IdField(source="license_id")
    holder = serializers.EmailField(max_length=254)
    state = serializers.CharField(read_only=True)
    assigned_at = serializers.DateTimeField(read_only=True, allow_null=True)
    released_at = serializers.DateTimeField(read_only=True, allow_null=True)


class Heir(StrictSerializer):
    holder = serializers.EmailField(max_length=254)


class Activation(Row):
    license = serializers.UUIDField(source="license_id", read_only=True)
    fingerprint = serializers.CharField(read_only=True)
    name = serializers.CharField(read_only=True)
    platform = serializers.CharField(read_only=True)
    seat = serializers.UUIDField(source="seat_id", read_only=True, allow_null=True)
    activated_at = serializers.DateTimeField(read_only=True)
    last_seen_at = serializers.DateTimeField(read_only=True)
    deactivated_at = serializers.DateTimeField(read_only=True, allow_null=True)
    key_thumbprint = serializers.CharField(read_only=True, help_text="RFC 7638, of the machine's own key; empty: none")


class PublicKey(StrictSerializer):
    """An Ed25519 public key as a JSON Web Key (RFC 8037)."""

    kty = serializers.ChoiceField(choices=["OKP"])
    crv = serializers.ChoiceField(choices=["Ed25519"])
    x = PatternField(r"[A-Za-z0-9_-]{43}")
    kid = TextField(required=False, max_length=128)
    use = serializers.ChoiceField(choices=["sig"], required=False)
    alg = serializers.ChoiceField(choices=["EdDSA", "Ed25519"], required=False)


class MachineReport(StrictSerializer):
    """What a machine says of itself: nothing, or that it found its clock turned back since the last answer."""

    clock_turned_back = FlagField(required=False)


class NewActivation(StrictSerializer):
    """The machine to activate. `license` is for a server; a license key's own license is taken by itself."""

    license = IdField(required=False)
    fingerprint = FingerprintField()
    name = TextField(required=False, allow_blank=True, max_length=200)
    platform = TextField(required=False, allow_blank=True, max_length=64)
    seat_holder = serializers.EmailField(required=False, max_length=254)
    public_key = PublicKey(required=False)


class Credential(Row):
    name = TextField(max_length=200)
    customer = IdField(source="customer_id", required=False, allow_null=True)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=list(credentials.SCOPES)), min_length=1, max_length=50
    )
    allowed_addresses = serializers.ListField(child=TextField(max_length=64), required=False, max_length=100)
    expires_at = InstantField(required=False)
    revoked_at = serializers.DateTimeField(read_only=True, allow_null=True)
    last4 = serializers.CharField(read_only=True)


class NewCredential(Credential):
    """A credential just made: the only answer that holds its secret."""

    secret = serializers.CharField(read_only=True)


class Anomaly(Row):
    rule = serializers.CharField()
    severity = serializers.CharField()
    object_kind = serializers.CharField()
    object_id = serializers.CharField()
    license = serializers.UUIDField(source="license_id", allow_null=True)
    state = serializers.CharField()
    count = serializers.IntegerField()
    first_at = serializers.DateTimeField()
    last_at = serializers.DateTimeField()
    evidence = serializers.DictField()
    resolution = serializers.CharField()
    resolved_at = serializers.DateTimeField(allow_null=True)
    snoozed_until = serializers.DateTimeField(allow_null=True)
    alerted_at = serializers.DateTimeField(allow_null=True)
    rule_version = serializers.IntegerField(help_text="Of the rule as the code has it.")
    revision = serializers.IntegerField(help_text="Of the rule's thresholds; 0 are its defaults.")
    thresholds = serializers.DictField(child=serializers.FloatField(), help_text="By which it was judged first.")


class AuditEntry(Row):
    at = serializers.DateTimeField()
    action = serializers.CharField()
    actor_kind = serializers.CharField()
    actor_id = serializers.CharField()
    object_kind = serializers.CharField()
    object_id = serializers.CharField()
    license = serializers.UUIDField(source="license_id", allow_null=True)
    customer = serializers.UUIDField(source="customer_id", allow_null=True)
    before = serializers.DictField()
    after = serializers.DictField()
    reason = serializers.CharField()
    request_id = serializers.CharField()


# --- documentation of the hot calls, whose bodies msgspec reads (a test holds both together) ---------


class ValidateRequest(StrictSerializer):
    license = serializers.UUIDField(required=False, allow_null=True)
    license_key = serializers.CharField(required=False, allow_null=True, max_length=200)
    fingerprint = serializers.RegexField(r"^[A-Za-z0-9._:+/=-]{16,128}$", required=False, allow_null=True)
    product = serializers.RegexField(r"^[A-Za-z0-9_.+:~-]{1,64}$", required=False, allow_null=True)
    version = serializers.RegexField(r"^[A-Za-z0-9_.+:~-]{1,64}$", required=False, allow_null=True)
    entitlements = serializers.ListField(
        child=serializers.RegexField(r"^[A-Za-z0-9_-]{1,64}$"),
        required=False,
        allow_null=True,
        max_length=100,
    )
    seat_holder = serializers.EmailField(required=False, allow_null=True)


class ShownSeats(serializers.Serializer[Any]):
    limit = serializers.IntegerField(allow_null=True)
    used = serializers.IntegerField()


class ShownLicense(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    plan = serializers.CharField()
    scheme = serializers.ChoiceField(choices=Scheme.choices)
    status = serializers.ChoiceField(choices=LicenseStatus.choices)
    expires_at = serializers.DateTimeField(allow_null=True)
    grace_until = serializers.DateTimeField(allow_null=True)
    seats = ShownSeats()
    entitlements = serializers.DictField()


class Validated(serializers.Serializer[Any]):
    valid = serializers.BooleanField()
    code = serializers.ChoiceField(choices=VerdictCode.choices)
    detail = serializers.CharField()
    license = ShownLicense(allow_null=True)
    checked_at = serializers.DateTimeField()
    fresh_until = serializers.DateTimeField()
    degraded = serializers.BooleanField()
    token = serializers.CharField(help_text="Compact JWS, alg EdDSA, typ license+jwt")


class Entitlements(serializers.Serializer[Any]):
    license = serializers.UUIDField()
    entitlements = serializers.DictField()
