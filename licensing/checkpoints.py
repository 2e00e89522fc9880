"""Checkpoints: signed statements of how far the audit chain had come, kept where who owns the database cannot reach.

One is made a minute, and before a thousand entries more, while entries come; one an hour while none do. Each is a row,
a line of a file (best on another machine's disk), and, where set, a mail or a webhook by the outbox. A place that does
not take them is an anomaly. Comparing them with the chain is `verifying`'s.

Source: docs/audit.md (the signed text), ADR 0019.
"""

import fcntl
import itertools
import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPMessage
from pathlib import Path
from typing import IO
from uuid import UUID

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Q

from licensing import anomalies, chain, crypto, ids, keyformat, outbox
from licensing.crypto import KeyRingError, NotAuthentic
from licensing.errors import LicensingError
from licensing.models import AuditCheckpoint, AuditLink, OutboxMessage
from licensing.states import Severity

log = structlog.get_logger(__name__)

EVERY = timedelta(minutes=1)
ENTRIES = 1_000  # never more between two checkpoints
IDLE = timedelta(hours=1)
UNCOVERED = timedelta(minutes=3)  # entries that no checkpoint covers for longer say that none are made
BEHIND = timedelta(minutes=10)  # a place that lacks checkpoints for longer does not take them
MAIL, WEBHOOK = "audit.checkpoint.mail", "audit.checkpoint.webhook"
LINES = 1_000
TAIL_BYTES = 65_536
PATIENCE_SECONDS = 10


class CheckpointRefused(LicensingError):
    """The receiver of the checkpoints did not take one."""

    code = "checkpoint_refused"


class NotACheckpoint(LicensingError):
    """This is no checkpoint as we write them."""

    code = "not_a_checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """There were `size` entries at `at`, and `head` was the hash of the last one's place; so says the key `kid`."""

    id: str
    size: int
    head: bytes
    at: datetime
    kid: str
    signature: bytes

    def text(self) -> str:
        """Return what is signed: five lines."""
        return (
            f"licentia audit checkpoint 1\nsize {self.size}\nhead {self.head.hex()}\n"
            f"at {_instant(self.at)}\nkid {self.kid}\n"
        )

    def line(self) -> str:
        """Return it as a line of JSON."""
        said = {"id": self.id, "size": self.size, "head": self.head.hex(), "at": _instant(self.at), "kid": self.kid}
        return json.dumps({**said, "signature": crypto.b64(self.signature)})


def read(line: str) -> Checkpoint:
    """Return the checkpoint in a line of JSON, its signature not yet looked at. Raises `NotACheckpoint`."""
    try:
        said = json.loads(line)
        found = Checkpoint(
            id=str(UUID(said["id"])),
            size=said["size"],
            head=bytes.fromhex(said["head"]),
            at=datetime.fromisoformat(said["at"]),
            kid=str(said["kid"]),
            signature=crypto.unb64(said["signature"]),
        )
        # It says nothing but what a line of ours can say: the same line comes out.
        if type(found.size) is not int or json.loads(found.line()) != said:
            raise NotACheckpoint()
    except (ValueError, KeyError, TypeError, AttributeError, NotAuthentic):
        raise NotACheckpoint() from None
    return found


def of(row: AuditCheckpoint) -> Checkpoint:
    """Return what a row says."""
    return Checkpoint(
        id=str(row.pk),
        size=row.size,
        head=bytes(row.head),
        at=row.at,
        kid=row.kid,
        signature=bytes(row.signature),
    )


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def latest() -> AuditCheckpoint | None:
    """Return the newest checkpoint."""
    return AuditCheckpoint.objects.order_by("-size", "-at").first()


def due(*, at: datetime) -> bool:
    """Return whether a checkpoint should be made."""
    size = AuditLink.objects.order_by("-number").values_list("number", flat=True).first() or 0
    last = latest()
    if last is None:
        return size > 0
    grown = size - last.size
    return grown + chain.BATCH > ENTRIES or (grown > 0 and at - last.at >= EVERY) or at - last.at >= IDLE


def make(*, at: datetime, asked: bool = False) -> AuditCheckpoint | None:
    """Sign how far the chain has come, and have it sent; return the row. None when none is due and none was asked for,
    or there is no entry yet.

    Raises `KeyRingError` when the ring cannot sign.
    """
    with transaction.atomic():
        chain.alone(wait=True)
        if not asked and not due(at=at):
            return None
        stands = chain.standing(at=at)
        if not stands.size:
            return None
        kid = crypto.ring().primary("sign").kid
        row = AuditCheckpoint(created_at=at, at=at, size=stands.size, head=stands.head, kid=kid)
        signer, row.signature = crypto.sign(of(row).text().encode())
        if signer != kid:
            raise KeyRingError("The signing key changed meanwhile. Try again.")
        row.save(force_insert=True)
        _send(row, at)
    return row


def _send(row: AuditCheckpoint, at: datetime) -> None:
    if settings.AUDIT_CHECKPOINT_WEBHOOK:
        outbox.enqueue(kind=WEBHOOK, payload={"checkpoint": str(row.pk)}, at=at)
    if settings.AUDIT_CHECKPOINT_MAIL:
        said = OutboxMessage.objects.filter(kind=MAIL).order_by("-id").values_list("created_at", flat=True).first()
        if said is None or at - said >= timedelta(minutes=settings.AUDIT_CHECKPOINT_MAIL_MINUTES):
            outbox.enqueue(kind=MAIL, payload={"checkpoint": str(row.pk)}, at=at)


def keep(at: datetime) -> None:
    """Make a checkpoint when one is due, and write to the file what it lacks. Raises nothing: what fails is flagged."""
    try:
        if due(at=at):
            make(at=at)
    except (LicensingError, OSError) as error:
        _flag("audit_checkpoint_not_made", "chain", at, error)
    try:
        write(at=at)
    except (LicensingError, OSError) as error:
        _flag("audit_checkpoint_not_delivered", "file", at, error)


chain.follow(keep)


def _flag(rule: str, where: str, at: datetime, error: Exception) -> None:
    global _silent_until
    if rule == "audit_checkpoint_not_delivered" and where == "file":
        _silent_until = at + timedelta(seconds=PATIENCE_SECONDS)  # not at each of two turns a second
    anomalies.flag(
        rule=rule,
        severity=Severity.CRITICAL,
        object_kind="auditcheckpoint",
        object_id=where,
        at=at,
        evidence={"error": keyformat.redact(f"{type(error).__name__}: {error}")[:500]},
    )


# --- the file -----------------------------------------------------------------------------------------

_reached: tuple[str, UUID] | None = None  # what this process knows the file to hold
_silent_until = datetime(1970, 1, 1, tzinfo=UTC)


def write(*, at: datetime) -> int:
    """Append to the file the checkpoints it lacks; return how many. It is only ever appended to, whole lines, on disk
    before this returns. Several processes may; each sees what the others wrote.

    Raises `OSError` when the file cannot be written.
    """
    global _reached
    path, last = settings.AUDIT_CHECKPOINT_FILE, latest()
    if not path or last is None or _reached == (path, last.pk) or at < _silent_until:
        return 0
    done = 0
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        whole, known = _end(descriptor)
        rows = AuditCheckpoint.objects.order_by("size", "at")
        if known is not None:
            if rows.filter(pk=known.id, signature=known.signature).exists():
                rows = rows.filter(Q(size__gt=known.size) | Q(size=known.size, at__gt=known.at))
            else:
                _flag_unknown(known, at)
                rows = rows.filter(at__gt=known.at)
        lines = (f"{of(row).line()}\n" for row in rows.iterator(chunk_size=LINES))
        while batch := list(itertools.islice(lines, LINES)):
            _write_all(descriptor, "".join(["" if whole else "\n", *batch]))
            whole, done = True, done + len(batch)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _reached = (path, last.pk)
    return done


def _end(descriptor: int) -> tuple[bool, Checkpoint | None]:
    """Return whether the file ends in a whole line, and the last checkpoint in it."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, TAIL_BYTES, max(size - TAIL_BYTES, 0))
    for line in reversed(text.decode(errors="replace").splitlines()):
        try:
            return text.endswith(b"\n"), read(line)
        except NotACheckpoint:
            continue
    return not text or text.endswith(b"\n"), None


def _write_all(descriptor: int, text: str) -> None:
    left = memoryview(text.encode())
    while left:
        left = left[os.write(descriptor, left) :]


def _flag_unknown(known: Checkpoint, at: datetime) -> None:
    """The file knows what the database does not: it was set back, or another database writes here."""
    anomalies.flag(
        rule="audit_checkpoint_unknown",
        severity=Severity.CRITICAL,
        object_kind="auditcheckpoint",
        object_id=known.id,
        at=at,
        evidence={"size": known.size, "said_at": known.at, "file": str(settings.AUDIT_CHECKPOINT_FILE)},
    )


def in_file(path: Path) -> Iterator[tuple[int, Checkpoint | None]]:
    """Return the lines of a file of checkpoints by number; None for one that is none.

    A line that a crash cut off is passed over: the next one begins with the same words.
    """
    with path.open(errors="replace") as file:
        cut: tuple[int, str] | None = None
        for number, raw in enumerate(file, start=1):
            line = raw.strip()
            if cut and not line.startswith(cut[1]):
                yield cut[0], None
            cut = None
            if not line:
                continue
            try:
                yield number, read(line)
            except NotACheckpoint:
                cut = number, line
        if cut and raw.endswith("\n"):
            yield cut[0], None


# --- mail and webhook -----------------------------------------------------------------------------------


def deliver_mail(message: OutboxMessage) -> None:
    """Send a checkpoint to the addresses of AUDIT_CHECKPOINT_MAIL."""
    row = AuditCheckpoint.objects.get(pk=message.payload["checkpoint"])
    said = of(row)
    body = (
        f"A checkpoint of the audit record of {settings.PUBLIC_URL}.\n\n{said.text()}\nAs a line for the verifier:\n"
        f"{said.line()}\n\nKeep this mail: it proves what the record held. See docs/audit.md.\n"
    )
    EmailMessage(
        subject=f"Audit checkpoint: {row.size} entries",
        body=body,
        to=settings.AUDIT_CHECKPOINT_MAIL,
        headers={"Message-ID": f"<{message.pk}@licentia>"},
    ).send()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def deliver_webhook(message: OutboxMessage) -> None:
    """Post a checkpoint to AUDIT_CHECKPOINT_WEBHOOK. Raises `OSError` or `CheckpointRefused`; redirects are not
    followed."""
    row = AuditCheckpoint.objects.get(pk=message.payload["checkpoint"])
    request = urllib.request.Request(  # noqa: S310  the scheme is checked at start
        settings.AUDIT_CHECKPOINT_WEBHOOK,
        data=of(row).line().encode(),
        headers={"Content-Type": "application/json", "User-Agent": "Licentia", "Webhook-Id": str(message.pk)},
        method="POST",
    )
    with _opener.open(request, timeout=PATIENCE_SECONDS) as answer:
        if not 200 <= answer.status < 300:
            raise CheckpointRefused(f"It answered {answer.status}.")


def _delivering(where: str, deliver: outbox.Handler) -> outbox.Handler:
    def handler(message: OutboxMessage) -> None:
        try:
            deliver(message)
        except Exception as error:
            # The outbox tries again; that a witness is missing meanwhile is to be known at once.
            _flag("audit_checkpoint_not_delivered", where, message.due_at, error)
            raise

    return handler


outbox.deliver(kind=MAIL, by=_delivering("mail", deliver_mail))
outbox.deliver(kind=WEBHOOK, by=_delivering("webhook", deliver_webhook))


# --- how they stand ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sink:
    """A place checkpoints go to: up to when it has them all, how long it lacks one, and what it last said."""

    name: str
    reached_at: datetime | None
    behind: timedelta
    error: str = ""


def sinks(*, at: datetime) -> list[Sink]:
    """Return how the places stand that are set, besides the database."""
    found = []
    if settings.AUDIT_CHECKPOINT_FILE:
        found.append(_file_sink(at))
    for name, kind, where in (
        ("mail", MAIL, settings.AUDIT_CHECKPOINT_MAIL),
        ("webhook", WEBHOOK, settings.AUDIT_CHECKPOINT_WEBHOOK),
    ):
        if where:
            found.append(_outbox_sink(name, kind, at))
    return found


def _file_sink(at: datetime) -> Sink:
    last = latest()
    try:
        descriptor = os.open(settings.AUDIT_CHECKPOINT_FILE, os.O_RDONLY)
        try:
            _, known = _end(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if last is None and isinstance(error, FileNotFoundError):
            return Sink("file", None, timedelta())
        return Sink("file", None, at - last.at if last else timedelta(), f"{type(error).__name__}: {error.strerror}")
    if last is None or (known is not None and known.id == str(last.pk)):
        return Sink("file", known.at if known else None, timedelta())
    first = AuditCheckpoint.objects.order_by("at")
    lacking = (first.filter(at__gt=known.at) if known else first).values_list("at", flat=True).first()
    return Sink("file", known.at if known else None, max(at - (lacking or last.at), timedelta()))


def _outbox_sink(name: str, kind: str, at: datetime) -> Sink:
    messages = OutboxMessage.objects.filter(kind=kind)
    waiting = messages.filter(delivered_at=None, given_up_at=None).order_by("due_at", "id").first()
    reached = messages.filter(delivered_at__isnull=False).order_by("-id").values_list("delivered_at", flat=True).first()
    if waiting is None:
        return Sink(name, reached, timedelta())
    return Sink(name, reached, max(at - waiting.created_at, timedelta()), waiting.last_error)


def uncovered(*, at: datetime) -> timedelta:
    """Return how long the oldest entry of the chain has been there that no checkpoint covers."""
    last = latest()
    first = AuditLink.objects.filter(number=(last.size if last else 0) + 1).values_list("entry_id", flat=True).first()
    return max(at - ids.made_at(first), timedelta()) if first else timedelta()


def problems(*, at: datetime) -> dict[str, str]:
    """Return what is wrong with chain, checkpoints and their places now, in words, by name; empty when nothing is.

    It reads a few rows and the end of a file. Whether the record was altered is for `verifying`.
    """
    found = {}
    if (late := chain.lag(at=at)) > chain.LATE:
        found["audit_chain"] = f"The oldest audit entry without a number has waited {late.total_seconds():.0f} s."
    if (late := uncovered(at=at)) > UNCOVERED:
        found["audit_checkpoint"] = f"No checkpoint for {late.total_seconds():.0f} s covers the newest audit entries."
    for sink in sinks(at=at):
        if sink.error or sink.behind > BEHIND:
            why = sink.error or f"It lacks one for {sink.behind.total_seconds():.0f} s."
            found[f"audit_sink:{sink.name}"] = f"Checkpoints do not reach the {sink.name}: {why}"
    return found
