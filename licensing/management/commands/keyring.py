"""The key ring by hand: its status, a new key, a promotion.

A rotation takes three steps, so that every process knows a key before anything is made with it: `add` it as
pending, restart or wait until all processes have read the ring, `promote` it. The former primary stays active:
what it sealed still opens, what it signed still verifies. Source: ADR 0005.
"""

import fcntl
import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from licensing import audit, crypto
from licensing.crypto import PURPOSES, KeyRing, RingKey
from licensing.errors import LicensingError
from licensing.models import JobState


class Command(BaseCommand):
    help = "Show the key ring, add a key, promote one."
    requires_system_checks: list[str] = []  # a missing ring fails them, and is made here

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        status = actions.add_parser("status", help="list the keys, never their material; 1 when the ring is unusable")
        status.add_argument("--json", action="store_true")
        add = actions.add_parser("add", help="add a pending key, or make a whole new ring")
        add.add_argument("--purpose", choices=PURPOSES)
        add.add_argument("--new", action="store_true", help="make a new ring where there is none")
        promote = actions.add_parser("promote", help="make new values with this key from now on")
        promote.add_argument("kid")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['action']}")(options)
        except LicensingError as error:
            raise CommandError(error.detail) from None

    def _status(self, options: dict[str, Any]) -> None:
        rows = [
            {"kid": key.kid, "purpose": key.purpose, "state": key.state, "created_at": key.created_at}
            for key in crypto.ring().keys
        ]
        if options["json"]:
            self.stdout.write(json.dumps(rows, indent=1))
            return
        for row in rows:
            self.stdout.write(f"{row['purpose']:8} {row['state']:8} {row['kid']:28} {row['created_at']}")

    def _add(self, options: dict[str, Any]) -> None:
        path = _file()
        if options["new"]:
            if path.exists():
                raise CommandError(f"There is a key ring at {path}. It is not replaced.")
            crypto.write(KeyRing.generate(), path, replace=False)
            self.stdout.write(f"A new key ring is at {path}. Back it up: without it no license key can be read.")
            return
        if not options["purpose"]:
            raise CommandError("Say what for: --purpose seal, digest or sign. For a new installation: --new")
        key = crypto.make_key(options["purpose"])
        self._change(path, lambda keys: [*keys, key], "keyring.key_added", key)
        self.stdout.write(f"{key.kid} is pending. Restart every process, so that all know it.")
        self.stdout.write(f"Then: manage.py keyring promote {key.kid}")

    def _promote(self, options: dict[str, Any]) -> None:
        path = _file()
        chosen = next((key for key in crypto.ring().keys if key.kid == options["kid"]), None)
        if chosen is None:
            raise CommandError("The ring has no such key. See: keyring status")

        def promoted(keys: tuple[RingKey, ...]) -> list[RingKey]:
            former = next(key for key in keys if key.purpose == chosen.purpose and key.state == "primary")
            states = {former.kid: "active", chosen.kid: "primary"}
            return [_in_state(key, states.get(key.kid, key.state)) for key in keys]

        self._change(path, promoted, "keyring.key_promoted", chosen)
        self.stdout.write(f"{chosen.kid} is primary for every process that starts from now on. Restart the others.")

    def _change(
        self, path: Path, edit: Callable[[tuple[RingKey, ...]], list[RingKey]], action: str, key: RingKey
    ) -> None:
        """Write the ring as `edit` makes it of the one on disk right now: two changes at once lose none."""
        at = timezone.now()
        with path.with_suffix(".lock").open("w") as lock, transaction.atomic():
            fcntl.flock(lock, fcntl.LOCK_EX)
            crypto.forget()
            keys = edit(crypto.ring().keys)
            # The ring has no row of its own; the job row of that name is what the entry is about.
            row, _ = JobState.objects.get_or_create(name="key-ring")
            audit.record(
                action=action,
                by=audit.system("keyring"),
                on=row,
                at=at,
                after={"kid": key.kid, "purpose": key.purpose},
            )
            crypto.write(KeyRing(keys), path)


def _file() -> Path:
    if settings.KEYRING:
        raise CommandError("The ring comes from KEYRING in the environment; change it there, or use KEYRING_FILE.")
    if not settings.KEYRING_FILE:
        raise CommandError("Set KEYRING_FILE to where the ring is, or shall be.")
    return Path(settings.KEYRING_FILE)


def _in_state(key: RingKey, state: str) -> RingKey:
    return RingKey(key.kid, key.purpose, state, key.created_at, key.material)
