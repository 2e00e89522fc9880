"""Work off the request, and what becomes of it at an orderly stop. A real one: tests/portal/test_stop.py."""

import pytest

from licensing import background
from licensing.background import Periodic


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test makes is stopped here."""
    monkeypatch.setattr(background, "_all", [])


def test_it_finishes_what_waits_and_leaves_alone_what_may_be_lost() -> None:
    waiting, done = [3], []
    Periodic("counted", 60, lambda: waiting.pop(), left=lambda: len(waiting))
    Periodic("a sample", 60, lambda: done.append(1))

    assert background.stop() == {}
    assert (waiting, done) == ([], [])


def test_it_tries_again_until_nothing_is_left() -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("away")

    Periodic("stubborn", 60, work, left=lambda: 0 if len(tries) >= 3 else 7)

    assert background.stop() == {}
    assert len(tries) == 3


def test_it_says_what_it_could_not_do_in_time_and_still_does_the_others() -> None:
    done = []
    Periodic("later", 60, lambda: done.append(1), left=lambda: 0)
    Periodic("never", 60, lambda: None, left=lambda: 5)

    assert background.stop(patience_seconds=0) == {"never": 5}
    assert done == [1]


def test_it_ends_with_what_others_hand_their_work_to() -> None:
    handed: list[int] = []
    Periodic("first made", 60, handed.clear, left=lambda: len(handed))
    Periodic("hands on", 60, lambda: handed.append(1), left=lambda: 0)

    assert background.stop() == {}
    assert handed == []
