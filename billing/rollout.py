"""Rollout: move a cohort of licenses to another plan revision, in steps that can be stopped, resumed and taken back.

prepare -> rehearse -> shadow -> canary n % -> all -> verify -> final; roll back from anywhere before final. A step is
asked for by a short transaction and then carried out license by license, each in a transaction of its own that holds
the license's lock and looks at the member's row first: so running a step twice, or in two processes, does nothing
twice, and a process killed anywhere leaves whole licenses behind. `run` goes on with whatever step is under way.

Nothing is deleted: a roll back undoes each change (`lifecycle.undo_change`), which restores the license's row but for
`schemes.NEVER_PUT_BACK`, and keeps every event. Source: docs/schemes.md, ADR 0018.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from billing import changes, rollups, shadow, statements, words
from billing.models import PriceRevision, Rollout, RolloutDifference, RolloutMember, Statement, StatementLine
from billing.states import ROLLOUT_TRANSITIONS, DifferenceKind, MemberState, RolloutStage
from licensing import audit, lifecycle, pictures, proofs, schemes, seats, snapshots
from licensing.audit import Actor
from licensing.decision import Scope, Verdict, decide
from licensing.errors import Invalid, LicensingError, Missing, Refused, Unavailable
from licensing.models import (
    AuditEntry,
    Counter,
    Entitlement,
    Lease,
    License,
    Plan,
    PlanRevision,
    SchemeChange,
    Seat,
    Term,
)
from licensing.pictures import Question
from licensing.snapshots import Found
from licensing.states import EntitlementKind, Overage, RevisionState, Scheme, SeatKind

BATCH = 500
# With one of these a license would be worse off than before: nothing is switched until each is mended or accepted.
BLOCKING = frozenset({"refused", "terms_altered", "no_price", "already_in_a_rollout"})
# What else gives a license limits of its own.
SETS_LIMITS = ("license.plan_changed", "license.limits_changed", "license.terms_accepted", "license.change_undone")
OPEN = (MemberState.PENDING, MemberState.SWITCHED)
Clock = Callable[[], datetime]


class NotNow(Refused):
    """This step does not follow from where the rollout stands."""

    code = "rollout_step_not_allowed"


class FindingsOpen(Refused):
    """The rehearsal found what speaks against switching."""

    code = "rollout_findings_open"


class Stopped(Refused):
    """The rollout is stopped. Resume it first."""

    code = "rollout_stopped"


class CodeTaken(Refused):
    """A rollout of this code exists."""

    code = "rollout_code_taken"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the step under way is, in licenses."""

    step: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a rollout stands: members by state, findings and differences by what they are, live requests compared."""

    code: str
    stage: str
    percent: int
    stopped: bool
    members: dict[str, int]
    left: int
    findings: dict[str, int]
    differences: dict[str, int]
    live: shadow.Live


# --- steps: each asks for work, `run` does it -------------------------------------------------------


def prepare(*, code: str, plan: Plan, plan_revision: PlanRevision, reason: str, by: Actor, at: datetime) -> Rollout:
    """Begin a rollout of a plan's licenses to a published revision, of that plan or another of the product.

    Raises:
        Invalid: a code that is no word for a command line, no reason, a revision of another product, or one that every
            license of the plan is under already.
        lifecycle.NotPublished, CodeTaken
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", code):
        raise Invalid("A rollout's name has up to 64 letters, digits, - and _, e.g. autumn-2026.", pointer="/code")
    if not reason.strip():
        raise Invalid("Say why: the reason is kept with every license that moves.", pointer="/reason")
    if plan_revision.state != RevisionState.PUBLISHED:
        raise lifecycle.NotPublished(f"Revision {plan_revision.number} of this plan is {plan_revision.state}.")
    if plan_revision.plan.product_id != plan.product_id:
        raise Invalid("The revision is of another product. A license keeps its product.", pointer="/plan_revision")
    if plan_revision.plan_id == plan.pk and not _movable(plan, plan_revision).exists():
        raise Invalid(
            f"This is a rollout of the plan to itself: no license of {plan} is under another revision than"
            f" {plan_revision.number}. Name another plan, or publish another revision first.",
            pointer="/plan_revision",
        )
    with transaction.atomic():
        if Rollout.objects.filter(code=code).exists():
            raise CodeTaken()
        made = Rollout.objects.create(created_at=at, code=code, plan=plan, plan_revision=plan_revision, reason=reason)
        audit.record(
            action="rollout.prepared",
            by=by,
            on=made,
            at=at,
            after={"code": code, "plan": plan.pk, "plan_revision": plan_revision.pk},
            reason=reason,
        )
    return made


def _movable(plan: Plan, plan_revision: PlanRevision) -> QuerySet[License]:
    rows = License.objects.filter(plan_revision__plan=plan, issued_at__isnull=False, revoked_at=None)
    return rows.exclude(plan_revision=plan_revision)


def ask(
    *, rollout: Rollout, stage: RolloutStage, by: Actor, at: datetime, percent: int = 0, accept: bool = False
) -> Rollout:
    """Ask for a stage; `run` carries it out. Asking for the one that stands, or for a way back that is
    done, changes nothing.

    Raises:
        NotNow: it does not follow from the stage that stands, or that one's work is not done.
        FindingsOpen: the rehearsal found what blocks, and it is not accepted.
        Invalid: a canary's percentage is not between 1 and 99, or below what is switched already.
    """
    with transaction.atomic():
        row = Rollout.objects.select_for_update(no_key=True).get(pk=rollout.pk)
        percent = {RolloutStage.CANARY: percent, RolloutStage.ALL: 100}.get(stage, row.percent)
        if row.stage == stage and row.percent == percent:
            return row
        if stage == RolloutStage.ROLLING_BACK and row.stage == RolloutStage.ROLLED_BACK:  # it is done
            return row
        if stage not in ROLLOUT_TRANSITIONS[RolloutStage(row.stage)]:
            raise NotNow(f"From {row.stage} a rollout cannot go to {stage}.")
        if stage != RolloutStage.ROLLING_BACK and (left := _left(row)):
            raise NotNow(f"The step {row.stage} has {left} licenses left. Run it to its end first.")
        if stage in (RolloutStage.CANARY, RolloutStage.ALL):
            if stage == RolloutStage.CANARY and not max(row.percent, 1) <= percent <= 99:
                raise Invalid("A canary is 1 to 99 percent, and never less than before.", pointer="/percent")
            if (blocked := _blocked(row)) and not accept:
                raise FindingsOpen(f"{blocked} licenses have findings that block. Mend them and rehearse, or accept.")
        before = {"stage": row.stage, "percent": row.percent}
        row.stage, row.percent = stage, percent
        if stage in (RolloutStage.FINAL, RolloutStage.ROLLED_BACK):
            row.ended_at = at
        row.save()
        audit.record(
            action=f"rollout.{stage}", by=by, on=row, at=at, before=before, after={"stage": stage, "percent": percent}
        )
    return row


def stop(*, rollout: Rollout, by: Actor, at: datetime) -> Rollout:
    """Let no license be touched from now on, whichever process is at it, until `resume`."""
    return _set_stopped(rollout, at, "rollout.stopped", by, at)


def resume(*, rollout: Rollout, by: Actor, at: datetime) -> Rollout:
    """Let a stopped rollout go on; `run` does."""
    return _set_stopped(rollout, None, "rollout.resumed", by, at)


def look_again(*, rollout: Rollout, by: Actor, at: datetime) -> int:
    """Let the stage that stands be looked at anew for every license; return for how many. Only looking can be repeated.

    Raises `NotNow`.
    """
    looked = {
        RolloutStage.REHEARSED: ("rehearsed_at", MemberState.PENDING),
        RolloutStage.SHADOW: ("shadowed_at", MemberState.PENDING),
        RolloutStage.VERIFIED: ("verified_at", MemberState.SWITCHED),
    }.get(RolloutStage(rollout.stage))
    if looked is None:
        raise NotNow("Only rehearse, shadow and verify look, and can look again.")
    with transaction.atomic():
        again = rollout.members.filter(state=looked[1]).update(**{looked[0]: None})
        audit.record(action="rollout.looked_again", by=by, on=rollout, at=at, after={"members": again})
    return again


def run(*, rollout: Rollout, by: Actor, clock: Clock) -> Iterator[Progress]:
    """Carry out what is left of the stage that stands, yielding after each license. Safe to be killed anywhere, to be
    run again, and to be run by several processes at once.

    `clock` is read once a license: the new term starts at that instant. Raises `Stopped`.
    """
    row = Rollout.objects.get(pk=rollout.pk)
    if row.enlisted_at is None:
        yield from _enlist(row, by, clock)
        row.refresh_from_db()
    act = {
        RolloutStage.PREPARED: None,
        RolloutStage.REHEARSED: _rehearse,
        RolloutStage.SHADOW: _shadow,
        RolloutStage.CANARY: _switch,
        RolloutStage.ALL: _switch,
        RolloutStage.VERIFIED: _verify,
        RolloutStage.FINAL: _finish,
        RolloutStage.ROLLING_BACK: _put_back,
        RolloutStage.ROLLED_BACK: None,
    }[RolloutStage(row.stage)]
    if act is None:
        return
    total, watermark = _left(row), UUID(int=0)
    done = 0
    while True:
        batch = list(
            _waiting(row)
            .filter(license_id__gt=watermark)
            .order_by("license_id")
            .values_list("pk", "license_id")[:BATCH]
        )
        for member_id, license_id in batch:
            if Rollout.objects.filter(pk=row.pk).exclude(stopped_at=None).exists():
                raise Stopped()
            act(row, member_id, license_id, by, clock())
            done, watermark = done + 1, license_id
            yield Progress(row.stage, done, max(total, done))
        if not batch:
            break
    if row.stage == RolloutStage.ROLLING_BACK and not _left(row):
        ask(rollout=row, stage=RolloutStage.ROLLED_BACK, by=by, at=clock())


def standing(rollout: Rollout) -> Standing:
    """Return how the rollout stands."""
    row = Rollout.objects.get(pk=rollout.pk)
    findings: dict[str, int] = {}
    for found in row.members.exclude(findings=[]).values_list("findings", flat=True):
        for finding in found:
            findings[finding["code"]] = findings.get(finding["code"], 0) + 1
    return Standing(
        code=row.code,
        stage=row.stage,
        percent=row.percent,
        stopped=row.stopped_at is not None,
        members=dict(row.members.order_by().values_list("state").annotate(number=Count("pk"))),
        left=_left(row),
        findings=findings,
        differences=dict(row.differences.order_by().values_list("kind").annotate(number=Count("pk"))),
        live=shadow.standing(row),
    )


def find(code: str) -> Rollout:
    """Return the rollout of this code. Raises `Missing`."""
    found = Rollout.objects.filter(code=code).first()
    if found is None:
        raise Missing(f"There is no rollout {code}.")
    return found


def holds_open(statement: Statement) -> bool:
    """Return whether the statement covers a license that a rollout which is not final has switched: it stays a draft,
    for the change may be taken back."""
    billed = StatementLine.objects.filter(statement=statement, license=OuterRef("license_id"))
    return RolloutMember.objects.filter(
        Q(license__customer_id=statement.customer_id) | Exists(billed),
        state=MemberState.SWITCHED,
        change__term__starts_at__lt=statement.ends_at,
    ).exists()


# --- one license at a time ---------------------------------------------------------------------------


def _enlist(row: Rollout, by: Actor, clock: Clock) -> Iterator[Progress]:
    """Write down whom the rollout is about, in the order of ids; a killed one goes on after the last written."""
    open_elsewhere = RolloutMember.objects.filter(license=OuterRef("pk"), state__in=OPEN)
    licenses = _movable(row.plan, row.plan_revision)
    total = licenses.count()
    while True:
        with transaction.atomic():
            kept = Rollout.objects.select_for_update(no_key=True).get(pk=row.pk)
            if kept.enlisted_at is not None:
                return
            last = kept.members.order_by("-license_id").values_list("license_id", flat=True).first() or UUID(int=0)
            batch = list(
                licenses.filter(pk__gt=last)
                .annotate(taken=Exists(open_elsewhere))
                .order_by("pk")
                .values_list("pk", "taken")[:BATCH]
            )
            at = clock()
            RolloutMember.objects.bulk_create(
                RolloutMember(
                    created_at=at,
                    rollout=kept,
                    license_id=license_id,
                    place=_place(kept.pk, license_id),
                    state=MemberState.SKIPPED if taken else MemberState.PENDING,
                    findings=[_finding("already_in_a_rollout", "Another open rollout has it.")] if taken else [],
                )
                for license_id, taken in batch
            )
            if not batch:
                kept.enlisted_at = at
                kept.save()
                number = kept.members.count()
                audit.record(action="rollout.enlisted", by=by, on=kept, at=at, after={"members": number})
                return
            done = kept.members.count()
        yield Progress("enlist", done, max(total, done))


def _rehearse(row: Rollout, member_id: UUID, license_id: UUID, by: Actor, at: datetime) -> None:
    """Make the whole change and take it back in one transaction; keep what was found."""
    found, license = [], License.objects.select_related("plan_revision__plan").get(pk=license_id)
    try:
        shown = changes.preview(license=license, plan_revision=row.plan_revision, by=by, at=at)
    except LicensingError as error:
        found.append(_refused(error))
    else:
        found += _findings(row, license, shown, at)
    with transaction.atomic():
        member = _locked_member(member_id, license_id)
        if member.state == MemberState.PENDING:
            member.findings, member.rehearsed_at = found, at
            member.save()


def _shadow(row: Rollout, member_id: UUID, license_id: UUID, by: Actor, at: datetime) -> None:
    """Rate and decide both ways; keep what would be different, and why."""
    license = License.objects.select_related("plan_revision__plan").get(pk=license_id)
    questions = _questions(license)
    differences: list[tuple[str, str, str, str, str]] = []
    try:
        with transaction.atomic():
            before = _verdicts(license, questions, at)
            shown = changes.preview(license=license, plan_revision=row.plan_revision, by=by, at=at)
            lifecycle.change_plan(license=license, plan_revision=row.plan_revision, by=by, at=at)
            after = _verdicts(license, questions, at)
            transaction.set_rollback(True)
    except LicensingError as error:
        differences.append((DifferenceKind.DECISION, "change", "allowed", error.code, error.detail))
    else:
        for name, old in before.items():
            if old.code != after[name].code:
                differences.append((DifferenceKind.DECISION, name, old.code, after[name].code, after[name].detail))
        differences += [
            (
                DifferenceKind.LIMIT,
                limit.name,
                words.limit(limit.name, limit.before),
                words.limit(limit.name, limit.after),
                "The plan revisions differ in it.",
            )
            for limit in shown.limits
            if limit.before != limit.after
        ]
        differences += _of_money(shown)
    with transaction.atomic():
        member = _locked_member(member_id, license_id)
        if member.state != MemberState.PENDING:
            return
        for kind, subject, old_value, new_value, reason in differences:
            RolloutDifference.objects.get_or_create(
                rollout=row,
                license_id=license_id,
                kind=kind,
                subject=subject[:200],
                before=old_value[:300],
                after=new_value[:300],
                defaults={"created_at": at, "reason": reason},
            )
        member.shadowed_at = at
        member.save()


def _switch(row: Rollout, member_id: UUID, license_id: UUID, by: Actor, at: datetime) -> None:
    try:
        with transaction.atomic():
            member = _locked_member(member_id, license_id)
            # Read behind the lock: a roll back that began meanwhile has said so before it looked at any license.
            if member.state != MemberState.PENDING or not _still(row, RolloutStage.CANARY, RolloutStage.ALL):
                return
            member.change = changes.change(
                license=member.license, plan_revision=row.plan_revision, by=by, at=at, reason=row.reason
            )
            member.state, member.settled_at = MemberState.SWITCHED, at
            member.save()
    except (Refused, Invalid, proofs.TermsAltered) as error:
        with transaction.atomic():
            member = _locked_member(member_id, license_id)
            if member.state == MemberState.PENDING:
                member.findings = [*member.findings, _refused(error)]
                member.state, member.settled_at = MemberState.SKIPPED, at
                member.save()


def _put_back(row: Rollout, member_id: UUID, license_id: UUID, by: Actor, at: datetime) -> None:
    with transaction.atomic():
        member = _locked_member(member_id, license_id)
        if member.state not in OPEN:
            return
        if member.state == MemberState.SWITCHED and member.change is not None:
            try:
                with transaction.atomic():
                    lifecycle.undo_change(change=member.change, by=by, at=at, reason=f"rolled back: {row.code}")
            except (lifecycle.ChangedSince, lifecycle.ChangeNotInForce) as error:
                # Somebody changed the license by itself since, or undid this: that stands.
                member.findings = [*member.findings, _finding(error.code, error.detail)]
            except (Refused, proofs.TermsAltered) as error:
                # It cannot be taken back now. The others go on; this one is left, and tried again by the next run.
                found = _refused(error) if isinstance(error, Unavailable) else _finding(error.code, error.detail)
                if found not in member.findings:
                    member.findings = [*member.findings, found]
                    member.save()
                return
        member.state, member.settled_at = MemberState.REVERTED, at
        member.save()


def _verify(row: Rollout, member_id: UUID, license_id: UUID, by: Actor, at: datetime) -> None:
    """Look whether everything about a switched license fits together; what does not is a finding."""
    with transaction.atomic():
        member = _locked_member(member_id, license_id)
        wrong = [_finding("broken", text) for text in broken(member, at)]
        member.findings = [found for found in member.findings if found["code"] != "broken"] + wrong
        member.verified_at = None if wrong else at
        member.save()


def _finish(row: Rollout, member_id: UUID, license_id: UUID, by: Actor, at: datetime) -> None:
    with transaction.atomic():
        member = _locked_member(member_id, license_id)
        if member.state == MemberState.SWITCHED:
            member.state, member.settled_at = MemberState.FINAL, at
            member.save()


def broken(member: RolloutMember, at: datetime) -> list[str]:
    """Return which of the invariants of a switched license do not hold; the caller holds its lock."""
    found, license, change = [], License.objects.get(pk=member.license_id), member.change
    if change is None or change.term is None:
        return ["It was never switched."]
    term = schemes.term_at(license=license, at=at)
    if term is None or (term.scheme, term.plan_revision_id) != (license.scheme, license.plan_revision_id):
        found.append("The license does not run under the term in force.")
    if not Term.objects.in_force().filter(license=license, pk=change.term.pk).exists():
        found.append("The term of the change is not in force.")
    if not proofs.stand(license):
        found.append("The terms do not fit their proof.")
    if license.seats_used != (live := _taken(license)):
        found.append(f"{license.seats_used} seats are counted, {live} are taken.")
    machines = license.activations.filter(deactivated_at=None).count()
    if license.activations_used != machines:
        found.append(f"{license.activations_used} machines are counted, {machines} are active.")
    found += _decided_otherwise(license, change, at)
    # Locked, so that what is counted meanwhile is on both sides or on neither.
    for counter in Counter.objects.select_for_update(no_key=True).filter(license=license, ends_at__gt=change.starts_at):
        totals = rollups.totals(
            license_id=license.pk, starts_at=counter.starts_at, ends_at=counter.ends_at, meter=counter.meter
        )
        counted = sum((total.quantity for total in totals), start=counter.used * 0)
        if counted != counter.used:
            found.append(f"The counter of {counter.meter} says {counter.used}, the events {counted}.")
    period = statements.month_of(at)
    kept = Term.objects.in_force().filter(license=license).select_related("plan_revision").order_by("starts_at")
    # Once from what is stored, once from what was asked for: the terms before, and the rollout's from the switch on.
    asked = [(each.starts_at, each.scheme, each.plan_revision) for each in kept if each.starts_at < change.starts_at]
    asked.append((change.starts_at, change.plan_revision.scheme, change.plan_revision))
    asked += [(each.starts_at, each.scheme, each.plan_revision) for each in kept if each.starts_at > change.starts_at]
    stored, supposed = (
        changes.sum_of(
            statements.rated(
                license=license, starts_at=period.starts_at, ends_at=period.ends_at, at=at, terms=terms_given
            )
        )
        for terms_given in (None, asked)
    )
    if [line.amount_minor for line in stored.lines] != [line.amount_minor for line in supposed.lines]:
        found.append(f"Rated as stored it owes {stored.total_minor}, rated as asked for {supposed.total_minor}.")
    return found


def _decided_otherwise(license: License, change: SchemeChange, at: datetime) -> list[str]:
    """Return what is asked about the license and answered other than by the terms it was to be put under. Where a later
    act gave it other limits or another expiry, these count."""
    if not proofs.stand(license) or license.plan_revision_id != change.plan_revision_id or change.after is None:
        return []  # said already
    now = schemes.image(license)
    supposed = License.objects.get(pk=license.pk)
    supposed.plan_revision, supposed.scheme = change.plan_revision, change.plan_revision.scheme
    since = AuditEntry.objects.filter(license_id=license.pk, action__in=SETS_LIMITS, at__gt=change.starts_at)
    if not since.exists():
        for name in ("seat_limit", "activation_limit"):
            if now[name] != change.after[name]:
                return [f"The switch left {name} at {change.after[name]}, it is {now[name]}, and nobody changed it."]
    found = []
    for name, scope in _questions(license).items():
        picture = pictures.read(Question.of("id", str(license.pk), scope))
        if picture is None:
            return ["It is not found."]
        known = snapshots.scoped(Found(picture, "database"), scope)
        stored = decide(picture.snapshot, known, at)
        wanted = decide(pictures.as_if(picture.snapshot, supposed, picture.snapshot.exhausted), known, at)
        if stored.code != wanted.code:
            found.append(f"{name} is answered {stored.code}, by the new terms it would be {wanted.code}.")
    return found


# --- what is looked at -------------------------------------------------------------------------------


def _findings(row: Rollout, license: License, shown: changes.Preview, at: datetime) -> list[dict[str, str]]:
    found = []
    status = lifecycle.status_of(license, at)
    if status not in ("active", "in_grace"):
        found.append(_finding("not_usable", f"The license is {status}."))
    after = shown.after
    for name, used, limit in (
        ("seats", after.seats_used, after.seat_limit),
        ("machines", after.activations_used, after.activation_limit),
    ):
        if limit is not None and used > limit:
            found.append(_finding("over_limit", f"{used} {name} are in use, {limit} would be allowed."))
    if after.scheme == Scheme.USAGE and after.seats_used:
        found.append(_finding("seats_dormant", f"{after.seats_used} seats would lie dormant."))
    if not PriceRevision.objects.filter(
        price__plan_id=row.plan_revision.plan_id, price__currency=shown.currency, effective_at__lte=at
    ).exists():
        found.append(_finding("no_price", f"The plan has no price in {shown.currency} that is effective now."))
    for right in Entitlement.objects.filter(
        plan_revision=row.plan_revision, kind=EntitlementKind.ALLOWANCE, overage=Overage.REFUSE
    ):
        totals = rollups.totals(
            license_id=license.pk, starts_at=shown.period.starts_at, ends_at=shown.period.ends_at, meter=right.meter
        )
        for total in totals:
            if right.amount is not None and total.quantity > right.amount:
                text = f"{total.quantity:f} {right.meter} were used this month, {right.amount:f} would be allowed."
                found.append(_finding("allowance_exceeded", text))
    return found


def _of_money(shown: changes.Preview) -> list[tuple[str, str, str, str, str]]:
    old, new = shown.money_before.total_minor, shown.money_after.total_minor
    if old == new:
        return []
    before, after = (words.money(minor, shown.currency) for minor in (old, new))
    lines = "; ".join(
        f"{line.description}: {words.money(line.amount_minor, shown.currency)}" for line in shown.money_after.lines
    )
    subject = f"{shown.period.starts_at:%Y-%m} without tax"
    return [(DifferenceKind.MONEY, subject, before, after, lines or "Nothing is charged under the new terms.")]


def _questions(license: License) -> dict[str, Scope]:
    """Return what is asked about the license: by nobody in particular, by each machine in use, by each seat holder."""
    questions = {"validate": Scope()}
    for fingerprint in license.activations.filter(deactivated_at=None).values_list("fingerprint", flat=True):
        questions[f"validate by machine {fingerprint[:12]}"] = Scope(fingerprint=fingerprint)
    for seat_id, holder in license.seats.filter(released_at=None).values_list("pk", "holder"):
        questions[f"validate by the holder of seat {seat_id}"] = Scope(seat_holder=holder)
    return questions


def _verdicts(license: License, questions: dict[str, Scope], at: datetime) -> dict[str, Verdict]:
    found = {}
    for name, scope in questions.items():
        picture = pictures.read(Question.of("id", str(license.pk), scope))
        known = snapshots.scoped(Found(picture, "database"), scope) if picture else scope
        found[name] = decide(picture.snapshot if picture else None, known, at)
    return found


def _taken(license: License) -> int:
    if license.plan_revision.seat_kind == SeatKind.FLOATING:
        return Lease.objects.filter(license=license, ended_at=None).count()
    seats_taken = Seat.objects.filter(license=license, released_at=None).count()
    return seats_taken or Lease.objects.filter(license=license, ended_at=None).count()


def _refused(error: LicensingError) -> dict[str, str]:
    if isinstance(error, proofs.TermsAltered):  # an anomaly too, see `proofs`
        return _finding("terms_altered", "Somebody wrote its terms past the rules. Accept or mend them first.")
    return _finding("refused", f"{error.code}: {error.detail}")


def _finding(code: str, text: str) -> dict[str, str]:
    return {"code": code, "text": text}


def _blocked(row: Rollout) -> int:
    rows = row.members.filter(state=MemberState.PENDING).exclude(findings=[]).values_list("findings", flat=True)
    return sum(any(found["code"] in BLOCKING for found in each) for each in rows)


def _waiting(row: Rollout) -> QuerySet[RolloutMember]:
    """Return the members that the stage which stands still has to be carried out for."""
    match RolloutStage(row.stage):
        case RolloutStage.REHEARSED:
            return row.members.filter(state=MemberState.PENDING, rehearsed_at=None)
        case RolloutStage.SHADOW:
            return row.members.filter(state=MemberState.PENDING, shadowed_at=None)
        case RolloutStage.CANARY | RolloutStage.ALL:
            return row.members.filter(state=MemberState.PENDING, place__lt=row.percent)
        case RolloutStage.VERIFIED:
            return row.members.filter(state=MemberState.SWITCHED, verified_at=None)
        case RolloutStage.FINAL:
            return row.members.filter(state=MemberState.SWITCHED)
        case RolloutStage.ROLLING_BACK:
            return row.members.filter(state__in=OPEN)
        case _:
            return row.members.none()


def _left(row: Rollout) -> int:
    return _waiting(row).count()


def _locked_member(member_id: UUID, license_id: UUID) -> RolloutMember:
    """Return the member with its license locked: whatever happens to it happens behind that lock."""
    license = seats.lock(license_id)
    member = RolloutMember.objects.select_related("change__term", "change__plan_revision").get(pk=member_id)
    member.license = license
    return member


def _still(row: Rollout, *stages: RolloutStage) -> bool:
    return Rollout.objects.filter(pk=row.pk, stage__in=stages, stopped_at=None).exists()


def _place(rollout_id: UUID, license_id: UUID) -> int:
    """Return a number from 0 to 99 that is the same always, and evenly spread."""
    return int.from_bytes(hashlib.sha256(rollout_id.bytes + license_id.bytes).digest()[:4]) % 100


def _set_stopped(rollout: Rollout, stopped_at: datetime | None, action: str, by: Actor, at: datetime) -> Rollout:
    with transaction.atomic():
        row = Rollout.objects.select_for_update(no_key=True).get(pk=rollout.pk)
        if (row.stopped_at is None) == (stopped_at is None):
            return row
        row.stopped_at = stopped_at
        row.save()
        audit.record(action=action, by=by, on=row, at=at)
    return row
