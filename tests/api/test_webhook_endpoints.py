"""/webhook-endpoints."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from licensing import outbox, sweeps, webhooks
from licensing.models import OutboxMessage, WebhookEndpoint
from tests.api.conftest import (
    MISSING_ID,
    Api,
    World,
    assert_problem,
    nothing_written,
    other_server,
    own_server,
    secrets_in,
)
from tests.factories import BY
from tests.receiver import receiving

HOOK = {"url": "https://hooks.example.com/in", "event_types": ["license.held"], "description": "ours"}


def test_it_makes_an_endpoint_and_tells_its_secret_this_once(api: Api) -> None:
    answer = api.post("/webhook-endpoints", HOOK)

    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {
        *("id", "created_at", "customer", "url", "description", "event_types", "state", "disabled_at"),
        *("disabled_reason", "failing_since", "delivered_at", "former_secret_until", "secret"),
    }
    assert secrets_in(answer) == [made["secret"]]
    assert (made["customer"], made["state"], made["event_types"]) == (None, "enabled", ["license.held"])
    for path in (f"/webhook-endpoints/{made['id']}", "/webhook-endpoints", "/audit-entries"):
        assert secrets_in(api.get(path)) == []
        assert "secret" not in api.get(f"/webhook-endpoints/{made['id']}").json()


def test_a_customer_s_server_makes_its_own(world: World) -> None:
    made = own_server(world).post("/webhook-endpoints", HOOK)

    assert made.status_code == 201
    assert made.json()["customer"] == str(world.customer.pk)
    assert other_server(world).get("/webhook-endpoints").json()["results"] == []


def test_a_customer_s_server_makes_none_for_another(world: World) -> None:
    server = other_server(world)

    with nothing_written():
        answer = server.post("/webhook-endpoints", {**HOOK, "customer": str(world.customer.pk)})

    assert_problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"url": "https://10.0.0.1/"}, "/url"),
        ({"url": "not an address"}, "/url"),
        ({"url": 5}, "/url"),
        ({"event_types": ["license.eaten"]}, "/event_types/0"),
        ({"secret": "whsec_mine"}, "/secret"),
        ({"state": "disabled"}, "/state"),
        ({"description": "x" * 201}, "/description"),
    ],
)
def test_it_refuses_what_does_not_fit(change: dict[str, Any], pointer: str, api: Api) -> None:
    with nothing_written():
        assert_problem(api.post("/webhook-endpoints", {**HOOK, **change}), 400, pointer=pointer)


def test_it_refuses_a_customer_what_the_vendor_alone_hears(world: World) -> None:
    answer = own_server(world).post("/webhook-endpoints", {**HOOK, "event_types": ["anomaly.raised"]})

    assert_problem(answer, 400, pointer="/event_types")


def test_it_rotates_tests_delivers_and_replays(settings: Any, api: Api) -> None:
    settings.WEBHOOKS_TO_LOOPBACK = True
    with receiving() as receiver:
        receiver.statuses = [500]
        made = api.post("/webhook-endpoints", {"url": receiver.url}).json()
        path = f"/webhook-endpoints/{made['id']}"
        rotated = api.post(f"{path}/rotate-secret")
        message = api.post(f"{path}/test").json()["message"]
        now = datetime.now(UTC)
        for later in (0, 60):
            outbox.relay(handlers=sweeps.OUR_HANDLERS, at=now + timedelta(seconds=later))
        early = api.post(f"{path}/deliveries/{MISSING_ID}/replay", {"reason": "x"})
        again = api.post(f"{path}/deliveries/{message}/replay", {"reason": "again"})
        outbox.relay(handlers=sweeps.OUR_HANDLERS, at=now + timedelta(seconds=120))

    log = api.get(f"{path}/deliveries").json()["results"]
    assert [(row["attempt"], row["status"], row["message"]) for row in reversed(log)] == [
        (1, 500, message),
        (2, 200, message),
        (1, 200, message),
    ]
    assert rotated.json()["secret"] != made["secret"]
    assert rotated.json()["former_secret_until"] is not None
    for secret in (made["secret"], rotated.json()["secret"]):
        Webhook(secret).verify(receiver.requests[0][2], receiver.requests[0][1])
    assert_problem(early, 404, "not_found")
    assert again.status_code == 202


def test_it_changes_disables_enables_and_deletes(api: Api) -> None:
    made = api.post("/webhook-endpoints", HOOK).json()
    path = f"/webhook-endpoints/{made['id']}"

    changed = api.request("PATCH", path, {"url": "https://other.example.com/", "event_types": []}).json()
    disabled = api.post(f"{path}/disable", {"reason": "moving"}).json()
    untested = api.post(f"{path}/test")
    enabled = api.post(f"{path}/enable").json()
    gone = api.request("DELETE", path)

    assert (changed["url"], changed["event_types"]) == ("https://other.example.com/", [])
    assert (disabled["state"], disabled["disabled_reason"]) == ("disabled", "moving")
    assert_problem(untested, 409, "endpoint_disabled")
    assert enabled["state"] == "enabled"
    assert gone.status_code == 204
    assert_problem(api.get(path), 404, "not_found")
    assert WebhookEndpoint.objects.get(pk=made["id"]).state == "deleted"


def test_it_sends_again_nothing_of_another_endpoint(world: World, api: Api) -> None:
    endpoints = [api.post("/webhook-endpoints", HOOK).json()["id"] for _ in range(2)]
    message = webhooks.test(endpoint=WebhookEndpoint.objects.get(pk=endpoints[0]), by=BY, at=datetime.now(UTC))
    OutboxMessage.objects.filter(pk=message).update(given_up_at=datetime.now(UTC))

    answer = api.post(f"/webhook-endpoints/{endpoints[1]}/deliveries/{message}/replay", {"reason": "x"})

    assert_problem(answer, 404, "not_found")
