"""How long a change goes unseen: holds and lifts by one connection, validations by others, under load.

Counted from when the change is acknowledged until the last answer that did not know of it, over every connection and so
over every web process.
"""

import http.client
import json
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDS = 3  # a connection has seen a change when it answers right so often in a row


@dataclass(frozen=True)
class Subject:
    """A license that is held and lifted again and again."""

    id: str
    key: str


def measure(
    host: str, port: int, *, credential: str, subjects: Sequence[Subject], others: Sequence[str], changes: int
) -> list[float]:
    """Return for each change for how many seconds it went unseen; 0 where no answer was behind it."""
    stop = threading.Event()
    load = [threading.Thread(target=_load, args=(host, port, others, stop), daemon=True) for _ in range(4)]
    for thread in load:
        thread.start()
    writer = http.client.HTTPConnection(host, port, timeout=20)
    readers = [http.client.HTTPConnection(host, port, timeout=20) for _ in range(6)]
    try:
        for subject in subjects:  # every process keeps a copy of each
            _everywhere(readers, subject, held=False)
        unseen = []
        for number in range(changes):
            subject = subjects[number % len(subjects)]
            held = number // len(subjects) % 2 == 0
            _ask(
                writer,
                f"/api/v1/licenses/{subject.id}/{'hold' if held else 'lift'}",
                {"reason": "staff"},
                {"authorization": f"Bearer {credential}"},
            )
            unseen.append(_everywhere(readers, subject, held=held))
        return unseen
    finally:
        stop.set()
        for thread in load:
            thread.join(10)
        for connection in (writer, *readers):
            connection.close()


def _everywhere(readers: Sequence[http.client.HTTPConnection], subject: Subject, *, held: bool) -> float:
    began, last_stale = time.monotonic(), 0.0
    for reader in readers:
        right = 0
        while right < ROUNDS:
            verdict = _validate(reader, subject.key)
            if (verdict["code"] == "held") is held:
                right += 1
            else:
                right, last_stale = 0, time.monotonic() - began
                if last_stale > 30:
                    raise AssertionError(f"A change was not seen for {last_stale:.0f} s.")
    return last_stale


def _load(host: str, port: int, keys: Sequence[str], stop: threading.Event) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    position = secrets.randbelow(len(keys))
    while not stop.is_set():
        position += 1
        _validate(connection, keys[position % len(keys)])
    connection.close()


def _validate(connection: http.client.HTTPConnection, key: str) -> dict[str, object]:
    headers = {"authorization": f"License {key}", "x-licentia-nonce": secrets.token_urlsafe(16)}
    return _ask(connection, "/api/v1/validate", {}, headers)


def _ask(
    connection: http.client.HTTPConnection, path: str, body: dict[str, str], headers: dict[str, str]
) -> dict[str, object]:
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **headers})
    answer = connection.getresponse()
    read: dict[str, object] = json.loads(answer.read())
    if answer.status not in (200, 201):
        raise AssertionError(f"{path}: {answer.status} {read}")
    return read


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
