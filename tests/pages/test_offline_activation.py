"""Activating a machine offline, and who is at work on floating seats."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse
from licentia_client.offline import LicenseFile as ReadFile
from licentia_client.offline import Machine, make_request

from licensing import activations, crypto, leases, lifecycle
from licensing.models import Activation, AuditEntry, Lease, License, LicenseFile
from tests import factories
from tests.factories import opened
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db

FINGERPRINT = "machine-0123456789"


def url(license: License) -> str:
    return reverse("portal:activate-offline", args=[license.pk])


def page_of(license: License) -> str:
    return reverse("portal:license", args=[license.pk])


def end(lease: Lease) -> str:
    return reverse("portal:end-lease", args=[lease.pk])


@pytest.fixture
def text(tmp_path) -> str:
    return make_request(tmp_path / "machine", fingerprint=FINGERPRINT, name="Plant 7", wall=TODAY.timestamp)


def upload(text: str) -> Any:
    return SimpleUploadedFile("plant-7.req", text.encode())


# --- offline activation -----------------------------------------------------------------------------


def test_it_says_what_to_do_and_changes_nothing(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)

    answer = signed_in(member).get(url(license))

    assert answer.status_code == 200
    assert "works for 30 days without a network" in answer.text
    assert 'enctype="multipart/form-data"' in answer.text
    assert url(license) in signed_in(member).get(page_of(license)).text
    assert not Activation.objects.exists()


@pytest.mark.parametrize("way", ["upload", "paste", "paste with the line ends of a browser"])
def test_it_sends_a_license_file_for_a_request(way, signed_in, text, tmp_path):
    member = factories.make_member(role="license_manager")
    license = factories.make_license(customer=member.customer)
    sent = {"upload": upload(text)} if way == "upload" else {"request": f"\n {text}  "}
    if way.endswith("browser"):
        sent = {"request": text.replace("\n", "\r\n")}

    answer = signed_in(member).post(url(license), sent)

    assert answer.status_code == 200
    assert answer["Content-Disposition"] == f'attachment; filename="{license.product.code}-23456789.lic"'
    assert "no-store" in answer["Cache-Control"]
    machine = Machine.open(tmp_path / "machine", wall=TODAY.timestamp)
    assert ReadFile.read(answer.content.decode(), keys=crypto.jwks(), machine=machine).license == str(license.pk)
    assert LicenseFile.objects.get().encrypted
    entry = AuditEntry.objects.get(action="license_file.issued")
    assert (entry.actor_kind, opened(entry).actor_label) == ("member", member.user.email)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (lambda text: {}, "Choose the request file"),
        (lambda text: {"request": "hello"}, "not an activation request file"),
        (lambda text: {"upload": upload("")}, "Choose the request file"),
        (lambda text: {"upload": upload("x" * 20_000)}, "far too large"),
        (lambda text: {"request": "x" * 20_000}, "at most 8192 characters"),
        (lambda text: {"upload": SimpleUploadedFile("a.req", b"\xff\x00\xfe")}, "not an activation request file"),
        (lambda text: {"request": text.replace("eyJ", "eyK", 1)}, "not an activation request file"),
        (lambda text: {"request": text[: len(text) // 2]}, "not an activation request file"),
    ],
)
def test_it_says_in_plain_words_what_is_no_request(sent, words, signed_in, text):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)

    answer = signed_in(member).post(url(license), sent(text))

    assert answer.status_code == 400
    assert words in answer.text
    assert "autofocus" in answer.text
    assert not Activation.objects.exists()


def test_it_says_that_a_request_is_old(signed_in, tmp_path):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    old = make_request(tmp_path / "m", fingerprint=FINGERPRINT, wall=lambda: TODAY.timestamp() - 30 * 86_400)

    answer = signed_in(member).post(url(license), {"request": old})

    assert answer.status_code == 400
    assert "set the machine&#x27;s clock" in answer.text


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"activation_limit": 0}, "Deactivate one first"),
        ({"seat_kind": "floating", "seat_limit": 0}, "All 0 are out"),
        ({"offline_period": timedelta()}, "does not work offline"),
        ({"duration": timedelta(hours=1)}, "has expired"),
    ],
)
def test_it_says_why_the_license_does_not_allow_it(terms, words, signed_in, text):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer, **terms)

    answer = signed_in(member).post(url(license), {"request": text})

    assert answer.status_code == 409
    assert words in answer.text
    assert not LicenseFile.objects.exists()


def test_it_asks_for_the_holder_where_a_seat_is_needed(signed_in, text):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer, seat_required=True)
    client = signed_in(member)
    client.post(reverse("portal:assign-seat", args=[license.pk]), {"holder": "ada@example.com"})

    without = client.post(url(license), {"request": text})
    wrong = client.post(url(license), {"request": text, "seat_holder": "nobody"})
    right = client.post(url(license), {"request": text, "seat_holder": "ada@example.com"})

    assert "somebody who holds a seat" in without.text
    assert wrong.status_code == 400
    assert right["Content-Disposition"].startswith("attachment")


def test_it_offers_nothing_where_the_plan_is_for_online_use_only(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer, offline_period=timedelta())

    assert url(license) not in signed_in(member).get(page_of(license)).text
    assert "<textarea" not in signed_in(member).get(url(license)).text


@pytest.mark.parametrize("role", ["billing", "viewer"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_it_refuses_those_who_only_look(signed_in, role, method, text):
    member = factories.make_member(role=role)
    license = factories.make_license(customer=member.customer)

    assert getattr(signed_in(member), method)(url(license), {"request": text}).status_code == 403
    assert url(license) not in signed_in(member).get(page_of(license)).text
    assert not Activation.objects.exists()


@pytest.mark.parametrize("method", ["get", "post"])
def test_it_does_not_know_the_license_of_somebody_else(signed_in, method, text):
    client = signed_in(factories.make_member())

    assert getattr(client, method)(url(factories.make_license()), {"request": text}).status_code == 404
    assert getattr(client, method)(reverse("portal:activate-offline", args=[uuid4()])).status_code == 404


def test_it_asks_who_is_there(client, text):
    license = factories.make_license()

    assert client.post(url(license), {"request": text}).status_code == 302
    assert not Activation.objects.exists()


def test_it_knows_no_other_method(signed_in):
    member = factories.make_member()

    assert signed_in(member).delete(url(factories.make_license(customer=member.customer))).status_code == 405


# --- who is at work ---------------------------------------------------------------------------------


def make_lease(customer: Any = None, at: datetime = TODAY, **more: Any) -> Lease:
    license = factories.make_license(
        customer=customer or factories.make_customer(), seat_kind="floating", seat_limit=5
    )  # fmt: skip
    machine = activations.activate(
        license=license, fingerprint=FINGERPRINT, name="Plant 7", by=factories.BY, at=at
    ).activation
    return leases.check_out(
        license=license, fingerprint=FINGERPRINT, activation=machine, by=factories.BY, at=at, **more
    ).lease


def test_it_shows_who_is_at_work(signed_in):
    member = factories.make_member()
    lease = make_lease(member.customer)
    leases.check_out(license=lease.license, by=factories.BY, at=TODAY, offline=True)

    answer = signed_in(member).get(page_of(lease.license))

    assert "Plant 7" in answer.text
    assert "Machine not said" in answer.text
    assert "Online" in answer.text
    assert "Offline" in answer.text
    assert end(lease) in answer.text


def test_it_shows_those_who_only_look_who_is_at_work_and_nothing_to_do(signed_in):
    member = factories.make_member(role="viewer")
    lease = make_lease(member.customer)

    answer = signed_in(member).get(page_of(lease.license))

    assert "Plant 7" in answer.text
    assert end(lease) not in answer.text


def test_it_shows_a_lapsed_lease_as_what_it_is(signed_in):
    member = factories.make_member()
    lease = make_lease(member.customer, at=TODAY - timedelta(hours=2), ttl=timedelta(hours=1))

    assert "Lapsed" in signed_in(member).get(page_of(lease.license)).text


def test_it_asks_before_it_ends_a_lease(signed_in):
    member = factories.make_member()
    lease = make_lease(member.customer, offline=True)

    answer = signed_in(member).get(end(lease))

    assert "Plant 7" in answer.text
    assert "borrowed its license" in answer.text
    assert Lease.objects.get().ended_at is None


def test_it_ends_a_lease_with_its_reason_once(signed_in):
    member = factories.make_member()
    lease = make_lease(member.customer)
    client = signed_in(member)

    answer = client.post(end(lease), {"reason": "left running"}, follow=True)

    assert "The lease is ended." in answer.text
    assert "Nobody is working right now." in answer.text
    assert License.objects.get(pk=lease.license_id).seats_used == 0
    entry = AuditEntry.objects.get(action="lease.ended")
    assert (opened(entry).actor_label, entry.reason) == (member.user.email, "left running")
    assert client.post(end(lease)).status_code == 302
    assert "There is nothing left to do" in client.get(end(lease)).text
    assert AuditEntry.objects.filter(action="lease.ended").count() == 1


def test_it_ends_a_lease_of_a_license_that_is_revoked(signed_in):
    member = factories.make_member()
    lease = make_lease(member.customer)
    lifecycle.revoke(license=lease.license, by=factories.BY, at=TODAY, reason="r")

    assert signed_in(member).post(end(lease)).status_code == 302
    assert Lease.objects.get().ended_at is not None


@pytest.mark.parametrize("role", ["billing", "viewer"])
def test_it_lets_those_who_only_look_end_nothing(signed_in, role):
    member = factories.make_member(role=role)
    lease = make_lease(member.customer)

    assert signed_in(member).post(end(lease)).status_code == 403
    assert Lease.objects.get().ended_at is None


def test_it_does_not_know_the_lease_of_somebody_else(signed_in):
    lease = make_lease()
    client = signed_in(factories.make_member())

    assert client.post(end(lease)).status_code == 404
    assert client.post(reverse("portal:end-lease", args=[uuid4()])).status_code == 404
    assert Lease.objects.get().ended_at is None
