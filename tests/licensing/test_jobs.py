"""The periodic jobs beside the expiration sweep, and what every job's row keeps."""

from datetime import timedelta

import pytest

from licensing import idempotency, lifecycle, outbox, sweeps
from licensing.models import (
    Anomaly,
    AuditEntry,
    DecisionRecord,
    IdempotencyRecord,
    JobState,
    OutboxMessage,
)
from licensing.sweeps import EXPIRATION, OUTBOX, RETENTION, Job
from tests.factories import AT, BY, make_customer, make_license, make_member, make_revision

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)


def job(work) -> Job:
    return Job("test-job", timedelta(seconds=30), work, lambda at: timedelta())


def test_it_keeps_how_a_job_stands():
    unknown = sweeps.standing(job(lambda at: (3, 0)), at=AT)

    done = sweeps.run(job(lambda at: (3, 0)), at=AT)

    row = JobState.objects.get(name="test-job")
    assert (unknown.last_finished_at, unknown.watermark_at, done) == (None, None, 3)
    assert (row.last_started_at, row.last_finished_at, row.watermark_at, row.last_count) == (AT, AT, AT, 3)


def test_it_keeps_a_failure_of_the_work_as_a_whole_raises_it_and_forgets_it_once_mended():
    def broken(at):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        sweeps.run(job(broken), at=AT)
    failed = sweeps.standing(job(broken), at=AT)
    sweeps.run(job(lambda at: (1, 0)), at=AT + DAY)
    mended = sweeps.standing(job(broken), at=AT + DAY)

    assert (failed.failures, failed.last_error, failed.last_finished_at) == (1, "OSError: disk full", None)
    assert (mended.failures, mended.last_error, mended.watermark_at) == (1, "", AT + DAY)
    assert Anomaly.objects.get().rule == "job_failed"


def test_it_does_not_move_the_watermark_past_items_that_failed():
    sweeps.run(job(lambda at: (1, 0)), at=AT)
    sweeps.run(job(lambda at: (5, 2)), at=AT + DAY)

    standing = sweeps.standing(job(lambda at: (0, 0)), at=AT + DAY)
    assert (standing.watermark_at, standing.last_finished_at, standing.failures) == (AT, AT + DAY, 2)


def test_it_does_not_move_the_watermark_past_what_another_run_still_holds():
    held = Job("test-job", timedelta(seconds=30), lambda at: (0, 0), lambda at: timedelta(seconds=1))

    sweeps.run(held, at=AT)

    assert sweeps.standing(held, at=AT).watermark_at is None


def test_it_runs_jobs_of_different_names_as_the_beat_names_them(settings):
    assert {each.name for each in sweeps.every()} == set(settings.CELERY_BEAT_SCHEDULE)


def test_it_works_off_more_than_one_batch_and_passes_by_what_waits(monkeypatch):
    monkeypatch.setattr(sweeps, "BATCH", 3)
    revision, customer = make_revision(duration=10 * DAY), make_customer()
    for _ in range(8):
        make_license(plan_revision=revision, customer=customer)
    make_license(duration=None)
    lifecycle.prepare(plan_revision=revision, customer=customer, by=BY, at=AT)

    assert sweeps.run(EXPIRATION, at=AT + 10 * DAY) == 8
    assert sweeps.run(EXPIRATION, at=AT + 100 * DAY) == 0


def test_it_catches_up_on_many_licenses_in_the_order_of_what_happened():
    customer = make_customer()
    spans = (50, 10, 30)
    made = {days: make_license(customer=customer, plan_revision=make_revision(duration=days * DAY)) for days in spans}

    sweeps.run(EXPIRATION, at=AT + 90 * DAY)

    entries = AuditEntry.objects.filter(action="license.expired").order_by("id")
    assert [entry.license_id for entry in entries] == [made[days].pk for days in sorted(spans)]


def test_it_mails_what_is_due_and_flags_what_it_gives_up(mailoutbox):
    member = make_member()
    license = make_license(customer=member.customer)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    outbox.enqueue(kind="unheard.of", payload={}, at=AT, license_id=license.pk)
    OutboxMessage.objects.filter(kind="unheard.of").update(attempts=outbox.FEWEST_TRIES)

    done = sweeps.run(OUTBOX, at=AT + 4 * DAY)

    anomaly = Anomaly.objects.get()
    assert done == 1
    assert [mail.to for mail in mailoutbox] == [[member.user.email]]
    assert (anomaly.rule, anomaly.license, anomaly.severity) == ("delivery_given_up", license, "critical")


def test_it_says_how_long_mail_has_waited():
    outbox.enqueue(kind="x", payload={}, at=AT)

    assert sweeps.standing(OUTBOX, at=AT + DAY).lag == DAY


def test_it_forgets_only_what_is_kept_for_a_time():
    for age in (31, 29):
        at = AT - age * DAY
        DecisionRecord.objects.create(created_at=at, at=at, request_id=f"{age}", caller="c", code="expired")
    for number, at in enumerate((AT - DAY, AT - DAY + TICK)):
        idempotency.once(principal="p", key=str(number), request=b"", at=at, act=lambda: (200, b"{}"))

    done = sweeps.run(RETENTION, at=AT)

    assert done == 2
    assert DecisionRecord.objects.filter(request_id__in=["31", "29"]).get().request_id == "29"
    assert IdempotencyRecord.objects.get().created_at == AT - DAY + TICK
