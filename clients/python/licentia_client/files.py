"""Files that a program keeps for itself: private, written whole, and changed by one process at a time.

Also the counter of a machine's signed requests, which never gives a number twice.
"""

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BLOCK = 16
# A block that was reserved longer ago is left: other processes have gone on counting, and a number too far behind
# theirs is refused.
BLOCK_SECONDS = 2.0
# Further than requests may overtake each other. Each further leap is twice as wide, so that a few reach any number.
LEAP = 4_096
HIGHEST = 10**15


class NotPrivate(OSError):
    """Others on this machine can read, or change, what must be private."""


def write(path: Path, text: str) -> None:
    """Write a private file, whole or not at all, and for good: a machine that stops afterwards has it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if os.name != "nt":  # else a machine that loses power may come back with the former file, and count twice
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def require_private_folder(path: Path) -> None:
    """Raise `NotPrivate` if others can look into the folder, or put something there."""
    if _open_to_others(path.stat()):
        raise NotPrivate(f"Others on this machine can look into {path}. Let only its owner in: chmod 700 '{path}'.")


def read_private(path: Path) -> str:
    """Return the text of a file that only its owner can read. On Windows the folder's rights decide.

    Raises:
        NotPrivate: others can read it.
        OSError: it cannot be read.
    """
    with path.open() as file:
        if _open_to_others(os.fstat(file.fileno())):
            raise NotPrivate(
                f"Others on this machine can read {path}. If nobody else is on it: chmod 600 '{path}'. If somebody may "
                f"have read it: delete it, have the old activation let go, and activate this machine anew."
            )
        return file.read()


def _open_to_others(found: os.stat_result) -> bool:
    """Return whether its rights, or its owner, let somebody else in. Root may read what is another's."""
    if sys.platform == "win32":
        return False
    return bool(found.st_mode & 0o077) or os.geteuid() not in (found.st_uid, 0)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process and thread out that asks for the same lock file. It does not nest."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
                    break
                except OSError:  # it has tried for ten seconds
                    continue
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if sys.platform != "win32":  # closing is not enough: a child of a fork has it open too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


class Counter:
    """The counter of a machine's requests, kept in `folder`.

    Numbers are reserved in blocks, on the disk before the first is used: a crash skips some, and processes that share
    the folder get different ones. It begins at the milliseconds since 1970 and rises slower than those, so that a
    counter that was lost goes on ahead of itself.
    """

    def __init__(self, folder: Path) -> None:
        self._kept, self._guard = folder / "counter", folder / "counter.lock"
        self._next = self._end = 0
        self._reserved_at = 0.0
        self._reserved_by = 0
        self._leap = LEAP
        self.forked()

    def forked(self) -> None:
        """Begin anew in the child of a fork, where a thread that held the lock is gone."""
        self._thread = threading.Lock()

    def next(self) -> int:
        """Return a number that was never returned before."""
        with self._thread:
            late = time.monotonic() - self._reserved_at > BLOCK_SECONDS
            if self._next >= self._end or late or self._reserved_by != os.getpid():
                self._reserve()
            self._next += 1
            return self._next - 1

    def leap(self) -> None:
        """Go on far ahead: the server has seen higher numbers than those kept here, or a copy of them."""
        with self._thread:
            self._reserve(skip=self._leap)
            self._leap *= 2

    def _reserve(self, skip: int = 0) -> None:
        with locked(self._guard):
            now, kept = int(time.time() * 1000), 0
            with suppress(OSError, ValueError):
                kept = int(self._kept.read_text())
            if not 0 < kept < HIGHEST:
                kept = now
            first = max(kept + skip, now) if skip else kept
            write(self._kept, str(first + BLOCK))
        self._next, self._end = first, first + BLOCK
        self._reserved_at, self._reserved_by = time.monotonic(), os.getpid()
