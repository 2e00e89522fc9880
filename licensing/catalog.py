"""What is sold: products, plans, and plan revisions from draft to published to retired.

A published revision never changes; a change of terms is a new revision. `diff` says in words what is different
between two. It does not move licenses: that is `lifecycle.change_plan`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction

from licensing import audit
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import Entitlement, Plan, PlanRevision, Product, Release
from licensing.states import (
    REVISION_TRANSITIONS,
    EntitlementKind,
    RevisionState,
    Scheme,
    ValidityBasis,
)

TERMS = (
    "scheme",
    "trial",
    "seat_kind",
    "seat_limit",
    "seat_required",
    "seat_churn_limit",
    "activation_limit",
    "activation_required",
    "activation_churn_limit",
    "fingerprint_scope",
    "churn_window",
    "activation_dead_after",
    "validity_basis",
    "duration",
    "fixed_expires_at",
    "renewal_basis",
    "grace_period",
    "maintenance",
    "require_signed_clients",
    "outage_policy",
    "outage_tolerance",
    "lease_duration",
    "offline_period",
)

_SPANS = (
    "duration",
    "grace_period",
    "maintenance",
    "churn_window",
    "activation_dead_after",
    "outage_tolerance",
    "lease_duration",
    "offline_period",
)
_MAY_BE_NOTHING = ("grace_period", "outage_tolerance", "offline_period")

LONGEST = timedelta(days=36_525)
MOST = 2_000_000_000


class RevisionIsPublished(Refused):
    """A published plan revision never changes. Make a new revision."""

    code = "revision_is_published"


class RevisionIsIncomplete(Refused):
    """This draft cannot be published as it is."""

    code = "revision_is_incomplete"


class CodeTaken(Refused):
    """This code is taken."""

    code = "code_taken"


@dataclass(frozen=True, slots=True)
class Grant:
    """One entitlement as it is asked for: on/off, a fixed value, or a metered allowance."""

    key: str
    kind: str = EntitlementKind.FLAG
    value: str = ""
    meter: str = ""
    amount: Decimal | None = None
    overage: str = "refuse"


@dataclass(frozen=True, slots=True)
class Difference:
    """One term that is different between two revisions, as a person reads it."""

    term: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.term}: {self.before} → {self.after}"


def create_product(*, code: str, name: str, by: Actor, at: datetime, description: str = "") -> Product:
    """Make a product. Raises `CodeTaken`."""
    product = Product(created_at=at, code=code, name=name, description=description)
    return _create(product, "product.created", {"code": code, "name": name}, by, at)


def create_plan(*, product: Product, code: str, name: str, by: Actor, at: datetime, description: str = "") -> Plan:
    """Make a plan, without a revision yet. Raises `CodeTaken` when the product has that code."""
    plan = Plan(created_at=at, product=product, code=code, name=name, description=description)
    return _create(plan, "plan.created", {"code": code, "name": name, "product": product.code}, by, at)


def describe(*, row: Product | Plan, name: str, description: str, by: Actor, at: datetime) -> None:
    """Change how a product or plan is called; its code and terms stay."""
    with transaction.atomic():
        locked = type(row).objects.select_for_update(no_key=True).get(pk=row.pk)
        before = {"name": locked.name, "description": locked.description}
        after = {"name": name, "description": description}
        old, new = audit.differences(before, after)
        if not new:
            return
        locked.name, locked.description = name, description
        locked.save()
        audit.record(action=f"{locked._meta.model_name}.described", by=by, on=locked, at=at, before=old, after=new)


def add_release(*, product: Product, version: str, released_at: datetime, by: Actor, at: datetime) -> Release:
    """Record when a version came out, for maintenance windows. Raises `CodeTaken` for a known version."""
    release = Release(created_at=at, product=product, version=version, released_at=released_at)
    return _create(release, "release.added", {"version": version, "released_at": released_at}, by, at)


def draft(
    *,
    plan: Plan,
    by: Actor,
    at: datetime,
    grants: Iterable[Grant] | None = None,
    **terms: Any,
) -> PlanRevision:
    """Make the plan's next draft: the newest revision's terms with `terms` and `grants` in their place.

    Raises:
        Invalid: a term that does not exist or contradicts another.
    """
    unknown = set(terms) - set(TERMS)
    if unknown:
        raise Invalid(f"There is no term '{sorted(unknown)[0]}'.", pointer=f"/{sorted(unknown)[0]}")
    with transaction.atomic():
        Plan.objects.select_for_update(no_key=True).get(pk=plan.pk)
        newest = PlanRevision.objects.filter(plan=plan).order_by("-number").first()
        if newest is not None:
            terms = {name: getattr(newest, name) for name in TERMS} | terms
            if grants is None:
                grants = [_grant(entitlement) for entitlement in newest.entitlements.all()]
        revision = PlanRevision(created_at=at, plan=plan, number=newest.number + 1 if newest else 1, **terms)
        _contradictions(revision)
        revision.save(force_insert=True)
        _grant_all(revision, list(grants or []), at)
        audit.record(
            action="plan_revision.drafted",
            by=by,
            on=revision,
            at=at,
            after={"plan": plan.code, "number": revision.number, **_stated(revision)},
        )
    return revision


def edit(
    *,
    revision: PlanRevision,
    by: Actor,
    at: datetime,
    grants: Iterable[Grant] | None = None,
    **terms: Any,
) -> PlanRevision:
    """Change a draft's terms, and its entitlements when given.

    Raises:
        RevisionIsPublished: it is no draft any more.
        Invalid: a term that does not exist or contradicts another.
    """
    with transaction.atomic():
        row = PlanRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
        if row.state != RevisionState.DRAFT:
            raise RevisionIsPublished()
        before = _stated(row)
        for name, value in terms.items():
            if name not in TERMS:
                raise Invalid(f"There is no term '{name}'.", pointer=f"/{name}")
            setattr(row, name, value)
        _contradictions(row)
        row.save()
        if grants is not None:
            row.entitlements.all().delete()
            _grant_all(row, list(grants), at)
        old, new = audit.differences(before, _stated(row))
        audit.record(action="plan_revision.edited", by=by, on=row, at=at, before=old, after=new)
    return row


def publish(*, revision: PlanRevision, by: Actor, at: datetime, reason: str = "") -> PlanRevision:
    """Offer a draft for sale, retiring what was offered before. Licenses keep the revision they have.

    Raises:
        RevisionIsPublished: it is no draft.
        RevisionIsIncomplete: it grants nothing that its scheme could limit or count.
    """
    with transaction.atomic():
        Plan.objects.select_for_update(no_key=True).get(pk=revision.plan_id)
        row = PlanRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
        if RevisionState.PUBLISHED not in REVISION_TRANSITIONS[RevisionState(row.state)]:
            raise RevisionIsPublished()
        metered = row.entitlements.filter(kind=EntitlementKind.ALLOWANCE).exists()
        if row.scheme != Scheme.SEATS and not metered:
            raise RevisionIsIncomplete("A usage scheme needs at least one metered allowance.")
        for earlier in PlanRevision.objects.select_for_update(no_key=True).filter(
            plan_id=row.plan_id, state=RevisionState.PUBLISHED
        ):
            _retire(earlier, by, at, f"Followed by revision {row.number}.")
        row.state, row.published_at = RevisionState.PUBLISHED, at
        row.save()
        audit.record(
            action="plan_revision.published",
            by=by,
            on=row,
            at=at,
            before={"state": RevisionState.DRAFT},
            after={"state": RevisionState.PUBLISHED, "number": row.number},
            reason=reason,
        )
    return row


def retire(*, revision: PlanRevision, by: Actor, at: datetime, reason: str = "") -> PlanRevision:
    """Take a published revision off sale. Licenses pinned to it go on. Raises `Refused` when not published."""
    with transaction.atomic():
        row = PlanRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
        if RevisionState.RETIRED not in REVISION_TRANSITIONS[RevisionState(row.state)]:
            raise Refused(f"A {row.state} revision cannot be retired.")
        return _retire(row, by, at, reason)


def _retire(row: PlanRevision, by: Actor, at: datetime, reason: str) -> PlanRevision:
    row.state, row.retired_at = RevisionState.RETIRED, at
    row.save()
    audit.record(
        action="plan_revision.retired",
        by=by,
        on=row,
        at=at,
        before={"state": RevisionState.PUBLISHED},
        after={"state": RevisionState.RETIRED},
        reason=reason,
    )
    return row


def discard(*, revision: PlanRevision, by: Actor, at: datetime) -> None:
    """Delete a draft that was never published. Raises `RevisionIsPublished`."""
    with transaction.atomic():
        row = PlanRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
        if row.state != RevisionState.DRAFT:
            raise RevisionIsPublished()
        audit.record(
            action="plan_revision.discarded",
            by=by,
            on=row,
            at=at,
            before={"number": row.number, **_stated(row)},
        )
        row.delete()


def diff(before: PlanRevision, after: PlanRevision) -> list[Difference]:
    """Return what is different in `after`, term by term, in words a person reads."""
    found = [
        Difference(_label(name), _said(before, name), _said(after, name))
        for name in TERMS
        if getattr(before, name) != getattr(after, name)
    ]
    old = {entitlement.key: _promise(entitlement) for entitlement in before.entitlements.all()}
    new = {entitlement.key: _promise(entitlement) for entitlement in after.entitlements.all()}
    found += [
        Difference(f"entitlement {key}", old.get(key, "none"), new.get(key, "none"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return found


def _create(row: Any, action: str, after: dict[str, Any], by: Actor, at: datetime) -> Any:
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            audit.record(action=action, by=by, on=row, at=at, after=after)
    except IntegrityError:
        raise CodeTaken(f"There is a {row._meta.verbose_name} with this code or version already.") from None
    return row


def _clean(row: PlanRevision | Entitlement, names: Iterable[str], pointer: str = "") -> None:
    """Raise `Invalid` for the first of the named fields whose value the field itself cannot take."""
    names = list(names)
    try:
        row.clean_fields(exclude={field.name for field in row._meta.fields} - set(names))
    except ValidationError as error:
        name = next(name for name in names if name in error.error_dict)
        raise Invalid(str(error.message_dict[name][0]), pointer=f"{pointer}/{name}") from None


def _contradictions(row: PlanRevision) -> None:
    _clean(row, TERMS)
    for name in ("seat_limit", "activation_limit", "seat_churn_limit", "activation_churn_limit"):
        if (getattr(row, name) or 0) > MOST:
            raise Invalid(f"A limit is at most {MOST}.", pointer=f"/{name}")
    if row.validity_basis == ValidityBasis.FIXED_DATE and row.fixed_expires_at is None:
        raise Invalid("Validity until a fixed date needs that date.", pointer="/fixed_expires_at")
    if row.validity_basis == ValidityBasis.FROM_FIRST_ACTIVATION and row.duration is None:
        raise Invalid("Validity from the first activation needs a duration.", pointer="/duration")
    if row.validity_basis != ValidityBasis.FIXED_DATE and row.fixed_expires_at is not None:
        raise Invalid("A fixed date goes with validity until a fixed date.", pointer="/fixed_expires_at")
    for name in _SPANS:
        value = getattr(row, name)
        if value is not None and (value < timedelta() or (value == timedelta() and name not in _MAY_BE_NOTHING)):
            raise Invalid("A time span is longer than nothing.", pointer=f"/{name}")
        if value is not None and value > LONGEST:
            raise Invalid("A time span is at most a hundred years.", pointer=f"/{name}")
    if (row.seat_churn_limit is not None or row.activation_churn_limit is not None) and row.churn_window is None:
        raise Invalid("A churn limit needs the window it counts in.", pointer="/churn_window")


def _grant_all(revision: PlanRevision, grants: list[Grant], at: datetime) -> None:
    seen: set[str] = set()
    for position, grant in enumerate(grants):
        pointer = f"/entitlements/{position}"
        if grant.key in seen:
            raise Invalid(f"The entitlement '{grant.key}' stands there twice.", pointer=f"{pointer}/key")
        seen.add(grant.key)
        entitlement = Entitlement(
            created_at=at,
            plan_revision=revision,
            key=grant.key,
            kind=grant.kind,
            value=grant.value,
            meter=grant.meter,
            amount=grant.amount,
            overage=grant.overage,
        )
        _clean(entitlement, ("key", "kind", "value", "meter", "amount", "overage"), pointer)
        if grant.kind == EntitlementKind.VALUE and not grant.value:
            raise Invalid("A fixed value needs its value.", pointer=f"{pointer}/value")
        if grant.kind == EntitlementKind.ALLOWANCE and (not grant.meter or grant.amount is None or grant.amount < 0):
            raise Invalid("An allowance needs a meter and an amount of 0 or more.", pointer=f"{pointer}/amount")
        if grant.kind != EntitlementKind.VALUE and grant.value:
            raise Invalid("Only a fixed value has a value.", pointer=f"{pointer}/value")
        if grant.kind != EntitlementKind.ALLOWANCE and (grant.meter or grant.amount is not None):
            raise Invalid("Only an allowance has a meter and an amount.", pointer=f"{pointer}/meter")
        entitlement.save(force_insert=True)


def _grant(entitlement: Entitlement) -> Grant:
    return Grant(
        key=entitlement.key,
        kind=entitlement.kind,
        value=entitlement.value,
        meter=entitlement.meter,
        amount=entitlement.amount,
        overage=entitlement.overage,
    )


def _stated(row: PlanRevision) -> dict[str, Any]:
    entitlements = {entitlement.key: _promise(entitlement) for entitlement in row.entitlements.all()}
    return {**{name: getattr(row, name) for name in TERMS}, "entitlements": entitlements}


def _promise(entitlement: Entitlement) -> str:
    match entitlement.kind:
        case EntitlementKind.FLAG:
            return "on"
        case EntitlementKind.VALUE:
            return entitlement.value
        case _:
            amount = f"{entitlement.amount:f}".rstrip("0").rstrip(".") if entitlement.amount else "0"
            beyond = "more is charged" if entitlement.overage == "charge" else "more is refused"
            return f"{amount} {entitlement.meter} per period, {beyond}"


_NONE = {"duration": "perpetual", "maintenance": "all versions", "activation_dead_after": "never"}


def _label(name: str) -> str:
    return name.replace("_", " ")


def _said(row: PlanRevision, name: str) -> str:
    value = getattr(row, name)
    field = row._meta.get_field(name)
    match value:
        case None:
            return "no limit" if name.endswith("_limit") else _NONE.get(name, "none")
        case bool():
            return "yes" if value else "no"
        case timedelta():
            return f"{value.days} days" if not value.seconds else str(value)
        case datetime():
            return f"{value:%Y-%m-%d %H:%M} UTC"
        case _ if isinstance(field, models.CharField) and field.choices:
            return str(getattr(row, f"get_{name}_display")())
        case _:
            return str(value)
