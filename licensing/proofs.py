"""The proof that a license's terms were written by the rules: a keyed digest over limits, dates and state.

Whoever can write into the database but does not hold the key ring cannot raise a limit, move an expiry, lift a hold or
undo a revocation unseen: the proof no longer fits, and every read of the license fails until a person has looked.

What counts up and down by itself (seats and machines in use, the revision) is not in it; nor are the plan revision's
own rows, which `guards` keep. A row put back whole, with the proof it had then, is not noticed here.

Source: reference design T13 "signed licence terms (row MAC over limits/expiry)".
"""

import hmac
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import structlog
from django.utils import timezone

from licensing import anomalies, crypto
from licensing.decision import Snapshot
from licensing.errors import Unavailable
from licensing.models import Hold, License
from licensing.states import Severity

log = structlog.get_logger(__name__)

RULE = "license_terms_altered"
KIND = "license-terms"


class TermsAltered(Unavailable):
    """This license cannot be answered for until its vendor has looked at it."""


def seal(license: License, *, holds: list[str] | None = None) -> None:
    """Set the license's proof to what its terms are now; whoever changes terms does so before saving.

    The caller holds the row's lock, and has called `check` on it before it changed anything: else what somebody wrote
    past the rules would be proved with the rest. `holds` are the reasons of its open holds, looked up unless given.

    Raises:
        KeyRingIncomplete: a key of the ring is missing; nothing is changed meanwhile.
    """
    crypto.require_whole()
    license.terms_kid, license.terms_mac = crypto.digest(_said(license, holds), kind=KIND)


def seal_as_before(license: License, *, kid: Any, mac: bytes | None) -> None:
    """Put a former proof back where the terms are again those it is of, to the byte; else prove them anew."""
    crypto.require_whole()
    if kid and mac and _fits(_said(license), kid, mac):
        license.terms_kid, license.terms_mac = kid, mac
    else:
        seal(license)


def check(license: License) -> None:
    """Raise `TermsAltered` unless the terms are as a rule wrote them. The caller holds the row's lock."""
    if not stand(license):
        raise _altered(license.pk)


def stand(license: License) -> bool:
    """Return whether the terms are as a rule wrote them."""
    return _fits(_said(license), license.terms_kid, license.terms_mac)


def check_read(snapshot: Snapshot, product_id: str, plan_revision_id: str, kid: str, mac: Any) -> None:
    """Raise `TermsAltered` unless a snapshot, read in one statement, shows terms as a rule wrote them."""
    said = said_of(
        id=snapshot.license_id,
        customer_id=snapshot.customer_id,
        product_id=product_id,
        plan_revision_id=plan_revision_id,
        scheme=snapshot.scheme,
        issued=snapshot.issued,
        revoked=snapshot.revoked,
        holds=snapshot.holds,
        starts_at=snapshot.starts_at,
        expires_at=snapshot.expires_at,
        grace_until=snapshot.grace_until,
        maintenance_until=snapshot.maintenance_until,
        seat_limit=snapshot.seat_limit,
        activation_limit=snapshot.activation_limit,
    )
    if not _fits(said, kid, mac):
        raise _altered(snapshot.license_id)


def doubtful() -> Iterator[UUID]:
    """Return the licenses whose terms do not fit their proof. One that is being held or lifted this very moment may be
    among them: read it once more."""
    held: dict[UUID, list[str]] = {}
    for license_id, reason in Hold.objects.filter(lifted_at=None).values_list("license_id", "reason"):
        held.setdefault(license_id, []).append(reason)
    for row in License.objects.order_by("pk").iterator(2_000):
        if not _fits(_said(row, held.get(row.pk, [])), row.terms_kid, row.terms_mac):
            yield row.pk


def said_of(*, holds: Any, **terms: Any) -> bytes:
    """Return the terms in the words the proof is over, the same from any database and from memory."""
    said = {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in terms.items()}
    return orjson.dumps({"v": 1, "holds": sorted(holds), **said}, option=orjson.OPT_SORT_KEYS)


def _said(license: License, holds: list[str] | None = None) -> bytes:
    if holds is None:
        placed = Hold.objects.filter(license_id=license.pk, lifted_at=None)
        holds = list(placed.values_list("reason", flat=True))
    return said_of(
        id=license.pk,
        customer_id=license.customer_id,
        product_id=license.product_id,
        plan_revision_id=license.plan_revision_id,
        scheme=license.scheme,
        issued=license.issued_at is not None,
        revoked=license.revoked_at is not None,
        holds=holds,
        starts_at=license.starts_at,
        expires_at=license.expires_at,
        grace_until=license.grace_until,
        maintenance_until=license.maintenance_until,
        seat_limit=license.seat_limit,
        activation_limit=license.activation_limit,
    )


def _fits(said: bytes, kid: str, mac: Any) -> bool:
    try:
        return hmac.compare_digest(crypto.digest_under(kid, said, kind=KIND), bytes(mac or b""))
    except crypto.KeyRingError:
        # While a key of the ring is missing, which is flagged by itself, what is proved under it cannot be checked.
        return bool(crypto.incomplete())


def _altered(license_id: UUID | str) -> TermsAltered:
    log.error("license_terms_altered", license_id=str(license_id))
    anomalies.flag_later(
        rule=RULE,
        severity=Severity.CRITICAL,
        object_kind="license",
        object_id=str(license_id),
        license_id=UUID(str(license_id)),
        at=timezone.now(),
        evidence={},
    )
    return TermsAltered(retry_after_seconds=60)
