"""A signed request is accepted once: in Redis, in the database, and on the way from one to the other."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.conf import settings as django_settings
from django.db import connection
from django.utils import timezone

from licensing import activations, feed, nonces, stamps
from licensing.errors import Unauthenticated, Unavailable
from licensing.models import Activation, Anomaly, RequestNonce
from licensing.signatures import REMEMBERED_SECONDS, WINDOW
from tests.factories import BY, make_license
from tests.servers import Redis, free_port


@pytest.fixture
def machine(db: None) -> Any:
    now = timezone.now()
    made = activations.activate(
        license=make_license(at=now - timedelta(days=1)), fingerprint="f" * 20, by=BY, at=now, public_key=b"k" * 32
    )
    return made.activation.pk


@pytest.fixture(params=["redis", "database"])
def memory(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the two memories; Redis is a private one."""
    if request.param == "database":
        settings.REDIS_URL = ""
        yield "database"
        return
    with Redis() as server:
        settings.REDIS_URL = server.url()
        feed.forget()
        monkeypatch.setattr(nonces, "GAP_SECONDS", 2.0)
        with redis.Redis.from_url(server.url()) as client:
            client.set(f"{settings.REDIS_KEY_PREFIX}:nonces:epoch", 1)
        yield "redis"
    feed.forget()


def code(machine: Any, counter: int, nonce: str = "", at: Any = None) -> str:
    try:
        nonces.accept(activation_id=machine, nonce=nonce or f"n-{counter}", counter=counter, at=at or timezone.now())
    except (Unauthenticated, Unavailable) as error:
        return error.code
    return "ok"


def test_it_accepts_a_request_once(machine: Any, memory: str) -> None:
    assert [code(machine, 5), code(machine, 5), code(machine, 6), code(machine, 5)] == [
        "ok",
        "request_replayed",
        "ok",
        "request_replayed",
    ]
    assert code(machine, 7, nonce="n-6") == "request_replayed"  # the nonce alone is enough


def test_it_notices_a_copy_by_the_first_counter_it_reuses(machine: Any, memory: str) -> None:
    assert [code(machine, counter) for counter in (1, 2, 3)] == ["ok"] * 3

    assert code(machine, 3, nonce="of-the-copy") == "counter_reused"

    found = Anomaly.objects.get(rule="cloned_installation")
    assert (found.object_id, found.severity) == (str(machine), "critical")
    assert Activation.objects.get(pk=machine).cloned_at is not None
    assert code(machine, 4) == "ok"  # nobody is locked out in silence: a person decides


def test_it_lets_requests_overtake_each_other_within_a_window(machine: Any, memory: str) -> None:
    assert code(machine, 5_000) == "ok"

    assert code(machine, 5_000 - WINDOW + 1) == "ok"
    assert code(machine, 5_000 - WINDOW + 1, nonce="other") == "counter_reused"
    assert code(machine, 5_000 - WINDOW) == "counter_stale"
    assert code(machine, 5_000 + WINDOW) == "ok"
    assert code(machine, 4_999) == "counter_stale"
    assert code(machine, 5_000) in ("request_replayed", "counter_stale")


def test_it_goes_on_from_the_floor(machine: Any, memory: str) -> None:
    Activation.objects.filter(pk=machine).update(counter_floor=90)

    assert [code(machine, counter) for counter in (90, 89, 91)] == ["counter_stale", "counter_stale", "ok"]


def test_it_is_bounded_in_what_it_remembers(machine: Any, memory: str) -> None:
    if memory == "database":
        for counter in range(1, 30):
            code(machine, counter, at=timezone.now() - timedelta(seconds=REMEMBERED_SECONDS + 1))
        code(machine, 30)

        assert nonces.forget(at=timezone.now()) == 29
        assert [code(machine, 29), code(machine, 30), code(machine, 31)] == ["counter_stale", "request_replayed", "ok"]
        return
    for counter in range(1, 3 * WINDOW):
        assert code(machine, counter) == "ok"
    key = f"{django_settings.REDIS_KEY_PREFIX}:nonces:0:{machine}"
    assert feed.call("HLEN", key) <= 2 * WINDOW + 2
    assert 0 < feed.call("TTL", key) <= 3 * REMEMBERED_SECONDS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", ["redis", "database"])
def test_it_accepts_one_of_a_hundred_at_once(kind: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    license = make_license(at=now - timedelta(days=1))
    machine = activations.activate(license=license, fingerprint="f" * 20, by=BY, at=now, public_key=b"k" * 32)
    with Redis() as server:
        settings.REDIS_URL = server.url() if kind == "redis" else ""
        feed.forget()
        if kind == "redis":
            feed.call("SET", f"{settings.REDIS_KEY_PREFIX}:nonces:epoch", 1)
        said: list[str] = []
        ready = threading.Barrier(20)

        def replay() -> None:
            ready.wait()
            for _ in range(5):
                said.append(code(machine.activation.pk, 1, nonce="captured-request"))
            connection.close()

        threads = [threading.Thread(target=replay) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    feed.forget()
    assert Counter(said) == {"ok": 1, "request_replayed": 99}


# --- from one memory to the other -------------------------------------------------------------------


def test_it_refuses_for_a_moment_after_redis_lost_everything(
    machine: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonces, "GAP_SECONDS", 1.2)
    with Redis() as server:
        settings.REDIS_URL = server.url()
        feed.forget()
        feed.call("SET", f"{settings.REDIS_KEY_PREFIX}:nonces:epoch", 1)
        assert [code(machine, 1), code(machine, 2)] == ["ok", "ok"]

        feed.call("FLUSHALL")

        assert [code(machine, 2), code(machine, 3)] == ["unavailable", "unavailable"]
        assert stamps.flush() == 1  # what a process does within the gap
        threading.Event().wait(1.3)
        assert [code(machine, 2), code(machine, 1), code(machine, 3)] == ["counter_stale", "counter_stale", "ok"]
    feed.forget()


def test_it_changes_over_to_the_database_and_back_without_accepting_anything_twice(
    machine: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonces, "GAP_SECONDS", 0.6)
    monkeypatch.setattr(nonces, "LOOKS_SECONDS", 0.1)
    monkeypatch.setattr(nonces, "REMEMBERED_SECONDS", 1)
    monkeypatch.setattr(feed, "_AGAIN_SECONDS", 0.05)
    with Redis() as server:
        here = server.url()
        settings.REDIS_URL = here
        feed.forget()
        feed.call("SET", f"{settings.REDIS_KEY_PREFIX}:nonces:epoch", 1)
        assert [code(machine, 1), code(machine, 2)] == ["ok", "ok"]

        settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"  # cut off: the other keeps what it remembers
        assert code(machine, 3) == "unavailable"
        threading.Event().wait(0.7)
        nonces.look()
        assert [code(machine, 2), code(machine, 3)] == ["counter_stale", "ok"]
        assert RequestNonce.objects.count() == 1
        # A process that still has Redis looks for the marker, and uses the database with the others.
        settings.REDIS_URL = here
        feed.forget()
        monkeypatch.setattr(nonces, "_memory", nonces._Memory())
        assert [code(machine, 3), code(machine, 4)] == ["request_replayed", "ok"]
        assert RequestNonce.objects.count() == 2

        threading.Event().wait(1.2)
        assert code(machine, 5) in ("unavailable", "ok")
        threading.Event().wait(0.7)
        nonces.look()

        assert [code(machine, counter) for counter in (2, 3, 4)] == ["counter_stale"] * 3
        assert code(machine, 6) == "ok"
        assert RequestNonce.objects.filter(counter=6).count() == 0
    feed.forget()


def test_it_refuses_when_neither_memory_answers(machine: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import DatabaseError

    def away(*_: Any, **__: Any) -> None:
        raise DatabaseError("away")

    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    feed.forget()
    monkeypatch.setattr(nonces.JobState.objects, "get_or_create", away)

    assert code(machine, 1) == "unavailable"
    feed.forget()


# --- stamps -----------------------------------------------------------------------------------------


def test_it_writes_stamps_in_a_batch_and_only_upwards(machine: Any) -> None:
    at = timezone.now()
    stamps.seen(machine, at, 7)
    stamps.seen(machine, at - timedelta(hours=1), 3)

    assert stamps.flush() == 1

    row = Activation.objects.get(pk=machine)
    assert (row.last_seen_at, row.counter_floor) == (at, 7)
    stamps.seen(machine, at - timedelta(days=1), 2)
    stamps.flush()
    row.refresh_from_db()
    assert (row.last_seen_at, row.counter_floor) == (at, 7)


def test_it_keeps_stamps_that_cannot_be_written(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import OperationalError

    write = stamps._write

    def away(rows: Any) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(stamps, "_write", away)
    monkeypatch.setattr(connection, "close", lambda: None)
    stamps.seen(machine, timezone.now(), 9)
    assert stamps.flush() == 0
    monkeypatch.setattr(stamps, "_write", write)

    assert stamps.flush() == 1
    assert Activation.objects.get(pk=machine).counter_floor == 9
