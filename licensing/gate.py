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

from licensing import (
    credentials,
    crypto,
    keys,
    nonces,
    seats,
    signatures,
    snapshots,
    stamps,
    throttles,
    tokens,
    validation,
)
from licensing.activations import checked
from licensing.credentials import Caller
from licensing.decision import Scope, Snapshot
from licensing.errors import (
    Forbidden,
    Invalid,
    LicensingError,
    Missing,
    Refused,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from licensing.idempotency import KeyReused
from licensing.ids import uuid7
from licensing.snapshots import Found, Machine
from licensing.throttles import Allowed
from licensing.validation import Validated

log = structlog.get_logger(__name__)

TOKEN_LIFE = timedelta(hours=24)
REFUSAL_LIFE = timedelta(minutes=5)
LONGEST_BODY = 1_048_576
NONCE = re.compile(r"[A-Za-z0-9_-]{22,128}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TOKEN_REUSED = timedelta(minutes=10)
_CLIENT_SCOPES = frozenset({"validate", "activations", "leases"})
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


class SignedClientRequired(Forbidden):
    """This license is used by machines that sign their requests; its key only activates them."""

    code = "signed_client_required"


class ProofRequired(Invalid):
    """A public_key is registered by a request that the key itself has signed."""

    code = "proof_of_possession_required"


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
        SignedClientRequired: a license key, where its plan revision lets it do no more than activate machines.
        Unavailable: what is needed to know is away.
    """
    scheme, secret = _credentials(request)
    if scheme == "signature":
        found, machine, allowed = _machine(request, Scope(), at)
        snapshot = found.picture.snapshot
        return _caller(request, "S", snapshot, id=machine.id, label="machine", activation_id=UUID(machine.id)), allowed
    if scheme == "bearer":
        return _server(request, secret, at)
    digests = _key_digests(request, secret)
    allowed = _within("license", digests[0].hex()[:32])
    holding = _held_key(request, digests, Scope())
    if holding.picture.snapshot.require_signed_clients and not _activates(request):
        raise SignedClientRequired()
    snapshot = holding.picture.snapshot
    return _caller(request, "L", snapshot, id=snapshot.license_id, label=f"key …{secret[-5:].upper()}"), allowed


def _activates(request: Request) -> bool:
    return request.method == "POST" and request.target.partition("?")[0] == f"{settings.PUBLIC_URL}/api/v1/activations"


def _caller(request: Request, kind: str, snapshot: Snapshot, **more: Any) -> Caller:
    return Caller(
        kind=kind,
        scopes=_CLIENT_SCOPES,
        customer_id=UUID(snapshot.customer_id),
        license_id=UUID(snapshot.license_id),
        address=request.address,
        request_id=request.request_id,
        **more,
    )


def _credentials(request: Request) -> tuple[str, str]:
    """Return how the caller says who it is: `bearer` or `license` with the secret, or `signature`."""
    address_blocked = throttles.throttle("address").blocked_for(throttles.origin(request.address))
    if address_blocked:
        raise TooMany("Too many failures from this address.", retry_after_seconds=address_blocked)
    nonce = request.headers.get("x-licentia-nonce")
    if nonce is not None and not NONCE.fullmatch(nonce):
        raise NonceRequired("x-licentia-nonce has 22 to 128 characters of A-Z a-z 0-9 _ -")
    authorization = request.headers.get("authorization")
    if authorization is None and signatures.is_signed(request.headers):
        return "signature", ""
    scheme, _, secret = (authorization or "").strip().partition(" ")
    if scheme.lower() not in ("bearer", "license") or not secret.strip():
        _failed(request)
        raise Unauthenticated("Send an Authorization header: Bearer lsk_… or License LIC1-…")
    return scheme.lower(), secret.strip()


def _server(request: Request, secret: str, at: datetime) -> tuple[Caller, Allowed]:
    try:
        caller = credentials.authenticate(secret, address=request.address, request_id=request.request_id, at=at)
    except Unauthenticated:
        _failed(request)
        raise
    return caller, _within("credential", caller.id)


def _key_digests(request: Request, secret: str) -> list[bytes]:
    if request.headers.get("x-licentia-nonce") is None:
        raise NonceRequired()
    try:
        return keys.digests(secret)
    except keys.Mistyped as error:
        _failed(request)
        mistyped = Unauthenticated(error.detail)
        mistyped.code = error.code
        raise mistyped from None


def _held_key(request: Request, digests: list[bytes], scope: Scope) -> Found:
    found = snapshots.by_key(digests, scope)
    if found is None:
        _failed(request)
        raise Unauthenticated("The license key is not accepted.")
    return found


def _machine(request: Request, scope: Scope, at: datetime) -> tuple[Found, Machine, Allowed]:
    """Return the license of the activated machine that signed the request: its signature fits, and neither its nonce
    nor its counter was ever used before."""
    try:
        signed = signatures.parse(
            method=request.method, target=request.target, headers=request.headers, body=request.body, at=at
        )
        found = snapshots.by_machine(signed.keyid, scope) if _UUID.fullmatch(signed.keyid) else None
        machine = found.picture.machine if found else None
        if found is None or machine is None or not machine.active or not machine.public_key:
            raise Unauthenticated("The signature is not accepted.")
        signatures.verify(signed, machine.public_key)
    except Unauthenticated:
        _failed(request)
        raise
    allowed = _within("license", machine.id)
    nonces.accept(activation_id=UUID(machine.id), nonce=signed.nonce, counter=signed.counter, at=at)
    stamps.seen(UUID(machine.id), at)
    return found, machine, allowed


def proof_of_possession(request: Request, jwk: Mapping[str, Any] | None, at: datetime) -> dict[str, Any]:
    """Return the key a machine registers, with the counter of this request, which that key has signed; nothing where
    there is no key.

    Raises:
        Invalid: it is no Ed25519 public key.
        ProofRequired: the request is not signed, or not under the key's thumbprint.
        Unauthenticated: the signature does not fit.
    """
    if jwk is None:
        return {}
    public_key = signatures.public_key_of(jwk)
    if not signatures.is_signed(request.headers):
        raise ProofRequired()
    signed = signatures.parse(
        method=request.method, target=request.target, headers=request.headers, body=request.body, at=at
    )
    if signed.keyid != signatures.thumbprint(public_key):
        raise ProofRequired("The keyid of the signature is the RFC 7638 thumbprint of the key.")
    signatures.verify(signed, public_key)
    return {"public_key": public_key, "counter": signed.counter}


def _failed(request: Request) -> None:
    throttles.throttle("address").penalize(throttles.origin(request.address))


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
        scheme, secret = _credentials(request)
        if scheme == "bearer":
            caller, allowed = _server(request, secret, at)
            if "validate" not in caller.scopes:
                raise Forbidden("This credential lacks the scope 'validate'.")
            body = _body(request)
            if body.license_key is None and body.license is None:
                raise Malformed("Say which license: license_key or license.", pointer="/license_key")
            validated = validation.by_credential(
                caller=caller, license_key=body.license_key, license_id=body.license, scope=_scope(body), at=at
            )
        elif scheme == "license":
            digests = _key_digests(request, secret)
            allowed = _within("license", digests[0].hex()[:32])
            body = _own_body(request)
            scope = _scope(body)
            found = _held_key(request, digests, scope)
            if found.picture.snapshot.require_signed_clients or found.picture.facts.keyed:
                raise SignedClientRequired()
            validated = validation.by_key_holder(
                found=found, key_digests=digests, scope=scope, request_id=request.request_id, at=at
            )
        else:
            body = _own_body(request)
            scope = _scope(body)
            found, machine, allowed = _machine(request, scope, at)
            validated = validation.by_machine(
                found=found, machine=machine, scope=scope, request_id=request.request_id, at=at
            )
        own = validated.snapshot.license_id if validated.snapshot else None
        if scheme != "bearer" and body.license is not None and str(body.license) != own:
            raise Missing("There is no such thing.")
    except LicensingError as error:
        answer = problem(error, request_id=request.request_id)
        return answer if allowed is None else Answer(answer.status, answer.body, rate_headers(allowed) | answer.headers)
    if validated.activation_id is not None and scheme != "signature":
        stamps.seen(UUID(validated.activation_id), at)
    answer = Answer(200, _answer(validated, body, at), {"content-type": "application/json"})
    answer.headers |= rate_headers(allowed)
    return answer


def _own_body(request: Request) -> ValidateBody:
    body = _body(request)
    if body.license_key is not None:
        raise Malformed("The license is the caller's own.", pointer="/license_key")
    return body


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


class _Said(msgspec.Struct, frozen=True):
    """What is said of a license, as JSON, and the same as a signed statement: said again while nothing has changed."""

    license: orjson.Fragment | None
    token: str
    end: datetime
    until: datetime


_said_lately: dict[tuple[Any, ...], _Said] = {}


def _answer(validated: Validated, body: ValidateBody, at: datetime) -> bytes:
    verdict = validated.verdict
    said = _said(validated, body, at)
    return orjson.dumps(
        {
            "valid": verdict.valid,
            "code": verdict.code.value,
            "detail": verdict.detail,
            "license": said.license,
            "checked_at": instant(at),
            "fresh_until": instant(at + (said.end - at) / 2 if verdict.valid else at),
            "degraded": validated.degraded_seconds is not None,
            "token": said.token,
        }
    )


def _said(validated: Validated, body: ValidateBody, at: datetime) -> _Said:
    """Return what is said of the license and the statement of it; the same for a while, if it would say the same."""
    verdict, snapshot = validated.verdict, validated.snapshot
    key = None
    if verdict.valid and snapshot and validated.degraded_seconds is None:
        kid = crypto.ring().primary("sign").kid
        key = (kid, snapshot.license_id, snapshot.revision, body.fingerprint, verdict.code)
        known = _said_lately.get(key)
        if known is not None and at < known.until:
            return known
    until = at + TOKEN_REUSED
    end = at + (TOKEN_LIFE if verdict.valid else REFUSAL_LIFE)
    if verdict.valid and snapshot is not None and (usable := snapshot.usable_until()) is not None:
        end = min(end, usable)
        until = min(until, snapshot.expires_at or until, at + (end - at) / 2)
    if validated.degraded_seconds is not None and snapshot is not None:
        # Nothing said without the database outlives what the plan revision tolerates.
        left = (snapshot.lenient_seconds or 0.0) - validated.degraded_seconds
        end = min(end, at + timedelta(seconds=max(left, 0.0)))
    shown = _shown(snapshot, at) if snapshot is not None and snapshot.issued else None
    claims: dict[str, Any] = {
        "iss": settings.PUBLIC_URL,
        "aud": snapshot.product if shown and snapshot else body.product or "",
        "sub": snapshot.license_id if shown and snapshot else "",
        "jti": str(uuid7()),
        "iat": int(at.timestamp()),
        "nbf": int(at.timestamp()),
        "exp": int(end.timestamp()),
        "ver": 1,
        "rev": snapshot.revision if shown and snapshot else 0,
        "valid": verdict.valid,
        "code": verdict.code.value,
        "terms": shown,
    }
    if body.fingerprint is not None:
        claims["fingerprint"] = body.fingerprint
    if validated.degraded_seconds is not None:
        claims["degraded"] = True
    license = orjson.Fragment(orjson.dumps(shown)) if shown else None
    made = _Said(license, tokens.sign(claims), end, until)
    if key is not None:
        if len(_said_lately) >= snapshots.CAPACITY:
            for oldest in list(_said_lately)[: snapshots.CAPACITY // 20]:
                _said_lately.pop(oldest, None)
        _said_lately[key] = made
    return made


def _shown(snapshot: Snapshot, at: datetime) -> dict[str, Any]:
    return {
        "id": snapshot.license_id,
        "plan": snapshot.plan,
        "scheme": snapshot.scheme,
        "status": snapshot.status(at).value,
        "expires_at": instant(snapshot.expires_at),
        "grace_until": instant(snapshot.grace_until),
        "seats": {"limit": snapshot.seat_limit, "used": snapshot.seats_used},
        "entitlements": {key: right.shown() for key, right in snapshot.entitlements.items()},
    }


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
    (Unavailable, 503, "Unavailable"),
)


def problem(error: LicensingError, *, request_id: str) -> Answer:
    """Return an error as an RFC 9457 problem. What has no status of its own is a 500 and says nothing more."""
    found = next(((status, title) for kind, status, title in _STATUS if isinstance(error, kind)), None)
    if found is None:
        return problem_of(500, "internal_error", "Internal error", "Something went wrong here.", request_id)
    status, title = found
    errors = None
    more: dict[str, Any] = {}
    again = error.facts.get("retry_after_seconds") if isinstance(error, Refused) else None
    if again is not None:
        more["retry_after"] = again
    if isinstance(error, Invalid) and error.pointer:
        errors = [{"pointer": error.pointer, "code": error.code, "detail": error.detail}]
    answer = problem_of(status, error.code, title, error.detail, request_id, errors, more)
    if again is not None:
        answer.headers["retry-after"] = str(again)
    if isinstance(error, TooMany | Unavailable):
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
    more: dict[str, Any] | None = None,
) -> Answer:
    """Return a problem in our one shape, with members of its own in `more`."""
    body: dict[str, Any] = {
        "type": _PROBLEMS + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "errors": errors or [],
        **(more or {}),
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
