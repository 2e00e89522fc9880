"""Kept pictures: believed while they count, never brought back, and no way to make a license valid."""

import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from licensing import activations, anomalies, feed, keys, lifecycle, pictures, proofs, seats, snapshots, validation
from licensing.credentials import Caller
from licensing.decision import Scope
from licensing.errors import Unavailable
from licensing.models import Anomaly, License
from licensing.pictures import Question
from tests.factories import BY, make_license, make_license_and_key, make_plan, make_revision
from tests.servers import Redis, free_port

pytestmark = pytest.mark.django_db


@pytest.fixture
def near(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """A private Redis whose feed this process follows, as far as the tests say."""
    with Redis() as server:
        settings.REDIS_URL = server.url()
        feed.forget()
        monkeypatch.setattr(feed, "follow", lambda: None)
        monkeypatch.setattr(feed, "_heard_at", time.monotonic() + 3600)
        yield server
    feed.forget()


@pytest.fixture
def license(db: None) -> License:
    return make_license(at=timezone.now() - timedelta(days=1), seat_limit=5)


def source(license: License, **asked: Any) -> str:
    found = snapshots.by_id(license.pk, Scope(**asked))
    assert found is not None
    if found.source != "outage":
        snapshots.by_id(license.pk, Scope(**asked))  # what is asked about twice is shared
    snapshots.share()
    return found.source


def forget_here() -> None:
    for kept in feed._everything:
        kept.clear()


def test_it_reads_once_and_then_remembers(near: Redis, license: License, django_assert_num_queries: Any) -> None:
    assert source(license) == "database"

    with django_assert_num_queries(0):
        assert source(license) == "memory"
        forget_here()
        assert source(license) == "redis"
        assert source(license) == "memory"


def test_it_keeps_one_second_without_redis(settings: Any, license: License, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REDIS_URL = ""
    assert [source(license), source(license)] == ["database", "memory"]
    assert feed.fresh_seconds() <= 1.0
    monkeypatch.setattr(feed, "FRESH_ALONE_SECONDS", 0.05)
    time.sleep(0.06)

    assert source(license) == "database"


def test_it_believes_nothing_kept_while_the_feed_is_silent(
    near: Redis, license: License, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(license)
    monkeypatch.setattr(feed, "_heard_at", time.monotonic() - feed.ALIVE_SECONDS - 0.1)

    assert source(license) == "redis"


def test_it_asks_the_database_while_redis_is_away(
    near: Redis, license: License, settings: Any, monkeypatch: Any
) -> None:
    source(license)
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setattr(feed, "_heard_at", float("-inf"))

    assert [source(license), source(license)] == ["database", "database"]
    assert anomalies._later[0]["rule"] == "redis_away"


CHANGES: list[tuple[str, Any]] = [
    ("hold", lambda row, at: lifecycle.hold(license=row, reason="staff", by=BY, at=at)),
    ("lift", lambda row, at: lifecycle.lift(license=row, reason="abuse", by=BY, at=at)),
    ("revoke", lambda row, at: lifecycle.revoke(license=row, by=BY, at=at, reason="x")),
    ("renew", lambda row, at: lifecycle.renew(license=row, by=BY, at=at, duration=timedelta(days=1))),
    ("limits", lambda row, at: lifecycle.change_limits(license=row, by=BY, at=at, seat_limit=9)),
    ("plan", lambda row, at: lifecycle.change_plan(license=row, plan_revision=_other(row), by=BY, at=at)),
    ("seat", lambda row, at: seats.assign(license=row, holder="ada@example.com", by=BY, at=at)),
    ("seat released", lambda row, at: seats.release(seat=row.seats.get(), by=BY, at=at)),
    ("seat blocked", lambda row, at: seats.block(seat=row.seats.get(), by=BY, at=at, reason="x")),
    ("machine", lambda row, at: activations.activate(license=row, fingerprint="n" * 20, by=BY, at=at)),
    ("machine gone", lambda row, at: activations.deactivate(activation=row.activations.get(), by=BY, at=at)),
    (
        "machine key",
        lambda row, at: activations.activate(license=row, fingerprint="m" * 20, by=BY, at=at, public_key=b"k" * 32),
    ),
    ("key", lambda row, at: keys.rotate(license=row, by=BY, reason="x", at=at)),
]


def _other(row: License) -> Any:
    return make_revision(plan=make_plan(product=row.product))


@pytest.mark.parametrize("change", [c for _, c in CHANGES], ids=[n for n, _ in CHANGES])
def test_it_hears_of_every_change_before_it_is_committed(change: Any, near: Redis) -> None:
    at = timezone.now()
    license = make_license(at=at - timedelta(days=1), seat_limit=5, duration=timedelta(days=30))
    seats.assign(license=license, holder="bob@example.com", by=BY, at=at)
    activations.activate(license=license, fingerprint="m" * 20, by=BY, at=at)
    lifecycle.hold(license=license, reason="abuse", by=BY, at=at) if change is CHANGES[1][1] else None
    source(license)
    forget_here()
    assert source(license) == "redis"
    before = License.objects.get(pk=license.pk).revision

    change(License.objects.get(pk=license.pk), at + timedelta(seconds=1))

    after = License.objects.get(pk=license.pk).revision
    assert after > before
    assert feed._floor(str(license.pk)) == after
    assert int(feed.call("GET", f"{_prefix()}tombstone:{license.pk}")) == after
    assert source(license) == "database"
    assert source(license) == "memory"


def _prefix() -> str:
    return snapshots._prefix()


def test_it_never_brings_an_old_state_back(near: Redis) -> None:
    """A reader reads, a change is announced and committed, and only then the reader fills the caches."""
    license = make_license(at=timezone.now() - timedelta(days=1), outage_policy="lenient")  # shared at once
    question = Question.of("id", str(license.pk), Scope())
    old = pictures.read(question)
    assert old is not None

    lifecycle.revoke(license=license, by=BY, at=timezone.now(), reason="x")
    snapshots._keep(question, old, time.monotonic())
    snapshots.share()

    found = snapshots.get(question)
    assert found is not None
    assert (found.source, found.picture.snapshot.revoked) == ("database", True)


def test_it_does_bring_it_back_without_the_tombstone(near: Redis) -> None:
    """The twin: what the tombstone is for."""
    license = make_license(at=timezone.now() - timedelta(days=1), outage_policy="lenient")
    question = Question.of("id", str(license.pk), Scope())
    old = pictures.read(question)
    assert old is not None

    lifecycle.revoke(license=license, by=BY, at=timezone.now(), reason="x")
    feed.call("DEL", f"{_prefix()}tombstone:{license.pk}")
    feed._floors.clear()
    snapshots._keep(question, old, time.monotonic())
    snapshots.share()

    found = snapshots.get(question)
    assert found is not None
    assert not found.picture.snapshot.revoked


def test_it_keeps_a_change_that_fails_harmless(near: Redis, license: License) -> None:
    snapshots.changed(license.pk, 99)

    assert [source(license), source(license)] == ["database", "database"]


def test_it_does_not_believe_what_others_put_into_redis(near: Redis, license: License) -> None:
    other = make_license(at=timezone.now() - timedelta(days=1))
    source(license)
    source(other)
    mine, theirs = (
        f"{_prefix()}snapshot:{snapshots._name(Question.of('id', str(row.pk), Scope()))}" for row in (license, other)
    )
    value = feed.call("GET", mine)
    forged = [feed.call("GET", theirs)]
    forged += [value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :] for place in range(0, len(value), 7)]
    forged += [value[:-1], value + b"x", b"", b"x" * 200]
    for bad in forged:
        feed.call("SET", mine, bad)
        forget_here()
        found = snapshots.by_id(license.pk, Scope())
        assert found is not None
        assert (found.source, found.picture.snapshot.license_id) == ("database", str(license.pk))
    assert "snapshot_not_believed" in {waiting["rule"] for waiting in anomalies._later}


def test_it_confirms_what_is_in_use_without_reading_it_again(
    near: Redis, license: License, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    source(license)
    monkeypatch.setattr(feed, "FRESH_SECONDS", 0.4)
    time.sleep(0.25)
    source(license)

    with django_assert_num_queries(1):
        assert snapshots.confirm() == 1
    time.sleep(0.25)
    assert source(license) == "memory"
    License.objects.filter(pk=license.pk).update(revision=50)  # by hand: nobody is told
    time.sleep(0.25)
    snapshots.confirm()
    time.sleep(0.2)
    assert source(license) in ("database", "redis")


def test_it_confirms_without_redis_what_is_in_use(
    settings: Any, license: License, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL = ""
    monkeypatch.setattr(feed, "FRESH_ALONE_SECONDS", 0.4)
    source(license)
    time.sleep(0.25)

    assert snapshots.confirm() == 1
    time.sleep(0.25)
    assert source(license) == "memory"

    License.objects.filter(pk=license.pk).update(revision=50)  # by another process
    time.sleep(0.25)
    snapshots.confirm()
    time.sleep(0.2)
    assert source(license) == "database"


def test_it_lets_go_of_what_is_not_asked_about(
    settings: Any, license: License, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL = ""
    monkeypatch.setattr(feed, "FRESH_ALONE_SECONDS", 0.1)
    monkeypatch.setattr(feed, "IN_USE_SECONDS", 0.2)
    source(license)
    time.sleep(0.25)

    assert snapshots.confirm() == 0


def test_it_reads_the_terms_of_a_published_plan_revision_once(django_assert_num_queries: Any) -> None:
    first = make_license(at=timezone.now() - timedelta(days=1))
    second = make_license(at=timezone.now() - timedelta(days=1), plan_revision=first.plan_revision)

    with django_assert_num_queries(2):
        pictures.read(Question.of("id", str(first.pk), Scope()))
    with django_assert_num_queries(1):
        pictures.read(Question.of("id", str(second.pk), Scope()))


@pytest.mark.django_db(transaction=True)
def test_it_reads_on_by_a_new_connection_when_its_own_is_cut() -> None:
    """Without a word from the server: what a failover, or a proxy that closes what is idle, looks like."""
    license = make_license(at=timezone.now() - timedelta(days=1))
    question = Question.of("id", str(license.pk), Scope())
    pictures.read(question)
    if connection.vendor == "postgresql":
        driver: Any = connection.connection
        with socket.socket(fileno=os.dup(driver.pgconn.socket)) as cut:
            cut.shutdown(socket.SHUT_RDWR)
    else:
        connection.close()

    found = pictures.read(question)

    assert found is not None
    assert found.snapshot.license_id == str(license.pk)


def test_it_keeps_nothing_that_was_read_before_the_feed_was_lost(
    near: Redis, license: License, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question.of("id", str(license.pk), Scope())
    old, read_at = pictures.read(question), time.monotonic()
    assert old is not None
    monkeypatch.setattr(feed, "_followed_since", time.monotonic())

    snapshots._keep(question, old, read_at)

    assert source(license) == "database"


def test_it_reads_whole_what_was_confirmed_for_long(
    settings: Any, license: License, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL = ""
    monkeypatch.setattr(feed, "FRESH_ALONE_SECONDS", 0.2)
    monkeypatch.setattr(feed, "OLDEST_SECONDS", 0.15)
    source(license)
    time.sleep(0.16)

    assert snapshots.confirm() == 0


def test_it_asks_redis_seldom_while_redis_knows_nothing(near: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(snapshots, "_GET", lambda keys, *_: asked.append(keys))
    nowhere = [Question.of("id", f"00000000-0000-7000-8000-{number:012d}", Scope()) for number in range(96)]

    for question in nowhere:
        assert snapshots.get(question) is None

    assert len(asked) == 32 + 64 // 64


def test_it_asks_redis_again_once_redis_has_known_something(near: Redis, license: License) -> None:
    source(license)
    forget_here()
    snapshots._misses = 128  # one of those that do ask

    assert source(license) == "redis"

    assert snapshots._misses == 0


def test_it_announces_later_what_redis_did_not_hear(near: Redis, license: License, settings: Any) -> None:
    here = settings.REDIS_URL
    source(license)
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    lifecycle.hold(license=license, reason="staff", by=BY, at=timezone.now())
    settings.REDIS_URL = here
    feed._mute_until = 0.0

    assert feed.say_again() == 1

    revision = License.objects.get(pk=license.pk).revision
    assert int(feed._patient(here).get(f"{_prefix()}tombstone:{license.pk}")) == revision
    assert feed.say_again() == 0


# --- the database away ------------------------------------------------------------------------------


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Any:
    def take_away() -> None:
        def gone(question: Any) -> None:
            raise OperationalError("gone")

        monkeypatch.setattr(pictures, "_row", gone)
        monkeypatch.setattr(feed, "FRESH_SECONDS", -1.0)
        monkeypatch.setattr(feed, "FRESH_ALONE_SECONDS", -1.0)

    return take_away


@pytest.mark.parametrize("where", ["memory", "redis"])
def test_it_answers_from_the_last_known_state_where_the_plan_allows(where: str, near: Redis, away: Any) -> None:
    at = timezone.now()
    license = make_license(at=at - timedelta(days=1), outage_policy="lenient", outage_tolerance=timedelta(hours=1))
    source(license)
    away()
    if where == "redis":
        forget_here()

    assert source(license) == "outage"

    assert "database_away" in {waiting["rule"] for waiting in anomalies._later}


def test_it_answers_nothing_where_the_plan_is_strict(near: Redis, license: License, away: Any) -> None:
    source(license)
    away()

    with pytest.raises(Unavailable):
        source(license)


def test_it_answers_nothing_older_than_is_tolerated(near: Redis, away: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = timezone.now()
    license = make_license(at=at - timedelta(days=1), outage_policy="lenient", outage_tolerance=timedelta(seconds=1))
    source(license)
    away()
    assert source(license) == "outage"
    time.sleep(1.1)
    monkeypatch.setattr(pictures, "_database_again_at", 0.0)

    with pytest.raises(Unavailable):
        source(license)


def test_it_never_says_valid_of_what_was_revoked_before_the_outage(near: Redis, away: Any) -> None:
    at = timezone.now()
    license = make_license(at=at - timedelta(days=1), outage_policy="lenient")
    source(license)
    lifecycle.revoke(license=license, by=BY, at=at, reason="x")
    away()

    with pytest.raises(Unavailable):
        source(license)


# --- cached against recomputed ----------------------------------------------------------------------


def ask(key: str) -> str:
    """Return the code that a server of the vendor's is told of a key."""
    server = Caller(kind="B", id="c", label="c")
    verdict = validation.by_credential(
        caller=server, license_key=key, license_id=None, scope=Scope(), at=timezone.now()
    ).verdict
    return str(verdict.code)


def test_it_flags_a_copy_that_says_something_else_than_the_database(
    near: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "RECHECKED", 1.0)
    at = timezone.now()
    license, key = make_license_and_key(at=at - timedelta(days=1))

    assert [ask(key), ask(key)] == ["valid", "valid"]
    assert validation.recheck() == 1
    assert not Anomaly.objects.filter(rule="cached_verdict_differs").exists()

    # As a rule with a fault would: the terms change, the revision stays and nobody is told.
    license.expires_at, license.grace_until = at - timedelta(hours=1), None
    proofs.seal(license)
    license.save()
    assert ask(key) == "valid"
    assert validation.recheck() == 1

    found = Anomaly.objects.get(rule="cached_verdict_differs")
    assert (found.object_id, found.evidence["answered"], found.evidence["recomputed"]) == (
        str(license.pk),
        "valid",
        "expired",
    )


def test_it_answers_no_longer_from_a_copy_that_was_found_wrong(near: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "RECHECKED", 1.0)
    license, key = make_license_and_key(at=timezone.now() - timedelta(days=1))

    assert [ask(key), ask(key)] == ["valid", "valid"]
    License.objects.filter(pk=license.pk).update(seat_limit=500, seats_ceiling=500)  # by hand, past every rule
    assert ask(key) == "valid"

    validation.recheck()

    with pytest.raises(Unavailable):
        ask(key)


def test_it_rechecks_one_in_a_hundred() -> None:
    assert validation.RECHECKED == 0.01
