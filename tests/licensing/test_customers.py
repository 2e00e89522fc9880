"""Customers and members: codes once, persons once, always an owner."""

import pytest
from django.db import IntegrityError, transaction

from licensing import audit, customers
from licensing.customers import AlreadyMember, CustomerCodeTaken, LastOwner
from licensing.errors import Invalid
from licensing.models import AuditEntry, Customer, Member
from tests.factories import AT, BY, make_customer, make_member, make_user

pytestmark = pytest.mark.django_db


def test_it_makes_a_customer_once_per_code():
    make_customer(code="acme", name="Acme", email="mail@acme.example")

    with pytest.raises(CustomerCodeTaken):
        make_customer(code="acme")

    assert Customer.objects.count() == 1


def test_it_changes_name_and_address_and_does_not_write_the_address_into_the_audit_record():
    customer = make_customer(name="Acme", email="old@acme.example")

    customers.change(customer=customer, name="Acme Ltd", email="new@acme.example", by=BY, at=AT)

    entry = AuditEntry.objects.get(action="customer.changed")
    customer.refresh_from_db()
    assert (customer.name, customer.email) == ("Acme Ltd", "new@acme.example")
    assert (entry.before, entry.after) == (
        {"name": "Acme", "email": "changed"},
        {"name": "Acme Ltd", "email": "changed"},
    )
    assert "acme.example" not in str(AuditEntry.objects.filter(pk=entry.pk).values().get())
    shown = audit.opened([entry])[0]
    assert (shown.before["email"], shown.after["email"]) == ("old@acme.example", "new@acme.example")


def test_it_writes_nothing_when_nothing_changes():
    customer = make_customer(name="Acme", email="a@acme.example")

    customers.change(customer=customer, name="Acme", email="a@acme.example", by=BY, at=AT)

    assert not AuditEntry.objects.filter(action="customer.changed").exists()


def test_it_takes_a_person_once_per_customer():
    member = make_member()

    with pytest.raises(AlreadyMember):
        make_member(customer=member.customer, user=member.user, role="viewer")

    assert make_member(user=member.user)


@pytest.mark.parametrize("role", ["king", "", "OWNER"])
def test_it_takes_no_role_that_does_not_exist(role):
    member = make_member(role="viewer")

    with pytest.raises(Invalid):
        make_member(customer=member.customer, role=role)
    with pytest.raises(Invalid):
        customers.change_role(member=member, role=role, by=BY, at=AT)
    with pytest.raises(IntegrityError), transaction.atomic():
        Member.objects.filter(pk=member.pk).update(role=role)


@pytest.mark.parametrize("role", ["license_manager", "billing", "viewer"])
def test_it_keeps_the_last_owner(role):
    owner = make_member()
    make_member(customer=owner.customer, role="license_manager")

    with pytest.raises(LastOwner):
        customers.change_role(member=owner, role=role, by=BY, at=AT)
    with pytest.raises(LastOwner):
        customers.remove_member(member=owner, by=BY, at=AT)

    assert Member.objects.get(pk=owner.pk).role == "owner"


def test_it_lets_an_owner_go_while_another_stays():
    one = make_member()
    two = make_member(customer=one.customer)

    customers.change_role(member=one, role="viewer", by=BY, at=AT)
    customers.remove_member(member=one, by=BY, at=AT)

    with pytest.raises(LastOwner):
        customers.remove_member(member=two, by=BY, at=AT)


def test_it_does_not_count_an_owner_of_another_customer():
    owner = make_member()
    make_member(user=owner.user)
    make_member()

    with pytest.raises(LastOwner):
        customers.remove_member(member=owner, by=BY, at=AT)


def test_it_says_nothing_about_a_role_that_stays():
    member = make_member(role="viewer")

    customers.change_role(member=member, role="viewer", by=BY, at=AT)

    assert not AuditEntry.objects.filter(action="member.role_changed").exists()


def test_it_writes_a_members_id_and_not_their_address_into_the_audit_record():
    user = make_user(email="ada@example.com")
    member = make_member(user=user)
    make_member(customer=member.customer)

    customers.remove_member(member=member, by=BY, at=AT)

    said = repr([(entry.before, entry.after) for entry in AuditEntry.objects.all()])
    assert "ada@example.com" not in said
    assert str(user.pk) in said


def test_it_invites_a_person_who_is_known_or_new():
    customer, known = make_customer(), make_user(email="known@example.com")

    first = customers.invite(customer=customer, email=" Known@Example.com ", role="owner", by=BY, at=AT)
    second = customers.invite(customer=customer, email="new@example.com", role="viewer", by=BY, at=AT)

    assert first.user == known
    assert (second.user.email, second.user.has_usable_password()) == ("new@example.com", False)
    with pytest.raises(AlreadyMember):
        customers.invite(customer=customer, email="NEW@example.com", role="viewer", by=BY, at=AT)


def test_it_makes_no_user_when_the_invitation_is_refused():
    people = Member._meta.get_field("user").related_model.objects

    with pytest.raises(Invalid):
        customers.invite(customer=make_customer(), email="new@example.com", role="king", by=BY, at=AT)

    assert not people.exists()
