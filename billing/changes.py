"""Change of scheme or plan of one license, with what it costs: shown before, made now or scheduled, undone.

What is allowed and how a license changes is licensing's (`lifecycle.change_plan`, `switches`); this module adds the
money before and after, and the last moment of undoing: until a statement of the new term is final.

Source: docs/schemes.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from billing import statements
from billing.models import Statement
from billing.statements import RatedLine
from billing.states import StatementState
from licensing import lifecycle, seats, switches
from licensing.audit import Actor
from licensing.errors import Refused
from licensing.models import License, PlanRevision, SchemeChange, Term
from licensing.states import ChangeState, EntitlementKind


class NothingToUndo(Refused):
    """No change of this license is scheduled or in force."""

    code = "nothing_to_undo"


class NotTheLastChange(Refused):
    """A later change of this license is scheduled or in force. Undo that one first."""

    code = "not_the_last_change"


class ChangeIsFinal(Refused):
    """A statement of the new term is final, so the change is. Change the license again instead."""

    code = "change_is_final"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit on either side of a change, in words; None is no limit."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Money:
    """What a license owes for a period, line by line. The total is in the currency's minor units."""

    lines: tuple[RatedLine, ...]
    total_minor: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do from `starts_at` on; the money is for the whole period that instant falls in, with what
    was used until now."""

    starts_at: datetime
    period: Any
    currency: str
    limits: tuple[Limit, ...]
    money_before: Money
    money_after: Money
    before: License
    after: License


def preview(
    *, license: License, plan_revision: PlanRevision, by: Actor, at: datetime, starts_at: datetime | None = None
) -> Preview:
    """Return what a change would do. The change is made and taken back in one transaction: nothing is written, and what
    would be refused is refused. Raises as `change` does."""
    instant = starts_at or at
    with transaction.atomic():
        if starts_at is not None:
            switches.schedule(license=license, plan_revision=plan_revision, starts_at=starts_at, by=by, at=at)
        before = License.objects.select_related("plan_revision__plan").get(pk=license.pk)
        currency = statements.currency_of(before)
        period = statements.month_of(instant)
        money_before = _money(before, period, at)
        lifecycle.change_plan(license=license, plan_revision=plan_revision, by=by, at=at, starts_at=instant)
        after = License.objects.select_related("plan_revision__plan").get(pk=license.pk)
        money_after = _money(after, period, at)
        transaction.set_rollback(True)
    limits = limits_between(before, after)
    return Preview(instant, period, currency, limits, money_before, money_after, before, after)


def change(
    *,
    license: License,
    plan_revision: PlanRevision,
    by: Actor,
    at: datetime,
    starts_at: datetime | None = None,
    reason: str = "",
) -> SchemeChange:
    """Change the license now, or schedule it for `starts_at`; return the change.

    Raises: as `lifecycle.change_plan` and `switches.schedule` do.
    """
    if starts_at is not None:
        return switches.schedule(
            license=license, plan_revision=plan_revision, starts_at=starts_at, by=by, at=at, reason=reason
        )
    with transaction.atomic():
        lifecycle.change_plan(license=license, plan_revision=plan_revision, by=by, at=at, reason=reason)
        return SchemeChange.objects.select_related("term").get(
            license=license, state=ChangeState.APPLIED, term__undone_at=None, term__starts_at=at
        )


def undo(
    *, license: License, by: Actor, at: datetime, reason: str = "", change: SchemeChange | None = None
) -> SchemeChange:
    """Take back the license's last change: call it off while it is scheduled, else undo it as if it had never been.
    With `change` that one, and no other.

    Raises:
        NothingToUndo: there is none.
        NotTheLastChange: it is not `change`.
        ChangeIsFinal: a statement of the new term is final.
    """
    while True:
        owners = statements.owners_of(license)
        with transaction.atomic():
            # Accounts, statement, license: in this order everybody locks who locks more than one of them. The accounts'
            # locks are held to the end, so that no statement becomes final meanwhile.
            _lock_accounts(owners, at)
            row = seats.lock(license.pk)
            if statements.owners_of(row) == owners:  # else it went to another customer while this waited
                undone = _undo(row, change, by, at, reason)
                break
    undone.refresh_from_db()
    return undone


def _undo(license: License, change: SchemeChange | None, by: Actor, at: datetime, reason: str) -> SchemeChange:
    changes = SchemeChange.objects.filter(license=license).select_related("license", "term")
    scheduled = changes.filter(state=ChangeState.SCHEDULED).first()
    last = scheduled or changes.filter(state=ChangeState.APPLIED).order_by("-term__starts_at").first()
    if last is None:
        raise NothingToUndo()
    if change is not None and change.pk != last.pk:
        raise NotTheLastChange()
    if last.term is None:
        return switches.cancel(change=last, by=by, at=at, reason=reason)
    if _is_final(license, last.term):
        raise ChangeIsFinal()
    lifecycle.undo_change(change=last, by=by, at=at, reason=reason)
    return last


def _lock_accounts(customers: set[UUID], at: datetime) -> None:
    for customer_id in sorted(customers):
        statements.lock_account(customer_id, at)


def _is_final(license: License, term: Term) -> bool:
    """Return whether a statement that covers some of the term is final. The caller holds the locks of the accounts of
    whoever owned the license."""
    return Statement.objects.filter(
        Q(customer_id=license.customer_id) | Q(lines__license=license),
        ends_at__gt=term.starts_at,
        state__in=(StatementState.FINAL, StatementState.PAID),
    ).exists()


def limits_between(before: License, after: License) -> tuple[Limit, ...]:
    """Return every limit of either side, those that stay the same too."""
    sides = (_limits(before), _limits(after))
    return tuple(Limit(name, sides[0].get(name), sides[1].get(name)) for name in dict.fromkeys([*sides[0], *sides[1]]))


def _limits(license: License) -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "scheme": license.scheme,
        "seats": _text(license.seat_limit),
        "machines": _text(license.activation_limit),
        "expires_at": license.expires_at.isoformat().replace("+00:00", "Z") if license.expires_at else None,
    }
    for right in license.plan_revision.entitlements.order_by("key"):
        if right.kind == EntitlementKind.ALLOWANCE:
            found[f"allowance of {right.meter}"] = f"{_text(right.amount)}, beyond it: {right.overage}"
        else:
            found[f"entitlement {right.key}"] = right.value or "included"
    return found


def _text(number: int | Decimal | None) -> str | None:
    if isinstance(number, Decimal):
        return f"{number.normalize():f}"
    return None if number is None else str(number)


def _money(license: License, period: Any, at: datetime) -> Money:
    known_at = max(at, period.starts_at)
    lines = statements.rated(license=license, starts_at=period.starts_at, ends_at=period.ends_at, at=known_at)
    return sum_of(lines)


def sum_of(lines: Sequence[RatedLine]) -> Money:
    return Money(tuple(lines), sum(line.amount_minor for line in lines))
