"""License files: a license's terms, signed for one machine, that it reads without ever calling the server.

A machine without a network writes a request file, signed by its own key; whoever carries it here gets back a license
file for that very machine. Both are one compact JWS inside a PEM armour, so that they survive mail and USB sticks and
a person sees what they are. What is not byte for byte as it was written is refused.

A license file cannot be taken back before it expires: each is recorded, none outlives the plan's offline period, and
where seats float it takes one of them for as long. Source: ADR 0012, docs/offline.md, RFC 7515, RFC 7800.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction

from licensing import activations, audit, crypto, fingerprints, leases, pictures, signatures, tokens
from licensing.audit import Actor
from licensing.decision import Right, Scope
from licensing.errors import Invalid, LicensingError, Missing
from licensing.ids import uuid7
from licensing.models import Activation, License, LicenseFile
from licensing.pictures import Question
from licensing.states import status_at

TYPE = "license-file+jwt"
SEALED_TYPE = "license-file+jwe"
REQUEST_TYPE = "activation-request+jwt"
LABEL = "LICENTIA LICENSE FILE"
REQUEST_LABEL = "LICENTIA ACTIVATION REQUEST"
OLDEST_REQUEST = timedelta(days=7)
AHEAD = timedelta(days=1)
LONGEST_REQUEST = 8_192

_NONCE = re.compile(r"[A-Za-z0-9_-]{22,128}")
_CLAIMS = {"fingerprint", "iat", "nonce"}
_MORE_CLAIMS = {"name", "platform", "product", "enc_key"}


class RequestMalformed(Invalid):
    """This is not an activation request file, or it was changed on its way."""

    code = "malformed"


class RequestNotAuthentic(Invalid):
    """The request file is not signed by the key it names: it was changed after it was written."""

    code = "request_not_authentic"


class RequestOutOfDate(Invalid):
    """The request file is too old, or from the future."""

    code = "request_out_of_date"


@dataclass(frozen=True, slots=True)
class Request:
    """What an offline machine asks for, proved by its own key."""

    public_key: bytes
    fingerprint: str
    name: str
    platform: str
    product: str
    encryption_key: bytes | None
    nonce: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Issued:
    """A license file: its record and its text."""

    record: LicenseFile
    text: str


def issue(
    *,
    license: License,
    by: Actor,
    at: datetime,
    request: Request | None = None,
    activation: Activation | None = None,
    expires_at: datetime | None = None,
    encrypt: bool = False,
    seat_holder: str | None = None,
) -> Issued:
    """Return a license file for the machine that made `request`, which is activated if it is not, or for an
    `activation` that is live already.

    It expires at `expires_at`, else after the plan's offline period, and never after the license. With `encrypt`
    only the machine itself can read it.

    Raises:
        OfflineNotAllowed: the plan has no offline period.
        NoSeatAvailable: seats float, and none is free for so long.
        LicenseNotUsable, and what `activations.activate` raises.
        TermsAltered: somebody wrote the license's terms past the rules.
        Invalid: `expires_at` is past or beyond the offline period, the request is for another product, or there is
            no key to encrypt to.
    """
    pictures.read(Question.of("id", str(license.pk), Scope()))  # checks that the terms are as a rule wrote them
    row = License.objects.select_related("plan_revision__plan", "product", "customer").get(pk=license.pk)
    leases.usable(license=row, at=at)
    ends = _expiry(row, at, expires_at)
    sealed_to = _sealing_key(request, encrypt)
    if request is not None and request.product and request.product != row.product.code:
        raise Invalid(
            f"The request is for {request.product}, this license is for {row.product.code}.", pointer="/request"
        )
    with transaction.atomic():
        if request is not None:
            activation = activations.activate(
                license=row,
                fingerprint=request.fingerprint,
                name=request.name,
                platform=request.platform,
                seat_holder=seat_holder,
                public_key=request.public_key,
                by=by,
                at=at,
            ).activation
        if activation is None or activation.deactivated_at is not None:
            raise Missing("There is no such machine on this license. Activate it first.")
        if leases.floats(row):
            leases.check_out(
                license=row,
                by=by,
                at=at,
                ttl=max(ends - at, leases.SHORTEST),
                offline=True,
                fingerprint=activation.fingerprint,
                activation=activation,
            )
        # An activation may have started the license's time, and taken a unit: say what is so now.
        row = License.objects.select_related("plan_revision__plan", "product", "customer").get(pk=row.pk)
        ends = _expiry(row, at, expires_at)
        record = LicenseFile(
            id=uuid7(),
            created_at=at,
            license=row,
            activation=activation,
            kid=crypto.ring().primary("sign").kid,
            encrypted=sealed_to is not None,
            issued_at=at,
            expires_at=ends,
        )
        record.save(force_insert=True)
        text = tokens.sign(_claims(record, at, request.nonce if request else ""), typ=TYPE)
        if sealed_to is not None:
            text = crypto.encrypt_to(sealed_to, text.encode(), typ=SEALED_TYPE, cty=TYPE)
        audit.record(
            action="license_file.issued",
            by=by,
            on=record,
            at=at,
            after={"activation": activation.pk, "expires_at": ends, "encrypted": record.encrypted, "kid": record.kid},
        )
    return Issued(record, armour(LABEL, text))


def read_request(text: str, at: datetime) -> Request:
    """Return what a request file asks for.

    Raises:
        RequestMalformed: it is not a request file, or was damaged on its way.
        RequestNotAuthentic: it was changed after the machine signed it.
        RequestOutOfDate: by its own clock it is older than 7 days, or from more than a day ahead.
    """
    parts = unarmour(REQUEST_LABEL, text).split(".")
    if len(parts) != 3:
        raise RequestMalformed(pointer="/request")
    try:
        header, claims = (_object(crypto.unb64(part)) for part in parts[:2])
        signature = crypto.unb64(parts[2])
        if set(header) != {"alg", "typ", "jwk"} or header["alg"] != "EdDSA" or header["typ"] != REQUEST_TYPE:
            raise RequestMalformed(pointer="/request")
        public_key = signatures.public_key_of(header["jwk"])
    except (LicensingError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise RequestMalformed(pointer="/request") from None
    try:
        crypto.verify_with(public_key, f"{parts[0]}.{parts[1]}".encode(), signature)
    except crypto.NotAuthentic:
        raise RequestNotAuthentic(pointer="/request") from None
    found = _request(public_key, claims)
    if not at - OLDEST_REQUEST <= found.made_at <= at + AHEAD:
        raise RequestOutOfDate(
            f"The machine wrote this request at {found.made_at:%Y-%m-%d %H:%M} UTC by its own clock. "
            "It is taken for 7 days, and at most a day ahead: set the machine's clock and make a new one.",
            pointer="/request",
        )
    return found


def armour(label: str, token: str) -> str:
    """Return a compact token as a file: 64 characters a line between the label's lines."""
    lines = [token[start : start + 64] for start in range(0, len(token), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def unarmour(label: str, text: str) -> str:
    """Return the token inside a file. Raises `RequestMalformed` for what is not armoured just so; only line ends may be
    those of Windows."""
    pattern = rf"-----BEGIN {label}-----\n((?:[A-Za-z0-9_.-]{{64}}\n)*[A-Za-z0-9_.-]{{1,64}})\n-----END {label}-----\n?"
    found = re.fullmatch(pattern, text.replace("\r\n", "\n")) if len(text) <= LONGEST_REQUEST else None
    if found is None:
        raise RequestMalformed(pointer="/request")
    return found[1].replace("\n", "")


def _expiry(license: License, at: datetime, wanted: datetime | None) -> datetime:
    latest = at + leases.offline_period(license)
    if wanted is not None and not at < wanted <= latest:
        raise Invalid(
            f"It expires later than now, and under this plan by {latest:%Y-%m-%dT%H:%M:%SZ}.", pointer="/expires_at"
        )
    ends = license.grace_until or license.expires_at
    return min(wanted or latest, ends) if ends else wanted or latest


def _sealing_key(request: Request | None, encrypt: bool) -> bytes | None:
    if not encrypt:
        return None
    if request is None or request.encryption_key is None:
        raise Invalid("The request holds no key to encrypt to.", pointer="/encrypt")
    return request.encryption_key


def _claims(record: LicenseFile, at: datetime, nonce: str) -> dict[str, Any]:
    license, activation = record.license, record.activation
    terms = license.plan_revision
    status = status_at(
        at=at,
        issued=True,
        revoked=False,
        held=False,
        expires_at=license.expires_at,
        grace_until=license.grace_until,
    )
    claims: dict[str, Any] = {
        "iss": settings.PUBLIC_URL,
        "aud": license.product.code,
        "sub": str(license.pk),
        "jti": str(record.pk),
        "iat": int(at.timestamp()),
        "nbf": int(at.timestamp()),
        "exp": int(record.expires_at.timestamp()),
        "ver": 1,
        "fingerprint": activation.fingerprint,
        "activation": str(activation.pk),
        "terms": {
            "plan": terms.plan.code,
            "scheme": license.scheme,
            "status": str(status),
            "entitlements": {right.key: _right(right) for right in terms.entitlements.all()},
            "seats": {"kind": terms.seat_kind, "limit": license.seat_limit, "used": license.seats_used},
            "limits": {"seats": license.seat_limit, "machines": license.activation_limit},
            "expires_at": _instant(license.expires_at),
            "grace_until": _instant(license.grace_until),
            "maintenance_until": _instant(license.maintenance_until),
        },
        "revision": license.revision,
        "offline_max": int(terms.offline_period.total_seconds()),
    }
    if activation.key_thumbprint:
        claims["cnf"] = {"jkt": activation.key_thumbprint}
    if nonce:
        claims["nonce"] = nonce  # by it the machine knows that this file answers its last request
    return claims


def _right(right: Any) -> object:
    amount = None if right.amount is None else f"{right.amount.normalize():f}"
    return Right(right.kind, right.value, right.meter, amount, right.overage).shown()


def _instant(value: datetime | None) -> str | None:
    return value.isoformat().replace("+00:00", "Z") if value else None


def _request(public_key: bytes, claims: dict[str, Any]) -> Request:
    if not _CLAIMS <= set(claims) <= _CLAIMS | _MORE_CLAIMS:
        raise RequestMalformed(pointer="/request")
    texts = {name: claims.get(name, "") for name in ("fingerprint", "name", "platform", "product", "nonce")}
    made = claims["iat"]
    if (
        not all(isinstance(value, str) and value.isprintable() for value in texts.values())
        or not fingerprints.PATTERN.fullmatch(texts["fingerprint"])
        or not _NONCE.fullmatch(texts["nonce"])
        or len(texts["name"]) > 200
        or len(texts["platform"]) > 64
        or len(texts["product"]) > 64
        or type(made) is not int
        or not 0 <= made < 32_503_680_000
    ):
        raise RequestMalformed(pointer="/request")
    return Request(
        public_key=public_key,
        encryption_key=_encryption_key(claims.get("enc_key")),
        made_at=datetime.fromtimestamp(made, UTC),
        **texts,
    )


def _encryption_key(jwk: Any) -> bytes | None:
    if jwk is None:
        return None
    try:
        key = crypto.unb64(jwk["x"])
    except (LicensingError, TypeError, KeyError, AttributeError, ValueError):
        key = b""
    if not isinstance(jwk, dict) or len(key) != 32 or {**jwk, "x": ""} != {"kty": "OKP", "crv": "X25519", "x": ""}:
        raise RequestMalformed("The request's enc_key is no X25519 key.", pointer="/request")
    return key


def _object(text: bytes) -> dict[str, Any]:
    """Return a JSON object in which no name stands twice. Raises `ValueError`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("A name stands twice.")
        return found

    value = json.loads(text, object_pairs_hook=once)
    if not isinstance(value, dict):
        raise ValueError("That is no object.")
    return value
