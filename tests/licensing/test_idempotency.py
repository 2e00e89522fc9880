"""Repeated requests: answered from the record, never done twice; what failed is not kept."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction

from licensing import customers, idempotency
from licensing.errors import Invalid
from licensing.idempotency import KEPT, KeyReused
from licensing.models import Customer, IdempotencyRecord
from tests.factories import AT, BY

pytestmark = pytest.mark.django_db
TICK = timedelta(microseconds=1)


class Act:
    """Makes a customer and answers; counts how often it was called."""

    def __init__(self, code="acme", status=201, error=None):
        self.code, self.status, self.error, self.calls = code, status, error, 0

    def __call__(self):
        self.calls += 1
        customers.create(code=self.code, name="Acme", by=BY, at=AT)
        if self.error:
            raise self.error
        return self.status, b'{"secret": "lsk_shown-once"}'


def once(act, **overrides):
    return idempotency.once(
        **{"principal": "credential-1", "key": "key-1", "request": b"POST /x {}", "at": AT, "act": act} | overrides
    )


def test_it_answers_a_repeated_request_without_doing_it_again():
    act = Act()

    first, second = once(act), once(act, at=AT + timedelta(hours=23))

    assert (first.status, first.body, first.replayed) == (201, b'{"secret": "lsk_shown-once"}', False)
    assert (second.status, second.body, second.replayed) == (201, first.body, True)
    assert act.calls == 1
    assert Customer.objects.count() == 1


@pytest.mark.parametrize("request_", [b"POST /x {} ", b"", b"POST /y {}", b"post /x {}"])
def test_it_refuses_the_key_for_another_request(request_):
    once(Act())
    other = Act("globex")

    with pytest.raises(KeyReused) as refused:
        once(other, request=request_)

    assert refused.value.code == "idempotency_key_reused"
    assert other.calls == 0


def test_it_keeps_principals_and_keys_apart():
    once(Act("a"))

    assert not once(Act("b"), principal="credential-2").replayed
    assert not once(Act("c"), key="key-2").replayed
    assert not once(Act("d"), key="KEY-1").replayed
    assert Customer.objects.count() == 4


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500])
def test_it_keeps_no_refusal_and_undoes_what_was_done(status):
    refused = once(Act(status=status))

    again = once(Act(status=201))

    assert (refused.status, refused.replayed) == (status, False)
    assert (again.status, again.replayed) == (201, False)
    assert Customer.objects.count() == 1


def test_it_keeps_nothing_when_the_act_breaks():
    with pytest.raises(ZeroDivisionError):
        once(Act(error=ZeroDivisionError()))

    assert not IdempotencyRecord.objects.exists()
    assert not Customer.objects.exists()
    assert once(Act()).replayed is False


def test_it_hands_on_a_constraint_that_the_act_ran_into():
    def act():
        Customer.objects.create(code="acme", name="one", created_at=AT)
        Customer.objects.create(code="acme", name="two", created_at=AT)
        return 201, b""

    with pytest.raises(IntegrityError):
        once(act)

    assert not IdempotencyRecord.objects.exists()
    assert not Customer.objects.exists()


def test_it_writes_effect_and_record_together_or_not_at_all():
    with pytest.raises(RuntimeError), transaction.atomic():
        once(Act())
        raise RuntimeError("the caller breaks after the answer")

    assert not Customer.objects.exists()
    assert not IdempotencyRecord.objects.exists()


def test_it_undoes_the_effect_when_the_answer_cannot_be_sealed(settings):
    from licensing import crypto

    settings.KEYRING, settings.KEYRING_FILE = "", ""
    crypto.forget()
    try:
        with pytest.raises(crypto.KeyRingError):
            once(Act())
    finally:
        crypto.forget()

    assert not Customer.objects.exists()
    assert not IdempotencyRecord.objects.exists()


def test_it_answers_for_24_hours_and_not_an_instant_longer():
    once(Act("a"))

    assert once(Act("b"), at=AT + KEPT - TICK).replayed
    assert not once(Act("b"), at=AT + KEPT).replayed
    assert Customer.objects.count() == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "größe", "a\nb", "\x00", "a\x7f", "🔑"])
def test_it_refuses_a_key_that_is_none(key):
    act = Act()

    with pytest.raises(Invalid):
        once(act, key=key)

    assert act.calls == 0


@pytest.mark.parametrize("key", ["x", "x" * 255, "a b", "0198f2a0-0000-7000-8000-000000000001", "!~"])
def test_it_takes_any_other_key(key):
    assert once(Act(), key=key).status == 201


def test_it_seals_the_answer_and_keeps_neither_key_nor_request():
    once(Act(), key="a-key-of-theirs", request=b"a body of theirs")

    kept = repr(vars(IdempotencyRecord.objects.get()))

    for shown in ("lsk_shown-once", "a-key-of-theirs", "a body of theirs"):
        assert shown not in kept


def test_it_does_not_open_an_answer_moved_to_another_record():
    from licensing.crypto import NotAuthentic

    once(Act("a"))
    once(Act("b"), key="key-2")
    one, two = IdempotencyRecord.objects.order_by("id")
    IdempotencyRecord.objects.filter(pk=two.pk).update(sealed_answer=one.sealed_answer)

    with pytest.raises(NotAuthentic):
        once(Act("b"), key="key-2")


def test_it_forgets_what_is_over_and_at_most_so_many():
    for number in range(5):
        once(Act(f"a{number}"), key=f"old-{number}")
    once(Act("new"), key="new", at=AT + TICK)

    assert idempotency.forget(at=AT + KEPT, limit=2) == 2
    assert idempotency.forget(at=AT + KEPT) == 3
    assert IdempotencyRecord.objects.count() == 1
