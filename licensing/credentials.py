"""Who may call the API: credentials with scopes, an expiry and, if wanted, a list of addresses.

A secret is `lsk_` and 43 URL-safe characters (256 bits), stored only as a keyed digest: a random secret of
that length needs no slow hash.
"""

import ipaddress
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction

from licensing import audit, crypto
from licensing.audit import Actor
from licensing.errors import Forbidden, Invalid, Unauthenticated
from licensing.ids import uuid7
from licensing.models import Credential, Customer

PREFIX = "lsk_"
LONGEST_LIFE = timedelta(days=366)
_SECRET = re.compile(r"lsk_[A-Za-z0-9_-]{43}")

# What a credential may do. The second column: a customer's own credential may hold it too.
SCOPES: dict[str, bool] = {
    "validate": True,
    "activations": True,
    "licenses:read": True,
    "licenses:write": False,
    "seats:read": True,
    "seats:write": True,
    "catalog:read": True,
    "catalog:write": False,
    "customers:read": True,
    "customers:write": False,
    "credentials:read": False,
    "credentials:write": False,
    "anomalies:read": False,
    "audit:read": False,
}


class ScopeNotAllowed(Invalid):
    """A credential cannot be given this scope."""

    code = "scope_not_allowed"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a credential (kind B) or the holder of a license key (kind L).

    `customer_id` is the tenant it is confined to; None is the vendor. `license_id` is set for kind L.
    """

    kind: str
    id: str
    label: str
    scopes: frozenset[str] = field(default_factory=frozenset)
    customer_id: UUID | None = None
    license_id: UUID | None = None
    address: str | None = None
    request_id: str = ""
    is_authenticated: bool = True

    @property
    def actor(self) -> Actor:
        """The caller as the audit record names it."""
        return Actor(
            kind="credential" if self.kind == "B" else "license",
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
        row = Credential.objects.select_for_update().get(pk=credential.pk)
        if row.revoked_at is None:
            row.revoked_at = at
            row.save()
            audit.record(action="credential.revoked", by=by, on=row, at=at, after={"revoked_at": at}, reason=reason)
    return row


def authenticate(secret: str, *, address: str | None, request_id: str, at: datetime) -> Caller:
    """Return the caller a bearer secret belongs to.

    Raises:
        Unauthenticated: malformed, unknown, expired or revoked, always in the same words.
        Forbidden: used from an address it is not allowed from.
    """
    refusal = Unauthenticated("The credential is not accepted.")
    if not _SECRET.fullmatch(secret):
        raise refusal
    row = Credential.objects.filter(digest__in=crypto.digests(secret.encode(), kind="credential")).first()
    if row is None or row.revoked_at is not None or row.expires_at <= at:
        raise refusal
    if row.allowed_addresses and not _within(address, row.allowed_addresses):
        raise Forbidden("This credential may not be used from this address.")
    return Caller(
        kind="B",
        id=str(row.pk),
        label=row.name,
        scopes=frozenset(row.scopes),
        customer_id=row.customer_id,
        address=address,
        request_id=request_id,
    )


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise Invalid(f"'{text[:60]}' is no address and no network.", pointer="/allowed_addresses") from None


def _covered(network: str, maker: Credential) -> bool:
    inner: Any = ipaddress.ip_network(network)
    outer: list[Any] = [ipaddress.ip_network(one) for one in maker.allowed_addresses]
    return any(one.version == inner.version and inner.subnet_of(one) for one in outer)


def _within(address: str | None, networks: list[str]) -> bool:
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return any(found.version == network.version and found in network for network in map(ipaddress.ip_network, networks))
