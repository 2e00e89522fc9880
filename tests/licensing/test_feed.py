"""The change feed's thread ends when it is told to."""

import threading

import pytest

from licensing import feed


def test_it_follows_no_more_once_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_ending", threading.Event())
    thread = threading.Thread(target=feed._follow_forever, daemon=True)
    thread.start()

    feed.stop()

    thread.join(5)
    assert not thread.is_alive()
