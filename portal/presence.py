"""Which processes should be there: one that died without a farewell is noticed by the next that starts.

Each process holds a lock on a file of its own for as long as it lives and removes the file when it stops in an orderly
way. A file that nobody holds is of one that was killed, ran out of memory or crashed. Nothing here depends on it.
"""

import fcntl
import os
import socket
from multiprocessing.util import Finalize
from pathlib import Path

import structlog
from django.utils import timezone

from licensing import anomalies
from licensing.states import Severity

log = structlog.get_logger(__name__)

_held: list[int] = []


def begin(kind: str, folder: Path) -> list[str]:
    """Say that this process is there, as a `web`, `worker` or `beat`; flag those that died, and return their names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        died = [path.name for path in sorted(folder.glob("*.lock")) if _nobodys(path)]
        mine = folder / f"{kind}-{socket.gethostname()}-{os.getpid()}.lock"
        handle = os.open(mine, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # a file system without room or locks: it runs all the same, unwatched
        log.error("presence_not_noted", error=str(error))
        return []
    _held.append(handle)
    Finalize(None, mine.unlink, kwargs={"missing_ok": True}, exitpriority=0)
    for name in died:
        log.error("process_died", process=name)
        anomalies.flag_later(
            rule="process_died",
            severity=Severity.HIGH,
            object_kind="process",
            object_id=name.partition("-")[0],
            at=timezone.now(),
            evidence={"process": name.removesuffix(".lock")},
        )
    return died


def _nobodys(path: Path) -> bool:
    """Take away the file of a process that is gone; return whether this was one, and we the first to see it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(handle).st_nlink:
            return False  # another one that is starting took it away in between
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
