"""Seats and machines when many want them at once: never one too many, never one too few."""

from datetime import timedelta

import pytest
from django.db import connection, transaction

from licensing import activations, catalog, customers, lifecycle, seats, sweeps
from licensing.activations import ActivationLimitReached
from licensing.models import Activation, AuditEntry, License, Member, OutboxMessage, PlanRevision, Seat
from licensing.seats import NoSeatAvailable
from tests.concurrency.crowd import at_once
from tests.factories import AT, BY, make_license, make_member, make_plan, make_revision

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = 10
CROWD = 50


def test_it_grants_fifty_people_exactly_ten_seats():
    license = make_license(seat_limit=LIMIT)

    answers = at_once(
        [
            lambda number=number: seats.assign(license=license, holder=f"p{number}@example.com", by=BY, at=AT)
            for number in range(CROWD)
        ]
    )

    granted = [answer for answer in answers if isinstance(answer, seats.Assigned)]
    refused = [answer for answer in answers if isinstance(answer, NoSeatAvailable)]
    assert (len(granted), len(refused)) == (LIMIT, CROWD - LIMIT)
    assert Seat.objects.filter(license=license, released_at=None).count() == LIMIT
    assert License.objects.get(pk=license.pk).seats_used == LIMIT
    assert AuditEntry.objects.filter(action="seat.assigned", license_id=license.pk).count() == LIMIT


@pytest.mark.postgres
def test_it_would_grant_too_many_without_the_guard():
    """The twin: count, then insert. The race is real, or the test above shows nothing."""
    license = make_license(seat_limit=LIMIT)

    def count_then_insert(number: int) -> bool:
        with transaction.atomic():
            if Seat.objects.filter(license=license, released_at=None).count() >= LIMIT:
                return False
            Seat.objects.create(
                license=license, created_at=AT, holder=f"{number}@example.com", state="assigned", assigned_at=AT
            )
            return True

    most = 0
    for round_ in range(20):
        at_once([lambda n=round_ * CROWD + number: count_then_insert(n) for number in range(CROWD)])
        most = max(most, Seat.objects.filter(license=license, released_at=None).count())
        if most > LIMIT:
            break
        Seat.objects.filter(license=license, released_at=None).update(state="released", released_at=AT)

    assert most > LIMIT


def test_it_has_the_database_refuse_what_a_rule_forgets():
    license = make_license(seat_limit=LIMIT)

    with pytest.raises(Exception, match="seats_used_is_within_ceiling"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE licensing_license SET seats_used = 11 WHERE id = %s",
            [license.pk.hex if connection.vendor == "sqlite" else license.pk],
        )


def test_it_gives_one_holder_one_seat_however_often_they_ask():
    license = make_license(seat_limit=LIMIT)

    answers = at_once(
        [lambda: seats.assign(license=license, holder="same@example.com", by=BY, at=AT) for _ in range(20)]
    )

    assert sum(answer.created for answer in answers) == 1
    assert len({answer.seat.pk for answer in answers}) == 1
    assert License.objects.get(pk=license.pk).seats_used == 1


def test_it_releases_a_seat_once_however_often_it_is_released():
    license = make_license(seat_limit=LIMIT)
    held = [seats.assign(license=license, holder=f"{n}@example.com", by=BY, at=AT).seat for n in range(3)]

    at_once([lambda seat=held[n % 3]: seats.release(seat=seat, by=BY, at=AT) for n in range(24)])

    assert License.objects.get(pk=license.pk).seats_used == 0
    assert AuditEntry.objects.filter(action="seat.released", license_id=license.pk).count() == 3


def test_it_hands_a_seat_to_one_heir():
    license = make_license(seat_limit=1)
    seat = seats.assign(license=license, holder="first@example.com", by=BY, at=AT).seat

    at_once([lambda n=n: seats.transfer(seat=seat, to=f"heir{n}@example.com", by=BY, at=AT) for n in range(10)])

    assert Seat.objects.filter(license=license, released_at=None).count() == 1
    assert License.objects.get(pk=license.pk).seats_used == 1


def test_it_activates_exactly_the_machines_allowed():
    license = make_license(activation_limit=LIMIT)

    answers = at_once(
        [
            lambda number=number: activations.activate(
                license=license, fingerprint=f"machine-{number:012d}", by=BY, at=AT
            )
            for number in range(CROWD)
        ]
    )

    assert sum(isinstance(answer, activations.Activated) for answer in answers) == LIMIT
    assert sum(isinstance(answer, ActivationLimitReached) for answer in answers) == CROWD - LIMIT
    assert Activation.objects.filter(license=license, deactivated_at=None).count() == LIMIT


def test_it_starts_the_clock_at_one_first_activation():
    license = make_license(validity_basis="from_first_activation", duration=timedelta(days=30), activation_limit=None)

    at_once(
        [
            lambda n=n: activations.activate(
                license=license, fingerprint=f"machine-{n:012d}", by=BY, at=AT + timedelta(hours=n)
            )
            for n in range(10)
        ]
    )

    row = License.objects.get(pk=license.pk)
    assert row.expires_at == row.first_activated_at + timedelta(days=30)
    assert AuditEntry.objects.filter(action="license.validity_started", license_id=license.pk).count() == 1


def test_it_publishes_one_of_two_drafts_at_a_time():
    plan = make_plan()
    drafts = [make_revision(plan=plan, publish=False) for _ in range(4)]

    at_once([lambda draft=draft: catalog.publish(revision=draft, by=BY, at=AT) for draft in drafts])

    assert PlanRevision.objects.filter(plan=plan, state="published").count() == 1


def test_it_keeps_an_owner_when_all_leave_at_once():
    first = make_member()
    others = [make_member(customer=first.customer) for _ in range(3)]

    at_once([lambda m=member: customers.remove_member(member=m, by=BY, at=AT) for member in [first, *others]])

    assert Member.objects.filter(customer=first.customer, role="owner").count() == 1


def test_it_records_each_transition_once_when_many_sweeps_run():
    due = [make_license(duration=timedelta(days=1), grace_period=timedelta(days=1)) for _ in range(10)]
    later = AT + timedelta(days=5)

    at_once([lambda: sweeps.run(sweeps.EXPIRATION, at=later) for _ in range(8)])
    sweeps.run(sweeps.EXPIRATION, at=later)

    for license in due:
        actions = AuditEntry.objects.filter(license_id=license.pk).order_by("id").values_list("action", flat=True)
        assert list(actions)[-2:] == ["license.entered_grace", "license.expired"]
        assert len([action for action in actions if action in ("license.entered_grace", "license.expired")]) == 2
        assert OutboxMessage.objects.filter(license_id=license.pk).count() == 2


def test_it_does_not_lose_a_hold_placed_while_a_seat_is_taken():
    license = make_license(seat_limit=None)

    at_once(
        [lambda: lifecycle.hold(license=license, reason="abuse", by=BY, at=AT)]
        + [lambda n=n: seats.assign(license=license, holder=f"{n}@example.com", by=BY, at=AT) for n in range(20)]
        + [lambda: lifecycle.renew(license=license, by=BY, at=AT)]
    )

    row = License.objects.get(pk=license.pk)
    assert row.seats_used == 20
    assert row.expires_at == license.expires_at + timedelta(days=365)
    assert lifecycle.status_of(row, AT) == "held"
