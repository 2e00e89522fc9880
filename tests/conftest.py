"""What every test gets: the guards lifted around a flush, throttles and buffers emptied, a private key ring."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import TransactionTestCase

from licensing import (
    anomalies,
    background,
    chain,
    checkpoints,
    decisions,
    feed,
    guards,
    installation,
    live,
    nonces,
    observations,
    persons,
    pictures,
    snapshots,
    stamps,
    throttles,
    validation,
)
from licensing.background import Periodic

_flush = TransactionTestCase._fixture_teardown


def pytest_sessionfinish() -> None:
    """Let the change feed go before its Redis does: it would miss it aloud, into streams that are closed by then."""
    feed.stop()


def _flush_unguarded(self: Any) -> None:
    """Lift the guards, let Django empty the tables, put the guards back. Only here: production has no off switch."""
    for using in self._databases_names(include_mirrors=False):
        with connections[using].cursor() as cursor:
            postgresql = connections[using].vendor == "postgresql"
            for guard in guards.expected(connections[using].vendor):
                tables = [f' ON "{guard.table}"'] if postgresql else [""]
                if postgresql and guard.event == "TRUNCATE":
                    tables += [f' ON "{partition}"' for partition in guards.partitions_of(cursor, guard.table)]
                for table in tables:
                    cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"{table}')
    try:
        _flush(self)
    finally:
        for using in self._databases_names(include_mirrors=False):
            guards.install(using=using)


TransactionTestCase._fixture_teardown = _flush_unguarded  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _nothing_left_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No bucket is half empty, no copy kept and no refusal buffered from the test before, and nothing written behind a
    test's back: it flushes buffers itself, or lets the threads loose (`loose`), which idle again afterwards."""
    monkeypatch.setattr(Periodic, "wake", lambda self: None)
    monkeypatch.setattr(Periodic, "_turn", lambda self: None)
    installation.read_again()
    for kind in ("address", "license", "credential"):
        throttles.throttle(kind).clear()
    feed.forget()
    live.forget()
    persons.forget()
    observations.clear()
    monkeypatch.setattr(pictures, "_database_again_at", 0.0)
    monkeypatch.setattr(snapshots, "_misses", 0)
    snapshots._unshared.clear()
    monkeypatch.setattr(nonces, "_memory", nonces._Memory())
    monkeypatch.setattr(chain, "_written_to", False)
    monkeypatch.setattr(checkpoints, "_reached", None)
    monkeypatch.setattr(checkpoints, "_silent_until", checkpoints._silent_until)
    yield
    for buffer in (decisions._buffer, anomalies._later, validation._again, stamps._waiting):
        buffer.clear()


_wake, _turn = Periodic.wake, Periodic._turn


@pytest.fixture
def loose(_nothing_left_over: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the background threads of this process run. At its end, the test database is gone: nothing is left to do."""
    monkeypatch.setattr(background, "_stop_with_this_process", lambda: None)
    monkeypatch.setattr(Periodic, "wake", _wake)
    monkeypatch.setattr(Periodic, "_turn", _turn)
