"""What the pages of statements show: frozen values, with every amount in words already. It changes nothing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import QueryDict

from billing import payments, statements, words
from billing.models import Statement, StatementLine
from billing.states import LineKind, StatementState
from licensing import customers
from licensing.models import Member
from portal.overview import Pages, amount, between, day, one_page

STATEMENTS_A_PAGE = 24
LABELS = {
    StatementState.DRAFT: "So far",
    StatementState.FINAL: "To pay",
    StatementState.PAID: "Paid",
    StatementState.VOID: "Void",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a statement stands: its code, its name, and what that means in a sentence."""

    code: str
    label: str
    sentence: str


@dataclass(frozen=True, slots=True)
class StatementRow:
    """A statement in the list."""

    id: UUID
    name: str
    number: str
    customer: str
    standing: Standing
    total: str


@dataclass(frozen=True, slots=True)
class StatementList:
    """One page of the statements a person may see. `may_see` says that they may see any at all."""

    rows: list[StatementRow]
    pages: Pages
    may_see: bool


@dataclass(frozen=True, slots=True)
class LineRow:
    """One line: what for, for when, how much of it, at which price."""

    words: str
    reason: str
    product: str
    license_id: UUID | None
    period: str
    quantity: str
    unit_price: str
    total: str
    lowers: bool


@dataclass(frozen=True, slots=True)
class StatementPage:
    """Everything the page of one statement shows."""

    id: UUID
    name: str
    number: str
    customer: str
    period: str
    standing: Standing
    lines: list[LineRow]
    subtotal: str
    tax: str
    tax_rate: str
    total: str
    is_final: bool


def list_of_statements(*, user: Any, asked: QueryDict, path: str, at: datetime) -> StatementList:
    """Return a page of the statements of every customer for whom `user` may see money."""
    payers = list(
        Member.objects.filter(user_id=user.pk, role__in=customers.MAY_SEE_MONEY).values_list("customer_id", flat=True)
    )
    found = Statement.objects.filter(customer__in=payers).select_related("customer").order_by("-starts_at", "-id")
    rows, pages = one_page(found, STATEMENTS_A_PAGE, asked, "page", path)
    lines = [
        StatementRow(
            id=row.pk,
            name=f"{row.starts_at:%B %Y}",
            number=str(row.number or ""),
            customer=row.customer.name,
            standing=standing_of(row, at),
            total=words.money(row.total_minor, row.currency),
        )
        for row in rows
    ]
    return StatementList(lines, pages, bool(payers))


def page_of_statement(statement: Statement, at: datetime) -> StatementPage:
    """Return what the page of a statement shows, with all its lines."""
    lines = (
        StatementLine.objects.filter(statement=statement)
        .select_related("license__product", "price_revision__price__plan")
        .order_by("position")
    )
    return StatementPage(
        id=statement.pk,
        name=f"{statement.starts_at:%B %Y}",
        number=str(statement.number or ""),
        customer=statement.customer.name,
        period=between(statement.starts_at, statement.ends_at),
        standing=standing_of(statement, at),
        lines=[_line(line, statement.currency) for line in lines],
        subtotal=words.money(statement.subtotal_minor, statement.currency),
        tax=words.money(statement.tax_minor, statement.currency),
        tax_rate=f"{amount(statement.tax_rate)} %",
        total=words.money(statement.total_minor, statement.currency),
        is_final=statement.state != StatementState.DRAFT,
    )


def standing_of(statement: Statement, at: datetime) -> Standing:
    """Return where a statement stands at the instant `at`, in words."""
    state, code, sentence = StatementState(statement.state), statement.state, ""
    label = LABELS[state]
    match state:
        case StatementState.DRAFT:
            sentence = "It grows with use until the period is over, and is final a little after."
            if statement.refreshed_at is not None:
                sentence += f" Worked out {statement.refreshed_at:%d %B, %H:%M} UTC."
        case StatementState.FINAL if statement.due_at is not None:
            if statement.due_at <= at:
                code, label = "overdue", "Overdue"
                sentence = f"It was to be paid by {day(statement.due_at)}."
            else:
                sentence = f"To be paid by {day(statement.due_at)}."
        case StatementState.PAID if statement.paid_at is not None:
            sentence = f"Paid on {day(statement.paid_at)}. Nothing is left to do."
        case StatementState.VOID if statement.void_at is not None:
            sentence = f"Void since {day(statement.void_at)}: nothing is owed for it."
    return Standing(code, label, sentence)


def _line(line: StatementLine, currency: str) -> LineRow:
    product = line.license.product.name if line.license else ""
    if product and line.price_revision:
        product = f"{product}: {line.price_revision.price.plan.name}"
    return LineRow(
        words=line.description,
        reason=line.reason if line.kind == LineKind.ADJUSTMENT else "",
        product=product,
        license_id=line.license_id,
        period=between(line.starts_at, line.ends_at),
        quantity=amount(line.quantity) if line.quantity is not None else "",
        unit_price=words.unit_price(line.unit_amount, currency) if line.unit_amount is not None else "",
        total=words.money(line.amount_minor, currency),
        lowers=line.amount_minor < 0,
    )


def still_open(statement: Statement) -> str:
    """Return what is still to be paid where a part was paid already; an empty text else."""
    if statement.state != StatementState.FINAL or not payments.received_minor(statement):
        return ""
    return words.money(statements.open_minor(statement), statement.currency)
