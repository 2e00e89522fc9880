"""All that is held about one person: shown to them, or erased.

Where it is held is declared once: `PERSONAL` of each model names the fields, `HELD` says what becomes of each. Tests
hold both together, and look into every other field that could hold words. Source: ADR 0022, docs/privacy.md.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from allauth.account.models import EmailAddress
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Q, QuerySet

from billing.models import BillingAccount, Statement
from licensing import audit, customers, persons, seats
from licensing.audit import PERSONS
from licensing.errors import Invalid, Refused
from licensing.models import Activation, AuditEntry, Customer, Member, Person, SchemeChange, Seat
from licensing.states import MemberRole

BY = audit.system("privacy")

# Every field that `PERSONAL` of a model names, and what erasing a person does to it.
HELD: dict[str, str] = {
    "portal.User.email": "a stand-in takes its place; the account is closed",
    "portal.User.first_name": "emptied",
    "portal.User.last_name": "emptied",
    "licensing.Seat.holder": "a stand-in takes its place",
    "licensing.Activation.name": "emptied, on machines of the person's seats",
    "licensing.Customer.email": "emptied, where it is the person's",
    "licensing.SchemeChange.actor_label": "emptied",
    "licensing.AuditEntry.actor_label": "sealed; the key is destroyed",
    "licensing.AuditEntry.address": "sealed; the key is destroyed",
    "licensing.AuditEntry.personal": "sealed; the key is destroyed",
    "billing.BillingAccount.address": "kept: to whom statements are addressed",
    "billing.Statement.bill_to": "kept: a final statement is kept as the law on accounts asks, and never changes",
}


class CannotErase(Refused):
    """The person still holds what somebody else should have first."""

    code = "cannot_erase"


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was, or would be, erased: how many rows of what; what is kept, with the reason; what stands against it."""

    erased: dict[str, int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a person is named, as queries."""

    mail: str
    user: Any
    members: QuerySet[Member]
    seats: QuerySet[Seat]
    machines: QuerySet[Activation]
    contacts: QuerySet[Customer]
    changes: QuerySet[SchemeChange]
    keys: QuerySet[Person]
    accounts: QuerySet[BillingAccount]
    statements: QuerySet[Statement]

    @classmethod
    def of(cls, mail: str) -> "_Found":
        mail = seats.normalized(mail)
        user = get_user_model().objects.filter(email__iexact=mail).first()
        own = Q(actor_kind__in=PERSONS, actor_id=str(user.pk)) if user else Q(pk=None)
        held = Seat.objects.filter(holder=mail)
        keys = persons.of(mail)
        return cls(
            mail=mail,
            user=user,
            members=Member.objects.filter(user=user).order_by("id") if user else Member.objects.none(),
            seats=held,
            machines=Activation.objects.filter(seat__in=held).exclude(name=""),
            contacts=Customer.objects.filter(email__iexact=mail).order_by("id"),
            changes=SchemeChange.objects.filter(own | Q(actor_label__iexact=mail)).exclude(actor_label=""),
            keys=keys | Person.objects.filter(user=str(user.pk)) if user else keys,
            accounts=BillingAccount.objects.filter(address__icontains=mail),
            statements=Statement.objects.filter(bill_to__icontains=mail),
        )

    def entries(self) -> QuerySet[AuditEntry]:
        """Return the audit entries of what the person did, and of what was done to their account, seats and roles."""
        about = Q(object_kind="seat", object_id__in=[str(pk) for pk in self.seats.values_list("pk", flat=True)])
        about |= Q(object_kind="person", object_id__in=[str(pk) for pk in self.keys.values_list("pk", flat=True)])
        if self.user:
            about |= Q(actor_kind__in=PERSONS, actor_id=str(self.user.pk))
            about |= Q(object_kind="user", object_id=str(self.user.pk))
            about |= Q(object_kind="member", object_id__in=[str(member.pk) for member in self.members])
        return AuditEntry.objects.filter(about).order_by("id")

    def elsewhere(self) -> dict[str, QuerySet[Any]]:
        """Return what packages keep: addresses to sign in with, attempts to, and names in the staff site's own log."""
        log = LogEntry.objects.filter(content_type__model="user", object_id=str(self.user.pk)) if self.user else None
        return {
            "addresses to sign in with": EmailAddress.objects.filter(email__iexact=self.mail),
            "attempts to sign in": AccessAttempt.objects.filter(username__iexact=self.mail),
            "failed sign-ins": AccessFailureLog.objects.filter(username__iexact=self.mail),
            "sign-ins": AccessLog.objects.filter(username__iexact=self.mail),
            "notes of the staff site": LogEntry.objects.none() if log is None else log,
        }


def export(*, mail: str, at: datetime) -> dict[str, Any]:
    """Return all that is held about the person with this address, as JSON can hold it. An audit entry says so.

    Raises `Invalid` when it is no address.
    """
    found = _Found.of(mail)
    said: dict[str, Any] = {"mail": found.mail, "made_at": at, "account": None}
    if found.user:
        names = ("id", "email", "first_name", "last_name", "date_joined", "last_login", "is_active", "is_staff")
        said["account"] = {name: getattr(found.user, name) for name in names}
    tables: dict[str, tuple[QuerySet[Any], tuple[str, ...]]] = {
        "memberships": (found.members, ("id", "customer_id", "customer__name", "role", "created_at")),
        "seats": (found.seats.order_by("id"), ("id", "license_id", "holder", "state", "assigned_at", "released_at")),
        "machines": (found.machines.order_by("id"), ("id", "license_id", "name", "platform", "activated_at")),
        "contact_of": (found.contacts, ("id", "name", "email")),
        "scheme_changes": (found.changes.order_by("id"), ("id", "license_id", "reason", "actor_label", "created_at")),
        "billed_at": (found.accounts.order_by("id"), ("id", "customer_id", "address", "tax_id")),
        "statements": (found.statements.order_by("id"), ("id", "number", "bill_to", "final_at")),
    }
    for name, (rows, columns) in tables.items():
        said[name] = list(rows.values(*columns))
    sign_ins = ("attempt_time", "ip_address", "user_agent")
    for name, rows in found.elsewhere().items():
        if rows.model in (AccessAttempt, AccessFailureLog, AccessLog):
            said[name.replace(" ", "_").replace("-", "_")] = list(rows.order_by("pk").values(*sign_ins))
    names = ("id", "at", "action", "actor_kind", "actor_label", "address", "object_kind", "object_id")
    entries = audit.opened(found.entries())
    said["audit_entries"] = [
        {name: getattr(entry, name) for name in (*names, "before", "after", "reason")} for entry in entries
    ]
    if any(value for name, value in said.items() if name not in ("mail", "made_at")):
        with transaction.atomic():
            row = persons.enrolled(mail=found.mail, at=at)
            audit.record(action="person.exported", by=BY, on=row, at=at)
    return said


def planned(*, mail: str, release_seats: bool = False, leave_no_owner: bool = False) -> Erasure:
    """Return what `erase` would do, and change nothing. Raises `Invalid` when it is no address."""
    return _planned(_Found.of(mail), release_seats, leave_no_owner)


def erase(
    *, mail: str, reason: str, at: datetime, release_seats: bool = False, leave_no_owner: bool = False
) -> Erasure:  # fmt: skip
    """Erase the person with this address, in one transaction with an audit entry that does not name them. What is held
    of nobody is nothing to erase: doing it twice changes nothing.

    Raises:
        CannotErase: they are staff, hold live seats (unless these are released), or are a customer's only owner
            (unless it is left with none: the membership stays, with a closed account).
        Invalid: it is no address, or no reason is given.
    """
    if not reason.strip():
        raise Invalid("Say why: --reason", pointer="/reason")
    with transaction.atomic():
        found = _Found.of(mail)
        plan = _planned(found, release_seats, leave_no_owner)
        if plan.refused:
            raise CannotErase(" ".join(plan.refused))
        if not plan.erased:
            return plan
        row = persons.enrolled(mail=found.mail, at=at)
        stand_in = f"erased-{secrets.token_hex(8)}@erased.invalid"
        found.machines.update(name="")
        seats.erase_holder(holder=found.mail, stand_in=stand_in, by=BY, at=at, reason="erased")
        for customer in found.contacts:
            customers.change(customer=customer, name=customer.name, email="", by=BY, at=at)
        found.changes.update(actor_label="")
        for member in found.members:
            if not _alone(member):
                customers.remove_member(member=member, by=BY, at=at, reason="erased")
        for rows in found.elsewhere().values():
            if rows.model is LogEntry:
                rows.update(object_repr=persons.ERASED)
            else:
                rows.delete()
        gone = [*found.keys, row]  # found before the account's own address goes
        if found.user:
            _close(found.user, stand_in)
        audit.record(action="person.erased", by=BY, on=row, at=at, after=dict(plan.erased), reason=reason)
        persons.erase(rows=gone, at=at)
    return plan


def _planned(found: _Found, release_seats: bool, leave_no_owner: bool) -> Erasure:
    live = found.seats.filter(released_at=None).count()
    alone = [member for member in found.members if _alone(member)]
    plan = Erasure()
    counts: dict[str, Callable[[], int]] = {
        "account": lambda: 1 if found.user else 0,
        "memberships": lambda: found.members.count() - len(alone),
        "seats": found.seats.count,
        "machine names": found.machines.count,
        "customers' notice addresses": found.contacts.count,
        "changes of scheme": found.changes.count,
        "keys of audit entries": found.keys.count,
        **{name: rows.count for name, rows in found.elsewhere().items()},
    }
    plan.erased.update({name: count for name, each in counts.items() if (count := each())})
    if found.user and found.user.is_staff:
        plan.refused.append("The person is staff. Take that right from the account first.")
    if live and not release_seats:
        plan.refused.append(f"The person holds {live} live seats. Release or transfer them, or say --release-seats.")
    if alone and not leave_no_owner:
        names = ", ".join(member.customer.code for member in alone)
        plan.refused.append(f"The person is the only owner of {names}. Add another, or say --leave-no-owner.")
    kept: dict[str, QuerySet[Any]] = {
        "statements, final ones, as the law on accounts asks": found.statements,
        "billing addresses that name the person: change them if they should not": found.accounts,
    }
    for what, rows in kept.items():
        if count := rows.count():
            plan.kept.append(f"{count} {what}")
    before = AuditEntry.objects.filter(actor_kind__in=PERSONS, actor_label__iexact=found.mail).count()
    if before:
        plan.kept.append(f"{before} audit entries from before what is personal was sealed: they cannot be changed")
    return plan


def _alone(member: Member) -> bool:
    others = Member.objects.filter(customer_id=member.customer_id, role=MemberRole.OWNER).exclude(pk=member.pk)
    return member.role == MemberRole.OWNER and not others.exists()


def _close(user: Any, stand_in: str) -> None:
    user.email, user.first_name, user.last_name, user.is_active = stand_in, "", "", False
    user.set_unusable_password()
    user.save()
