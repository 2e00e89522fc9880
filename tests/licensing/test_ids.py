"""Identifiers: version, order, distinctness."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

from licensing import ids
from licensing.ids import uuid7, uuid7_text


def test_it_is_a_version_7_uuid_of_this_moment():
    made = uuid7()

    stamp = datetime.fromtimestamp((made.int >> 80) / 1000, UTC)

    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert abs(datetime.now(UTC) - stamp) < timedelta(seconds=5)


def test_it_goes_by_the_clock_again_when_that_was_far_ahead(monkeypatch):
    monkeypatch.setattr(ids, "_last", int((time.time() + 60) * 1000) << 12)

    ahead, made = abs(datetime.now(UTC) - ids.made_at(uuid7())), [uuid7() for _ in range(1_000)]

    assert ahead < timedelta(seconds=5)
    assert made == sorted(made)


def test_it_makes_ids_that_sort_as_they_were_made():
    made = [uuid7() for _ in range(20_000)]

    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_it_never_makes_one_twice_in_threads():
    with ThreadPoolExecutor(8) as pool:
        made = [each for batch in pool.map(lambda _: [uuid7() for _ in range(2_000)], range(8)) for each in batch]

    assert len(set(made)) == len(made)


def test_it_writes_one_as_it_is_written():
    before, text, after = uuid7(), uuid7_text(), uuid7()

    assert str(UUID(text)) == text
    assert before < UUID(text) < after
