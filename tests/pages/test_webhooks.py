"""The customer's pages of webhooks."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse

from licensing import outbox, sweeps, webhooks
from licensing.models import AuditEntry, OutboxMessage, WebhookEndpoint
from tests.factories import BY, make_customer, make_member, opened
from tests.pages.conftest import TODAY
from tests.receiver import receiving

pytestmark = pytest.mark.django_db
LIST = reverse("portal:webhooks")
SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]{40,}")
URL = "https://hooks.example.com/in"


def make_endpoint(customer, url=URL):
    return webhooks.create(url=url, customer=customer, by=BY, at=TODAY)[0]


def url(endpoint, name=""):
    if name in ("rotate", "disable", "enable", "delete"):
        return reverse("portal:webhook-act", args=[endpoint.pk, name])
    return reverse(f"portal:{name}-webhook" if name else "portal:webhook", args=[endpoint.pk])


def text_of(answer) -> str:
    return answer.content.decode()


def test_it_makes_an_endpoint_and_shows_its_secret_once(signed_in):
    member = make_member()
    client = signed_in(member)

    answer = client.post(LIST, {"url": URL, "description": "ours", "event_types": ["license.held"]})

    row = WebhookEndpoint.objects.get()
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    assert len(set(SECRET.findall(text_of(answer)))) == 1
    assert (row.customer, row.event_types, row.description) == (member.customer, ["license.held"], "ours")
    for page in (LIST, url(row)):
        assert not SECRET.search(text_of(client.get(page)))
        assert URL in text_of(client.get(page))
    assert opened(AuditEntry.objects.get(action="webhook_endpoint.created")).actor_label == member.user.email


def test_it_makes_it_for_the_organization_chosen_of_several(signed_in):
    member = make_member()
    other = make_member(user=member.user, role="license_manager")
    make_member(user=member.user, role="viewer", customer=(strange := make_customer()))
    client = signed_in(member)

    refused = client.post(LIST, {"url": URL, "customer": strange.pk})
    client.post(LIST, {"url": URL, "customer": other.customer.pk})

    assert refused.status_code == 400
    assert WebhookEndpoint.objects.get().customer == other.customer


@pytest.mark.parametrize("address", ["https://10.0.0.1/", "nonsense", "https://[::1]/"])
def test_it_says_what_is_wrong_with_an_address_beside_it(signed_in, address):
    answer = signed_in(make_member()).post(LIST, {"url": address})

    assert answer.status_code == 400
    assert "errorlist" in text_of(answer)
    assert not WebhookEndpoint.objects.exists()


@pytest.mark.parametrize("role", ["billing", "viewer"])
def test_it_is_for_owners_and_license_managers(signed_in, role):
    member = make_member(role=role)
    row = make_endpoint(member.customer)
    client = signed_in(member)

    shown = client.get(LIST)

    assert URL not in text_of(shown)
    assert client.post(LIST, {"url": URL}).status_code == 403
    for name in ("", "change", "rotate", "disable", "delete"):
        assert client.get(url(row, name)).status_code == 403
    assert client.post(url(row, "test")).status_code == 403


def test_it_knows_no_endpoint_of_another_customer_the_vendor_or_deleted(signed_in):
    member = make_member()
    theirs, vendors, gone = make_endpoint(make_customer()), make_endpoint(None), make_endpoint(member.customer)
    webhooks.delete(endpoint=gone, by=BY, at=TODAY)
    client = signed_in(member)

    for row in (theirs, vendors, gone):
        for name in ("", "change", "rotate", "disable", "delete"):
            assert client.get(url(row, name)).status_code == 404
        assert client.post(url(row, "test")).status_code == 404
    assert URL not in text_of(client.get(LIST))


def test_it_asks_nobody_who_is_not_signed_in():
    row = make_endpoint(make_customer())

    for page in (LIST, url(row), url(row, "rotate")):
        assert Client().get(page).status_code == 302


def test_it_tests_and_shows_what_came_back_and_sends_again(signed_in, settings):
    settings.WEBHOOKS_TO_LOOPBACK = True
    member = make_member()
    client = signed_in(member)
    with receiving() as receiver:
        receiver.statuses, receiver.body = [500], b"<b>Oops</b>"
        row = make_endpoint(member.customer, receiver.url)
        assert client.post(url(row, "test")).status_code == 302
        outbox.relay(handlers=sweeps.OUR_HANDLERS, at=TODAY + timedelta(seconds=5))
        failed = text_of(client.get(url(row)))
        outbox.relay(handlers=sweeps.OUR_HANDLERS, at=TODAY + timedelta(minutes=1))
        delivered = text_of(client.get(url(row)))
        message = OutboxMessage.objects.get()
        again = reverse("portal:replay-webhook", args=[row.pk, message.pk])
        without = client.post(again, {"reason": ""})
        done = client.post(again, {"reason": "We lost it"})
        outbox.relay(handlers=sweeps.OUR_HANDLERS, at=TODAY + timedelta(minutes=2))

    assert "Retrying" in failed
    assert "500 &lt;b&gt;Oops" in failed
    assert "Delivered" in delivered
    assert (without.status_code, done.status_code) == (400, 302)
    assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1
    assert len(receiver.requests) == 3


def test_it_rotates_changes_disables_enables_and_deletes(signed_in):
    member = make_member()
    row = make_endpoint(member.customer)
    client = signed_in(member)

    rotated = client.post(url(row, "rotate"), {"reason": ""})
    changed = client.post(url(row, "change"), {"url": URL + "2", "description": "", "event_types": []})
    for name in ("disable", "enable", "delete"):
        assert client.get(url(row, name)).status_code == 200
        assert client.post(url(row, name), {"reason": "because"}).status_code == 302

    row.refresh_from_db()
    assert len(set(SECRET.findall(text_of(rotated)))) == 1
    assert changed.status_code == 302
    assert (row.url, row.state) == (URL + "2", "deleted")


def test_it_changes_nothing_on_get(signed_in):
    member = make_member()
    row = make_endpoint(member.customer)
    client = signed_in(member)
    before = AuditEntry.objects.count()

    for name in ("rotate", "disable", "delete", "change"):
        assert client.get(url(row, name)).status_code == 200
    assert client.get(url(row, "test")).status_code == 405
    assert client.get(reverse("portal:webhook-act", args=[row.pk, "explode"])).status_code == 404

    assert AuditEntry.objects.count() == before
