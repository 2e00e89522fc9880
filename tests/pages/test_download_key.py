"""Downloading a license key."""

from datetime import timedelta

import pytest
import time_machine
from django.urls import reverse

from licensing import crypto, keys
from licensing.models import AuditEntry, LicenseKey
from tests import factories
from tests.factories import opened
from tests.pages.conftest import TODAY

pytestmark = pytest.mark.django_db


def url(license):
    return reverse("portal:download-key", args=[license.pk])


def reveals():
    return AuditEntry.objects.filter(action="key.revealed")


@pytest.mark.parametrize("role", ["owner", "license_manager"])
def test_it_sends_the_key_as_a_file_that_is_not_stored_and_records_it(confirmed, role):
    member = factories.make_member(role=role)
    license, key = factories.make_license_and_key(customer=member.customer)

    answer = confirmed(member).post(url(license), {"reason": "new build server"})

    assert answer.status_code == 200
    assert answer.text == f"{key}\n"
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["Content-Disposition"].startswith("attachment; filename=")
    assert "no-store" in answer["Cache-Control"]
    entry = reveals().get()
    assert (opened(entry).actor_label, entry.reason) == (member.user.email, "new build server")
    assert key not in str(entry.after)


def test_it_asks_for_the_password_first(signed_in):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)

    answer = signed_in(member).get(url(license))

    assert answer.status_code == 302
    assert answer.url.startswith(reverse("account_reauthenticate"))
    assert not reveals().exists()


def test_it_comes_back_to_the_page_with_the_reason_once_the_password_is_given(signed_in):
    member = factories.make_member()
    license, key = factories.make_license_and_key(customer=member.customer)
    client = signed_in(member)

    to_password = client.post(url(license), {"reason": "new build server"})
    wrong = client.post(to_password.url, {"password": "something else entirely", "next": url(license)})
    back = client.post(to_password.url, {"password": factories.PASSWORD, "next": url(license)})
    page = client.get(back.url)

    assert wrong.status_code == 200
    assert back.url == url(license)
    assert 'value="new build server"' in page.text
    assert key not in page.text
    assert not reveals().exists()


def test_it_asks_again_after_a_while(confirmed, settings):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    client = confirmed(member)

    with time_machine.travel(TODAY + timedelta(seconds=settings.ACCOUNT_REAUTHENTICATION_TIMEOUT + 1)):
        answer = client.post(url(license), {"reason": "late"})

    assert answer.status_code == 302
    assert not reveals().exists()


@pytest.mark.parametrize("reason", ["", "   ", "x" * 201, "nul\x00"])
def test_it_wants_a_reason(confirmed, reason):
    member = factories.make_member()
    license, key = factories.make_license_and_key(customer=member.customer)

    answer = confirmed(member).post(url(license), {"reason": reason})

    assert answer.status_code == 400
    assert key not in answer.text
    assert not reveals().exists()


def test_done_twice_it_sends_the_same_key_and_records_both(confirmed):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    client = confirmed(member)

    first = client.post(url(license), {"reason": "one"})
    second = client.post(url(license), {"reason": "two"})

    assert first.text == second.text
    assert reveals().count() == 2


def test_after_a_rotation_it_sends_the_new_key(confirmed):
    member = factories.make_member()
    license, old = factories.make_license_and_key(customer=member.customer)
    new = keys.rotate(license=license, by=factories.BY, reason="leaked", at=TODAY)

    answer = confirmed(member).post(url(license), {"reason": "rotated"})

    assert answer.text.strip() == new != old


def test_it_says_so_when_there_is_no_key(confirmed):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    LicenseKey.objects.update(retired_at=TODAY)

    answer = confirmed(member).post(url(license), {"reason": "needed"})

    assert answer.status_code == 404
    assert "This license has no key." in answer.text


def test_it_hides_what_is_wrong_with_the_key_ring(confirmed, monkeypatch):
    member = factories.make_member()
    license = factories.make_license(customer=member.customer)
    client = confirmed(member)

    def broken(*_):
        raise crypto.KeyRingError("The key ring lacks the key 'k9'.")

    monkeypatch.setattr(crypto, "unseal", broken)
    answer = client.post(url(license), {"reason": "needed"})

    assert answer.status_code == 503
    assert "k9" not in answer.text
    assert 'value="needed"' in answer.text
    assert not reveals().exists()


@pytest.mark.parametrize("role", ["billing", "viewer"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_it_refuses_those_who_only_look(confirmed, role, method):
    member = factories.make_member(role=role)
    license = factories.make_license(customer=member.customer)

    assert getattr(confirmed(member), method)(url(license), {"reason": "curious"}).status_code == 403
    assert not reveals().exists()


@pytest.mark.parametrize("method", ["get", "post"])
def test_it_does_not_know_the_license_of_somebody_else(confirmed, method):
    license = factories.make_license()

    assert getattr(confirmed(factories.make_member()), method)(url(license), {"reason": "x"}).status_code == 404
    assert not reveals().exists()


def test_it_asks_who_is_there(client):
    answer = client.post(url(factories.make_license()), {"reason": "x"})

    assert answer.url.startswith("/accounts/login/")
    assert not reveals().exists()


def test_it_never_reveals_on_get(confirmed):
    member = factories.make_member()
    license, key = factories.make_license_and_key(customer=member.customer)

    answer = confirmed(member).get(url(license), {"reason": "needed"})

    assert answer.status_code == 200
    assert key not in answer.text
    assert not reveals().exists()


def test_it_knows_no_other_method(confirmed):
    member = factories.make_member()

    assert confirmed(member).put(url(factories.make_license(customer=member.customer))).status_code == 405
