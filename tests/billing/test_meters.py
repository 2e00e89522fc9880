"""Meters and their revisions."""

from typing import Any

import pytest

from billing import meters
from billing.models import Meter, MeterRevision
from licensing import catalog
from licensing.audit import Actor
from licensing.catalog import CodeTaken, Grant, RevisionIsPublished
from licensing.errors import Invalid, Refused
from licensing.models import AuditEntry
from tests.factories import AT, BY, make_meter, make_plan

pytestmark = pytest.mark.django_db


def make(code: str = "calls") -> Meter:
    return meters.create(code=code, name="Calls", by=BY, at=AT)


def draft(**terms: Any) -> MeterRevision:
    return meters.draft(meter=make(), by=BY, at=AT, **terms)


def test_it_makes_a_meter_and_says_who_did(db: None) -> None:
    meter = meters.create(code="calls", name="Calls", by=Actor(kind="staff", id="7"), at=AT, description="API")

    entry = AuditEntry.objects.get()
    assert (meter.code, meter.name, meter.description) == ("calls", "Calls", "API")
    assert (entry.action, entry.actor_id, entry.after) == ("meter.created", "7", {"code": "calls", "name": "Calls"})


def test_it_makes_no_second_meter_of_a_code() -> None:
    make()

    with pytest.raises(CodeTaken):
        make()
    assert Meter.objects.count() == AuditEntry.objects.count() == 1


def test_it_renames_a_meter_and_records_only_what_changed() -> None:
    meter = make()

    meters.describe(meter=meter, name="API calls", description="", by=BY, at=AT)
    meters.describe(meter=meter, name="API calls", description="", by=BY, at=AT)

    entry = AuditEntry.objects.get(action="meter.described")
    assert (entry.before, entry.after) == ({"name": "Calls"}, {"name": "API calls"})


def test_it_drafts_from_the_newest_revision() -> None:
    first = draft(unit="calls", dimensions=["region"], filters={"region": ["eu"]})

    second = meters.draft(meter=first.meter, by=BY, at=AT, unit="requests")

    assert (second.number, second.unit, second.dimensions, second.filters) == (
        2,
        "requests",
        ["region"],
        {"region": ["eu"]},
    )


@pytest.mark.parametrize(
    ("terms", "pointer"),
    [
        ({"aggregation": "median"}, "/aggregation"),
        ({"unit": "x" * 33}, "/unit"),
        ({"colour": "red"}, "/colour"),
        ({"dimensions": "region"}, "/dimensions"),
        ({"dimensions": ["region", "Region"]}, "/dimensions/1"),
        ({"dimensions": ["a__b"]}, "/dimensions/0"),
        ({"dimensions": ["1"]}, "/dimensions/0"),
        ({"dimensions": [7]}, "/dimensions/0"),
        ({"dimensions": ["a" * 41]}, "/dimensions/0"),
        ({"dimensions": ["region", "region"]}, "/dimensions/1"),
        ({"dimensions": [f"d{number}" for number in range(11)]}, "/dimensions"),
        ({"filters": ["region"]}, "/filters"),
        ({"filters": {"region": ["eu"]}}, "/filters/region"),
        ({"dimensions": ["region"], "filters": {"region": []}}, "/filters/region"),
        ({"dimensions": ["region"], "filters": {"region": "eu"}}, "/filters/region"),
        ({"dimensions": ["region"], "filters": {"region": [""]}}, "/filters/region"),
        ({"dimensions": ["region"], "filters": {"region": [1]}}, "/filters/region"),
        ({"dimensions": ["region"], "filters": {"region": ["eu", "eu"]}}, "/filters/region"),
        ({"dimensions": ["region"], "filters": {"region": [f"v{n}" for n in range(51)]}}, "/filters/region"),
        ({"aggregation": "unique"}, "/unique_by"),
        ({"aggregation": "unique", "dimensions": ["region"], "unique_by": "person"}, "/unique_by"),
        ({"dimensions": ["region"], "unique_by": "region"}, "/unique_by"),
    ],
)
def test_it_refuses_what_contradicts_itself_and_points_at_it(terms: dict[str, Any], pointer: str) -> None:
    good = draft()

    for act in (
        lambda: meters.draft(meter=good.meter, by=BY, at=AT, **terms),
        lambda: meters.edit(revision=good, by=BY, at=AT, **terms),
    ):
        with pytest.raises(Invalid) as refused:
            act()
        assert refused.value.pointer == pointer
    assert MeterRevision.objects.count() == 1
    assert MeterRevision.objects.get().dimensions == []


def test_it_edits_a_draft_and_records_what_changed() -> None:
    row = draft(unit="calls")

    meters.edit(revision=row, by=BY, at=AT, aggregation="count")
    meters.edit(revision=row, by=BY, at=AT, aggregation="count")

    row.refresh_from_db()
    entry = AuditEntry.objects.get(action="meter_revision.edited")
    assert (row.aggregation, row.unit) == ("count", "calls")
    assert (entry.before, entry.after) == ({"aggregation": "sum"}, {"aggregation": "count"})


def test_it_publishes_a_draft_in_place_of_the_revision_before() -> None:
    first = meters.publish(revision=draft(), by=BY, at=AT)

    second = meters.publish(revision=meters.draft(meter=first.meter, by=BY, at=AT), by=BY, at=AT, reason="New unit")

    first.refresh_from_db()
    assert (first.state, first.retired_at, second.state, second.published_at) == ("retired", AT, "published", AT)
    assert AuditEntry.objects.get(action="meter_revision.retired").reason == "Followed by revision 2."
    assert AuditEntry.objects.filter(action="meter_revision.published", reason="New unit").count() == 1


def test_it_never_changes_a_published_revision() -> None:
    row = meters.publish(revision=draft(), by=BY, at=AT)

    for act in (
        lambda: meters.edit(revision=row, by=BY, at=AT, unit="x"),
        lambda: meters.publish(revision=row, by=BY, at=AT),
        lambda: meters.discard(revision=row, by=BY, at=AT),
    ):
        with pytest.raises(RevisionIsPublished):
            act()


def test_it_retires_what_is_published_once() -> None:
    row = draft()
    with pytest.raises(Refused, match="A draft revision cannot be retired"):
        meters.retire(revision=row, by=BY, at=AT)
    meters.publish(revision=row, by=BY, at=AT)

    retired = meters.retire(revision=row, by=BY, at=AT, reason="No longer sold")

    assert (retired.state, retired.retired_at) == ("retired", AT)
    with pytest.raises(Refused, match="A retired revision cannot be retired"):
        meters.retire(revision=row, by=BY, at=AT)


def test_it_discards_a_draft_and_says_what_it_was() -> None:
    row = draft(unit="calls")

    meters.discard(revision=row, by=BY, at=AT)

    assert not MeterRevision.objects.exists()
    assert AuditEntry.objects.get(action="meter_revision.discarded").before["unit"] == "calls"


def test_it_says_in_words_what_is_different() -> None:
    first = draft(unit="calls", dimensions=["region"])
    second = meters.draft(
        meter=first.meter, by=BY, at=AT, aggregation="time_weighted_sum", filters={"region": ["eu", "us"]}
    )

    assert [str(each) for each in meters.diff(first, second)] == [
        "aggregation: Sum → value times time (seconds)",
        "filters: every event → region is eu or us",
    ]


def test_it_names_allowances_that_no_meter_counts_as_they_say() -> None:
    make_meter(code="calls")
    make_meter(code="storage", aggregation="max")
    grants = [
        Grant(key, kind="allowance", meter=meter, amount=5, overage=overage)
        for key, meter, overage in (
            ("calls", "calls", "refuse"),
            ("renders", "renders", "charge"),
            ("space", "storage", "refuse"),
            ("soft-space", "storage", "charge"),
        )
    ]
    revision = catalog.draft(plan=make_plan(code="pro"), by=BY, at=AT, grants=grants)
    assert meters.doubts() == []  # a draft binds nobody

    catalog.publish(revision=revision, by=BY, at=AT)

    assert [(doubt.entitlement, doubt.meter) for doubt in meters.doubts()] == [
        ("renders", "renders"),
        ("space", "storage"),
    ]
    assert "no meter 'renders' is published" in str(meters.doubts()[0])
