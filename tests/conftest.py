"""What every test gets: the guards lifted around a flush, throttles and buffers emptied, a private key ring."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import TransactionTestCase

from licensing import decisions, guards, throttles

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
    """No bucket is half empty and no refusal buffered from the test before, and none written behind its back: a test
    flushes the buffer itself, or lets the writer loose (`writer`)."""
    monkeypatch.setattr(decisions, "_ensure_writer", lambda: None)
    for kind in ("address", "license", "credential"):
        throttles.throttle(kind).clear()
    yield
    decisions._buffer.clear()
