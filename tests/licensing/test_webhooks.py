"""Webhooks out: what is told to whom, signed so that the reference package takes it, and what becomes of failures."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from licensing import (
    activations,
    anomalies,
    crypto,
    events,
    keys,
    lifecycle,
    outbox,
    posting,
    seats,
    sweeps,
    webhooks,
)
from licensing.api import serializers as shapes
from licensing.deliveries import replay
from licensing.errors import Invalid
from licensing.models import Anomaly, AuditEntry, License, OutboxMessage, WebhookDelivery, WebhookEndpoint
from tests.factories import AT, BY, make_actor, make_customer, make_license, make_license_and_key, make_member
from tests.receiver import receiving

pytestmark = pytest.mark.django_db
DAY, MINUTE, TICK = timedelta(days=1), timedelta(minutes=1), timedelta(microseconds=1)


@pytest.fixture(autouse=True)
def _loopback(settings):
    settings.WEBHOOKS_TO_LOOPBACK = True


@pytest.fixture
def receiver():
    with receiving() as running:
        yield running


def make_endpoint(url="https://hooks.example.com/in", **overrides):
    return webhooks.create(**{"url": url, "by": BY, "at": AT} | overrides)


def relay(at):
    return outbox.relay(handlers=sweeps.OUR_HANDLERS, at=at)


def queued(endpoint=None):
    rows = OutboxMessage.objects.filter(kind="webhook").order_by("id")
    if endpoint is not None:
        rows = rows.filter(target=events.target_of(endpoint))
    return [row.payload for row in rows]


def types(endpoint=None):
    return [payload["type"] for payload in queued(endpoint)]


# --- what is told -----------------------------------------------------------------------------------


def test_it_tells_of_a_license_s_life_in_its_order():
    make_endpoint()
    license = make_license(duration=30 * DAY, grace_period=5 * DAY)
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    lifecycle.lift(license=license, reason="unpaid", by=BY, at=AT)
    lifecycle.renew(license=license, by=BY, at=AT)
    seat = seats.assign(license=license, holder="a@example.com", by=BY, at=AT).seat
    seats.release(seat=seat, by=BY, at=AT)
    machine = activations.activate(license=license, fingerprint="f" * 64, by=BY, at=AT).activation
    activations.deactivate(activation=machine, by=BY, at=AT)
    keys.rotate(license=license, by=BY, at=AT, reason="lost")
    sweeps.run(sweeps.EXPIRATION, at=AT + 66 * DAY)
    lifecycle.revoke(license=license, by=BY, at=AT + 66 * DAY, reason="over")

    assert types() == [
        "license.issued",
        "license.held",
        "license.lifted",
        "license.renewed",
        "seat.assigned",
        "seat.released",
        "activation.created",
        "activation.ended",
        "license.key_rotated",
        "license.entered_grace",
        "license.expired",
        "license.revoked",
    ]
    assert queued()[1]["data"]["hold"] == queued()[2]["data"]["hold"] == "unpaid"
    assert [payload["data"]["license"]["status"] for payload in queued()][:4] == ["active", "held", "active", "active"]
    positions = list(OutboxMessage.objects.filter(kind="webhook").order_by("id").values_list("position", flat=True))
    assert positions == list(range(1, 13))


def test_it_tells_nothing_of_a_change_that_was_undone():
    make_endpoint()
    license = make_license()
    before = len(queued())

    with pytest.raises(lifecycle.AlreadyHeld):
        for _ in range(2):
            lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)

    assert types()[before:] == ["license.held"]


def test_it_shows_the_license_as_the_api_does():
    make_endpoint()
    license = make_license()
    row = License.objects.get(pk=license.pk)

    shown = queued()[0]["data"]["license"]

    api = json.loads(json.dumps(dict(shapes.LicenseRow(row, context={"at": AT}).data), default=str))
    assert shown == api


def test_it_holds_no_key_secret_or_person():
    make_endpoint()
    license, key = make_license_and_key()
    seats.assign(license=license, holder="someone@example.com", by=BY, at=AT)

    text = json.dumps(queued())

    assert key not in text
    assert key.replace("-", "") not in text
    assert "someone@example.com" not in text


def test_it_tells_a_customer_only_of_their_own():
    mine, theirs = make_customer(), make_customer()
    endpoint, _ = make_endpoint(customer=mine)
    vendor, _ = make_endpoint()

    make_license(customer=theirs)
    license = make_license(customer=mine)

    assert [payload["data"]["license"]["id"] for payload in queued(endpoint)] == [str(license.pk)]
    assert len(queued(vendor)) == 2


def test_it_tells_whoever_had_a_license_that_it_went_and_no_more():
    former, heir = make_customer(), make_customer()
    license = make_license(customer=former)
    endpoint, _ = make_endpoint(customer=former)
    theirs, _ = make_endpoint(customer=heir, event_types=["license.transferred"])

    lifecycle.transfer(license=license, to=heir, by=BY, at=AT, reason="sold")

    went = next(payload for payload in queued(endpoint) if payload["type"] == "license.transferred")
    assert went["data"]["license"] == {"id": str(license.pk)}
    assert queued(theirs)[0]["data"]["license"]["customer"] == str(heir.pk)


def test_it_tells_only_of_the_types_chosen_and_not_while_disabled():
    endpoint, _ = make_endpoint(event_types=["license.held"])
    license = make_license()
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    webhooks.disable(endpoint=endpoint, by=BY, at=AT)
    lifecycle.hold(license=license, reason="abuse", by=BY, at=AT)

    assert types() == ["license.held"]


def test_it_tells_the_vendor_alone_of_anomalies():
    license = make_license()
    vendor, _ = make_endpoint()
    theirs, _ = make_endpoint(customer=license.customer)

    for _ in range(2):
        anomalies.flag(
            rule="r", severity="high", object_kind="license", object_id="1", license_id=license.pk, at=AT, evidence={}
        )

    assert (types(vendor), types(theirs)) == (["anomaly.raised"], [])


def test_it_asks_one_thing_more_of_a_change_that_nobody_wants_to_hear(django_assert_num_queries):
    entry = AuditEntry(action="license.held", object_kind="license", at=AT, license_id=make_license().pk)

    with django_assert_num_queries(1):
        events.told(entry)
    with django_assert_num_queries(0):
        events.told(AuditEntry(action="product.created", object_kind="product", at=AT))


# --- as Standard Webhooks ---------------------------------------------------------------------------


def test_the_reference_package_takes_what_is_sent(receiver):
    now = datetime.now(UTC)
    endpoint, secret = make_endpoint(url=receiver.url)
    license = make_license()

    assert relay(now)[0] == 1

    path, headers, body = receiver.requests[0]
    taken = Webhook(secret).verify(body, headers)
    message = OutboxMessage.objects.get(kind="webhook")
    assert path == "/hook"
    assert taken["type"] == "license.issued"
    assert taken["timestamp"] == "2026-03-01T12:00:00Z"
    assert taken["data"]["license"]["id"] == str(license.pk)
    assert headers["webhook-id"] == str(message.pk)
    assert body.startswith(b'{"type":"license.issued","timestamp":')
    for altered in (body.replace(b"active", b"reviv"), body + b" "):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(altered, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, {**headers, "webhook-id": "other"})
    log = WebhookDelivery.objects.get()
    assert (log.endpoint, log.message_id, log.event_type, log.attempt) == (endpoint, message.pk, "license.issued", 1)
    assert (log.status, log.answer, log.error, log.license_id) == (200, "ok", "", license.pk)
    endpoint.refresh_from_db()
    assert endpoint.delivered_at is not None


def test_both_secrets_sign_for_a_day_after_a_rotation(receiver):
    now = datetime.now(UTC)
    endpoint, first = make_endpoint(url=receiver.url, at=now)
    endpoint, second = webhooks.rotate(endpoint=endpoint, by=BY, at=now)
    body = b"{}"

    during = webhooks.signed(endpoint=endpoint, message_id="m", body=body, at=now)
    after = webhooks.signed(endpoint=endpoint, message_id="m", body=body, at=now + webhooks.BOTH_FOR)

    assert first != second
    for secret in (first, second):
        Webhook(secret).verify(body, during)
    assert len(during["webhook-signature"].split()) == 2
    assert len(after["webhook-signature"].split()) == 1
    assert after["webhook-signature"] != during["webhook-signature"]


def test_it_keeps_secrets_sealed_and_in_their_place():
    endpoint, secret = make_endpoint()
    other, _ = make_endpoint()
    row = WebhookEndpoint.objects.get(pk=endpoint.pk)

    assert secret.startswith("whsec_")
    assert secret not in row.sealed_secret
    assert crypto.unseal(row.sealed_secret, webhooks.place_of(row, "sealed_secret")) == secret.encode()
    with pytest.raises(crypto.NotAuthentic):
        crypto.unseal(row.sealed_secret, webhooks.place_of(other, "sealed_secret"))
    assert secret not in json.dumps(list(AuditEntry.objects.values("before", "after")), default=str)


def test_it_sends_the_same_id_and_body_again(receiver):
    now = datetime.now(UTC)
    receiver.statuses = [500]
    make_endpoint(url=receiver.url)
    make_license()

    relay(now)
    relay(now + MINUTE)

    (_, first, body), (_, second, again) = receiver.requests
    assert (first["webhook-id"], body) == (second["webhook-id"], again)
    assert first["webhook-timestamp"] != second["webhook-timestamp"]
    assert list(WebhookDelivery.objects.order_by("id").values_list("attempt", "status")) == [(1, 500), (2, 200)]


def test_it_tests_an_endpoint_by_a_message_like_any_other(receiver):
    now = datetime.now(UTC)
    endpoint, secret = make_endpoint(url=receiver.url, event_types=["license.held"])

    message_id = webhooks.test(endpoint=endpoint, by=make_actor(), at=now)
    relay(now)

    _, headers, body = receiver.requests[0]
    assert Webhook(secret).verify(body, headers)["type"] == "webhook.test"
    assert headers["webhook-id"] == str(message_id)
    assert AuditEntry.objects.filter(action="webhook_endpoint.tested").exists()


# --- failures ---------------------------------------------------------------------------------------


def test_it_leaves_alone_an_endpoint_that_is_down_and_not_the_others(receiver):
    endpoint, _ = make_endpoint(url="http://127.0.0.1:9/nobody")
    make_endpoint(url=receiver.url)
    for _ in range(5):
        make_license()

    delivered, _ = relay(AT)

    down = WebhookDelivery.objects.filter(endpoint=endpoint)
    assert (delivered, len(receiver.requests), down.count()) == (5, 5, 1)
    assert down.get().status is None
    assert "ConnectionRefused" in down.get().error
    endpoint.refresh_from_db()
    assert endpoint.failing_since is not None
    assert endpoint.rests_until > endpoint.failing_since
    make_license()
    relay(AT + timedelta(seconds=1))
    assert down.count() == 1, "also what is new waits until it has rested"


def test_one_refused_message_keeps_back_only_its_own_license(receiver):
    receiver.statuses = [400]
    make_endpoint(url=receiver.url)
    first, second = make_license(), make_license()
    lifecycle.hold(license=first, reason="unpaid", by=BY, at=AT)

    relay(AT)
    sent = [json.loads(body)["data"]["license"]["id"] for _, _, body in receiver.requests]
    relay(AT + MINUTE)

    assert sent == [str(first.pk), str(second.pk)]
    later = [json.loads(body)["type"] for _, _, body in receiver.requests[2:]]
    assert later == ["license.issued", "license.held"]


def test_it_waits_as_long_as_it_is_asked_to(receiver):
    receiver.status, receiver.headers = 503, {"Retry-After": "1800"}
    endpoint, _ = make_endpoint(url=receiver.url)
    make_license()

    relay(AT)
    relay(AT + 29 * MINUTE)

    endpoint.refresh_from_db()
    assert len(receiver.requests) == 1
    assert endpoint.rests_until >= AT + 30 * MINUTE


def drive(endpoint, start, days=4):
    """Relay whenever something is due, until the endpoint is disabled; return when."""
    at = start
    while at < start + days * DAY:
        relay(at)
        endpoint.refresh_from_db()
        if endpoint.state != "enabled":
            return at
        at = outbox.waiting().order_by("due_at").values_list("due_at", flat=True)[0]
    raise AssertionError("it is still enabled")


def test_it_disables_what_failed_for_three_days_and_says_so(mailoutbox):
    owner = make_member()
    endpoint, _ = make_endpoint(url="http://127.0.0.1:9/nobody", customer=owner.customer)
    make_license(customer=owner.customer)
    make_license(customer=owner.customer)

    at = drive(endpoint, AT)
    relay(at + MINUTE)

    assert at - AT >= webhooks.DISABLE_AFTER
    assert at - AT <= webhooks.DISABLE_AFTER + outbox.LONGEST_RETRY * 1.2
    assert set(OutboxMessage.objects.filter(kind="webhook").values_list("given_up_at", flat=True)) != {None}
    assert not outbox.waiting().filter(kind="webhook").exists()
    assert Anomaly.objects.get(rule="webhook_endpoint_disabled").severity == "high"
    assert AuditEntry.objects.get(action="webhook_endpoint.disabled").actor_id == "webhooks"
    assert [mail.to for mail in mailoutbox] == [[owner.user.email]]
    assert "127.0.0.1:9" in mailoutbox[0].body


def test_it_does_not_disable_what_now_and_then_takes_something(receiver):
    endpoint, _ = make_endpoint(url=receiver.url)
    for day in range(6):
        receiver.statuses = [500]
        make_license(at=AT + day * DAY)
        relay(AT + day * DAY)
        relay(AT + day * DAY + MINUTE)

    endpoint.refresh_from_db()
    assert (endpoint.state, endpoint.failures, endpoint.failing_since) == ("enabled", 0, None)


def test_it_disables_at_once_what_says_it_is_gone(receiver):
    receiver.status = 410
    endpoint, _ = make_endpoint(url=receiver.url)
    make_license()

    _, given_up = relay(AT)

    endpoint.refresh_from_db()
    assert (endpoint.state, len(given_up)) == ("disabled", 1)
    assert "410" in endpoint.disabled_reason


def test_what_was_given_up_is_replayed_once_the_endpoint_is_enabled(receiver):
    receiver.statuses = [410]
    endpoint, secret = make_endpoint(url=receiver.url)
    make_license()
    relay(AT)
    message = OutboxMessage.objects.get(kind="webhook")
    now = datetime.now(UTC)

    webhooks.enable(endpoint=endpoint, by=BY, at=now)
    replay(message=message, by=make_actor(), at=now, reason="back")
    relay(now)

    _, headers, body = receiver.requests[1]
    assert headers["webhook-id"] == receiver.requests[0][1]["webhook-id"] == str(message.pk)
    Webhook(secret).verify(body, headers)


def test_a_deleted_endpoint_is_sent_nothing_and_keeps_no_secret(receiver):
    endpoint, _ = make_endpoint(url=receiver.url)
    make_license()

    for _ in range(2):
        webhooks.delete(endpoint=endpoint, by=BY, at=AT)
    relay(AT)

    endpoint.refresh_from_db()
    assert (endpoint.sealed_secret, endpoint.sealed_former_secret) == ("", "")
    assert receiver.requests == []
    assert AuditEntry.objects.filter(action="webhook_endpoint.deleted").count() == 1
    with pytest.raises(webhooks.EndpointDisabled):
        webhooks.change(endpoint=endpoint, by=BY, at=AT, description="x")


def test_it_keeps_of_an_answer_the_first_bytes_without_what_looks_secret(receiver):
    _, key = make_license_and_key()
    endpoint, secret = make_endpoint(url=receiver.url)
    receiver.body = f"\x1b[31m{key} {secret} v1,{'A' * 43}= ".encode() + b"\xff" * 2000
    webhooks.test(endpoint=endpoint, by=BY, at=AT)

    relay(AT)

    kept = WebhookDelivery.objects.get().answer
    assert len(kept) <= 500
    for hidden in (key, secret, "A" * 43, "\x1b"):
        assert hidden not in kept


def test_it_forgets_the_log_after_thirty_days(receiver):
    endpoint, _ = make_endpoint(url=receiver.url)
    webhooks.test(endpoint=endpoint, by=BY, at=AT)
    relay(AT)
    logged = WebhookDelivery.objects.get().at

    assert webhooks.forget(at=logged + webhooks.KEPT_FOR) == 0
    assert webhooks.forget(at=logged + webhooks.KEPT_FOR + TICK) == 1


# --- making them ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.com/",
        "https://",
        "https:///path",
        "https://user@example.com/",
        "https://user:pw@example.com/",
        "https://example.com/#part",
        "https://exämple.com/",
        "https://example.com/a b",
        "https://example.com/\r\nX: y",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[fe80::1]/",
        "https://example.com\\@10.0.0.1/",
        "https://example.com/" + "x" * 500,
    ],
)
def test_it_makes_no_endpoint_of_what_is_no_public_address(url):
    with pytest.raises(Invalid) as refused:
        make_endpoint(url=url)

    assert refused.value.pointer == "/url"


def test_production_takes_https_only(settings):
    settings.PRODUCTION = True

    with pytest.raises(Invalid):
        make_endpoint(url="http://hooks.example.com/")
    assert posting.check("https://hooks.example.com/") == "https://hooks.example.com/"


def test_it_offers_a_customer_what_is_theirs_to_hear():
    with pytest.raises(Invalid):
        make_endpoint(event_types=["anomaly.raised"], customer=make_customer())
    with pytest.raises(Invalid):
        make_endpoint(event_types=["license.eaten"])
    assert make_endpoint(event_types=["anomaly.raised"])[0].event_types == ["anomaly.raised"]


def test_it_makes_no_more_than_twenty():
    customer = make_customer()
    made = [make_endpoint(customer=customer)[0] for _ in range(webhooks.MOST_ENDPOINTS)]

    with pytest.raises(webhooks.TooManyEndpoints):
        make_endpoint(customer=customer)
    make_endpoint(customer=make_customer())
    webhooks.delete(endpoint=made[0], by=BY, at=AT)
    make_endpoint(customer=customer)


def test_it_tests_no_disabled_endpoint():
    endpoint, _ = make_endpoint()
    webhooks.disable(endpoint=endpoint, by=BY, at=AT, reason="off")

    with pytest.raises(webhooks.EndpointDisabled):
        webhooks.test(endpoint=endpoint, by=BY, at=AT)


def test_it_says_what_was_changed():
    endpoint, _ = make_endpoint()

    webhooks.change(endpoint=endpoint, url="https://other.example.com/", by=BY, at=AT)
    webhooks.change(endpoint=endpoint, url="https://other.example.com/", by=BY, at=AT)

    entry = AuditEntry.objects.get(action="webhook_endpoint.changed")
    assert entry.before == {"url": "https://hooks.example.com/in"}
    assert entry.after == {"url": "https://other.example.com/"}
