"""What counting usage is measured with: requests, and the same rows written by bare statements over one connection.

`python -m benchmarks.usage` fills the database of DATABASE_URL with what is counted on, and prints it as JSON.
`python -m benchmarks.usage bare batch|single SECONDS` prints how many events a second bare statements commit.
"""

import json
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from benchmarks import load

BATCH = 1_000
LICENSES = 1_000
LIMIT = 550
METER = "bench"


def fill() -> dict[str, Any]:
    """Make a meter, a credential, a license with a hard limit, and name those whose usage is only counted."""
    from django.utils import timezone

    from billing.models import Meter, MeterRevision
    from licensing import audit, catalog, credentials, lifecycle
    from licensing.models import License

    at, by = timezone.now(), audit.system("benchmarks")
    meter = Meter.objects.create(code=METER, name=METER, created_at=at)
    MeterRevision.objects.create(meter=meter, number=1, state="published", published_at=at, created_at=at)
    _, secret = credentials.create(name="usage", scopes=["usage"], by=by, at=at)
    some = License.objects.filter(issued_at__isnull=False, revoked_at=None, holds=None, expires_at__gt=at)
    licenses = [str(pk) for pk in some.order_by("-pk").values_list("pk", flat=True)[:LICENSES]]
    plan = catalog.create_plan(product=some[0].product, code="bench-hard", name="bench", by=by, at=at)
    grant = catalog.Grant(key=METER, kind="allowance", meter=METER, amount=Decimal(LIMIT), overage="refuse")
    revision = catalog.publish(
        revision=catalog.draft(plan=plan, scheme="usage", grants=[grant], by=by, at=at), by=by, at=at
    )
    limited, _ = lifecycle.issue(customer=some[0].customer, plan_revision=revision, by=by, at=at)
    replayed, _ = lifecycle.issue(customer=some[0].customer, plan_revision=some[0].plan_revision, by=by, at=at)
    return {
        "credential": secret,
        "licenses": licenses,
        "limited": str(limited.pk),
        "replayed": str(replayed.pk),
    }


def event(license_id: str, event_id: str | None = None) -> dict[str, Any]:
    return {"license": license_id, "event_id": event_id or secrets.token_hex(12), "meter": METER, "quantity": "1"}


def single(found: dict[str, Any], licenses: list[str], count: int) -> list[bytes]:
    """Return requests of one event each, over the licenses in turn."""
    headers = {"Authorization": f"Bearer {found['credential']}"}
    return [
        load.post("/api/v1/usage", json.dumps(event(licenses[number % len(licenses)])).encode(), headers)
        for number in range(count)
    ]


def batches(found: dict[str, Any], licenses: list[str], count: int) -> list[bytes]:
    """Return requests of a thousand events each, over the licenses in turn."""
    headers = {"Authorization": f"Bearer {found['credential']}"}
    return [
        load.post(
            "/api/v1/usage/batch",
            json.dumps({"events": [event(licenses[number % len(licenses)]) for number in range(BATCH)]}).encode(),
            headers,
        )
        for _ in range(count)
    ]


def bare(what: str, seconds: float) -> float:
    """Return how many events a second one connection commits by bare statements: the ids, events and changes that
    counting inserts, for the same licenses, in the same order. What counting does besides (counters) is its own."""
    from django.db import connection

    from billing.models import MeterRevision
    from licensing.models.allowances import Counter

    connection.ensure_connection()
    revision: UUID = MeterRevision.objects.get(meter__code=METER).pk
    licenses = sorted(Counter.objects.filter(meter=METER).values_list("license_id", flat=True))[:LICENSES]
    size = BATCH if what == "batch" else 1
    write = _on_postgresql if connection.vendor == "postgresql" else _on_sqlite
    done, spent = 0, 0.0
    while spent < seconds:
        at = datetime.now(UTC)
        rows = [
            (licenses[(done + number) % len(licenses)], secrets.token_hex(12), revision, secrets.token_bytes(16))
            for number in range(size)
        ]
        act = write(rows, at)
        begun = time.perf_counter()
        act()
        spent += time.perf_counter() - begun
        done += size
    return done / spent


def _on_postgresql(rows: list[tuple[Any, ...]], at: datetime) -> Callable[[], None]:
    from django.db import connection

    columns = [list(column) for column in zip(*rows, strict=True)]
    statement = """
    WITH sent AS MATERIALIZED (
           SELECT *, %s::timestamptz AS at FROM unnest(%s::uuid[], %s::text[], %s::uuid[], %s::bytea[])
               AS s(license_id, event_id, revision, digest)),
         id AS (INSERT INTO billing_usageid (license_id, event_id, digest, occurred_at, received_at)
                SELECT license_id, event_id, digest, at, at FROM sent),
         change AS (INSERT INTO billing_usagechange (license_id, meter_revision_id, hour)
                    SELECT DISTINCT license_id, revision, date_trunc('hour', at, 'UTC') FROM sent)
    INSERT INTO billing_usageevent (license_id, occurred_at, event_id, meter_revision_id, quantity, received_at, source,
                                    kind, reason)
    SELECT license_id, at, event_id, revision, 1, at, 'bare', 'usage', '' FROM sent
    """

    def act() -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement, [at, *columns])

    return act


def _on_sqlite(rows: list[tuple[Any, ...]], at: datetime) -> Callable[[], None]:
    from django.db import connection

    when, hour = str(at.replace(tzinfo=None)), str(at.replace(tzinfo=None, minute=0, second=0, microsecond=0))
    ids = [(row[0].hex, row[1], row[3], when, when) for row in rows]
    events = [(row[0].hex, when, row[1], row[2].hex, "1", when) for row in rows]
    changes = [(row[0].hex, row[2].hex, hour) for row in rows]
    session: Any = connection.connection

    def act() -> None:
        session.execute("BEGIN IMMEDIATE")
        session.executemany(
            "INSERT INTO billing_usageid (license_id, event_id, digest, occurred_at, received_at)"
            " VALUES (?, ?, ?, ?, ?)",
            ids,
        )
        session.executemany(
            "INSERT INTO billing_usageevent (license_id, occurred_at, event_id, meter_revision_id, quantity,"
            " received_at, source, kind, reason) VALUES (?, ?, ?, ?, ?, ?, 'bare', 'usage', '')",
            events,
        )
        session.executemany(
            "INSERT INTO billing_usagechange (license_id, meter_revision_id, hour) VALUES (?, ?, ?)", changes
        )
        session.execute("COMMIT")

    return act


def standing(license_id: str) -> dict[str, Any]:
    """Return what counters, events and ids say of a license."""
    from billing.models import UsageEvent, UsageId
    from licensing.models.allowances import Counter

    since = datetime.now(UTC) - timedelta(days=40)
    used = sum(int(one.used) for one in Counter.objects.filter(license_id=license_id, starts_at__gt=since))
    return {
        "used": used,
        "events": UsageEvent.objects.filter(license_id=license_id).count(),
        "ids": UsageId.objects.filter(license_id=license_id).count(),
    }


if __name__ == "__main__":
    import django

    django.setup()
    match sys.argv[1:]:
        case []:
            print(json.dumps(fill()))
        case ["bare", what, seconds]:
            print(bare(what, float(seconds)))
        case ["standing", license_id]:
            print(json.dumps(standing(license_id)))
