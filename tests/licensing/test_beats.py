"""Run keys, claims, lags and the watch over periodic jobs."""

from datetime import timedelta

import pytest
from django.conf import settings as configured
from django.utils import timezone

from licensing import outbox, reminders, sweeps
from licensing.errors import Missing
from licensing.models import Anomaly, AuditEntry, JobState, OutboxMessage
from licensing.sweeps import Job
from portal.celery import app
from tests.factories import AT, BY, make_actor, make_license

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def _nothing_flagged_yet():
    sweeps._flagged.clear()


def job(every=HOUR, work=lambda at: (1, 0), **more) -> Job:
    return Job("test-job", every, work, lambda at: timedelta(), **more)


# --- run keys ---------------------------------------------------------------------------------------


def test_a_stretch_is_done_once_and_the_next_one_again():
    assert [sweeps.beat(job(), at=AT + minutes * MINUTE) for minutes in (0, 0, 15, 59, 60, 61)] == [1, 0, 0, 0, 1, 0]


def test_a_daily_job_begins_at_its_hour():
    daily = job(DAY, offset=3 * HOUR)
    midnight = AT.replace(hour=0)

    hours = [hour for hour in range(48) if sweeps.beat(daily, at=midnight + hour * HOUR)]

    assert hours == [0, 3, 27]


def test_after_days_without_a_beat_there_is_one_run():
    sweeps.beat(job(), at=AT)

    assert [sweeps.beat(job(), at=AT + 3 * DAY + n * SECOND) for n in range(5)] == [1, 0, 0, 0, 0]


def test_what_failed_is_tried_again_within_its_stretch():
    outcomes = [OSError("disk full"), (3, 1), (4, 0), (9, 0)]

    def work(at):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    daily = job(DAY, work)
    with pytest.raises(OSError):
        sweeps.beat(daily, at=AT)

    assert [sweeps.beat(daily, at=AT + n * 15 * MINUTE) for n in (1, 2, 3)] == [3, 4, 0]


def test_a_key_of_a_clock_that_was_wrong_holds_nobody_up():
    sweeps.beat(job(), at=AT + 400 * DAY)

    assert sweeps.beat(job(), at=AT) == 1
    assert sweeps.beat(job(), at=AT) == 0


def test_whoever_was_overtaken_does_not_call_the_stretch_done():
    def overtaken(at):
        JobState.objects.filter(name="test-job").update(run_token=None, claimed_until=None)
        return 1, 0

    sweeps.beat(job(work=overtaken), at=AT)

    assert JobState.objects.get(name="test-job").finished_key == ""


def test_a_shared_job_runs_whenever_it_is_beaten():
    assert [sweeps.beat(job(shared=True), at=AT) for _ in range(2)] == [1, 1]


def test_it_says_when_a_job_runs_next():
    never = sweeps.standing(job(), at=AT).next_at
    sweeps.beat(job(), at=AT + 5 * MINUTE)

    assert never == AT
    assert sweeps.standing(job(), at=AT + 10 * MINUTE).next_at == AT + HOUR
    assert sweeps.standing(job(), at=AT + 90 * MINUTE).next_at == AT + 90 * MINUTE


# --- lags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [each.name for each in sweeps.every()])
def test_every_job_has_a_lag_of_no_less_than_nothing_and_its_own_span(name):
    found = sweeps.named(name)

    assert found.lag(timezone.now()) >= timedelta()
    assert found.every > timedelta()


@pytest.mark.parametrize(
    "name",
    ["usage-reconcile", "usage-partitions", "usage-ids", "statement-refresh", "key-ring-check", "dead-installations"],
)
def test_a_job_that_looks_at_everything_lags_by_how_long_it_has_been_due(name):
    found = sweeps.named(name)
    JobState.objects.update_or_create(name=name, defaults={"last_finished_at": AT})

    assert found.lag(AT + found.every) == timedelta()
    assert found.lag(AT + found.every + 5 * MINUTE) == 5 * MINUTE


def test_retention_lags_by_what_is_kept_beyond_its_time():
    outbox.enqueue(kind="x", payload={}, at=AT)
    OutboxMessage.objects.update(delivered_at=AT)

    assert sweeps.RETENTION.lag(AT + outbox.KEPT_FOR) == timedelta()
    assert sweeps.RETENTION.lag(AT + outbox.KEPT_FOR + HOUR) == HOUR


# --- the watch --------------------------------------------------------------------------------------


def finish_all(at) -> None:
    for each in sweeps.every():
        JobState.objects.update_or_create(name=each.name, defaults={"last_finished_at": at})


@pytest.mark.parametrize("name", [each.name for each in sweeps.every()])
def test_a_job_that_missed_two_runs_is_an_anomaly_without_any_worker(name):
    found = sweeps.named(name)
    late = max(2 * found.every, sweeps.SLACK)
    finish_all(AT + late)
    JobState.objects.filter(name=name).update(last_finished_at=AT)

    in_time = name in sweeps.watch(at=AT + late)
    overdue = name in sweeps.watch(at=AT + late + SECOND)

    assert (in_time, overdue) == (False, True)
    anomaly = Anomaly.objects.get(rule="job_overdue", object_id=name)
    assert (anomaly.severity, anomaly.object_kind) == ("critical", "job")


def test_a_job_that_never_ran_is_overdue_since_the_installation():
    now = timezone.now() + 3 * DAY

    assert set(sweeps.watch(at=now)) == {each.name for each in sweeps.every()}


def test_a_run_in_the_future_counts_as_none():
    finish_all(AT + 400 * DAY)

    assert "expiration-sweep" in sweeps.watch(at=AT)


def test_it_flags_the_same_once_in_five_minutes():
    finish_all(AT)
    for seconds in range(120, 360, 15):
        sweeps.watch(at=AT + seconds * SECOND)

    assert Anomaly.objects.get(rule="job_overdue", object_id="expiration-sweep").count == 1


def test_messages_that_wait_a_minute_are_an_anomaly_though_nothing_failed():
    finish_all(AT + MINUTE)
    outbox.enqueue(kind="x", payload={}, at=AT)

    sweeps.watch(at=AT + MINUTE)
    early = Anomaly.objects.filter(rule="delivery_late").exists()
    sweeps.watch(at=AT + MINUTE + SECOND)

    assert not early
    assert Anomaly.objects.get(rule="delivery_late").severity == "high"


def test_readiness_and_the_thread_of_every_process_raise_it(client, monkeypatch):
    finish_all(timezone.now() - HOUR)

    assert "job:outbox-relay" in client.get("/health/ready").json()["degraded"]
    assert Anomaly.objects.filter(rule="job_overdue", object_id="outbox-relay").exists()

    Anomaly.objects.all().delete()
    sweeps._flagged.clear()
    sweeps.looking.work()
    assert Anomaly.objects.filter(rule="job_overdue", object_id="outbox-relay").exists()


# --- by hand ----------------------------------------------------------------------------------------


def test_a_job_is_run_by_hand_and_it_is_kept_who_did():
    make_license(duration=DAY)
    state = JobState.objects.create(name="expiration-sweep")

    done = sweeps.run_by_hand(job=state, by=make_actor(), at=AT + 2 * DAY, reason="cannot wait", queue=None)

    entry = AuditEntry.objects.get(action="job.run_by_hand")
    assert done == 1
    assert (entry.object_id, entry.actor_id, entry.reason) == ("expiration-sweep", "1", "cannot wait")


def test_it_goes_through_the_queue_where_a_worker_is_at_work_and_only_there():
    queued = []
    state = JobState.objects.create(name="expiration-sweep", last_finished_at=AT)

    early = sweeps.run_by_hand(job=state, by=BY, at=AT + 30 * SECOND, queue=queued.append)
    late = sweeps.run_by_hand(job=state, by=BY, at=AT + 10 * MINUTE, queue=queued.append)

    assert (early, late, queued) == (None, 0, ["expiration-sweep"])


def test_a_job_run_by_hand_that_fails_says_so(monkeypatch):
    monkeypatch.setitem(sweeps._others, "test-job", job(work=lambda at: 1 / 0))

    with pytest.raises(sweeps.JobFailed, match="ZeroDivisionError"):
        sweeps.run_by_hand(job=JobState.objects.create(name="test-job"), by=BY, at=AT)
    with pytest.raises(Missing):
        sweeps.run_by_hand(job=JobState.objects.create(name="unheard-of"), by=BY, at=AT)


# --- Celery as safety 5.16 says ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_serializer", "json"),
        ("result_serializer", "json"),
        ("accept_content", ["json"]),
        ("result_accept_content", ["json"]),
        ("task_acks_late", True),
        ("task_reject_on_worker_lost", True),
        ("worker_prefetch_multiplier", 1),
        ("worker_enable_soft_shutdown_on_idle", True),
        ("worker_cancel_long_running_tasks_on_connection_loss", True),
        ("task_ignore_result", True),
        ("timezone", "UTC"),
    ],
)
def test_celery_is_set_as_it_should_be(name, value):
    assert getattr(app.conf, name) == value


def test_a_stop_is_soft_and_no_task_outlives_the_broker_s_patience():
    assert app.conf.worker_soft_shutdown_timeout > 0
    assert app.conf.task_soft_time_limit < app.conf.task_time_limit
    assert sweeps.CLAIM.total_seconds() > app.conf.task_time_limit


def test_the_visibility_timeout_stands_in_all_three_places():
    """With Redis; read as a production configuration reads it."""
    import json
    import subprocess
    import sys

    code = (
        "import json; from portal import settings as s; print(json.dumps([s.CELERY_BROKER_TRANSPORT_OPTIONS"
        "['visibility_timeout'], s.CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS['visibility_timeout'],"
        " s.CELERY_VISIBILITY_TIMEOUT, s.CELERY_TASK_TIME_LIMIT]))"
    )
    environment = {"PATH": "/usr/bin:/bin", "REDIS_URL": "redis://127.0.0.1:6379/0", "LICENTIA_ENV": "test"}
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=configured.BASE_DIR,
    )

    broker, results, here, limit = json.loads(said.stdout)
    assert broker == results == here
    assert here > limit


@pytest.mark.parametrize("name", sorted(configured.CELERY_BEAT_SCHEDULE))
def test_a_beat_comes_at_least_as_often_as_the_job_is_due_and_expires(name):
    entry = configured.CELERY_BEAT_SCHEDULE[name]

    assert (
        timedelta(seconds=entry["schedule"]) <= min(sweeps.named(name).every, 15 * MINUTE)
        or entry["schedule"] == sweeps.named(name).every.total_seconds()
    )
    assert entry["options"]["expires"] <= 3600
    app.loader.import_default_modules()
    assert entry["task"] in app.tasks


# --- reminders --------------------------------------------------------------------------------------


def reminded() -> list[tuple[int, int]]:
    rows = OutboxMessage.objects.filter(payload__template="expires_soon").order_by("id")
    return [(row.payload["facts"]["days"], row.payload["facts"]["left"]) for row in rows]


def test_it_reminds_thirty_seven_and_one_days_ahead_once_each():
    make_license(duration=60 * DAY)
    for hour in range(0, 61 * 24, 6):
        sweeps.run(sweeps.REMINDERS, at=AT + hour * HOUR)

    assert reminded() == [(30, 30), (7, 7), (1, 1)]


def test_what_was_missed_is_one_mail_that_says_how_long_is_left():
    make_license(duration=60 * DAY)

    for _ in range(2):
        sweeps.run(sweeps.REMINDERS, at=AT + 55 * DAY)
    lag = reminders.lag(at=AT + 55 * DAY)
    sweeps.run(sweeps.REMINDERS, at=AT + 59 * DAY + HOUR)

    assert reminded() == [(7, 5), (1, 1)]
    assert lag == timedelta()


def test_it_lags_by_how_long_a_reminder_has_been_due():
    make_license(duration=60 * DAY)

    assert reminders.lag(at=AT + 29 * DAY) == timedelta()
    assert reminders.lag(at=AT + 31 * DAY) == DAY


def test_it_reminds_of_no_stretch_as_long_as_the_license_itself():
    make_license(duration=14 * DAY, trial=True)

    for day in range(15):
        sweeps.run(sweeps.REMINDERS, at=AT + day * DAY)

    assert reminded() == [(7, 7), (1, 1)]


def test_it_reminds_again_of_another_end():
    from licensing import lifecycle

    license = make_license(duration=60 * DAY)
    sweeps.run(sweeps.REMINDERS, at=AT + 31 * DAY)
    lifecycle.renew(license=license, by=BY, at=AT + 32 * DAY)
    sweeps.run(sweeps.REMINDERS, at=AT + 33 * DAY)
    between = reminded()
    sweeps.run(sweeps.REMINDERS, at=AT + 91 * DAY)

    assert between == [(30, 29)]
    assert reminded() == [(30, 29), (30, 29)]


def test_it_reminds_of_no_license_that_is_revoked_a_draft_or_without_end():
    from licensing import lifecycle

    lifecycle.revoke(license=make_license(duration=60 * DAY), by=BY, at=AT, reason="over")
    make_license(duration=None)

    sweeps.run(sweeps.REMINDERS, at=AT + 55 * DAY)

    assert reminded() == []


def test_the_mail_says_what_ends_when(mailoutbox):
    from tests.factories import make_customer

    customer = make_customer(email="them@example.com")
    make_license(customer=customer, duration=60 * DAY, trial=True)
    sweeps.run(sweeps.REMINDERS, at=AT + 54 * DAY)
    sweeps.run(sweeps.OUTBOX, at=AT + 54 * DAY)

    mail = mailoutbox[-1]
    assert "your trial ends in 6 days" in mail.subject
    assert "2026-04-30" in mail.body
