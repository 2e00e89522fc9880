"""Each route of the API that changes something leaves an audit entry that says who, or is known not to."""

from decimal import Decimal

import pytest

from licensing.catalog import Grant
from licensing.models import AuditEntry
from tests.api.conftest import World, by_scopes
from tests.api.routes import GUARDED, Route
from tests.factories import make_plan, make_revision

# Answers to a question, and what is reported or held: records of their own, or none, by the thousand a second.
NONE = {
    "POST /validate": "a refusal is a decision record",
    "POST /usage": "the event is the record, and never changes",
    "POST /usage/batch": "as above",
    "POST /reservations": "a hold on an allowance for minutes",
    "POST /reservations/{reservation}/commit": "the event is the record",
    "POST /reservations/{reservation}/release": "a hold on an allowance for minutes",
    "POST /activations/{activation}/heartbeat": "a sign of life",
    "POST /leases/{lease}/renew": "a sign of life",
    "POST /events": "the event is the record",
    "POST /webhook-endpoints/{endpoint}/enable": "it is enabled already",
}
# Those are refused in the table's world; here with what they need.
NEED = {
    "POST /licenses/{license}/lift": ("hold", lambda world: {"reason": "unpaid"}),
    "POST /licenses/{license}/undo-change": (
        "change-plan",
        lambda world: {"plan_revision": str(world.revision.pk)},
    ),
}
WRITES = [route for route in GUARDED if route.method != "GET"]


@pytest.mark.parametrize("route", WRITES, ids=str)
def test_it_leaves_an_entry_or_is_known_not_to(route: Route, world: World) -> None:
    path, body = route.path(world), route.payload(world)
    expected = route.vendor
    first, given = NEED.get(str(route), (None, None))
    if first and given:
        before = by_scopes("licenses:write").post(f"/licenses/{world.license.pk}/{first}", given(world))
        assert before.status_code == 200, before.content
        expected = 200
    if str(route).endswith("/change-scheme"):
        calls = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(100), overage="charge")
        plan = make_plan(product=world.product)
        make_revision(plan=plan, scheme="usage", grants=[calls], seat_limit=None)
        body, expected = {**body, "plan": str(plan.pk)}, 200
    known = set(AuditEntry.objects.values_list("pk", flat=True))

    answer = by_scopes(str(route.scope)).request(route.method, path, body, content_type=route.media)

    assert answer.status_code == expected < 300, answer.content
    entries = list(AuditEntry.objects.exclude(pk__in=known))
    by = [entry for entry in entries if entry.actor_kind == "credential" and entry.request_id]
    assert bool(by) is (str(route) not in NONE), [entry.action for entry in entries]
