"""Other rules at the same time: one published revision, one owner who stays, each request and transition once."""

import threading
from datetime import timedelta

import pytest

from licensing import (
    activations,
    anomalies,
    catalog,
    customers,
    guards,
    idempotency,
    keys,
    lifecycle,
    outbox,
    seats,
    sweeps,
)
from licensing.ids import uuid7
from licensing.models import (
    Anomaly,
    AuditEntry,
    Customer,
    Hold,
    License,
    LicenseKey,
    Member,
    OutboxMessage,
    PlanRevision,
)
from tests.concurrency.together import kinds, together
from tests.factories import AT, BY, make_customer, make_license, make_member, make_plan, make_revision

pytestmark = pytest.mark.django_db(transaction=True)
DAY = timedelta(days=1)


def test_it_publishes_drafts_at_once_and_leaves_one_published():
    plan = make_plan()
    drafts = [make_revision(plan=plan, publish=False) for _ in range(6)]

    results = together(*(lambda draft=draft: catalog.publish(revision=draft, by=BY, at=AT) for draft in drafts))

    assert kinds(results) == {"PlanRevision": 6}
    assert PlanRevision.objects.filter(state="published").count() == 1
    assert PlanRevision.objects.filter(state="retired").count() == 5


def test_it_publishes_one_draft_once():
    draft = make_revision(publish=False)

    results = together(*[lambda: catalog.publish(revision=draft, by=BY, at=AT)] * 5)

    assert kinds(results) == {"PlanRevision": 1, "RevisionIsPublished": 4}


def test_it_numbers_drafts_made_at_once_one_after_the_other():
    plan = make_plan()

    results = together(*[lambda: catalog.draft(plan=plan, by=BY, at=AT)] * 8)

    assert sorted(revision.number for revision in results) == list(range(1, 9))


def test_it_never_publishes_what_is_edited_at_the_same_time():
    """Either the edit comes first and is published, or it is refused; never a published revision changed."""
    for _ in range(5):
        draft = make_revision(publish=False, seat_limit=1)

        published, edited = together(
            lambda draft=draft: catalog.publish(revision=draft, by=BY, at=AT),
            lambda draft=draft: catalog.edit(revision=draft, seat_limit=9, by=BY, at=AT),
        )

        limit = PlanRevision.objects.get(pk=draft.pk).seat_limit
        assert limit == (1 if isinstance(edited, Exception) else 9)
        assert published.state == "published"


@pytest.mark.parametrize("leave", ["remove", "demote"])
def test_it_keeps_one_of_two_owners_who_leave_at_once(leave):
    acts = {
        "remove": lambda member: customers.remove_member(member=member, by=BY, at=AT),
        "demote": lambda member: customers.change_role(member=member, role="viewer", by=BY, at=AT),
    }
    for _ in range(5):
        one = make_member()
        two = make_member(customer=one.customer)

        results = together(*(lambda member=member: acts[leave](member) for member in (one, two)))

        assert kinds(results).get("LastOwner") == 1
        assert Member.objects.filter(customer=one.customer, role="owner").count() == 1


def test_it_holds_and_revokes_once_however_often_asked_at_once():
    license = make_license()

    held = together(*[lambda: lifecycle.hold(license=license, reason="abuse", by=BY, at=AT)] * 6)
    revoked = together(*[lambda: lifecycle.revoke(license=license, by=BY, at=AT, reason="x")] * 6)

    assert kinds(held) == {"Hold": 1, "AlreadyHeld": 5}
    assert kinds(revoked) == {"License": 6}
    assert Hold.objects.count() == 1
    assert AuditEntry.objects.filter(action="license.revoked").count() == 1


def test_it_issues_one_draft_once():
    draft = lifecycle.prepare(customer=make_customer(), plan_revision=make_revision(), by=BY, at=AT)

    results = together(*[lambda: lifecycle.issue_prepared(license=draft, by=BY, at=AT)] * 5)

    assert kinds(results) == {"tuple": 1, "Refused": 4}
    assert LicenseKey.objects.count() == 1


def test_it_leaves_one_live_key_after_rotations_at_once():
    license = make_license()

    results = together(*[lambda: keys.rotate(license=license, by=BY, reason="x", at=AT)] * 5)

    live = [key for key in results if _names(key)]
    assert kinds(results) == {"str": 5}
    assert len(live) == 1
    assert LicenseKey.objects.filter(retired_at=None).count() == 1


def _names(key) -> bool:
    try:
        return bool(keys.find(key))
    except keys.Missing:
        return False


def test_it_renews_as_often_as_asked_and_loses_none():
    license = make_license(duration=30 * DAY)

    together(*[lambda: lifecycle.renew(license=license, by=BY, at=AT)] * 5)

    assert License.objects.get().expires_at == AT + 6 * 30 * DAY


def test_it_makes_a_customer_once_for_requests_repeated_at_once():
    def request():
        return idempotency.once(
            principal="credential-1",
            key="key-1",
            request=b"the same",
            at=AT,
            act=lambda: (201, customers.create(code="acme", name="Acme", by=BY, at=AT).code.encode()),
        )

    results = together(*[request] * 10)

    assert kinds(results) == {"Answer": 10}
    assert {(result.status, result.body) for result in results} == {(201, b"acme")}
    assert sum(not result.replayed for result in results) == 1
    assert Customer.objects.count() == 1
    assert AuditEntry.objects.filter(action="customer.created").count() == 1


def test_it_makes_a_customer_once_when_the_first_of_the_requests_is_refused():
    calls = []

    def act():
        calls.append(1)
        if len(calls) == 1:
            return 409, b"busy"
        customers.create(code="acme", name="Acme", by=BY, at=AT)
        return 201, b"made"

    def request():
        return idempotency.once(principal="c", key="k", request=b"r", at=AT, act=act)

    results = together(*[request] * 6)

    assert sorted(result.status for result in results) == [201] * 5 + [409]
    assert Customer.objects.count() == 1


def test_it_records_each_transition_once_for_sweeps_at_once():
    revision, customer = make_revision(duration=10 * DAY, grace_period=DAY), make_customer()
    for _ in range(20):
        make_license(plan_revision=revision, customer=customer)

    results = together(*[lambda: sweeps.run(sweeps.EXPIRATION, at=AT + 30 * DAY)] * 4)
    sweeps.run(sweeps.EXPIRATION, at=AT + 30 * DAY)

    assert [result for result in results if isinstance(result, Exception)] == []
    assert sum(results) <= 40
    assert AuditEntry.objects.filter(action="license.entered_grace").count() == 20
    assert AuditEntry.objects.filter(action="license.expired").count() == 20
    assert OutboxMessage.objects.count() == 40
    assert not License.objects.exclude(swept_status="expired").exists()


def test_it_starts_the_clock_with_one_first_machine():
    license = make_license(validity_basis="from_first_activation", duration=30 * DAY, activation_limit=None)

    together(
        *(
            lambda number=number: activations.activate(
                license=license, fingerprint=f"machine-{number:0>16}", by=BY, at=AT + number * DAY
            )
            for number in range(10)
        )
    )

    row = License.objects.get()
    assert row.expires_at == row.first_activated_at + 30 * DAY
    assert row.activations_used == 10
    assert AuditEntry.objects.filter(action="license.validity_started").count() == 1


def test_it_loses_neither_a_hold_nor_a_renewal_while_seats_are_taken():
    license = make_license(seat_limit=None, duration=30 * DAY)

    together(
        lambda: lifecycle.hold(license=license, reason="abuse", by=BY, at=AT),
        lambda: lifecycle.renew(license=license, by=BY, at=AT),
        *(
            lambda number=number: seats.assign(license=license, holder=f"{number}@example.com", by=BY, at=AT)
            for number in range(20)
        ),
    )

    row = License.objects.get()
    assert (row.seats_used, row.expires_at) == (20, AT + 60 * DAY)
    assert lifecycle.status_of(row, AT) == "held"


def test_it_sends_each_message_once_for_relays_at_once():
    sent = []
    for number in range(30):
        outbox.enqueue(kind="test", payload={"n": number}, at=AT)

    def relay():
        return outbox.relay(handlers={"test": lambda message: sent.append(message.payload["n"])}, at=AT)[0]

    results = together(*[relay] * 3)

    assert sum(results) == 30
    assert sorted(sent) == list(range(30))


def test_relays_at_once_keep_the_order_of_each_license_and_lose_nothing():
    sent, lock = [], threading.Lock()
    licenses = [uuid7() for _ in range(6)]
    for number in range(120):
        outbox.enqueue(kind="test", payload={"n": number}, at=AT, license_id=licenses[number % 6])

    def take(message):
        with lock:
            sent.append((message.license_id, message.payload["n"]))

    def relay():
        done = 0
        while outbox.waiting().exists():  # one that finds all claimed by others leaves; the next beat comes
            done += outbox.relay(handlers={"test": take}, at=AT)[0]
        return done

    results = together(*[relay] * 4)

    assert sum(results) == 120
    assert sorted(number for _, number in sent) == list(range(120))
    for license_id in licenses:
        of_one = [number for other, number in sent if other == license_id]
        assert of_one == sorted(of_one)


def test_it_counts_a_suspicion_seen_by_many_at_once_as_one():
    def flag():
        anomalies.flag(rule="r", severity="high", object_kind="license", object_id="1", at=AT, evidence={"n": 1})

    together(*[flag] * 10)

    assert Anomaly.objects.get().count == 10


def test_it_installs_guards_at_once_and_they_stand():
    results = together(*[guards.install] * 3)

    assert guards.missing() == []
    assert kinds(results) == {"NoneType": 3}
