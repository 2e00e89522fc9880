"""Observations: noted off the request, written in batches, counted per slot; they name nobody and hold no key."""

from datetime import timedelta

import pytest
from django.db import DatabaseError

from licensing import anomalies, observations
from licensing.models import Anomaly, Observation
from tests.factories import AT

pytestmark = pytest.mark.django_db
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def rows(kind):
    return list(
        Observation.objects.filter(kind=kind)
        .order_by("subject", "value", "slot_at")
        .values_list("subject", "value", "first_at", "last_at", "count")
    )


def test_noting_asks_no_database(django_assert_num_queries):
    with django_assert_num_queries(0):
        observations.used("1", "f" * 16, "192.0.2.7", AT)
        observations.note("attempt", "1", "f" * 16, AT)


def test_it_counts_a_slot_in_one_row_however_often_it_is_written():
    for seconds in (0, 20, 59, 60):
        observations.note("attempt", "1", "a", AT + timedelta(seconds=seconds))
        if seconds != 20:
            observations.flush()

    assert rows("attempt") == [
        ("1", "a", AT, AT + timedelta(seconds=59), 3),
        ("1", "a", AT + MINUTE, AT + MINUTE, 1),
    ]


def test_instants_are_kept_to_the_microsecond_and_found_again():
    at = AT + timedelta(microseconds=123_456)
    observations.note("revoked", "1", "a", at)
    observations.flush()

    row = Observation.objects.get(last_at__gte=at, first_at__lte=at)
    assert abs(row.last_at - at) < timedelta(milliseconds=1)
    assert row.slot_at == AT
    assert not Observation.objects.filter(last_at__gt=at + timedelta(milliseconds=1)).exists()


def test_who_used_a_license_from_where_is_noted_again_after_ten_minutes():
    for minutes in (0, 1, 9):
        observations.used("1", "f" * 16, "192.0.2.7", AT + minutes * MINUTE)
    observations.used("1", "g" * 16, "192.0.3.7", AT)
    observations.used("1", "f" * 16, "2001:db8:1::7", AT + 11 * MINUTE)
    observations.used("1", "f" * 16, "192.0.2.7", AT + 10 * MINUTE)
    observations.flush()

    assert rows("machine") == [
        ("1", "f" * 16, AT, AT + 11 * MINUTE, 3),
        ("1", "g" * 16, AT, AT, 1),
    ]
    assert [(value, last) for _, value, _, last, _ in rows("network")] == [
        ("192.0.0.0/16", AT + 10 * MINUTE),
        ("2001:db8::/32", AT + 11 * MINUTE),
    ]


@pytest.mark.parametrize(
    ("address", "wide", "block"),
    [
        ("198.51.100.7", "198.51.0.0/16", "198.51.100.0/24"),
        ("2001:db8:1:2::7", "2001:db8::/32", "2001:db8:1::/48"),
        ("::ffff:198.51.100.7", "198.51.0.0/16", "198.51.100.0/24"),
        ("fe80::1%eth0", "fe80::/32", "fe80::/48"),
        ("nowhere", "", ""),
    ],
)
def test_it_keeps_networks_not_addresses(address, wide, block):
    assert (observations.wide(address), observations.block(address)) == (wide, block)


def test_it_keeps_no_key_only_what_tells_one_from_another():
    key = "LIC1-AAAAA-BBBBB-CCCCC-DDDDD-EEEEE-FFFFF-GGGGG"

    said = observations.secretly(key)

    assert said == observations.secretly(key) != observations.secretly(key[:-1])
    assert len(said) == 16
    assert said.lower() not in key.lower()


def test_a_stranger_chooses_only_so_many_values():
    for number in range(observations.VALUES + 50):
        observations.note("unknown_key", "192.0.2.0/24", str(number), AT)
    observations.flush()

    kept = {value: count for _, value, _, _, count in rows("unknown_key")}
    assert len(kept) == observations.VALUES + 1
    assert kept[observations.MORE] == 50


def test_machines_of_a_large_license_are_all_kept():
    for number in range(observations.VALUES + 50):
        observations.note("machine", "1", str(number), AT)
    observations.flush()

    assert len(rows("machine")) == observations.VALUES + 50


def test_what_there_is_no_room_for_is_said(monkeypatch):
    monkeypatch.setattr(observations, "CAPACITY", 2)

    for value in "abcd":
        observations.note("machine", "1", value, AT)
    observations.flush()
    anomalies.record_waiting()

    assert len(rows("machine")) == 2
    assert Anomaly.objects.get(rule="observations_dropped").evidence == {"dropped": 2}


def test_it_waits_while_the_database_is_away(monkeypatch):
    observations.note("attempt", "1", "a", AT)
    with monkeypatch.context() as away:

        def broken(rows):
            raise DatabaseError("away")

        away.setattr(observations, "write", broken)
        away.setattr(observations.connection, "close", lambda: None)
        assert observations.flush() == 0
    observations.note("attempt", "1", "a", AT + timedelta(seconds=1))

    assert observations.waiting() == 1
    assert observations.flush() == 1
    assert rows("attempt") == [("1", "a", AT, AT + timedelta(seconds=1), 2)]


def test_it_is_forgotten_once_no_rule_looks_at_it():
    for kind in observations.KINDS:
        observations.note(kind, "1", "a", AT)
    observations.flush()

    while observations.forget(at=AT + 3 * DAY + MINUTE):
        pass
    left = set(Observation.objects.values_list("kind", flat=True))
    while observations.forget(at=AT + 33 * DAY):
        pass

    assert left == {"attempt", "opened"}
    assert not Observation.objects.exists()
