"""What the audit chain costs those who write: rule functions with it and without it, in turns, and how fast it is.

`python -m benchmarks.audit` measures on the database of DATABASE_URL and prints JSON. `… benchmarks.audit rules` is one
writer: it reads "on SECONDS" or "off SECONDS", and prints how many calls of rules it made.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import django

django.setup()

from django.db import connection, transaction  # noqa: E402
from django.utils import timezone  # noqa: E402

from licensing import audit, catalog, chain, checkpoints, customers, guards, lifecycle, seats, verifying  # noqa: E402
from licensing.models import AuditEntry, AuditWaiting, License  # noqa: E402

WINDOW_SECONDS = 3.0
PAIRS = 7
ENTRIES = 100_000
WRITERS = 2 if connection.vendor == "postgresql" else 1
BY = audit.system("benchmarks")


def prepare() -> License:
    """Return a license of this process's own."""
    at, own = timezone.now(), f"bench-{os.getpid()}"
    product = catalog.create_product(code=own, name=own, by=BY, at=at)
    plan = catalog.create_plan(product=product, code=own, name=own, by=BY, at=at)
    draft = catalog.draft(plan=plan, by=BY, at=at, seat_limit=50, activation_limit=5, duration=timedelta(days=365))
    revision = catalog.publish(revision=draft, by=BY, at=at)
    customer = customers.create(code=own, name=own, by=BY, at=at)
    return lifecycle.issue(customer=customer, plan_revision=revision, by=BY, at=at)[0]


def rules() -> None:
    """Call rules over and over, as long as each line asks for."""
    license, linked = prepare(), chain.written
    print("ready", flush=True)
    for line in sys.stdin:
        how, seconds = line.split()
        chain.written = linked if how == "on" else lambda: None
        done, until = 0, time.monotonic() + float(seconds)
        while time.monotonic() < until:
            at = timezone.now()
            seat = seats.assign(license=license, holder="a@example.com", by=BY, at=at).seat
            lifecycle.hold(license=license, reason="abuse", by=BY, at=at)
            lifecycle.lift(license=license, reason="abuse", by=BY, at=at)
            seats.release(seat=seat, by=BY, at=at)
            done += 4
        print(done, flush=True)


def switch(on: bool) -> None:
    """Have entries noted for the chain, or not: there is no such switch but here."""
    if on:
        guards.install()
        return
    while AuditWaiting.objects.exists():
        chain.turn(at=timezone.now())
    noted = next(guard for guard in guards.expected() if guard.does)
    table = f' ON "{noted.table}"' if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{noted.name}"{table}')


def window(writers: "list[subprocess.Popen[str]]", on: bool) -> tuple[float, float]:
    """Return how many calls a second there were in a window, and the longest an entry waited for its number."""
    switch(on)
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(f"{'on' if on else 'off'} {WINDOW_SECONDS}\n")
        writer.stdin.flush()
    lag, until = 0.0, time.monotonic() + WINDOW_SECONDS
    while time.monotonic() < until:
        time.sleep(0.1)
        if on:
            lag = max(lag, chain.lag(at=timezone.now()).total_seconds())
    return sum(int(writer.stdout.readline()) for writer in writers if writer.stdout) / WINDOW_SECONDS, lag


def compare() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.audit", "rules"]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(WRITERS)
    ]
    try:
        for writer in writers:
            assert writer.stdout
            assert writer.stdout.readline() == "ready\n"
        window(writers, True)  # to warm up
        ratios, rates, lags = [], [], []
        for pair in range(PAIRS):
            found = {}
            for on in (True, False) if pair % 2 else (False, True):
                found[on], lag = window(writers, on)
                lags.append(lag)
            ratios.append(found[True] / found[False])
            rates.append(found[True])
    finally:
        for writer in writers:
            assert writer.stdin
            writer.stdin.close()
            writer.wait()
        switch(True)
        with connection.cursor() as cursor:  # what was written without the chain, so that the record verifies
            cursor.execute(
                "INSERT INTO licensing_auditwaiting (entry_id) SELECT id FROM licensing_auditentry e WHERE NOT EXISTS"
                " (SELECT 1 FROM licensing_auditlink l WHERE l.entry_id = e.id) ON CONFLICT DO NOTHING"
            )
        while AuditWaiting.objects.exists():
            chain.turn(at=timezone.now())
    return {"ratio": statistics.median(ratios), "ratios": ratios, "rate": statistics.median(rates), "lag": max(lags)}


def capacity() -> dict[str, float]:
    """Return how fast entries are chained and verified, where nothing else happens."""
    customer = customers.create(code="capacity", name="capacity", by=BY, at=timezone.now())
    with transaction.atomic():
        like = audit.record(action="test.happened", by=BY, on=customer, at=timezone.now(), after={"name": "x" * 40})
    for _ in range(ENTRIES // 5_000):
        rows = [
            AuditEntry(**{field.attname: getattr(like, field.attname) for field in AuditEntry._meta.fields[1:]})
            for _ in range(5_000)
        ]
        AuditEntry.objects.bulk_create(rows)
    begun, before = time.monotonic(), chain.standing(at=timezone.now()).size
    while AuditWaiting.objects.exists():
        chain.turn(at=timezone.now())
    chained = (chain.standing(at=timezone.now()).size - before) / (time.monotonic() - begun)
    checkpoints.make(at=timezone.now(), asked=True)
    begun = time.monotonic()
    report = verifying.verify(at=timezone.now())
    return {
        "chained": chained,
        "verified": report.size / (time.monotonic() - begun),
        "size": report.size,
        "good": report.good,
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["rules"]:
        rules()
    else:
        print(json.dumps(compare() | capacity()))
