"""Named seats: assign, reserve, block, release, transfer.

Exact under any concurrency, on both databases: capacity is taken by one conditional update of the license's
counter in the transaction that inserts the seat, and `CHECK (seats_used <= seats_ceiling)` is the last word
(measured: R1-R3). When a limit falls below what is in use nobody is thrown out: the ceiling stays at what is in
use, falls with each release, and nothing is granted until use is below the limit.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Greatest

from licensing import audit, snapshots
from licensing.audit import Actor
from licensing.errors import Invalid, Missing, Refused
from licensing.models import License, Seat
from licensing.states import LicenseStatus, Scheme, SeatKind, SeatState, timed_status_at


class NoSeatAvailable(Refused):
    """Every seat of this license is taken."""

    code = "no_seat_available"


class SeatIsBlocked(Refused):
    """This holder's seat is blocked."""

    code = "seat_is_blocked"


class SeatsNotNamed(Refused):
    """The seats of this license float: they are taken by leases, not assigned."""

    code = "seats_not_named"


class SeatChurnExceeded(Refused):
    """Too many seats of this license changed hands lately."""

    code = "seat_churn_exceeded"


class HolderHasSeat(Refused):
    """This holder has a seat already."""

    code = "holder_has_seat"


class SeatReleased(Refused):
    """This seat was released; assign a new one."""

    code = "seat_released"


class LicenseNotUsable(Refused):
    """This license is revoked, expired or not issued."""

    code = "license_not_usable"


@dataclass(frozen=True, slots=True)
class Assigned:
    """A seat, and whether this call made it (or took up a reservation)."""

    seat: Seat
    created: bool


def assign(*, license: License, holder: str, by: Actor, at: datetime) -> Assigned:
    """Give `holder` (an email address) a seat; the same holder again gets the seat they have.

    Raises:
        NoSeatAvailable: all seats are taken, counting reserved and blocked ones.
        SeatIsBlocked: the holder's seat is blocked.
        SeatsNotNamed, LicenseNotUsable: this license has no seats to assign, or not now.
        Invalid: `holder` is no email address.
    """
    holder = normalized(holder)
    for _ in range(3):
        seat = _live(license, holder)
        if seat is not None and seat.state == SeatState.RESERVED:
            return _take_up(seat, by=by, at=at)
        if seat is not None and seat.state == SeatState.BLOCKED:
            raise SeatIsBlocked()
        if seat is not None:
            return Assigned(seat, created=False)
        try:
            return Assigned(_grant(license, holder, SeatState.ASSIGNED, by=by, at=at), created=True)
        except IntegrityError:
            continue  # the same holder was given a seat meanwhile, or it was given back
        except NoSeatAvailable:
            if _live(license, holder) is None:
                raise
            # The last seat was given to this very holder while this call waited for the license.
    raise NoSeatAvailable("This seat is changing right now. Try again.")


def reserve(*, license: License, holder: str, by: Actor, at: datetime) -> Assigned:
    """Keep a seat for `holder`, who takes it up when it is assigned. Raises as `assign` does."""
    holder = normalized(holder)
    seat = _live(license, holder)
    if seat is not None and seat.state == SeatState.BLOCKED:
        raise SeatIsBlocked()
    if seat is not None:
        return Assigned(seat, created=False)
    try:
        return Assigned(_grant(license, holder, SeatState.RESERVED, by=by, at=at), created=True)
    except IntegrityError:
        raise HolderHasSeat() from None


def release(*, seat: Seat, by: Actor, at: datetime, reason: str = "") -> Seat:
    """Give the seat back; it is free at once. Releasing twice changes nothing.

    Raises:
        SeatChurnExceeded: the plan revision allows no further release within its window.
        SeatIsBlocked: releasing it would let its holder have a new one, and the block be for nothing.
    """
    with transaction.atomic():
        license = lock(seat.license_id)
        row = Seat.objects.select_for_update(no_key=True).get(pk=seat.pk)
        if row.state == SeatState.RELEASED:
            return row
        if row.state == SeatState.BLOCKED:
            raise SeatIsBlocked("This seat is blocked. Unblock it before it is released.")
        _allow_churn(license, at)
        _close(row, by=by, at=at, reason=reason)
        give_back(license.pk, 1, at)
    return row


def transfer(*, seat: Seat, to: str, by: Actor, at: datetime, reason: str = "") -> Seat:
    """Hand the seat to another holder in one step, so that nobody else can take it between; return theirs.

    Raises:
        HolderHasSeat: the new holder has one already.
        SeatReleased: there is nothing to hand over.
        SeatIsBlocked, SeatChurnExceeded, Invalid: as for assign and release.
    """
    to = normalized(to)
    try:
        with transaction.atomic():
            license = lock(seat.license_id)
            row = Seat.objects.select_for_update(no_key=True).get(pk=seat.pk)
            if row.state == SeatState.RELEASED:
                raise SeatReleased()
            if row.state == SeatState.BLOCKED:
                raise SeatIsBlocked()
            if row.holder == to:
                raise HolderHasSeat()
            _usable(license, at)
            _allow_churn(license, at)
            _close(row, by=by, at=at, reason=reason or "transferred")
            heir = _insert(license, to, SeatState.ASSIGNED, by=by, at=at)
            touch(license.pk, at)
    except IntegrityError:
        raise HolderHasSeat() from None
    return heir


def block(*, seat: Seat, by: Actor, at: datetime, reason: str) -> Seat:
    """Stop the holder from using the seat; it stays taken, so that nobody else gets it either."""
    return _change(
        seat, {SeatState.RESERVED, SeatState.ASSIGNED}, SeatState.BLOCKED, "seat.blocked", by=by, at=at, reason=reason
    )


def unblock(*, seat: Seat, by: Actor, at: datetime, reason: str = "") -> Seat:
    """Let the holder of a blocked seat use it again."""
    return _change(seat, {SeatState.BLOCKED}, SeatState.ASSIGNED, "seat.unblocked", by=by, at=at, reason=reason)


def release_all(*, license: License, by: Actor, at: datetime, reason: str) -> int:
    """Release every seat of a license the caller has locked; churn limits do not apply. Return how many."""
    rows = list(Seat.objects.select_for_update(no_key=True).filter(license=license, released_at=None).order_by("pk"))
    for row in rows:
        _close(row, by=by, at=at, reason=reason)
    if rows:
        give_back(license.pk, len(rows), at)
    return len(rows)


def erase_holder(*, holder: str, stand_in: str, by: Actor, at: datetime, reason: str) -> int:
    """Release every live seat of a person, blocked ones too and whatever the plan says of churn, and put a stand-in for
    their address on all they ever held; return how many. The caller holds no lock yet."""
    with transaction.atomic():
        rows = Seat.objects.filter(holder=normalized(holder))
        for license_id in sorted(set(rows.filter(released_at=None).values_list("license_id", flat=True))):
            lock(license_id)
            for row in rows.select_for_update(no_key=True).filter(license_id=license_id, released_at=None):
                _close(row, by=by, at=at, reason=reason)
                give_back(license_id, 1, at)
        return rows.update(holder=stand_in)


def normalized(holder: str) -> str:
    """Return an email address in the one form seats are compared in. Raises `Invalid`."""
    folded = holder.strip().lower()
    try:
        if len(folded) > 254 or re.search(r"[\x00-\x20\ud800-\udfff]", folded):
            raise ValidationError("")
        validate_email(folded)
    except ValidationError:
        raise Invalid("A seat's holder is an email address.", pointer="/holder") from None
    return folded


def lock(license_id: UUID) -> License:
    """Return the license locked to the end of the caller's transaction: always the first lock taken."""
    # Not joined to its plan revision: PostgreSQL, having waited for somebody who changes that, would find no row.
    return License.objects.select_for_update(no_key=True).get(pk=license_id)


def take(license_id: UUID, at: datetime) -> tuple[License, bool]:
    """Take one unit of the license's seats, named or floating, in the caller's transaction; return the license, and
    whether there was one to take. If there was, the license is locked from here on. Raises `Missing`."""
    taken = (
        License.objects.filter(pk=license_id)
        .filter(Q(seats_ceiling=None) | Q(seats_used__lt=F("seats_ceiling")))
        .update(seats_used=F("seats_used") + 1, revision=F("revision") + 1, updated_at=at)
    )
    # The update, if it moved, holds the row's lock: what is read from here on cannot change.
    row = License.objects.select_related("plan_revision").filter(pk=license_id).first()
    if row is None:
        raise Missing("There is no such license.")
    if taken:
        snapshots.changed(row.pk, row.revision)
    return row, bool(taken)


def give_back(license_id: UUID, count: int, at: datetime) -> None:
    """Lower the license's use by `count`; a ceiling above the limit falls with it."""
    License.objects.filter(pk=license_id).update(
        seats_used=F("seats_used") - count,
        seats_ceiling=Case(
            When(seat_limit=None, then=Value(None)),
            default=Greatest(F("seat_limit"), F("seats_used") - count),
        ),
        revision=F("revision") + 1,
        updated_at=at,
    )
    snapshots.changed(license_id)


def touch(license_id: UUID, at: datetime) -> None:
    """Say that what a snapshot of the license shows has changed."""
    License.objects.filter(pk=license_id).update(revision=F("revision") + 1, updated_at=at)
    snapshots.changed(license_id)


def _live(license: License, holder: str) -> Seat | None:
    return Seat.objects.filter(license=license, holder=holder, released_at=None).first()


def _grant(license: License, holder: str, state: SeatState, *, by: Actor, at: datetime) -> Seat:
    with transaction.atomic():
        row, taken = take(license.pk, at)
        _usable(row, at)
        if row.plan_revision.seat_kind != SeatKind.NAMED:
            raise SeatsNotNamed()
        if row.scheme == Scheme.USAGE:
            raise SeatsNotNamed("This license is limited by use, it has no seats.")
        if not taken:
            raise NoSeatAvailable(
                f"All {row.seat_limit} seats are taken."
                if row.seats_used == row.seat_limit
                else f"{row.seats_used} seats are taken, {row.seat_limit} are allowed."
            )
        return _insert(row, holder, state, by=by, at=at)


def _insert(license: License, holder: str, state: SeatState, *, by: Actor, at: datetime) -> Seat:
    seat = Seat.objects.create(
        license=license,
        created_at=at,
        holder=holder,
        state=state,
        assigned_at=at if state == SeatState.ASSIGNED else None,
    )
    audit.record(action=f"seat.{state}", by=by, on=seat, at=at, after={"state": state})
    return seat


def _take_up(seat: Seat, *, by: Actor, at: datetime) -> Assigned:
    with transaction.atomic():
        license = lock(seat.license_id)
        _usable(license, at)
        row = Seat.objects.select_for_update(no_key=True).get(pk=seat.pk)
        if row.state == SeatState.ASSIGNED:
            return Assigned(row, created=False)
        if row.state == SeatState.BLOCKED:
            raise SeatIsBlocked()
        if row.state != SeatState.RESERVED:
            raise SeatReleased()
        row.state, row.assigned_at = SeatState.ASSIGNED, at
        row.save()
        touch(license.pk, at)
        audit.record(
            action="seat.assigned",
            by=by,
            on=row,
            at=at,
            before={"state": SeatState.RESERVED},
            after={"state": SeatState.ASSIGNED},
        )
    return Assigned(row, created=True)


def _change(
    seat: Seat, former: set[SeatState], state: SeatState, action: str, *, by: Actor, at: datetime, reason: str
) -> Seat:
    with transaction.atomic():
        license = lock(seat.license_id)
        row = Seat.objects.select_for_update(no_key=True).get(pk=seat.pk)
        if row.state == SeatState.RELEASED:
            raise SeatReleased()
        if row.state in former:
            audit.record(
                action=action,
                by=by,
                on=row,
                at=at,
                before={"state": row.state},
                after={"state": state},
                reason=reason,
            )
            row.state = state
            if state == SeatState.ASSIGNED:
                row.assigned_at = row.assigned_at or at
            row.save()
            touch(license.pk, at)
    return row


def _close(row: Seat, *, by: Actor, at: datetime, reason: str) -> None:
    audit.record(
        action="seat.released",
        by=by,
        on=row,
        at=at,
        before={"state": row.state},
        after={"state": SeatState.RELEASED},
        reason=reason,
    )
    row.state, row.released_at = SeatState.RELEASED, at
    row.save()


def _usable(license: License, at: datetime) -> None:
    if license.issued_at is None or license.revoked_at is not None:
        raise LicenseNotUsable("This license is revoked." if license.revoked_at else "This license is a draft.")
    status = timed_status_at(at=at, expires_at=license.expires_at, grace_until=license.grace_until)
    if status == LicenseStatus.EXPIRED:
        raise LicenseNotUsable("This license has expired. Renew it first.")


def _allow_churn(license: License, at: datetime) -> None:
    terms = license.plan_revision
    if terms.seat_churn_limit is None or terms.churn_window is None:
        return
    # What a transfer let go was not the new customer's doing.
    since = max(at - terms.churn_window, license.transferred_at or license.created_at - terms.churn_window)
    lately = Seat.objects.filter(license=license, released_at__gt=since).count()
    if lately >= terms.seat_churn_limit:
        raise SeatChurnExceeded(
            f"{lately} seats were released within {terms.churn_window.days} days; "
            f"the plan allows {terms.seat_churn_limit}."
        )
