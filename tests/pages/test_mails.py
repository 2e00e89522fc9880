"""The words of the mails about licenses."""

from datetime import timedelta

import pytest
from django.core import mail

from licensing import lifecycle, notices
from licensing.models import OutboxMessage
from tests import factories

pytestmark = pytest.mark.django_db


def sent(license, template, **facts):
    notices.enqueue(template=template, license=license, at=factories.AT, **facts)
    notices.send(OutboxMessage.objects.latest("id"))
    return mail.outbox[-1]


@pytest.mark.parametrize(
    ("template", "subject", "words"),
    [
        (notices.ENTERED_GRACE, "has expired and still works", "until 8 March 2027, 12:00 UTC"),
        (notices.EXPIRED, "has expired", "on 1 March 2027, 12:00 UTC"),
        (notices.HELD, "is on hold", "An invoice is unpaid."),
        (notices.REVOKED, "was ended", "on 1 March 2026, 12:00 UTC"),
    ],
)
def test_each_says_what_happened_to_which_license(template, subject, words):
    customer = factories.make_customer(name="Müller & Söhne <GmbH>", email="office@example.com")
    product = factories.make_product(name="Atlas & Co")
    license = factories.make_license(
        customer=customer,
        plan_revision=factories.make_revision(
            plan=factories.make_plan(product=product), grace_period=timedelta(days=7)
        ),
    )
    if template == notices.REVOKED:
        lifecycle.revoke(license=license, by=factories.BY, at=factories.AT, reason="ended")

    letter = sent(license, template, reason="unpaid")

    assert letter.to == ["office@example.com"]
    assert letter.subject.startswith("Atlas & Co: ")
    assert subject in letter.subject
    assert words in letter.body
    assert "Müller & Söhne <GmbH>" in letter.body
    assert str(license.pk) in letter.body


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("unpaid", "An invoice is unpaid."),
        ("abuse", "being looked into"),
        ("dispute", "A payment is disputed."),
        ("security", "There is a security concern."),
        ("staff", "The vendor stopped it."),
    ],
)
def test_a_hold_names_its_reason(reason, words):
    license = factories.make_license(customer=factories.make_customer(email="office@example.com"))

    assert words in sent(license, notices.HELD, reason=reason).body
