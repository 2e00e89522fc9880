"""The gate for hot calls: authenticate, throttle, decide, sign. Doors (DRF, WSGI) only carry requests to it.

Everything here speaks of one HTTP request in plain values; a rule never stands in a door. `sign` is for every
answer under the API, whoever made it.
"""

import re
import time
from binascii import b2a_base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
import orjson
import structlog

from licensing import (
    credentials,
    crypto,
    installation,
    keys,
    nonces,
    observations,
    seats,
    signatures,
    snapshots,
    stamps,
    throttles,
    tokens,
    validation,
)
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
from licensing.fingerprints import checked
from licensing.idempotency import KeyReused
from licensing.ids import uuid7_text
from licensing.pictures import Machine
from licensing.snapshots import Found
from licensing.states import VerdictCode
from licensing.throttles import Allowed
from licensing.validation import Validated

log = structlog.get_logger(__name__)

TOKEN_LIFE = timedelta(hours=24)
REFUSAL_LIFE = timedelta(minutes=5)
LONGEST_BODY = 1_048_576
NONCE = re.compile(r"[A-Za-z0-9_-]{22,128}")
_NAME = re.compile(r"[\w.+:~-]{1,64}", re.ASCII)
_KEY = re.compile(r"[\w-]{1,64}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TOKEN_REUSED = timedelta(minutes=10)
_CLIENT_SCOPES = frozenset({"validate", "activations", "leases", "usage", "usage:read"})
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


class SignatureUnknown(Unauthenticated):
    """The signature is not accepted."""

    code = "signature_unknown"


class ActivationEnded(Unauthenticated):
    """This machine was let go. Activate it anew with its license key."""

    code = "activation_ended"


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
    """Return who calls, and what is left of their rate. Raises as `recognize` does."""
    caller, allowed, _ = recognize(request, at)
    return caller, allowed


def recognize(request: Request, at: datetime) -> tuple[Caller, Allowed, Found | None]:
    """Return who calls, what is left of their rate, and the license of a key or machine.

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
        activation_id = UUID(machine.id)
        caller = _caller(request, "S", snapshot, id=machine.id, label="machine", activation_id=activation_id)
        return caller, allowed, found
    if scheme == "bearer":
        return *_server(request, secret, at), None
    digests = _key_digests(request, secret, at)
    allowed = _within("license", digests[0].hex()[:32])
    holding = _held_key(request, digests, Scope(), at)
    if holding.picture.snapshot.require_signed_clients and not _activates(request):
        raise SignedClientRequired()
    snapshot = holding.picture.snapshot
    observations.used(snapshot.license_id, None, request.address, at)
    caller = _caller(request, "L", snapshot, id=snapshot.license_id, label=f"key …{secret[-5:].upper()}")
    return caller, allowed, holding


def _activates(request: Request) -> bool:
    return (
        request.method == "POST"
        and request.target.partition("?")[0] == f"{installation.here.public_url}/api/v1/activations"
    )


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


def _key_digests(request: Request, secret: str, at: datetime) -> list[bytes]:
    if request.headers.get("x-licentia-nonce") is None:
        raise NonceRequired()
    try:
        return keys.digests(secret)
    except keys.Mistyped as error:
        _failed(request)
        observations.note("mistyped_key", observations.block(request.address), observations.secretly(secret), at)
        mistyped = Unauthenticated(error.detail)
        mistyped.code = error.code
        raise mistyped from None


def _held_key(request: Request, digests: list[bytes], scope: Scope, at: datetime) -> Found:
    found = snapshots.by_key(digests, scope)
    if found is None:
        crypto.require_whole()  # with a key of the ring missing, a good one is not found either
        _failed(request)
        observations.note("unknown_key", observations.block(request.address), digests[0].hex()[:16], at)
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
        if found is None or machine is None or not machine.public_key:
            raise SignatureUnknown()
        signatures.verify(signed, machine.public_key)
        if not machine.active:
            raise ActivationEnded()
    except Unauthenticated as error:
        _failed(request)
        if isinstance(error, SignatureUnknown | signatures.SignatureWrong):
            _forged(signed.keyid, request.address, at)
        raise
    allowed = _within("license", machine.id)
    activation_id = UUID(machine.id)
    nonces.accept(activation_id=activation_id, nonce=signed.nonce, counter=signed.counter, at=at)
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


def _forged(keyid: str, address: str | None, at: datetime) -> None:
    """Note a signature that does not fit, by whom it claims to be and by where it comes from."""
    network = observations.block(address)
    if _UUID.fullmatch(keyid):
        observations.note("signature", keyid, network, at)
    observations.note("signature_from", network, keyid[:64], at)


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
            digests = _key_digests(request, secret, at)
            allowed = _within("license", digests[0].hex()[:32])
            body = _own_body(request)
            scope = _scope(body)
            found = _held_key(request, digests, scope, at)
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
    _observe(request, validated, caller.id if scheme == "bearer" else None, body, at)
    if validated.activation_id is not None and scheme != "signature":
        stamps.seen(UUID(validated.activation_id), at)
    answer = Answer(200, _answer(validated, body, at), {"content-type": "application/json"})
    answer.headers |= rate_headers(allowed)
    return answer


def _observe(request: Request, validated: Validated, server: str | None, body: ValidateBody, at: datetime) -> None:
    """Note who asked from where, for the rules; where a server asks, its address is not the machine's."""
    if validated.snapshot is None:
        if server is not None and body.license_key is not None:
            key = observations.secretly(keys.parse(body.license_key))
            observations.note("unknown_key", f"credential:{server}", key, at)
        return
    license_id = validated.snapshot.license_id
    observations.used(license_id, body.fingerprint, request.address if server is None else None, at)
    if validated.verdict.code == VerdictCode.REVOKED:
        observations.note("revoked", license_id, body.fingerprint or "", at)


def _own_body(request: Request) -> ValidateBody:
    body = _body(request)
    if body.license_key is not None:
        raise Malformed("The license is the caller's own.", pointer="/license_key")
    return body


def _body(request: Request) -> ValidateBody:
    return decoded(request, _decoder)


def decoded(request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Return the body of a JSON request.

    Raises:
        Malformed: it is not what the decoder takes, with a pointer to where.
        TooLarge, WrongMediaType: it is not looked at.
    """
    if len(request.body) > LONGEST_BODY:
        raise TooLarge()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.body and media_type != "application/json":
        raise WrongMediaType()
    return read(request.body or b"{}", decoder)


def read(data: Any, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Return what JSON says. Raises `Malformed`."""
    try:
        return decoder.decode(data)
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
        if value is not None and not _NAME.fullmatch(value):
            raise Malformed(f"A {name} has 1 to 64 characters of A-Z a-z 0-9 . _ + : ~ -", pointer=f"/{name}")
    entitlements = body.entitlements or []
    if len(entitlements) > 100:
        raise Malformed("Ask for at most 100 entitlements at once.", pointer="/entitlements")
    for position, key in enumerate(entitlements):
        if not _KEY.fullmatch(key):
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
            "checked_at": at,
            "fresh_until": at + (said.end - at) / 2 if verdict.valid else at,
            "degraded": validated.degraded_seconds is not None,
            "token": said.token,
        },
        option=orjson.OPT_UTC_Z,
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
        "iss": installation.here.public_url,
        "aud": snapshot.product if shown and snapshot else body.product or "",
        "sub": snapshot.license_id if shown and snapshot else "",
        "jti": uuid7_text(),
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
    if isinstance(error, crypto.KeyRingIncomplete):  # which key is the operator's to know: it is in the log
        error = Unavailable("Nothing can be changed here right now. Try again later.", retry_after_seconds=60)
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


def sign(request: Request, answer: Answer, *, kid: str = "") -> Answer:
    """Bind the answer to the request that asked for it, if it carries a nonce or a signature, and sign it.

    RFC 9421 over status, content digest and, of the request, method, target and nonce or signature, by the primary key
    or the one named. If signing fails the answer is 500 without a body: never an unsigned one.
    """
    nonce = request.headers.get("x-licentia-nonce")
    if nonce is not None and not NONCE.fullmatch(nonce):
        nonce = None
    signature = request.headers.get("signature")
    digest = f"sha-256=:{b2a_base64(sha256(answer.body).digest(), newline=False).decode()}:"
    answer.headers["content-digest"] = digest
    if nonce is None and not signature:
        return answer
    try:
        covered = '"@status" "content-digest" "@method";req "@target-uri";req'
        base = (
            f'"@status": {answer.status}\n"content-digest": {digest}\n'
            f'"@method";req: {request.method}\n"@target-uri";req: {request.target}\n'
        )
        if nonce is not None:
            covered += ' "x-licentia-nonce";req'
            base += f'"x-licentia-nonce";req: {nonce}\n'
        if signature:
            covered += ' "signature";req'
            base += f'"signature";req: {signature.strip()}\n'
        key = crypto.ring().key(kid, "sign") if kid else crypto.ring().primary("sign")
        parameters = f'({covered});created={int(time.time())};keyid="{key.kid}";alg="ed25519"'
        made = key.sign(f'{base}"@signature-params": {parameters}'.encode())
    except Exception as error:  # whatever broke: an unsigned answer must not leave
        log.error("answer_not_signed", error=type(error).__name__, request_id=request.request_id)
        return Answer(500, b"", {})
    answer.headers["signature-input"] = f"licentia={parameters}"
    answer.headers["signature"] = f"licentia=:{b2a_base64(made, newline=False).decode()}:"
    return answer
