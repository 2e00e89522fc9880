"""Entry and change are one: what the rules of `test_audit` do is undone to the last column without its entry."""

import pytest
from django.apps import apps
from django.db import DatabaseError, transaction

from licensing import activations, keys, lifecycle, seats
from licensing.models import AuditEntry
from tests.factories import AT, make_actor, make_customer, make_license
from tests.licensing.test_audit import RULES

pytestmark = pytest.mark.django_db
IDS = [action for action, _, _ in RULES]


def everything() -> dict[str, list[str]]:
    """Return all rows of ours with all their columns, entries and histories included."""
    models = [*apps.get_app_config("licensing").get_models(), *apps.get_app_config("portal").get_models()]
    return {model.__name__: sorted(map(repr, model._base_manager.values_list())) for model in models}


@pytest.mark.parametrize(("action", "given", "rule"), RULES, ids=IDS)
def test_it_undoes_the_change_by_itself_when_its_entry_is_refused(action, given, rule, monkeypatch):
    subject = given()
    before = everything()

    def refused(self, *args, **kwargs):
        raise DatabaseError("the database refuses")

    monkeypatch.setattr(AuditEntry, "save", refused)
    # No transaction of the caller's: the rule brings its own, or half of its change would stay.
    with pytest.raises(DatabaseError, match="the database refuses"):
        rule(subject)

    assert everything() == before


@pytest.mark.parametrize(("action", "given", "rule"), RULES, ids=IDS)
def test_it_leaves_no_entry_when_the_caller_takes_the_change_back(action, given, rule):
    subject = given()
    before = everything()

    with pytest.raises(RuntimeError), transaction.atomic():
        rule(subject)
        raise RuntimeError

    assert everything() == before


@pytest.mark.parametrize(("action", "given", "rule"), RULES, ids=IDS)
def test_it_names_what_it_is_about(action, given, rule):
    subject = given()
    known = set(AuditEntry.objects.values_list("pk", flat=True))

    rule(subject)

    entry = AuditEntry.objects.exclude(pk__in=known).get()
    assert entry.object_id
    assert bool(entry.license_id) is (entry.object_kind in ("license", "seat", "activation", "lease", "licensefile"))
    if entry.object_kind in ("license", "seat", "activation", "lease", "licensefile", "customer", "member"):
        assert entry.customer_id


def test_it_writes_an_entry_for_each_thing_a_transfer_lets_go():
    license = make_license()
    for name in "ab":
        seats.assign(license=license, holder=f"{name}@example.com", by=make_actor(), at=AT)
    activations.activate(license=license, fingerprint="machine-000000000001", by=make_actor(), at=AT)
    heir = make_customer()
    known = set(AuditEntry.objects.values_list("pk", flat=True))

    lifecycle.transfer(license=license, to=heir, by=make_actor(), at=AT, reason="sold")

    entries = AuditEntry.objects.exclude(pk__in=known).order_by("id")
    assert [entry.action for entry in entries] == [
        "seat.released",
        "seat.released",
        "activation.ended",
        "key.rotated",
        "license.transferred",
    ]
    assert {entry.license_id for entry in entries} == {license.pk}


def test_it_says_that_a_key_was_looked_up():
    license = make_license()
    key = keys.reveal(license=license, by=make_actor(), reason="x", at=AT)

    row = keys.look_up(key.lower(), by=make_actor(), at=AT)

    entry = AuditEntry.objects.get(action="license.looked_up")
    assert (row.license, entry.license_id, entry.after) == (license, license.pk, {"key_last5": key[-5:]})
