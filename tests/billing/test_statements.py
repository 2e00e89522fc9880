"""Statements: what a license owes for a month, and how a statement comes to be final."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext

from billing import changes, jobs, metering, rollups, statements
from billing.metering import Sent
from billing.models import BillingAccount, Meter, MeterRevision, Statement
from licensing import allowances, lifecycle, pictures, sweeps
from licensing.catalog import Grant
from licensing.decision import Scope
from licensing.errors import Invalid
from licensing.models import AuditEntry, License
from licensing.models.allowances import Counter, CreditGrant
from licensing.pictures import Question
from tests.factories import (
    BY,
    make_customer,
    make_license,
    make_meter,
    make_plan,
    make_price,
    make_revision,
    make_usage,
)

pytestmark = pytest.mark.django_db

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
MAY = datetime(2026, 5, 1, tzinfo=UTC)


def seats_license(
    *components: dict[str, Any], at: datetime = MARCH, starts_at: datetime | None = None, **terms: Any
) -> License:
    """Return a license of 10 seats from `at`, at 31 euros a seat unless priced otherwise."""
    plan = make_plan()
    make_price(plan=plan, components=list(components) or [{"kind": "seats", "amount": "31.00"}])
    return make_license(plan_revision=make_revision(plan=plan, **terms), at=at, starts_at=starts_at or at)


def use(license: License, meter: Any, quantity: str, at: datetime, received_at: datetime | None = None) -> None:
    make_usage(license=license, revision=meter, at=at, quantity=quantity, received_at=received_at or at)


def take_back(quantity: str) -> None:
    use(License.objects.get(), MeterRevision.objects.get(), f"-{quantity}", MARCH)


def rated(license: License, starts_at: datetime = MARCH, ends_at: datetime = APRIL, **more: Any) -> Any:
    return statements.rated(license=license, starts_at=starts_at, ends_at=ends_at, at=ends_at, **more)


def amounts(lines: Any) -> list[tuple[str, int]]:
    return [(line.kind, line.amount_minor) for line in lines]


def test_it_charges_the_seats_of_a_whole_month() -> None:
    license = seats_license()

    assert amounts(rated(license)) == [("seats", 310_00)]


def test_it_charges_by_the_second_from_the_start_of_the_term() -> None:
    license = seats_license(at=MARCH + timedelta(days=30))

    assert amounts(rated(license)) == [("seats", 10_00)]


def test_it_credits_unused_seat_time_when_the_limit_changes() -> None:
    license = seats_license()
    lifecycle.change_limits(license=license, seat_limit=20, by=BY, at=MARCH + timedelta(days=21))

    lines = rated(license)

    assert amounts(lines) == [("seats", 310_00), ("credit", -100_00), ("seats", 200_00)]
    assert [(line.starts_at, line.ends_at) for line in lines][1] == (MARCH + timedelta(days=21), APRIL)


def test_it_rates_a_change_from_seats_to_usage_in_mid_month() -> None:
    meter = make_meter(code="calls")
    plan = make_plan()
    make_price(
        plan=plan,
        components=[
            {"kind": "seats", "amount": "31.00"},
            {"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.10"},
        ],
    )
    first = make_revision(plan=plan)
    license = make_license(plan_revision=first, at=MARCH)
    calls = Grant("calls", "allowance", meter="calls", amount=Decimal(50), overage="charge")
    second = make_revision(plan=plan, scheme="usage", grants=[calls])
    use(license, meter, "1000", MARCH + timedelta(days=20))
    preview = rated(license, terms=[(MARCH, "seats", first), (MARCH + timedelta(days=21), "usage", second)])

    lifecycle.change_plan(license=license, plan_revision=second, by=BY, at=MARCH + timedelta(days=21))
    use(license, meter, "70", MARCH + timedelta(days=21))
    use(license, meter, "30", APRIL - timedelta(microseconds=1))
    license.refresh_from_db()

    lines = rated(license)

    assert amounts(lines) == [("seats", 310_00), ("credit", -100_00), ("usage", 5_00)]
    assert amounts(preview) == [("seats", 310_00), ("credit", -100_00)]
    assert lines[0].term_id != lines[2].term_id


def test_it_previews_terms_the_license_does_not_have() -> None:
    license = seats_license()
    more = make_revision(plan=license.plan_revision.plan, seat_limit=20)

    lines = rated(license, terms=[(MARCH, "seats", license.plan_revision), (MARCH + timedelta(days=21), "seats", more)])

    assert amounts(lines) == [("seats", 310_00), ("credit", -100_00), ("seats", 200_00)]
    assert [line.term_id is None for line in lines] == [False, False, True]


def test_it_charges_no_time_after_the_expiry_nor_after_revocation() -> None:
    expiring = seats_license(duration=timedelta(days=10))
    revoked = seats_license()
    lifecycle.revoke(license=revoked, by=BY, at=MARCH + timedelta(days=21), reason="fraud")
    revoked.refresh_from_db()

    assert amounts(rated(expiring)) == [("seats", 100_00)]
    assert amounts(rated(revoked)) == [("seats", 310_00), ("credit", -100_00)]


@pytest.mark.parametrize(
    ("basis", "expected"),
    [
        ("from_now", [("flat", 20_00), ("flat", 14_00), ("seats", 100_00), ("seats", 70_00)]),
        ("from_now_if_expired", [("flat", 20_00), ("flat", 14_00), ("seats", 100_00), ("seats", 70_00)]),
        ("from_expiry", [("flat", 40_00), ("seats", 200_00)]),
    ],
)
def test_it_charges_no_time_between_the_expiry_and_a_renewal_from_now(basis: str, expected: Any) -> None:
    components = ({"kind": "flat", "amount": "62.00"}, {"kind": "seats", "amount": "31.00"})
    license = seats_license(*components, duration=timedelta(days=10), renewal_basis=basis)
    lifecycle.renew(license=license, by=BY, at=MARCH + timedelta(days=24))
    license.refresh_from_db()

    assert amounts(rated(license)) == expected


def test_it_charges_no_time_between_the_expiry_and_a_plan_without_one() -> None:
    license = seats_license(duration=timedelta(days=10))
    perpetual = make_revision(plan=license.plan_revision.plan, duration=None)
    lifecycle.change_plan(license=license, plan_revision=perpetual, by=BY, at=MARCH + timedelta(days=24))
    license.refresh_from_db()

    assert amounts(rated(license)) == [("seats", 100_00), ("seats", 70_00)]
    assert amounts(rated(license, APRIL, MAY)) == [("seats", 310_00)]

    changes.undo(license=license, by=BY, at=MARCH + timedelta(days=25))
    license.refresh_from_db()

    assert amounts(rated(license)) == [("seats", 100_00)]


def test_it_credits_what_a_revocation_after_a_renewal_cut_off() -> None:
    license = seats_license(duration=timedelta(days=10), renewal_basis="from_now")
    lifecycle.renew(license=license, by=BY, at=MARCH + timedelta(days=16))
    lifecycle.revoke(license=license, by=BY, at=MARCH + timedelta(days=20), reason="fraud")
    license.refresh_from_db()

    assert amounts(rated(license)) == [("seats", 100_00), ("seats", 100_00), ("credit", -60_00)]


def test_it_charges_through_a_hold() -> None:
    license = seats_license()
    lifecycle.hold(license=license, reason="dispute", by=BY, at=MARCH + timedelta(days=5))
    lifecycle.lift(license=license, reason="dispute", by=BY, at=MARCH + timedelta(days=9))

    assert amounts(rated(license)) == [("seats", 310_00)]


def test_it_charges_each_owner_for_its_time() -> None:
    license = seats_license()
    first, other = license.customer, make_customer()
    lifecycle.transfer(license=license, to=other, by=BY, at=MARCH + timedelta(days=21), reason="sold")
    license.refresh_from_db()

    lines = rated(license)

    assert [(line.customer_id, line.amount_minor) for line in lines] == [
        (first.pk, 310_00),
        (first.pk, -100_00),
        (other.pk, 100_00),
    ]


def test_it_takes_the_price_effective_where_the_stretch_begins() -> None:
    license = seats_license()
    plan = license.plan_revision.plan
    make_price(plan=plan, components=[{"kind": "seats", "amount": "62.00"}], effective_at=MARCH + timedelta(days=1))

    assert amounts(rated(license, ends_at=MAY)) == [("seats", 310_00), ("seats", 620_00)]


# --- from draft to final ----------------------------------------------------------------------------

DUE = APRIL + timedelta(days=3)


def metered_license(**overrides: Any) -> tuple[License, Any]:
    """Return a license under usage only, 10 cents a call, from March on, and the meter."""
    meter = make_meter()
    plan = make_plan()
    make_price(
        plan=plan, components=[{"kind": "usage", "meter": meter.meter.code, "model": "per_unit", "amount": "0.10"}]
    )
    none = Grant("calls", "allowance", meter=meter.meter.code, amount=Decimal(0), overage="charge")
    license = make_license(plan_revision=make_revision(plan=plan, scheme="usage", grants=[none]), at=MARCH, **overrides)
    return license, meter


def draft_of(license: License, at: datetime = DUE, starts_at: datetime = MARCH) -> Statement:
    account, _ = BillingAccount.objects.get_or_create(customer=license.customer, defaults={"created_at": MARCH})
    statements.open_months(customer=account.customer, at=at)
    return Statement.objects.get(customer=account.customer, starts_at=starts_at, state="draft")


def closed(license: License, at: datetime = DUE) -> Statement:
    return statements.close(statement=draft_of(license), by=BY, at=at)


def shown(statement: Statement) -> list[tuple[str, int]]:
    return list(statement.lines.values_list("kind", "amount_minor"))


def test_it_refreshes_a_draft_with_late_events_and_changes_nothing_when_run_twice() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH + timedelta(days=5))
    draft = draft_of(license)
    before = list(draft.lines.values())
    statements.refresh(statement=draft, at=DUE)
    again = list(draft.lines.values())

    use(license, meter, "5", MARCH + timedelta(days=6), received_at=DUE)
    statements.refresh(statement=draft, at=DUE)

    assert before == again
    assert shown(draft) == [("usage", 150)]


def test_it_opens_no_statement_where_nothing_is_owed() -> None:
    license, _ = metered_license()

    statements.open_months(customer=license.customer, at=DUE)

    assert not Statement.objects.exists()


def test_it_closes_with_the_next_number_and_taxes_the_subtotal_once() -> None:
    license = seats_license(
        {"kind": "flat", "amount": "0.03"}, {"kind": "flat", "amount": "0.03"}, {"kind": "flat", "amount": "0.03"}
    )
    draft = draft_of(license)
    BillingAccount.objects.update(tax_rate=Decimal("19"), last_number=41)

    final = statements.close(statement=draft, by=BY, at=DUE)

    assert (final.state, final.number, final.final_at) == ("final", 42, DUE)
    assert (final.subtotal_minor, final.tax_minor, final.total_minor) == (9, 2, 11)
    assert final.subtotal_minor == sum(amount for _, amount in shown(final))
    assert AuditEntry.objects.get(action="statement.closed").after["number"] == 42


@pytest.mark.parametrize(
    ("prepare", "refusal"),
    [
        (lambda draft: None, statements.StatementNotDue),
        (lambda draft: statements.BLOCKERS.append(lambda one: one.pk == draft.pk), statements.StatementHeldOpen),
        (lambda draft: take_back("10"), statements.NothingOwed),
        (lambda draft: statements.close(statement=draft, by=BY, at=DUE), statements.StatementNotDraft),
    ],
)
def test_it_does_not_close(prepare: Any, refusal: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "BLOCKERS", [])
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    draft = draft_of(license)
    prepare(draft)
    early = refusal is statements.StatementNotDue

    with pytest.raises(refusal):
        statements.close(statement=draft, by=BY, at=DUE - timedelta(microseconds=1 if early else 0))

    assert BillingAccount.objects.get().last_number == (1 if refusal is statements.StatementNotDraft else 0)


def test_it_corrects_a_final_statement_once_on_the_next_open_one() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    final = closed(license)
    use(license, meter, "7", MARCH + timedelta(days=1), received_at=DUE + timedelta(days=1))

    for days in (1, 1, 2):
        statements.open_months(customer=license.customer, at=DUE + timedelta(days=days))

    april = Statement.objects.get(starts_at=APRIL)
    assert shown(april) == [("adjustment", 70)]
    line = april.lines.get()
    assert (line.corrects, line.adjusts, line.meter) == (final, final.lines.get(), meter.meter.code)
    assert shown(final) == [("usage", 100)]

    statements.close(statement=april, by=BY, at=MAY + timedelta(days=3))
    use(license, meter, "-3", MARCH + timedelta(days=1), received_at=MAY)
    statements.open_months(customer=license.customer, at=MAY + timedelta(days=3))

    assert shown(Statement.objects.get(starts_at=MAY)) == [("adjustment", -30)]


def test_it_does_not_correct_a_final_statement_by_a_price_published_after_it() -> None:
    license = seats_license()
    closed(license)
    make_price(
        plan=license.plan_revision.plan,
        components=[{"kind": "seats", "amount": "62.00"}],
        effective_at=MARCH,
        published_at=DUE + timedelta(days=1),
    )

    statements.open_months(customer=license.customer, at=DUE + timedelta(days=2))

    assert shown(Statement.objects.get(starts_at=APRIL)) == [("seats", 620_00)]


def test_it_covers_a_late_renewal_by_a_correction() -> None:
    license = seats_license(duration=timedelta(days=10))
    closed(license)
    lifecycle.renew(license=license, by=BY, at=DUE)  # by ten days from its expiry

    statements.open_months(customer=license.customer, at=DUE + timedelta(days=2))

    assert shown(Statement.objects.get(starts_at=APRIL)) == [("adjustment", 100_00)]


def test_it_keeps_what_a_person_adjusted_through_refreshes() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    final = closed(license)

    statements.adjust(
        customer=license.customer,
        line=final.lines.get(),
        amount_minor=-50,
        description="Goodwill",
        reason="An outage",
        by=BY,
        at=DUE,
    )
    use(license, meter, "1", APRIL)
    statements.open_months(customer=license.customer, at=DUE + timedelta(days=1))

    april = Statement.objects.get(starts_at=APRIL)
    assert shown(april) == [("usage", 10), ("adjustment", -50)]
    assert april.total_minor == -40
    assert AuditEntry.objects.get(action="statement.adjusted").reason == "An outage"


def test_it_refuses_an_adjustment_without_reason_amount_or_a_line_of_the_customer() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    draft = draft_of(license)
    other = make_customer()
    good: dict[str, Any] = {"customer": license.customer, "amount_minor": 5, "description": "x", "reason": "y"}
    for bad, pointer in (
        ({"reason": " "}, "/reason"),
        ({"amount_minor": 0}, "/amount_minor"),
        ({"line": draft.lines.get()}, "/line"),
        ({"line": draft.lines.get(), "customer": other}, "/line"),
    ):
        with pytest.raises(Invalid) as refused:
            statements.adjust(by=BY, at=DUE, **good | bad)

        assert refused.value.pointer == pointer


def test_it_voids_and_replaces_with_what_was_corrected_meanwhile_counted_once() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    final = closed(license)
    use(license, meter, "7", MARCH, received_at=DUE)
    statements.open_months(customer=license.customer, at=DUE + timedelta(days=1))
    april = Statement.objects.get(starts_at=APRIL)
    statements.close(statement=april, by=BY, at=MAY + timedelta(days=3))

    draft = statements.void(statement=final, replace=True, reason="Wrong address", by=BY, at=MAY + timedelta(days=4))

    final.refresh_from_db()
    assert draft is not None
    assert (final.state, final.number, final.void_reason) == ("void", 1, "Wrong address")
    assert shown(draft) == [("usage", 170), ("adjustment", -70)]
    again = statements.close(statement=draft, by=BY, at=MAY + timedelta(days=4))
    assert (again.number, again.replaces) == (3, final)
    statements.open_months(customer=license.customer, at=MAY + timedelta(days=5))
    assert not Statement.objects.filter(state="draft").exists()


def test_it_never_bills_a_period_again_that_is_void_for_good() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    final = closed(license)

    assert statements.void(statement=final, replace=False, reason="Goodwill", by=BY, at=DUE) is None

    statements.open_months(customer=license.customer, at=DUE + timedelta(days=1))
    assert not Statement.objects.exclude(state="void").exists()


def test_it_is_paid_or_void_once() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    final = closed(license)

    paid = statements.mark_paid(statement=final, by=BY, at=DUE + timedelta(days=1))
    statements.mark_paid(statement=final, by=BY, at=DUE + timedelta(days=2))

    final.refresh_from_db()
    assert (final.state, final.paid_at) == ("paid", paid.paid_at)
    with pytest.raises(statements.StatementNotFinal):
        statements.void(statement=final, replace=True, reason="x", by=BY, at=DUE)
    with pytest.raises(statements.StatementNotDraft):
        statements.refresh(statement=final, at=DUE)


def adjusted(license: License, amount_minor: int, starts_at: datetime, at: datetime) -> Statement:
    """Return the final statement of a month on which nothing else stands than an adjustment."""
    BillingAccount.objects.get_or_create(customer=license.customer, defaults={"created_at": MARCH})
    said: dict[str, Any] = {"description": "Agreed", "reason": "Agreed", "by": BY}
    made = statements.adjust(customer=license.customer, amount_minor=amount_minor, at=starts_at, **said)
    return statements.close(statement=made.statement, by=BY, at=at)


def states() -> list[tuple[int, str, int, int]]:
    rows = Statement.objects.order_by("number")
    return [
        (
            row.total_minor,
            row.state,
            max(statements.open_minor(row), 0) if row.state == "final" else 0,
            statements.credit_minor(row),
        )
        for row in rows
    ]


JUNE = datetime(2026, 6, 1, tzinfo=UTC)


def test_a_statement_of_nothing_is_paid_when_it_is_final() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    statements.adjust(customer=license.customer, amount_minor=-100, description="Goodwill", reason="x", by=BY, at=MARCH)

    final = closed(license)

    assert (final.state, final.total_minor, final.number, final.paid_at) == ("paid", 0, 1, DUE)
    assert AuditEntry.objects.get(action="statement.paid").object_id == str(final.pk)


def test_credit_is_set_off_against_the_statements_that_follow() -> None:
    license, _ = metered_license()
    BillingAccount.objects.create(customer=license.customer, created_at=MARCH, tax_rate=Decimal(19))
    adjusted(license, -10_000, MARCH, DUE)
    assert states() == [(-11_900, "final", 0, 11_900)]

    adjusted(license, 4_000, APRIL, MAY + timedelta(days=3))
    assert states() == [(-11_900, "final", 0, 7_140), (4_760, "paid", 0, 0)]

    last = adjusted(license, 10_000, MAY, JUNE + timedelta(days=3))
    assert states() == [(-11_900, "paid", 0, 0), (4_760, "paid", 0, 0), (11_900, "final", 4_760, 0)]
    assert [(one.source, one.amount_minor) for one in last.payments.all()] == [("credit", 7_140)]
    assert shown(last) == [("adjustment", 10_000)]


def test_credit_set_off_against_a_void_statement_is_free_again() -> None:
    license, _ = metered_license()
    credit = adjusted(license, -1_000, MARCH, DUE)
    owed = adjusted(license, 5_000, APRIL, MAY + timedelta(days=3))
    assert states() == [(-1_000, "paid", 0, 0), (5_000, "final", 4_000, 0)]
    statements.void(statement=owed, replace=False, reason="x", by=BY, at=MAY + timedelta(days=4))
    credit.refresh_from_db()
    assert statements.credit_minor(credit) == 1_000

    adjusted(license, 300, MAY, JUNE + timedelta(days=3))
    assert states() == [(-1_000, "paid", 0, 700), (5_000, "void", 0, 0), (300, "paid", 0, 0)]


def test_credit_that_was_paid_out_is_not_set_off() -> None:
    license, _ = metered_license()
    credit = adjusted(license, -1_000, MARCH, DUE)
    statements.mark_paid(statement=credit, by=BY, at=DUE, reason="Paid out")

    adjusted(license, 300, APRIL, MAY + timedelta(days=3))

    assert states() == [(-1_000, "paid", 0, 0), (300, "final", 300, 0)]


def test_credit_that_was_used_cannot_be_made_void() -> None:
    license, _ = metered_license()
    credit = adjusted(license, -1_000, MARCH, DUE)
    paid = adjusted(license, 400, APRIL, MAY + timedelta(days=3))
    assert paid.state == "paid"

    with pytest.raises(statements.CreditUsed):
        statements.void(statement=credit, replace=False, reason="x", by=BY, at=MAY + timedelta(days=4))


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE billing_statement SET total_minor = 1, subtotal_minor = 1",
        "UPDATE billing_statement SET number = 9",
        "UPDATE billing_statement SET state = 'draft', number = NULL, final_at = NULL",
        "DELETE FROM billing_statement",
        "UPDATE billing_statementline SET amount_minor = 1",
        "DELETE FROM billing_statementline",
        "INSERT INTO billing_statementline (id, created_at, position, kind, meter, description, starts_at, ends_at,"
        " amount_minor, reason, statement_id) SELECT {id}, created_at, 99, kind, meter, description, starts_at,"
        " ends_at, amount_minor, reason, statement_id FROM billing_statementline",
    ],
)
def test_it_holds_a_final_statement_against_sql(sql: str) -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH)
    closed(license)
    new_id = uuid4()
    sql = sql.format(id=f"'{new_id if connection.vendor == 'postgresql' else new_id.hex}'")

    with pytest.raises(DatabaseError, match="final|never"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)


def test_its_jobs_bill_every_customer_and_change_nothing_when_run_again() -> None:
    licenses = []
    for _ in range(3):
        license, meter = metered_license()
        BillingAccount.objects.create(customer=license.customer, created_at=MARCH)
        use(license, meter, "10", MARCH)
        licenses.append(license)
    make_license()  # under a plan without a price

    counts = [sweeps.run(job, at=DUE) for job in (jobs.STATEMENT_REFRESH, jobs.STATEMENT_CLOSE) * 2]

    assert counts == [6, 3, 3, 0]
    assert list(Statement.objects.values_list("state", "number", "total_minor")) == [("final", 1, 100)] * 3
    assert jobs.STATEMENT_CLOSE.lag(DUE) == timedelta()


def test_it_bills_the_month_before_an_account_that_was_made_after_it() -> None:
    license, meter = metered_license()
    use(license, meter, "10", MARCH + timedelta(days=5))

    sweeps.run(jobs.STATEMENT_REFRESH, at=APRIL + timedelta(hours=1))

    assert BillingAccount.objects.get().created_at > APRIL
    assert shown(Statement.objects.get(starts_at=MARCH)) == [("usage", 100)]


def test_it_bills_no_month_before_the_license_came_from_elsewhere() -> None:
    seats_license(at=APRIL + timedelta(days=1), starts_at=MARCH)

    sweeps.run(jobs.STATEMENT_REFRESH, at=APRIL + timedelta(days=2))

    assert Statement.objects.get().starts_at == APRIL


def test_its_jobs_go_on_past_a_customer_whose_price_is_broken() -> None:
    broken = seats_license({"kind": "no such thing"})
    sound = seats_license()
    for license in (broken, sound):
        BillingAccount.objects.create(customer=license.customer, created_at=MARCH)

    assert jobs.STATEMENT_REFRESH.work(DUE) == (2, 1)

    assert {statement.customer for statement in Statement.objects.all()} == {sound.customer}


def test_it_bills_a_month_in_one_currency_when_the_account_changes_to_another() -> None:
    license = seats_license()
    plan = license.plan_revision.plan
    make_price(plan=plan, components=[{"kind": "seats", "amount": "40.00"}], currency="USD")
    draft_of(license)
    BillingAccount.objects.update(currency="USD")

    statements.open_months(customer=license.customer, at=MAY)

    billed = Statement.objects.order_by("starts_at").values_list("currency", "subtotal_minor")
    assert list(billed) == [("EUR", 310_00), ("EUR", 310_00), ("USD", 400_00)]


def test_it_asks_the_database_as_often_for_thirty_licenses_as_for_three() -> None:
    counts = []
    for many in (3, 30):
        first, meter = metered_license()
        revision, customer = first.plan_revision, first.customer
        licenses = [first] + [
            make_license(plan_revision=revision, customer=customer, at=MARCH) for _ in range(many - 1)
        ]
        for license in licenses:
            use(license, meter, "10", MARCH + timedelta(days=5))
        rollups.roll_up(at=APRIL)
        for number, license in enumerate(licenses):
            for hour in range(number):  # not rolled up yet, more of each
                use(license, meter, "1", MARCH + timedelta(days=7, hours=hour * 2))
            lifecycle.change_limits(license=license, seat_limit=number, by=BY, at=MARCH + timedelta(days=9))
        draft = draft_of(first)
        use(first, meter, "1", MARCH + timedelta(days=20, minutes=1))
        with CaptureQueriesContext(connection) as asked:
            refreshed = statements.refresh(statement=draft, at=DUE)
        counts.append(len(asked))

        assert refreshed.subtotal_minor == sum(10 * (10 + number) for number in range(many)) + 10

    assert counts[0] == counts[1] <= 30


def prepaid_license(*, prepaid: str = "30", **more: Any) -> License:
    """Return a license with 50 calls included, at 10 cents beyond, and prepaid credit from its start."""
    make_meter(code="calls")
    metering.forget()
    plan = make_plan()
    make_price(plan=plan, components=[{"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.10"}])
    calls = Grant("calls", "allowance", meter="calls", amount=Decimal(50), overage="charge")
    license = make_license(plan_revision=make_revision(plan=plan, scheme="usage", grants=[calls]), at=MARCH, **more)
    allowances.grant(license=license, meter="calls", amount=Decimal(prepaid), by=BY, at=MARCH)
    return license


def consume(license: License, event_id: str, quantity: int, at: datetime) -> None:
    found = pictures.read(Question.of("id", str(license.pk), Scope()))
    assert found is not None
    metering.consume(license=found.snapshot, sent=Sent(event_id, "calls", Decimal(quantity)), source="tests", at=at)


def test_it_does_not_charge_what_was_prepaid() -> None:
    license = prepaid_license()
    consume(license, "march", 70, MARCH + timedelta(days=3))
    consume(license, "april", 70, APRIL + timedelta(days=3))

    march, april = rated(license), rated(license, APRIL, MAY)

    assert [(line.quantity, line.amount_minor) for line in march] == [(0, 0)]
    assert [(line.quantity, line.amount_minor) for line in april] == [(10, 1_00)]
    assert "20 prepaid" in march[0].description


def test_it_takes_prepaid_credit_from_the_term_that_drew_it() -> None:
    license = prepaid_license()
    consume(license, "first", 70, MARCH + timedelta(days=3))
    lifecycle.change_plan(
        license=license,
        plan_revision=make_revision(
            plan=license.plan_revision.plan,
            scheme="usage",
            grants=[Grant("calls", "allowance", meter="calls", amount=Decimal(10), overage="charge")],
        ),
        by=BY,
        at=MARCH + timedelta(days=21),
    )
    license.refresh_from_db()
    consume(license, "second", 35, MARCH + timedelta(days=22))

    assert amounts(rated(license)) == [("usage", 0), ("usage", 1_50)]
    supposed = rated(license, terms=[(MARCH + timedelta(seconds=1), "usage", license.plan_revision)])
    assert amounts(supposed) == [("usage", 9_50)]


def test_it_gives_prepaid_credit_to_the_owner_before_and_what_is_left_to_the_next() -> None:
    license, other = prepaid_license(prepaid="100"), make_customer()
    consume(license, "before", 70, MARCH + timedelta(days=3))
    lifecycle.transfer(license=license, to=other, by=BY, at=MARCH + timedelta(days=21), reason="sold")
    license.refresh_from_db()
    consume(license, "after", 90, MARCH + timedelta(days=22))

    lines = rated(license)

    # The window drew 160 - 50; each stretch includes 50, so that they need 20 and 40 of the 100 there were.
    assert [(line.quantity, line.amount_minor) for line in lines] == [(0, 0), (0, 0)]
    assert [line.customer_id == other.pk for line in lines] == [False, True]


def test_a_statement_draws_the_credit_that_whoever_counted_did_not_come_to() -> None:
    license = prepaid_license()
    allowances.open_windows([(license.pk, "calls", MARCH)])
    use(license, MeterRevision.objects.get(meter__code="calls"), "70", MARCH + timedelta(days=3))
    Counter.objects.filter(license=license).update(used=70)
    allowances.grant(license=license, meter="calls", amount=Decimal(500), by=BY, at=APRIL + timedelta(days=1))
    BillingAccount.objects.create(customer=license.customer, created_at=MARCH)

    statements.open_months(customer=license.customer, at=APRIL + timedelta(days=2))

    statement = Statement.objects.get(customer=license.customer)
    assert [(line.quantity, line.amount_minor) for line in statement.lines.all()] == [(0, 0)]
    assert CreditGrant.objects.filter(license=license).order_by("id").values_list("drawn", flat=True)[0] == 20
    assert statements.refresh(statement=statement, at=APRIL + timedelta(days=3)).total_minor == 0
    assert Counter.objects.get(license=license).credit == 20


def test_it_bills_the_former_owner_for_usage_no_draft_has_shown_yet() -> None:
    license, meter = metered_license()
    former = license.customer
    BillingAccount.objects.create(customer=former, created_at=MARCH)
    use(license, meter, "10", MARCH)
    lifecycle.transfer(license=license, to=make_customer(), by=BY, at=MARCH + timedelta(hours=1), reason="sold")

    assert former.pk in statements.billed_customers()
    statements.open_months(customer=former, at=MARCH + timedelta(days=1))

    assert Statement.objects.get(customer=former).subtotal_minor == 1_00


def test_a_correction_stays_on_its_draft_until_that_is_final() -> None:
    license, meter = metered_license()
    months = [MARCH, APRIL, MAY, datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)]
    for month, after in pairwise(months[:-1]):
        use(license, meter, "10", month)
        at = after + timedelta(days=4)
        statements.close(statement=draft_of(license, at=at, starts_at=month), by=BY, at=at)
    use(license, meter, "7", MARCH + timedelta(days=1))

    draft = draft_of(license, at=months[-1] - timedelta(days=1), starts_at=months[-2])
    assert shown(draft) == [("adjustment", 70)]
    statements.close(statement=draft, by=BY, at=months[-1] + timedelta(days=4))

    assert shown(draft) == [("adjustment", 70)]


def test_it_calls_a_meter_by_its_name() -> None:
    license, meter = metered_license()
    make_usage(license=license, revision=meter, quantity=5, at=MARCH + timedelta(days=1))
    code = meter.meter.code
    assert [line.description for line in rated(license)] == [code]

    Meter.objects.filter(code=code).update(name="API calls")
    final = closed(license)
    make_usage(license=license, revision=meter, quantity=2, at=MARCH + timedelta(days=2), received_at=DUE)
    Meter.objects.filter(code=code).update(name="n" * 200)

    assert final.lines.get().description == "API calls"
    corrected = draft_of(license, at=MAY, starts_at=APRIL).lines.get(kind="adjustment").description
    assert corrected == f"Correction of statement {final.number}: {'n' * 99}…"
