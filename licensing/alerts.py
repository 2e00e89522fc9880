"""Who is told of an anomaly, and how: each way is a message of its own in the outbox.

`announce` writes them in the caller's transaction; mail is ours, other ways are added by `also`. `send` is the relay's
handler for mail and looks the recipients up only when it sends: those of the setting ALERT_EMAILS, and the staff who
hold the right to be told.
"""

from datetime import datetime

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.core.mail import EmailMessage
from django.template.loader import render_to_string

from licensing import outbox, rules
from licensing.models import Anomaly, OutboxMessage

KIND = "mail.anomaly"
EVENT = "anomaly.flagged"
_kinds = [KIND]


def also(kind: str) -> None:
    """Have a message of this kind written for every alert, too; who delivers it is said to `outbox.deliver`."""
    if kind not in _kinds:
        _kinds.append(kind)


def announce(*, anomaly: Anomaly, at: datetime) -> None:
    """Have people told of an anomaly, once the caller's transaction is committed."""
    payload = {"event": EVENT, "anomaly": str(anomaly.pk), "rule": anomaly.rule}
    for kind in _kinds:
        outbox.enqueue(kind=kind, payload=payload, license_id=anomaly.license_id, at=at)


def recipients() -> list[str]:
    """Return the addresses alerts go to."""
    told = ModelBackend().with_perm("licensing.receive_alerts", include_superusers=False)
    return sorted({*settings.ALERT_EMAILS, *told.filter(is_staff=True).values_list("email", flat=True)})


def send(message: OutboxMessage) -> None:
    """Mail one alert. The message id is the outbox row's, so a repeated delivery is recognised as one."""
    anomaly = Anomaly.objects.select_related("license__customer", "license__product").get(pk=message.payload["anomaly"])
    rule = rules.get(anomaly.rule)
    context = {
        "anomaly": anomaly,
        "says": rule.says if rule else "",
        "facts": {
            name.replace("_", " "): value
            for name, value in anomaly.evidence.items()
            if not isinstance(value, list | dict)
        },
        "link": f"{settings.PUBLIC_URL}/admin/licensing/anomaly/{anomaly.pk}/change/",
    }
    subject, _, body = render_to_string("emails/anomaly.txt", context).strip().partition("\n")
    for position, email in enumerate(recipients()):
        EmailMessage(
            subject=subject.strip(),
            body=body.strip() + "\n",
            to=[email],
            headers={"Message-ID": f"<{message.pk}.{position}@licentia>"},
        ).send()
