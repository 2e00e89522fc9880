"""The key ring by hand: its status, rotation, sealing anew, backup and restore. The rules are `licensing.keyring`'s.

A rotation: `add` a key, `promote` it when every process has read it (by itself, within seconds), `reencrypt`,
`disable` the former one, and `destroy` it a month later.
"""

import getpass
import json
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.utils import timezone

from licensing import crypto, keyring
from licensing.crypto import PURPOSES, KeyRing
from licensing.errors import LicensingError
from licensing.models import Credential, JobState


class Command(BaseCommand):
    help = "Show the key ring, rotate its keys, seal anew, back it up and restore it."
    requires_system_checks: list[str] = []  # a missing ring fails them, and is mended here

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        status = actions.add_parser("status", help="list the keys, never their material; 1 when something is wrong")
        status.add_argument("--json", action="store_true")
        add = actions.add_parser("add", help="add a pending key, or make a whole new ring")
        add.add_argument("--purpose", choices=PURPOSES)
        add.add_argument("--new", action="store_true", help="make a new ring where there is none")
        promote = actions.add_parser("promote", help="make new values with this key from now on")
        promote.add_argument("--force", action="store_true", help="although a process has not read it: it is dead")
        anew = actions.add_parser("reencrypt", help="seal and digest everything anew under the primary keys")
        anew.add_argument("--batch", type=int, default=500)
        anew.add_argument("--json", action="store_true")
        disable = actions.add_parser("disable", help="let a key do nothing; a signing key's statements are refused")
        enable = actions.add_parser("enable", help="let a disabled key open, find and verify again")
        destroy = actions.add_parser("destroy", help="take a disabled key's material out of the ring, for good")
        destroy.add_argument("--now", action="store_true", help="without waiting 30 days after it was disabled")
        for each in (promote, disable, enable, destroy):
            each.add_argument("kid")
        for name, what in (
            ("backup", "write the ring to a new file, sealed under a passphrase"),
            ("restore", "put the ring of a backup in place"),
            ("verify-backup", "open a backup and compare it with the ring; 1 when it lacks a key"),
        ):
            each = actions.add_parser(name, help=what)
            each.add_argument("file", type=Path)
            each.add_argument("--passphrase-file", type=Path, help="read the passphrase from here, not from you")
            if name == "restore":
                each.add_argument("--replace", action="store_true", help="although there is a ring")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['action'].replace('-', '_')}")(options)
        except LicensingError as error:
            raise CommandError(error.detail) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from None

    def _status(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        rows = [
            {"kid": key.kid, "purpose": key.purpose, "state": key.state, "created_at": key.created_at}
            for key in crypto.ring().keys
        ]
        try:
            for row in rows:
                row["rows"] = sum(keyring.rows_under(row["kid"]).values())
            problems = keyring.examine()
            made = JobState.objects.filter(name=keyring.BACKUP).values_list("last_finished_at", flat=True).first()
            live = [reader.process for reader in keyring.readers(at=now)]
        except DatabaseError as error:
            problems, made, live = [f"The database cannot be asked: {type(error).__name__}"], None, []
        if options["json"]:
            self.stdout.write(
                json.dumps({"keys": rows, "problems": problems, "backed_up_at": made, "processes": live}, default=str)
            )
        else:
            self.stdout.write(f"{'purpose':8} {'state':9} {'key':28} {'made (UTC)':19} {'rows under it':>13}")
            for row in sorted(rows, key=lambda row: (PURPOSES.index(row["purpose"]), row["created_at"])):
                count = "" if row["purpose"] == "sign" else row.get("rows", "?")
                self.stdout.write(
                    f"{row['purpose']:8} {row['state']:9} {row['kid']:28} {row['created_at'][:19]} {count:>13}"
                )
            self.stdout.write(
                f"Read by {len(live)} running processes. "
                f"Last backup: {f'{made:%Y-%m-%d %H:%M} UTC' if made else 'never'}."
            )
            changed = max((getattr(key, "changed_at", "") or key.created_at for key in crypto.ring().keys), default="")
            if made is None or now - made > keyring.BACKUP_AGE or made.isoformat() < changed:
                self.stdout.write("Back it up: manage.py keyring backup FILE")
            for problem in problems:
                self.stdout.write(f"WRONG: {problem}")
        if problems:
            sys.exit(1)

    def _add(self, options: dict[str, Any]) -> None:
        if options["new"]:
            path = keyring.file()
            if path.exists():
                raise CommandError(f"There is a key ring at {path}. It is not replaced.")
            crypto.write(KeyRing.generate(), path, replace=False)
            self.stdout.write(f"A new key ring is at {path}. Back it up: without it no license key can be read.")
            return
        if not options["purpose"]:
            raise CommandError("Say what for: --purpose seal, digest or sign. For a new installation: --new")
        key = keyring.add(purpose=options["purpose"], at=timezone.now())
        self.stdout.write(f"{key.kid} is pending. Running processes read it by themselves within seconds.")
        if key.purpose == "sign":
            self.stdout.write(
                "It is in /.well-known/jwks.json: programs that ship the keys need it before it is promoted."
            )
        self.stdout.write(f"Back up the ring, then: manage.py keyring promote {key.kid}")

    def _promote(self, options: dict[str, Any]) -> None:
        key = keyring.promote(kid=options["kid"], at=timezone.now(), force=options["force"])
        self.stdout.write(f"{key.kid} is primary; running processes use it within seconds.")
        if key.purpose != "sign":
            self.stdout.write("Then: manage.py keyring reencrypt")

    def _disable(self, options: dict[str, Any]) -> None:
        key = keyring.disable(kid=options["kid"], at=timezone.now())
        if key.purpose == "sign":
            self.stdout.write("What it signed is refused from now on, and it is gone from /.well-known/jwks.json.")
        self.stdout.write(f"{key.kid} is disabled. To undo: manage.py keyring enable {key.kid}")

    def _enable(self, options: dict[str, Any]) -> None:
        self.stdout.write(f"{keyring.enable(kid=options['kid'], at=timezone.now()).kid} is active.")

    def _destroy(self, options: dict[str, Any]) -> None:
        key = keyring.destroy(kid=options["kid"], at=timezone.now(), now=options["now"])
        self.stdout.write(f"{key.kid} is destroyed.")

    def _reencrypt(self, options: dict[str, Any]) -> None:
        began, shown, done = time.monotonic(), 0.0, 0
        for progress in keyring.reencrypt(at=timezone.now(), batch=max(options["batch"], 1)):
            done, spent = progress.done, max(time.monotonic() - began, 0.001)
            if not options["json"] and time.monotonic() - shown > 1.0:
                shown = time.monotonic()
                rate = done / spent
                left = (progress.total - done) / rate if rate else 0
                line = f"{progress.what}: {done} of {progress.total} rows, {rate:.0f}/s, {left:.0f} s left"
                terminal = self.stdout.isatty()
                self.stdout.write(f"\r{line}\033[K" if terminal else line, ending="" if terminal else "\n")
        primary = {crypto.ring().primary(purpose).kid for purpose in PURPOSES}
        left_under = {
            key.kid: keyring.rows_under(key.kid)
            for key in crypto.ring().keys
            if key.kid not in primary and key.purpose != "sign"
        }
        if options["json"]:
            self.stdout.write(json.dumps({"rows": done, "left": left_under}))
            return
        self.stdout.write(f"{done} rows are sealed or digested anew.")
        for kid, rows in left_under.items():
            where = ", ".join(f"{count} of {table}" for table, count in rows.items())
            self.stdout.write(f"{sum(rows.values())} rows under {kid}" + (f": {where}" if where else ""))
            if set(rows) == {Credential._meta.db_table}:
                self.stdout.write("API credentials keep their digest until they expire or are revoked; then this is 0.")

    def _backup(self, options: dict[str, Any]) -> None:
        keyring.backup(to=options["file"], passphrase=passphrase(options, twice=True), at=timezone.now())
        self.stdout.write(
            f"The ring is in {options['file']}. Keep the passphrase elsewhere, and both off this machine."
        )

    def _restore(self, options: dict[str, Any]) -> None:
        ring = keyring.restore(
            file_=options["file"],
            passphrase=passphrase(options),
            at=timezone.now(),
            replacing=options["replace"],
        )
        self.stdout.write(
            f"The ring is restored, with {len(ring.keys)} keys. Running processes read it within seconds."
        )

    def _verify_backup(self, options: dict[str, Any]) -> None:
        kept = {key.kid for key in keyring.opened(file=options["file"], passphrase=passphrase(options)).keys}
        lacking = sorted({key.kid for key in crypto.ring().keys if key.state != "destroyed"} - kept)
        if lacking:
            raise CommandError(f"The backup lacks {', '.join(lacking)}. Make a new one: manage.py keyring backup FILE")
        self.stdout.write(f"The backup opens and has all {len(kept)} keys.")


def passphrase(options: dict[str, Any], *, twice: bool = False) -> str:
    """Return the passphrase that the options name, or that is typed."""
    if options["passphrase_file"]:
        return str(options["passphrase_file"].read_text().rstrip("\n"))
    given = getpass.getpass("Passphrase: ")
    if twice and getpass.getpass("Again: ") != given:
        raise CommandError("The two are not the same.")
    return given
