"""Seats or usage: the terms of a license over time, and the one place that opens one.

A term stores only its start, so no gap or overlap can exist (ADR 0003). Pricing a change of scheme is billing's.
"""

from datetime import datetime

from django.db import IntegrityError, transaction

from licensing.errors import Refused
from licensing.models import License, PlanRevision, Term


class TermStartsAlready(Refused):
    """A term of this license starts at this very instant already, or later."""

    code = "term_starts_already"


def open_term(*, license: License, plan_revision: PlanRevision, starts_at: datetime, reason: str, at: datetime) -> Term:
    """Open a term under the revision's scheme, in the caller's transaction, which holds the license's lock.

    Raises:
        TermStartsAlready: one starts at that instant or later (a license not started, a clock that runs behind):
            the new one would end before it began.
    """
    if Term.objects.filter(license=license, starts_at__gte=starts_at).exists():
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


def term_at(*, license: License, at: datetime) -> Term | None:
    """Return the term in force at the instant `at`: the last one that started. None before the first."""
    return Term.objects.filter(license=license, starts_at__lte=at).order_by("-starts_at").first()
