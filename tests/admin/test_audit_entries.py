"""The audit record as staff read it: names where they may be opened, "erased" where the person is."""

from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from licensing import persons, seats
from licensing.models import AuditEntry, License
from tests.admin.conftest import listing, page
from tests.factories import AT, make_actor, make_license, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def entry() -> AuditEntry:
    user = make_user(email="ada@example.com")
    actor = make_actor(kind="member", id=str(user.pk), label=user.email, address="192.0.2.9")
    seats.assign(license=make_license(), holder="bob@example.com", by=actor, at=AT)
    return AuditEntry.objects.get(action="seat.assigned")


def test_shows_who_it_was_until_they_are_erased(staff: Client, entry: AuditEntry) -> None:
    pages = [listing(AuditEntry), page(entry), page(License.objects.get())]
    for path in pages:
        assert "ada@example.com" in staff.get(path).text
    assert "192.0.2.9" in staff.get(page(entry)).text

    with transaction.atomic():
        persons.erase(rows=persons.of("ada@example.com"), at=AT)

    for path in pages:
        text = staff.get(path).text
        assert "erased" in text
        assert "ada@example.com" not in text
        assert "192.0.2.9" not in text


def test_finds_what_a_person_did_by_their_address(staff: Client, entry: AuditEntry) -> None:
    found: Any = staff.get(listing(AuditEntry), {"q": "Ada@example.com"}).context["cl"].result_list

    assert [row.pk for row in found] == [entry.pk]


def test_asks_as_often_for_many_entries_as_for_one(staff: Client, entry: AuditEntry) -> None:
    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert "ada@example.com" in staff.get(listing(AuditEntry)).text
        return len(queries)

    asked()  # what is remembered from the first page on
    one = asked()
    for number in range(5):
        by = make_actor(kind="member", id=str(number), label=f"person-{number}@example.com")
        seats.assign(license=License.objects.get(), holder=f"{number}@example.com", by=by, at=AT)

    assert asked() == one
