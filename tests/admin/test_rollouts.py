"""Rollouts on the staff admin: where each stands, and which commands can be run."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.test import Client

from billing import rollout
from billing.admin.rollouts import commands
from billing.models import Rollout, RolloutDifference, RolloutMember
from billing.states import RolloutStage
from licensing.catalog import Grant
from tests.admin.conftest import listing, page, sign_in, text_of
from tests.factories import BY, make_license, make_plan, make_price, make_revision

pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)
NONE = Grant("calls", "allowance", meter="calls", amount=Decimal(0), overage="charge")


@pytest.fixture
def moving() -> Rollout:
    """A rollout of one license from seats to usage, rehearsed and shadowed."""
    license = make_license(at=NOW - timedelta(days=40), duration=None)
    make_price(plan=license.plan_revision.plan, components=[{"kind": "seats", "amount": "31.00"}])
    target = make_revision(plan=make_plan(product=license.product), scheme="usage", grants=[NONE], duration=None)
    made = rollout.prepare(
        code="autumn", plan=license.plan_revision.plan, plan_revision=target, reason="New offer", by=BY, at=NOW
    )
    for stage in (None, RolloutStage.REHEARSED, RolloutStage.SHADOW):
        if stage:
            made = rollout.ask(rollout=made, stage=stage, by=BY, at=NOW)
        list(rollout.run(rollout=made, by=BY, clock=lambda: NOW))
    return Rollout.objects.get()


def run_of(moving: Rollout) -> list[str]:
    return [command for command, _ in commands(rollout.standing(moving))]


def test_shows_stage_licenses_findings_and_differences(staff: Client, moving: Rollout) -> None:
    text = text_of(staff.get(page(moving)))
    listed = text_of(staff.get(listing(Rollout)))
    members = text_of(staff.get(listing(RolloutMember), {"rollout__id__exact": str(moving.pk)}))
    differences = text_of(staff.get(listing(RolloutDifference), {"kind__exact": "money"}))

    assert "rated and decided both ways" in text
    assert "No price in the customer" in text
    assert "manage.py rollout canary autumn --percent 5" in text
    assert f"{listing(RolloutDifference)}?rollout__id__exact={moving.pk}" in text
    assert "1 pending" in listed
    assert "The plan has no price in EUR" in members
    assert " EUR" in differences
    assert "without tax" in differences


def test_says_which_commands_can_be_run_now(moving: Rollout) -> None:
    ready = run_of(moving)
    RolloutMember.objects.update(shadowed_at=None)
    under_way = run_of(moving)
    rollout.stop(rollout=moving, by=BY, at=NOW)
    stopped = run_of(moving)

    assert [each.split()[2] for each in ready] == ["canary", "all", "roll-back", "stop", "findings", "differences"]
    assert [each.split()[2] for each in under_way] == ["resume", "roll-back", "stop", "findings", "differences"]
    assert [each.split()[2] for each in stopped] == ["resume", "findings", "differences"]


@pytest.mark.parametrize("stage", RolloutStage.values)
def test_the_commands_exist(moving: Rollout, stage: str) -> None:
    Rollout.objects.update(stage=stage, percent=100)
    command: Any = load_command_class(get_commands()["rollout"], "rollout")

    for run in run_of(moving):
        parsed = command.create_parser("manage.py", "rollout").parse_args(run.split()[2:])
        assert (parsed.code, parsed.percent <= 99) == ("autumn", True)


def test_is_read_by_who_may_and_changed_by_nobody(staff: Client, moving: Rollout) -> None:
    member = RolloutMember.objects.get()

    assert sign_in("billing.view_payment").get(page(moving)).status_code == 403
    assert sign_in("billing.view_rollout").get(page(moving)).status_code == 200
    assert staff.post(page(moving), {"stage": "final"}).status_code == 403
    assert staff.post(page(member), {"state": "final"}).status_code == 403
