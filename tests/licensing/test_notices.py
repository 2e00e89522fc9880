"""What is mailed about licenses: to whom, once per message id, with no key in it."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.core.mail import EmailMessage

from licensing import customers, lifecycle, notices, outbox
from licensing.models import OutboxMessage
from tests.factories import AT, BY, make_customer, make_license, make_license_and_key, make_member, make_user

pytestmark = pytest.mark.django_db
TEMPLATES = (notices.ENTERED_GRACE, notices.EXPIRED, notices.HELD, notices.REVOKED)
FACTS = {"occurred_at": AT.isoformat(), "reason": "unpaid"}


def relay(at=AT):
    return outbox.relay(handlers={notices.KIND: notices.send}, at=at)


def test_it_has_words_for_every_occasion():
    for template in TEMPLATES:
        assert (settings.BASE_DIR / "templates" / "emails" / f"{template}.txt").exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_it_sends_a_subject_and_a_body_without_the_key(template, mailoutbox):
    member = make_member()
    license, key = make_license_and_key(customer=member.customer, duration=timedelta(days=30))
    notices.enqueue(template=template, license=license, at=AT, **FACTS)

    delivered, given_up = relay()

    mail = mailoutbox[0]
    assert (delivered, given_up) == (1, [])
    assert mail.to == [member.user.email]
    assert 5 < len(mail.subject) < 120
    assert "\n" not in mail.subject
    assert len(mail.body) > 40
    assert mail.body.endswith("\n")
    for text in (mail.subject, mail.body):
        assert "{{" not in text
        assert "{%" not in text
        assert "None" not in text
        assert key not in text
        assert key.replace("-", "") not in text


def test_it_tells_owners_license_managers_and_the_customer_and_nobody_else(mailoutbox):
    customer = make_customer(email="notices@acme.example")
    told = [make_member(customer=customer, role=role).user.email for role in ("owner", "license_manager")]
    for role in ("billing", "viewer"):
        make_member(customer=customer, role=role)
    gone = make_member(customer=customer, user=make_user(is_active=False))
    make_member()
    notices.enqueue(template=notices.HELD, license=make_license(customer=customer), at=AT, **FACTS)

    relay()

    assert sorted(mail.to[0] for mail in mailoutbox) == sorted([*told, "notices@acme.example"])
    assert gone.user.email not in {mail.to[0] for mail in mailoutbox}
    assert all(len(mail.to) == 1 and not mail.cc and not mail.bcc for mail in mailoutbox)


def test_it_mails_one_address_once(mailoutbox):
    user = make_user(email="same@acme.example")
    customer = make_customer(email="same@acme.example")
    make_member(customer=customer, user=user)
    notices.enqueue(template=notices.EXPIRED, license=make_license(customer=customer), at=AT, **FACTS)

    relay()

    assert len(mailoutbox) == 1


def test_it_keeps_no_address_in_the_message_and_looks_it_up_when_it_sends(mailoutbox):
    member = make_member()
    notices.enqueue(template=notices.HELD, license=make_license(customer=member.customer), at=AT, **FACTS)
    other = make_member(customer=member.customer)
    customers.remove_member(member=member, by=BY, at=AT)

    kept = repr(vars(OutboxMessage.objects.get()))
    relay()

    assert "@" not in kept
    assert [mail.to for mail in mailoutbox] == [[other.user.email]]


def test_it_is_done_when_there_is_nobody_to_tell(mailoutbox):
    notices.enqueue(template=notices.HELD, license=make_license(), at=AT, **FACTS)

    assert relay() == (1, [])
    assert mailoutbox == []


def test_it_says_the_same_message_id_when_it_sends_again(mailoutbox, monkeypatch):
    customer = make_customer()
    for _ in range(2):
        make_member(customer=customer)
    notices.enqueue(template=notices.HELD, license=make_license(customer=customer), at=AT, **FACTS)
    send, sent = EmailMessage.send, []

    def second_fails(self, *args, **kwargs):
        sent.append(1)
        if len(sent) == 2:
            raise ConnectionRefusedError("mail server down")
        return send(self, *args, **kwargs)

    monkeypatch.setattr(EmailMessage, "send", second_fails)
    relay()
    relay(AT + timedelta(minutes=1))

    ids = [mail.extra_headers["Message-ID"] for mail in mailoutbox]
    assert len(ids) == 3
    assert len(set(ids)) == 2
    assert all(str(OutboxMessage.objects.get().pk) in each for each in ids)


def test_it_sends_nothing_for_a_change_that_was_refused(mailoutbox):
    license = make_license(customer=make_member().customer)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    with pytest.raises(lifecycle.AlreadyHeld):
        lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)

    relay()

    assert len(mailoutbox) == 1
