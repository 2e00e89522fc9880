"""System checks: an unsafe or half-made configuration does not start. Every message names the mend."""

import ipaddress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import structlog
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection
from django.http.request import validate_host
from django.utils import timezone

from licensing import checkpoints, crypto, guards, keyring
from licensing.crypto import KeyRingError
from licensing.errors import LicensingError

log = structlog.get_logger(__name__)


@register(Tags.security)
def production_is_safe(**_: Any) -> list[CheckMessage]:
    """In production every secret is given, every connection encrypted, every proxy named."""
    if not settings.PRODUCTION:
        return []
    database, redis = urlsplit(settings.DATABASE_URL), urlsplit(settings.REDIS_URL)
    broker, public = urlsplit(settings.CELERY_BROKER_URL), urlsplit(settings.PUBLIC_URL)
    socket = not database.hostname or database.hostname.lower().startswith("%2f")
    sslmode = parse_qs(database.query).get("sslmode", [""])[0]
    secret = settings.SECRET_KEY
    rules = [
        (
            secret != "unset" and len(secret) >= 50 and len(set(secret)) >= 16,  # noqa: S105
            "E001",
            "SECRET_KEY is missing or weak.",
            "Set SECRET_KEY to 50 or more random characters.",
        ),
        (
            bool(settings.KEYRING or settings.KEYRING_FILE),
            "E002",
            "No key ring is configured.",
            "Set KEYRING_FILE to the key ring's file, or make one: manage.py keyring add --new",
        ),
        (
            database.scheme in ("postgres", "postgresql"),
            "E003",
            "Production needs PostgreSQL.",
            "Set DATABASE_URL=postgres://USER:PASSWORD@HOST/NAME?sslmode=verify-full&sslrootcert=FILE",
        ),
        (
            socket or sslmode == "verify-full",
            "E004",
            "The connection to PostgreSQL is not verified.",
            "Add ?sslmode=verify-full&sslrootcert=FILE to DATABASE_URL.",
        ),
        (
            redis.scheme == "rediss" and _verified(redis.query),
            "E005",
            "Redis is missing or its connection not encrypted.",
            "Set REDIS_URL=rediss://:PASSWORD@HOST:PORT/0",
        ),
        (
            broker.scheme in ("rediss", "amqps") and _verified(broker.query),
            "E006",
            "The broker's connection is not encrypted.",
            "Set CELERY_BROKER_URL=rediss://…, or leave it empty to use REDIS_URL.",
        ),
        (
            public.scheme == "https" and bool(public.hostname),
            "E007",
            "PUBLIC_URL is not an https address.",
            "Set PUBLIC_URL=https://licenses.example.com",
        ),
        (
            bool(settings.ALLOWED_HOSTS)
            and "*" not in settings.ALLOWED_HOSTS
            and (not public.hostname or validate_host(public.hostname, settings.ALLOWED_HOSTS)),
            "E008",
            "ALLOWED_HOSTS allows every host, or not the one of PUBLIC_URL.",
            "Set ALLOWED_HOSTS to the host of PUBLIC_URL.",
        ),
        (
            bool(settings.TRUSTED_PROXIES) and all(map(_some_network, settings.TRUSTED_PROXIES)),
            "E009",
            "No trusted proxy is listed that could terminate TLS, or what is listed is no network, or every address.",
            "Set TRUSTED_PROXIES to the addresses or networks of the proxy, e.g. 10.0.0.0/24",
        ),
        (
            urlsplit(settings.EMAIL_URL).scheme in ("smtp+tls", "smtps", "smtp+ssl", "smtptls", "smtpssl"),
            "E010",
            "No mail server is configured that is spoken to by TLS: notices would not leave, or be read on the way.",
            "Set EMAIL_URL=smtp+tls://USER:PASSWORD@HOST:587",
        ),
        (
            not settings.WEBHOOKS_TO_LOOPBACK,
            "E031",
            "Webhooks may be sent to this very machine: an address that a customer gives could lead inside.",
            "Leave WEBHOOKS_TO_LOOPBACK unset.",
        ),
    ]
    return [Error(text, hint=mend, id=f"licentia.{code}") for holds, code, text, mend in rules if not holds]


def _verified(query: str) -> bool:
    """Whether a TLS address leaves the verification of the server's certificate on."""
    asked = parse_qs(query).get("ssl_cert_reqs", ["required"])[0].lower()
    return asked in ("required", "cert_required")


def _some_network(text: str) -> bool:
    """Whether this is an address or network, and not all there are."""
    try:
        return ipaddress.ip_network(text, strict=False).prefixlen > 0
    except ValueError:
        return False


@register(Tags.security)
def embedded_stays_at_home(**_: Any) -> list[CheckMessage]:
    """What makes its own secrets and speaks plain http is for this machine only."""
    if settings.PRODUCTION or settings.PUBLIC_HOST in {*settings.LOOPBACK, "::1", "testserver"}:
        return []
    return [
        Error(
            f"PUBLIC_URL names {settings.PUBLIC_HOST}, but this is no production configuration.",
            hint="Set LICENTIA_ENV=production (see docs/operations.md), or PUBLIC_URL to an address of this machine.",
            id="licentia.E016",
        )
    ]


@register(Tags.security)
def payments_are_whole(**_: Any) -> list[CheckMessage]:
    """The payment gateway is configured whole or not at all, and dunning in its order."""
    key, secret, base = settings.STRIPE_SECRET_KEY, settings.STRIPE_WEBHOOK_SECRET, settings.STRIPE_API_BASE
    reminders, hold = settings.DUNNING_REMINDER_DAYS, settings.DUNNING_HOLD_DAYS
    rules = [
        (
            bool(key) == bool(secret) and (bool(key) or not base),
            "E018",
            "The payment gateway is configured by half.",
            "Set both STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRET, or none of the STRIPE settings.",
        ),
        (
            not key or key.startswith(("sk_", "rk_")),
            "E019",
            "STRIPE_SECRET_KEY is no secret or restricted key.",
            "Set it to the key that begins with sk_ or rk_; one that begins with pk_ is for browsers.",
        ),
        (
            not secret or secret.startswith("whsec_"),
            "E020",
            "STRIPE_WEBHOOK_SECRET is no signing secret.",
            "Set it to the one of the webhook endpoint, which begins with whsec_.",
        ),
        (
            not (settings.PRODUCTION and base),
            "E021",
            "STRIPE_API_BASE sends payments elsewhere than to Stripe.",
            "Leave STRIPE_API_BASE empty in production.",
        ),
        (
            all(day > 0 for day in reminders) and hold >= 0 and (not hold or hold > max(reminders, default=0)),
            "E022",
            "The dunning steps are out of order.",
            "Set DUNNING_REMINDER_DAYS to days past the due date (3,7,14), DUNNING_HOLD_DAYS to a later one or 0.",
        ),
    ]
    return [Error(text, hint=mend, id=f"licentia.{code}") for holds, code, text, mend in rules if not holds]


@register(Tags.security)
def checkpoints_go_somewhere(**_: Any) -> list[CheckMessage]:
    """The audit chain's checkpoints go where nobody reads or changes them on the way."""
    hook = urlsplit(settings.AUDIT_CHECKPOINT_WEBHOOK)
    rules = [
        (
            not settings.AUDIT_CHECKPOINT_WEBHOOK
            or (hook.scheme == "https" and bool(hook.hostname))
            or (not settings.PRODUCTION and hook.scheme == "http" and bool(hook.hostname)),
            "E023",
            "AUDIT_CHECKPOINT_WEBHOOK is not an https address.",
            "Set AUDIT_CHECKPOINT_WEBHOOK=https://…",
        ),
        (
            all("@" in each for each in settings.AUDIT_CHECKPOINT_MAIL) and settings.AUDIT_CHECKPOINT_MAIL_MINUTES > 0,
            "E024",
            "AUDIT_CHECKPOINT_MAIL holds what is no address, or its minutes are not above 0.",
            "Set AUDIT_CHECKPOINT_MAIL=auditor@example.com,second@example.com",
        ),
    ]
    return [Error(text, hint=mend, id=f"licentia.{code}") for holds, code, text, mend in rules if not holds]


@register(Tags.security)
def key_ring_is_readable(**_: Any) -> list[CheckMessage]:
    """The key ring can be read, and seals what it opens."""
    if settings.PRODUCTION and not (settings.KEYRING or settings.KEYRING_FILE):
        return []  # said above
    try:
        place = crypto.Place("check", "check", "check")
        crypto.unseal(crypto.seal(b"check", place), place)
        if settings.KEYRING_FILE and not settings.KEYRING and Path(settings.KEYRING_FILE).stat().st_mode & 0o077:
            return [
                Error(
                    "Others than its owner may read or write the key ring's file.",
                    hint=f"Run: chmod 600 {settings.KEYRING_FILE}",
                    id="licentia.E017",
                )
            ]
    except LicensingError as error:
        return [Error(error.detail, hint="Restore the key ring from a backup.", id="licentia.E011")]
    except OSError as error:
        return [
            Error(
                f"The key ring's file cannot be used: {error.strerror}.",
                hint="Let the server's user read it.",
                id="licentia.E012",
            )
        ]
    return []


def guards_stand() -> list[CheckMessage]:
    """Every database guard stands as it should.

    Not registered as a database check: `migrate` runs those first, and it is what mends missing guards.
    """
    try:
        gone = guards.missing()
    except DatabaseError as error:
        return [Error(f"The database cannot be asked: {error}", hint="See DATABASE_URL.", id="licentia.E013")]
    if gone:
        return [
            Error(
                f"{len(gone)} database guards do not stand, among them {gone[0]}.",
                hint="Run: manage.py migrate",
                id="licentia.E014",
            )
        ]
    return []


@register(Tags.database)
def sqlite_waits(**_: Any) -> list[CheckMessage]:
    """On SQLite, transactions take the write lock first; without that, limits fail under concurrency (R6)."""
    if connection.vendor != "sqlite":
        return []
    if settings.DATABASES["default"].get("OPTIONS", {}).get("transaction_mode") != "IMMEDIATE":
        return [
            Error(
                "SQLite is used without transaction_mode IMMEDIATE.",
                hint="Set it in DATABASES OPTIONS.",
                id="licentia.E015",
            )
        ]
    return []


def begin() -> None:
    """Let this process follow the key ring. With a key missing it starts all the same, says which, and changes nothing.

    Raises `ImproperlyConfigured` when no answer could be signed.
    """
    try:
        problems = keyring.start(at=timezone.now())
    except DatabaseError as error:  # away for now, or not migrated: the ring is looked at again when it is there
        log.error("key_ring_not_examined", error=str(error).partition("\n")[0])
        keyring.following.wake()
    except KeyRingError as error:
        raise ImproperlyConfigured(error.detail) from None
    else:
        for problem in problems:
            log.error("starting_without_writing", problem=problem)
        _say_how_the_chain_stands()
    finally:
        connection.close()


def _say_how_the_chain_stands() -> None:
    """Where no process ran for a while, entries wait for their number: it is said, and does not keep this one back."""
    try:
        for name, problem in checkpoints.problems(at=timezone.now()).items():
            log.warning("audit_behind_at_start", of=name, problem=problem)
    except DatabaseError as error:
        log.error("audit_chain_not_examined", error=str(error).partition("\n")[0])


def refuse_to_start_unguarded() -> None:
    """Raise `ImproperlyConfigured` when a migrated database lacks guards, or the configuration is unsafe.

    Web and worker processes call it before they take work.
    """
    problems = production_is_safe() + embedded_stays_at_home() + payments_are_whole()
    problems += checkpoints_go_somewhere() + key_ring_is_readable()
    try:
        if "licensing_auditentry" in connection.introspection.table_names():
            problems += guards_stand()
    except DatabaseError as error:  # away for now: readiness says so, and asks again
        log.error("guards_not_checked", error=str(error).partition("\n")[0])
    finally:
        connection.close()
    if problems:
        raise ImproperlyConfigured("\n".join(f"{problem.msg} {problem.hint}" for problem in problems))
