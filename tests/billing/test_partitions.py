"""billing.partitions: months made ahead, what landed astray, the archive killed at any step, and who may delete."""

import gzip
import hashlib
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from billing import metering, partitions, rollups
from billing.models import Statement, UsageChange, UsageEvent, UsageId
from billing.windows import REMEMBERED
from licensing import guards
from licensing.ids import uuid7
from licensing.models import Anomaly, AuditEntry
from tests.factories import BY, make_customer, make_final_statement, make_license, make_meter, make_usage

pytestmark = pytest.mark.django_db
AT = datetime(2025, 6, 15, 12, 0, tzinfo=UTC)  # so that nothing is made for it yet
postgres = pytest.mark.postgres


def month(number: int) -> datetime:
    return datetime(2025, number, 1, tzinfo=UTC)


def names() -> list[str]:
    return [each.name.removeprefix("billing_usageevent_") for each in partitions.partitions()]


@pytest.fixture
def usage() -> dict[str, Any]:
    """Usage of January to March, rolled up."""
    revision, license = make_meter(), uuid7()
    for number in (1, 2, 3):
        for day in range(3):
            make_usage(license=license, revision=revision, at=month(number) + timedelta(days=day), quantity="0.5")
    partitions.ahead(at=AT)
    rollups.roll_up(at=AT)
    return {"revision": revision, "license": license}


def total(usage: dict[str, Any]) -> Any:
    found = rollups.totals(license_id=usage["license"], starts_at=month(1), ends_at=month(4))
    return found[0].quantity


def archived(to: Path, before: int = 3) -> list[partitions.Archived]:
    return partitions.archive(before=month(before), to=to, by=BY, at=AT)


if connection.vendor == "postgresql":

    def test_it_makes_months_ahead_and_back() -> None:
        made = partitions.ahead(at=AT)

        assert [name[-7:] for name in made] == ["2025m04", "2025m05", "2025m06", "2025m07", "2025m08", "2025m09"]
        assert partitions.ahead(at=AT) == []
        assert {name[-7:] for name in made} < {name[-7:] for name in names()}
        assert names()[-1] == "default"

    def test_it_moves_what_landed_in_the_default_partition_and_says_so() -> None:
        revision, license = make_meter(), uuid7()
        events = [make_usage(license=license, revision=revision, at=AT + timedelta(days=days)) for days in (0, 200)]
        assert partitions._in_default() == {month(6): 1, datetime(2026, 1, 1, tzinfo=UTC): 1}

        made = partitions.ahead(at=AT)

        assert {"billing_usageevent_y2025m06", "billing_usageevent_y2026m01"} <= set(made)
        assert partitions._in_default() == {}
        assert set(UsageEvent.objects.values_list("pk", flat=True)) == {event.pk for event in events}
        anomaly = Anomaly.objects.get(rule="usage_in_default_partition")
        assert anomaly.evidence == {"events": 2, "months": ["2025-06", "2026-01"]}

    @pytest.mark.parametrize("act", ["DELETE FROM {}", "UPDATE {} SET quantity = 0", "TRUNCATE {}"])
    @pytest.mark.parametrize("table", ["", "_default", "_y2025m06"])
    @pytest.mark.parametrize("role", ["origin", "replica"])
    def test_it_refuses_to_change_events_in_any_partition(act: str, table: str, role: str) -> None:
        partitions.ahead(at=AT)
        for at in (AT, AT + timedelta(days=900)):
            make_usage(license=uuid7(), revision=make_meter(), at=at)

        with pytest.raises(DatabaseError, match="usage event"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL session_replication_role = {role}")
            cursor.execute(act.format(f"billing_usageevent{table}"))

        assert UsageEvent.objects.count() == 2
        assert guards.missing() == []

    @pytest.mark.parametrize("lost", ["update", "delete", "truncate"])
    def test_it_sees_a_guard_that_a_partition_lacks(lost: str) -> None:
        partitions.ahead(at=AT)

        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE billing_usageevent_y2025m06 DISABLE TRIGGER guard_billing_usageevent_{lost}")

        assert guards.missing() == [f"billing_usageevent_{lost}"]
        guards.install()
        assert guards.missing() == []

else:

    def test_it_lets_events_go_only_when_they_are_archived(usage: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(DatabaseError, match="only archived"), transaction.atomic():
            UsageEvent.objects.all().delete()
        archived(tmp_path)

        with pytest.raises(DatabaseError, match="only archived"), transaction.atomic():
            UsageEvent.objects.all().delete()

        assert UsageEvent.objects.count() == 3

    def test_it_refuses_to_replace_an_event_or_an_id(usage: dict[str, Any]) -> None:
        event = UsageEvent.objects.first()
        assert event is not None
        UsageId.objects.create(
            license_id=uuid7(), event_id="1", digest=b"x" * 16, occurred_at=AT, received_at=datetime.now(UTC)
        )
        for table in ("billing_usageevent", "billing_usageid"):
            with pytest.raises(DatabaseError, match="never replaced"), transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1")

    def test_it_deletes_on_after_it_was_killed(
        usage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = partitions._let_go_of_the_rest
        monkeypatch.setattr(partitions, "_let_go_of_the_rest", lambda: 1 / (rollups.archived_before() is None))
        with pytest.raises(ZeroDivisionError):
            archived(tmp_path)
        assert UsageEvent.objects.count() == 9
        monkeypatch.setattr(partitions, "_let_go_of_the_rest", whole)

        archived(tmp_path)

        assert UsageEvent.objects.count() == 3
        assert total(usage) == 4.5


def test_an_event_never_changes(usage: dict[str, Any]) -> None:
    with pytest.raises(DatabaseError, match="never changes"), transaction.atomic():
        UsageEvent.objects.update(quantity=7)


def test_it_archives_whole_months_and_keeps_their_totals(usage: dict[str, Any], tmp_path: Path) -> None:
    events = {event.event_id: event for event in UsageEvent.objects.filter(occurred_at__lt=month(3))}

    done = archived(tmp_path)

    assert [each.events for each in done] == [3, 3]
    assert [each.starts_at[:7] for each in done] == ["2025-01", "2025-02"]
    assert UsageEvent.objects.count() == 3
    lines = []
    for each in done:
        raw = (tmp_path / each.file).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == each.sha256
        assert json.loads((tmp_path / each.file.replace("jsonl.gz", "json")).read_text())["events"] == 3
        lines += [json.loads(line) for line in gzip.decompress(raw).splitlines()]
    assert {line["event_id"] for line in lines} == set(events)
    for line in lines:
        event = events[line["event_id"]]
        assert line["license_id"] == str(event.license_id)
        assert line["quantity"] == "0.500000"
        assert datetime.fromisoformat(line["occurred_at"]) == event.occurred_at
    assert total(usage) == 4.5
    assert AuditEntry.objects.filter(action="usage.archived").count() == 2
    assert not list(tmp_path.glob("*.part"))
    assert archived(tmp_path) == []


def test_it_tells_archived_time_by_whole_hours_only(usage: dict[str, Any], tmp_path: Path) -> None:
    archived(tmp_path)
    license, second = usage["license"], timedelta(seconds=1)

    with pytest.raises(rollups.EventsArchived):
        rollups.totals(license_id=license, starts_at=month(1) + second, ends_at=month(4))
    with pytest.raises(rollups.EventsArchived):
        rollups.totals(license_id=license, starts_at=month(1), ends_at=month(4), by=("region",))
    assert rollups.totals(license_id=license, starts_at=month(1) + timedelta(hours=1), ends_at=month(3) + second)


def test_a_roll_up_leaves_archived_time_as_it_is_and_says_so(usage: dict[str, Any], tmp_path: Path) -> None:
    archived(tmp_path)
    make_usage(license=usage["license"], revision=usage["revision"], at=month(1), quantity=100)

    rollups.roll_up(at=AT)

    assert total(usage) == 4.5
    assert Anomaly.objects.get(rule="usage_of_archived_time").evidence == {"hours": 1}


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_correction_of_archived_time_is_refused_and_leaves_nothing(
    meanwhile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metering.forget()
    make_meter(code="calls")
    license = make_license(at=month(1) - timedelta(days=400), duration=None)
    told = {"license": license, "meter": "calls", "quantity": Decimal(-1), "reason": "Twice", "by": BY, "at": AT}
    made = metering.correct(occurred_at=month(1), event_id="before", **told)
    rollups.roll_up(at=AT)
    whole = metering._settled

    def archive_first(*args: Any) -> Any:
        archived(tmp_path)
        return whole(*args)

    if meanwhile:
        monkeypatch.setattr(metering, "_settled", archive_first)
    else:
        archived(tmp_path)

    with pytest.raises(rollups.EventsArchived, match="Events before 2025-02-01 are archived.* Date the correction"):
        metering.correct(occurred_at=month(2) - timedelta(seconds=1), **told)

    assert made.status == "counted"
    assert UsageId.objects.count() == AuditEntry.objects.filter(action="usage.corrected").count() == 1
    assert not UsageChange.objects.exists()
    if not meanwhile:
        assert metering.correct(occurred_at=month(1), event_id="before", **told).status == "duplicate"
        assert metering.correct(occurred_at=month(2), **told).status == "counted"
        assert UsageEvent.objects.get().occurred_at == month(2)


def test_it_refuses_what_may_still_change(usage: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(partitions.NotYetArchivable, match="35 days"):
        archived(tmp_path, before=6)
    with pytest.raises(partitions.Invalid):
        partitions.archive(before=AT, to=tmp_path, by=BY, at=AT)
    UsageChange.objects.create(license_id=uuid7(), meter_revision_id=usage["revision"].pk, hour=month(2))
    with pytest.raises(partitions.NotYetArchivable, match="roll-up"):
        archived(tmp_path)
    rollups.roll_up(at=AT)
    Statement.objects.create(
        customer=make_customer(), currency="EUR", starts_at=month(2), ends_at=month(3), created_at=AT
    )
    with pytest.raises(partitions.NotYetArchivable, match="draft"):
        archived(tmp_path)

    assert UsageEvent.objects.count() == 9
    assert len(archived(tmp_path, before=2)) == 1


def test_it_keeps_the_events_that_statements_are_still_corrected_by(usage: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(partitions.NotYetArchivable, match="92 days"):
        archived(tmp_path, before=4)
    customer = make_customer()
    make_final_statement(customer=customer, starts_at=month(1), ends_at=month(2))
    Statement.objects.create(customer=customer, currency="EUR", starts_at=month(3), ends_at=month(4), created_at=AT)
    with pytest.raises(partitions.NotYetArchivable, match="92 days"):
        archived(tmp_path)


@pytest.mark.parametrize("step", ["_write", "_verify", "_mark"])
def test_it_loses_nothing_when_killed_at_a_step(
    usage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = getattr(partitions, step)

    def killed(*args: Any) -> None:
        whole(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(partitions, step, killed)
    with pytest.raises(KeyboardInterrupt):
        archived(tmp_path)
    monkeypatch.undo()

    assert UsageEvent.objects.count() == 9
    assert total(usage) == 4.5
    assert [each.events for each in archived(tmp_path)] == [3, 3]
    assert UsageEvent.objects.count() == 3


def test_it_keeps_a_correction_that_came_in_while_a_month_was_written(
    usage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = partitions._verify

    def meanwhile(*args: Any) -> None:
        whole(*args)
        make_usage(license=usage["license"], revision=usage["revision"], at=month(1), kind="correction")
        rollups.roll_up(at=AT)

    monkeypatch.setattr(partitions, "_verify", meanwhile)
    with pytest.raises(partitions.ArchiveDiffers):
        archived(tmp_path)
    monkeypatch.undo()

    assert UsageEvent.objects.count() == 10
    assert [each.events for each in archived(tmp_path)] == [4, 3]


def test_it_sees_a_file_that_is_not_what_was_written(usage: dict[str, Any], tmp_path: Path) -> None:
    written = partitions._write(
        next(each for each in partitions.partitions() if each.starts_at == month(1)), tmp_path, AT
    )
    file = tmp_path / written.file
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 1))

    with pytest.raises(partitions.ArchiveDiffers):
        partitions._verify(tmp_path, written)


def test_it_forgets_ids_only_when_their_events_could_not_come_again() -> None:
    now = datetime.now(UTC)
    for days in (0, 69, 71, 200):
        received_at = now - timedelta(days=days)
        UsageId.objects.create(
            license_id=uuid7(), event_id=str(days), digest=b"x" * 16, occurred_at=received_at, received_at=received_at
        )

    assert timedelta(days=70) == REMEMBERED
    assert partitions.forget_ids(at=now, limit=1) == 1
    assert partitions.forget_ids(at=now) == 1
    assert set(UsageId.objects.values_list("event_id", flat=True)) == {"0", "69"}
    with pytest.raises(DatabaseError, match="kept 70 days"), transaction.atomic():
        UsageId.objects.all().delete()


def said(*args: str) -> Any:
    out = StringIO()
    call_command(*args, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_shows_makes_and_archives(usage: dict[str, Any], tmp_path: Path) -> None:
    done = said("partitions", "archive", "--before", "2025-03", "--to", str(tmp_path))

    assert [each["events"] for each in done] == [3, 3]
    assert said("partitions", "ahead") == {"made": []}
    status = said("partitions", "status")
    assert status["archived_before"].startswith("2025-03-01")
    assert "billing_usageevent_y2025m03" in {each["name"] for each in status["partitions"]}
    with pytest.raises(CommandError, match="2025-01"):
        call_command("partitions", "archive", "--before", "March", "--to", str(tmp_path))
    with pytest.raises(CommandError, match="35 days"):
        call_command("partitions", "archive", "--before", "2090-01", "--to", str(tmp_path))
