"""Changes of scheme that are to come: asked for now, carried out at their instant, once, unless cancelled.

The change itself is `lifecycle.change_plan`. The new term starts at the instant asked for, however late the job runs;
until it has run, validation answers by the former terms: so it is wrong for the job's lag at most; that is shown.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction

from licensing import audit, lifecycle, seats
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import License, PlanRevision, SchemeChange
from licensing.states import ChangeState

FARTHEST = timedelta(days=3 * 366)


class ChangeScheduledAlready(Refused):
    """A change of this license is scheduled already. Cancel it first."""

    code = "change_scheduled_already"


class NotScheduled(Refused):
    """This change is not scheduled any more."""

    code = "change_not_scheduled"


def schedule(
    *, license: License, plan_revision: PlanRevision, starts_at: datetime, by: Actor, at: datetime, reason: str = ""
) -> SchemeChange:
    """Note that the license is to change to the revision at `starts_at`.

    Raises:
        Invalid: that instant is not to come, or years away.
        ChangeScheduledAlready: one is scheduled; there is one at a time.
        NotPublished, OtherProduct, LicenseNotUsable, TermStartsAlready: it could not be made now either.
    """
    if starts_at <= at:
        raise Invalid("This instant is past. Leave `at` out to change the license now.", pointer="/at")
    if starts_at > at + FARTHEST:
        raise Invalid("A change is scheduled three years ahead at most.", pointer="/at")
    with transaction.atomic():
        row = seats.lock(license.pk)
        try:
            with transaction.atomic():  # what would be refused then is refused now
                lifecycle.change_plan(
                    license=row, plan_revision=plan_revision, by=by, at=at, starts_at=starts_at, reason=reason
                )
                transaction.set_rollback(True)
            with transaction.atomic():
                change = SchemeChange.objects.create(
                    created_at=at,
                    license=row,
                    plan_revision=plan_revision,
                    starts_at=starts_at,
                    reason=reason,
                    actor_kind=by.kind,
                    actor_id=by.id,
                    actor_label=by.label,
                    actor_role=by.role,
                    state=ChangeState.SCHEDULED,
                )
        except IntegrityError:
            raise ChangeScheduledAlready() from None
        audit.record(
            action="license.change_scheduled",
            by=by,
            on=row,
            at=at,
            after={"change": change.pk, "plan_revision_to_come": plan_revision.pk, "change_at": starts_at},
            reason=reason,
        )
    return change


def cancel(*, change: SchemeChange, by: Actor, at: datetime, reason: str = "") -> SchemeChange:
    """Call off a scheduled change. Raises `NotScheduled`."""
    with transaction.atomic():
        row = seats.lock(change.license_id)
        if not _end(change.pk, ChangeState.CANCELLED, at):
            raise NotScheduled()
        audit.record(
            action="license.change_cancelled", by=by, on=row, at=at, before={"change": change.pk}, reason=reason
        )
    change.refresh_from_db()
    return change


def due(*, at: datetime, leaving_out: Collection[UUID] = (), limit: int) -> list[UUID]:
    """Return the scheduled changes whose instant has come, oldest first."""
    rows = SchemeChange.objects.filter(state=ChangeState.SCHEDULED, starts_at__lte=at).exclude(pk__in=leaving_out)
    return list(rows.order_by("starts_at", "pk").values_list("pk", flat=True)[:limit])


def carry_out(*, change_id: UUID, at: datetime) -> bool:
    """Make a change whose instant has come; return whether this call did. What the rules refuse by now is kept as
    refused, with the code of why."""
    change = SchemeChange.objects.select_related("license", "plan_revision__plan").get(pk=change_id)
    by = Actor(change.actor_kind, change.actor_id, change.actor_label, change.actor_role)
    with transaction.atomic():
        row = seats.lock(change.license_id)  # whoever else carries it out, or cancels it, waits here
        if not SchemeChange.objects.filter(pk=change_id, state=ChangeState.SCHEDULED).exists():
            return False
        try:
            with transaction.atomic():
                lifecycle.change_plan(
                    license=row,
                    plan_revision=change.plan_revision,
                    by=by,
                    at=at,
                    reason=change.reason,
                    starts_at=change.starts_at,
                    scheduled=change,
                )
        except (Refused, Invalid) as error:
            _end(change_id, ChangeState.REFUSED, at, refusal=error.code)
            audit.record(
                action="license.change_refused",
                by=audit.system("scheduled-changes"),
                on=row,
                at=at,
                after={"change": change_id, "code": error.code},
                reason=error.detail,
            )
    return True


def lag(*, at: datetime) -> timedelta:
    """Return how late the oldest scheduled change is that has not been made: so long validation is wrong at most."""
    rows = SchemeChange.objects.filter(state=ChangeState.SCHEDULED, starts_at__lte=at)
    oldest = rows.order_by("starts_at").values_list("starts_at", flat=True).first()
    return at - oldest if oldest else timedelta()


def _end(change_id: UUID, state: ChangeState, at: datetime, refusal: str = "") -> bool:
    rows = SchemeChange.objects.filter(pk=change_id, state=ChangeState.SCHEDULED)
    return bool(rows.update(state=state, ended_at=at, refusal=refusal))
