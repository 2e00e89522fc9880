"""A process that died without a farewell is noticed by the next that starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from licensing import anomalies
from licensing.models import Anomaly
from portal import presence

PROGRAM = """
import django, os, sys
from pathlib import Path
django.setup()
from portal import presence
presence.begin("web", Path(sys.argv[1]))
print("there", flush=True)
if sys.stdin.readline() == "die":
    os.kill(os.getpid(), 9)
"""


def _run(folder: Path, end: str) -> None:
    """Let a process begin and end: by `die` or in an orderly way."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "portal.settings"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    assert presence.begin(f"while-{end}", folder) == []  # it lives: nothing is said of it
    process.communicate(end)


@pytest.mark.django_db
def test_it_flags_one_that_was_killed_once_and_none_that_stopped(tmp_path: Path) -> None:
    _run(tmp_path, "stop")
    stopped = presence.begin("first", tmp_path)
    _run(tmp_path, "die")
    killed = presence.begin("second", tmp_path)
    again = presence.begin("third", tmp_path)
    anomalies.record_waiting()

    assert (stopped, again) == ([], [])
    assert [name.partition("-")[0] for name in killed] == ["web"]
    assert list(Anomaly.objects.values_list("rule", "object_id", "count")) == [("process_died", "web", 1)]


@pytest.mark.django_db
def test_it_runs_unwatched_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    assert presence.begin("web", tmp_path / "file") == []
