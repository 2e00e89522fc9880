"""What we mail about licenses, and when. Words stand in templates/emails/.

`enqueue` writes an outbox row in the caller's transaction; `send` is the relay's handler, and looks the
recipients up only when it sends.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMessage
from django.template.loader import render_to_string

from licensing import outbox
from licensing.models import Customer, License, Member, OutboxMessage
from licensing.states import MemberRole

KIND, TO_CUSTOMER = "mail.license", "mail.customer"
EXPIRES_SOON = "expires_soon"
ENTERED_GRACE, EXPIRED, HELD, REVOKED, ALLOWANCE = "entered_grace", "expired", "held", "revoked", "allowance"
RECIPIENTS = (MemberRole.OWNER, MemberRole.LICENSE_MANAGER)


def enqueue(*, template: str, license: License, at: datetime, **facts: Any) -> None:
    """Have the customer's owners and license managers told, once the caller's transaction is committed."""
    outbox.enqueue(kind=KIND, payload={"template": template, "facts": facts}, license_id=license.pk, at=at)


def tell(*, template: str, customer_id: UUID, at: datetime, **facts: Any) -> None:
    """Have the same people told what is about no license."""
    outbox.enqueue(kind=TO_CUSTOMER, payload={"template": template, "facts": facts}, customer_id=customer_id, at=at)


def send(message: OutboxMessage) -> None:
    """Send one notice about a license. The message id is the outbox row's, so a repeated delivery is known as one."""
    license = License.objects.select_related("customer", "product", "plan_revision__plan").get(
        pk=message.license_id or ""
    )
    link = f"{settings.PUBLIC_URL}/licenses/{license.pk}/"
    _mail(message, license.customer, {"license": license, "link": link})


def send_to_customer(message: OutboxMessage) -> None:
    """Send one notice that is about no license."""
    customer = Customer.objects.get(pk=message.customer_id or "")
    _mail(message, customer, {"customer": customer, "link": f"{settings.PUBLIC_URL}/webhooks/"})


def _mail(message: OutboxMessage, customer: Customer, about: dict[str, Any]) -> None:
    emails = set(
        Member.objects.filter(customer=customer, role__in=RECIPIENTS, user__is_active=True).values_list(
            "user__email", flat=True
        )
    )
    if customer.email:
        emails.add(customer.email)
    if not emails:
        return
    context = {**about, "facts": message.payload["facts"]}
    text = render_to_string(f"emails/{message.payload['template']}.txt", context)
    subject, _, body = text.strip().partition("\n")
    for position, email in enumerate(sorted(emails)):
        EmailMessage(
            subject=subject.strip(),
            body=body.strip() + "\n",
            to=[email],
            headers={"Message-ID": f"<{message.pk}.{position}@licentia>"},
        ).send()
