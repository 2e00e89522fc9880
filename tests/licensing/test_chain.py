"""The audit chain: every committed entry gets one number, without gaps, whoever commits when and whoever chains."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.utils import timezone

from licensing import audit, background, chain, guards, sweeps
from licensing.models import AuditCheckpoint, AuditEntry, AuditLink, AuditWaiting, JobState
from tests.factories import AT, BY, make_customer, make_license

HALF = timedelta(seconds=0.5)
LATER = AT + timedelta(hours=1)


def write(count: int = 1, *, customer: Any = None) -> list[AuditEntry]:
    """Write entries and nothing else."""
    on = customer or make_customer()
    with transaction.atomic():
        return [
            audit.record(action="test.happened", by=BY, on=on, at=AT, after={"n": number, "x": HALF, "words": "ü…"})
            for number in range(count)
        ]


def chained() -> list[tuple[int, Any]]:
    return list(AuditLink.objects.order_by("number").values_list("number", "entry_id"))


@pytest.mark.django_db
def test_it_numbers_entries_without_gaps_in_the_order_they_were_made():
    make_license()
    made = list(AuditEntry.objects.order_by("id").values_list("id", flat=True))

    linked = chain.turn(at=AT)

    assert linked == len(made)
    assert chained() == list(enumerate(made, start=1))
    assert not AuditWaiting.objects.exists()
    assert chain.turn(at=AT) == 0


@pytest.mark.django_db
def test_it_hashes_as_the_documents_say():
    """Written again from docs/audit.md, with nothing of ours."""
    import hashlib
    import json

    entry = write()[0]
    chain.turn(at=AT)

    before = bytes(32)
    for link in AuditLink.objects.order_by("number"):
        row = AuditEntry.objects.get(pk=link.entry_id)
        said = {"form": 2}
        for field in AuditEntry._meta.concrete_fields:
            value = getattr(row, field.attname)
            if field.get_internal_type() == "DateTimeField":
                value = value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            elif field.get_internal_type() == "UUIDField" and value is not None:
                value = str(value)
            said[field.column] = value
        content = hashlib.sha256(b"\0" + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).digest()
        before = hashlib.sha256(b"\2" + before + content).digest()
        assert (bytes(link.content_hash), bytes(link.chain_hash)) == (content, before)
    assert entry.pk == link.entry_id


def test_it_hashes_every_column_of_an_entry():
    """A new column needs a new form in `chain.FORMS`; the former ones stay as they are."""
    columns = [field.attname for field in AuditEntry._meta.concrete_fields]

    assert sorted(chain.FORMS[chain.FORM]) == sorted(columns)
    assert chain.GONE not in chain.FORMS


@pytest.mark.django_db
def test_it_takes_every_batch(monkeypatch):
    monkeypatch.setattr(chain, "BATCH", 7)
    write(40)

    chain.turn(at=AT)

    assert [number for number, _ in chained()] == list(range(1, AuditEntry.objects.count() + 1))


@pytest.mark.django_db(transaction=True)
def test_it_takes_what_was_written_before_there_was_a_chain():
    entries = {entry.pk for entry in write(5)}
    AuditWaiting.objects.all().delete()

    chain.turn(at=AT)
    later = write(1)[0].pk
    AuditWaiting.objects.all().delete()  # past the trigger, now that there is a chain
    chain.turn(at=AT)

    assert entries < {entry for _, entry in chained()}
    assert later not in {entry for _, entry in chained()}


@pytest.mark.django_db(transaction=True)
def test_it_is_not_stopped_by_what_is_noted_wrongly():
    customer = make_customer()
    entry = write(1, customer=customer)[0]
    chain.turn(at=AT)
    size = len(chained())
    nobody = UUID("00000000-0000-7000-8000-000000000000")
    AuditWaiting.objects.bulk_create([AuditWaiting(entry_id=entry.pk), AuditWaiting(entry_id=nobody)])
    more = write(1, customer=customer)[0]

    chain.turn(at=AT)

    assert chained()[size:] == [(size + 1, nobody), (size + 2, more.pk)]
    assert AuditLink.objects.get(form=chain.GONE).entry_id == nobody
    assert not AuditWaiting.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_entry_that_is_taken_back_leaves_no_gap():
    customer = make_customer()
    write(2, customer=customer)
    with pytest.raises(RuntimeError), transaction.atomic():
        write(3, customer=customer)
        raise RuntimeError
    last = write(1, customer=customer)[0]

    chain.turn(at=AT)

    assert chained()[-1] == (AuditEntry.objects.count(), last.pk)


failures: list[BaseException] = []


@pytest.fixture(autouse=True)
def no_thread_fails():
    failures.clear()
    yield
    assert failures == []


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_it_does_not_pass_by_an_entry_that_commits_late():
    """Its id is older than those of entries that have their number by then."""
    customer = make_customer()
    chain.turn(at=AT)
    wrote, go = threading.Event(), threading.Event()
    late: list[Any] = []

    def slowly() -> None:
        with transaction.atomic():
            late.append(audit.record(action="test.late", by=BY, on=customer, at=AT).pk)
            wrote.set()
            assert go.wait(20)

    thread = in_thread(slowly)
    assert wrote.wait(20)
    quick = [entry.pk for entry in write(3, customer=customer)]
    chain.turn(at=AT)
    before = [entry for _, entry in chained()]
    go.set()
    thread.join()
    waited = chain.lag(at=timezone.now())
    chain.turn(at=AT)

    assert before[-3:] == quick
    assert late[0] < min(quick)
    assert late[0] not in before
    assert waited > timedelta()
    assert chained()[-1] == (len(before) + 1, late[0])


@pytest.mark.django_db(transaction=True)
def test_writers_and_several_sequencers_at_once_leave_one_chain():
    customer = make_customer()
    done = threading.Event()

    def writes() -> None:
        for _ in range(25):
            write(2, customer=customer)

    def chains() -> None:
        while not done.is_set():
            chain.turn(at=timezone.now())

    writers = [in_thread(writes) for _ in range(4)]
    sequencers = [in_thread(chains) for _ in range(4)]
    for thread in writers:
        thread.join()
    done.set()
    for thread in sequencers:
        thread.join()
    chain.turn(at=timezone.now())

    numbers, entries = zip(*chained(), strict=True)
    assert numbers == tuple(range(1, AuditEntry.objects.count() + 1))
    assert set(entries) == set(AuditEntry.objects.values_list("id", flat=True))
    before = chain.START
    for content, stands in AuditLink.objects.order_by("number").values_list("content_hash", "chain_hash"):
        before = chain.chain_hash(before, bytes(content))
        assert bytes(stands) == before


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_it_leaves_the_chain_to_another_that_is_at_it():
    write(1)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            chain.alone(wait=True)
            held.set()
            assert go.wait(20)

    thread = in_thread(hold)
    assert held.wait(20)
    meanwhile = chain.turn(at=AT)
    go.set()
    thread.join()

    assert meanwhile == 0
    assert chain.turn(at=AT) > 0


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_writers_do_not_wait_for_the_chain():
    customer = make_customer()
    held, go = threading.Event(), threading.Event()

    def sequence() -> None:
        with transaction.atomic():
            assert chain.link()
            held.set()
            assert go.wait(20)

    thread = in_thread(sequence)
    assert held.wait(20)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '500ms'")
        write(3, customer=customer)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
        go.set()
        thread.join()

    assert AuditWaiting.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_a_process_that_writes_chains_by_itself_within_two_seconds(loose):
    """Also where no worker runs."""
    write(3)
    until = timezone.now() + timedelta(seconds=2)

    while timezone.now() < until and AuditWaiting.objects.exists():
        threading.Event().wait(0.05)

    assert not AuditWaiting.objects.exists()
    assert len(chained()) == AuditEntry.objects.count()


@pytest.mark.django_db(transaction=True)
def test_its_thread_asks_nothing_while_its_process_writes_nothing(django_assert_num_queries):
    make_customer()
    chain.sequencing.work()
    again = chain.sequencing.work()

    with django_assert_num_queries(0):
        idle = chain.sequencing.work()

    assert (again, idle) == (False, False)
    assert any(each is chain.sequencing for each in background._all)


@pytest.mark.django_db(transaction=True)
def test_its_thread_comes_back_to_what_it_could_not_link(monkeypatch):
    make_customer()

    def broken(**_: Any) -> int:
        raise DatabaseError("away")

    with monkeypatch.context() as away, pytest.raises(DatabaseError):
        away.setattr(chain, "link", broken)
        chain.sequencing.work()

    chain.sequencing.work()

    assert len(chained()) == AuditEntry.objects.count()


@pytest.mark.django_db
def test_it_shows_its_lag():
    entry = write(1)[0]
    made = chain.ids.made_at(AuditEntry.objects.order_by("id").values_list("id", flat=True)[0])

    behind = chain.standing(at=made + timedelta(seconds=7))
    chain.turn(at=LATER)
    after = chain.standing(at=LATER)

    assert (behind.size, behind.lag) == (0, timedelta(seconds=7))
    assert (after.size, after.lag) == (AuditEntry.objects.count(), timedelta())
    assert abs(made - timezone.now()) < timedelta(minutes=5)
    assert chain.number_of(entry.pk) == after.size


@pytest.mark.django_db
def test_each_second_costs_two_questions_when_there_is_nothing_to_do(django_assert_max_num_queries):
    write(1)
    at = timezone.now()
    assert sweeps.chain_now(at=at) > 0
    sweeps.chain_now(at=at)
    ran = JobState.objects.get(name="audit-chain").last_started_at

    with django_assert_max_num_queries(4):
        done = sweeps.chain_now(at=at + timedelta(seconds=1))

    assert (done, JobState.objects.get(name="audit-chain").last_started_at) == (0, ran)
    sweeps.chain_now(at=at + timedelta(seconds=11))
    assert JobState.objects.get(name="audit-chain").last_started_at > ran


@pytest.mark.django_db(transaction=True)
def test_its_tables_only_grow():
    write(1)
    chain.turn(at=AT)
    from licensing import checkpoints

    checkpoints.make(at=AT, asked=True)

    for change in (
        lambda: AuditLink.objects.update(chain_hash=b"x"),
        lambda: AuditLink.objects.all()._raw_delete(using="default"),
        lambda: AuditCheckpoint.objects.update(size=7),
        lambda: AuditCheckpoint.objects.all()._raw_delete(using="default"),
    ):
        with pytest.raises(DatabaseError, match=r"never (changes|deleted)"), transaction.atomic():
            change()


def test_the_note_is_one_of_the_guards():
    noted = [guard for guard in guards.expected() if guard.does]

    assert [guard.table for guard in noted] == ["licensing_auditentry"]
