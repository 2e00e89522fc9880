"""Payments: a final statement becomes an invoice at the gateway, and money that came in makes the statement paid.

`send_due` and `reconcile` are what the jobs call, `receive` what the webhook's door calls, `record_payment` what staff
call for money that came another way. Nothing here talks to the gateway inside a transaction. What the gateway says is
never believed from a message: the message only says which invoice to look at.

Source: docs/payments.md.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from billing import dunning, gateway, statements
from billing.gateway import (
    Gateway,
    GatewayRefused,
    GatewayUnavailable,
    Invoice,
    Item,
    NotAtGateway,
    Order,
    Returned,
)
from billing.models import BillingAccount, GatewayEvent, GatewayInvoice, Payment, Reversal, Statement
from billing.states import (
    INVOICE_ENDS,
    GatewayOutcome,
    InvoiceState,
    LineKind,
    PaymentSource,
    ReversalKind,
    StatementState,
)
from licensing import anomalies, audit, keyformat
from licensing.audit import Actor
from licensing.errors import Invalid, LicensingError
from licensing.states import Severity

log = structlog.get_logger(__name__)

BY = audit.system("payment-gateway")
CLAIM = timedelta(minutes=5)
FIRST_RETRY, LONGEST_RETRY = timedelta(seconds=30), timedelta(hours=6)
BATCH = 200
SEEN_EVERY = timedelta(minutes=50)
# For how long an invoice that has come to its end is still compared, and strange ones are looked for.
LOOKED_BACK = timedelta(days=7)
USAGE_TAKEN_FOR = timedelta(days=34)  # the gateway takes meter events up to 35 days old


class GatewayOff(LicensingError):
    """This installation has no payment gateway. See docs/payments.md."""

    code = "gateway_off"


def link(statement: Statement) -> str:
    """Return where the customer pays the statement, or an empty text when that is nowhere (yet, or any more)."""
    return dunning.link(statement)


def received_minor(statement: Statement) -> int:
    """Return what came in for the statement, in minor units."""
    return dunning.received_minor(statement)


def record_payment(
    *,
    statement: Statement,
    by: Actor,
    at: datetime,
    reason: str,
    amount_minor: int | None = None,
    reference: str = "",
    paid_at: datetime | None = None,
) -> Payment:
    """Record money that came in past the gateway, all that is open unless said otherwise. When nothing is open any more
    the statement is paid, since `paid_at` or now, and the gateway is told by the next job. The same reference is the
    same payment.

    Raises:
        Invalid: no reason is given, the amount is not positive or more than is open, the reference is another's, or
            `paid_at` is no instant it can have been paid at.
        StatementNotFinal: the statement is a draft, paid or void.
    """
    if not reason.strip():
        raise Invalid("Say how it was paid.", pointer="/reason")
    with transaction.atomic():
        row = Statement.objects.select_for_update(no_key=True).get(pk=statement.pk)
        before = (
            Payment.objects.filter(source=PaymentSource.BY_HAND, reference=reference).first() if reference else None
        )
        if before is not None:
            if before.statement_id != row.pk or amount_minor not in (None, before.amount_minor):
                raise Invalid("There is another payment of this reference.", pointer="/reference")
            return before
        if row.state != StatementState.FINAL:
            raise statements.StatementNotFinal()
        owed = statements.open_minor(row)
        amount = owed if amount_minor is None else amount_minor
        if not 0 < amount <= owed:
            raise Invalid(f"Give an amount from 1 to {owed}, what is open.", pointer="/amount_minor")
        payment = Payment(created_at=at, statement=row, source=PaymentSource.BY_HAND, amount_minor=amount)
        payment.reference, payment.reason = reference or str(payment.pk), keyformat.redact(reason)
        payment.save(force_insert=True)
        facts = {"amount_minor": amount, "currency": row.currency, "reference": payment.reference}
        audit.record(action="payment.recorded", by=by, on=row, at=at, after=facts, reason=reason)
        if amount == owed:
            paid = statements.mark_paid(statement=row, by=by, at=at, reason=reason, paid_at=paid_at)
            dunning.release(statement=paid, at=at)
    return payment


# --- towards the gateway ----------------------------------------------------------------------------


def send_due(*, at: datetime) -> tuple[int, int]:
    """Bring to the gateway what it does not know: statements that became final, were paid past it, or void. Return how
    much was done and how much failed. May run twice and concurrently."""
    gate = gateway.configured()
    if gate is None:
        return 0, 0
    _open_rows(at)
    done = failed = 0
    for row_id in list(_due(at).order_by("next_at").values_list("pk", flat=True)[:BATCH]):
        # A claim that lapses, as the outbox takes it: no transaction is open while the gateway is asked.
        if not _due(at).filter(pk=row_id).update(attempts=F("attempts") + 1, next_at=at + CLAIM):
            continue
        row = GatewayInvoice.objects.select_related("statement__customer").get(pk=row_id)
        if _tried(row, at, _send, gate):
            done += 1
        else:
            failed += 1
    return done, failed


def lag(*, at: datetime) -> timedelta:
    """Return for how long the oldest work towards the gateway has been due."""
    if gateway.configured() is None:
        return timedelta()
    oldest = _due(at).order_by("next_at").values_list("next_at", flat=True).first()
    return max(at - oldest, timedelta()) if oldest else timedelta()


def _open_rows(at: datetime) -> None:
    """Make the row of each statement that is to be paid and has none: the plan stands before anything is sent."""
    waiting = Statement.objects.filter(state=StatementState.FINAL, total_minor__gt=0, at_gateway=None)
    rows = [
        GatewayInvoice(
            created_at=at,
            statement=statement,
            next_at=at,
            # Sent in the same words whenever it is sent, so that a retry is recognised.
            days_until_due=max(1, (statement.due_at - at).days + 1) if statement.due_at else 1,
        )
        for statement in waiting.order_by("final_at", "pk")[:BATCH]
    ]
    GatewayInvoice.objects.bulk_create(rows, ignore_conflicts=True)


def _due(at: datetime) -> QuerySet[GatewayInvoice]:
    """Return the rows where the gateway does not stand as the statement does."""
    work = Q(statement__state=StatementState.FINAL, state=InvoiceState.WAITING)
    work |= Q(statement__state__in=(StatementState.PAID, StatementState.VOID)) & ~Q(state__in=INVOICE_ENDS)
    work |= Q(statement__state=StatementState.FINAL, state=InvoiceState.OPEN, elsewhere__gt=F("told_minor"))
    if settings.STRIPE_METER_EVENTS:
        work |= Q(usage_sent_at=None, statement__ends_at__gt=at - USAGE_TAKEN_FOR) & ~Q(external_id="")
    elsewhere = Payment.objects.exclude(source=PaymentSource.GATEWAY).filter(statement=OuterRef("statement")).order_by()
    came = elsewhere.values("statement").annotate(minor=Sum("amount_minor")).values("minor")
    return GatewayInvoice.objects.annotate(elsewhere=Coalesce(Subquery(came), 0)).filter(work, next_at__lte=at)


def _tried(
    row: GatewayInvoice, at: datetime, act: Callable[[Gateway, GatewayInvoice, datetime], None], gate: Gateway
) -> bool:
    """Do it and note on the row how it went: a failure is seen there and as an anomaly, and tried again later."""
    kept = GatewayInvoice.objects.filter(pk=row.pk)
    try:
        act(gate, row, at)
    except Exception as error:
        if not isinstance(error, LicensingError):
            log.exception("gateway_work_failed", statement=str(row.statement_id), error=type(error).__name__)
        why = keyformat.redact(f"{type(error).__name__}: {error}")[:2000]
        wait = min(FIRST_RETRY * 2 ** min(row.attempts, 20), LONGEST_RETRY)
        kept.update(last_error=why, next_at=at + wait)
        severity = Severity.MEDIUM if isinstance(error, GatewayUnavailable) else Severity.HIGH
        _flag("gateway_failed", severity, row.statement, at, {"why": why, "attempts": row.attempts})
        return False
    kept.update(last_error="", attempts=0, next_at=at)
    return True


def _send(gate: Gateway, row: GatewayInvoice, at: datetime) -> None:
    statement = row.statement
    if statement.state == StatementState.FINAL:
        customer_id = _gateway_customer(gate, statement, at)
        if row.state == InvoiceState.WAITING:
            _take(gate.ensure_invoice(_order(row, customer_id)), at)
        _tell_parts(gate, row, at)
    elif row.state not in INVOICE_ENDS:
        _settle(gate, row, at)
    if settings.STRIPE_METER_EVENTS and row.usage_sent_at is None and statement.state != StatementState.VOID:
        _mirror_usage(gate, row, _gateway_customer(gate, statement, at), at)


def _settle(gate: Gateway, row: GatewayInvoice, at: datetime) -> None:
    """Have the gateway ask no more for a statement that is paid or void."""
    invoice_id = row.external_id
    if not invoice_id:
        account = BillingAccount.objects.filter(customer_id=row.statement.customer_id).first()
        customer_id = account.gateway_customer if account else ""
        # It may be there all the same: a try whose answer was lost.
        found = gate.find_invoice(customer_id=customer_id, statement_id=row.statement_id) if customer_id else None
        if found is None:
            GatewayInvoice.objects.filter(pk=row.pk).update(state=InvoiceState.NOT_NEEDED)
            return
        invoice_id = found.id
    paid = row.statement.state == StatementState.PAID
    _take(gate.settle_outside(invoice_id) if paid else gate.withdraw(invoice_id), at)


def _tell_parts(gate: Gateway, row: GatewayInvoice, at: datetime) -> None:
    """Have the gateway ask only for what is open: what came in part past it is told it, each payment once."""
    parts = list(Payment.objects.filter(statement_id=row.statement_id).exclude(source=PaymentSource.GATEWAY))
    if sum(part.amount_minor for part in parts) <= row.told_minor:
        return
    invoice = gate.invoice(GatewayInvoice.objects.values_list("external_id", flat=True).get(pk=row.pk))
    for part in parts:
        if invoice.state == InvoiceState.OPEN:
            invoice = gate.settle_part(invoice, payment_id=part.pk, amount_minor=part.amount_minor, at=part.created_at)
    GatewayInvoice.objects.filter(pk=row.pk).update(told_minor=sum(part.amount_minor for part in parts))
    _take(invoice, at)


def _gateway_customer(gate: Gateway, statement: Statement, at: datetime) -> str:
    account, _ = BillingAccount.objects.select_related("customer").get_or_create(
        customer_id=statement.customer_id, defaults={"created_at": at, "currency": statement.currency}
    )
    if account.gateway_customer:
        return account.gateway_customer
    made = gate.ensure_customer(account_id=account.pk, name=account.customer.name, email=account.customer.email)
    with transaction.atomic():
        if BillingAccount.objects.filter(pk=account.pk, gateway_customer="").update(gateway_customer=made):
            audit.record(action="account.linked", by=BY, on=account, at=at, after={"gateway_customer": made})
    return BillingAccount.objects.values_list("gateway_customer", flat=True).get(pk=account.pk)


def _order(row: GatewayInvoice, customer_id: str) -> Order:
    """Return the invoice to be made: an item for each line, and one for the tax, so that it asks for the very total."""
    statement = row.statement
    lines = statement.lines.order_by("position")
    items = [Item(str(line.position), line.description, line.amount_minor) for line in lines if line.amount_minor]
    if statement.tax_minor:
        items.append(Item(gateway.TAX, f"Tax {statement.tax_rate.normalize():f} %", statement.tax_minor))
    return Order(
        statement_id=statement.pk,
        customer_id=customer_id,
        currency=statement.currency,
        description=f"Statement {statement.number}",
        total_minor=statement.total_minor,
        days_until_due=row.days_until_due,
        items=tuple(items),
    )


def _mirror_usage(gate: Gateway, row: GatewayInvoice, customer_id: str, at: datetime) -> None:
    """Have the gateway's meters show the usage that the statement charged for."""
    statement = row.statement
    for line in statement.lines.filter(kind=LineKind.USAGE, quantity__gt=0).order_by("position"):
        gate.report_usage(
            customer_id=customer_id,
            meter=line.meter,
            quantity=line.quantity or Decimal(),
            at=statement.ends_at - timedelta(seconds=1),
            key=f"{statement.pk}-{line.position}",
        )
    GatewayInvoice.objects.filter(pk=row.pk).update(usage_sent_at=at)


# --- from the gateway -------------------------------------------------------------------------------


def receive(*, body: bytes, signature: str, at: datetime) -> str:
    """Take a signed message of the gateway; return "duplicate" or its outcome. When it returns, that is committed.

    The message says where to look, and the invoice is taken as it stands at the gateway now. So the order of messages
    does not matter, nor what is in them.

    Raises:
        GatewayOff: there is none.
        SignatureInvalid: it is not the gateway's, altered, or old.
        GatewayUnavailable, GatewayRefused: the invoice could not be looked at; nothing is kept, so that it comes again.
    """
    gate = gateway.configured()
    if gate is None:
        raise GatewayOff()
    event = gate.read_event(body=body, signature=signature)
    if GatewayEvent.objects.filter(event_id=event.id).exists():
        return "duplicate"
    invoice, missing = None, ""
    if event.invoice_id:
        try:
            invoice = gate.invoice(event.invoice_id)
        except NotAtGateway:  # a draft that is deleted by now
            missing = event.invoice_id
    returned = []
    try:
        returned = gate.returned(about=event.about, object_id=event.object_id)
        if returned:  # the invoice comes first: of a refund we may hear before the payment
            invoice = gate.invoice(returned[0].invoice_id)
    except NotAtGateway:  # whoever signed it, there is no such thing
        missing = event.object_id
    outcome = GatewayOutcome.UNKNOWN if missing else GatewayOutcome.IGNORED
    if missing:
        log.warning("message_not_of_gateway", event_id=event.id, kind=event.kind, object_id=missing)
    if invoice is not None and _row_of(invoice) is not None:
        outcome = GatewayOutcome.APPLIED
    try:
        with transaction.atomic():
            # First, so that of the same event delivered twice at once one waits here for the other, and ends.
            GatewayEvent.objects.create(
                created_at=at,
                event_id=event.id,
                kind=event.kind[:128],
                object_id=event.object_id[:255],
                occurred_at=event.occurred_at,
                outcome=outcome,
            )
            if invoice is not None and outcome == GatewayOutcome.APPLIED:
                _take(invoice, at)
                for each in returned:
                    _take_back(each, at)
                if event.kind == "invoice.payment_failed" and invoice.state == InvoiceState.OPEN:
                    row = _row_of(invoice)
                    assert row is not None
                    _flag("payment_failed", Severity.MEDIUM, row.statement, at, {"invoice": invoice.id})
    except IntegrityError:
        if GatewayEvent.objects.filter(event_id=event.id).exists():
            return "duplicate"
        raise
    return str(outcome)


def reconcile(*, at: datetime) -> tuple[int, int]:
    """Compare what we know with what the gateway knows: take what was missed, flag what differs. Return how many
    invoices were looked at, and how many could not be."""
    gate = gateway.configured()
    if gate is None:
        return 0, 0
    lately = at - LOOKED_BACK
    rows = GatewayInvoice.objects.exclude(external_id="").filter(
        ~Q(state__in=INVOICE_ENDS) | Q(statement__paid_at__gte=lately) | Q(statement__void_at__gte=lately)
    )
    done = failed = 0
    try:
        _take_back_since(gate, lately, at)
    except (GatewayUnavailable, GatewayRefused) as error:
        log.warning("gateway_not_listed", error=str(error))
        failed += 1
    for row in rows.filter(Q(seen_at=None) | Q(seen_at__lte=at - SEEN_EVERY)).select_related("statement"):
        try:
            invoice = gate.invoice(row.external_id)
            _take(invoice, at)
            _check_asked(row, invoice, at)
            GatewayInvoice.objects.filter(pk=row.pk).update(seen_at=at)
            done += 1
        except GatewayUnavailable as error:
            _flag("gateway_failed", Severity.MEDIUM, row.statement, at, {"why": str(error)})
            return done, failed + 1  # it is away for the others too
        except GatewayRefused as error:
            _flag("invoice_missing", Severity.CRITICAL, row.statement, at, {"why": str(error)})
            failed += 1
    try:
        for invoice in gate.invoices_since(lately):
            found = _row_of(invoice)
            if found is None:
                anomalies.flag(
                    rule="invoice_unknown",
                    severity=Severity.HIGH,
                    object_kind="gatewayinvoice",
                    object_id=invoice.id,
                    at=at,
                    evidence={"statement": str(invoice.statement_id), "total_minor": invoice.total_minor},
                )
            elif found.external_id not in ("", invoice.id):
                _take(invoice, at)
    except (GatewayUnavailable, GatewayRefused) as error:
        log.warning("gateway_not_listed", error=str(error))
        failed += 1
    return done, failed


def _take_back_since(gate: Gateway, since: datetime, at: datetime) -> None:
    """Take what went back since then, and how what went back before stands now."""
    for each in gate.returned_since(since):
        row = GatewayInvoice.objects.filter(external_id=each.invoice_id).first()
        if row is not None:
            if not Reversal.objects.filter(reference=each.id).exists():
                _take(gate.invoice(each.invoice_id), at)
            _take_back(each, at)
    # A dispute takes months; a refund can fail after weeks.
    pending = Reversal.objects.filter(created_at__lt=since).exclude(status__in=ENDS_OF_REVERSALS)
    for kind, reference in pending.values_list("kind", "reference"):
        try:
            for each in gate.returned(about=kind, object_id=reference):
                _take_back(each, at)
        except NotAtGateway:
            log.warning("reversal_not_at_gateway", reference=reference)


def _check_asked(row: GatewayInvoice, invoice: Invoice, at: datetime) -> None:
    """Flag an open invoice that asks for another amount than is open, all told."""
    statement = Statement.objects.get(pk=row.statement_id)
    if statement.state != StatementState.FINAL or invoice.state != InvoiceState.OPEN:
        return
    told = GatewayInvoice.objects.values_list("told_minor", flat=True).get(pk=row.pk) >= dunning.elsewhere_minor(
        statement
    )
    # What went back is owed to us again, but Stripe asks for it no more.
    back = sum(statement.reversals.filter(stands=True).values_list("returned_minor", flat=True))
    owed = statements.open_minor(statement) - back
    if told and invoice.asked_minor != owed:
        facts = {"invoice": invoice.id, "asked_minor": invoice.asked_minor, "open_minor": owed}
        _flag("invoice_asks_otherwise", Severity.HIGH, statement, at, facts)


def _row_of(invoice: Invoice) -> GatewayInvoice | None:
    """Return our row of this invoice: by its id, or by the statement noted on it while we do not know its id."""
    rows = GatewayInvoice.objects.select_related("statement")
    found = rows.filter(external_id=invoice.id).first()
    if found is None and invoice.statement_id is not None:
        found = rows.filter(statement_id=invoice.statement_id).first()
    return found


def _take(invoice: Invoice, at: datetime) -> None:
    """Take an invoice of ours as it stands at the gateway, in one transaction: its state, and money that came in."""
    found = _row_of(invoice)
    if found is None:
        return
    with transaction.atomic():
        statement = Statement.objects.select_for_update(no_key=True).get(pk=found.statement_id)
        row = GatewayInvoice.objects.select_for_update(no_key=True).get(pk=found.pk)
        if row.external_id and row.external_id != invoice.id:
            facts = {"invoice": invoice.id, "known": row.external_id, "state": invoice.state}
            _flag("second_invoice", Severity.CRITICAL, statement, at, facts)
            return
        if not row.external_id:
            row.external_id = invoice.id
            Statement.objects.filter(pk=statement.pk).update(gateway_invoice=invoice.id)
            audit.record(action="statement.invoiced", by=BY, on=statement, at=at, after={"invoice": invoice.id})
        # Seen later may have been looked up earlier: from an end there is no way back.
        if row.state not in INVOICE_ENDS and invoice.state != InvoiceState.WAITING:
            row.state = invoice.state
        row.url = invoice.url or row.url
        row.save(update_fields=["external_id", "state", "url"])
        _compare(statement, invoice, at)


def _compare(statement: Statement, invoice: Invoice, at: datetime) -> None:
    if invoice.state == InvoiceState.WAITING:
        return
    facts = {"invoice": invoice.id, "state": invoice.state, "total_minor": invoice.total_minor}
    if (invoice.total_minor, invoice.currency) != (statement.total_minor, statement.currency):
        known = {"owed_minor": statement.total_minor, "currency": invoice.currency}
        _flag("invoice_differs", Severity.CRITICAL, statement, at, facts | known)
        if invoice.currency != statement.currency:
            return
    _paid(statement, invoice, at)
    if (
        invoice.state != InvoiceState.PAID
        and statement.state == StatementState.FINAL
        and invoice.state != InvoiceState.OPEN
    ):
        _flag("invoice_given_up", Severity.HIGH, statement, at, facts)


def _paid(statement: Statement, invoice: Invoice, at: datetime) -> None:
    """Record what the gateway took, each part once; the statement is paid when nothing is open any more."""
    # What was paid outside counts when somebody said so at the gateway, not when it was us who told it.
    ours = dunning.elsewhere_minor(statement)
    void = statement.state == StatementState.VOID
    amount = invoice.paid_minor - (invoice.outside_minor if void else min(invoice.outside_minor, ours))
    same = Q(reference=invoice.id) | Q(reference__startswith=f"{invoice.id}+")
    earlier = Payment.objects.filter(same, statement=statement, source=PaymentSource.GATEWAY)
    known = sum(earlier.values_list("amount_minor", flat=True))
    if amount > known:
        reference = f"{invoice.id}+{known}" if known else invoice.id
        Payment.objects.create(
            created_at=at,
            statement=statement,
            source=PaymentSource.GATEWAY,
            amount_minor=amount - known,
            reference=reference,
        )
        came = {"amount_minor": amount - known, "currency": invoice.currency, "reference": reference}
        audit.record(action="payment.received", by=BY, on=statement, at=at, after=came)
    owed = statements.open_minor(statement)
    facts = {"invoice": invoice.id, "received_minor": received_minor(statement), "owed_minor": statement.total_minor}
    # A credit note that we have not been told of yet explains what is missing.
    heard = statement.reversals.filter(stands=True).values_list("credited_minor", flat=True)
    unheard = max(invoice.credited_minor - sum(heard), 0)
    if amount < known:
        _flag("paid_less_than_before", Severity.HIGH, statement, at, facts | {"known_minor": known})
    if void:
        if owed < statement.total_minor:
            _flag("paid_although_void", Severity.CRITICAL, statement, at, facts)
    elif owed < 0:
        _flag("paid_too_much", Severity.HIGH, statement, at, facts)
    elif owed > unheard and statement.state == StatementState.FINAL and invoice.state == InvoiceState.PAID:
        _flag("paid_too_little", Severity.HIGH, statement, at, facts)
    _settled(statement, f"Invoice {invoice.id} is {invoice.state}.", at)


def _settled(statement: Statement, reason: str, at: datetime) -> None:
    """Make the statement paid when nothing is open any more, and let go what was held for its sake."""
    if statement.state == StatementState.FINAL and statement.total_minor > 0 and statements.open_minor(statement) <= 0:
        paid = statements.mark_paid(statement=statement, by=BY, at=at, reason=reason)
        dunning.release(statement=paid, at=at)


# Beyond these nothing more happens to a refund, a credit note or a dispute.
ENDS_OF_REVERSALS = ("failed", "canceled", "void", "won", "lost", "prevented", "warning_closed", "issued", "succeeded")


def _take_back(returned: Returned, at: datetime) -> None:
    """Take a refund, credit note or dispute as it stands at the gateway, in one transaction. Staff are told of each:
    what a statement owes is never changed in silence."""
    row = GatewayInvoice.objects.filter(external_id=returned.invoice_id).first()
    if row is None:
        return
    with transaction.atomic():
        statement = Statement.objects.select_for_update(no_key=True).get(pk=row.statement_id)
        known = Reversal.objects.select_for_update(no_key=True).filter(reference=returned.id).first()
        facts: dict[str, object] = {
            **{"reference": returned.id, "status": returned.status, "stands": returned.stands},
            **{"returned_minor": returned.returned_minor, "credited_minor": returned.credited_minor},
        }
        if returned.currency != statement.currency:
            _flag("invoice_differs", Severity.CRITICAL, statement, at, facts | {"currency": returned.currency})
            return
        if known is None:
            Reversal.objects.create(
                created_at=at,
                statement=statement,
                kind=returned.kind,
                reference=returned.id,
                returned_minor=returned.returned_minor,
                credited_minor=returned.credited_minor,
                stands=returned.stands,
                status=returned.status,
            )
        elif (known.stands, known.status) != (returned.stands, returned.status):
            if known.status in ENDS_OF_REVERSALS and returned.status not in ENDS_OF_REVERSALS:
                return  # looked up before what we know: from an end there is no way back
            Reversal.objects.filter(pk=known.pk).update(stands=returned.stands, status=returned.status)
        else:
            return
        audit.record(action=f"payment.{returned.kind}", by=BY, on=statement, at=at, after=facts)
        rule, severity = _said_of(returned, known is None)
        if rule:
            _flag(rule, severity, statement, at, facts | {"open_minor": statements.open_minor(statement)})
        _settled(statement, f"Credited by {returned.id}.", at)


def _said_of(returned: Returned, new: bool) -> tuple[str, Severity]:
    """Return what staff are told of it: an empty rule when there is nothing to do."""
    match returned.kind:
        case ReversalKind.DISPUTE:
            if returned.status == "lost":
                return "dispute_lost", Severity.CRITICAL
            return ("disputed" if new else "", Severity.HIGH)
        case ReversalKind.REFUND:
            if not returned.stands:
                return "refund_failed", Severity.HIGH
            return ("refunded" if new else "", Severity.MEDIUM)
        case _:
            return ("credited" if returned.stands else "credit_withdrawn", Severity.MEDIUM)


def _flag(rule: str, severity: Severity, statement: Statement, at: datetime, evidence: Mapping[str, object]) -> None:
    anomalies.flag(
        rule=rule,
        severity=severity,
        object_kind="statement",
        object_id=str(statement.pk),
        at=at,
        evidence=dict(evidence),
    )
