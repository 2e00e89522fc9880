"""A core for each web worker."""

import json
import os
import subprocess
import sys

import pytest

from portal import cores

TAKE = """
import json, os, pathlib, sys
from portal import cores
took = cores.take_one(pathlib.Path(sys.argv[1]))
print(json.dumps([took, sorted(os.sched_getaffinity(0))]), flush=True)
sys.stdin.read()
"""


def take(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    took, left = json.loads(process.stdout.readline())
    return process, took, left


@pytest.fixture
def two_cores():
    """Whatever this machine has, let what is started here have two cores."""
    all_of_them = os.sched_getaffinity(0)
    if len(all_of_them) < 2:
        yield []
        return
    os.sched_setaffinity(0, sorted(all_of_them)[:2])
    yield sorted(all_of_them)[:2]
    os.sched_setaffinity(0, all_of_them)


def test_each_worker_takes_a_core_of_its_own_until_it_ends(two_cores, tmp_path):
    if not two_cores:  # there is no choice
        assert take(tmp_path)[1] is None
        return
    taken = [take(tmp_path) for _ in range(2)]

    assert sorted(took for _, took, _ in taken) == two_cores
    assert all(left == [took] for _, took, left in taken)

    (first, freed, _), (second, _, _) = taken
    first.kill()
    first.wait()
    third, took, _ = take(tmp_path)
    assert took == freed
    for process in (second, third):
        process.communicate()


def test_a_worker_more_than_there_are_cores_shares_one(two_cores, tmp_path):
    taken = [take(tmp_path) for _ in range(3)]
    try:
        assert all(took in two_cores for _, took, _ in taken) or not two_cores
    finally:
        for process, _, _ in taken:
            process.communicate()


def test_it_goes_on_where_the_folder_cannot_be_written(two_cores, tmp_path):
    (tmp_path / "file").write_text("")
    process, took, left = take(tmp_path / "file" / "cores")
    process.communicate()

    assert left == [took] if two_cores else took is None


def test_the_choice_is_left_alone_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)

    assert cores.take_one(tmp_path) is None
