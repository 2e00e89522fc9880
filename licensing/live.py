"""Live requests told on to another app, off the request: what was asked, and what was answered.

Billing says which plans it wants to hear of (while a rollout of them looks at both terms side by side) and hears them
in batches from a thread. While it wants none, a request costs a look at an empty set: no lock, no query. What is told
lies in a bounded buffer; what does not fit, or could not be heard for a fault of ours, is counted, and said with the
next batch.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec
import structlog
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from licensing import anomalies
from licensing.background import Periodic
from licensing.decision import Scope, Snapshot, Verdict
from licensing.states import Severity

log = structlog.get_logger(__name__)

CAPACITY = 20_000
BATCH = 2_000
WANTED_FOR_SECONDS = 5.0

Plan = tuple[str, str]  # codes of product and plan, as snapshots name them
Plans = frozenset[Plan]


class Told(Protocol):
    """Something that happened on a license."""

    @property
    def snapshot(self) -> Snapshot: ...


Hear = Callable[[Sequence[Told], Mapping[Plan, int]], int]


class Decided(msgspec.Struct, frozen=True, gc=False):
    """A validation: the snapshot it was decided from, the scope with all that was known, and the verdict. `by_key`: it
    was the license key itself that asked."""

    snapshot: Snapshot
    scope: Scope
    verdict: Verdict
    at: datetime
    by_key: bool = False


# Codes of product and plan of which requests are told; empty nearly always.
wanted: Plans = frozenset()

_told: deque[Told] = deque()
_dropped: dict[Plan, int] = {}
_counting = threading.Lock()
_working = threading.Lock()
_looked_at = float("-inf")
_plans: Callable[[], Plans] | None = None
_hear: Hear | None = None


def listen(*, plans: Callable[[], Plans], hear: Hear) -> None:
    """Say who wants to hear: `plans` returns of which plans, asked every few seconds; `hear` is given what was told and
    how much was dropped by plan, and returns how much it heard. Where it raises, nothing of that was heard."""
    global _plans, _hear
    _plans, _hear = plans, hear


def tell(snapshot: Snapshot, what: Told) -> None:
    """Put what happened on a license into the buffer, if its plan is wanted. Callers look at `wanted` first."""
    plan = _plan_of(snapshot)
    if plan not in wanted:
        return
    if len(_told) >= CAPACITY:
        _drop({plan: 1})
        return
    _told.append(what)


def _plan_of(snapshot: Snapshot) -> Plan:
    return snapshot.product, snapshot.plan


def _drop(counts: Mapping[Plan, int]) -> None:
    with _counting:
        for plan, count in counts.items():
            _dropped[plan] = _dropped.get(plan, 0) + count


def attend() -> int:
    """Find out which plans are wanted, every few seconds, and have what was told heard; return how much."""
    global wanted, _looked_at
    if _plans is None or _hear is None:
        return 0
    with _working:
        try:
            if time.monotonic() - _looked_at >= WANTED_FOR_SECONDS:
                _looked_at = time.monotonic()
                wanted = _plans()
            return _pass_on(_hear)
        except (OperationalError, InterfaceError):  # said where a request meets it; what was told waits
            return 0


def _pass_on(hear: Hear) -> int:
    done = 0
    while _told or _dropped:
        batch = [_told.popleft() for _ in range(min(BATCH, len(_told)))]
        with _counting:
            dropped = dict(_dropped)
            _dropped.clear()
        try:
            done += hear(batch, dropped)
        except (OperationalError, InterfaceError):
            _told.extendleft(reversed(batch))
            _drop(dropped)
            raise
        except Exception as error:  # something in it trips us up, and would again: those after it are still heard
            _drop(dropped)
            _drop(Counter(_plan_of(one.snapshot) for one in batch))
            _say_lost(len(batch), error)
            if not _told:  # how many were lost is said the next time
                break
    return done


def _say_lost(count: int, error: Exception) -> None:
    log.exception("live_requests_lost", count=count)
    anomalies.flag_later(
        rule="live_requests_lost",
        severity=Severity.HIGH,
        object_kind="service",
        object_id="live",
        at=timezone.now(),
        evidence={"count": count, "error": type(error).__name__},
    )


def forget() -> None:
    """Forget what was told and what is wanted: for tests."""
    global wanted, _looked_at
    wanted, _looked_at = frozenset(), float("-inf")
    _told.clear()
    _dropped.clear()


attending = Periodic("live", 1.0, attend, left=lambda: len(_told))
