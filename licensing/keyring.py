"""The life of the keys in the ring: add, promote, disable, enable, destroy; sealing anew; backup; and noticing a loss.

The order is Tink's: a key is known to every process before anything is made with it, and nothing is left under a key
before it goes. Both are checked here, not left to discipline. Every process re-reads the ring when it changes, so a
rotation needs no restart. Source: ADRs 0005 and 0011.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import Model
from django.utils import timezone

from licensing import anomalies, audit, crypto, persons, proofs
from licensing.background import Periodic
from licensing.crypto import KeyRing, KeyRingError, Place, Purpose, RingKey
from licensing.errors import Refused
from licensing.models import (
    Credential,
    IdempotencyRecord,
    JobState,
    KeyCanary,
    License,
    LicenseKey,
    Person,
    RingReader,
    WebhookEndpoint,
)
from licensing.states import Severity

log = structlog.get_logger(__name__)

# Every column that holds a sealed value, and every one that holds a keyed digest with its kid beside it.
SEALED: tuple[tuple[type[Model], str], ...] = (
    (LicenseKey, "sealed"),
    (IdempotencyRecord, "sealed_answer"),
    (WebhookEndpoint, "sealed_secret"),
    (WebhookEndpoint, "sealed_former_secret"),
    (Person, "sealed"),
)
DIGESTED: tuple[type[Model], ...] = (LicenseKey, Credential, Person)
WAITS_BEFORE_DESTROYED = timedelta(days=30)
LIVE_SECONDS = 60
LOOKS_SECONDS = 2.0
BACKUP_AGE = timedelta(days=35)
_CANARY = b"licentia key canary"
_SCRYPT = {"n": 2**15, "r": 8, "p": 1}
BACKUP = "key-ring-backup"


class StillInUse(Refused):
    """Something still needs this key."""

    code = "key_in_use"


class NotKnownEverywhere(Refused):
    """A running process has not read this key yet."""

    code = "key_not_known_everywhere"


class BackupNotOpened(KeyRingError):
    """The backup does not open: another passphrase, or it was altered."""

    code = "backup_not_opened"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run of `reencrypt` has come."""

    done: int
    total: int
    what: str


# --- the life of a key ------------------------------------------------------------------------------


def add(*, purpose: Purpose, at: datetime) -> RingKey:
    """Add a new key as pending: it opens, finds and verifies, and nothing is made with it yet."""
    key = crypto.make_key(purpose)
    _change(lambda keys: [*keys, key], "keyring.key_added", key, at)
    return key


def promote(*, kid: str, at: datetime, force: bool = False) -> RingKey:
    """Make new values with this key from now on; the former primary stays active.

    Raises:
        NotKnownEverywhere: a live process has not read it; it does so by itself within seconds.
    """
    chosen = _named(kid)
    unaware = [reader.process for reader in readers(at=at) if kid not in reader.kids]
    if unaware and not force:
        raise NotKnownEverywhere(
            f"{len(unaware)} running processes have not read this key yet, among them {unaware[0]}. They do so "
            f"within seconds; where the ring comes from the environment, restart them. Then promote again."
        )
    if chosen.state not in ("pending", "active"):
        raise Refused(f"A {chosen.state} key cannot be promoted.")

    def promoted(keys: tuple[RingKey, ...]) -> list[RingKey]:
        former = {key.kid: "active" for key in keys if key.purpose == chosen.purpose and key.state == "primary"}
        return [replace(key, state=(former | {kid: "primary"}).get(key.kid, key.state)) for key in keys]

    _change(promoted, "keyring.key_promoted", chosen, at)
    return chosen


def disable(*, kid: str, at: datetime) -> RingKey:
    """Let the key do nothing from now on; it can be enabled again. A signing key's statements are refused at once.

    Raises:
        StillInUse: it is primary, or rows are still sealed or digested under it.
    """
    chosen = _named(kid)
    if chosen.state == "primary":
        raise StillInUse("This key is primary. Add another one and promote it first.")
    left = rows_under(kid)
    if left:
        words = ", ".join(f"{count} of {table}" for table, count in left.items())
        raise StillInUse(f"Rows are left under this key: {words}. Run: manage.py keyring reencrypt")
    _change(_into(kid, "disabled"), "keyring.key_disabled", chosen, at)
    return chosen


def enable(*, kid: str, at: datetime) -> RingKey:
    """Let a disabled key open, find and verify again."""
    chosen = _named(kid)
    if chosen.state != "disabled":
        raise Refused(f"This key is {chosen.state}, not disabled.")
    _change(_into(kid, "active"), "keyring.key_enabled", chosen, at)
    return chosen


def destroy(*, kid: str, at: datetime, now: bool = False) -> RingKey:
    """Take the material of a disabled key out of the ring, for good.

    Raises:
        Refused: it is not disabled, or was so for less than `WAITS_BEFORE_DESTROYED` and `now` is not said.
    """
    chosen = _named(kid)
    if chosen.state != "disabled":
        raise Refused(f"This key is {chosen.state}; only a disabled key is destroyed.")
    since = datetime.fromisoformat(chosen.changed_at or chosen.created_at)
    if at - since < WAITS_BEFORE_DESTROYED and not now:
        raise Refused(
            f"It is disabled since {since:%Y-%m-%d}. It can be destroyed from "
            f"{since + WAITS_BEFORE_DESTROYED:%Y-%m-%d} on, or with --now; there is no way back."
        )
    gone = replace(chosen, state="destroyed", material=b"", changed_at=at.isoformat())
    _change(lambda keys: [gone if key.kid == kid else key for key in keys], "keyring.key_destroyed", chosen, at)
    KeyCanary.objects.filter(kid=kid).update(destroyed_at=at)
    return gone


def _named(kid: str) -> RingKey:
    found = next((key for key in crypto.ring().keys if key.kid == kid), None)
    if found is None:
        raise Refused("The ring has no such key. See: manage.py keyring status")
    if not isinstance(found, RingKey):
        raise Refused("This key is its provider's to change.")
    return found


def _into(kid: str, state: str) -> Callable[[tuple[RingKey, ...]], list[RingKey]]:
    stamp = timezone.now().isoformat()
    return lambda keys: [replace(key, state=state, changed_at=stamp) if key.kid == kid else key for key in keys]


def _change(edit: Callable[[tuple[RingKey, ...]], list[RingKey]], action: str, key: RingKey, at: datetime) -> None:
    """Write the ring as `edit` makes it of the one on disk right now: two changes at once lose none."""
    path = file()
    with path.with_suffix(".lock").open("w") as lock, transaction.atomic():
        fcntl.flock(lock, fcntl.LOCK_EX)
        crypto.forget()
        keys = edit(crypto.ring().keys)
        _record(action, at, {"kid": key.kid, "purpose": key.purpose})
        crypto.write(KeyRing(keys), path)
    keep_canaries(at=at)


def _record(action: str, at: datetime, after: dict[str, Any]) -> None:
    # The ring has no row of its own; the job row of that name is what the entry is about.
    row, _ = JobState.objects.get_or_create(name="key-ring")
    audit.record(action=action, by=audit.system("keyring"), on=row, at=at, after=after)


def file() -> Path:
    """Return where the ring is. Raises `Refused` where it is not a file."""
    if settings.KEYRING or settings.KEYRING_PROVIDER:
        raise Refused("The ring does not come from a file here; change it where it comes from, or use KEYRING_FILE.")
    if not settings.KEYRING_FILE:
        raise Refused("Set KEYRING_FILE to where the ring is, or shall be.")
    return Path(settings.KEYRING_FILE)


# --- nothing left under a key -----------------------------------------------------------------------


def rows_under(kid: str) -> dict[str, int]:
    """Return how many rows of each table need this key to be opened or found; empty is the proof that none does."""
    counts = {}
    for model, field in SEALED:
        counts[model._meta.db_table] = model._default_manager.filter(**{f"{field}__startswith": f"v1.{kid}."}).count()
    for model in DIGESTED:
        name = model._meta.db_table
        rows = model._default_manager.filter(digest_kid=kid)
        if model is Credential:  # one that has ended is refused whether it is found or not
            rows = rows.filter(revoked_at=None, expires_at__gt=timezone.now())
        counts[name] = counts.get(name, 0) + rows.count()
    counts[License._meta.db_table] = License.objects.filter(terms_kid=kid).count()
    return {table: count for table, count in counts.items() if count}


def reencrypt(*, at: datetime, batch: int = 500) -> Iterator[Progress]:
    """Seal everything anew under the primary keys, and digest anew what can be opened; yield how far it has come.

    Work is found by what is under other keys, so it can be stopped anywhere and run again, next to live traffic. Each
    row is changed only if it still holds what was read. A digest alone (API credentials) stays until it has ended, and
    a license whose terms somebody wrote past the rules stays until a person has looked.
    """
    done, primary = 0, crypto.ring().primary("seal").kid
    digesting = crypto.ring().primary("digest").kid
    for model, field in SEALED:
        rows = model._default_manager.exclude(**{field: ""}).exclude(**{f"{field}__startswith": f"v1.{primary}."})
        total = rows.count()
        for pks in _batches(rows, batch):
            for row in model._default_manager.filter(pk__in=pks):
                done += _reseal(model, field, row)
            yield Progress(done, done + max(total - done, 0), f"{model._meta.db_table}.{field}")
    keys = LicenseKey.objects.exclude(digest_kid=digesting)
    for pks in _batches(keys, batch):
        for key in LicenseKey.objects.filter(pk__in=pks):
            canonical = crypto.unseal(key.sealed, Place(LicenseKey._meta.db_table, str(key.pk), "sealed"))
            kid, digest = crypto.digest(canonical, kind="license-key")
            done += LicenseKey.objects.filter(pk=key.pk, digest_kid=key.digest_kid).update(
                digest_kid=kid, digest=digest
            )
        yield Progress(done, done, "licensing_licensekey.digest")
    for pks in _batches(Person.objects.filter(erased_at=None).exclude(digest_kid=digesting), batch):
        for person in Person.objects.filter(pk__in=pks, erased_at=None):
            kid, digest = persons.digested_anew(person)
            done += Person.objects.filter(pk=person.pk, digest_kid=person.digest_kid).update(
                digest_kid=kid, digest=digest
            )
        yield Progress(done, done, "licensing_person.digest")
    for pks in _batches(License.objects.exclude(terms_kid=digesting), batch):
        with transaction.atomic():
            for license in License.objects.select_for_update(no_key=True).filter(pk__in=pks).order_by("pk"):
                done += _prove_anew(license)
        yield Progress(done, done, "licensing_license.terms_mac")
    if done:
        with transaction.atomic():
            _record("keyring.reencrypted", at, {"rows": done, "seal": primary, "digest": digesting})


def _batches(rows: Any, size: int) -> Iterator[list[Any]]:
    last = None
    while True:
        page = rows.order_by("pk")
        if last is not None:
            page = page.filter(pk__gt=last)
        pks = list(page.values_list("pk", flat=True)[:size])
        if not pks:
            return
        last = pks[-1]
        yield pks


def _reseal(model: type[Model], field: str, row: Any) -> int:
    place, old = Place(model._meta.db_table, str(row.pk), field), getattr(row, field)
    if not old:
        return 0
    new = crypto.seal(crypto.unseal(old, place), place)
    return model._default_manager.filter(pk=row.pk, **{field: old}).update(**{field: new})


def _prove_anew(license: License) -> int:
    if not proofs.stand(license):
        return 0
    proofs.seal(license)
    return License.objects.filter(pk=license.pk).update(terms_kid=license.terms_kid, terms_mac=license.terms_mac)


# --- backup -----------------------------------------------------------------------------------------


def backup(*, to: Path, passphrase: str, at: datetime) -> None:
    """Write the ring to a new private file, sealed under a passphrase (scrypt, AES-256-GCM)."""
    if len(passphrase) < 15:
        raise Refused("A passphrase has at least 15 characters.")
    salt, nonce = os.urandom(16), os.urandom(12)
    head = {
        "licentia_key_ring_backup": 1,
        "made_at": at.isoformat(),
        "kids": [key.kid for key in crypto.ring().keys],
        "scrypt": {**_SCRYPT, "salt": salt.hex()},
        "nonce": nonce.hex(),
    }
    sealed = _sealing(passphrase, salt).encrypt(nonce, crypto.ring().dump().encode(), _written(head).encode())
    with os.fdopen(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(_written({**head, "sealed": b64encode(sealed).decode()}))
        out.flush()
        os.fsync(out.fileno())
    with transaction.atomic():
        JobState.objects.update_or_create(name=BACKUP, defaults={"last_finished_at": at})
        _record("keyring.backed_up", at, {"kids": head["kids"]})


def opened(*, file: Path, passphrase: str) -> KeyRing:
    """Return the ring in a backup. Raises `BackupNotOpened` if a single byte of it is not as it was written."""
    try:
        text = file.read_text()
        document = json.loads(text)
        if _written(document) != text or document["scrypt"] != {**_SCRYPT, "salt": document["scrypt"]["salt"]}:
            raise BackupNotOpened()
        head = {name: value for name, value in document.items() if name != "sealed"}
        sealed = crypto.unb64(document["sealed"].replace("+", "-").replace("/", "_").rstrip("="))
        key = _sealing(passphrase, bytes.fromhex(head["scrypt"]["salt"]))
        plain = key.decrypt(bytes.fromhex(head["nonce"]), sealed, _written(head).encode())
    except (ValueError, KeyError, TypeError, AttributeError, crypto.NotAuthentic):
        raise BackupNotOpened() from None
    return KeyRing.parse(plain.decode())


def restore(*, file_: Path, passphrase: str, at: datetime, replacing: bool = False) -> KeyRing:
    """Put the ring of a backup in place. Raises `Refused` when there is one that was worked with and `replacing` is not
    said: one that an embedded start has just made in place of a lost one goes."""
    path, ring = file(), opened(file=file_, passphrase=passphrase)
    if path.exists() and not replacing and _was_used():
        raise Refused(f"There is a key ring at {path}. To put the backup in its place, say --replace.")
    crypto.write(ring, path)
    crypto.refuse_writes("")
    with transaction.atomic():
        _record("keyring.restored", at, {"kids": [key.kid for key in ring.keys]})
    return ring


def _was_used() -> bool:
    """Say whether something may have been made with the ring in place. One that cannot be read may have been."""
    try:
        kids = [key.kid for key in crypto.ring().keys]
    except KeyRingError:
        return True
    return KeyCanary.objects.filter(kid__in=kids).exists() or not KeyCanary.objects.exists()


def _written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _sealing(passphrase: str, salt: bytes) -> RingKey:
    material = hashlib.scrypt(passphrase.encode(), salt=salt, maxmem=2**27, dklen=32, **_SCRYPT)
    return RingKey("backup", "seal", "primary", "", material)


# --- noticing a loss --------------------------------------------------------------------------------


def keep_canaries(*, at: datetime) -> None:
    """Make the canary of every key that has none."""
    known = set(KeyCanary.objects.values_list("kid", flat=True))
    for key in crypto.ring().keys:
        if key.kid not in known and key.state not in crypto.MENDS:
            KeyCanary.objects.get_or_create(
                kid=key.kid, defaults={"purpose": key.purpose, "value": _canary(key), "created_at": at}
            )


def _canary(key: Any) -> str:
    match key.purpose:
        case "seal":
            return crypto.seal_under(key, _CANARY, _place(key.kid))
        case "digest":
            return str(key.mac(_CANARY).hex())
        case _:
            return crypto.b64(key.public_bytes())


def _place(kid: str) -> Place:
    return Place(KeyCanary._meta.db_table, kid, "value")


def examine() -> list[str]:
    """Return what is wrong with the ring, each naming a key and the mend; empty when every key is here and itself."""
    problems = []
    ring = crypto.ring()
    keys = {key.kid: key for key in ring.keys}
    for canary in KeyCanary.objects.filter(destroyed_at=None):
        key = keys.get(canary.kid)
        if key is None:
            problems.append(
                f"The key ring lacks the key '{canary.kid}' ({canary.purpose}). Restore it: manage.py keyring restore"
            )
        elif key.state not in crypto.MENDS and not _is_itself(key, canary.value):
            problems.append(
                f"The key '{canary.kid}' ({canary.purpose}) is not the one it was. Restore: manage.py keyring restore"
            )
    for purpose in crypto.PURPOSES:
        try:
            ring.primary(purpose)
        except KeyRingError as error:
            problems.append(error.detail)
    return problems


def _is_itself(key: Any, value: str) -> bool:
    try:
        if key.purpose == "seal":
            parts = value.split(".")
            sealed = crypto.unb64(parts[2]), crypto.unb64(parts[3])
            return bool(key.decrypt(*sealed, _place(key.kid).bound(key.kid)) == _CANARY)
        return _canary(key) == value
    except (crypto.NotAuthentic, IndexError):
        return False


def watch(*, at: datetime) -> list[str]:
    """Compare the ring with what this installation works with; refuse every change while a key is missing.

    What needs no missing key goes on: an activated machine that signs validates, for nothing on its way is sealed
    or digested. Returns the problems.
    """
    problems = examine()
    if problems:
        crypto.refuse_writes(" ".join(problems))
        log.error("key_ring_incomplete", problems=problems)
        anomalies.flag_later(
            rule="key_ring_incomplete",
            severity=Severity.CRITICAL,
            object_kind="key-ring",
            object_id="key-ring",
            at=at,
            evidence={"problems": problems},
        )
        return problems
    crypto.refuse_writes("")
    keep_canaries(at=at)
    return []


_process = f"{socket.gethostname()}:{os.getpid()}:{int(time.time())}"
_version: object = None
_told_at = 0.0


def start(*, at: datetime) -> list[str]:
    """Begin a web or worker process: examine the ring, and follow it from now on. Returns the problems.

    Raises:
        KeyRingError: no answer could be signed; the process must not start.
    """
    global _version
    _version = crypto.provider().version()
    problems = watch(at=at)
    try:
        crypto.ring().primary("sign")
    except KeyRingError as error:
        raise KeyRingError(" ".join([*problems, error.detail])) from None
    following.wake()
    return problems


def follow() -> int:
    """Read the ring anew if it changed, and say which keys this process knows."""
    global _version, _told_at
    current = crypto.provider().version()
    changed = current is not None and current != _version
    if changed:
        try:
            fresh = crypto.provider().load()
        except KeyRingError as error:  # the keys this process has read are still right
            log.error("key_ring_not_read", error=error.detail)
            return 0
        _version = current
        crypto.use(fresh)
        watch(at=timezone.now())
    if changed or time.monotonic() - _told_at > LIVE_SECONDS / 6:
        try:
            acknowledge(at=timezone.now())
        except DatabaseError:
            connection.close()
            return 0
        _told_at = time.monotonic()
        return 1
    return 0


following = Periodic("key-ring", LOOKS_SECONDS, follow)


def acknowledge(*, at: datetime, process: str = "") -> None:
    """Say that a process is alive, and which keys it has read."""
    kids = [key.kid for key in crypto.ring().keys]
    name = process or f"{socket.gethostname()}:{os.getpid()}:{_process.rpartition(':')[2]}"
    RingReader.objects.update_or_create(
        process=name,
        defaults={"kids": kids, "seen_at": at},
        create_defaults={"kids": kids, "seen_at": at, "started_at": at},
    )
    RingReader.objects.filter(seen_at__lt=at - timedelta(days=1)).delete()


def readers(*, at: datetime) -> list[RingReader]:
    """Return the processes that are alive."""
    return list(RingReader.objects.filter(seen_at__gt=at - timedelta(seconds=LIVE_SECONDS)))
