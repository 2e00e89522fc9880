"""Dunning: what is done while a statement is overdue. Reminders by mail, then a hold on its licenses until it is paid.

It needs no payment gateway. Each step is a row, written in the transaction of what it does; each is taken once. It
lifts only holds that it placed itself.

Source: docs/payments.md.
"""

from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.template.loader import render_to_string

from billing import pricing, statements
from billing.models import DunningHold, DunningStep, GatewayInvoice, Payment, Statement
from billing.states import DunningAct, InvoiceState, PaymentSource, StatementState
from licensing import anomalies, audit, lifecycle, outbox, seats
from licensing.errors import Refused
from licensing.lifecycle import NotHeld
from licensing.models import Hold, License, Member, OutboxMessage
from licensing.states import HoldReason, MemberRole, Severity

log = structlog.get_logger(__name__)

KIND = "mail.statement"
BY = audit.system("dunning")
RECIPIENTS = (MemberRole.OWNER, MemberRole.BILLING)
# A hold never comes sooner after the last reminder than this, however late the jobs ran.
NOTICE = timedelta(days=3)


def link(statement: Statement) -> str:
    """Return where the customer pays the statement, or an empty text when that is nowhere (yet, or any more)."""
    row = GatewayInvoice.objects.filter(statement=statement, state=InvoiceState.OPEN).first()
    if row is None or statement.state != StatementState.FINAL:
        return ""
    # Until the gateway knows what came past it, its page would ask for too much.
    return row.url if row.told_minor >= elsewhere_minor(statement) else ""


def received_minor(statement: Statement) -> int:
    """Return what came in for the statement, in minor units."""
    return sum(Payment.objects.filter(statement=statement).values_list("amount_minor", flat=True))


def elsewhere_minor(statement: Statement) -> int:
    """Return what of that came past the gateway: recorded by hand, or set off as credit."""
    elsewhere = Payment.objects.filter(statement=statement).exclude(source=PaymentSource.GATEWAY)
    return sum(elsewhere.values_list("amount_minor", flat=True))


def run(*, at: datetime) -> tuple[int, int]:
    """Take the steps that are due and let go what is settled; return how many steps, and how many failed. May run twice
    and concurrently."""
    done = failed = 0
    for statement_id in _unreleased().values_list("statement_id", flat=True).distinct():
        try:
            with transaction.atomic():
                done += release(statement=Statement.objects.get(pk=statement_id), at=at)
        except Exception as error:
            failed += _failed(statement_id, error)
    for statement_id in list(_overdue(at).values_list("pk", flat=True)):
        try:
            done += _step(statement_id, at)
        except Exception as error:  # one broken statement must not stop the others
            failed += _failed(statement_id, error)
    return done, failed


def release(*, statement: Statement, at: datetime) -> int:
    """Let go the licenses held for this statement's sake, in the caller's transaction: a hold is lifted when no other
    unpaid statement wants it. What cannot be lifted now is an anomaly and tried again by the job."""
    done = 0
    held = _unreleased().filter(statement=statement).order_by("license_id")
    for license_id in list(held.values_list("license_id", flat=True)):
        try:
            with transaction.atomic():
                done += _release(statement, license_id, at)
        except Exception as error:  # the money came all the same
            log.exception("hold_not_lifted", license_id=str(license_id), error=type(error).__name__)
            anomalies.flag(
                rule="hold_not_lifted",
                severity=Severity.HIGH,
                object_kind="license",
                object_id=str(license_id),
                license_id=license_id,
                at=at,
                evidence={"statement": str(statement.pk), "error": type(error).__name__},
            )
    return done


def _release(statement: Statement, license_id: UUID, at: datetime) -> int:
    license = seats.lock(license_id)  # so that of two statements paid at once the second sees the first
    if not _unreleased().filter(statement=statement, license=license).update(released_at=at):
        return 0
    wanted = DunningHold.objects.select_related("hold").get(statement=statement, license=license)
    if wanted.hold.lifted_at is None and not DunningHold.objects.filter(hold=wanted.hold, released_at=None).exists():
        try:
            note = f"Statement {statement.number} is {statement.state}."
            lifecycle.lift(license=license, reason=HoldReason.UNPAID, by=BY, at=at, note=note)
        except NotHeld:
            pass
    return 1


def _unreleased() -> QuerySet[DunningHold]:
    """Return the holds whose statement is settled (or is being so in the caller's transaction)."""
    return DunningHold.objects.filter(released_at=None).exclude(statement__state=StatementState.FINAL)


def _overdue(at: datetime) -> QuerySet[Statement]:
    """Return the unpaid statements whose first step is due."""
    days = [*settings.DUNNING_REMINDER_DAYS, *([settings.DUNNING_HOLD_DAYS] if settings.DUNNING_HOLD_DAYS else [])]
    if not days:
        return Statement.objects.none()
    held = DunningStep.objects.filter(statement=OuterRef("pk"), act=DunningAct.HOLD)
    return Statement.objects.filter(
        ~Exists(held), state=StatementState.FINAL, total_minor__gt=0, due_at__lte=at - timedelta(days=min(days))
    ).order_by("due_at", "pk")


def _step(statement_id: UUID, at: datetime) -> int:
    with transaction.atomic():
        row = Statement.objects.select_for_update(no_key=True).get(pk=statement_id)
        if row.state != StatementState.FINAL or row.due_at is None:
            return 0
        late = at - row.due_at
        reminders = {step.days: step for step in row.dunning_steps.filter(act=DunningAct.REMINDER)}
        # After an outage one reminder stands for those that were missed.
        ahead = max(reminders, default=-1)
        wanted = [days for days in settings.DUNNING_REMINDER_DAYS if days > ahead and timedelta(days=days) <= late]
        if wanted:
            _remind(row, max(wanted), at)
            return 1
        if not settings.DUNNING_HOLD_DAYS or late < timedelta(days=settings.DUNNING_HOLD_DAYS):
            return 0
        if any(at - step.created_at < NOTICE for step in reminders.values()):
            return 0
        if row.dunning_steps.filter(act=DunningAct.HOLD).exists():
            return 0
        _hold(row, at)
        return 1


def _remind(row: Statement, days: int, at: datetime) -> None:
    DunningStep.objects.create(created_at=at, statement=row, days=days, act=DunningAct.REMINDER)
    outbox.enqueue(kind=KIND, payload={"statement": str(row.pk), "days": days}, at=at)
    audit.record(action="statement.reminded", by=BY, on=row, at=at, after={"days": days})


def _hold(row: Statement, at: datetime) -> None:
    days = settings.DUNNING_HOLD_DAYS
    DunningStep.objects.create(created_at=at, statement=row, days=days, act=DunningAct.HOLD)
    billed = row.lines.filter(license_id__isnull=False).values_list("license_id", flat=True).distinct()
    held = []
    for license_id in sorted(set(billed)):
        license = seats.lock(license_id)
        if license.customer_id == row.customer_id and _want(row, license, at):
            held.append(str(license_id))
    audit.record(action="statement.held", by=BY, on=row, at=at, after={"days": days, "licenses": held})


def _want(row: Statement, license: License, at: datetime) -> bool:
    """Hold the license for the statement's sake, or join the hold dunning placed for another; return whether it is."""
    standing = Hold.objects.filter(license=license, reason=HoldReason.UNPAID, lifted_at=None).first()
    if standing is None:
        try:
            note = f"Statement {row.number} is unpaid."
            standing = lifecycle.hold(license=license, reason=HoldReason.UNPAID, by=BY, at=at, note=note)
        except Refused:
            return False  # revoked
    elif not DunningHold.objects.filter(hold=standing).exists():
        return False  # somebody else's, who lifts it as well
    DunningHold.objects.create(created_at=at, statement=row, license=license, hold=standing)
    return True


def _failed(statement_id: UUID, error: Exception) -> int:
    log.exception("dunning_failed", statement_id=str(statement_id), error=type(error).__name__)
    return 1


def lag(*, at: datetime) -> timedelta:
    """Return for how long holds of settled statements have been waiting to be lifted."""
    waiting = _unreleased().select_related("statement")
    ends = [row.statement.paid_at or row.statement.void_at or at for row in waiting]
    return max(at - min(ends), timedelta()) if ends else timedelta()


def send(message: OutboxMessage) -> None:
    """Send one reminder to the customer's owners and billing members; not to a customer who paid meanwhile."""
    statement = Statement.objects.select_related("customer").get(pk=message.payload["statement"])
    if statement.state != StatementState.FINAL:
        return
    members = Member.objects.filter(customer=statement.customer, role__in=RECIPIENTS, user__is_active=True)
    emails = set(members.values_list("user__email", flat=True))
    if statement.customer.email:
        emails.add(statement.customer.email)
    if not emails:
        anomalies.flag(
            rule="nobody_to_remind",
            severity=Severity.MEDIUM,
            object_kind="statement",
            object_id=str(statement.pk),
            at=message.created_at,
            evidence={"days": message.payload["days"]},
        )
        return
    days = settings.DUNNING_HOLD_DAYS
    context = {
        "statement": statement,
        "days": message.payload["days"],
        "total": f"{pricing.major(statements.open_minor(statement), currency=statement.currency)} {statement.currency}",
        "link": link(statement) or settings.PUBLIC_URL,
        "hold_at": statement.due_at + timedelta(days=days) if days and statement.due_at else None,
    }
    subject, _, text = render_to_string("emails/statement_overdue.txt", context).strip().partition("\n")
    for position, email in enumerate(sorted(emails)):
        EmailMessage(
            subject=subject.strip(),
            body=text.strip() + "\n",
            to=[email],
            headers={"Message-ID": f"<{message.pk}.{position}@licentia>"},
        ).send()
