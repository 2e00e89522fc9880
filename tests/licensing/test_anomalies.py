"""Anomalies: one row per rule, object and hour; recording one never breaks what it observes."""

import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
import structlog.testing
from django.db import connection, transaction

from licensing import anomalies
from licensing.anomalies import AlreadyResolved
from licensing.errors import Invalid
from licensing.models import Anomaly, AuditEntry
from tests.factories import AT, BY, make_customer, make_license

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def flag(**overrides):
    anomalies.flag(
        **{
            "rule": "too_many_machines",
            "severity": "high",
            "object_kind": "license",
            "object_id": "1",
            "at": AT,
            "evidence": {"machines": 7},
        }
        | overrides
    )


def test_it_records_a_suspicion_with_its_evidence():
    license = make_license()

    flag(license_id=license.pk)

    row = Anomaly.objects.get()
    assert (row.rule, row.severity, row.state, row.count) == ("too_many_machines", "high", "open", 1)
    assert (row.license, row.evidence, row.hour_at) == (license, {"machines": 7}, AT)


def test_it_counts_within_the_hour_and_starts_anew_with_the_next():
    for minutes in (0, 1, 59):
        flag(at=AT + timedelta(minutes=minutes), evidence={"machines": minutes})
    flag(at=AT + HOUR)

    first = Anomaly.objects.get(hour_at=AT)
    assert (first.count, first.first_at, first.last_at) == (3, AT, AT + timedelta(minutes=59))
    assert first.evidence == {"machines": 59}
    assert Anomaly.objects.count() == 2


def test_it_keeps_rules_and_objects_apart():
    flag()
    flag(rule="other")
    flag(object_id="2")
    flag(object_kind="job")

    assert Anomaly.objects.count() == 4


@pytest.mark.parametrize(
    "evidence",
    [
        {"speed": 1.5},
        {"speed": float("nan")},
        {"prints": {"a", "b"}},
        {"raw": b"\x00\xff"},
        {"amount": Decimal("1.5")},
        {"deep": {"list": [1.5, object()]}},
        {"text": "a\x00b"},
        {},
    ],
)
def test_it_records_whatever_the_evidence_is(evidence):
    flag(evidence=evidence)
    flag(evidence=evidence)

    assert Anomaly.objects.get().count == 2


def test_it_says_loudly_when_it_cannot_write():
    with structlog.testing.capture_logs() as logs:
        with transaction.atomic():
            flag(rule="x" * 65 if connection.vendor == "postgresql" else "x", severity=None)

    assert [entry for entry in logs if entry["log_level"] == "error"]
    assert not Anomaly.objects.exists()


def test_it_leaves_the_callers_transaction_usable_when_it_cannot_write():
    with transaction.atomic():
        flag(severity=None)
        customer = make_customer()

    assert customer.pk


@pytest.mark.django_db(transaction=True)
def test_it_says_loudly_when_the_license_it_speaks_of_does_not_exist():
    with structlog.testing.capture_logs() as logs:
        flag(license_id=uuid.uuid4())

    assert [entry for entry in logs if entry["log_level"] == "error"]


def test_it_never_raises_in_a_transaction_that_is_broken_already():
    with pytest.raises(RuntimeError), transaction.atomic():
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")
        except Exception:
            flag()
        raise RuntimeError


def test_it_is_acknowledged_then_resolved_in_a_persons_words():
    flag()
    row = Anomaly.objects.get()

    seen = anomalies.acknowledge(anomaly=row, by=BY, at=AT + HOUR)
    done = anomalies.resolve(anomaly=row, resolution="a test rig", by=BY, at=AT + 2 * HOUR)

    assert (seen.state, done.state, done.resolved_at) == ("acknowledged", "resolved", AT + 2 * HOUR)
    assert [entry.action for entry in AuditEntry.objects.order_by("id")] == [
        "anomaly.acknowledged",
        "anomaly.resolved",
    ]
    for act in (
        lambda: anomalies.acknowledge(anomaly=row, by=BY, at=AT),
        lambda: anomalies.resolve(anomaly=row, resolution="again", by=BY, at=AT),
    ):
        with pytest.raises(AlreadyResolved):
            act()


@pytest.mark.parametrize("words", ["", " ", "\n"])
def test_it_is_resolved_only_with_words(words):
    flag()

    with pytest.raises(Invalid):
        anomalies.resolve(anomaly=Anomaly.objects.get(), resolution=words, by=BY, at=AT)

    assert Anomaly.objects.get().state == "open"
