"""What staff can do to a seat or a machine."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from licensing import activations, seats
from licensing.models import Activation, AuditEntry, Seat
from tests.admin.conftest import act, last_entry, page, recorded, sign_in, text_of
from tests.factories import BY, make_license, opened

pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)


def make_seat(state: str = "assigned", **terms: Any) -> Seat:
    license = make_license(at=NOW, **terms)
    give = seats.reserve if state == "reserved" else seats.assign
    seat = give(license=license, holder="ann@example.com", by=BY, at=NOW).seat
    return seats.block(seat=seat, by=BY, at=NOW, reason="x") if state == "blocked" else seat


def make_activation() -> Activation:
    license = make_license(at=NOW)
    return activations.activate(license=license, fingerprint="f" * 32, name="Laptop", by=BY, at=NOW).activation


def test_releases_a_seat_and_goes_back_to_the_license(staff: Client) -> None:
    seat = make_seat()

    response = staff.post(act(seat, "release"), {"reason": "Left the company"})

    assert response.headers["Location"] == page(seat.license)
    seat.refresh_from_db()
    assert seat.state == "released"
    seat.license.refresh_from_db()
    assert seat.license.seats_used == 0
    entry = last_entry()
    assert (entry.action, entry.object_id, entry.reason) == ("seat.released", str(seat.pk), "Left the company")
    assert opened(entry).actor_label == staff.user.email  # type: ignore[attr-defined]


def test_releasing_twice_changes_nothing_more(staff: Client) -> None:
    seat = make_seat()

    for _ in range(2):
        assert staff.post(act(seat, "release"), {"reason": "Left"}).status_code == 302

    assert AuditEntry.objects.filter(action="seat.released").count() == 1


def test_a_churn_limit_is_said(staff: Client) -> None:
    seat = make_seat(seat_churn_limit=0, churn_window=timedelta(days=30))

    response = staff.post(act(seat, "release"), {"reason": "Left"})

    assert response.status_code == 422
    assert "the plan allows 0" in text_of(response)


@pytest.mark.parametrize(
    ("state", "name", "given", "action"),
    [
        ("reserved", "assign", {}, "seat.assigned"),
        ("assigned", "block", {"reason": "Abuse"}, "seat.blocked"),
        ("blocked", "unblock", {"reason": "Cleared"}, "seat.unblocked"),
    ],
)
def test_changes_a_seat(staff: Client, state: str, name: str, given: dict[str, str], action: str) -> None:
    seat = make_seat(state)

    assert act(seat, name) in text_of(staff.get(page(seat)))
    assert staff.post(act(seat, name), given).status_code == 302
    assert last_entry().action == action


def test_transfers_a_seat(staff: Client) -> None:
    seat = make_seat()

    response = staff.post(act(seat, "transfer"), {"to": "bob@example.com", "reason": "Successor"})

    assert response.status_code == 302
    assert Seat.objects.get(released_at=None).holder == "bob@example.com"
    assert {"seat.released", "seat.assigned"} <= set(AuditEntry.objects.values_list("action", flat=True))


def test_lets_a_machine_go(staff: Client) -> None:
    machine = make_activation()

    response = staff.post(act(machine, "deactivate"), {"reason": "Stolen"})

    assert response.headers["Location"] == page(machine.license)
    machine.refresh_from_db()
    assert machine.deactivated_at is not None
    assert (last_entry().action, last_entry().reason) == ("activation.ended", "Stolen")


@pytest.mark.parametrize("name", ["assign", "release", "transfer", "block", "unblock"])
def test_needs_the_permission_for_seats(name: str) -> None:
    seat = make_seat()
    client = sign_in("licensing.view_seat", "licensing.change_seat", "licensing.view_license")

    assert client.get(act(seat, name)).status_code == 403
    assert client.post(act(seat, name), {"reason": "x", "to": "bob@example.com"}).status_code == 403
    assert act(seat, name) not in text_of(client.get(page(seat)))
    assert act(seat, "release") not in text_of(client.get(page(seat.license)))
    seat.refresh_from_db()
    assert seat.state == "assigned"


def test_needs_the_permission_for_machines() -> None:
    machine = make_activation()
    client = sign_in("licensing.view_activation", "licensing.change_activation")

    assert client.post(act(machine, "deactivate"), {"reason": "x"}).status_code == 403


def test_opening_the_pages_changes_nothing(staff: Client) -> None:
    seat, machine = make_seat(), make_activation()
    before = recorded().count()

    for name in ("assign", "release", "transfer", "block", "unblock"):
        assert staff.get(act(seat, name)).status_code == 200
    assert staff.get(act(machine, "deactivate")).status_code == 200

    assert recorded().count() == before
