"""What we mail about licenses, and when. Words stand in templates/emails/.

`enqueue` writes an outbox row in the caller's transaction; `send` is the relay's handler, and looks the
recipients up only when it sends.
"""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.template.loader import render_to_string

from licensing import outbox
from licensing.models import License, Member, OutboxMessage
from licensing.states import MemberRole

KIND = "mail.license"
ENTERED_GRACE, EXPIRED, HELD, REVOKED = "entered_grace", "expired", "held", "revoked"
RECIPIENTS = (MemberRole.OWNER, MemberRole.LICENSE_MANAGER)


def enqueue(*, template: str, license: License, at: datetime, **facts: Any) -> None:
    """Have the customer's owners and license managers told, once the caller's transaction is committed."""
    outbox.enqueue(kind=KIND, payload={"template": template, "facts": facts}, license_id=license.pk, at=at)


def send(message: OutboxMessage) -> None:
    """Send one notice. The message id is the outbox row's, so a repeated delivery is recognised as one."""
    license = License.objects.select_related("customer", "product", "plan_revision__plan").get(
        pk=message.license_id or ""
    )
    emails = set(
        Member.objects.filter(customer=license.customer, role__in=RECIPIENTS, user__is_active=True).values_list(
            "user__email", flat=True
        )
    )
    if license.customer.email:
        emails.add(license.customer.email)
    if not emails:
        return
    context = {
        "license": license,
        "facts": message.payload["facts"],
        "link": f"{settings.PUBLIC_URL}/licenses/{license.pk}/",
    }
    text = render_to_string(f"emails/{message.payload['template']}.txt", context)
    subject, _, body = text.strip().partition("\n")
    for position, email in enumerate(sorted(emails)):
        EmailMessage(
            subject=subject.strip(),
            body=body.strip() + "\n",
            to=[email],
            headers={"Message-ID": f"<{message.pk}.{position}@licentia>"},
        ).send()
