"""What tests of pages share: a day to live in, and a browser signed in as a member."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.urls import reverse

from licensing.models import Member
from tests import factories

TODAY = factories.AT + timedelta(days=1)


@pytest.fixture(autouse=True)
def _a_day_after_the_factories() -> Iterator[None]:
    with time_machine.travel(TODAY):
        yield


@pytest.fixture(autouse=True)
def _no_pauses(settings: Any) -> None:
    """Tests sign in more often than people; the limits counted in the cache outlive a test."""
    settings.ACCOUNT_RATE_LIMITS = False


@pytest.fixture
def signed_in() -> Callable[[Member], Client]:
    """Return a browser signed in as this member's person."""

    def sign_in(member: Member) -> Client:
        client = Client(enforce_csrf_checks=False)
        client.force_login(member.user, backend="django.contrib.auth.backends.ModelBackend")
        return client

    return sign_in


@pytest.fixture
def confirmed(signed_in: Callable[[Member], Client]) -> Callable[[Member], Client]:
    """Return a browser whose person gave the password a moment ago."""

    def confirm(member: Member) -> Client:
        client = signed_in(member)
        answer = client.post(reverse("account_reauthenticate"), {"password": factories.PASSWORD})
        assert answer.status_code == 302
        return client

    return confirm
