"""Work that leaves the request: small functions run again and again by a daemon thread of their own.

A thread starts when it is first needed, also after a fork, where threads are gone. At an orderly stop what asked for
it runs once more, so that nothing buffered is lost. It knows nothing of what it runs.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable

import structlog
from django.db import close_old_connections, connection

log = structlog.get_logger(__name__)

_all: "list[Periodic]" = []


class Periodic:
    """Runs `work` every `seconds` once woken; `at_stop` runs it a last time at an orderly stop.

    `work` returns whether it did anything: an idle thread holds no database connection.
    """

    def __init__(self, name: str, seconds: float, work: Callable[[], object], *, at_stop: bool = False) -> None:
        self.name, self.seconds, self.work, self.at_stop = name, seconds, work, at_stop
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._lock = threading.Lock()
        _all.append(self)

    def wake(self) -> None:
        """Make sure that the thread runs. Costs a comparison when it does."""
        if self._pid != os.getpid() or self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._pid != os.getpid() or self._thread is None or not self._thread.is_alive():
                    self._pid = os.getpid()
                    self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(self.seconds)
            try:
                close_old_connections()
                if not self.work():
                    connection.close()
            except Exception:  # the thread outlives whatever happens; what it could not do waits for the next turn
                log.exception("background_work_failed", work=self.name)
                connection.close()


@atexit.register
def _stop() -> None:
    for periodic in _all:
        if periodic.at_stop:
            try:
                if periodic.work():
                    connection.close()
            except Exception:  # the others' buffers are still to be written
                log.exception("background_work_failed_at_stop", work=periodic.name)
