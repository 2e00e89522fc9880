"""Statements: what a customer owes for a calendar month (UTC), from the terms, seats and usage of its licenses.

The arithmetic is `billing.pricing`; this module gathers what it is given. Where the facts come from: terms from `Term`;
the seat limit in force and the owner of a license at an instant from the audit entries, which the rules write in the
transaction of every change and which only grow; usage from `billing.rollups`; prices from the newest revision effective
where a stretch begins; prepaid credit from what the live counters drew.

Source: docs/statements.md, docs/pricing.md.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum

from billing import pricing, rollups
from billing.models import BillingAccount, Meter, Payment, PriceRevision, Statement, StatementLine
from billing.pricing import Allowance, Components, Rateable, Seats, Span
from billing.states import LineKind, PaymentSource, StatementState
from licensing import allowances, audit
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import AuditEntry, Customer, Entitlement, License, PlanRevision, Term
from licensing.states import EntitlementKind, Overage, RevisionState, Scheme

# A final period is compared with what it owes now by the statements of months that begin so long after its end at most.
# Events are taken 35 days back; the rest is for jobs that did not run.
CORRECTED_FOR = timedelta(days=92)
_EVER = Span(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
TOGETHER = 500  # licenses rated by one set of queries
LONGEST_NAME = 100  # of a meter, so that a line's description has room for its figures

# Each says of a draft whether something still holds it open, e.g. a rollout one of its licenses is in.
BLOCKERS: list[Callable[[Statement], bool]] = []


class StatementNotDraft(Refused):
    """This statement is final. Correct it by an adjustment on the next one."""

    code = "statement_not_draft"


class StatementNotDue(Refused):
    """The period and the grace time for late events are not over yet."""

    code = "statement_not_due"


class StatementHeldOpen(Refused):
    """A rollout that one of its licenses is in must be finished first."""

    code = "statement_held_open"


class NothingOwed(Refused):
    """There is no line on this statement, so it gets no number."""

    code = "nothing_owed"


class CreditUsed(Refused):
    """This statement's credit was set off against another one, so it stands."""

    code = "credit_used"


class StatementNotFinal(Refused):
    """Only a final statement that is not yet paid or void can be."""

    code = "statement_not_final"


@dataclass(frozen=True, slots=True)
class RatedLine:
    """What a license owes for one thing in one stretch of a month. `unit_amount` is in the currency, `amount_minor` in
    its minor units; `term_id` is None under a term that does not exist (yet)."""

    license_id: UUID
    customer_id: UUID
    currency: str
    period: Span
    stretch: Span
    term_id: UUID | None
    scheme: str
    plan_revision_id: UUID
    price_revision_id: UUID
    kind: str
    meter: str
    description: str
    starts_at: datetime
    ends_at: datetime
    quantity: Decimal | None
    unit_amount: Decimal | None
    amount_minor: int


@dataclass(frozen=True, slots=True)
class _Term:
    starts_at: datetime
    scheme: str
    plan_revision: PlanRevision
    id: UUID | None = None


def month_of(at: datetime) -> Span:
    """Return the calendar month, in UTC, that the instant falls in."""
    start = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    month = start.month % 12 + 1
    return Span(start, start.replace(year=start.year + (month == 1), month=month))


def currency_of(license: License) -> str:
    """Return the currency the license's customer is billed in."""
    account = BillingAccount.objects.filter(customer_id=license.customer_id).only("currency").first()
    return account.currency if account else str(BillingAccount._meta.get_field("currency").default)


def rated(
    *,
    license: License,
    starts_at: datetime,
    ends_at: datetime,
    at: datetime,
    terms: Sequence[tuple[datetime, str, PlanRevision]] | None = None,
    currency: str | None = None,
) -> list[RatedLine]:
    """Return what the license owes from `starts_at` up to `ends_at`, by prices published until `at`. Writes nothing.

    Give whole months: a fee is for a calendar month, and of one cut off only the part asked about is charged, with
    tiers and allowances whole in it. With `terms` (start, scheme, plan revision) these stand in place of the license's
    own; one that the license does not have brings the seat limit of its revision. The currency is the customer's.
    """
    if ends_at <= starts_at:
        raise Invalid("The end is not after the start.", pointer="/ends_at")
    currency = currency or currency_of(license)
    currency = currency or currency_of(license)
    asked = _Asked(starts_at, ends_at, at, currency)
    return list(_rated([license], asked, None if terms is None else {license.pk: terms}))


@dataclass(frozen=True, slots=True)
class _Asked:
    """From when to when, by prices published until when, and in which currency."""

    starts_at: datetime
    ends_at: datetime
    known_at: datetime
    currency: str


def _rated(
    licenses: Iterable[License],
    asked: _Asked,
    supposed: Mapping[UUID, Sequence[tuple[datetime, str, PlanRevision]]] | None = None,
) -> Iterator[RatedLine]:
    """Yield what licenses owe, in their order. The database is asked a fixed number of times for each `TOGETHER`."""
    rest = iter(licenses)
    while some := list(islice(rest, TOGETHER)):
        yield from _rated_together(some, asked, supposed or {})


def _rated_together(
    licenses: Sequence[License],
    asked: _Asked,
    supposed: Mapping[UUID, Sequence[tuple[datetime, str, PlanRevision]]],
) -> Iterator[RatedLine]:
    histories = _histories([license.pk for license in licenses], supposed)
    plans = {term.plan_revision.pk: term.plan_revision for history in histories.values() for term in history.terms}
    prices = _Prices(plans.values(), asked)
    included = _allowances(plans.keys())
    stretches = {
        license.pk: list(
            _stretches(histories[license.pk].terms, _owners(license, histories[license.pk].entries), asked)
        )
        for license in licenses
    }
    wanted = {
        pk: cuts
        for pk, own in stretches.items()
        if (cuts := [(span.starts_at, span.ends_at) for term, _, span, _ in own if prices.meters(term, span)])
    }
    used = rollups.totals_of(wanted) if wanted else {}
    drawn = allowances.drawn(license_ids=wanted.keys(), starts_at=asked.starts_at, ends_at=asked.ends_at)
    for license in licenses:
        history, totals = histories[license.pk], iter(used.get(license.pk, ()))
        limits, ran = _limits(license, history), _ran(license, history.entries)
        credits = drawn.get(license.pk, {})
        for term, customer_id, stretch, period in stretches[license.pk]:
            found = prices.at(term.plan_revision, stretch.starts_at)
            if found is None:
                continue
            own = next(totals) if prices.meters(term, stretch) else []
            credit = credits.get(max(period.starts_at, term.starts_at), {}) if term.id else {}
            what = _rateable(license, term, stretch, ran, limits, own, included[term.plan_revision.pk], credit)
            for line in pricing.rate(found[1], what, currency=asked.currency):
                yield RatedLine(
                    license_id=license.pk,
                    customer_id=customer_id,
                    currency=asked.currency,
                    period=what.period,
                    stretch=stretch,
                    term_id=term.id,
                    scheme=term.scheme,
                    plan_revision_id=term.plan_revision.pk,
                    price_revision_id=found[0].pk,
                    kind=line.kind,
                    meter=line.meter,
                    description=line.description,
                    starts_at=line.span.starts_at,
                    ends_at=line.span.ends_at,
                    quantity=line.quantity,
                    unit_amount=line.unit_amount,
                    amount_minor=line.amount_minor,
                )


def _rateable(
    license: License,
    term: _Term,
    stretch: Span,
    ran: list[Span],
    limits: list[tuple[datetime, int | None]],
    totals: Sequence[rollups.Total],
    included: Mapping[str, Allowance],
    credit: dict[str, Decimal],
) -> Rateable:
    """Return what a stretch is rated by. `credit` is what its window drew; what is used of it here is taken away: where
    the license was transferred, the owner before has it first."""
    month = month_of(stretch.starts_at)
    covered, seats = list[Span](), list[Seats]()
    for run in ran:
        ended = min(run.ends_at, license.revoked_at or run.ends_at)
        part = Span(max(stretch.starts_at, run.starts_at), min(stretch.ends_at, ended))
        if part.starts_at < part.ends_at:
            covered.append(part)
            # Seats are paid until the end of the month or the expiry; what ends them sooner gives time back.
            seats += _seats(limits, part, min(month.ends_at, run.ends_at))
    usage: dict[str, Decimal] = {}
    prepaid: dict[str, Decimal] = {}
    names: dict[str, str] = {}
    for total in totals:
        usage[total.meter] = usage.get(total.meter, Decimal()) + total.quantity
        names[total.meter] = _short(total.meter_name)
    for meter, allowance in included.items():
        beyond = max(usage.get(meter, Decimal()) - allowance.amount, Decimal())
        prepaid[meter] = min(credit.get(meter, Decimal()), beyond)
        credit[meter] = credit.get(meter, Decimal()) - prepaid[meter]
    return Rateable(
        period=month,
        stretch=stretch,
        covered=covered,
        scheme=term.scheme,
        seats=seats,
        usage=usage,
        allowances=included,
        credit=prepaid,
        names=names,
    )


def _months(starts_at: datetime, ends_at: datetime) -> Iterator[Span]:
    start = starts_at
    while start < ends_at:
        end = min(month_of(start).ends_at, ends_at)
        yield Span(start, end)
        start = end


def _stretches(
    terms: Sequence[_Term], owners: list[tuple[datetime, UUID]], asked: _Asked
) -> Iterator[tuple[_Term, UUID, Span, Span]]:
    """Yield the parts of each month under one term and of one owner, in order, with the month they are of."""
    for period in _months(asked.starts_at, asked.ends_at):
        ends = [term.starts_at for term in terms[1:]] + [period.ends_at]
        for term, next_start in zip(terms, ends, strict=True):
            for index, (owned_from, customer_id) in enumerate(owners):
                owned_until = owners[index + 1][0] if index + 1 < len(owners) else period.ends_at
                start = max(period.starts_at, term.starts_at, owned_from)
                end = min(period.ends_at, next_start, owned_until)
                if start < end:
                    yield term, customer_id, Span(start, end), period


class _Prices:
    """The prices of plans in a currency, as published until an instant."""

    def __init__(self, plans: Iterable[PlanRevision], asked: _Asked) -> None:
        self.revisions: dict[UUID, list[PriceRevision]] = {}
        self.components: dict[UUID, Components] = {}
        known = PriceRevision.objects.filter(
            price__plan_id__in={plan.plan_id for plan in plans},
            price__currency=asked.currency,
            effective_at__lt=asked.ends_at,
            published_at__lte=asked.known_at,
        )
        for revision in known.select_related("price").order_by("-effective_at", "-number"):
            self.revisions.setdefault(revision.price.plan_id, []).append(revision)

    def at(self, plan: PlanRevision, at: datetime) -> tuple[PriceRevision, Components] | None:
        """Return the newest revision of the plan's price that is effective at `at`."""
        for revision in self.revisions.get(plan.plan_id, ()):
            assert revision.effective_at is not None
            if revision.effective_at <= at and (revision.retired_at is None or revision.retired_at > at):
                if revision.pk not in self.components:
                    self.components[revision.pk] = pricing.read(revision.components)
                return revision, self.components[revision.pk]
        return None

    def meters(self, term: _Term, stretch: Span) -> bool:
        """Return whether usage counts in the stretch."""
        found = self.at(term.plan_revision, stretch.starts_at)
        return found is not None and bool(found[1].usages) and term.scheme != Scheme.SEATS


def _allowances(plan_revision_ids: Collection[UUID]) -> dict[UUID, dict[str, Allowance]]:
    """Return what each revision includes of each meter; several allowances of one meter add up, the strictest rules."""
    found: dict[UUID, dict[str, Allowance]] = {pk: {} for pk in plan_revision_ids}
    for row in Entitlement.objects.filter(plan_revision_id__in=plan_revision_ids, kind=EntitlementKind.ALLOWANCE):
        included = found[row.plan_revision_id]
        before = included.get(row.meter, Allowance(Decimal(), True))
        charged = before.charged_beyond and row.overage == Overage.CHARGE
        included[row.meter] = Allowance(before.amount + (row.amount or 0), charged)
    return found


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


class _Entry(NamedTuple):
    """What an audit entry says of its license."""

    at: datetime
    action: str
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(slots=True)
class _History:
    """The terms a license is rated under, and its entries in the order they hold from, but for those of changes that
    were undone."""

    terms: list[_Term]
    entries: list[_Entry]


def _histories(
    license_ids: Sequence[UUID], supposed: Mapping[UUID, Sequence[tuple[datetime, str, PlanRevision]]]
) -> dict[UUID, _History]:
    found = {pk: _History([], []) for pk in license_ids}
    undone: set[str] = set()
    rows = list(Term.objects.filter(license_id__in=license_ids).order_by("starts_at"))
    plans = PlanRevision.objects.in_bulk({row.plan_revision_id for row in rows})
    for row in rows:
        if row.undone_at is None:
            term = _Term(row.starts_at, row.scheme, plans[row.plan_revision_id], row.pk)
            found[row.license_id].terms.append(term)
        else:
            undone.add(str(row.pk))
    entries = AuditEntry.objects.filter(license_id__in=license_ids, object_kind="license").order_by("at", "id")
    for license_id, *values in entries.values_list("license_id", "at", "action", "before", "after").iterator():
        entry = _Entry(*values)
        if license_id is not None and not undone & {entry.after.get("term"), entry.after.get("undone_term")}:
            found[license_id].entries.append(entry)
    for pk, history in found.items():
        history.entries.sort(key=_since)
        if pk in supposed:
            known = {(term.starts_at, term.scheme, term.plan_revision.pk): term for term in history.terms}
            history.terms = sorted(
                (
                    known.get((start, scheme, plan.pk), _Term(start, scheme, plan))
                    for start, scheme, plan in supposed[pk]
                ),
                key=lambda term: term.starts_at,
            )
    return found


def _limits(license: License, history: _History) -> list[tuple[datetime, int | None]]:
    """Return the seat limits of the license and from when each was in force; the first reaches back to the start. A
    term that is only supposed brings the limit of its revision."""
    found: list[tuple[datetime, int | None, str]] = []
    for entry in sorted(history.entries, key=lambda entry: entry.at):
        if "seat_limit" not in entry.after:
            continue
        since = _since(entry)
        if since < entry.at:  # a change made late: of what was written after its instant only limits set by people stay
            found = [limit for limit in found if limit[0] <= since or limit[2] == "license.limits_changed"]
        found.append((since, entry.after["seat_limit"], entry.action))
    limits = [(since, count) for since, count, _ in sorted(found, key=lambda limit: limit[0])]
    limits = limits or [(license.created_at, license.seat_limit)]
    for term in history.terms:
        if term.id is None:
            limits = [limit for limit in limits if limit[0] < term.starts_at]
            limits.append((term.starts_at, term.plan_revision.seat_limit))
    return limits


def _ran(license: License, entries: list[_Entry]) -> list[Span]:
    """Return when the license ran, but for a revocation: up to each expiry, and on from where it was given a later one
    or none. A renewal says what it counts from: one that counts from the expiry covers the time since."""
    ran, started = list[Span](), _EVER.starts_at
    expires_at: datetime | None = None
    for entry in entries:
        if "expires_at" not in entry.after or (said := _instant(entry.after["expires_at"])) == expires_at:
            continue
        resumed = min(_since(entry), _instant(entry.after.get("covered_from")) or _since(entry))
        if expires_at is not None and expires_at < resumed:
            ran.append(Span(started, expires_at))
            started = resumed
        expires_at = said
    return [*ran, Span(started, license.expires_at or _EVER.ends_at)]


def _instant(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None


def _since(entry: _Entry) -> datetime:
    """Return from when an entry holds: a scheduled change of terms from its term's start, however late it was made."""
    return _instant(entry.after.get("term_starts_at")) or entry.at


def _owners(license: License, entries: list[_Entry]) -> list[tuple[datetime, UUID]]:
    """Return the customers the license belonged to and from when; the first reaches back to the start."""
    moves = [entry for entry in entries if entry.action == "license.transferred"]
    if not moves:
        return [(_EVER.starts_at, license.customer_id)]
    return [
        (_EVER.starts_at, UUID(moves[0].before["customer"])),
        *((move.at, UUID(move.after["customer"])) for move in moves),
    ]


def owners_of(license: License) -> set[UUID]:
    """Return the customers the license belongs or belonged to: statements of theirs may bill it."""
    return {customer_id for _, customer_id in _owners(license, _histories([license.pk], {})[license.pk].entries)}


def _seats(limits: list[tuple[datetime, int | None]], covered: Span, paid_until: datetime) -> list[Seats]:
    """Return the seat limits in force through the span, neighbours of the same number joined."""
    found: list[Seats] = []
    for index, (start, count) in enumerate(limits):
        start = max(start, covered.starts_at) if index else covered.starts_at
        end = min(limits[index + 1][0] if index + 1 < len(limits) else covered.ends_at, covered.ends_at)
        if start >= end:
            continue
        if found and found[-1].count == count:
            found[-1] = Seats(count, Span(found[-1].span.starts_at, end), paid_until)
        else:
            found.append(Seats(count, Span(start, end), paid_until))
    return found


# --- from draft to final ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Key:
    """What a correction is reckoned by: fees of a license under a term have no meter."""

    license_id: UUID | None
    term_id: UUID | None
    meter: str


def held_open(statement: Statement) -> bool:
    """Return whether something keeps the draft from being closed."""
    return any(blocks(statement) for blocks in BLOCKERS)


def open_months(*, customer: Customer, at: datetime) -> int:
    """Bring the customer's drafts up to date and make those that are missing; return how many were looked at.

    A month gets a statement once there is a line to stand on it: the current one, and those before it back to the one
    the customer's first license or account was made in, as far as corrections reach. May run twice and concurrently.
    """
    _draw_credit(customer.pk, month_of(at - CORRECTED_FOR).starts_at, month_of(at).ends_at, at)
    with transaction.atomic():
        account = lock_account(customer.pk, at)
        known = Statement.objects.filter(customer=customer)
        drafts = list(known.filter(state=StatementState.DRAFT))
        # What is void stays so: it is replaced, or it is not, where it is made void.
        made = set(known.values_list("starts_at", flat=True))
        # Not by the start of a license: one that came from another system was billed there before.
        first = _licenses_of(customer.pk).order_by("created_at").values_list("created_at", flat=True).first()
        month = month_of(max(min(account.created_at, first or at), at - CORRECTED_FOR))
        while month.starts_at <= at:
            if month.starts_at not in made:
                drafts.append(_new(account, month, at))
            month = month_of(month.ends_at)
        # The oldest first: what a month owes can be a correction of one before it.
        for draft in sorted(drafts, key=lambda draft: draft.starts_at):
            lines = _lines(draft, account, at)
            if draft._state.adding:
                if not lines:
                    continue
                draft.save(force_insert=True)
            _write(draft, lines, account, at)
    return len(drafts)


def refresh(*, statement: Statement, at: datetime) -> Statement:
    """Compute a draft anew, late events included. What people adjusted stays. Raises `StatementNotDraft`."""
    _draw_credit(statement.customer_id, statement.starts_at, statement.ends_at, at)
    with transaction.atomic():
        account = lock_account(statement.customer_id, at)
        row = _draft(statement)
        _write(row, _lines(row, account, at), account, at)
    return row


def close(*, statement: Statement, by: Actor, at: datetime) -> Statement:
    """Make a draft final: computed a last time, with the customer's next number.

    Credit of earlier statements is set off against what it asks for. With nothing left to pay it is paid at once; below
    zero it is credit itself, for those that follow.

    Raises:
        StatementNotDraft: it is final already.
        StatementNotDue: late events are still waited for (setting STATEMENT_GRACE_DAYS).
        StatementHeldOpen: see `BLOCKERS`.
        NothingOwed: it has no line.
    """
    _draw_credit(statement.customer_id, statement.starts_at, statement.ends_at, at)
    with transaction.atomic():
        account = lock_account(statement.customer_id, at)
        row = _draft(statement)
        if at < row.ends_at + timedelta(days=settings.STATEMENT_GRACE_DAYS):
            raise StatementNotDue()
        if held_open(row):
            raise StatementHeldOpen()
        lines = _lines(row, account, at)
        _write(row, lines, account, at)
        if not lines and not row.lines.exists():
            raise NothingOwed()
        # The account's lock is held until this is committed or undone: no number is given twice or left out.
        account.last_number += 1
        account.save(update_fields=["last_number"])
        row.state, row.number, row.final_at = StatementState.FINAL, account.last_number, at
        row.due_at = at + timedelta(days=settings.STATEMENT_PAYMENT_DAYS)
        row.save()
        facts = {"number": row.number, "total_minor": row.total_minor, "currency": row.currency}
        audit.record(action="statement.closed", by=by, on=row, at=at, after=facts)
        if row.total_minor >= 0:
            _set_off(row, by, at)
    return row


def open_minor(statement: Statement) -> int:
    """Return what is still to be paid of a statement, in minor units: the total without what came in, was set off or
    was credited, with what went back. Below nothing when too much came."""
    came = sum(payment.amount_minor for payment in statement.payments.all())
    moved = sum(row.returned_minor - row.credited_minor for row in statement.reversals.all() if row.stands)
    return statement.total_minor - came + moved


def credit_minor(statement: Statement) -> int:
    """Return what is left of the credit that a final statement below zero is, in minor units. Of any other it is 0."""
    if statement.state not in (StatementState.FINAL, StatementState.PAID):
        return 0
    # Paid by setting it off it has credit again where that was made void; paid out it has none.
    if statement.state == StatementState.PAID and _sum(statement.credit_used.all()) < -statement.total_minor:
        return 0
    return max(-statement.total_minor - _sum(_used(statement)), 0)


def _used(statement: Statement) -> QuerySet[Payment]:
    """Return where the credit of a statement went. What was set off against one that is void is free again."""
    return Payment.objects.filter(credit_of=statement).exclude(statement__state=StatementState.VOID)


def _sum(payments: QuerySet[Payment]) -> int:
    return payments.aggregate(all=Sum("amount_minor"))["all"] or 0


def _set_off(row: Statement, by: Actor, at: datetime) -> None:
    """Pay a statement that was just made final with the customer's credit, the oldest first. The account is locked."""
    left = row.total_minor
    credits = Statement.objects.select_for_update(no_key=True).filter(
        customer_id=row.customer_id,
        currency=row.currency,
        state__in=(StatementState.FINAL, StatementState.PAID),
        total_minor__lt=0,
    )
    for credit in credits.order_by("number") if left else ():
        there = credit_minor(credit)
        amount = min(left, there)
        if not amount:
            continue
        Payment.objects.create(
            created_at=at,
            statement=row,
            source=PaymentSource.CREDIT,
            amount_minor=amount,
            reference=f"{credit.pk} {row.pk}",
            credit_of=credit,
        )
        facts = {"amount_minor": amount, "currency": row.currency, "credit_of": credit}
        audit.record(action="payment.credited", by=by, on=row, at=at, after=facts)
        left -= amount
        if amount == there:
            mark_paid(statement=credit, by=by, at=at, reason=f"Set off against statement {row.number}.")
    if not left:
        paid = mark_paid(statement=row, by=by, at=at, reason="Nothing is left to pay.")
        row.state, row.paid_at = paid.state, paid.paid_at


def mark_paid(
    *, statement: Statement, by: Actor, at: datetime, reason: str = "", paid_at: datetime | None = None
) -> Statement:
    """Record that a final statement is paid, now or since an instant. Paid already: nothing happens.

    Raises:
        StatementNotFinal: it is a draft or void.
        Invalid: `paid_at` is before it was final, or yet to come.
    """
    with transaction.atomic():
        row = Statement.objects.select_for_update(no_key=True).get(pk=statement.pk)
        if row.state == StatementState.PAID:
            return row
        if row.state != StatementState.FINAL or row.final_at is None:
            raise StatementNotFinal()
        if paid_at is not None and not row.final_at <= paid_at <= at:
            raise Invalid("It can be paid from when it was final until now.", pointer="/paid_at")
        row.state, row.paid_at = StatementState.PAID, paid_at or at
        row.save()
        audit.record(action="statement.paid", by=by, on=row, at=at, after={"paid_at": row.paid_at}, reason=reason)
    return row


def void(*, statement: Statement, replace: bool, by: Actor, at: datetime, reason: str) -> Statement | None:
    """Make a final statement void: it keeps its number and is owed no more. Return the draft that replaces it.

    With `replace` its period is billed anew, by a draft that takes over what people had adjusted; without, the period
    is given up for good.

    Raises:
        Invalid: no reason is given.
        StatementNotFinal: it is a draft, paid, or void already.
        CreditUsed: it is credit that was set off already.
    """
    _require(reason)
    with transaction.atomic():
        account = lock_account(statement.customer_id, at)
        row = Statement.objects.select_for_update(no_key=True).get(pk=statement.pk)
        if row.state != StatementState.FINAL:
            raise StatementNotFinal()
        if _used(row).exists():
            raise CreditUsed()
        row.state, row.void_at, row.void_reason = StatementState.VOID, at, reason
        row.save()
        audit.record(action="statement.voided", by=by, on=row, at=at, after={"replace": replace}, reason=reason)
        if not replace:
            return None
        draft = _new(account, Span(row.starts_at, row.ends_at), at)
        draft.currency, draft.replaces = row.currency, row
        draft.save(force_insert=True)
        for line in row.lines.filter(kind=LineKind.ADJUSTMENT, corrects=None).order_by("position"):
            _append(draft, line, at)
        _write(draft, _lines(draft, account, at), account, at)
    return draft


def adjust(
    *,
    customer: Customer,
    amount_minor: int,
    description: str,
    reason: str,
    by: Actor,
    at: datetime,
    line: StatementLine | None = None,
) -> StatementLine:
    """Put a correction, plus or minus, on the customer's next open statement, made if there is none; `line` is what it
    adjusts.

    Raises:
        Invalid: no reason or no amount is given, or the line is on a draft, another customer's or in another
            currency.
    """
    _require(reason)
    if not amount_minor:
        raise Invalid("An adjustment of nothing changes nothing.", pointer="/amount_minor")
    with transaction.atomic():
        account = lock_account(customer.pk, at)
        if line and (line.statement.customer_id, line.statement.currency) != (customer.pk, account.currency):
            raise Invalid("This line is on no statement of the customer in its currency.", pointer="/line")
        if line and line.statement.state == StatementState.DRAFT:
            raise Invalid("This line is not final yet: a draft follows what it is made of.", pointer="/line")
        drafts = Statement.objects.filter(
            customer=customer, currency=account.currency, state=StatementState.DRAFT
        ).order_by("starts_at")
        draft = drafts.first()
        if draft is None:
            draft = _new(account, month_of(at), at)
            while Statement.objects.filter(customer=customer, starts_at=draft.starts_at).exists():
                draft = _new(account, month_of(draft.ends_at), at)
            draft.save(force_insert=True)
        made = _append(
            draft,
            StatementLine(
                kind=LineKind.ADJUSTMENT,
                license_id=line.license_id if line else None,
                meter=line.meter if line else "",
                description=description,
                starts_at=line.starts_at if line else draft.starts_at,
                ends_at=line.ends_at if line else draft.ends_at,
                amount_minor=amount_minor,
                adjusts=line,
                reason=reason,
            ),
            at,
        )
        _write(draft, _lines(draft, account, at), account, at)
        facts = {"amount_minor": amount_minor, "description": description, "line": line.pk if line else None}
        audit.record(action="statement.adjusted", by=by, on=draft, at=at, after=facts, reason=reason)
    return made


def due(*, at: datetime) -> list[Statement]:
    """Return the drafts whose period and grace time are over and that nothing holds open, the oldest first."""
    ended = at - timedelta(days=settings.STATEMENT_GRACE_DAYS)
    lines = StatementLine.objects.filter(statement=OuterRef("pk"))
    drafts = Statement.objects.filter(Exists(lines), state=StatementState.DRAFT, ends_at__lte=ended)
    return [draft for draft in drafts.order_by("ends_at", "pk") if not held_open(draft)]


def billed_customers() -> list[UUID]:
    """Return the customers that could owe something: those with a license under a plan that has a price, or a draft."""
    priced = Term.objects.in_force().filter(
        plan_revision__plan__prices__revisions__state__in=(RevisionState.PUBLISHED, RevisionState.RETIRED)
    )
    found = set(priced.values_list("license__customer_id", flat=True).distinct())
    found |= set(Statement.objects.filter(state=StatementState.DRAFT).values_list("customer_id", flat=True).distinct())
    found |= {UUID(entry.before["customer"]) for entry in _transfers().only("before")}
    return sorted(found)


def may_be_rated(*, before: datetime, at: datetime) -> bool:
    """Return whether time before an instant may still be rated anew: a month gets its statement, and a final one is
    corrected, for `CORRECTED_FOR`."""
    if before > month_of(at - CORRECTED_FOR).starts_at:
        return True
    draft = Statement.objects.filter(state=StatementState.DRAFT).order_by("starts_at").first()
    final = Statement.objects.filter(state__in=(StatementState.FINAL, StatementState.PAID), starts_at__lt=before)
    return draft is not None and final.filter(ends_at__gt=draft.starts_at - CORRECTED_FOR).exists()


def _transfers() -> QuerySet[AuditEntry]:
    """Return the entries of the transfers of licenses, found by the licenses that were ever transferred."""
    moved = License.objects.filter(transferred_at__isnull=False).values("pk")
    return AuditEntry.objects.filter(license_id__in=moved, action="license.transferred")


def _require(reason: str) -> None:
    if not reason.strip():
        raise Invalid("Say why.", pointer="/reason")


def _draw_credit(customer_id: UUID, starts_at: datetime, ends_at: datetime, at: datetime) -> None:
    """Have prepaid credit drawn where whoever counted usage was stopped before. It locks licenses, so it is done
    before the account is locked."""
    ids = _licenses_of(customer_id).values_list("pk", flat=True)
    allowances.settle_all(license_ids=ids, starts_at=starts_at, ends_at=ends_at, at=at)


def lock_account(customer_id: UUID, at: datetime) -> BillingAccount:
    """Return the customer's account, locked. Whatever changes a customer's statements holds this lock, and no other
    before it: accounts, statement, license is the order."""
    BillingAccount.objects.get_or_create(customer_id=customer_id, defaults={"created_at": at})
    return (
        BillingAccount.objects.select_for_update(no_key=True, of=("self",))
        .select_related("customer")
        .get(customer_id=customer_id)
    )


def _draft(statement: Statement) -> Statement:
    row = Statement.objects.select_for_update(no_key=True).get(pk=statement.pk)
    if row.state != StatementState.DRAFT:
        raise StatementNotDraft()
    return row


def _new(account: BillingAccount, period: Span, at: datetime) -> Statement:
    return Statement(
        created_at=at,
        customer_id=account.customer_id,
        currency=account.currency,
        starts_at=period.starts_at,
        ends_at=period.ends_at,
    )


def _append(statement: Statement, line: StatementLine, at: datetime) -> StatementLine:
    """Put a line, or a copy of one, at the end of the statement."""
    last = statement.lines.order_by("-position").values_list("position", flat=True).first()
    ours = ("id", "created_at", "statement", "position")
    values = {field.attname: getattr(line, field.attname) for field in line._meta.fields if field.name not in ours}
    return StatementLine.objects.create(statement=statement, created_at=at, position=(last or 0) + 1, **values)


def _lines(statement: Statement, account: BillingAccount, at: datetime) -> list[StatementLine]:
    """Return what the draft owes at `at`, unsaved: what its licenses owe for its period, then corrections."""
    own = _owed(statement, at)
    lines = [
        StatementLine(
            kind=line.kind,
            license_id=line.license_id,
            term_id=line.term_id,
            price_revision_id=line.price_revision_id,
            meter=line.meter,
            description=line.description,
            starts_at=line.starts_at,
            ends_at=line.ends_at,
            quantity=line.quantity,
            unit_amount=line.unit_amount,
            amount_minor=line.amount_minor,
        )
        for line in own
    ]
    if statement.replaces:
        lines += _corrections(statement, statement.replaces, _sums(own), _sums(own))
    for final in _corrected_by(statement):
        assert final.final_at is not None
        billed = _sums(final.lines.exclude(kind=LineKind.ADJUSTMENT))
        lines += _corrections(statement, final, _sums(_owed(final, final.final_at)), billed)
    return lines


def _owed(statement: Statement, known_at: datetime) -> list[RatedLine]:
    """Return what the statement's customer owes for its period, by prices known at `known_at` and usage known now."""
    licenses = _licenses_of(statement.customer_id).filter(issued_at__isnull=False).order_by("pk")
    return [
        line
        for line in _rated(licenses, _Asked(statement.starts_at, statement.ends_at, known_at, statement.currency))
        if line.customer_id == statement.customer_id
    ]


def _licenses_of(customer_id: UUID) -> QuerySet[License]:
    """Return the licenses of a customer, and those that went to another since: it is billed for the time before."""
    moved = _transfers().filter(before__customer=str(customer_id)).values("license_id")
    return License.objects.filter(Q(customer_id=customer_id) | Q(pk__in=moved))


def _corrected_by(statement: Statement) -> list[Statement]:
    """Return the final statements whose corrections belong on this draft: no open one stands between. Which they are
    does not change while the draft is open: what it once corrected stays."""
    before = Statement.objects.filter(
        customer_id=statement.customer_id, currency=statement.currency, starts_at__lt=statement.starts_at
    )
    final = before.filter(
        state__in=(StatementState.FINAL, StatementState.PAID), ends_at__gt=statement.starts_at - CORRECTED_FOR
    ).order_by("starts_at")
    draft = before.filter(state=StatementState.DRAFT).order_by("-starts_at").first()
    return list(final.filter(starts_at__gt=draft.starts_at) if draft else final)


def _corrections(
    statement: Statement, final: Statement, owed: dict[_Key, int], billed: dict[_Key, int]
) -> list[StatementLine]:
    """Return an adjustment for each key that is owed other than billed, corrections on other statements included."""
    elsewhere = StatementLine.objects.filter(
        corrects__customer_id=final.customer_id,
        corrects__currency=final.currency,
        corrects__starts_at=final.starts_at,
    ).exclude(statement__state=StatementState.VOID)
    if not statement._state.adding:
        elsewhere = elsewhere.exclude(statement_id=statement.pk)
    corrected = _sums(elsewhere)
    keys = owed.keys() | billed.keys() | corrected.keys()
    amounts = {key: owed.get(key, 0) - billed.get(key, 0) - corrected.get(key, 0) for key in sorted(keys, key=str)}
    lines: list[StatementLine] = []
    if not any(amounts.values()):
        return lines
    names = dict(Meter.objects.filter(code__in={key.meter for key in amounts}).values_list("code", "name"))
    first: dict[_Key, StatementLine] = {}
    for line in final.lines.order_by("position"):
        first.setdefault(_Key(line.license_id, line.term_id, line.meter), line)
    for key, amount in amounts.items():
        if amount:
            what = names.get(key.meter, key.meter) or "fees"
            lines.append(
                StatementLine(
                    kind=LineKind.ADJUSTMENT,
                    description=f"Correction of statement {final.number}: {_short(what)}",
                    starts_at=final.starts_at,
                    ends_at=final.ends_at,
                    amount_minor=amount,
                    adjusts=first.get(key),
                    corrects=final,
                    reason="What the period owes changed after it was final.",
                    license_id=key.license_id,
                    term_id=key.term_id,
                    meter=key.meter,
                )
            )
    return lines


def _sums(lines: Iterable[RatedLine | StatementLine]) -> dict[_Key, int]:
    """Return the amounts of lines, rated or kept, by what a correction is reckoned by."""
    found: dict[_Key, int] = {}
    for line in lines:
        key = _Key(line.license_id, line.term_id, line.meter)
        found[key] = found.get(key, 0) + line.amount_minor
    return found


# What makes two lines the same.
_CONTENT = (
    *("kind", "license_id", "term_id", "price_revision_id", "meter", "description", "starts_at", "ends_at"),
    *("quantity", "unit_amount", "amount_minor", "adjusts_id", "corrects_id", "reason"),
)


def _write(statement: Statement, lines: list[StatementLine], account: BillingAccount, at: datetime) -> None:
    """Make these the draft's lines, after which stand what people adjusted; and its totals what they sum to."""
    standing = list(statement.lines.order_by("position"))
    by_hand = [line for line in standing if line.kind == LineKind.ADJUSTMENT and line.corrects_id is None]
    wanted = [*lines, *by_hand]
    if [_content(line) for line in standing] != [_content(line) for line in wanted]:
        statement.lines.all().delete()
        for position, line in enumerate(wanted, start=1):
            line.statement, line.position = statement, position
            line.created_at = line.created_at or at
        StatementLine.objects.bulk_create(wanted)
    statement.subtotal_minor = sum(line.amount_minor for line in wanted)
    statement.tax_rate = account.tax_rate
    tax_id = f"Tax id {account.tax_id}" if account.tax_id else ""
    statement.bill_to = "\n".join(part for part in (account.customer.name, account.address, tax_id) if part)
    statement.tax_minor = pricing.tax(statement.subtotal_minor, rate=account.tax_rate, currency=statement.currency)
    statement.total_minor = statement.subtotal_minor + statement.tax_minor
    statement.refreshed_at = at
    statement.save()


def _content(line: StatementLine) -> tuple[object, ...]:
    return tuple(getattr(line, name) for name in _CONTENT)
