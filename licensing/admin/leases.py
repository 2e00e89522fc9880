"""Staff pages of leases and license files: who is working now, and what is out there to be used offline."""

from datetime import datetime
from typing import Any, ClassVar

from django.contrib import admin

from licensing import leases
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import instant, link_to
from licensing.admin.licenses import OfLicense, used
from licensing.models import Lease, LicenseFile


def _machine(row: Lease | LicenseFile) -> str:
    named = row.activation.name if row.activation else ""
    fingerprint = row.fingerprint if isinstance(row, Lease) else row.activation.fingerprint
    return named or (f"{fingerprint[:16]}…" if fingerprint else "not said")


def _says_end(lease: Lease, at: datetime) -> list[str]:
    says = ["Its unit is free at once, for whoever asks first. The program there is refused at its next heartbeat."]
    if lease.offline and lease.expires_at > at:
        says.append(
            f"It is borrowed: a machine that is offline can go on until {lease.expires_at:%Y-%m-%d %H:%M} UTC, "
            "and one more may then be at work than the license allows."
        )
    return says


@admin.register(Lease)
class LeaseAdmin(OfLicense):
    """Leases: seen and ended; checked out only by the machine itself."""

    list_display = ("machine", "license_shown", "offline", "checked_out_at", "renewed_at", "expires_at", "ended_at")
    list_select_related: ClassVar[tuple[str, ...]] = ("license__customer", "license__product", "activation")
    list_filter = (("ended_at", admin.EmptyFieldListFilter), "offline")
    search_fields = ("=fingerprint",)
    search_help_text = "Fingerprint, or license id"
    acts = (
        Act(
            name="end",
            label="End…",
            permission="licensing.manage_seats",
            rule=leases.end,
            row_as="lease",
            says=_says_end,
            done="The lease is ended.",
            offered=lambda lease, at: lease.ended_at is None,
            goes_to=lambda lease, result: lease.license,
            danger=True,
        ),
    )

    @theme.display(description="machine")
    def machine(self, row: Lease) -> str:
        return _machine(row)

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Machine", _machine(row)),
            ("Since (UTC)", instant(row.checked_out_at)),
            ("Until (UTC)", instant(row.expires_at)),
            ("License", link_to(row.license, str(row.license_id))),
            ("Customer", str(row.license.customer)),
            ("Units out", used(row.license.seats_used, row.license.seat_limit)),
        ]


@admin.register(LicenseFile)
class LicenseFileAdmin(OfLicense):
    """License files: the record of each. One that is out cannot be taken back before it expires."""

    list_display = ("machine", "license_shown", "issued_at", "expires_at", "encrypted", "kid")
    list_select_related: ClassVar[tuple[str, ...]] = ("license__customer", "license__product", "activation")
    list_filter = ("encrypted",)
    search_fields = ("=activation__fingerprint", "=kid")
    search_help_text = "Fingerprint, signing key's id, or license id"
    date_hierarchy = "expires_at"

    @theme.display(description="machine")
    def machine(self, row: LicenseFile) -> str:
        return _machine(row)
