"""Leases: floating capacity, taken for a time by whoever comes, and back by itself.

A lease counts from its check-out until it is ended: checked in, ended by a person, or reclaimed once it lapsed. Units
are counted as seats are, by one conditional update with a CHECK behind it, so never more are out than the license
has; and nobody is refused while a lapsed lease is still counted, for a full house reclaims those first.

A borrowed lease (`offline`) is used without the server until it expires: letting its machine go does not end it, only
somebody who ends this very lease. No renewal ever shortens a lease: somebody
may hold a statement of ours that says it lasts. Whether a program may run is `validation`'s to say. Source: ADR 0012.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction

from licensing import audit, fingerprints, seats, tokens
from licensing.audit import Actor
from licensing.errors import Invalid, Missing, Refused
from licensing.ids import uuid7_text
from licensing.models import Activation, Lease, License
from licensing.seats import LicenseNotUsable, NoSeatAvailable
from licensing.states import LicenseStatus, Scheme, SeatKind, status_at

TYPE = "lease+jwt"
SHORTEST = timedelta(seconds=1)
LONGEST_ONLINE = timedelta(hours=24)
BATCH = 200

_WHY_NOT = {
    LicenseStatus.DRAFT: "This license is a draft.",
    LicenseStatus.REVOKED: "This license is revoked.",
    LicenseStatus.HELD: "This license is held.",
    LicenseStatus.EXPIRED: "This license has expired. Renew it first.",
}


class SeatsNotFloating(Refused):
    """The seats of this license do not float: there is nothing to check out."""

    code = "seats_not_floating"


class OfflineNotAllowed(Refused):
    """The plan does not allow use without the server."""

    code = "offline_not_allowed"


class LeaseEnded(Refused):
    """This lease has ended; check out a new one."""

    code = "lease_ended"


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """A lease, and whether this call made it (else it was renewed)."""

    lease: Lease
    created: bool


def check_out(
    *,
    license: License,
    by: Actor,
    at: datetime,
    ttl: timedelta | None = None,
    offline: bool = False,
    fingerprint: str = "",
    activation: Activation | None = None,
) -> CheckedOut:
    """Take one unit of the license's floating seats for `ttl`; a machine that has a live lease gets it renewed.

    Without `ttl`: as long as the plan says, online its lease duration, offline its offline period. It never runs
    beyond the license's own end.

    Raises:
        NoSeatAvailable: all units are out; `retry_after_seconds` says when the next one is due back.
        SeatsNotFloating: seats of this license are named, or it has none.
        OfflineNotAllowed: the plan has no offline period.
        LicenseNotUsable: revoked, held, expired, not started or a draft.
        Missing: the machine's `activation` has ended.
        Invalid: the fingerprint is malformed, or `ttl` is not within 1 second to 24 hours (offline: the plan's period).
    """
    if fingerprint:
        fingerprints.checked(fingerprint)
    for _ in range(3):
        live = _live(license.pk, fingerprint)
        if live is not None:
            try:
                return CheckedOut(_renew(live, at, ttl, offline=offline, activation=activation), created=False)
            except LeaseEnded:
                continue  # it was ended since it was looked up
        try:
            return CheckedOut(_grant(license.pk, fingerprint, activation, by, at, ttl, offline), created=True)
        except IntegrityError:
            continue  # the same machine checked out meanwhile
        except NoSeatAvailable:
            if _live(license.pk, fingerprint) is None:
                raise
            # The last unit was given to this very machine while this call waited for the license.
    raise NoSeatAvailable("This lease is changing right now. Try again.", retry_after_seconds=1)


def renew(*, lease: Lease, at: datetime, ttl: timedelta | None = None) -> Lease:
    """Have the lease run on for `ttl` from now, a heartbeat: no entry is written, and the license's row is left alone.

    One that lapsed is renewed too, as long as it is still counted. Raises as `check_out` does, and `LeaseEnded`.
    """
    return _renew(lease, at, ttl, offline=lease.offline)


def check_in(*, lease: Lease, by: Actor, at: datetime) -> Lease:
    """Give the unit back; it is free at once. Doing it twice changes nothing."""
    return _end(lease, "lease.checked_in", by, at)


def end(*, lease: Lease, by: Actor, at: datetime, reason: str = "") -> Lease:
    """Take the unit back from a machine; it is free at once. A machine that borrowed it may still be using it."""
    return _end(lease, "lease.ended", by, at, reason)


def let_go(*, license: License, fingerprint: str, by: Actor, at: datetime, reason: str = "") -> int:
    """End the lease of a machine that is let go, of a license the caller has locked. A borrowed one stays out until it
    expires: its machine may be at work with it, and nothing reaches it. Return how many were ended."""
    live = Lease.objects.select_for_update(no_key=True).filter(license=license, fingerprint=fingerprint, ended_at=None)
    rows = [row for row in live if not row.offline or row.expires_at <= at]
    return _close(license, rows, "lease.ended", by, at, reason or "machine let go")


def end_all(*, license: License, by: Actor, at: datetime, reason: str) -> int:
    """End every lease of a license the caller has locked. Return how many."""
    rows = list(Lease.objects.select_for_update(no_key=True).filter(license=license, ended_at=None).order_by("pk"))
    return _close(license, rows, "lease.ended", by, at, reason)


def reclaim(*, license_id: UUID, at: datetime) -> int:
    """End the leases of a license that lapsed by `at`; return how many. May run twice and at the same time."""
    done = 0
    while True:
        with transaction.atomic():
            count = _reclaim(seats.lock(license_id), at)
        done += count
        if count < BATCH:
            return done


def due(*, at: datetime, leaving_out: set[UUID], limit: int) -> list[UUID]:
    """Return licenses that have lapsed leases, those with the oldest first."""
    lapsed = Lease.objects.filter(ended_at=None, expires_at__lte=at).exclude(license_id__in=leaving_out)
    return list(dict.fromkeys(lapsed.order_by("expires_at").values_list("license_id", flat=True)[:limit]))


def lag(*, at: datetime) -> timedelta:
    """Return how long ago the oldest lease lapsed that is still counted."""
    lapsed = Lease.objects.filter(ended_at=None, expires_at__lte=at).order_by("expires_at")
    oldest = lapsed.values_list("expires_at", flat=True).first()
    return at - oldest if oldest else timedelta()


def statement(lease: Lease, at: datetime) -> str:
    """Return the lease as a signed token (`typ` lease+jwt) that lasts as long as it does: what a machine shows itself
    while it is offline."""
    claims = {
        "iss": settings.PUBLIC_URL,
        "aud": lease.license.product.code,
        "sub": str(lease.license_id),
        "jti": uuid7_text(),
        "iat": int(at.timestamp()),
        "nbf": int(at.timestamp()),
        "exp": int(lease.expires_at.timestamp()),
        "ver": 1,
        "lease": str(lease.pk),
        "fingerprint": lease.fingerprint,
        "offline": lease.offline,
    }
    return tokens.sign(claims, typ=TYPE)


def usable(*, license: License, at: datetime) -> None:
    """Raise `LicenseNotUsable` unless the license can be used at the instant `at`, in grace too."""
    status = status_at(
        at=at,
        issued=license.issued_at is not None,
        revoked=license.revoked_at is not None,
        held=license.holds.filter(lifted_at=None).exists(),
        expires_at=license.expires_at,
        grace_until=license.grace_until,
    )
    if status in _WHY_NOT:
        raise LicenseNotUsable(_WHY_NOT[status])
    if at < license.starts_at:
        raise LicenseNotUsable("This license has not started yet.")


def floats(license: License) -> bool:
    """Say whether the license's capacity is taken by leases."""
    return license.plan_revision.seat_kind == SeatKind.FLOATING and license.scheme != Scheme.USAGE


def offline_period(license: License) -> timedelta:
    """Return how long the license may be used without the server. Raises `OfflineNotAllowed`."""
    period = license.plan_revision.offline_period
    if period <= timedelta():
        raise OfflineNotAllowed()
    return period


def _live(license_id: UUID, fingerprint: str) -> Lease | None:
    if not fingerprint:
        return None
    return Lease.objects.filter(license_id=license_id, fingerprint=fingerprint, ended_at=None).first()


def _grant(
    license_id: UUID,
    fingerprint: str,
    activation: Activation | None,
    by: Actor,
    at: datetime,
    ttl: timedelta | None,
    offline: bool,
) -> Lease:
    with transaction.atomic():
        row, taken = seats.take(license_id, at)
        expires_at = _until(row, at, ttl, offline=offline)
        if not taken:
            row = _make_room(license_id, at)
        _still_active(activation)
        lease = Lease.objects.create(
            license=row,
            created_at=at,
            activation=activation,
            fingerprint=fingerprint,
            offline=offline,
            checked_out_at=at,
            renewed_at=at,
            expires_at=expires_at,
        )
        audit.record(
            action="lease.checked_out",
            by=by,
            on=lease,
            at=at,
            after={"fingerprint": fingerprint, "offline": offline, "expires_at": expires_at},
        )
    return lease


def _make_room(license_id: UUID, at: datetime) -> License:
    """Take a unit of a full license by reclaiming what lapsed. Its lock is held meanwhile: what is free stays free."""
    locked = seats.lock(license_id)
    while True:
        row, taken = seats.take(license_id, at)
        if taken:
            return row
        if not _reclaim(locked, at):
            raise _full(row, at)


def _full(row: License, at: datetime) -> NoSeatAvailable:
    limit = row.seat_limit or 0
    words = f"All {limit} are out." if row.seats_used == limit else f"{row.seats_used} are out, {limit} are allowed."
    # Where the limit was lowered below what is out, more than one must come back first.
    needed = max(row.seats_used - limit, 0)
    leases = (
        Lease.objects.filter(license=row, ended_at=None).order_by("expires_at").values_list("expires_at", flat=True)
    )
    free_at = leases[needed : needed + 1].first() if limit else None
    if free_at is None:
        return NoSeatAvailable(words)
    return NoSeatAvailable(words, retry_after_seconds=max(math.ceil((free_at - at).total_seconds()), 1))


def _renew(
    lease: Lease, at: datetime, ttl: timedelta | None, *, offline: bool, activation: Activation | None = None
) -> Lease:
    license = License.objects.select_related("plan_revision").get(pk=lease.license_id)
    expires_at = _until(license, at, ttl, offline=offline)
    with transaction.atomic():
        row = Lease.objects.select_for_update(no_key=True).get(pk=lease.pk)
        if row.ended_at is not None:
            raise LeaseEnded()
        _still_active(activation)
        row.offline = offline or row.offline  # what was borrowed is out until the lease ends
        row.expires_at = max(row.expires_at, expires_at)
        row.renewed_at = max(row.renewed_at, at)
        row.activation = activation or row.activation
        row.save(update_fields=["offline", "expires_at", "renewed_at", "activation"])
    return row


def _still_active(activation: Activation | None) -> None:
    """Raise `Missing` if the machine was let go meanwhile. What letting go locks, license or lease, the caller has."""
    if activation is not None and not Activation.objects.filter(pk=activation.pk, deactivated_at=None).exists():
        raise Missing("This machine was let go. Activate it first.")


def _until(license: License, at: datetime, ttl: timedelta | None, *, offline: bool) -> datetime:
    """Return when a lease taken now lapses. Raises what speaks against one."""
    usable(license=license, at=at)
    if not floats(license):
        raise SeatsNotFloating()
    longest = offline_period(license) if offline else LONGEST_ONLINE
    if ttl is None:
        ttl = longest if offline else min(license.plan_revision.lease_duration, longest)
    elif not SHORTEST <= ttl <= longest:
        raise Invalid(
            f"A lease runs for 1 to {int(longest.total_seconds())} seconds{' offline' if offline else ''}.",
            pointer="/ttl_seconds",
        )
    ends = license.grace_until or license.expires_at
    return min(at + ttl, ends) if ends else at + ttl


def _reclaim(license: License, at: datetime) -> int:
    lapsed = Lease.objects.select_for_update(no_key=True).filter(license=license, ended_at=None, expires_at__lte=at)
    rows = list(lapsed.order_by("expires_at", "pk")[:BATCH])
    return _close(license, rows, "lease.reclaimed", audit.system("lease-reclaim"), at)


def _end(lease: Lease, action: str, by: Actor, at: datetime, reason: str = "") -> Lease:
    with transaction.atomic():
        license = seats.lock(lease.license_id)
        row = Lease.objects.select_for_update(no_key=True).get(pk=lease.pk)
        if row.ended_at is None:
            _close(license, [row], action, by, at, reason)
    return row


def _close(license: License, rows: list[Lease], action: str, by: Actor, at: datetime, reason: str = "") -> int:
    """End leases whose license and rows the caller has locked, and give their units back."""
    for row in rows:
        row.license, row.ended_at = license, at
        row.save(update_fields=["ended_at"])
        audit.record(
            action=action,
            by=by,
            on=row,
            at=at,
            before={"fingerprint": row.fingerprint, "offline": row.offline, "expires_at": row.expires_at},
            after={"ended_at": at},
            reason=reason,
        )
    if rows:
        seats.give_back(license.pk, len(rows), at)
    return len(rows)
