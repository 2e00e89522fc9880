"""Webhook endpoints, messages and jobs from the staff admin."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from licensing import outbox, sweeps, webhooks
from licensing.models import AuditEntry, JobState, License, OutboxMessage, WebhookEndpoint
from tests.admin.conftest import act, adding, last_entry, listing, page, sign_in, text_of
from tests.factories import AT, BY, make_customer, make_license

pytestmark = pytest.mark.django_db
SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]{40,}")
URL = "https://hooks.example.com/in"


def make_endpoint(**overrides) -> WebhookEndpoint:
    return webhooks.create(**{"url": URL, "by": BY, "at": AT} | overrides)[0]


def test_makes_an_endpoint_and_shows_its_secret_once(staff: Client) -> None:
    customer = make_customer()

    answer = staff.post(
        adding(WebhookEndpoint),
        {"customer": customer.pk, "url": URL, "description": "theirs", "event_types": ["license.held"]},
    )

    row = WebhookEndpoint.objects.get()
    assert answer.status_code == 200
    assert "no-store" in answer.headers["Cache-Control"]
    assert len(set(SECRET.findall(text_of(answer)))) == 1
    assert (row.customer, row.url, row.event_types) == (customer, URL, ["license.held"])
    assert last_entry().action == "webhook_endpoint.created"
    assert not SECRET.search(text_of(staff.get(page(row))))


def test_says_what_the_rule_refuses(staff: Client) -> None:
    answer = staff.post(adding(WebhookEndpoint), {"url": "https://10.0.0.1/", "description": ""})

    assert "no address of the public internet" in text_of(answer)
    assert not WebhookEndpoint.objects.exists()


def test_changes_tests_rotates_disables_enables_and_deletes(staff: Client) -> None:
    row = make_endpoint()

    changed = staff.post(page(row), {"url": URL + "2", "description": "x", "event_types": ["license.held"]})
    tested = staff.post(act(row, "test"))
    rotated = staff.post(act(row, "rotate"), {"reason": ""})
    for name in ("disable", "enable", "delete"):
        assert staff.post(act(row, name), {"reason": "because"}).status_code == 302

    row.refresh_from_db()
    assert (changed.status_code, tested.status_code) == (302, 302)
    assert (row.url, row.state) == (URL + "2", "deleted")
    assert len(set(SECRET.findall(text_of(rotated)))) == 1
    assert set(AuditEntry.objects.filter(object_kind="webhookendpoint").values_list("action", flat=True)) == {
        f"webhook_endpoint.{verb}"
        for verb in ("created", "changed", "tested", "rotated", "disabled", "enabled", "deleted")
    }


def test_sends_a_dead_letter_again_with_a_reason(staff: Client) -> None:
    row = outbox.enqueue(kind="test", payload={}, at=AT)
    waiting = staff.post(act(row, "replay"), {"reason": "x"})
    OutboxMessage.objects.update(given_up_at=AT, attempts=20)

    without = staff.post(act(row, "replay"), {"reason": ""})
    done = staff.post(act(row, "replay"), {"reason": "Their server is back"})

    row.refresh_from_db()
    assert (waiting.status_code, without.status_code, done.status_code) == (422, 422, 302)
    assert (row.given_up_at, row.attempts) == (None, 0)
    assert (last_entry().action, last_entry().reason) == ("outbox.replayed", "Their server is back")
    assert last_entry().actor_label == staff.user.email  # type: ignore[attr-defined]


def test_runs_a_job_now_here_where_no_worker_is_at_work(staff: Client) -> None:
    license = make_license(duration=timedelta(days=1))
    sweeps.watch(at=timezone.now())
    row = JobState.objects.get(name="expiration-sweep")

    answer = staff.post(act(row, "run"), {"reason": "cannot wait"})

    assert answer.status_code == 302
    assert License.objects.get(pk=license.pk).swept_status == "expired"
    assert AuditEntry.objects.get(action="job.run_by_hand").reason == "cannot wait"


def test_gives_a_job_to_a_worker_that_is_at_work(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr("celery.Celery.send_task", lambda self, *args, **kwargs: sent.append(args))
    row = JobState.objects.create(name="expiration-sweep", last_finished_at=timezone.now())

    staff.post(act(row, "run"), {"reason": ""})

    assert sent == [("licensing.run_job", ["expiration-sweep"])]


def test_lists_every_job_with_its_lag_and_next_run(staff: Client) -> None:
    sweeps.watch(at=timezone.now())

    text = text_of(staff.get(listing(JobState)))

    for job in sweeps.every():
        assert job.name in text
    assert "next run" in text.lower()


@pytest.mark.parametrize("name", ["test", "rotate", "disable", "delete"])
def test_who_may_only_look_does_nothing(name: str) -> None:
    row, message, job = (
        make_endpoint(),
        outbox.enqueue(kind="x", payload={}, at=AT),
        JobState.objects.create(name="nonces"),
    )
    models = ("webhookendpoint", "outboxmessage", "jobstate", "webhookdelivery")
    client = sign_in(*(f"licensing.view_{model}" for model in models))

    for url in (act(row, name), act(message, "replay"), act(job, "run"), adding(WebhookEndpoint)):
        assert client.post(url, {"reason": "x"}).status_code == 403
    assert client.get(page(row)).status_code == 200
