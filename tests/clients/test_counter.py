"""The counter of a machine's requests: never the same number twice, whatever ends its processes."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from licentia_client import files
from licentia_client.files import Counter

TAKE = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from licentia_client.files import Counter
    counter, out = Counter(Path(sys.argv[1])), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(int(sys.argv[3])):
        os.write(out, f"{counter.next()}\\n".encode())
    """
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    made.mkdir(mode=0o700)
    return made


def taking(folder: Path, into: Path, count: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": "clients/python"}
    return subprocess.Popen([sys.executable, "-c", TAKE, str(folder), str(into), str(count)], env=environment)


def taken(*paths: Path) -> list[int]:
    return [int(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def test_it_rises_and_begins_with_the_time(folder):
    counter = Counter(folder)

    numbers = [counter.next() for _ in range(3 * files.BLOCK)]

    assert numbers == sorted(set(numbers))
    assert abs(numbers[0] - time.time() * 1000) < 60_000
    assert (folder / "counter").stat().st_mode & 0o077 == 0


def test_it_goes_on_ahead_after_a_restart(folder):
    first = [Counter(folder).next() for _ in range(20)]

    assert first == sorted(set(first))


@pytest.mark.parametrize("left", [None, "", "nonsense", "-5", "0", "9" * 40])
def test_it_goes_on_ahead_when_it_was_lost_or_spoiled(left, folder):
    before = Counter(folder).next()
    (folder / "counter").unlink()
    if left is not None:
        (folder / "counter").write_text(left)
    time.sleep(0.05)

    assert before < Counter(folder).next() < before + 60_000


def test_it_leaps_over_whatever_a_server_has_seen(folder):
    counter = Counter(folder)
    year_ahead = counter.next() + 366 * 86_400_000
    leaps = 0
    while counter.next() < year_ahead:
        counter.leap()
        leaps += 1

    assert leaps < 40


def test_it_shares_no_number_between_two_processes_at_once(folder, tmp_path):
    outs = [tmp_path / "one", tmp_path / "two"]
    processes = [taking(folder, out, 1_500) for out in outs]

    assert [process.wait(120) for process in processes] == [0, 0]
    numbers = taken(*outs)
    assert len(numbers) == len(set(numbers)) == 3_000
    assert all(taken(out) == sorted(taken(out)) for out in outs)


def test_it_takes_no_number_twice_however_often_it_is_killed(folder, tmp_path):
    """Killed at any moment, alone and beside another: what was taken, before the kill or after, is taken once."""
    outs, random_ = [], random.Random(9421)
    for life in range(12):
        pair = [tmp_path / f"{life}-{name}" for name in "ab"]
        outs += pair
        processes = [taking(folder, out, 1_000_000) for out in pair]
        deadline = time.monotonic() + 30
        while not taken(*pair) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random_.uniform(0, 0.1))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait(30)

    numbers = taken(*outs)
    assert len(numbers) > 1_000
    assert len(numbers) == len(set(numbers))


def test_it_would_take_numbers_twice_without_what_is_written_first(folder, tmp_path, monkeypatch):
    """The twin: a counter that is written down after its numbers are used repeats them when its process dies."""
    written: list[Any] = []
    monkeypatch.setattr(files, "write", lambda path, text: written.append((path, text)))
    (folder / "counter").write_text("1000")

    assert Counter(folder).next() == Counter(folder).next() == 1000
    assert written


def test_it_shares_no_number_between_threads_or_over_a_fork(folder, tmp_path):
    counter, numbers, out = Counter(folder), [], tmp_path / "child"
    counter.next()
    child = os.fork()
    if child == 0:
        out.write_text("".join(f"{counter.next()}\n" for _ in range(200)))
        os._exit(0)
    threads = [threading.Thread(target=lambda: numbers.extend(counter.next() for _ in range(200))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.waitpid(child, 0)

    numbers += taken(out)
    assert len(numbers) == len(set(numbers)) == 1_000
