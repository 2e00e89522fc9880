"""Work that leaves the request: small functions run again and again by a daemon thread of their own.

A thread starts when it is first needed, also after a fork, where threads are gone. At an orderly stop what asked for
it runs once more, so that nothing buffered is lost. It knows nothing of what it runs.

An orderly stop reaches us by the finalizers of `multiprocessing`: they run at the end of every process, also of one
that it forked, such as the web server's workers, where `atexit` is passed over (measured: Python 3.11). Celery's pool
has a signal of its own, see `portal.celery`.
"""

import os
import threading
import time
from collections.abc import Callable
from multiprocessing.util import Finalize

import structlog
from django.db import close_old_connections, connection

log = structlog.get_logger(__name__)

# Well within the ten seconds that container hosts usually grant.
PATIENCE_SECONDS = 5.0

_all: "list[Periodic]" = []
_stops_in = 0  # the process whose end will call `stop`


class Periodic:
    """Runs `work` every `seconds` once woken.

    `work` returns whether it did anything: an idle thread holds no database connection. What must not be lost gives
    `left`, which says how much still waits: at an orderly stop `work` runs until nothing does.
    """

    def __init__(
        self, name: str, seconds: float, work: Callable[[], object], *, left: Callable[[], int] | None = None
    ) -> None:
        self.name, self.seconds, self.work, self.left = name, seconds, work, left
        self._awake = False
        self._lock = threading.Lock()
        _all.append(self)

    def wake(self) -> None:
        """Make sure that the thread runs. Costs a comparison when it does."""
        if self._awake:
            return
        with self._lock:
            if not self._awake:
                _stop_with_this_process()
                threading.Thread(target=self._run, name=self.name, daemon=True).start()
                self._awake = True

    def forked(self) -> None:
        """Take note that this is a new process, in which no thread but the one that forked goes on."""
        self._awake = False
        self._lock = threading.Lock()

    def _run(self) -> None:
        while True:
            time.sleep(self.seconds)
            self._turn()

    def _turn(self) -> None:
        try:
            close_old_connections()
            if not self.work():
                connection.close()
        except Exception:  # the thread outlives whatever happens; what it could not do waits for the next turn
            log.exception("background_work_failed", work=self.name)
            connection.close()


def _forked() -> None:
    for periodic in _all:
        periodic.forked()


os.register_at_fork(after_in_child=_forked)


def stop(patience_seconds: float = PATIENCE_SECONDS) -> dict[str, int]:
    """Do what waits, as at an orderly stop; what cannot be done in time is named in the log and returned, by work."""
    until = time.monotonic() + patience_seconds
    # In the reverse order of their making: one that is given work by another was made before it.
    waiting = [periodic for periodic in reversed(_all) if periodic.left is not None]
    lost = {periodic.name: left for periodic in waiting if (left := _finish(periodic, until))}
    connection.close()
    for name, count in lost.items():
        log.error("lost_at_stop", work=name, count=count)
    return lost


def _finish(periodic: Periodic, until: float) -> int:
    """Return how much is left of its work. It runs once in any case: its thread may be in the middle of it."""
    assert periodic.left is not None
    while True:
        try:
            periodic.work()
        except Exception:  # the others' buffers are still to be written
            log.exception("background_work_failed_at_stop", work=periodic.name)
        left = periodic.left()
        if not left or time.monotonic() > until:
            return left
        connection.close()
        time.sleep(0.25)


def _stop_with_this_process() -> None:
    global _stops_in
    if _stops_in != os.getpid():
        _stops_in = os.getpid()
        Finalize(None, stop, exitpriority=100)
