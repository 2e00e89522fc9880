"""Reminders before a license ends: 30, 7 and 1 days ahead, each once, also after days in which nothing ran.

What was missed is not made up for by several mails: the customer is told how long is left now. A license whose whole
time is shorter than a stretch is not reminded of it.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, ExpressionWrapper, F, OuterRef, Q, QuerySet, fields
from django.db.models.functions import Coalesce

from licensing import notices
from licensing.models import License, Reminder
from licensing.states import LicenseStatus

DAYS = (1, 7, 30)
DAY = timedelta(days=1)


def due(*, at: datetime, leaving_out: Iterable[UUID] = (), limit: int = 500) -> list[UUID]:
    """Return licenses whose customers are to be reminded now."""
    found: list[UUID] = []
    for days in DAYS:
        rows = _unreminded(days, at).exclude(pk__in=list(leaving_out)).order_by("due_at")
        found += rows.values_list("pk", flat=True)[: limit - len(found)]
    return found


def remind(*, license_id: UUID, at: datetime) -> int:
    """Remind of one license if that is due, and note it in the same transaction; return 1 if so."""
    with transaction.atomic():
        row = (
            License.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
            .select_related("plan_revision")
            .filter(pk=license_id)
            .first()
        )
        days = next((days for days in DAYS if _unreminded(days, at).filter(pk=license_id).exists()), None)
        if row is None or days is None or row.expires_at is None:
            return 0
        Reminder.objects.create(license=row, created_at=at, expires_at=row.expires_at, days=days)
        left = row.expires_at - at
        notices.enqueue(
            template=notices.EXPIRES_SOON,
            license=row,
            at=at,
            days=days,
            left=-(-left // DAY),
            expires_at=row.expires_at.isoformat(),
            trial=row.plan_revision.trial,
        )
    return 1


def lag(*, at: datetime) -> timedelta:
    """Return how long the oldest reminder has been due."""
    oldest = [timedelta()]
    for days in DAYS:
        ends = _unreminded(days, at).order_by("due_at").values_list("due_at", flat=True).first()
        if ends is not None:
            oldest.append(at - (ends - days * DAY))
    return max(oldest)


def _unreminded(days: int, at: datetime) -> QuerySet[License]:
    """Return active licenses that end within so many days, and not within the next shorter stretch, whose customers
    were not told of this one. Active ones end at `due_at`, which has an index."""
    shorter = max((each for each in DAYS if each < days), default=0)
    told: Any = Reminder.objects.filter(license=OuterRef("pk"), expires_at=OuterRef("expires_at"), days=days)
    began: Any = Coalesce(F("first_activated_at"), F("starts_at"))
    return License.objects.filter(
        ~Exists(told),
        Q(expires_at=F("due_at")),
        Q(expires_at__gt=ExpressionWrapper(began + timedelta(days=days), output_field=fields.DateTimeField())),
        due_at__gt=at + shorter * DAY,
        due_at__lte=at + days * DAY,
        swept_status=LicenseStatus.ACTIVE,
        issued_at__isnull=False,
        revoked_at=None,
        starts_at__lte=at,
    )
