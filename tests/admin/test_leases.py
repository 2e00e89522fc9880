"""What staff see of leases and license files, and how they end a lease."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client

from licensing import activations, leases, license_files
from licensing.models import AuditEntry, Lease, License, LicenseFile
from tests.admin.conftest import act, last_entry, listing, page, sign_in, text_of
from tests.factories import BY, make_license, opened

pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)
FINGERPRINT = "machine-0123456789"


def make_lease(**more: Any) -> Lease:
    license = make_license(seat_kind="floating", seat_limit=2, at=NOW)
    machine = activations.activate(license=license, fingerprint=FINGERPRINT, name="Plant 7", by=BY, at=NOW).activation
    return leases.check_out(
        license=license, fingerprint=FINGERPRINT, activation=machine, by=BY, at=NOW, **more
    ).lease  # fmt: skip


def test_it_shows_who_is_at_work(staff: Client) -> None:
    lease = make_lease()

    listed, shown = text_of(staff.get(listing(Lease))), text_of(staff.get(page(lease)))

    assert "Plant 7" in listed
    assert act(lease, "end") in shown


def test_it_finds_a_lease_by_machine_and_by_license(staff: Client) -> None:
    lease = make_lease()

    for term in (FINGERPRINT, str(lease.license_id), str(lease.pk)):
        assert page(lease) in text_of(staff.get(listing(Lease), {"q": term}))


def test_it_ends_a_lease_and_goes_back_to_the_license(staff: Client) -> None:
    lease = make_lease()

    response = staff.post(act(lease, "end"), {"reason": "Left running"})

    assert response.headers["Location"] == page(lease.license)
    assert Lease.objects.get(pk=lease.pk).ended_at is not None
    assert License.objects.get(pk=lease.license_id).seats_used == 0
    entry = last_entry()
    assert (entry.action, entry.reason) == ("lease.ended", "Left running")
    assert opened(entry).actor_label == staff.user.email  # type: ignore[attr-defined]


def test_it_ends_a_lease_once(staff: Client) -> None:
    lease = make_lease()

    for _ in range(2):
        assert staff.post(act(lease, "end"), {"reason": "Left running"}).status_code == 302

    assert AuditEntry.objects.filter(action="lease.ended").count() == 1
    assert act(lease, "end") not in text_of(staff.get(page(lease)))


def test_it_says_what_ending_a_borrowed_lease_cannot_do(staff: Client) -> None:
    shown = text_of(staff.get(act(make_lease(offline=True), "end")))

    assert "It is borrowed" in shown


def test_it_needs_the_permission_for_seats() -> None:
    lease = make_lease()
    client = sign_in("licensing.view_lease", "licensing.change_lease")

    assert client.get(act(lease, "end")).status_code == 403
    assert client.post(act(lease, "end"), {"reason": "x"}).status_code == 403
    assert Lease.objects.get(pk=lease.pk).ended_at is None


def test_it_shows_the_record_of_a_license_file(staff: Client) -> None:
    lease = make_lease()
    issued = license_files.issue(license=lease.license, activation=lease.activation, by=BY, at=NOW)

    listed, shown = text_of(staff.get(listing(LicenseFile))), text_of(staff.get(page(issued.record)))

    assert "Plant 7" in listed
    assert issued.record.kid in shown
    assert "BEGIN LICENTIA" not in shown
