"""The licensing app: what is allowed. Reinstalls the database guards after every migrate."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate, pre_migrate


class LicensingConfig(AppConfig):
    name = "licensing"
    verbose_name = "Licensing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        pre_migrate.connect(_make_way_for_migrations, sender=self)
        post_migrate.connect(_reinstall_guards, sender=self)


def _make_way_for_migrations(using: str, plan: list[Any], **_: Any) -> None:
    from licensing import guards

    if plan:
        guards.make_way(using=using)


def _reinstall_guards(using: str, **_: Any) -> None:
    # SQLite remakes a table to alter it and its triggers are gone afterwards (measured: R9), so every migrate
    # ends here, whatever it did.
    from licensing import guards

    guards.install(using=using)
