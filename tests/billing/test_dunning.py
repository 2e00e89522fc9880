"""Dunning: reminders, then a hold, each once; and what dunning held is free again once nothing is owed for it."""

from datetime import timedelta

import pytest
from django.db import DatabaseError, transaction

from billing import dunning, jobs, payments, statements
from billing.models import DunningHold, DunningStep
from licensing import lifecycle, outbox, sweeps
from licensing.models import Anomaly, AuditEntry, Hold
from tests.factories import AT, BY, make_customer, make_final_statement, make_license, make_member

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


def due(statement, days):
    return statement.due_at + timedelta(days=days)


def run_daily(statement, first=0, last=40):
    for day in range(first, last + 1):
        dunning.run(at=due(statement, day))


def steps(statement):
    return [(step.act, step.days) for step in DunningStep.objects.filter(statement=statement).order_by("created_at")]


def open_holds(license):
    return sorted(Hold.objects.filter(license=license, lifted_at=None).values_list("reason", flat=True))


def mail(at):
    return outbox.relay(handlers={**outbox.handlers(), "mail.license": lambda message: None}, at=at)


def pay(statement, at):
    payments.record_payment(statement=statement, reason="Bank transfer", by=BY, at=at)


def test_it_reminds_three_times_and_then_holds_each_once():
    license = make_license()
    statement = make_final_statement(license=license)

    run_daily(statement)
    run_daily(statement)

    assert steps(statement) == [("reminder", 3), ("reminder", 7), ("reminder", 14), ("hold", 21)]
    assert [step.created_at for step in DunningStep.objects.order_by("created_at")] == [
        due(statement, days) for days in (3, 7, 14, 21)
    ]
    assert open_holds(license) == ["unpaid"]
    assert AuditEntry.objects.filter(action="statement.reminded").count() == 3
    assert AuditEntry.objects.filter(action="statement.held").count() == 1


def test_it_does_nothing_before_the_first_step():
    statement = make_final_statement(license=make_license())

    assert dunning.run(at=due(statement, 3) - timedelta(seconds=1)) == (0, 0)
    assert dunning.run(at=due(statement, 3)) == (1, 0)


def test_it_follows_the_settings(settings):
    settings.DUNNING_REMINDER_DAYS, settings.DUNNING_HOLD_DAYS = [5], 0
    license = make_license()
    statement = make_final_statement(license=license)

    run_daily(statement)

    assert (steps(statement), open_holds(license)) == ([("reminder", 5)], [])


def test_it_mails_owners_and_billing_members_what_is_owed_where_and_until_when(mailoutbox):
    license = make_license(customer=make_customer(email="accounts@example.com"))
    owner = make_member(customer=license.customer)
    billing = make_member(customer=license.customer, role="billing")
    make_member(customer=license.customer, role="viewer")
    statement = make_final_statement(license=license)
    dunning.run(at=due(statement, 3))

    mail(due(statement, 3))

    assert [sent.to[0] for sent in mailoutbox] == sorted(["accounts@example.com", owner.user.email, billing.user.email])
    assert mailoutbox[0].subject == "Statement 1 over 119.00 EUR is overdue"
    assert "18 Apr 2026" in mailoutbox[0].body
    assert "9 May 2026" in mailoutbox[0].body
    assert len({sent.extra_headers["Message-ID"] for sent in mailoutbox}) == 3


def test_it_does_not_remind_whoever_paid_meanwhile(mailoutbox):
    statement = make_final_statement(license=make_license(customer=make_customer(email="a@example.com")))
    dunning.run(at=due(statement, 3))
    pay(statement, due(statement, 3))

    mail(due(statement, 3))

    assert not mailoutbox


def test_it_says_when_there_is_nobody_to_remind():
    statement = make_final_statement()
    dunning.run(at=due(statement, 3))

    mail(due(statement, 3))

    assert Anomaly.objects.get().rule == "nobody_to_remind"


def test_it_reminds_once_after_an_outage_and_holds_only_days_after_that():
    license = make_license()
    statement = make_final_statement(license=license)

    run_daily(statement, first=30, last=32)
    early = steps(statement), open_holds(license)
    run_daily(statement, first=33, last=40)

    assert early == ([("reminder", 14)], [])
    assert steps(statement) == [("reminder", 14), ("hold", 21)]
    assert DunningStep.objects.get(act="hold").created_at == due(statement, 33)


def test_it_lifts_its_hold_on_payment_and_no_other():
    license = make_license()
    statement = make_final_statement(license=license)
    run_daily(statement, last=21)
    lifecycle.hold(license=license, reason="dispute", by=BY, at=due(statement, 22))

    pay(statement, due(statement, 23))

    assert open_holds(license) == ["dispute"]
    assert DunningHold.objects.get().released_at == due(statement, 23)
    assert lifecycle.status_of(license, due(statement, 23)) == "held"


def test_it_leaves_a_hold_that_staff_placed():
    license = make_license()
    statement = make_final_statement(license=license)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)

    run_daily(statement, last=21)
    pay(statement, due(statement, 22))

    assert open_holds(license) == ["unpaid"]
    assert not DunningHold.objects.exists()


def test_it_leaves_a_hold_that_staff_placed_after_lifting_ours():
    license = make_license()
    statement = make_final_statement(license=license)
    run_daily(statement, last=21)
    lifecycle.lift(license=license, reason="unpaid", by=BY, at=due(statement, 22))
    run_daily(statement, first=22, last=25)
    again = open_holds(license)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=due(statement, 26))

    pay(statement, due(statement, 27))

    assert (again, open_holds(license)) == ([], ["unpaid"])


def test_it_holds_until_the_last_of_two_statements_is_paid():
    license = make_license()
    first = make_final_statement(license=license)
    second = make_final_statement(license=license, starts_at=AT - 90 * DAY, ends_at=AT - 60 * DAY)
    run_daily(first, last=21)

    pay(first, due(first, 22))
    between = open_holds(license)
    pay(second, due(first, 23))

    assert (between, open_holds(license)) == (["unpaid"], [])


def test_it_holds_only_licenses_on_the_statement_that_are_the_customer_s_still():
    customer = make_customer()
    billed, other = make_license(customer=customer), make_license(customer=customer)
    moved, revoked = make_license(customer=customer), make_license(customer=customer)
    for license in (moved, revoked):
        make_final_statement(
            license=license,
            starts_at=license.starts_at - 90 * DAY,
            ends_at=AT,
            currency="USD" if license is moved else "CHF",
        )
    statement = make_final_statement(license=billed)
    lifecycle.transfer(license=moved, to=make_customer(), by=BY, at=AT, reason="Sold")
    lifecycle.revoke(license=revoked, by=BY, at=AT, reason="Ended")

    run_daily(statement)

    assert open_holds(billed) == ["unpaid"]
    assert [open_holds(license) for license in (other, moved, revoked)] == [[], [], []]
    assert DunningStep.objects.filter(act="hold").count() == 3


@pytest.mark.parametrize("how", ["marked paid", "void"])
def test_it_lets_go_what_is_settled_without_it(how):
    license = make_license()
    statement = make_final_statement(license=license)
    run_daily(statement, last=21)
    if how == "void":
        statements.void(statement=statement, replace=False, by=BY, at=due(statement, 22), reason="Wrong")
    else:
        statements.mark_paid(statement=statement, by=BY, at=due(statement, 22))
    late = dunning.lag(at=due(statement, 23))

    assert sweeps.run(jobs.DUNNING, at=due(statement, 23)) == 1
    assert (late, open_holds(license), dunning.lag(at=due(statement, 23))) == (DAY, [], timedelta())


def test_it_takes_the_money_though_the_hold_cannot_be_lifted_now():
    license = make_license()
    statement = make_final_statement(license=license)
    run_daily(statement, last=21)
    type(license).objects.filter(pk=license.pk).update(
        seat_limit=99, seats_ceiling=99
    )  # past the rules: its proof does not hold

    pay(statement, due(statement, 22))

    statement.refresh_from_db()
    assert (statement.state, open_holds(license)) == ("paid", ["unpaid"])
    assert "hold_not_lifted" in Anomaly.objects.values_list("rule", flat=True)
    lifecycle.accept_terms(license=license, by=BY, at=due(statement, 23), reason="Known")
    dunning.run(at=due(statement, 23))
    assert open_holds(license) == []


def test_it_duns_nobody_who_owes_nothing():
    statement = make_final_statement(amounts=(-5_00,), license=make_license())

    run_daily(statement)

    assert steps(statement) == []


def test_it_never_changes_or_forgets_a_step():
    statement = make_final_statement(license=make_license())
    dunning.run(at=due(statement, 3))

    for act in (lambda: DunningStep.objects.update(days=4), lambda: DunningStep.objects.all().delete()):
        with pytest.raises(DatabaseError), transaction.atomic():
            act()
    assert steps(statement) == [("reminder", 3)]
