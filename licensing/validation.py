"""Validation, the fast path: find the picture, decide, record a refusal.

It knows no HTTP and signs nothing: that is `gate`. What it decides is told to who wants to hear (`live`). One in a
hundred verdicts made from a copy is made again from the database, off the request; where the two differ and no change
explains it, that is an anomaly.
"""

import random
from collections import deque
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from django.utils import timezone

from licensing import anomalies, crypto, decisions, feed, keys, live, pictures, snapshots
from licensing.background import Periodic
from licensing.credentials import Caller
from licensing.decision import Scope, Snapshot, Verdict, decide
from licensing.errors import Unavailable
from licensing.pictures import Machine, Question
from licensing.proofs import TermsAltered
from licensing.snapshots import Found
from licensing.states import Severity

RECHECKED = 0.01
# What is answered from a copy may be this much older than a change that is committed (measured: docs/reliability).
BOUND = timedelta(seconds=feed.FRESH_SECONDS + 2.0)


class Validated(msgspec.Struct, frozen=True):
    """A verdict, with the snapshot it was made from (None when the caller may not know of any).

    `degraded_seconds` is the age of a last known state that was answered from while the database is away.
    """

    verdict: Verdict
    snapshot: Snapshot | None
    activation_id: str | None = None
    degraded_seconds: float | None = None


def by_key_holder(*, found: Found, key_digests: list[bytes], scope: Scope, request_id: str, at: datetime) -> Validated:
    """Return the verdict for whoever holds the key that was found with these digests."""
    question = Question.of("key", ",".join(digest.hex() for digest in key_digests), scope)
    caller = f"license:{found.picture.snapshot.license_id}"
    return _decided(found, question, scope, caller=caller, request_id=request_id, at=at)


def by_machine(*, found: Found, machine: Machine, scope: Scope, request_id: str, at: datetime) -> Validated:
    """Return the verdict for an activated machine that has proved who it is."""
    question = Question("machine", machine.id, None, scope.seat_holder, scope.version)
    return _decided(found, question, scope, caller=f"activation:{machine.id}", request_id=request_id, at=at)


def by_credential(
    *, caller: Caller, license_key: str | None, license_id: UUID | None, scope: Scope, at: datetime
) -> Validated:
    """Return the verdict a server asks for by key or id. A license of another customer is as if it were not there.

    Raises:
        Mistyped: the key's checksum does not fit; no database was asked.
        Unavailable: the database is away, and nothing may be answered without it.
    """
    if license_key is not None:
        digests = ",".join(digest.hex() for digest in keys.digests(license_key))
        question = Question.of("key", digests, scope, caller.customer_id)
    else:
        question = Question.of("id", str(license_id), scope, caller.customer_id)
    found = snapshots.get(question)
    if found is None and license_key is not None:
        crypto.require_whole()  # with a key of the ring missing, a good one is not found either
    if found is not None and license_id is not None and found.picture.snapshot.license_id != str(license_id):
        found = None
    return _decided(found, question, scope, caller=f"credential:{caller.id}", request_id=caller.request_id, at=at)


def verdict_for_staff(*, license_id: UUID, at: datetime) -> Validated:
    """Return the verdict without a scope, as support wants to see it: from the database. Records nothing."""
    picture = pictures.read(Question.of("id", str(license_id), Scope()))
    snapshot = picture.snapshot if picture else None
    return Validated(decide(snapshot, Scope(), at), snapshot)


def _decided(
    found: Found | None, question: Question, scope: Scope, *, caller: str, request_id: str, at: datetime
) -> Validated:
    snapshot = found.picture.snapshot if found else None
    known = snapshots.scoped(found, scope) if found else scope
    verdict = decide(snapshot, known, at)
    if not verdict.valid:
        decisions.remember(
            request_id=request_id,
            at=at,
            license_id=UUID(snapshot.license_id) if snapshot else None,
            caller=caller,
            code=verdict.code,
            looked_at=verdict.looked_at,
        )
    live.attending.wake()
    if found is None:
        return Validated(verdict, None)
    if live.wanted:
        by_key = question.by == "key" and question.customer is None
        live.tell(found.picture.snapshot, live.Decided(found.picture.snapshot, known, verdict, at, by_key))
    # A version may be announced meanwhile without any license changing: such answers are not compared.
    copied = found.source in ("memory", "redis") and scope.version is None
    if copied and random.random() < RECHECKED:  # noqa: S311  a sample, no secret
        _again.append(_Answered(question, scope, verdict, found.picture.snapshot, at))
        rechecking.wake()
    picture = found.picture
    own = picture.machine.id if picture.machine else picture.facts.activation_id
    degraded = found.age_seconds if found.source == "outage" else None
    return Validated(verdict, snapshot, own if known.fingerprint_activated else None, degraded)


# --- cached against recomputed ----------------------------------------------------------------------


class _Answered(msgspec.Struct, frozen=True):
    question: Question
    scope: Scope
    verdict: Verdict
    snapshot: Snapshot
    at: datetime


_again: deque[_Answered] = deque(maxlen=1_000)


def recheck() -> int:
    """Make the sampled verdicts again from the database; flag those that differ without a reason. Return how many."""
    done = 0
    while _again:
        answered = _again.popleft()
        try:
            picture = pictures.read(answered.question)
        except TermsAltered:  # said where it was noticed; the copy must not go on answering
            feed.announce(answered.snapshot.license_id)
            continue
        except Unavailable:  # said where it was noticed
            return done
        done += 1
        if picture is None:
            current = decide(None, answered.scope, answered.at)
            changed_at = None
        else:
            known = snapshots.scoped(Found(picture, "database"), answered.scope)
            current = decide(picture.snapshot, known, answered.at)
            changed_at = picture.snapshot.updated_at
        same_row = picture is not None and picture.snapshot.revision == answered.snapshot.revision
        late = changed_at is not None and changed_at < answered.at - BOUND
        if current.code != answered.verdict.code and (same_row or late):
            feed.announce(answered.snapshot.license_id)
            anomalies.flag(
                rule="cached_verdict_differs",
                severity=Severity.CRITICAL,
                object_kind="license",
                object_id=answered.snapshot.license_id,
                license_id=UUID(answered.snapshot.license_id),
                at=timezone.now(),
                evidence={
                    "answered": str(answered.verdict.code),
                    "recomputed": str(current.code),
                    "answered_revision": answered.snapshot.revision,
                    "revision": picture.snapshot.revision if picture else None,
                },
            )
    return done


rechecking = Periodic("recheck", 1.0, recheck)
