"""Activations: bind a machine to a license, and let it go.

A fingerprint is the client's digest of its machine: compared, never interpreted. Capacity is taken as for
seats: one conditional update with a CHECK behind it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Greatest

from licensing import (
    anomalies,
    audit,
    fingerprints,
    keyformat,
    leases,
    observations,
    proofs,
    seats,
    signatures,
    snapshots,
    stamps,
)
from licensing.audit import Actor
from licensing.errors import Missing, Refused
from licensing.models import Activation, Lease, License, LicenseFile, PlanRevision, Seat
from licensing.seats import LicenseNotUsable
from licensing.states import (
    FingerprintScope,
    LicenseStatus,
    SeatKind,
    SeatState,
    Severity,
    ValidityBasis,
    timed_status_at,
)

# When a machine was last seen is written within seconds; this is for a database that was away.
WRITTEN_WITHIN = timedelta(hours=1)


class ActivationLimitReached(Refused):
    """Every machine this license allows is activated."""

    code = "activation_limit_reached"


class ActivationChurnExceeded(Refused):
    """Too many machines of this license were deactivated lately."""

    code = "activation_churn_exceeded"


class FingerprintInUse(Refused):
    """This machine is activated on another license of the product."""

    code = "fingerprint_in_use"


class ActivationKeyConflict(Refused):
    """This machine is activated with another key. Let that activation go first, in the portal."""

    code = "activation_key_conflict"


class SeatNeeded(Refused):
    """This license activates machines only for somebody who holds a seat."""

    code = "seat_required"


@dataclass(frozen=True, slots=True)
class Activated:
    """An activation, and whether this call made it."""

    activation: Activation
    created: bool


def activate(
    *,
    license: License,
    fingerprint: str,
    by: Actor,
    at: datetime,
    name: str = "",
    platform: str = "",
    seat_holder: str | None = None,
    public_key: bytes | None = None,
    counter: int = 0,
) -> Activated:
    """Bind the machine to the license; the same machine again gets the activation it has.

    `public_key` is the machine's own (Ed25519, 32 bytes), whose possession the caller has seen proved by a request with
    this `counter`. An activation takes the first key it is given and keeps it.

    Raises:
        ActivationKeyConflict: this machine has another key, or this key is another machine's.
        ActivationLimitReached: all machines are taken.
        FingerprintInUse: the plan revision allows a machine once per product, and it is active elsewhere.
        SeatNeeded: the plan revision requires a seat and `seat_holder` has none.
        LicenseNotUsable: revoked, held, expired, not started or a draft.
        Invalid: the fingerprint is malformed.
    """
    fingerprints.checked(fingerprint)
    holder = seats.normalized(seat_holder) if seat_holder else None
    name = keyformat.redact(name)
    observations.used(str(license.pk), fingerprint, None, at)
    observations.note("attempt", str(license.pk), fingerprint, at)
    for _ in range(3):
        known = _live(license, fingerprint)
        if known is not None:
            row = License.objects.select_related("plan_revision").get(pk=license.pk)
            _usable(row, at)
            _seat_of(row, holder)
            if public_key is not None:
                known = _register(known, public_key, counter, by=by, at=at)
            return _again(known, name=name, platform=platform, at=at)
        try:
            made = _grant(
                license,
                fingerprint,
                by=by,
                at=at,
                name=name,
                platform=platform,
                holder=holder,
                public_key=public_key,
                counter=counter,
            )
        except IntegrityError:
            if public_key is not None and _key_elsewhere(license, fingerprint, public_key):
                raise ActivationKeyConflict("This key is another machine's of this license.") from None
            if _live(license, fingerprint) is None and _elsewhere(license, fingerprint):
                raise FingerprintInUse() from None
            continue  # the same machine was activated meanwhile, or let go
        except ActivationLimitReached:
            if _live(license, fingerprint) is None:
                raise
            continue  # the last place was given to this very machine while this call waited
        return Activated(made, created=True)
    raise ActivationLimitReached("This activation is changing right now. Try again.")


def deactivate(*, activation: Activation, by: Actor, at: datetime, reason: str = "") -> Activation:
    """Let the machine go; its place is free at once, and so is the floating seat it has out, unless it borrowed it.
    Doing it twice changes nothing.

    Raises:
        ActivationChurnExceeded: the plan revision allows no further deactivation within its window.
    """
    with transaction.atomic():
        license = seats.lock(activation.license_id)
        row = Activation.objects.select_for_update(no_key=True).get(pk=activation.pk)
        if row.deactivated_at is not None:
            return row
        _allow_churn(license, at)
        _close(row, by=by, at=at, reason=reason)
        _give_back(license.pk, 1, at)
        leases.let_go(license=license, fingerprint=row.fingerprint, by=by, at=at, reason=reason)
    return row


def deactivate_all(*, license: License, by: Actor, at: datetime, reason: str) -> int:
    """Let every machine of a license the caller has locked go; churn limits do not apply. Return how many."""
    rows = list(
        Activation.objects.select_for_update(no_key=True).filter(license=license, deactivated_at=None).order_by("pk")
    )
    for row in rows:
        _close(row, by=by, at=at, reason=reason)
    if rows:
        _give_back(license.pk, len(rows), at)
    return len(rows)


def dead(*, at: datetime, leaving_out: set[UUID], limit: int) -> list[UUID]:
    """Return activations of machines that were not seen for longer than their plan revision allows."""
    rows = _dead(at).exclude(pk__in=leaving_out).order_by("last_seen_at", "pk")
    return list(rows.values_list("pk", flat=True)[:limit])


def let_dead_go(*, activation_id: UUID, at: datetime) -> bool:
    """Let a machine go that was not seen for longer than its plan revision allows; return whether it was. Churn limits
    do not apply. May run twice and at the same time, and while the machine comes back."""
    with transaction.atomic():
        license = seats.lock(Activation.objects.get(pk=activation_id).license_id)
        row = Activation.objects.select_for_update(no_key=True).get(pk=activation_id)
        if not _dead(at).filter(pk=row.pk).exists():
            return False
        by = audit.system("dead-installations")
        _close(row, by=by, at=at, reason=f"Not seen since {row.last_seen_at:%Y-%m-%d %H:%M} UTC")
        _give_back(license.pk, 1, at)
        leases.let_go(license=license, fingerprint=row.fingerprint, by=by, at=at)
    return True


def _dead(at: datetime) -> QuerySet[Activation]:
    """Return what is dead by `at`: not a machine that may work offline, with a lease or license file that still runs.

    When it was last seen may wait in some process to be written: an hour is left for that.
    """
    terms = PlanRevision.objects.exclude(activation_dead_after=None).order_by()
    spans = terms.values_list("activation_dead_after", flat=True).distinct()
    unseen = Q()
    for span in spans:
        assert span is not None
        limit = at - span - WRITTEN_WITHIN
        unseen |= Q(license__plan_revision__activation_dead_after=span, last_seen_at__lte=limit)
    if not unseen:
        return Activation.objects.none()
    out = Lease.objects.filter(license=OuterRef("license"), fingerprint=OuterRef("fingerprint"), ended_at=None)
    offline = LicenseFile.objects.filter(activation=OuterRef("pk"), expires_at__gt=at)
    live = Activation.objects.filter(unseen, deactivated_at=None)
    return live.exclude(Exists(out.filter(expires_at__gt=at))).exclude(Exists(offline))


def rescope(*, license: License) -> None:
    """Make the live machines of a license unique in what its plan revision says now, in the caller's transaction.

    Raises:
        FingerprintInUse: one of them is active on another license of the product.
    """
    scope = _scope(license)
    live = (
        Activation.objects.select_for_update(no_key=True)
        .filter(license=license, deactivated_at=None)
        .exclude(scope=scope)
    )
    for row in live.order_by("pk"):
        if scope == license.product_id and _elsewhere(license, row.fingerprint):
            raise FingerprintInUse(
                "A machine of this license is active on another one of the product. Let it go first."
            )
        row.scope = scope
        row.save()


def heartbeat(*, activation: Activation, at: datetime, clock_turned_back: bool = False) -> Activation:
    """Note that the machine was seen, and what it says of its own clock: it is the one who would notice.

    Raises `Missing` when it is deactivated, `LicenseNotUsable`.
    """
    if activation.deactivated_at is not None:
        raise Missing("This activation has ended.")
    if clock_turned_back:
        anomalies.flag(
            rule="clock_turned_back",
            severity=Severity.MEDIUM,
            object_kind="activation",
            object_id=str(activation.pk),
            license_id=activation.license_id,
            at=at,
            evidence={"fingerprint": activation.fingerprint},
        )
    _usable(activation.license, at)
    stamps.seen(activation.pk, at)
    activation.last_seen_at = at
    return activation


def _live(license: License, fingerprint: str) -> Activation | None:
    return Activation.objects.filter(license=license, fingerprint=fingerprint, deactivated_at=None).first()


def _elsewhere(license: License, fingerprint: str) -> bool:
    live = Activation.objects.filter(
        license__product_id=license.product_id, fingerprint=fingerprint, deactivated_at=None
    )
    return live.exclude(license_id=license.pk).exists()


def _key_elsewhere(license: License, fingerprint: str, public_key: bytes) -> bool:
    live = Activation.objects.filter(
        license=license, key_thumbprint=signatures.thumbprint(public_key), deactivated_at=None
    )
    return live.exclude(fingerprint=fingerprint).exists()


def _register(known: Activation, public_key: bytes, counter: int, *, by: Actor, at: datetime) -> Activation:
    """Give an activation its key, if it has none yet."""
    thumbprint = signatures.thumbprint(public_key)
    with transaction.atomic():
        license = seats.lock(known.license_id)
        row = Activation.objects.select_for_update(no_key=True).get(pk=known.pk)
        if row.deactivated_at is not None:
            raise Missing("This activation has ended.")
        if row.key_thumbprint == thumbprint:
            return row
        if row.key_thumbprint:
            raise ActivationKeyConflict()
        if _key_elsewhere(license, row.fingerprint, public_key):
            raise ActivationKeyConflict("This key is another machine's of this license.")
        row.public_key, row.key_thumbprint, row.counter_floor = public_key, thumbprint, counter
        row.save()
        seats.touch(license.pk, at)
        audit.record(action="activation.key_registered", by=by, on=row, at=at, after={"key_thumbprint": thumbprint})
    return row


def _again(row: Activation, *, name: str, platform: str, at: datetime) -> Activated:
    row.name, row.platform, row.last_seen_at = name or row.name, platform or row.platform, at
    Activation.objects.filter(pk=row.pk).update(name=row.name, platform=row.platform, last_seen_at=row.last_seen_at)
    return Activated(row, created=False)


def _grant(
    license: License,
    fingerprint: str,
    *,
    by: Actor,
    at: datetime,
    name: str,
    platform: str,
    holder: str | None,
    public_key: bytes | None,
    counter: int,
) -> Activation:
    with transaction.atomic():
        taken = (
            License.objects.filter(pk=license.pk)
            .filter(Q(activations_ceiling=None) | Q(activations_used__lt=F("activations_ceiling")))
            .update(activations_used=F("activations_used") + 1, revision=F("revision") + 1, updated_at=at)
        )
        row = License.objects.select_related("plan_revision").filter(pk=license.pk).first()
        if row is None:
            raise Missing("There is no such license.")
        if taken:
            snapshots.changed(row.pk, row.revision)
        _usable(row, at)
        seat = _seat_of(row, holder)
        if not taken:
            raise ActivationLimitReached(
                f"{row.activations_used} machines are activated, {row.activation_limit} are allowed. "
                f"Deactivate one first."
            )
        scope = _scope(row)
        if scope == row.product_id and _elsewhere(row, fingerprint):
            raise FingerprintInUse()
        activation = Activation.objects.create(
            license=row,
            created_at=at,
            seat=seat,
            scope=scope,
            fingerprint=fingerprint,
            name=name,
            platform=platform,
            activated_at=at,
            last_seen_at=at,
            public_key=public_key,
            key_thumbprint=signatures.thumbprint(public_key) if public_key else "",
            counter_floor=counter,
        )
        audit.record(
            action="activation.created",
            by=by,
            on=activation,
            at=at,
            after={"fingerprint": fingerprint, "platform": platform, "key_thumbprint": activation.key_thumbprint},
        )
        if row.first_activated_at is None:
            _start_clock(row, by=by, at=at)
    return activation


def _scope(license: License) -> UUID:
    once_per_product = license.plan_revision.fingerprint_scope == FingerprintScope.PRODUCT
    return license.product_id if once_per_product else license.pk


def _seat_of(license: License, holder: str | None) -> Seat | None:
    seat = None
    if holder is not None:
        seat = Seat.objects.filter(license=license, holder=holder, released_at=None).first()
    terms = license.plan_revision
    if terms.seat_required and terms.seat_kind == SeatKind.NAMED and (seat is None or seat.state != SeatState.ASSIGNED):
        raise SeatNeeded()
    return seat


def _start_clock(license: License, *, by: Actor, at: datetime) -> None:
    """Note the first activation, from which some revisions count the validity."""
    proofs.check(license)
    license.first_activated_at = at
    terms = license.plan_revision
    span = terms.duration if terms.validity_basis == ValidityBasis.FROM_FIRST_ACTIVATION else None
    if span is not None and license.expires_at is None:  # an expiry the license was given, or kept, stays
        license.expires_at = at + span
        license.grace_until = license.expires_at + terms.grace_period if terms.grace_period else None
        license.due_at = license.expires_at
        audit.record(
            action="license.validity_started",
            by=by,
            on=license,
            at=at,
            after={"expires_at": license.expires_at},
        )
        proofs.seal(license)
    license.save()


def _close(row: Activation, *, by: Actor, at: datetime, reason: str) -> None:
    row.deactivated_at = at
    row.save()
    audit.record(
        action="activation.ended",
        by=by,
        on=row,
        at=at,
        before={"fingerprint": row.fingerprint},
        after={"deactivated_at": at},
        reason=reason,
    )


def _give_back(license_id: UUID, count: int, at: datetime) -> None:
    License.objects.filter(pk=license_id).update(
        activations_used=F("activations_used") - count,
        activations_ceiling=Case(
            When(activation_limit=None, then=Value(None)),
            default=Greatest(F("activation_limit"), F("activations_used") - count),
        ),
        revision=F("revision") + 1,
        updated_at=at,
    )
    snapshots.changed(license_id)


def _usable(license: License, at: datetime) -> None:
    status = timed_status_at(at=at, expires_at=license.expires_at, grace_until=license.grace_until)
    why = None
    if license.issued_at is None:
        why = "This license is a draft."
    elif license.revoked_at is not None:
        why = "This license is revoked."
    elif license.holds.filter(lifted_at=None).exists():
        why = "This license is held."
    elif at < license.starts_at:
        why = "This license has not started yet."
    elif status == LicenseStatus.EXPIRED:
        why = "This license has expired. Renew it first."
    if why:
        raise LicenseNotUsable(why)


def _allow_churn(license: License, at: datetime) -> None:
    terms = license.plan_revision
    if terms.activation_churn_limit is None or terms.churn_window is None:
        return
    # What a transfer let go was not the new customer's doing.
    since = max(at - terms.churn_window, license.transferred_at or license.created_at - terms.churn_window)
    lately = Activation.objects.filter(license=license, deactivated_at__gt=since).count()
    if lately >= terms.activation_churn_limit:
        raise ActivationChurnExceeded(
            f"{lately} machines were deactivated within {terms.churn_window.days} days; "
            f"the plan allows {terms.activation_churn_limit}."
        )
