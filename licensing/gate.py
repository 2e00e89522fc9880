"""The gate for hot calls: authenticate, throttle, decide, sign. Doors (DRF, WSGI) only carry requests to it.

Everything here speaks of one HTTP request in plain values; a rule never stands in a door. `sign` is for every
answer under the API, whoever made it.
"""

import re
import time
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
import orjson
import structlog
from django.conf import settings

from licensing import credentials, crypto, keys, seats, throttles, tokens, validation
from licensing.activations import checked
from licensing.credentials import Caller
from licensing.decision import Scope, Snapshot, Verdict
from licensing.errors import Forbidden, Invalid, LicensingError, Missing, Refused, TooMany, Unauthenticated
from licensing.idempotency import KeyReused
from licensing.ids import uuid7
from licensing.models import LicenseKey
from licensing.throttles import Allowed

log = structlog.get_logger(__name__)

TOKEN_LIFE = timedelta(hours=24)
REFUSAL_LIFE = timedelta(minutes=5)
LONGEST_BODY = 1_048_576
NONCE = re.compile(r"[A-Za-z0-9_-]{22,128}")
_PROBLEMS = "urn:licentia:problem:"


class Request(msgspec.Struct, frozen=True):
    """One request: header names in lower case, `target` the full target URI under PUBLIC_URL."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    address: str | None
    request_id: str


class Answer(msgspec.Struct):
    """One answer; `headers` are added to by whoever has something to add."""

    status: int
    body: bytes
    headers: dict[str, str]


class NonceRequired(LicensingError):
    """A request by license key carries x-licentia-nonce, 22 to 128 characters of A-Z a-z 0-9 _ -"""

    code = "nonce_required"


class Malformed(Invalid):
    """The body is not what this call takes."""

    code = "malformed"


class UnknownField(Malformed):
    """There is no such field to set."""

    code = "unknown_field"


class TooLarge(LicensingError):
    """The body is larger than 1 MiB."""

    code = "body_too_large"


class WrongMediaType(LicensingError):
    """Send application/json."""

    code = "unsupported_media_type"


class ValidateBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /validate."""

    license: UUID | None = None
    license_key: str | None = None
    fingerprint: str | None = None
    product: str | None = None
    version: str | None = None
    entitlements: list[str] | None = None
    seat_holder: str | None = None


_decoder = msgspec.json.Decoder(ValidateBody)


# --- who calls --------------------------------------------------------------------------------------


def identify(request: Request, at: datetime) -> tuple[Caller, Allowed]:
    """Return who calls, and what is left of their rate.

    Raises:
        Unauthenticated: missing, malformed, unknown, expired or revoked, in the same words for each kind.
        NonceRequired: a license key without a nonce to bind the answer to.
        TooMany: this caller, or this address after failures, calls too often.
        Forbidden: a credential from an address it is not allowed from.
    """
    scheme, secret = _authorization(request)
    if scheme == "bearer":
        try:
            caller = credentials.authenticate(secret, address=request.address, request_id=request.request_id, at=at)
        except Unauthenticated:
            _failed(request)
            raise
        return caller, _within("credential", caller.id)
    digests = _key_digests(request, secret)
    allowed = _within("license", digests[0].hex()[:32])
    found = (
        LicenseKey.objects.filter(digest__in=digests, retired_at=None)
        .values_list("license_id", "license__customer_id", "last5")
        .first()
    )
    if found is None:
        _failed(request)
        raise Unauthenticated("The license key is not accepted.")
    license_id, customer_id, last5 = found
    caller = Caller(
        kind="L",
        id=str(license_id),
        label=f"key …{last5}",
        scopes=frozenset({"validate", "activations"}),
        customer_id=customer_id,
        license_id=license_id,
        address=request.address,
        request_id=request.request_id,
    )
    return caller, allowed


def _authorization(request: Request) -> tuple[str, str]:
    address_blocked = throttles.throttle("address").blocked_for(request.address or "")
    if address_blocked:
        raise TooMany("Too many failures from this address.", retry_after_seconds=address_blocked)
    nonce = request.headers.get("x-licentia-nonce")
    if nonce is not None and not NONCE.fullmatch(nonce):
        raise NonceRequired("x-licentia-nonce has 22 to 128 characters of A-Z a-z 0-9 _ -")
    scheme, _, secret = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() not in ("bearer", "license") or not secret.strip():
        _failed(request)
        raise Unauthenticated("Send an Authorization header: Bearer lsk_… or License LIC1-…")
    return scheme.lower(), secret.strip()


def _key_digests(request: Request, secret: str) -> list[bytes]:
    nonce = request.headers.get("x-licentia-nonce")
    if nonce is None or not NONCE.fullmatch(nonce):
        raise NonceRequired()
    try:
        return keys.digests(secret)
    except keys.Mistyped as error:
        _failed(request)
        mistyped = Unauthenticated(error.detail)
        mistyped.code = error.code
        raise mistyped from None


def _failed(request: Request) -> None:
    throttles.throttle("address").penalize(request.address or "")


def _within(kind: str, caller: str) -> Allowed:
    allowed = throttles.throttle(kind).take(caller)
    if allowed.wait_seconds:
        raise TooMany("Too many requests.", retry_after_seconds=allowed.wait_seconds, allowed=allowed)
    return allowed


# --- validate ---------------------------------------------------------------------------------------


def validate(request: Request, at: datetime) -> Answer:
    """Answer POST /validate: 200 with a verdict for every known caller, else a problem. Not signed yet."""
    allowed: Allowed | None = None
    try:
        scheme, secret = _authorization(request)
        if scheme == "license":
            digests = _key_digests(request, secret)
            allowed = _within("license", digests[0].hex()[:32])
            body = _body(request)
            if body.license_key is not None:
                raise Malformed("The license is the one of the Authorization header.", pointer="/license_key")
            try:
                validated = validation.by_key_holder(
                    key_digests=digests,
                    scope=_scope(body),
                    request_id=request.request_id,
                    at=at,
                )
            except Unauthenticated:
                _failed(request)
                raise
            own = validated.snapshot.license_id if validated.snapshot else None
            if body.license is not None and str(body.license) != own:
                raise Missing("There is no such thing.")
        else:
            caller, allowed = identify(request, at)
            if "validate" not in caller.scopes:
                raise Forbidden("This credential lacks the scope 'validate'.")
            body = _body(request)
            if body.license_key is None and body.license is None:
                raise Malformed("Say which license: license_key or license.", pointer="/license_key")
            validated = validation.by_credential(
                caller=caller,
                license_key=body.license_key,
                license_id=body.license,
                scope=_scope(body),
                at=at,
            )
    except LicensingError as error:
        answer = problem(error, request_id=request.request_id)
        return answer if allowed is None else Answer(answer.status, answer.body, rate_headers(allowed) | answer.headers)
    answer = Answer(200, _said(validated.verdict, validated.snapshot, body, at), {"content-type": "application/json"})
    answer.headers |= rate_headers(allowed)
    return answer


def _body(request: Request) -> ValidateBody:
    if len(request.body) > LONGEST_BODY:
        raise TooLarge()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.body and media_type != "application/json":
        raise WrongMediaType()
    try:
        return _decoder.decode(request.body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = str(error)
        if "unknown field" in message:
            raise UnknownField(pointer=pointer_in(message)) from None
        raise Malformed(message.partition(" - at ")[0], pointer=pointer_in(message)) from None


def pointer_in(message: str) -> str:
    """Return the JSON pointer a decoding error speaks of: `$.a[0]` is /a/0, an unknown field is itself."""
    unknown = re.search(r"unknown field `([^`]*)`", message)
    found = re.search(r"at `\$([^`]*)`", message)
    path = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", found.group(1)) if found else ""
    parts = [part for part in path.split(".") if part] + ([unknown.group(1)] if unknown else [])
    return "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)


def _scope(body: ValidateBody) -> Scope:
    for name in ("product", "version"):
        value = getattr(body, name)
        if value is not None and not re.fullmatch(r"[\w.+:~-]{1,64}", value, re.ASCII):
            raise Malformed(f"A {name} has 1 to 64 characters of A-Z a-z 0-9 . _ + : ~ -", pointer=f"/{name}")
    entitlements = body.entitlements or []
    if len(entitlements) > 100:
        raise Malformed("Ask for at most 100 entitlements at once.", pointer="/entitlements")
    for position, key in enumerate(entitlements):
        if not re.fullmatch(r"[\w-]{1,64}", key, re.ASCII):
            raise Malformed(
                "An entitlement's key has 1 to 64 characters of A-Z a-z 0-9 _ -",
                pointer=f"/entitlements/{position}",
            )
    holder = None
    if body.seat_holder is not None:
        try:
            holder = seats.normalized(body.seat_holder)
        except Invalid as error:
            raise Malformed(error.detail, pointer="/seat_holder") from None
    return Scope(
        product=body.product,
        version=body.version,
        fingerprint=checked(body.fingerprint) if body.fingerprint is not None else None,
        seat_holder=holder,
        entitlements=tuple(entitlements),
    )


def _said(verdict: Verdict, snapshot: Snapshot | None, body: ValidateBody, at: datetime) -> bytes:
    end = at + (TOKEN_LIFE if verdict.valid else REFUSAL_LIFE)
    if verdict.valid and snapshot is not None and (until := snapshot.usable_until()) is not None:
        end = min(end, until)
    shown = None
    if snapshot is not None and snapshot.issued:
        shown = {
            "id": snapshot.license_id,
            "plan": snapshot.plan,
            "scheme": snapshot.scheme,
            "status": str(snapshot.status(at)),
            "expires_at": instant(snapshot.expires_at),
            "grace_until": instant(snapshot.grace_until),
            "seats": {"limit": snapshot.seat_limit, "used": snapshot.seats_used},
            "entitlements": {key: right.shown() for key, right in snapshot.entitlements.items()},
        }
    claims: dict[str, Any] = {
        "iss": settings.PUBLIC_URL,
        "aud": snapshot.product if shown and snapshot else body.product or "",
        "sub": snapshot.license_id if shown and snapshot else "",
        "jti": str(uuid7()),
        "iat": int(at.timestamp()),
        "nbf": int(at.timestamp()),
        "exp": int(end.timestamp()),
        "ver": 1,
        "valid": verdict.valid,
        "code": str(verdict.code),
        "terms": shown,
    }
    if body.fingerprint is not None:
        claims["fingerprint"] = body.fingerprint
    return orjson.dumps(
        {
            "valid": verdict.valid,
            "code": str(verdict.code),
            "detail": verdict.detail,
            "license": shown,
            "checked_at": instant(at),
            "fresh_until": instant(at + (end - at) / 2 if verdict.valid else at),
            "degraded": False,
            "token": tokens.sign(claims),
        }
    )


def instant(value: datetime | None) -> str | None:
    """Return an instant as RFC 3339 in UTC."""
    return value.isoformat().replace("+00:00", "Z") if value else None


# --- problems ---------------------------------------------------------------------------------------

_STATUS: tuple[tuple[type[LicensingError], int, str], ...] = (
    (NonceRequired, 400, "Nonce required"),
    (TooLarge, 413, "Body too large"),
    (WrongMediaType, 415, "Unsupported media type"),
    (KeyReused, 422, "Unprocessable"),
    (Invalid, 400, "Bad request"),
    (Unauthenticated, 401, "Unauthenticated"),
    (Forbidden, 403, "Forbidden"),
    (Missing, 404, "Not found"),
    (Refused, 409, "Refused"),
    (TooMany, 429, "Too many requests"),
)


def problem(error: LicensingError, *, request_id: str) -> Answer:
    """Return an error as an RFC 9457 problem. What has no status of its own is a 500 and says nothing more."""
    found = next(((status, title) for kind, status, title in _STATUS if isinstance(error, kind)), None)
    if found is None:
        return problem_of(500, "internal_error", "Internal error", "Something went wrong here.", request_id)
    status, title = found
    errors = None
    if isinstance(error, Invalid) and error.pointer:
        errors = [{"pointer": error.pointer, "code": error.code, "detail": error.detail}]
    answer = problem_of(status, error.code, title, error.detail, request_id, errors)
    if isinstance(error, TooMany):
        answer.headers["retry-after"] = str(error.retry_after_seconds)
        allowed = error.facts.get("allowed")
        if isinstance(allowed, Allowed):
            answer.headers |= rate_headers(allowed)
    if status == 401:
        answer.headers["www-authenticate"] = 'Bearer realm="licentia", License realm="licentia"'
    return answer


def problem_of(
    status: int,
    code: str,
    title: str,
    detail: str,
    request_id: str,
    errors: list[dict[str, str]] | None = None,
) -> Answer:
    """Return a problem in our one shape."""
    body: dict[str, Any] = {
        "type": _PROBLEMS + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "errors": errors or [],
    }
    return Answer(status, orjson.dumps(body), {"content-type": "application/problem+json"})


def rate_headers(allowed: Allowed) -> dict[str, str]:
    """Return the RateLimit headers of the IETF draft: what is left, and in how many seconds all is there again."""
    return {
        "ratelimit-policy": f'"default";q={allowed.limit};w={max(allowed.window_seconds, 1)}',
        "ratelimit": f'"default";r={allowed.remaining};t={allowed.reset_seconds}',
    }


# --- signed answers ---------------------------------------------------------------------------------


def sign(request: Request, answer: Answer) -> Answer:
    """Bind the answer to the request that asked for it, if it carries a nonce or a signature, and sign it.

    RFC 9421 over status, content digest and, of the request, method, target and nonce or signature. If signing
    fails the answer is 500 without a body: never an unsigned one.
    """
    nonce = request.headers.get("x-licentia-nonce")
    signature = request.headers.get("signature")
    digest = f"sha-256=:{b64encode(sha256(answer.body).digest()).decode()}:"
    answer.headers["content-digest"] = digest
    if (nonce is None or not NONCE.fullmatch(nonce)) and not signature:
        return answer
    try:
        lines = [
            ('"@status"', str(answer.status)),
            ('"content-digest"', digest),
            ('"@method";req', request.method),
            ('"@target-uri";req', request.target),
        ]
        if nonce is not None and NONCE.fullmatch(nonce):
            lines.append(('"x-licentia-nonce";req', nonce))
        if signature:
            lines.append(('"signature";req', signature.strip()))
        kid = crypto.ring().primary("sign").kid
        covered = " ".join(name for name, _ in lines)
        parameters = f'({covered});created={int(time.time())};keyid="{kid}";alg="ed25519"'
        base = "".join(f"{name}: {value}\n" for name, value in lines) + f'"@signature-params": {parameters}'
        _, made = crypto.sign(base.encode())
    except Exception as error:  # whatever broke: an unsigned answer must not leave
        log.error("answer_not_signed", error=type(error).__name__, request_id=request.request_id)
        return Answer(500, b"", {})
    answer.headers["signature-input"] = f"licentia={parameters}"
    answer.headers["signature"] = f"licentia=:{b64encode(made).decode()}:"
    return answer
