"""Customers, and the members who act for them.

It does not know passwords or sign-in: a member's user comes from the portal.
"""

from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction

from licensing import audit
from licensing.audit import Actor
from licensing.errors import Invalid, Refused
from licensing.models import Customer, Member
from licensing.states import MemberRole

# What each role may do in the portal; reading is every member's, but for what is owed.
MAY_MANAGE_SEATS = frozenset({MemberRole.OWNER, MemberRole.LICENSE_MANAGER})
MAY_REVEAL_KEYS = frozenset({MemberRole.OWNER, MemberRole.LICENSE_MANAGER})
MAY_MANAGE_WEBHOOKS = frozenset({MemberRole.OWNER, MemberRole.LICENSE_MANAGER})
MAY_SEE_MONEY = frozenset({MemberRole.OWNER, MemberRole.BILLING})


class CustomerCodeTaken(Refused):
    """There is a customer with this code already."""

    code = "code_taken"


class AlreadyMember(Refused):
    """This person is a member of the customer already."""

    code = "already_member"


class LastOwner(Refused):
    """A customer keeps at least one owner."""

    code = "last_owner"


def create(*, code: str, name: str, by: Actor, at: datetime, email: str = "") -> Customer:
    """Make a customer. Raises `CustomerCodeTaken`."""
    customer = Customer(created_at=at, code=code, name=name, email=email)
    try:
        with transaction.atomic():
            customer.save(force_insert=True)
            audit.record(action="customer.created", by=by, on=customer, at=at, after={"code": code, "name": name})
    except IntegrityError:
        raise CustomerCodeTaken() from None
    return customer


def change(*, customer: Customer, name: str, email: str, by: Actor, at: datetime) -> Customer:
    """Change a customer's name and notice address; the entry holds both addresses sealed."""
    with transaction.atomic():
        row = Customer.objects.select_for_update(no_key=True).get(pk=customer.pk)
        old, new = audit.differences({"name": row.name, "email": row.email}, {"name": name, "email": email})
        if new:
            row.name, row.email = name, email
            row.save()
            audit.record(action="customer.changed", by=by, on=row, at=at, before=old, after=new)
    return row


def add_member(*, customer: Customer, user: Any, role: str, by: Actor, at: datetime) -> Member:
    """Let a user act for a customer. Raises `AlreadyMember`; `Invalid` for an unknown role."""
    _known(role)
    member = Member(created_at=at, customer=customer, user=user, role=role)
    try:
        with transaction.atomic():
            member.save(force_insert=True)
            audit.record(action="member.added", by=by, on=member, at=at, after={"role": role, "user": str(user.pk)})
    except IntegrityError:
        raise AlreadyMember() from None
    return member


def invite(*, customer: Customer, email: str, role: str, by: Actor, at: datetime) -> Member:
    """Let the person with this address act for a customer; who is new sets a password by "forgot password".

    Raises:
        AlreadyMember: the person is one already.
        Invalid: the address cannot be one of ours.
    """
    users: Any = get_user_model().objects
    email = email.strip().lower()
    if not email.isascii() or len(email) > 254:
        raise Invalid("An email address has at most 254 plain characters.", pointer="/email")
    with transaction.atomic():
        user = users.filter(email=email).first() or users.create_user(email=email)
        return add_member(customer=customer, user=user, role=role, by=by, at=at)


def change_role(*, member: Member, role: str, by: Actor, at: datetime) -> Member:
    """Give a member another role. Raises `LastOwner` when no owner would be left; `Invalid` for an unknown role."""
    _known(role)
    with transaction.atomic():
        row = _locked(member)
        if row.role != role:
            if row.role == MemberRole.OWNER:
                _needs_another_owner(row)
            audit.record(
                action="member.role_changed",
                by=by,
                on=row,
                at=at,
                before={"role": row.role},
                after={"role": role},
            )
            row.role = role
            row.save()
    return row


def remove_member(*, member: Member, by: Actor, at: datetime, reason: str = "") -> None:
    """Let a member no longer act for the customer. Raises `LastOwner`."""
    with transaction.atomic():
        row = _locked(member)
        if row.role == MemberRole.OWNER:
            _needs_another_owner(row)
        was = {"role": row.role, "user": str(row.user_id)}
        audit.record(action="member.removed", by=by, on=row, at=at, before=was, reason=reason)
        row.delete()


def _known(role: str) -> None:
    if role not in MemberRole.values:
        raise Invalid(f"A member's role is one of {', '.join(MemberRole.values)}.", pointer="/role")


def _locked(member: Member) -> Member:
    # The customer's row is the lock: two owners leaving at the same time must not both count the other.
    Customer.objects.select_for_update(no_key=True).get(pk=member.customer_id)
    return Member.objects.select_for_update(no_key=True).get(pk=member.pk)


def _needs_another_owner(member: Member) -> None:
    others = Member.objects.filter(customer_id=member.customer_id, role=MemberRole.OWNER).exclude(pk=member.pk)
    if not others.exists():
        raise LastOwner()
