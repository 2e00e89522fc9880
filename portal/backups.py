"""Database and key ring in one folder, and back again: with proof that what comes back is what was put away.

A folder holds `database` (as the database's own tool writes it), `keyring.json` (sealed under a passphrase, see
`licensing.keyring`) and `manifest.json`: checksums of both, and how the audit chain stood, signed by the ring's key.
Nothing of a folder is trusted, or written anywhere, before all of that fits together.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader

from licensing import audit, chain, checkpoints, crypto, keyring, verifying
from licensing.crypto import KeyRing, KeyRingError, NotAuthentic
from licensing.errors import LicensingError, Refused
from licensing.models import AuditLink, JobState
from licensing.verifying import AlreadyThere

DATABASE, RING, MANIFEST = "database", "keyring.json", "manifest.json"


class NotWhole(LicensingError):
    """The backup is not as it was written, or not of an installation like this."""

    code = "backup_not_whole"


class ProgramMissing(LicensingError):
    """A program of PostgreSQL is missing, or failed."""

    code = "program_missing"


@dataclass(frozen=True, slots=True)
class Made:
    """What a backup holds: its size in bytes, and how many entries the audit chain had at least."""

    bytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back: when it was put away, what verifying found wrong, and what other places know to be lost: up to
    which entry, and when that was, by the newest checkpoint they hold."""

    made_at: datetime
    entries: int
    report: verifying.Report
    lost_to: int
    lost_at: datetime | None
    ring: str


def make(*, to: Path, passphrase: str, at: datetime) -> Made:
    """Write database and key ring to a new private folder: whole, or not at all. The installation may run meanwhile.

    Raises:
        AlreadyThere: there is something of this name.
        ProgramMissing: `pg_dump` is not on this machine, or failed.
        Refused: the passphrase is too short.
    """
    if to.exists():
        raise AlreadyThere(f"There is a file {to}. It is not replaced.")
    draft = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        keyring.backup(to=draft / RING, passphrase=passphrase, at=at)
        chain.turn(at=at)
        stands = chain.standing(at=at)  # before the copy, so the copy has at least this
        _dump(draft / DATABASE)
        manifest = {
            "licentia_backup": 1,
            "made_at": at.isoformat(),
            "vendor": connection.vendor,
            "schema": _schema(),
            "files": {name: _facts(draft / name) for name in (DATABASE, RING)},
            "chain": {"size": stands.size, "head": stands.head.hex()},
        }
        kid, signature = crypto.sign(_written(manifest))
        signed = {**manifest, "kid": kid, "signature": crypto.b64(signature)}
        _private(draft / MANIFEST, json.dumps(signed, indent=1).encode() + b"\n")
        os.rename(draft, to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Made(bytes=sum((to / name).stat().st_size for name in (DATABASE, RING)), entries=stands.size)


def restore(*, source: Path, passphrase: str, at: datetime, replacing: bool = False) -> Restored:
    """Put a backup into an empty database, and its key ring where there is none; verify the audit record then.

    A database with anything in it is never written over: what is in there may be all that is left of something. A ring
    that has every key of the backup stays: it may have newer ones.

    Raises:
        NotWhole: a file was altered, or the backup is of another kind of database or another version. Nothing was
            written.
        BackupNotOpened: another passphrase.
        Refused: the database is not empty, or another ring is in place and `replacing` is not said.
        ProgramMissing: `pg_restore` is not on this machine, or failed; on PostgreSQL nothing was written then.
    """
    manifest, ring = _checked(source, passphrase)
    if connection.introspection.table_names():
        raise Refused("The database is not empty. Make a new one beside it, and have DATABASE_URL name that.")
    keeps = _has_all(ring)
    if not keeps and keyring.file().exists() and not replacing:
        raise Refused(f"Another key ring is at {keyring.file()}. To put the backup's in its place, say --replace.")
    _load(source / DATABASE)
    if not keeps:
        keyring.restore(file_=source / RING, passphrase=passphrase, at=at, replacing=True)
    return _verified(manifest, at, "kept" if keeps else "restored")


# --- what is verified ---------------------------------------------------------------------------------


def _checked(source: Path, passphrase: str) -> tuple[dict[str, Any], KeyRing]:
    try:
        signed = json.loads((source / MANIFEST).read_bytes())
        manifest = {name: value for name, value in signed.items() if name not in ("kid", "signature")}
        files, vendor, kid = manifest["files"], manifest["vendor"], str(signed["kid"])
        datetime.fromisoformat(manifest["made_at"])
        for name in (DATABASE, RING):
            if _facts(source / name) != files[name]:
                raise NotWhole(f"{source / name} is not as it was written.")
        ring = keyring.opened(file=source / RING, passphrase=passphrase)
        public = ring.key(kid, "sign").public_bytes()
        crypto.verify_with(public, _written(manifest), crypto.unb64(str(signed["signature"])))
    except (ValueError, KeyError, TypeError, AttributeError, NotAuthentic):
        raise NotWhole(f"{source / MANIFEST} is not as it was written.") from None
    if vendor != connection.vendor:
        raise NotWhole(f"This is a backup of {vendor}; DATABASE_URL names {connection.vendor}.")
    if manifest.get("schema") != _schema():
        raise NotWhole("Another version of Licentia made this backup. Restore it with that one, then upgrade.")
    return manifest, ring


def _schema() -> list[str]:
    """Return the newest migration of each app, as this version of the program has them."""
    return sorted(".".join(node) for node in MigrationLoader(None).graph.leaf_nodes())


def _has_all(ring: KeyRing) -> bool:
    """Say whether the ring of this installation, if there is one, has every key of the backup's, as it is there."""
    if settings.KEYRING_FILE and not settings.KEYRING and not Path(settings.KEYRING_FILE).exists():
        return False  # asking for it could make one
    try:
        here = {key.kid: getattr(key, "material", None) for key in crypto.ring().keys}
    except KeyRingError:
        return False
    return all(here.get(key.kid) == key.material for key in ring.keys)


def _verified(manifest: dict[str, Any], at: datetime, ring: str) -> Restored:
    """Compare what came back with its manifest and with every checkpoint from before it was put away; those made since
    say what is lost."""
    made_at, size = datetime.fromisoformat(manifest["made_at"]), int(manifest["chain"]["size"])
    lost_to, lost_at = 0, None
    with tempfile.TemporaryDirectory() as folder:
        former = Path(folder) / "checkpoints.jsonl"
        own = Path(settings.AUDIT_CHECKPOINT_FILE) if settings.AUDIT_CHECKPOINT_FILE else None
        with former.open("w") as file:
            for _, one in checkpoints.in_file(own) if own and own.exists() else ():
                if one is None or one.at > made_at:
                    if one and one.size > size:
                        lost_to, lost_at = max((lost_to, lost_at), (one.size, one.at))
                    continue
                file.write(one.line() + "\n")
        report = verifying.verify(at=at, files=[former])
    head = AuditLink.objects.filter(number=size).values_list("chain_hash", flat=True).first()
    if size and (head is None or bytes(head).hex() != manifest["chain"]["head"]):
        report.add(verifying.Problem("rewritten", "The chain is not the one the backup's manifest names.", size))
    if lost_to <= report.size:
        lost_to, lost_at = 0, None
    with transaction.atomic():
        row, _ = JobState.objects.get_or_create(name="restore")
        after = {"made_at": made_at, "entries": report.size, "lost_to": lost_to}
        audit.record(action="installation.restored", by=audit.system("restore"), on=row, at=at, after=after)
    return Restored(made_at, report.size, report, lost_to, lost_at, ring)


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _written(manifest: dict[str, Any]) -> bytes:
    return b"licentia backup 1\n" + json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# --- the databases' own tools ---------------------------------------------------------------------------


def _dump(to: Path) -> None:
    _private(to, b"")
    if connection.vendor == "sqlite":
        connection.ensure_connection()
        _copy_sqlite(connection.connection, to)
        return
    _run("pg_dump", "--format=custom", "--no-owner", "--file", str(to))


def _load(source: Path) -> None:
    if connection.vendor == "sqlite":
        connection.ensure_connection()
        with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as stored:
            stored.backup(connection.connection)
        stored.close()
        connection.close()
        return
    # One transaction: whole, or not at all. `clean` is for the schema `public` itself, which is there already.
    options = ["--single-transaction", "--exit-on-error", "--no-owner", "--clean", "--if-exists"]
    _run("pg_restore", *options, "--dbname", str(connection.settings_dict["NAME"]), str(source))


def _copy_sqlite(live: Any, to: Path) -> None:
    stored = sqlite3.connect(to)
    try:
        live.backup(stored)
        stored.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
    finally:
        stored.close()


def _run(program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL against our database; the password goes by the environment, never in the open."""
    own = connection.settings_dict
    options = {name: str(value) for name, value in own.get("OPTIONS", {}).items() if name.startswith("ssl")}
    given = {"HOST": own["HOST"], "PORT": own["PORT"], "USER": own["USER"], "PASSWORD": own["PASSWORD"]}
    environment = {f"PG{name}": str(value) for name, value in given.items() if value}
    program_file = _program(program)
    connection.close()  # it would hold what is to be made anew
    environment |= {"PGDATABASE": str(own["NAME"]), **{f"PG{name.upper()}": value for name, value in options.items()}}
    done = subprocess.run(  # noqa: S603  the program and all it is told are ours
        [program_file, "--no-password", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise ProgramMissing(
            f"{program} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else '?'}"
        )


def _program(name: str) -> str:
    """Return where a program of PostgreSQL is: of the server's own version, else the one on the path."""
    connection.ensure_connection()
    own = Path(f"/usr/lib/postgresql/{connection.pg_version // 10_000}/bin/{name}")  # type: ignore[attr-defined]
    program = str(own) if own.exists() else shutil.which(name)
    if program is None:
        raise ProgramMissing(
            f"{name} is not on this machine. Install PostgreSQL's client programs of the server's version: on Debian, "
            f"apt install postgresql-client"
        )
    return program
