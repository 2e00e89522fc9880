"""Validation, the fast path: find the snapshot, decide, record a refusal.

It knows no HTTP and signs nothing: that is `gate`.
"""

from datetime import datetime
from uuid import UUID

import msgspec

from licensing import decisions, keys, snapshots
from licensing.credentials import Caller
from licensing.decision import Scope, Snapshot, Verdict, decide
from licensing.errors import Unauthenticated


class Validated(msgspec.Struct, frozen=True):
    """A verdict, with the snapshot it was made from (None when the caller may not know of any)."""

    verdict: Verdict
    snapshot: Snapshot | None


def by_key_holder(*, key_digests: list[bytes], scope: Scope, request_id: str, at: datetime) -> Validated:
    """Return the verdict for whoever holds the key with these digests.

    Raises:
        Unauthenticated: no license has such a key, or not any more.
    """
    snapshot, scope = snapshots.by_key(key_digests, scope)
    if snapshot is None:
        raise Unauthenticated("The license key is not accepted.")
    return _decided(snapshot, scope, caller=f"license:{snapshot.license_id}", request_id=request_id, at=at)


def by_credential(
    *, caller: Caller, license_key: str | None, license_id: UUID | None, scope: Scope, at: datetime
) -> Validated:
    """Return the verdict a server asks for by key or id. A license of another customer is as if it were not there.

    Raises:
        Mistyped: the key's checksum does not fit; no database was asked.
    """
    if license_key is not None:
        snapshot, scope = snapshots.by_key(keys.digests(license_key), scope)
    elif license_id is not None:
        snapshot, scope = snapshots.by_id(license_id, scope)
    else:
        snapshot = None
    other_id = license_id is not None and snapshot is not None and snapshot.license_id != str(license_id)
    foreign = (
        caller.customer_id is not None and snapshot is not None and snapshot.customer_id != str(caller.customer_id)
    )
    if other_id or foreign:
        snapshot = None
    return _decided(snapshot, scope, caller=f"credential:{caller.id}", request_id=caller.request_id, at=at)


def verdict_for_staff(*, license_id: UUID, at: datetime) -> Validated:
    """Return the verdict without a scope, as support wants to see it. Records nothing."""
    snapshot, scope = snapshots.by_id(license_id, Scope())
    return Validated(decide(snapshot, scope, at), snapshot)


def _decided(snapshot: Snapshot | None, scope: Scope, *, caller: str, request_id: str, at: datetime) -> Validated:
    verdict = decide(snapshot, scope, at)
    if not verdict.valid:
        decisions.remember(
            request_id=request_id,
            at=at,
            license_id=UUID(snapshot.license_id) if snapshot else None,
            caller=caller,
            code=verdict.code,
            looked_at=verdict.looked_at,
        )
    return Validated(verdict, snapshot)
