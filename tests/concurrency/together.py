"""Do things at the same time: threads with real connections of their own, let go by one barrier."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from django.db import connection


def together(*acts: Callable[[], Any], patience_seconds: float = 60.0) -> list[Any]:
    """Run all acts at once and return what each returned, or the exception it raised, in their order."""
    barrier = threading.Barrier(len(acts))
    results: list[Any] = [None] * len(acts)

    def run(place: int, act: Callable[[], Any]) -> None:
        try:
            connection.ensure_connection()
            barrier.wait(patience_seconds)
            results[place] = act()
        except Exception as error:
            results[place] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience_seconds)
    assert not any(thread.is_alive() for thread in threads), "something waits for ever"
    return results


def kinds(results: Sequence[Any]) -> dict[str, int]:
    """Return how many results there are of each kind, errors by their class."""
    found: dict[str, int] = {}
    for result in results:
        name = type(result).__name__
        found[name] = found.get(name, 0) + 1
    return found
