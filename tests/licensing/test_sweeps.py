"""The expiration sweep: what time makes of licenses is recorded once, however late and however often it runs."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from licensing import lifecycle, sweeps
from licensing.models import Anomaly, AuditEntry, JobState, License, OutboxMessage
from tests.factories import AT, BY, make_customer, make_license, make_revision

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def transitions(license: License) -> list[tuple[str, str]]:
    entries = AuditEntry.objects.filter(license_id=license.pk, actor_kind="system").order_by("id")
    return [(entry.action, entry.after["occurred_at"]) for entry in entries if "occurred_at" in entry.after]


def said(instant) -> str:
    return instant.isoformat().replace("+00:00", "Z")


def test_it_does_nothing_before_its_time():
    make_license(duration=10 * DAY)

    assert sweeps.run(sweeps.EXPIRATION, at=AT + 9 * DAY) == 0


def test_it_expires_at_the_very_instant():
    license = make_license(duration=10 * DAY)

    assert sweeps.run(sweeps.EXPIRATION, at=AT + 10 * DAY) == 1

    assert License.objects.get(pk=license.pk).swept_status == "expired"


def test_it_enters_grace_and_then_expires():
    license = make_license(duration=10 * DAY, grace_period=5 * DAY)

    sweeps.run(sweeps.EXPIRATION, at=AT + 10 * DAY)
    between = License.objects.get(pk=license.pk).swept_status
    sweeps.run(sweeps.EXPIRATION, at=AT + 15 * DAY)

    assert between == "in_grace"
    assert transitions(license) == [
        ("license.entered_grace", said(AT + 10 * DAY)),
        ("license.expired", said(AT + 15 * DAY)),
    ]


def test_it_catches_up_in_order_after_a_long_outage():
    license = make_license(duration=10 * DAY, grace_period=5 * DAY)

    assert sweeps.run(sweeps.EXPIRATION, at=AT + 100 * DAY) == 2

    assert transitions(license) == [
        ("license.entered_grace", said(AT + 10 * DAY)),
        ("license.expired", said(AT + 15 * DAY)),
    ]


def test_it_records_each_transition_once_however_often_it_runs():
    license = make_license(duration=10 * DAY, grace_period=5 * DAY)

    done = [sweeps.run(sweeps.EXPIRATION, at=AT + 12 * DAY) for _ in range(5)]

    assert done == [1, 0, 0, 0, 0]
    assert len(transitions(license)) == 1
    assert OutboxMessage.objects.filter(license_id=license.pk).count() == 1


def test_it_leaves_a_revoked_license_alone():
    license = make_license(duration=10 * DAY)
    lifecycle.revoke(license=license, by=BY, at=AT + DAY, reason="refunded")

    assert sweeps.run(sweeps.EXPIRATION, at=AT + 100 * DAY) == 0

    assert transitions(license) == []


def test_it_expires_again_what_was_renewed():
    license = make_license(duration=10 * DAY)
    sweeps.run(sweeps.EXPIRATION, at=AT + 10 * DAY)
    lifecycle.renew(license=license, by=BY, at=AT + 11 * DAY)

    sweeps.run(sweeps.EXPIRATION, at=AT + 12 * DAY)
    renewed = License.objects.get(pk=license.pk).swept_status
    sweeps.run(sweeps.EXPIRATION, at=AT + 20 * DAY)

    assert renewed == "active"
    assert [action for action, _ in transitions(license)] == ["license.expired", "license.expired"]


def test_it_keeps_a_watermark_and_shows_its_lag():
    make_license(duration=10 * DAY)

    before = sweeps.standing(sweeps.EXPIRATION, at=AT + 12 * DAY)
    sweeps.run(sweeps.EXPIRATION, at=AT + 12 * DAY)
    after = sweeps.standing(sweeps.EXPIRATION, at=AT + 12 * DAY)

    assert before.lag == 2 * DAY
    assert after.lag == timedelta()
    assert after.watermark_at == AT + 12 * DAY


def test_it_never_turns_its_watermark_back():
    sweeps.run(sweeps.EXPIRATION, at=AT + 2 * DAY)
    sweeps.run(sweeps.EXPIRATION, at=AT + DAY)

    assert JobState.objects.get(name="expiration-sweep").watermark_at == AT + 2 * DAY


def test_it_is_overdue_when_it_has_not_run():
    sweeps.run(sweeps.EXPIRATION, at=AT)

    assert not sweeps.standing(sweeps.EXPIRATION, at=AT + timedelta(seconds=60)).overdue
    assert sweeps.standing(sweeps.EXPIRATION, at=AT + timedelta(seconds=120)).overdue


def test_it_goes_on_after_a_license_it_cannot_sweep():
    """One license whose row the database refuses to change must not keep the others from expiring."""
    broken, fine = make_license(duration=10 * DAY), make_license(duration=10 * DAY)
    poison = f"NEW.id = '{broken.pk.hex if connection.vendor == 'sqlite' else broken.pk}'"
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                "CREATE TRIGGER poison BEFORE UPDATE ON licensing_license "
                f"WHEN {poison} BEGIN SELECT RAISE(ABORT, 'poison'); END"
            )
        else:
            cursor.execute(
                "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = 'restrict_violation'; END $$"
            )
            cursor.execute(
                "CREATE TRIGGER poison BEFORE UPDATE ON licensing_license "
                f"FOR EACH ROW WHEN ({poison}) EXECUTE FUNCTION poison()"
            )

    done = sweeps.run(sweeps.EXPIRATION, at=AT + 10 * DAY)

    assert done == 1
    assert License.objects.get(pk=fine.pk).swept_status == "expired"
    assert transitions(broken) == []
    assert Anomaly.objects.get(rule="job_failed").evidence == {"failed": 1}
    assert JobState.objects.get(name="expiration-sweep").watermark_at is None


def test_it_costs_what_is_due_and_not_what_there_is():
    revision, customer = make_revision(duration=10 * DAY), make_customer()
    long = make_revision(duration=1000 * DAY)

    def cost(*, idle: int) -> int:
        for _ in range(idle):
            make_license(plan_revision=long, customer=customer)
        for _ in range(3):
            make_license(plan_revision=revision, customer=customer, at=AT)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            sweeps.run(sweeps.EXPIRATION, at=AT + 10 * DAY)
        return len(queries)

    cost(idle=0)  # the job's own row is made at its first run
    sweeps.run(sweeps.EXPIRATION, at=AT)  # the first run ever makes the job's row
    few = cost(idle=1)
    many = cost(idle=40)

    assert many == few


def test_it_finds_what_is_due_by_an_index():
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("EXPLAIN SELECT id FROM licensing_license WHERE due_at <= now() ORDER BY due_at LIMIT 500")
        else:
            cursor.execute(
                "EXPLAIN QUERY PLAN SELECT id FROM licensing_license WHERE due_at <= '2030-01-01' ORDER BY due_at, id"
            )
        plan = str(cursor.fetchall())

    assert "license_due" in plan
