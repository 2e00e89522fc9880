"""Who may call the API: credentials with scopes, an expiry and, if wanted, a list of addresses.

A secret is `lsk_` and 43 URL-safe characters (256 bits), stored only as a keyed digest: a random secret of
that length needs no slow hash.
"""

import ipaddress
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import InterfaceError, OperationalError, transaction

from licensing import audit, crypto, feed
from licensing.audit import Actor
from licensing.errors import Forbidden, Invalid, Unauthenticated, Unavailable
from licensing.feed import Copy, Kept
from licensing.ids import uuid7
from licensing.models import Credential, Customer

PREFIX = "lsk_"
LONGEST_LIFE = timedelta(days=366)
_SECRET = re.compile(r"lsk_[A-Za-z0-9_-]{43}")

# What a credential may do. The second column: a customer's own credential may hold it too.
SCOPES: dict[str, bool] = {
    "validate": True,
    "activations": True,
    "leases": True,
    "usage": True,
    "usage:read": True,
    "usage:write": False,
    "licenses:read": True,
    "licenses:write": False,
    "seats:read": True,
    "seats:write": True,
    "catalog:read": True,
    "catalog:write": False,
    "customers:read": True,
    "customers:write": False,
    "billing:read": True,
    "billing:write": False,
    "credentials:read": False,
    "credentials:write": False,
    "webhooks:read": True,
    "webhooks:write": True,
    "anomalies:read": False,
    "audit:read": False,
}


class ScopeNotAllowed(Invalid):
    """A credential cannot be given this scope."""

    code = "scope_not_allowed"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a credential (kind B), the holder of a license key (kind L) or an activated machine that signs its
    requests (kind S).

    `customer_id` is the tenant it is confined to; None is the vendor. `license_id` is set for kinds L and S,
    `activation_id` for S.
    """

    kind: str
    id: str
    label: str
    scopes: frozenset[str] = field(default_factory=frozenset)
    customer_id: UUID | None = None
    license_id: UUID | None = None
    activation_id: UUID | None = None
    address: str | None = None
    request_id: str = ""
    is_authenticated: bool = True

    @property
    def actor(self) -> Actor:
        """The caller as the audit record names it."""
        return Actor(
            kind={"B": "credential", "L": "license", "S": "activation"}[self.kind],
            id=self.id,
            label=self.label,
            role="vendor" if self.kind == "B" and self.customer_id is None else "",
            address=self.address,
            request_id=self.request_id,
        )


def create(
    *,
    name: str,
    scopes: list[str],
    by: Actor,
    at: datetime,
    customer: Customer | None = None,
    expires_at: datetime | None = None,
    allowed_addresses: list[str] | None = None,
    maker: Credential | None = None,
) -> tuple[Credential, str]:
    """Make a credential; return it and its secret, which is not stored and not shown again.

    `maker` is the credential that makes it, if one does: nobody gives more, for longer or to more addresses than they
    have.

    Raises:
        ScopeNotAllowed: an unknown scope, one a customer's credential cannot hold, or one the maker lacks.
        Invalid: expiry in the past or more than a year ahead, or an address that is none.
    """
    for scope in scopes:
        if scope not in SCOPES:
            raise ScopeNotAllowed(f"There is no scope '{scope}'.", pointer="/scopes")
        if customer is not None and not SCOPES[scope]:
            raise ScopeNotAllowed(f"A customer's credential cannot hold '{scope}'.", pointer="/scopes")
        if maker is not None and scope not in maker.scopes:
            raise ScopeNotAllowed(f"You cannot grant '{scope}', you do not hold it.", pointer="/scopes")
    if not scopes:
        raise ScopeNotAllowed("A credential needs at least one scope.", pointer="/scopes")
    if expires_at is None:
        expires_at = min(at + timedelta(days=365), maker.expires_at if maker else at + LONGEST_LIFE)
    if maker is not None and expires_at > maker.expires_at:
        raise Invalid("A credential cannot outlive the one that makes it.", pointer="/expires_at")
    if not at < expires_at <= at + LONGEST_LIFE:
        raise Invalid("A credential expires within a year, and not in the past.", pointer="/expires_at")
    addresses = [_network(address) for address in allowed_addresses or (maker.allowed_addresses if maker else [])]
    if maker is not None and maker.allowed_addresses:
        for address in addresses:
            if not _covered(address, maker):
                raise Invalid(
                    "A credential cannot be used from more addresses than its maker.", pointer="/allowed_addresses"
                )

    secret = PREFIX + secrets.token_urlsafe(32)
    row = Credential(
        id=uuid7(),
        created_at=at,
        name=name,
        customer=customer,
        scopes=sorted(set(scopes)),
        allowed_addresses=addresses,
        expires_at=expires_at,
        last4=secret[-4:],
    )
    row.digest_kid, row.digest = crypto.digest(secret.encode(), kind="credential")
    with transaction.atomic():
        row.save(force_insert=True)
        audit.record(
            action="credential.created",
            by=by,
            on=row,
            at=at,
            after={
                "name": name,
                "scopes": row.scopes,
                "expires_at": expires_at,
                "allowed_addresses": addresses,
                "last4": row.last4,
            },
        )
    return row, secret


def revoke(*, credential: Credential, by: Actor, at: datetime, reason: str = "") -> Credential:
    """Refuse the credential from now on. Revoking twice changes nothing."""
    with transaction.atomic():
        row = Credential.objects.select_for_update(no_key=True).get(pk=credential.pk)
        if row.revoked_at is None:
            row.revoked_at = at
            row.save()
            feed.announce(row.pk)
            audit.record(action="credential.revoked", by=by, on=row, at=at, after={"revoked_at": at}, reason=reason)
    return row


@dataclass(frozen=True, slots=True)
class _Known:
    """A credential as a process keeps it."""

    id: str
    label: str
    scopes: frozenset[str]
    customer_id: UUID | None
    networks: tuple[Any, ...]
    expires_at: datetime
    revoked: bool


_kept: Kept[_Known] = Kept(10_000)
# How long one that is known goes on being known while the database is away: only validation can be asked then.
_LAST_KNOWN_SECONDS = 3600.0


def authenticate(secret: str, *, address: str | None, request_id: str, at: datetime) -> Caller:
    """Return the caller a bearer secret belongs to.

    Raises:
        Unauthenticated: malformed, unknown, expired or revoked, always in the same words.
        Forbidden: used from an address it is not allowed from.
        Unavailable: the database is away, and the credential was not seen lately; or it is not found while a key of the
            ring is missing, or is not what it was.
    """
    known = _known(secret) if _SECRET.fullmatch(secret) else None
    if known is None:
        crypto.require_whole()  # with a key of the ring missing, a good one is not found either
    if known is None or known.revoked or known.expires_at <= at:
        raise Unauthenticated("The credential is not accepted.")
    if known.networks and not _within(address, known.networks):
        raise Forbidden("This credential may not be used from this address.")
    return Caller(
        kind="B",
        id=known.id,
        label=known.label,
        scopes=known.scopes,
        customer_id=known.customer_id,
        address=address,
        request_id=request_id,
    )


def _known(secret: str) -> _Known | None:
    digests = tuple(crypto.digests(secret.encode(), kind="credential"))
    feed.follow()
    copy = _kept.get(digests)
    if copy is not None:
        return copy.value
    read_at = time.monotonic()
    try:
        row = Credential.objects.filter(digest__in=digests).first()
    except (OperationalError, InterfaceError) as error:
        if (last := _kept.last(digests, _LAST_KNOWN_SECONDS)) is not None:
            return last.value
        raise Unavailable("The database is away.") from error
    if row is None:
        return None
    found = _Known(
        id=str(row.pk),
        label=row.name,
        scopes=frozenset(row.scopes),
        customer_id=row.customer_id,
        networks=tuple(map(ipaddress.ip_network, row.allowed_addresses)),
        expires_at=row.expires_at,
        revoked=row.revoked_at is not None,
    )
    _kept.put(digests, Copy(found, found.id, 0, read_at))
    return found


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise Invalid(f"'{text[:60]}' is no address and no network.", pointer="/allowed_addresses") from None


def _covered(network: str, maker: Credential) -> bool:
    inner: Any = ipaddress.ip_network(network)
    outer: list[Any] = [ipaddress.ip_network(one) for one in maker.allowed_addresses]
    return any(one.version == inner.version and inner.subnet_of(one) for one in outer)


def _within(address: str | None, networks: tuple[Any, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return any(found.version == network.version and found in network for network in networks)
