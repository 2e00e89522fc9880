"""The life of a license: issue, renew, hold, lift, revoke, transfer, change of plan, and the passing of time.

Every function locks the license first, changes it, and writes its audit entry in the same transaction. It does
not answer whether a program may run: that is `validation`.
"""

import base64
import copy
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction

from licensing import (
    activations,
    allowances,
    audit,
    keyformat,
    keys,
    leases,
    notices,
    proofs,
    schemes,
    seats,
    snapshots,
)
from licensing.audit import Actor
from licensing.catalog import LONGEST, MOST
from licensing.errors import Invalid, Refused
from licensing.models import AuditEntry, Customer, Hold, License, PlanRevision, SchemeChange, Term
from licensing.seats import LicenseNotUsable
from licensing.states import (
    ChangeState,
    HoldReason,
    LicenseStatus,
    RenewalBasis,
    RevisionState,
    ValidityBasis,
    status_at,
    timed_status_at,
)

UNCHANGED: Any = object()

EXPIRY = audit.system("expiration-sweep")  # who says what time alone has made of a license


class NotPublished(Refused):
    """Only a published plan revision can be issued."""

    code = "revision_not_published"


class AlreadyHeld(Refused):
    """This license is held for this reason already."""

    code = "already_held"


class NotHeld(Refused):
    """This license is not held for this reason."""

    code = "not_held"


class NothingToRenew(Refused):
    """This license is perpetual and has no maintenance window: there is nothing to renew."""

    code = "nothing_to_renew"


class ChangeNotInForce(Refused):
    """This change is not in force, so it cannot be undone."""

    code = "change_not_in_force"


class ChangedSince(Refused):
    """The license was changed again since. Undo the later change first."""

    code = "changed_since"


class OtherProduct(Refused):
    """The plan belongs to another product. Issue a new license instead."""

    code = "other_product"


def prepare(
    *,
    customer: Customer,
    plan_revision: PlanRevision,
    by: Actor,
    at: datetime,
    starts_at: datetime | None = None,
    expires_at: datetime | None = None,
    seat_limit: int | None = UNCHANGED,
    activation_limit: int | None = UNCHANGED,
) -> License:
    """Write a draft license, under the revision's terms but for the limits and expiry given. It has no key yet.

    Raises:
        NotPublished: the revision is a draft or retired.
        Invalid: the license would end before it starts.
    """
    if plan_revision.state != RevisionState.PUBLISHED:
        raise NotPublished(f"Revision {plan_revision.number} of this plan is {plan_revision.state}.")
    starts_at = starts_at or at
    license = License(
        created_at=at,
        updated_at=at,
        customer=customer,
        product=plan_revision.plan.product,
        plan_revision=plan_revision,
        scheme=plan_revision.scheme,
        starts_at=starts_at,
        swept_status=LicenseStatus.DRAFT,
        maintenance_until=starts_at + plan_revision.maintenance if plan_revision.maintenance else None,
    )
    _expire_at(license, expires_at or _first_expiry(plan_revision, starts_at))
    _limit(
        license,
        plan_revision.seat_limit if seat_limit is UNCHANGED else seat_limit,
        plan_revision.activation_limit if activation_limit is UNCHANGED else activation_limit,
    )
    proofs.seal(license, holds=[])
    with transaction.atomic():
        license.save(force_insert=True)
        audit.record(
            action="license.drafted",
            by=by,
            on=license,
            at=at,
            after={"plan_revision": plan_revision, **_facts(license)},
        )
    return license


def issue_prepared(*, license: License, by: Actor, at: datetime, reason: str = "") -> tuple[License, str]:
    """Issue a draft; return it and its key, which is not shown again without a recorded reveal.

    What counts from its issue counts from now, unless the draft was given a start or an expiry of its own.

    Raises:
        Refused: it is issued already.
        NotPublished: its revision was retired since.
    """
    with transaction.atomic():
        row = _locked(license, at)
        if row.issued_at is not None:
            raise Refused("This license is issued already.")
        terms = row.plan_revision
        if terms.state != RevisionState.PUBLISHED:
            raise NotPublished(f"Revision {terms.number} of this plan is {terms.state}.")
        if row.starts_at == row.created_at:
            derived = row.expires_at == _first_expiry(terms, row.starts_at)
            row.starts_at = at
            row.maintenance_until = at + terms.maintenance if terms.maintenance else None
            _expire_at(row, _first_expiry(terms, at) if derived else row.expires_at)
        row.issued_at = at
        _settle(row, at)
        row.revision += 1
        proofs.seal(row)
        row.save()
        snapshots.changed(row.pk, row.revision)
        schemes.open_term(license=row, plan_revision=row.plan_revision, starts_at=row.starts_at, reason="issued", at=at)
        key = keys.create(license=row, at=at)
        audit.record(
            action="license.issued",
            by=by,
            on=row,
            at=at,
            after={"plan_revision": row.plan_revision, "key_last5": key[-5:], **_facts(row)},
            reason=reason,
        )
    return row, key


def issue(
    *,
    customer: Customer,
    plan_revision: PlanRevision,
    by: Actor,
    at: datetime,
    reason: str = "",
    **terms: Any,
) -> tuple[License, str]:
    """Issue a license at once: `prepare` and `issue_prepared` in one transaction. Raises as `prepare` does."""
    with transaction.atomic():
        license = prepare(customer=customer, plan_revision=plan_revision, by=by, at=at, **terms)
        return issue_prepared(license=license, by=by, at=at, reason=reason)


def renew(*, license: License, by: Actor, at: datetime, reason: str = "", duration: timedelta | None = None) -> License:
    """Move the expiry on by the plan's duration (or the one given), from where its renewal basis says, and the
    maintenance window by its own.

    Raises:
        NothingToRenew: it neither expires nor has a maintenance window.
        LicenseNotUsable: it is revoked or a draft.
        Invalid: the plan has no duration and none is given.
    """
    with transaction.atomic():
        row = _standing(license, at)
        before, more = _facts(row), dict[str, Any]()
        terms = row.plan_revision
        if row.expires_at is None and row.maintenance_until is None:
            raise NothingToRenew()
        if row.expires_at is not None:
            span = duration or terms.duration
            if span is None or span <= timedelta():
                raise Invalid("Say for how long: the plan has no duration of its own.", pointer="/duration_seconds")
            if span > LONGEST:
                raise Invalid("A renewal is for at most a hundred years.", pointer="/duration_seconds")
            # What lies between the expiry and this is not covered, and so not charged.
            more["covered_from"] = _renewed_from(terms.renewal_basis, row.expires_at, at)
            _expire_at(row, max(row.expires_at, more["covered_from"] + span))  # nobody loses time by renewing early
        if row.maintenance_until is not None and terms.maintenance is not None:
            row.maintenance_until = _renewed_from(terms.renewal_basis, row.maintenance_until, at) + terms.maintenance
        return _save(row, "license.renewed", before, by, at, reason, **more)


def hold(*, license: License, reason: str, by: Actor, at: datetime, note: str = "") -> Hold:
    """Stop the license for a reason, until that is lifted. Several reasons may hold it at once.

    Raises:
        AlreadyHeld: for this very reason.
        LicenseNotUsable: it is revoked or a draft.
    """
    if reason not in HoldReason.values:
        raise Invalid(f"A hold's reason is one of {', '.join(HoldReason.values)}.", pointer="/reason")
    try:
        with transaction.atomic():
            row = _standing(license, at)
            placed = Hold.objects.create(
                license=row, created_at=at, reason=reason, note=keyformat.redact(note), placed_at=at
            )
            _touch(row, at)
            audit.record(action="license.held", by=by, on=row, at=at, after={"hold": reason}, reason=note or reason)
            notices.enqueue(template=notices.HELD, license=row, at=at, reason=reason)
    except IntegrityError:
        raise AlreadyHeld() from None
    return placed


def lift(*, license: License, reason: str, by: Actor, at: datetime, note: str = "") -> Hold:
    """Lift the hold placed for `reason`; other holds stay. Raises `NotHeld`."""
    with transaction.atomic():
        row = _locked(license, at)
        placed = Hold.objects.select_for_update(no_key=True).filter(license=row, reason=reason, lifted_at=None).first()
        if placed is None:
            raise NotHeld()
        placed.lifted_at = at
        placed.save()
        _touch(row, at)
        audit.record(action="license.lifted", by=by, on=row, at=at, before={"hold": reason}, reason=note)
    return placed


def revoke(*, license: License, by: Actor, at: datetime, reason: str) -> License:
    """End the license for good. Revoking twice changes nothing.

    Raises:
        Invalid: no reason is given.
        LicenseNotUsable: it is a draft.
    """
    if not reason.strip():
        raise Invalid("Say why the license is revoked.", pointer="/reason")
    with transaction.atomic():
        row = _locked(license, at)
        if row.revoked_at is not None:
            return row
        if row.issued_at is None:
            raise LicenseNotUsable("This license is a draft.")
        before = _facts(row)
        row.revoked_at = at
        notices.enqueue(template=notices.REVOKED, license=row, at=at)
        return _save(row, "license.revoked", before, by, at, reason)


def transfer(*, license: License, to: Customer, by: Actor, at: datetime, reason: str) -> License:
    """Give the license to another customer: its seats, leases and machines are let go and its key is replaced,
    so that nothing of the former customer's still works.

    Raises:
        Refused: the customer has it already.
        LicenseNotUsable: it is revoked or a draft.
    """
    with transaction.atomic():
        row = _standing(license, at)
        if row.customer_id == to.pk:
            raise Refused("This customer has the license already.")
        before = {"customer": row.customer_id}
        released = seats.release_all(license=row, by=by, at=at, reason="license transferred")
        leases.end_all(license=row, by=by, at=at, reason="license transferred")
        ended = activations.deactivate_all(license=row, by=by, at=at, reason="license transferred")
        row = seats.lock(row.pk)
        row.customer, row.transferred_at, row.updated_at, row.revision = to, at, at, row.revision + 1
        proofs.seal(row)
        row.save()
        keys.rotate(license=row, by=by, reason="license transferred", at=at)
        audit.record(
            action="license.transferred",
            by=by,
            on=row,
            at=at,
            before=before,
            after={"customer": to.pk, "seats_released": released, "activations_ended": ended},
            reason=reason,
        )
    return License.objects.get(pk=row.pk)


def change_plan(
    *,
    license: License,
    plan_revision: PlanRevision,
    by: Actor,
    at: datetime,
    reason: str = "",
    starts_at: datetime | None = None,
    scheduled: SchemeChange | None = None,
) -> License:
    """Put the license under another published revision of its product, and so perhaps another scheme.

    Limits become the revision's. Where more is in use nobody is thrown out: see `seats`. Seats stay where they are,
    also under a scheme that has none, and are found again on the way back. The expiry stays, unless the new terms have
    none, or are the first to have one. The new term starts now, or at `starts_at` where a `scheduled` change is carried
    out late: limits that were set since stay, as they would had it been in time. `undo_change` takes it back.

    Raises:
        NotPublished, OtherProduct: the revision cannot be taken.
        LicenseNotUsable: the license is revoked or a draft.
        TermStartsAlready: the license has not started, or was changed later than that already.
    """
    starts_at = starts_at or at
    if plan_revision.state != RevisionState.PUBLISHED:
        raise NotPublished(f"Revision {plan_revision.number} of this plan is {plan_revision.state}.")
    with transaction.atomic():
        row = _standing(license, at)
        if plan_revision.plan.product_id != row.product_id:
            raise OtherProduct()
        before, image = {"plan_revision": row.plan_revision_id, **_facts(row)}, schemes.image(row)
        since = _limits_since(row, starts_at) if starts_at < at else {}
        _put_under(row, plan_revision, starts_at, **since)
        activations.rescope(license=row)
        term = schemes.open_term(license=row, plan_revision=plan_revision, starts_at=starts_at, reason=reason, at=at)
        more = {"plan_revision": plan_revision.pk, "term": term.pk, "term_starts_at": starts_at}
        if since:  # the entry says how the term began; what was set since has an entry of its own
            more |= {"seat_limit": plan_revision.seat_limit, "activation_limit": plan_revision.activation_limit}
        _save(row, "license.plan_changed", before, by, at, reason, **more)
        allowances.reopen(license=row, at=starts_at)
        _record_change(row, term, image, by, at, scheduled)
        row.refresh_from_db(fields=["revision"])  # the counters may have raised it
        return row


def as_if_under(*, license: License, plan_revision: PlanRevision, starts_at: datetime) -> License:
    """Return a copy of the license as `change_plan` would leave its terms, had it been put under the revision at that
    instant. Writes nothing. Raises `Invalid` where the change would."""
    row = copy.copy(license)
    _put_under(row, plan_revision, starts_at)
    return row


def _put_under(row: License, plan_revision: PlanRevision, starts_at: datetime, **limits: Any) -> None:
    row.plan_revision, row.scheme = plan_revision, plan_revision.scheme
    _limit(row, **{"seat_limit": plan_revision.seat_limit, "activation_limit": plan_revision.activation_limit} | limits)
    if plan_revision.duration is None or row.expires_at is None:
        _expire_at(row, _first_expiry(plan_revision, starts_at, row.first_activated_at))
    else:
        _expire_at(row, row.expires_at)
    if plan_revision.maintenance is None:
        row.maintenance_until = None
    elif row.maintenance_until is None:
        row.maintenance_until = starts_at + plan_revision.maintenance


def undo_change(*, change: SchemeChange, by: Actor, at: datetime, reason: str = "") -> License:
    """Take back a change of plan or scheme as if it had never been: its term is out of force, and the license's row is
    what it was, but for `schemes.NEVER_PUT_BACK` and what other acts have changed since.

    Whether a statement forbids it is `billing.changes`'.

    Raises:
        ChangeNotInForce: it is not applied, or undone already.
        ChangedSince: a later change is in force. Undo that one first.
        FingerprintInUse: under the former terms a machine may be active once for the product, and is so elsewhere.
    """
    with transaction.atomic():
        row = _locked(change.license, at)
        kept = SchemeChange.objects.select_related("term").get(pk=change.pk)
        if kept.state != ChangeState.APPLIED or kept.term is None or kept.before is None or kept.after is None:
            raise ChangeNotInForce(f"This change is {kept.state}.")
        if Term.objects.in_force().filter(license=row, starts_at__gt=kept.term.starts_at).exists():
            raise ChangedSince()
        before = {"plan_revision": row.plan_revision_id, **_facts(row)}
        schemes.put_back(row, before=kept.before, after=kept.after, but=_FOLLOWS)
        _limit(row, row.seat_limit, row.activation_limit)
        now = schemes.image(row)
        if any(now[name] != kept.before[name] for name in _TIMED):  # renewed, revoked or swept since
            _expire_at(row, row.expires_at)
            _settle(row, at)
        activations.rescope(license=row)
        schemes.undo_term(term=kept.term, at=at)
        row.revision += 1
        row.updated_at = at
        proofs.seal_as_before(row, kid=kept.before["terms_kid"], mac=_mac(kept))
        row.save()
        snapshots.changed(row.pk, row.revision)
        SchemeChange.objects.filter(pk=kept.pk).update(state=ChangeState.UNDONE, ended_at=at)
        allowances.rejoin(license=row, at=kept.term.starts_at)
        old, new = audit.differences(before, {"plan_revision": row.plan_revision_id, **_facts(row)})
        audit.record(
            action="license.change_undone",
            by=by,
            on=row,
            at=at,
            before=old,
            after={**new, "undone_term": kept.term_id},
            reason=reason,
        )
    return row


def change_limits(
    *,
    license: License,
    by: Actor,
    at: datetime,
    reason: str = "",
    seat_limit: int | None = UNCHANGED,
    activation_limit: int | None = UNCHANGED,
) -> License:
    """Give this license limits of its own. None is no limit. Raises `LicenseNotUsable`, `Invalid`."""
    with transaction.atomic():
        row = _standing(license, at)
        before = _facts(row)
        _limit(
            row,
            row.seat_limit if seat_limit is UNCHANGED else seat_limit,
            row.activation_limit if activation_limit is UNCHANGED else activation_limit,
        )
        return _save(row, "license.limits_changed", before, by, at, reason)


def accept_terms(*, license: License, by: Actor, at: datetime, reason: str) -> License:
    """Take the terms as they stand, which somebody wrote past the rules: they are proved anew and count again.

    Raises:
        Invalid: no reason is given.
        Refused: they are as a rule wrote them.
    """
    if not reason.strip():
        raise Invalid("Say why the terms are accepted as they are.", pointer="/reason")
    with transaction.atomic():
        row = seats.lock(license.pk)
        if proofs.stand(row):
            raise Refused("The terms of this license are as they were written.")
        accepted = {
            "customer": row.customer_id,
            "product": row.product_id,
            "plan_revision": row.plan_revision_id,
            "holds": sorted(row.holds.filter(lifted_at=None).values_list("reason", flat=True)),
        }
        return _save(row, "license.terms_accepted", {}, by, at, reason, **accepted)


def pass_time(*, license_id: UUID, by: Actor, at: datetime) -> int:
    """Record what time alone has made of a license up to `at`: each transition once, however many are due and
    however often or concurrently this runs. Return how many there were.
    """
    with transaction.atomic():
        row = (
            License.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
            .select_related("plan_revision")
            .filter(pk=license_id, due_at__lte=at)
            .first()
        )
        if row is None:
            return 0
        passed = _catch_up(row, by=by, at=at)
        row.revision += 1
        row.updated_at = at
        row.save()
        snapshots.changed(row.pk, row.revision)
    return passed


def status_of(license: License, at: datetime) -> LicenseStatus:
    """Return the license's status at the instant `at`."""
    return status_at(
        at=at,
        issued=license.issued_at is not None,
        revoked=license.revoked_at is not None,
        held=any(placed.lifted_at is None for placed in license.holds.all()),
        expires_at=license.expires_at,
        grace_until=license.grace_until,
    )


def _locked(license: License, at: datetime) -> License:
    """Return the license locked, its terms as a rule wrote them: what others wrote is never proved anew.

    What time has made of it by now is recorded first: an act that comes between an expiry and its sweep must not
    swallow it.
    """
    row = seats.lock(license.pk)
    proofs.check(row)
    if _catch_up(row, by=EXPIRY, at=at):
        License.objects.filter(pk=row.pk).update(swept_status=row.swept_status, due_at=row.due_at)
    return row


def _catch_up(row: License, *, by: Actor, at: datetime) -> int:
    """Record what time alone has made of the license up to `at`; return how many transitions there were."""
    passed = 0
    while row.due_at is not None and row.due_at <= at:
        occurred_at, before = row.due_at, row.swept_status
        _settle(row, occurred_at)
        entered_grace = row.swept_status == LicenseStatus.IN_GRACE
        template = notices.ENTERED_GRACE if entered_grace else notices.EXPIRED
        audit.record(
            action=f"license.{template}",
            by=by,
            on=row,
            at=at,
            before={"status": before},
            after={"status": row.swept_status, "occurred_at": occurred_at},
        )
        notices.enqueue(template=template, license=row, at=at, occurred_at=occurred_at.isoformat())
        passed += 1
    return passed


def _touch(row: License, at: datetime) -> None:
    """Prove the terms anew after a hold was placed or lifted, and say that the license has changed."""
    proofs.seal(row)
    License.objects.filter(pk=row.pk).update(terms_kid=row.terms_kid, terms_mac=row.terms_mac)
    seats.touch(row.pk, at)


def _standing(license: License, at: datetime) -> License:
    row = _locked(license, at)
    if row.revoked_at is not None:
        raise LicenseNotUsable("This license is revoked. Issue a new one.")
    if row.issued_at is None:
        raise LicenseNotUsable("This license is a draft. Issue it first.")
    return row


def _save(
    row: License, action: str, before: dict[str, Any], by: Actor, at: datetime, reason: str, **more: Any
) -> License:
    _settle(row, at)
    row.revision += 1
    row.updated_at = at
    proofs.seal(row)
    row.save()
    snapshots.changed(row.pk, row.revision)
    old, new = audit.differences(before, {**_facts(row), **more})
    audit.record(action=action, by=by, on=row, at=at, before=old, after=new | more, reason=reason)
    return row


def _settle(row: License, at: datetime) -> None:
    """Set the swept status to what it is at `at`, and when time next changes it."""
    if row.revoked_at is not None:
        row.swept_status, row.due_at = LicenseStatus.REVOKED, None
        return
    row.swept_status = timed_status_at(at=at, expires_at=row.expires_at, grace_until=row.grace_until)
    row.due_at = {
        LicenseStatus.ACTIVE: row.expires_at,
        LicenseStatus.IN_GRACE: row.grace_until,
    }.get(LicenseStatus(row.swept_status))


# Columns that follow from others: worked out anew, never put back by themselves.
_TIMED = ("expires_at", "grace_until", "revoked_at", "swept_status", "due_at")
_FOLLOWS = ("seats_ceiling", "activations_ceiling", "terms_kid", "terms_mac")


def _mac(change: SchemeChange) -> bytes | None:
    kept = (change.before or {}).get("terms_mac")
    return base64.b64decode(kept) if kept else None


def _record_change(
    row: License,
    term: Term,
    image: dict[str, str | None],
    by: Actor,
    at: datetime,
    scheduled: SchemeChange | None,
) -> None:
    applied = {
        "state": ChangeState.APPLIED,
        "applied_at": at,
        "term": term,
        "before": image,
        "after": schemes.image(row),
    }
    if scheduled is not None:
        SchemeChange.objects.filter(pk=scheduled.pk, state=ChangeState.SCHEDULED).update(**applied)
        return
    SchemeChange.objects.create(
        created_at=at,
        license=row,
        plan_revision=term.plan_revision,
        starts_at=term.starts_at,
        reason=term.reason,
        actor_kind=by.kind,
        actor_id=by.id,
        actor_label=by.label,
        actor_role=by.role,
        **applied,
    )


def _facts(row: License) -> dict[str, Any]:
    names = (
        "scheme",
        "starts_at",
        "expires_at",
        "grace_until",
        "maintenance_until",
        "revoked_at",
        "seat_limit",
        "activation_limit",
    )
    return {name: getattr(row, name) for name in names}


def _limit(row: License, seat_limit: int | None, activation_limit: int | None) -> None:
    for name, value in (("seat_limit", seat_limit), ("activation_limit", activation_limit)):
        if value is not None and not 0 <= value <= MOST:
            raise Invalid(f"A limit is a whole number from 0 to {MOST}.", pointer=f"/{name}")
    row.seat_limit = seat_limit
    row.seats_ceiling = None if seat_limit is None else max(seat_limit, row.seats_used)
    row.activation_limit = activation_limit
    row.activations_ceiling = None if activation_limit is None else max(activation_limit, row.activations_used)


def _limits_since(row: License, since: datetime) -> dict[str, Any]:
    """Return the limits the license was given of its own after an instant, the last of each."""
    entries = AuditEntry.objects.filter(license_id=row.pk, action="license.limits_changed", at__gt=since)
    found: dict[str, Any] = {}
    for after in entries.order_by("at", "id").values_list("after", flat=True):
        found |= {name: after[name] for name in ("seat_limit", "activation_limit") if name in after}
    return found


def _first_expiry(
    terms: PlanRevision, starts_at: datetime, first_activated_at: datetime | None = None
) -> datetime | None:
    match terms.validity_basis:
        case ValidityBasis.FIXED_DATE:
            return terms.fixed_expires_at
        case ValidityBasis.FROM_FIRST_ACTIVATION if first_activated_at is None:
            return None
        case _:
            return starts_at + terms.duration if terms.duration else None


def _expire_at(row: License, expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= row.starts_at:
        raise Invalid("A license expires after it starts.", pointer="/expires_at")
    grace = row.plan_revision.grace_period
    row.expires_at = expires_at
    row.grace_until = expires_at + grace if expires_at and grace else None


def _renewed_from(basis: str, end: datetime, at: datetime) -> datetime:
    match basis:
        case RenewalBasis.FROM_NOW:
            return at
        case RenewalBasis.FROM_NOW_IF_EXPIRED:
            return max(end, at)
        case _:
            return end
