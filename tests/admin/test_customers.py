"""Customers, members and API credentials from the staff admin."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client

from licensing import credentials, crypto
from licensing.models import AuditEntry, Credential, Customer, Member
from tests.admin.conftest import act, adding, last_entry, page, recorded, sign_in, text_of
from tests.factories import make_credential, make_customer, make_member, make_user, opened

pytestmark = pytest.mark.django_db
SECRET = re.compile(r"lsk_[A-Za-z0-9_-]{43}")


def test_makes_and_changes_a_customer(staff: Client) -> None:
    staff.post(adding(Customer), {"code": "acme", "name": "Acme", "email": ""})
    customer = Customer.objects.get()
    assert last_entry().action == "customer.created"

    staff.post(page(customer), {"code": "stolen", "name": "Acme Ltd", "email": "it@acme.example"})

    customer.refresh_from_db()
    assert (customer.code, customer.name, customer.email) == ("acme", "Acme Ltd", "it@acme.example")
    entry = last_entry()
    assert (entry.action, entry.customer_id) == ("customer.changed", customer.pk)
    assert "it@acme.example" not in str(AuditEntry.objects.get(pk=entry.pk).after)


def test_adds_a_member_changes_the_role_and_removes(staff: Client) -> None:
    owner = make_member()
    user = make_user()

    staff.post(adding(Member), {"customer": owner.customer.pk, "user": user.pk, "role": "viewer"})
    member = Member.objects.get(user=user)
    assert last_entry().action == "member.added"
    staff.post(page(member), {"role": "billing"})
    assert last_entry().action == "member.role_changed"
    response = staff.post(act(member, "remove"), {"reason": "Left."})

    assert response.status_code == 302
    assert not Member.objects.filter(user=user).exists()
    assert (last_entry().action, last_entry().reason) == ("member.removed", "Left.")


def test_the_last_owner_stays(staff: Client) -> None:
    owner = make_member()

    changed = staff.post(page(owner), {"role": "viewer"})
    removed = staff.post(act(owner, "remove"), {"reason": "Left."})

    assert "at least one owner" in text_of(changed)
    assert removed.status_code == 422
    owner.refresh_from_db()
    assert owner.role == "owner"


def test_makes_a_credential_and_shows_its_secret_once(staff: Client) -> None:
    customer = make_customer()

    response = staff.post(adding(Credential), {
        "name": "Build server", "customer": customer.pk, "scopes": ["validate", "seats:read"],
        "allowed_addresses": "192.0.2.0/24\n2001:db8::1", "expires_at_0": "", "expires_at_1": "",
    })  # fmt: skip

    assert response.status_code == 200
    assert "no-store" in response.headers["Cache-Control"]
    [secret] = set(SECRET.findall(text_of(response)))
    row = Credential.objects.get()
    assert bytes(row.digest) in crypto.digests(secret.encode(), kind="credential")
    assert row.scopes == ["seats:read", "validate"]
    assert row.allowed_addresses == ["192.0.2.0/24", "2001:db8::1/128"]
    entry = last_entry()
    assert (entry.action, entry.object_id, entry.after["last4"]) == ("credential.created", str(row.pk), secret[-4:])
    assert opened(entry).actor_label == staff.user.email  # type: ignore[attr-defined]
    assert not SECRET.search(text_of(staff.get(page(row))))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scopes": ["audit:read"]}, "cannot hold"),
        ({"allowed_addresses": "nowhere"}, "is no address"),
        ({"expires_at_0": "2001-01-01", "expires_at_1": "00:00"}, "not in the past"),
        ({"scopes": []}, "This field is required"),
    ],
)
def test_what_the_rule_refuses_is_said(staff: Client, given: dict[str, object], said: str) -> None:
    values = {"name": "x", "customer": make_customer().pk, "scopes": ["validate"]} | given

    response = staff.post(adding(Credential), values)

    assert response.status_code == 200
    assert said in text_of(response)
    assert not Credential.objects.exists()


def test_revokes_a_credential_once(staff: Client) -> None:
    credential, secret = make_credential()

    for _ in range(2):
        assert staff.post(act(credential, "revoke"), {"reason": "Leaked"}).status_code == 302

    credential.refresh_from_db()
    assert credential.revoked_at is not None
    entry = AuditEntry.objects.get(action="credential.revoked")
    assert entry.reason == "Leaked"
    with pytest.raises(credentials.Unauthenticated):
        credentials.authenticate(secret, address=None, request_id="", at=datetime.now(UTC) + timedelta(seconds=1))


def test_needs_the_permissions() -> None:
    credential, _ = make_credential()
    member = make_member()
    client = sign_in(*(f"licensing.view_{name}" for name in ("customer", "member", "credential")))

    for url in (adding(Customer), adding(Member), adding(Credential), act(credential, "revoke"), act(member, "remove")):
        assert client.get(url).status_code == 403
        assert client.post(url, {"reason": "x"}).status_code == 403
    assert client.post(page(member), {"role": "viewer"}).status_code == 403


def test_opening_the_pages_changes_nothing(staff: Client) -> None:
    credential, _ = make_credential()
    member = make_member()
    before = recorded().count()

    for url in (act(credential, "revoke"), act(member, "remove"), page(member), page(credential)):
        assert staff.get(url).status_code == 200

    assert recorded().count() == before
