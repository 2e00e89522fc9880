"""What every test gets: the guards lifted around a flush, throttles and buffers emptied, a private key ring."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import TransactionTestCase

from licensing import anomalies, decisions, feed, guards, nonces, snapshots, stamps, throttles, validation
from licensing.background import Periodic

_flush = TransactionTestCase._fixture_teardown


def _flush_unguarded(self: Any) -> None:
    """Lift the guards, let Django empty the tables, put the guards back. Only here: production has no off switch."""
    for using in self._databases_names(include_mirrors=False):
        with connections[using].cursor() as cursor:
            for guard in guards.expected(connections[using].vendor):
                table = f' ON "{guard.table}"' if connections[using].vendor == "postgresql" else ""
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
    test's back: it flushes buffers itself, or lets the threads loose (`loose`)."""
    monkeypatch.setattr(Periodic, "wake", lambda self: None)
    for kind in ("address", "license", "credential"):
        throttles.throttle(kind).clear()
    feed.forget()
    monkeypatch.setattr(snapshots, "_database_again_at", 0.0)
    monkeypatch.setattr(nonces, "_memory", nonces._Memory())
    yield
    for buffer in (decisions._buffer, anomalies._later, validation._again, stamps._waiting):
        buffer.clear()


_wake = Periodic.wake


@pytest.fixture
def loose(_nothing_left_over: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the background threads of this process run."""
    monkeypatch.setattr(Periodic, "wake", _wake)
