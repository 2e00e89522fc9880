"""Staff who are shown personal data leave an audit entry, and an act asks for its reason or is known not to."""

from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from licensing import crypto
from licensing.admin.base import StaffModelAdmin, Watched
from licensing.models import AuditEntry, Seat
from portal.models import User
from tests.admin.conftest import listing, page
from tests.admin.test_every_page import first, world
from tests.factories import make_statement, opened

__all__ = ["world"]
pytestmark = pytest.mark.django_db
WATCHED = {model: site for model, site in admin.site._registry.items() if isinstance(site, Watched)}
PERSONAL = [model for model in admin.site._registry if getattr(model, "PERSONAL", ()) and model is not AuditEntry]
NAMES = [model._meta.label for model in PERSONAL]


def written(during: Any) -> list[AuditEntry]:
    known = set(AuditEntry.objects.values_list("pk", flat=True))
    during()
    return list(AuditEntry.objects.exclude(pk__in=known).order_by("id"))


def test_every_page_of_personal_data_is_watched() -> None:
    assert {Seat, User} <= set(PERSONAL)
    for model in PERSONAL:
        site = WATCHED[model]
        assert site.shows_personal is None or "page" in site.shows_personal
        shown = {str(name) for name in site.list_display} & set(model.PERSONAL)
        assert not shown or site.shows_personal is None or "list" in site.shows_personal, model


@pytest.mark.parametrize("model", PERSONAL, ids=NAMES)
def test_who_opens_a_page_of_it_leaves_one_entry(staff: Client, world: dict[str, str], model: Any) -> None:
    row = first(model)

    entry, *more = written(lambda: staff.get(page(row)))

    assert more == []
    assert (entry.action, entry.object_kind, entry.object_id) == (
        f"{model._meta.model_name}.seen",
        model._meta.model_name,
        str(row.pk),
    )
    assert (entry.actor_kind, bool(opened(entry).actor_label), bool(opened(entry).address)) == ("staff", True, True)


def test_who_opens_a_license_sees_its_holders(staff: Client, world: dict[str, str]) -> None:
    row = first(Seat).license

    assert [entry.action for entry in written(lambda: staff.get(page(row)))] == ["license.seen"]


def test_who_lists_it_leaves_one_entry_with_the_rows(staff: Client, world: dict[str, str]) -> None:
    entry, *more = written(lambda: staff.get(listing(Seat)))

    assert more == []
    assert (entry.action, entry.object_id) == ("seat.listed", "list")
    assert entry.after == {"rows": [str(row.pk) for row in Seat.objects.order_by("-id")]}
    assert written(lambda: staff.get(listing(Seat), {"q": "nobody@example.com"})) == []


def test_who_takes_a_statements_file_leaves_an_entry(staff: Client) -> None:
    row = make_statement()

    found = written(lambda: staff.get(reverse("admin:statement_file", args=[row.pk, "csv"])))

    assert [(entry.action, entry.object_id) for entry in found] == [("statement.seen", str(row.pk))]


def test_who_is_refused_sees_nothing_and_leaves_none(client: Client, world: dict[str, str]) -> None:
    assert written(lambda: client.get(page(first(Seat)))) == []


def test_a_page_opens_while_a_key_of_the_ring_is_missing(staff: Client, world: dict[str, str]) -> None:
    crypto.refuse_writes("A key is missing.")
    try:
        found = written(lambda: staff.get(page(first(Seat))))
    finally:
        crypto.refuse_writes("")

    assert [entry.action for entry in found] == ["seat.seen"]


# Acts whose entry says all there is to say: they take nothing from anybody and bring nothing in force that was asked
# about; what undoes or goes on with them asks why.
SAY_IT_THEMSELVES = {
    # give what was bought
    "license.assign-seat",
    "license.reserve-seat",
    "seat.assign",
    # make a draft, or throw one away, that was never in force
    "plan.draft",
    "planrevision.discard",
    "meter.draft",
    "meterrevision.discard",
    "price.draft",
    "pricerevision.discard",
    # say that somebody looks; resolving asks what was found
    "anomaly.acknowledge",
    # send a message that says nothing
    "webhookendpoint.test",
    # do now what a job does by itself
    "statement.refresh",
    "statement.close",
}


def test_an_act_of_a_person_asks_why() -> None:
    unasked = set()
    for site in admin.site._registry.values():
        for act in site.acts if isinstance(site, StaffModelAdmin) else ():
            asked = set(act.form.base_fields)
            if not asked & {"reason", "note", "resolution"}:
                unasked.add(f"{site.model._meta.model_name}.{act.name}")

    assert unasked == SAY_IT_THEMSELVES
