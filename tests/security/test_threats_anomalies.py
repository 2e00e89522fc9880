"""T4, T7, T10, T11, T15: what is not refused is noticed, by way of the doors it comes through."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from billing import metering, rollups
from billing.metering import Sent
from licensing import keyformat, lifecycle, observations, watching
from licensing.models import Anomaly
from tests.admin.conftest import sign_in
from tests.api.conftest import Api, World, by_key
from tests.billing.test_metering import make_metered, snapshot
from tests.factories import AT, BY, make_customer, make_license_and_key, make_meter, make_revision

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


def noticed(*rules: str, at: datetime | None = None) -> list[Anomaly]:
    observations.flush()
    assert watching.run(at=at or datetime.now(UTC), only=rules)[1] == 0
    return list(Anomaly.objects.filter(rule__in=rules))


def from_somewhere(key: str, number: int) -> Api:
    return Api(f"License {key}", f"10.{number}.0.1", "n" * 22)


def test_t04_a_key_on_many_machines_is_noticed_by_machines_and_networks(world: World) -> None:
    """Five are allowed and one is there; two more than five explain themselves. Asking takes no place."""
    for number in range(6):
        from_somewhere(world.key, number).post("/validate", {"fingerprint": f"fingerprint-{number:05}"})
    honest = noticed("key_sharing", "network_sharing")
    for number in range(6, 12):
        from_somewhere(world.key, number).post("/validate", {"fingerprint": f"fingerprint-{number:05}"})

    found = {row.rule: row for row in noticed("key_sharing", "network_sharing")}

    assert not honest
    assert found.keys() == {"key_sharing", "network_sharing"}
    assert found["key_sharing"].license_id == world.license.pk
    assert (found["key_sharing"].evidence["machines"], found["network_sharing"].evidence["networks"]) == (13, 12)


def test_t07_every_number_of_one_event_in_a_hundred_dropped_is_named_within_a_day() -> None:
    metering.forget()
    make_meter(code="calls")
    license = make_metered("calls", 100_000)
    picture, chance = snapshot(license), random.Random(7)
    dropped = set(chance.sample(range(2, 300), 3))
    for number in range(1, 301):
        at = AT + timedelta(minutes=number)
        if number not in dropped:
            one = Sent(f"e{number}", "calls", Decimal(1), at, sequence=number)
            metering.consume(license=picture, sent=one, source="activation:1", at=at)
    rollups.roll_up(at=AT + DAY)
    end = AT + timedelta(minutes=300)

    named: set[int] = set()
    for hour in range(30):
        at = AT + timedelta(hours=hour)
        for row in noticed("sequence_gaps", at=at):
            for gap in row.evidence["rows"]:
                named |= set(range(gap["first"], gap["last"] + 1))
        if named == dropped:
            break

    assert named == dropped
    assert at - end <= DAY


def test_t10_the_same_machine_tries_out_again_under_another_name() -> None:
    terms = make_revision(trial=True, duration=30 * DAY)

    def sign_up(number: int, fingerprint: str) -> Any:
        license, key = make_license_and_key(
            customer=make_customer(email=f"somebody{number}@gmail.com"), plan_revision=terms, at=datetime.now(UTC)
        )
        answer = by_key(key).post("/activations", {"fingerprint": fingerprint})
        assert answer.status_code == 201
        return license

    for number in range(5):
        sign_up(number, f"honest-machine-{number:05}")
    honest = noticed("trial_abuse")
    again = sign_up(9, "honest-machine-00002")

    (found,) = noticed("trial_abuse")

    assert not honest
    assert (found.license_id, found.evidence["trials"]) == (again.pk, 2)


def test_t11_somebody_who_tries_keys_is_noticed_and_no_key_is_kept(world: World) -> None:
    tried = [keyformat.generate() for _ in range(3)]
    for key in tried:
        assert by_key(key).post("/validate", {}).status_code == 401

    watched = noticed("key_enumeration")
    for key in tried:
        Api(f"License {key}", "192.0.2.77", "n" * 22).post("/validate", {})
    (found,) = noticed("key_enumeration")

    assert not watched
    assert (found.object_kind, found.object_id) == ("network", "192.0.2.0/24")
    assert not any(key in str(found.evidence) for key in tried)


def test_t11_a_revoked_key_in_use_is_noticed(world: World) -> None:
    lifecycle.revoke(license=world.license, by=BY, at=datetime.now(UTC) - 2 * DAY, reason="stolen")
    for number in range(2):
        said = by_key(world.key).post("/validate", {"fingerprint": f"fingerprint-{number:05}"}).json()
        assert said["code"] == "revoked"

    (found,) = noticed("use_after_revocation")

    assert (found.license_id, found.evidence["machines"]) == (world.license.pk, 2)


def test_t15_staff_who_go_through_customers_are_noticed() -> None:
    client: Client = sign_in("licensing.view_customer")
    for _ in range(31):
        customer = make_customer()
        url = reverse("admin:licensing_customer_change", args=[customer.pk])
        assert client.get(url).status_code == 200

    (found,) = noticed("staff_misuse")

    assert (found.object_id, found.evidence["opened"]) == (str(client.user.pk), 31)  # type: ignore[attr-defined]
