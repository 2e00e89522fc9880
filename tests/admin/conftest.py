"""Who is signed in to the staff admin, and how a test reads the last audit entry."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from licensing import audit
from licensing.models import AuditEntry
from tests.factories import make_user

BACKEND = "django.contrib.auth.backends.ModelBackend"


def sign_in(*permissions: str, **overrides: Any) -> Client:
    """Return the browser of a staff person with these permissions (`app.codename`) and no other."""
    from django.contrib.auth.models import Permission

    user = make_user(**{"is_staff": True} | overrides)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    client = Client()
    client.force_login(user, backend=BACKEND)
    client.user = user  # type: ignore[attr-defined]
    return client


@pytest.fixture
def staff(db: None) -> Client:
    """The browser of a superuser."""
    return sign_in(is_superuser=True)


def page(row: Any) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


def listing(model: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def adding(model: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")


def act(row: Any, name: str) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_act", args=[row.pk, name])


def recorded() -> Any:
    """Return the audit entries of changes: not those of who was shown personal data."""
    return AuditEntry.objects.exclude(action__endswith=".seen").exclude(action__endswith=".listed")


def last_entry() -> AuditEntry:
    """Return the newest audit entry of a change, as one who may read it sees it."""
    return audit.opened(recorded().order_by("-id")[:1])[0]


def text_of(response: Any) -> str:
    return str(response.content.decode())
