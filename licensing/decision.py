"""The decision: may this license be used here and now?

Pure. `decide` looks at a frozen snapshot, the scope somebody asks for, and an instant; it reads no database, no
clock and no settings. The codes come in the order of `states.VerdictCode`: the first that applies is the
answer. Source: CONTRACT "Verdict codes".
"""

from datetime import datetime

import msgspec

from licensing.states import LicenseStatus, VerdictCode, status_at, timed_status_at


class Right(msgspec.Struct, frozen=True, gc=False):
    """One entitlement: `value` for a fixed one; `meter`, `amount` and `overage` for an allowance."""

    kind: str
    value: str = ""
    meter: str = ""
    amount: str | None = None
    overage: str = ""

    def shown(self) -> object:
        """Return it as answers show it: true, the value, or the allowance."""
        if self.kind == "flag":
            return True
        if self.kind == "value":
            return self.value
        return {"meter": self.meter, "allowance": self.amount, "overage": self.overage}


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The frozen picture of a license that a decision is made from.

    `lenient_seconds` is how old it may be to answer from while the database is away; None: not at all. `exhausted`
    names the meters whose hard allowance is used up, each until its window ends.
    """

    license_id: str
    customer_id: str
    product: str
    plan: str
    plan_revision: int
    scheme: str
    revision: int
    issued: bool
    revoked: bool
    holds: tuple[str, ...]
    starts_at: datetime
    expires_at: datetime | None
    grace_until: datetime | None
    maintenance_until: datetime | None
    seat_required: bool
    seat_limit: int | None
    seats_used: int
    activation_required: bool
    activation_limit: int | None
    activations_used: int
    entitlements: dict[str, Right]
    floating: bool = False
    require_signed_clients: bool = False
    lenient_seconds: float | None = None
    updated_at: datetime | None = None
    exhausted: dict[str, datetime] = {}

    def status(self, at: datetime) -> LicenseStatus:
        return status_at(
            at=at,
            issued=self.issued,
            revoked=self.revoked,
            held=bool(self.holds),
            expires_at=self.expires_at,
            grace_until=self.grace_until,
        )

    def usable_until(self) -> datetime | None:
        """Return when time alone ends its use; None for never."""
        return self.grace_until or self.expires_at


class Scope(msgspec.Struct, frozen=True, gc=False):
    """What somebody asks for, with what is known about it: is that machine activated, until when does (or did) its
    last lease run, what seat has that holder, when did that version come out (None: unknown, which counts as just
    now)."""

    product: str | None = None
    version: str | None = None
    version_released_at: datetime | None = None
    fingerprint: str | None = None
    fingerprint_activated: bool = False
    leased_until: datetime | None = None
    seat_holder: str | None = None
    seat_state: str | None = None
    entitlements: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer, with the rules looked at on the way to it."""

    code: VerdictCode
    detail: str
    looked_at: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return self.code in (VerdictCode.VALID, VerdictCode.IN_GRACE)


_ORDER = tuple(code for code in VerdictCode if code != VerdictCode.NOT_FOUND)
# What was looked at on the way to each code: the rules are always asked in the same order.
_LOOKED_AT = {VerdictCode.NOT_FOUND: (VerdictCode.NOT_FOUND.value,)} | {
    code: tuple(before.value for before in _ORDER[: place + 1]) for place, code in enumerate(_ORDER)
}


def decide(snapshot: Snapshot | None, scope: Scope, at: datetime) -> Verdict:
    """Return the verdict at the instant `at`. No snapshot is `not_found`. Never raises for data it is given."""
    code, detail = _first_that_applies(snapshot, scope, at)
    return Verdict(code, detail, _LOOKED_AT[code])


def _first_that_applies(snapshot: Snapshot | None, scope: Scope, at: datetime) -> tuple[VerdictCode, str]:
    if snapshot is None or not snapshot.issued:
        return VerdictCode.NOT_FOUND, "There is no such license."
    if snapshot.revoked:
        return VerdictCode.REVOKED, "The license is revoked."
    if snapshot.holds:
        return VerdictCode.HELD, f"The license is held: {', '.join(snapshot.holds)}."
    if at < snapshot.starts_at:
        return VerdictCode.NOT_STARTED, f"The license starts at {_said(snapshot.starts_at)}."
    timed = timed_status_at(at=at, expires_at=snapshot.expires_at, grace_until=snapshot.grace_until)
    if timed == LicenseStatus.EXPIRED:
        return VerdictCode.EXPIRED, f"The license expired at {_said(snapshot.usable_until())}."
    if scope.product is not None and scope.product != snapshot.product:
        return VerdictCode.WRONG_PRODUCT, "The license is for another product."
    if uncovered := _uncovered(snapshot, scope, at):
        return VerdictCode.VERSION_NOT_COVERED, uncovered
    if not scope.fingerprint_activated:
        if snapshot.activation_required and (scope.fingerprint is None or snapshot.activations_used == 0):
            detail = "This license needs an activated machine; say its fingerprint, and activate it first."
            return VerdictCode.ACTIVATION_REQUIRED, detail
        if scope.fingerprint is not None and (snapshot.activation_required or snapshot.activations_used > 0):
            return VerdictCode.FINGERPRINT_MISMATCH, "This machine is not activated on the license."
    if seatless := _seatless(snapshot, scope):
        return VerdictCode.SEAT_REQUIRED, seatless
    if snapshot.floating and scope.leased_until is not None and scope.leased_until <= at:
        detail = f"The lease of this machine lapsed at {_said(scope.leased_until)}. Check out a new one."
        return VerdictCode.LEASE_LAPSED, detail
    if missing := [key for key in scope.entitlements if key not in snapshot.entitlements]:
        return VerdictCode.ENTITLEMENT_MISSING, f"The license does not include: {', '.join(missing)}."
    if used_up := _used_up(snapshot, scope, at):
        return VerdictCode.ALLOWANCE_EXHAUSTED, f"Nothing is left of: {', '.join(used_up)}."
    if timed == LicenseStatus.IN_GRACE:
        detail = f"The license expired; use is allowed until {_said(snapshot.grace_until)}."
        return VerdictCode.IN_GRACE, detail
    return VerdictCode.VALID, "The license is valid."


def _uncovered(snapshot: Snapshot, scope: Scope, at: datetime) -> str | None:
    if scope.version is None or snapshot.maintenance_until is None:
        return None
    if (scope.version_released_at or at) < snapshot.maintenance_until:
        return None
    return f"The license covers versions released before {_said(snapshot.maintenance_until)}."


def _used_up(snapshot: Snapshot, scope: Scope, at: datetime) -> list[str]:
    """Return the entitlements asked for of whose hard allowance nothing is left."""
    if not snapshot.exhausted:
        return []
    rights = [(key, snapshot.entitlements[key]) for key in scope.entitlements]
    return [
        key
        for key, right in rights
        if right.kind == "allowance"
        and right.overage == "refuse"
        and right.meter in snapshot.exhausted
        and at < snapshot.exhausted[right.meter]
    ]


def _seatless(snapshot: Snapshot, scope: Scope) -> str | None:
    if snapshot.floating:
        needs = snapshot.seat_required and scope.leased_until is None
        return "This license is for machines with a lease; check one out first." if needs else None
    if scope.seat_state == "assigned":
        return None
    if scope.seat_holder is None:
        return "This license is for named seats; say who uses it." if snapshot.seat_required else None
    if scope.seat_state == "blocked":
        return "This seat is blocked."
    return "This person has no seat on the license."


def _said(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC" if instant else "an unknown time"
