"""Live requests compared: how a license in a rollout's shadow was answered, and how the new terms would have.

Web processes tell of validations and usage of plans that a rollout in shadow or canary is to move (`licensing.live`).
In their threads each is decided a second time, by the pure `decide` over the same snapshot with the new terms in place
of its own, and usage is fitted into the new hard allowance, as if the license had been switched when its first request
was heard. It takes no license's lock and changes no license; what differs is counted and listed. Source: ADR 0018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Min, Sum

from billing.metering import Used
from billing.models import LiveComparison, Rollout, RolloutDifference, RolloutMember
from billing.states import DifferenceKind, MemberState, RolloutStage
from licensing import allowances, lifecycle, live, pictures
from licensing.allowances import AllowanceExhausted
from licensing.decision import Scope, Snapshot, decide
from licensing.errors import Invalid
from licensing.gate import SignedClientRequired
from licensing.live import Decided
from licensing.models import CreditGrant, Seat

LISTENING = (RolloutStage.SHADOW, RolloutStage.CANARY)
LISTED = 50  # differences of one license; the others are only counted
_NONE = Decimal()


@dataclass(frozen=True, slots=True)
class Live:
    """How many live requests of a rollout's licenses were compared, by how many licenses and since when; how many
    differed, and how many more there were that there was no room for or that failed to be compared."""

    compared: int
    differed: int
    dropped: int
    licenses: int
    since: str | None


def plans() -> live.Plans:
    """Return the plans, by the codes of product and plan, whose live requests are to be compared."""
    rows = Rollout.objects.filter(stage__in=LISTENING, stopped_at=None)
    return frozenset(rows.values_list("plan__product__code", "plan__code"))


def standing(rollout: Rollout) -> Live:
    """Return what was compared for the rollout."""
    rows = LiveComparison.objects.filter(member__rollout=rollout, compared__gt=0)
    sums = rows.aggregate(compared=Sum("compared"), differed=Sum("differed"), since=Min("since_at"))
    since = sums["since"].isoformat().replace("+00:00", "Z") if sums["since"] else None
    return Live(sums["compared"] or 0, sums["differed"] or 0, rollout.live_dropped, rows.count(), since)


@transaction.atomic
def compare(told: Sequence[live.Told], dropped: Mapping[live.Plan, int]) -> int:
    """Compare what was told of, all of it or, where this raises, nothing; return how much of it was about a license
    that is still to be switched."""
    for (product, plan), count in dropped.items():
        concerned = Rollout.objects.filter(stage__in=LISTENING, plan__code=plan, plan__product__code=product)
        concerned.update(live_dropped=F("live_dropped") + count)
    by_license: dict[UUID, list[Decided | Used]] = {}
    for one in told:
        assert isinstance(one, Decided | Used)
        by_license.setdefault(UUID(one.snapshot.license_id), []).append(one)
    if not by_license:
        return 0
    members = {
        member.pk: member
        for member in RolloutMember.objects.filter(
            license_id__in=by_license,
            state=MemberState.PENDING,
            rollout__stage__in=LISTENING,
            rollout__stopped_at=None,
        ).select_related("rollout__plan_revision__plan", "license__plan_revision")
    }
    if not members:
        return 0
    there = set(LiveComparison.objects.filter(member__in=members).values_list("member_id", flat=True))
    for member in (member for pk, member in members.items() if pk not in there):
        at = min(_instant(one) for one in by_license[member.license_id])
        made = LiveComparison(created_at=at, member=member, since_at=at, last_at=at)
        LiveComparison.objects.bulk_create([made], ignore_conflicts=True)  # another process may be first
    rows = list(LiveComparison.objects.select_for_update().filter(member__in=members).order_by("pk"))
    done, listed = 0, list[RolloutDifference]()
    for row in rows:
        member = members[row.member_id]
        some = by_license[member.license_id]
        try:
            found = _compared(row, member, some)
        except Invalid:  # this change cannot be made at all: the rehearsal says so
            continue
        done += len(some)
        listed += _listed(member, found)
    LiveComparison.objects.bulk_update(rows, ["last_at", "compared", "differed", "used"])
    RolloutDifference.objects.bulk_create(listed, ignore_conflicts=True)
    return done


def _instant(one: Decided | Used) -> datetime:
    return one.at if isinstance(one, Decided) else one.occurred_at


@dataclass(frozen=True, slots=True)
class _Difference:
    subject: str
    before: str
    after: str
    reason: str
    at: datetime


def _compared(row: LiveComparison, member: RolloutMember, some: list[Decided | Used]) -> list[_Difference]:
    """Count what is compared on the row; return what differs. Raises `Invalid`."""
    rollout, license = member.rollout, member.license
    supposed = lifecycle.as_if_under(license=license, plan_revision=rollout.plan_revision, starts_at=row.since_at)
    ceilings = _ceilings(pictures.as_if(some[0].snapshot, supposed, {}), license.pk, _instant(some[-1]))
    found: list[_Difference] = []
    subjects: dict[Scope, str] = {}
    for one in some:
        row.last_at = max(row.last_at, _instant(one))
        if isinstance(one, Used):
            if one.occurred_at < row.since_at:  # of the former term in either case
                continue
            difference = _used(row, one, supposed.grace_until or supposed.expires_at, ceilings)
        else:
            exhausted = _exhausted(row, ceilings, one.at)
            difference = _decided(one, pictures.as_if(one.snapshot, supposed, exhausted), subjects)
        row.compared += 1
        if difference is not None:
            row.differed += 1
            found.append(difference)
    return found


def _decided(one: Decided, snapshot: Snapshot, subjects: dict[Scope, str]) -> _Difference | None:
    verdict = decide(snapshot, one.scope, one.at)
    after, reason = str(verdict.code), verdict.detail
    if one.by_key and snapshot.require_signed_clients:
        after, reason = SignedClientRequired.code, SignedClientRequired().detail
    if after == one.verdict.code:
        return None
    if one.scope not in subjects:
        subjects[one.scope] = _subject(one)
    return _Difference(subjects[one.scope], str(one.verdict.code), after, reason, one.at)


def _subject(one: Decided) -> str:
    """Return who asked what, without saying who it is; few different ones, whatever clients send."""
    scope: Scope = one.scope
    words = "validate"
    if scope.fingerprint_activated and scope.fingerprint:
        words += f" by machine {scope.fingerprint[:12]}"
    elif scope.fingerprint:
        words += " by a machine that is not activated"
    if scope.seat_holder:
        seat = Seat.objects.filter(
            license_id=one.snapshot.license_id, holder=scope.seat_holder, released_at=None
        ).first()
        words += f" by the holder of seat {seat.pk}" if seat else " by somebody without a seat"
    if known := sorted(set(scope.entitlements)):
        words += f" for {', '.join(known)}"
    return words[:200]


def _used(
    row: LiveComparison, one: Used, until: datetime | None, ceilings: Mapping[str, Decimal]
) -> _Difference | None:
    after, reason = "counted", "The new terms would count it."
    ceiling, key = ceilings.get(one.meter), _key(one.meter, one.occurred_at)
    if until is not None and one.occurred_at >= until:
        after, reason = "expired", "The license would have expired."
    elif ceiling is not None:
        used = Decimal(row.used.get(key, "0"))
        if used + one.quantity > ceiling:
            after = AllowanceExhausted.code
            of = f"{allowances.text(used)} of {allowances.text(ceiling)} {one.meter}"
            reason = f"{of} would be used since {row.since_at:%Y-%m-%d %H:%M} UTC, and it does not fit."
        else:
            row.used[key] = str(used + one.quantity)
    if after == one.code:
        return None
    return _Difference(f"usage of {one.meter}", one.code, after, reason, one.occurred_at)


def _key(meter: str, at: datetime) -> str:
    return f"{meter}@{allowances.month_of(at)[0]:%Y-%m}"


def _ceilings(snapshot: Snapshot, license_id: UUID, at: datetime) -> dict[str, Decimal]:
    """Return what the terms let be used of each meter at most in a month, with prepaid credit as it stands."""
    found: dict[str, Decimal] = {}
    hard: set[str] = set()
    for right in snapshot.entitlements.values():
        if right.kind == "allowance":
            found[right.meter] = found.get(right.meter, _NONE) + Decimal(right.amount or 0)
            if right.overage == "refuse":
                hard.add(right.meter)
    for meter in hard:
        grants = CreditGrant.objects.filter(license_id=license_id, meter=meter, starts_at__lte=at)
        grants = grants.exclude(expires_at__lte=at)
        found[meter] += grants.aggregate(left=Sum(F("amount") - F("drawn")))["left"] or _NONE
    return {meter: ceiling for meter, ceiling in found.items() if meter in hard}


def _exhausted(row: LiveComparison, ceilings: Mapping[str, Decimal], at: datetime) -> dict[str, datetime]:
    end = allowances.month_of(at)[1]
    return {meter: end for meter, ceiling in ceilings.items() if Decimal(row.used.get(_key(meter, at), "0")) >= ceiling}


def _listed(member: RolloutMember, found: list[_Difference]) -> list[RolloutDifference]:
    """Return the differences as rows: each that is not listed yet, and not more than a license may have."""
    if not found:
        return []
    known = set(
        RolloutDifference.objects.filter(
            rollout_id=member.rollout_id, license_id=member.license_id, kind=DifferenceKind.LIVE
        ).values_list("subject", "before", "after")
    )
    rows: list[Any] = []
    for (subject, before, after), same in groupby(
        sorted(found, key=lambda one: (one.subject, one.before, one.after)),
        key=lambda one: (one.subject, one.before, one.after),
    ):
        if (subject, before, after) in known or len(known) >= LISTED:
            continue
        known.add((subject, before, after))
        first = next(same)
        rows.append(
            RolloutDifference(
                created_at=first.at,
                rollout_id=member.rollout_id,
                license_id=member.license_id,
                kind=DifferenceKind.LIVE,
                subject=subject,
                before=before,
                after=after,
                reason=first.reason,
            )
        )
    return rows
