"""The licensing app: what is allowed. Reinstalls the database guards after every migrate."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class LicensingConfig(AppConfig):
    name = "licensing"
    verbose_name = "Licensing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        post_migrate.connect(_reinstall_guards, sender=self)


def _reinstall_guards(using: str, **_: Any) -> None:
    # SQLite remakes a table to alter it and its triggers are gone afterwards (measured: R9), so every migrate
    # ends here, whatever it did.
    from licensing import guards

    guards.install(using=using)
