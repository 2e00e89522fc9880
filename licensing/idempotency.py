"""A repeated request is answered, not done again.

The record is inserted in the transaction of the effect: a second request with the same key waits for the first
on the unique constraint (on SQLite for the write lock), then reads its answer. An answer that refuses is not
kept, for nothing was changed; the client may try again. Answers are sealed, for some hold a secret.
Source: CONTRACT "Idempotency-Key".
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import orjson
from django.db import IntegrityError, transaction

from licensing import crypto
from licensing.crypto import Place
from licensing.errors import Invalid, LicensingError
from licensing.ids import uuid7
from licensing.models import IdempotencyRecord

KEPT = timedelta(hours=24)
LONGEST = 255


class KeyReused(LicensingError):
    """This Idempotency-Key was used before, for another request. Take a new key for a new request."""

    code = "idempotency_key_reused"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: HTTP status, body, and whether it is the stored answer of an earlier request."""

    status: int
    body: bytes
    replayed: bool = False


class _NotKept(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def once(*, principal: str, key: str, request: bytes, at: datetime, act: Callable[[], tuple[int, bytes]]) -> Answer:
    """Return what `act` answers, or what it answered when this principal sent this key before.

    `act` runs inside the transaction of the record; an answer of 400 or more rolls it back and is not kept.

    Raises:
        KeyReused: the key came with another request before.
        Invalid: the key is empty, over-long or not printable.
    """
    if not 0 < len(key) <= LONGEST or not key.isascii() or not key.isprintable():
        raise Invalid("An Idempotency-Key has 1 to 255 printable ASCII characters.", pointer="/Idempotency-Key")
    key_digest = hashlib.sha256(key.encode()).digest()
    request_digest = hashlib.sha256(request).digest()
    mine = IdempotencyRecord.objects.filter(principal=principal, key_digest=key_digest)
    mine.filter(expires_at__lte=at).delete()
    stored = mine.first()
    if stored is None:
        try:
            return _first_time(principal, key_digest, request_digest, at, act)
        except IntegrityError:
            stored = mine.first()
            if stored is None:
                raise  # not ours: a constraint that `act` ran into
        except _NotKept as refused:
            return refused.answer
    if bytes(stored.request_digest) != request_digest:
        raise KeyReused()
    status, body = orjson.loads(crypto.unseal(stored.sealed_answer, _place(stored)))
    return Answer(status=status, body=body.encode(), replayed=True)


def _first_time(
    principal: str,
    key_digest: bytes,
    request_digest: bytes,
    at: datetime,
    act: Callable[[], tuple[int, bytes]],
) -> Answer:
    record = IdempotencyRecord(
        id=uuid7(),
        created_at=at,
        principal=principal,
        key_digest=key_digest,
        request_digest=request_digest,
        expires_at=at + KEPT,
    )
    with transaction.atomic():
        record.save(force_insert=True)
        status, body = act()
        if status >= 400:
            raise _NotKept(Answer(status=status, body=body))
        record.sealed_answer = crypto.seal(orjson.dumps([status, body.decode()]), _place(record))
        record.save(update_fields=["sealed_answer"])
    return Answer(status=status, body=body)


def forget(*, at: datetime, limit: int = 10_000) -> int:
    """Delete answers past their 24 hours, at most `limit`; return how many."""
    old = IdempotencyRecord.objects.filter(expires_at__lte=at).values_list("id", flat=True)[:limit]
    return IdempotencyRecord.objects.filter(id__in=list(old)).delete()[0]


def _place(record: IdempotencyRecord) -> Place:
    return Place(IdempotencyRecord._meta.db_table, str(record.pk), "sealed_answer")
