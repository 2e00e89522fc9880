"""Seats or usage: the terms of a license over time, and the one place that opens and undoes one.

A term stores only its start, so no gap or overlap can exist (ADR 0003); one that is undone stays and counts as if it
had never been (ADR 0017). Pricing a change of scheme is billing's.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from django.db import IntegrityError, transaction

from licensing.errors import Invalid, Refused
from licensing.models import License, PlanRevision, Term
from licensing.states import RevisionState, Scheme

# What no undoing puts back: these two only ever rise, so that every copy of the row is known to be older.
NEVER_PUT_BACK = ("revision", "updated_at")


class TermStartsAlready(Refused):
    """A term of this license starts at this very instant already, or later."""

    code = "term_starts_already"


class SchemeUnchanged(Refused):
    """The license has this scheme already."""

    code = "scheme_unchanged"


class NoRevisionWithScheme(Refused):
    """The license's own plan has no published revision with this scheme. Name a plan that has one."""

    code = "no_revision_with_scheme"


def open_term(*, license: License, plan_revision: PlanRevision, starts_at: datetime, reason: str, at: datetime) -> Term:
    """Open a term under the revision's scheme, in the caller's transaction, which holds the license's lock.

    Raises:
        TermStartsAlready: one starts at that instant or later (a license not started, a clock that runs behind):
            the new one would end before it began.
    """
    if Term.objects.in_force().filter(license=license, starts_at__gte=starts_at).exists():
        raise TermStartsAlready()
    try:
        with transaction.atomic():
            return Term.objects.create(
                license=license,
                created_at=at,
                starts_at=starts_at,
                scheme=plan_revision.scheme,
                plan_revision=plan_revision,
                reason=reason,
            )
    except IntegrityError:
        raise TermStartsAlready() from None


def undo_term(*, term: Term, at: datetime) -> None:
    """Take a term out of force, in the caller's transaction, which holds the license's lock: the one before it goes on
    as if this one had never been."""
    Term.objects.filter(pk=term.pk, undone_at=None).update(undone_at=at)


def term_at(*, license: License, at: datetime) -> Term | None:
    """Return the term in force at the instant `at`: the last one that started. None before the first."""
    return Term.objects.in_force().filter(license=license, starts_at__lte=at).order_by("-starts_at").first()


def revision_with(*, license: License, scheme: str, plan_revision: PlanRevision | None = None) -> PlanRevision:
    """Return the revision that a change to `scheme` takes: the one given, else the published one of the license's plan.

    Raises:
        SchemeUnchanged: the license has the scheme, and no revision is given.
        NoRevisionWithScheme: the own plan's published revision has another scheme, or it has none.
        Invalid: the revision given has another scheme.
    """
    if scheme not in Scheme.values:
        raise Invalid(f"A scheme is one of {', '.join(Scheme.values)}.", pointer="/scheme")
    if plan_revision is not None:
        if plan_revision.scheme != scheme:
            raise Invalid(f"This plan's published revision has the scheme {plan_revision.scheme}.", pointer="/plan")
        return plan_revision
    if license.scheme == scheme:
        raise SchemeUnchanged()
    plan = license.plan_revision.plan
    found = PlanRevision.objects.filter(plan=plan, state=RevisionState.PUBLISHED).first()
    if found is None or found.scheme != scheme:
        has = f"has the scheme {found.scheme}" if found else "does not exist"
        raise NoRevisionWithScheme(
            f"The published revision of the plan {plan.code} {has}. Name a plan of this product whose published "
            f"revision has the scheme {scheme}, or publish such a revision of {plan.code}."
        )
    return found


# --- the row of a license, kept so that it can be put back ------------------------------------------


def image(license: License) -> dict[str, str | None]:
    """Return the license's row as JSON can hold it: every column but those that are never put back."""
    return {field.attname: _said(license, field) for field in _fields()}


def put_back(
    license: License, *, before: Mapping[str, Any], after: Mapping[str, Any], but: Collection[str] = ()
) -> list[str]:
    """Set what a change made `after` of the row to what it was `before`; return the columns that were set.

    A column that something else has changed since (a seat was given, the license renewed) stays as that left it.
    The caller holds the row's lock, and saves it.
    """
    now, restored = image(license), []
    for field in _fields():
        name = field.attname
        if name in but or before[name] == after[name] or now[name] != after[name]:
            continue
        setattr(license, name, None if before[name] is None else field.to_python(before[name]))
        restored.append(name)
    return restored


def _said(license: License, field: Any) -> str | None:
    match field.value_from_object(license):
        case None:
            return None
        case datetime() as instant:
            return instant.astimezone(UTC).isoformat()
        case _:
            return str(field.value_to_string(license))


def _fields() -> list[Any]:
    return [field for field in License._meta.concrete_fields if field.name not in NEVER_PUT_BACK]
