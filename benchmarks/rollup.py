"""Roll up 10,000,000 events, against one plain GROUP BY of the same rows, and then 10,000 more: `make bench
ONLY=rollup`.

A week of 1,000 licenses, 60 events an hour each, in the order they would come in, made by SQL in a private PostgreSQL.
BENCH_ROLLUP_DAYS=30 spreads them over a month, 14 an hour: there the hours to write weigh more than the events to read.
The plain GROUP BY is what one would write by hand for the same hours, in a session with the same memory.
"""

import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

EVENTS = int(os.environ.get("BENCH_ROLLUP_EVENTS", "10_000_000"))
MORE = EVENTS // 1_000
LICENSES = EVENTS // 10_000
START = datetime(2026, 1, 1, tzinfo=UTC)
SPAN = timedelta(days=int(os.environ.get("BENCH_ROLLUP_DAYS", "7")))
REPEATS = 3

INSERT = """
INSERT INTO billing_usageevent (license_id, occurred_at, event_id, meter_revision_id, quantity, received_at, source,
                                kind, reason)
SELECT ('01890000-0000-7000-8000-' || lpad(((n * 7919) %% %(licenses)s)::text, 12, '0'))::uuid,
       %(start)s + n * %(step)s, 'event-' || n, %(revision)s, (n %% 1000) / 7.0, %(start)s + n * %(step)s, 'bench',
       'usage', ''
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
CHANGES = """
INSERT INTO billing_usagechange (license_id, meter_revision_id, hour)
SELECT DISTINCT license_id, meter_revision_id, date_trunc('hour', occurred_at) FROM billing_usageevent
WHERE occurred_at >= %s
"""
PLAIN = """
SELECT count(*) FROM (
  SELECT license_id, meter_revision_id, date_trunc('hour', occurred_at) AS hour, sum(quantity), count(*)
  FROM billing_usageevent GROUP BY license_id, meter_revision_id, hour OFFSET 0
) hours
"""


def measured() -> dict[str, Any]:
    """Fill the database Django is set up for, roll it up, and return how many seconds each step took."""
    from django.db import connection
    from django.utils import timezone

    from billing import partitions, rollups
    from billing.models import Meter, MeterRevision

    meter = Meter.objects.create(code="calls", name="Calls", created_at=START)
    revision = MeterRevision.objects.create(
        meter=meter, number=1, state="published", published_at=START, created_at=START
    )
    partitions.ahead(at=START)
    cursor = connection.cursor()
    cursor.execute("SET statement_timeout = 0")
    step = SPAN / EVENTS
    print("filling", file=sys.stderr)
    given = {"licenses": LICENSES, "start": START, "step": step, "revision": revision.pk}
    cursor.execute(INSERT, {**given, "first": 0, "last": EVENTS - 1})
    cursor.execute(CHANGES, [START])
    cursor.execute("VACUUM ANALYZE billing_usageevent")
    cursor.execute("ANALYZE billing_usagechange")

    def took(act: Any) -> float:
        began = time.perf_counter()
        act()
        return time.perf_counter() - began

    cursor.execute(f"SET work_mem = '{rollups.WORK_MEMORY}'")
    plain = [took(lambda: cursor.execute(PLAIN)) for _ in range(REPEATS)]
    cursor.execute("RESET work_mem")
    print("plain", plain, file=sys.stderr)
    first = took(lambda: rollups.roll_up(at=timezone.now()))
    print("first", first, file=sys.stderr)
    following: list[float] = []
    for turn in range(REPEATS):
        begin = EVENTS + turn * MORE
        cursor.execute(INSERT, {**given, "first": begin, "last": begin + MORE - 1})
        cursor.execute(CHANGES, [START + begin * step])
        following.append(took(lambda: rollups.roll_up(at=timezone.now())))
    total = rollups.totals(
        license_id=UUID("01890000-0000-7000-8000-000000000000"), starts_at=START, ends_at=START + SPAN
    )
    cursor.execute(
        "SELECT sum(quantity) FROM billing_usageevent WHERE license_id = '01890000-0000-7000-8000-000000000000'"
        " AND occurred_at < %s",
        [START + SPAN],
    )
    exact = [each.quantity for each in total] == [cursor.fetchone()[0]]
    return {"plain": statistics.median(plain), "first": first, "next": statistics.median(following), "exact": exact}


if __name__ == "__main__":
    import django

    django.setup()
    print(json.dumps(measured()))
