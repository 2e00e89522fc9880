"""Change of scheme per license: now, scheduled, undone."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction

from licensing import activations, leases, license_files, lifecycle, schemes, seats, sweeps, switches
from licensing.catalog import Grant
from licensing.errors import Invalid
from licensing.lifecycle import ChangedSince, ChangeNotInForce, LicenseNotUsable, OtherProduct
from licensing.models import AuditEntry, License, SchemeChange, Seat, Term
from licensing.schemes import NoRevisionWithScheme, SchemeUnchanged, TermStartsAlready
from licensing.seats import SeatsNotNamed
from licensing.switches import ChangeScheduledAlready, NotScheduled
from tests.factories import AT, BY, make_customer, make_license, make_plan, make_revision

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)


def metered(license, **terms):
    """Return a published usage revision of a new plan of the license's product, unless said otherwise."""
    plan = terms.pop("plan", None) or make_plan(product=license.product)
    calls = Grant(key="calls", kind="allowance", meter="calls", amount=Decimal(1000))
    return make_revision(plan=plan, **{"scheme": "usage", "grants": [calls]} | terms)


def switched(license, at=AT + DAY, **terms):
    """Put the license under a new plan of its product: usage, unless said otherwise."""
    revision = metered(license, **{"seat_limit": None} | terms)
    lifecycle.change_plan(license=license, plan_revision=revision, by=BY, at=at, reason="wished")
    return SchemeChange.objects.filter(license=license).latest("pk")


def stored(license):
    """Return the license's row as the database has it, but what only rises."""
    with connection.cursor() as cursor:
        key = license.pk.hex if connection.vendor == "sqlite" else str(license.pk)
        cursor.execute("SELECT * FROM licensing_license WHERE id = %s", [key])
        names = [column[0] for column in cursor.description]
        row = dict(zip(names, cursor.fetchone(), strict=True))
    return {
        name: bytes(value) if isinstance(value, memoryview) else value
        for name, value in row.items()
        if name not in schemes.NEVER_PUT_BACK
    }


# --- undo -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"scheme": "both", "seat_limit": 1},
        {"duration": None},
        {"grace_period": timedelta(days=3), "maintenance": timedelta(days=9)},
        {"activation_limit": 0},
    ],
)
def test_it_puts_the_row_back_byte_for_byte(terms):
    license = make_license(seat_limit=3)
    for number in range(3):
        seats.assign(license=license, holder=f"{number}@example.com", by=BY, at=AT)
    activations.activate(license=license, fingerprint="a" * 32, by=BY, at=AT)
    before, revision = stored(license), License.objects.get(pk=license.pk).revision

    change = switched(license, **terms)
    between = stored(license)
    lifecycle.undo_change(change=change, by=BY, at=AT + 2 * DAY, reason="by mistake")

    assert between != before
    assert stored(license) == before
    assert License.objects.get(pk=license.pk).revision > revision + 1


def test_it_counts_an_undone_term_as_if_it_had_never_been():
    license = make_license()
    change = switched(license)

    assert schemes.term_at(license=license, at=AT + DAY).scheme == "usage"
    lifecycle.undo_change(change=change, by=BY, at=AT + 2 * DAY)

    assert schemes.term_at(license=license, at=AT + DAY).reason == "issued"
    assert Term.objects.filter(license=license).count() == 2
    assert SchemeChange.objects.get().state == "undone"
    assert AuditEntry.objects.filter(action="license.change_undone", license_id=license.pk).count() == 1


def test_it_can_start_a_term_again_where_one_was_undone():
    license = make_license()
    change = switched(license)
    lifecycle.undo_change(change=change, by=BY, at=AT + 2 * DAY)

    again = switched(license, scheme="both")

    assert schemes.term_at(license=license, at=AT + DAY) == again.term


def test_it_keeps_what_others_did_meanwhile():
    license = make_license(seat_limit=5)
    change = switched(license, scheme="both", seat_limit=9)
    seats.assign(license=license, holder="ada@example.com", by=BY, at=AT + DAY)
    renewed = lifecycle.renew(license=license, by=BY, at=AT + DAY).expires_at
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT + DAY)

    lifecycle.undo_change(change=change, by=BY, at=AT + 2 * DAY)

    row = License.objects.get(pk=license.pk)
    assert (row.seats_used, row.seat_limit, row.seats_ceiling, row.scheme) == (1, 5, 5, "seats")
    assert (row.expires_at, row.due_at) == (renewed, renewed)
    assert lifecycle.status_of(row, AT + 2 * DAY) == "held"
    lifecycle.lift(license=row, reason="unpaid", by=BY, at=AT + 3 * DAY)  # its terms are proved


def test_it_undoes_the_last_change_first():
    license = make_license()
    first = switched(license)
    second = switched(license, at=AT + 2 * DAY, scheme="both")

    with pytest.raises(ChangedSince):
        lifecycle.undo_change(change=first, by=BY, at=AT + 3 * DAY)
    lifecycle.undo_change(change=second, by=BY, at=AT + 3 * DAY)
    lifecycle.undo_change(change=first, by=BY, at=AT + 3 * DAY)

    assert License.objects.get(pk=license.pk).scheme == "seats"
    with pytest.raises(ChangeNotInForce):
        lifecycle.undo_change(change=first, by=BY, at=AT + 3 * DAY)


# --- seats ------------------------------------------------------------------------------------------


def test_it_keeps_seats_dormant_under_usage_and_finds_them_on_the_way_back():
    license = make_license(seat_limit=2)
    held = {seats.assign(license=license, holder=f"{n}@example.com", by=BY, at=AT).seat.pk for n in range(2)}
    own = license.plan_revision

    switched(license)
    with pytest.raises(SeatsNotNamed):
        seats.assign(license=license, holder="new@example.com", by=BY, at=AT + DAY)
    lifecycle.change_plan(license=license, plan_revision=own, by=BY, at=AT + 2 * DAY)

    assert set(Seat.objects.filter(license=license, released_at=None).values_list("pk", flat=True)) == held
    row = License.objects.get(pk=license.pk)
    assert (row.seats_used, row.seat_limit, row.scheme) == (2, 2, "seats")
    seats.release(seat=Seat.objects.filter(license=license).first(), by=BY, at=AT + 3 * DAY)


def test_it_lets_leases_and_files_issued_before_run_to_their_end():
    license = make_license(seat_kind="floating", seat_limit=2)
    machine = activations.activate(license=license, fingerprint="a" * 32, by=BY, at=AT).activation
    borrowed = leases.check_out(license=license, fingerprint="a" * 32, by=BY, at=AT, offline=True).lease
    file = license_files.issue(license=license, by=BY, at=AT, activation=machine).record
    borrowed.refresh_from_db()
    until, lapses_at = file.expires_at, borrowed.expires_at

    switched(license)

    borrowed.refresh_from_db()
    assert (borrowed.ended_at, borrowed.expires_at) == (None, lapses_at)
    assert License.objects.get(pk=license.pk).seats_used == 1
    file.refresh_from_db()
    assert file.expires_at == until > AT + DAY
    # What either counted comes later, with its own time: it is of the term its time says.
    assert schemes.term_at(license=license, at=AT + DAY - TICK).scheme == "seats"
    assert schemes.term_at(license=license, at=AT + DAY).scheme == "usage"


# --- which revision ---------------------------------------------------------------------------------


def test_it_takes_the_own_plans_revision_if_that_has_the_scheme():
    license = make_license()
    with pytest.raises(SchemeUnchanged):
        schemes.revision_with(license=license, scheme="seats")
    with pytest.raises(NoRevisionWithScheme, match="Name a plan"):
        schemes.revision_with(license=license, scheme="usage")
    with pytest.raises(Invalid):
        schemes.revision_with(license=license, scheme="rent")

    newer = metered(license, plan=license.plan_revision.plan)

    assert schemes.revision_with(license=license, scheme="usage") == newer
    with pytest.raises(Invalid, match="usage"):
        schemes.revision_with(license=license, scheme="both", plan_revision=newer)


# --- scheduled --------------------------------------------------------------------------------------


def scheduled(license, starts_at=AT + 5 * DAY, at=AT + DAY, **terms):
    revision = metered(license, **terms)
    return switches.schedule(license=license, plan_revision=revision, starts_at=starts_at, by=BY, at=at, reason="later")


def test_it_starts_the_term_at_the_instant_however_late_the_job_is():
    license = make_license()
    change = scheduled(license)

    assert sweeps.run(sweeps.CHANGES, at=AT + 5 * DAY - TICK) == 0
    assert sweeps.standing(sweeps.CHANGES, at=AT + 5 * DAY + timedelta(hours=2)).lag == timedelta(hours=2)
    done = [sweeps.run(sweeps.CHANGES, at=AT + 5 * DAY + timedelta(hours=2)) for _ in range(3)]

    assert done == [1, 0, 0]
    change.refresh_from_db()
    assert (change.state, change.term.starts_at) == ("applied", AT + 5 * DAY)
    assert schemes.term_at(license=license, at=AT + 5 * DAY).scheme == "usage"
    assert schemes.term_at(license=license, at=AT + 5 * DAY - TICK).scheme == "seats"
    assert sweeps.standing(sweeps.CHANGES, at=AT + 6 * DAY).lag == timedelta()


def test_it_undoes_a_scheduled_change_that_was_made():
    license = make_license()
    before = stored(license)
    change = scheduled(license)
    sweeps.run(sweeps.CHANGES, at=AT + 6 * DAY)
    change.refresh_from_db()

    lifecycle.undo_change(change=change, by=BY, at=AT + 7 * DAY)

    assert stored(license) == before


def test_it_calls_a_scheduled_change_off():
    license = make_license()
    change = scheduled(license)
    before = stored(license)

    assert switches.cancel(change=change, by=BY, at=AT + 2 * DAY).state == "cancelled"

    assert sweeps.run(sweeps.CHANGES, at=AT + 9 * DAY) == 0
    assert stored(license) == before
    with pytest.raises(NotScheduled):
        switches.cancel(change=change, by=BY, at=AT + 2 * DAY)
    scheduled(license)


def test_it_schedules_one_change_at_a_time_and_only_one_that_could_be_made():
    license = make_license()
    scheduled(license)
    elsewhere = make_revision()

    with pytest.raises(ChangeScheduledAlready):
        scheduled(license)
    with pytest.raises(OtherProduct):
        switches.schedule(license=license, plan_revision=elsewhere, starts_at=AT + 9 * DAY, by=BY, at=AT + DAY)
    for starts_at in (AT + DAY, AT + 9999 * DAY):
        with pytest.raises(Invalid, match="instant is past|three years"):
            scheduled(license, starts_at=starts_at)
    assert Term.objects.filter(license=license).count() == 1


@pytest.mark.parametrize(
    ("meanwhile", "code"),
    [
        (lambda row: lifecycle.revoke(license=row, by=BY, at=AT + 2 * DAY, reason="refunded"), "license_not_usable"),
        (lambda row: switched(row, at=AT + 6 * DAY), "term_starts_already"),
    ],
)
def test_it_says_why_a_scheduled_change_could_not_be_made(meanwhile, code):
    license, other = make_license(), make_license()
    change, fine = scheduled(license), scheduled(other)
    meanwhile(license)
    terms = Term.objects.filter(license=license).count()

    sweeps.run(sweeps.CHANGES, at=AT + 6 * DAY)

    change.refresh_from_db()
    fine.refresh_from_db()
    assert (change.state, change.refusal, fine.state) == ("refused", code, "applied")
    assert Term.objects.filter(license=license).count() == terms
    assert AuditEntry.objects.filter(action="license.change_refused", license_id=license.pk).count() == 1


def test_it_refuses_to_schedule_for_a_license_that_has_ended():
    license = make_license()
    lifecycle.revoke(license=license, by=BY, at=AT + DAY, reason="refunded")
    with pytest.raises(LicenseNotUsable):
        scheduled(license)


def test_it_refuses_a_change_before_the_license_starts():
    license = make_license(starts_at=AT + 9 * DAY)
    with pytest.raises(TermStartsAlready):
        switched(license)


# --- the database ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE licensing_term SET undone_at = NULL WHERE undone_at IS NOT NULL",
        "UPDATE licensing_term SET scheme = 'both'",
        "DELETE FROM licensing_term",
        "UPDATE licensing_schemechange SET state = 'applied'",
        "UPDATE licensing_schemechange SET reason = 'another'",
        'UPDATE licensing_schemechange SET "before" = NULL',
        "DELETE FROM licensing_schemechange",
    ],
)
def test_it_keeps_terms_and_changes_against_sql_typed_by_hand(statement):
    license = make_license()
    lifecycle.undo_change(change=switched(license), by=BY, at=AT + 2 * DAY)

    with pytest.raises(Exception, match="never|keeps"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_it_transfers_after_an_undone_change():
    license = make_license()
    change = switched(license)
    lifecycle.transfer(license=license, to=make_customer(), by=BY, at=AT + 2 * DAY, reason="sold")

    row = lifecycle.undo_change(change=change, by=BY, at=AT + 3 * DAY)

    assert row.scheme == "seats"
    assert lifecycle.renew(license=row, by=BY, at=AT + 4 * DAY)
