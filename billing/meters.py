"""Meters: what is counted, and how, in revisions from draft to published to retired.

A published revision never changes; to count otherwise is a new revision, from its publication on. `doubts` says which
plans grant what no meter counts. It counts nothing itself: that is `metering` and `rollups`.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from billing.models import Meter, MeterRevision
from billing.states import COUNTED_LIVE, Aggregation
from licensing import audit
from licensing.audit import Actor
from licensing.catalog import CodeTaken, Difference, RevisionIsPublished
from licensing.errors import Invalid, Refused
from licensing.models import Entitlement
from licensing.states import REVISION_TRANSITIONS, EntitlementKind, Overage, RevisionState

TERMS = ("aggregation", "unit", "dimensions", "filters", "unique_by")
MOST_DIMENSIONS = 10
MOST_VALUES = 50
LONGEST_VALUE = 200
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NAMED = "A dimension is named in lower case letters, digits and single underscores, like 'region', at most 40 of them."


@dataclass(frozen=True, slots=True)
class Doubt:
    """An allowance on sale that cannot be counted as it says: which plan revision, which entitlement, and why."""

    plan_revision: str
    entitlement: str
    meter: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.plan_revision}, entitlement {self.entitlement}: {self.wrong}"


def create(*, code: str, name: str, by: Actor, at: datetime, description: str = "") -> Meter:
    """Make a meter, without a revision yet. Raises `CodeTaken`."""
    meter = Meter(created_at=at, code=code, name=name, description=description)
    try:
        with transaction.atomic():
            meter.save(force_insert=True)
            audit.record(action="meter.created", by=by, on=meter, at=at, after={"code": code, "name": name})
    except IntegrityError:
        raise CodeTaken("There is a meter with this code already.") from None
    return meter


def describe(*, meter: Meter, name: str, description: str, by: Actor, at: datetime) -> None:
    """Change how a meter is called; its code and what it counts stay."""
    with transaction.atomic():
        row = Meter.objects.select_for_update(no_key=True).get(pk=meter.pk)
        old, new = audit.differences(
            {"name": row.name, "description": row.description}, {"name": name, "description": description}
        )
        if new:
            row.name, row.description = name, description
            row.save()
            audit.record(action="meter.described", by=by, on=row, at=at, before=old, after=new)


def draft(*, meter: Meter, by: Actor, at: datetime, **terms: Any) -> MeterRevision:
    """Make the meter's next draft: what the newest revision says with `terms` in its place.

    Raises:
        Invalid: a term that does not exist or contradicts another.
    """
    _known(terms)
    with transaction.atomic():
        Meter.objects.select_for_update(no_key=True).get(pk=meter.pk)
        newest = MeterRevision.objects.filter(meter=meter).order_by("-number").first()
        if newest is not None:
            terms = _stated(newest) | terms
        row = MeterRevision(created_at=at, meter=meter, number=newest.number + 1 if newest else 1, **terms)
        _contradictions(row)
        row.save(force_insert=True)
        after = {"meter": meter.code, "number": row.number, **_stated(row)}
        audit.record(action="meter_revision.drafted", by=by, on=row, at=at, after=after)
    return row


def edit(*, revision: MeterRevision, by: Actor, at: datetime, **terms: Any) -> MeterRevision:
    """Change what a draft says.

    Raises:
        RevisionIsPublished: it is no draft any more.
        Invalid: a term that does not exist or contradicts another.
    """
    _known(terms)
    with transaction.atomic():
        row = _draft_of(revision)
        before = _stated(row)
        for name, value in terms.items():
            setattr(row, name, value)
        _contradictions(row)
        old, new = audit.differences(before, _stated(row))
        if new:
            row.save()
            audit.record(action="meter_revision.edited", by=by, on=row, at=at, before=old, after=new)
    return row


def publish(*, revision: MeterRevision, by: Actor, at: datetime, reason: str = "") -> MeterRevision:
    """Count by a draft from now on, retiring the revision before. What is counted already stays as it was counted.

    Raises:
        RevisionIsPublished: it is no draft.
    """
    with transaction.atomic():
        Meter.objects.select_for_update(no_key=True).get(pk=revision.meter_id)
        row = _draft_of(revision)
        for earlier in MeterRevision.objects.select_for_update(no_key=True).filter(
            meter_id=row.meter_id, state=RevisionState.PUBLISHED
        ):
            _retire(earlier, by, at, f"Followed by revision {row.number}.")
        row.state, row.published_at = RevisionState.PUBLISHED, at
        row.save()
        audit.record(
            action="meter_revision.published",
            by=by,
            on=row,
            at=at,
            before={"state": RevisionState.DRAFT},
            after={"state": RevisionState.PUBLISHED, "number": row.number},
            reason=reason,
        )
    return row


def retire(*, revision: MeterRevision, by: Actor, at: datetime, reason: str = "") -> MeterRevision:
    """Stop counting by a published revision: events of its meter are refused. Raises `Refused` when not published."""
    with transaction.atomic():
        row = MeterRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
        if RevisionState.RETIRED not in REVISION_TRANSITIONS[RevisionState(row.state)]:
            raise Refused(f"A {row.state} revision cannot be retired.")
        return _retire(row, by, at, reason)


def discard(*, revision: MeterRevision, by: Actor, at: datetime) -> None:
    """Delete a draft that was never published. Raises `RevisionIsPublished`."""
    with transaction.atomic():
        row = _draft_of(revision)
        before = {"number": row.number, **_stated(row)}
        audit.record(action="meter_revision.discarded", by=by, on=row, at=at, before=before)
        row.delete()


def diff(before: MeterRevision, after: MeterRevision) -> list[Difference]:
    """Return what is different in `after`, term by term, in words a person reads."""
    return [
        Difference(name.replace("_", " "), said(before, name), said(after, name))
        for name in TERMS
        if getattr(before, name) != getattr(after, name)
    ]


def said(row: MeterRevision, name: str) -> str:
    """Return what one term of a revision says, in words."""
    value = getattr(row, name)
    match name:
        case "aggregation":
            return str(row.get_aggregation_display())
        case "dimensions":
            return ", ".join(value) or "none"
        case "filters":
            return "; ".join(f"{key} is {' or '.join(values)}" for key, values in value.items()) or "every event"
        case _:
            return str(value) or "none"


def doubts() -> list[Doubt]:
    """Return the allowances of published plan revisions that name no published meter, or one that cannot be refused.

    A plan revision may be drafted before its meter: licensing knows no meters. So this is said, not refused.
    """
    counted = dict(
        MeterRevision.objects.filter(state=RevisionState.PUBLISHED).values_list("meter__code", "aggregation")
    )
    found = []
    granted = Entitlement.objects.filter(
        kind=EntitlementKind.ALLOWANCE, plan_revision__state=RevisionState.PUBLISHED
    ).select_related("plan_revision__plan")
    for right in granted.order_by("plan_revision__plan__code", "key"):
        wrong = ""
        if right.meter not in counted:
            wrong = f"no meter '{right.meter}' is published, so nothing of it can be reported."
        elif right.overage == Overage.REFUSE and counted[right.meter] not in COUNTED_LIVE:
            label = str(Aggregation(counted[right.meter]).label)
            wrong = f"the meter '{right.meter}' ({label}) is counted afterwards, so more cannot be refused; charge it."
        if wrong:
            found.append(Doubt(str(right.plan_revision), right.key, right.meter, wrong))
    return found


def _known(terms: dict[str, Any]) -> None:
    if unknown := sorted(set(terms) - set(TERMS)):
        raise Invalid(f"There is no term '{unknown[0]}'.", pointer=f"/{unknown[0]}")


def _stated(row: MeterRevision) -> dict[str, Any]:
    return {name: getattr(row, name) for name in TERMS}


def _draft_of(revision: MeterRevision) -> MeterRevision:
    """Return the draft, locked. Raises `RevisionIsPublished`."""
    row = MeterRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
    if row.state != RevisionState.DRAFT:
        raise RevisionIsPublished("A published meter revision never changes. Make a new revision.")
    return row


def _retire(row: MeterRevision, by: Actor, at: datetime, reason: str) -> MeterRevision:
    row.state, row.retired_at = RevisionState.RETIRED, at
    row.save()
    audit.record(
        action="meter_revision.retired",
        by=by,
        on=row,
        at=at,
        before={"state": RevisionState.PUBLISHED},
        after={"state": RevisionState.RETIRED},
        reason=reason,
    )
    return row


def _contradictions(row: MeterRevision) -> None:
    try:
        row.clean_fields(exclude={field.name for field in row._meta.fields} - {"aggregation", "unit"})
    except ValidationError as error:
        name = next(iter(error.error_dict))
        raise Invalid(str(error.message_dict[name][0]), pointer=f"/{name}") from None
    _check_dimensions(row.dimensions)
    _check_filters(row.filters, row.dimensions)
    if row.aggregation == Aggregation.UNIQUE and row.unique_by not in row.dimensions:
        raise Invalid("To count different values, name one of the dimensions.", pointer="/unique_by")
    if row.aggregation != Aggregation.UNIQUE and row.unique_by:
        raise Invalid("Only a meter that counts different values names a dimension for it.", pointer="/unique_by")


def _check_dimensions(dimensions: Any) -> None:
    if not isinstance(dimensions, list):
        raise Invalid("Dimensions are a list of names.", pointer="/dimensions")
    if len(dimensions) > MOST_DIMENSIONS:
        raise Invalid(f"A meter has at most {MOST_DIMENSIONS} dimensions.", pointer="/dimensions")
    for position, name in enumerate(dimensions):
        if not isinstance(name, str) or len(name) > 40 or not _NAME.fullmatch(name):
            raise Invalid(_NAMED, pointer=f"/dimensions/{position}")
        if name in dimensions[:position]:
            raise Invalid(f"The dimension '{name}' stands there twice.", pointer=f"/dimensions/{position}")


def _check_filters(filters: Any, dimensions: list[str]) -> None:
    if not isinstance(filters, dict):
        raise Invalid("Filters name a dimension and the values that count.", pointer="/filters")
    for name, values in filters.items():
        pointer = f"/filters/{name}"
        if name not in dimensions:
            raise Invalid(f"'{name}' is none of the meter's dimensions.", pointer=pointer)
        if not isinstance(values, list) or not 1 <= len(values) <= MOST_VALUES:
            raise Invalid(f"A filter names 1 to {MOST_VALUES} values that count.", pointer=pointer)
        for value in values:
            if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_VALUE:
                raise Invalid(f"A value is a text of 1 to {LONGEST_VALUE} characters.", pointer=pointer)
        if len(set(values)) != len(values):
            raise Invalid("A value stands there twice.", pointer=pointer)
