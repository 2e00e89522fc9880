"""A change is seen by every web process within the bounds, with Redis, and without."""

import os
from typing import Any

import pytest

from benchmarks.propagation import Subject, measure, percentile
from tests.api.running import running
from tests.servers import Postgres, Redis

CHANGES = 2_000 if os.environ.get("LICENTIA_SOAK") else 120
SEED = """
from django.utils import timezone
from datetime import timedelta
from tests.factories import make_credential, make_license_and_key
at = timezone.now() - timedelta(days=1)
made = [make_license_and_key(at=at) for _ in range(24)]
secret = make_credential()[1]
print(json.dumps({"credential": secret, "licenses": [[str(row.pk), key] for row, key in made]}))
"""


def unseen(server: Any, changes: int) -> list[float]:
    licenses = [Subject(*row) for row in server.seeds["licenses"]]
    return measure(
        server.host,
        server.port,
        credential=server.seeds["credential"],
        subjects=licenses[:12],
        others=[row.key for row in licenses[12:]],
        changes=changes,
    )


@pytest.mark.postgres
def test_it_is_seen_by_every_process_within_two_seconds_with_redis_and_ten_without() -> None:
    with Postgres() as database, Redis() as redis:
        settings = {"database_url": database.create_database("revocation"), "REDIS_URL": redis.url(), "workers": 2}
        with running(seed=SEED, **settings) as server:  # type: ignore[arg-type]
            seen = unseen(server, CHANGES)
            assert percentile(seen, 0.999) < 2.0
            assert max(seen) < 10.0

            redis.stop()
            seen = unseen(server, CHANGES // 4 // 24 * 24)
            assert max(seen) < 10.0


def test_it_is_seen_at_once_by_the_one_process_on_sqlite() -> None:
    with running(seed=SEED, workers=1, REDIS_URL="") as server:
        assert max(unseen(server, 48)) < 1.5
