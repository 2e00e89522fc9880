"""What tests of payments get: a gateway of their own, and this installation configured for it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.stripe_fake import KEY, WEBHOOK_SECRET, StripeFake

APRIL_4 = datetime(2026, 4, 4, 1, tzinfo=UTC)


@pytest.fixture
def gate(settings: Any) -> Iterator[StripeFake]:
    with StripeFake(APRIL_4) as fake:
        settings.STRIPE_SECRET_KEY, settings.STRIPE_WEBHOOK_SECRET = KEY, WEBHOOK_SECRET
        settings.STRIPE_API_BASE = fake.base
        yield fake
