"""Named seats, one call at a time; what happens at the same time stands in tests/concurrency."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction

from licensing import lifecycle, seats
from licensing.errors import Invalid
from licensing.models import AuditEntry, License, Seat
from licensing.seats import (
    HolderHasSeat,
    LicenseNotUsable,
    NoSeatAvailable,
    SeatChurnExceeded,
    SeatIsBlocked,
    SeatReleased,
    SeatsNotNamed,
)
from tests.factories import AT, BY, make_license, make_revision

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)


def assign(license, holder="a@example.com", **overrides):
    return seats.assign(**{"license": license, "holder": holder, "by": BY, "at": AT} | overrides)


def counts(license) -> tuple[int, int, int | None]:
    """Return what the counter says, what the rows say, and the ceiling."""
    row = License.objects.get(pk=license.pk)
    return row.seats_used, Seat.objects.filter(license=row, released_at=None).count(), row.seats_ceiling


def test_it_gives_a_seat_and_counts_it():
    license = make_license(seat_limit=2)

    made = assign(license)

    assert made.created
    assert (made.seat.state, made.seat.assigned_at, made.seat.released_at) == ("assigned", AT, None)
    assert counts(license) == (1, 1, 2)


def test_it_gives_the_same_holder_the_seat_they_have():
    license = make_license(seat_limit=2)
    first = assign(license)

    again = assign(license, "  A@Example.COM ")

    assert (again.seat, again.created) == (first.seat, False)
    assert counts(license) == (1, 1, 2)


def test_it_gives_the_same_holder_their_seat_when_all_are_taken():
    license = make_license(seat_limit=1)
    first = assign(license)

    assert assign(license).seat == first.seat


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_it_gives_exactly_as_many_as_are_allowed(limit):
    license = make_license(seat_limit=limit)
    for number in range(limit):
        assign(license, f"{number}@example.com")

    with pytest.raises(NoSeatAvailable, match=str(limit)):
        assign(license, "late@example.com")

    assert counts(license) == (limit, limit, limit)


def test_it_gives_without_end_when_there_is_no_limit():
    license = make_license(seat_limit=None)
    for number in range(30):
        assign(license, f"{number}@example.com")

    assert counts(license) == (30, 30, None)
    seats.release(seat=Seat.objects.first(), by=BY, at=AT)
    assert counts(license) == (29, 29, None)


def test_it_takes_a_released_seat_back_at_once_and_gives_it_again():
    license = make_license(seat_limit=1)
    seat = assign(license).seat

    released = seats.release(seat=seat, by=BY, at=AT + DAY)
    again = seats.release(seat=seat, by=BY, at=AT + 2 * DAY)
    new = assign(license)

    assert (released.state, released.released_at) == ("released", AT + DAY)
    assert again.released_at == AT + DAY
    assert new.seat.pk != seat.pk
    assert counts(license) == (1, 1, 1)


@pytest.mark.parametrize(
    "holder",
    ["", " ", "ada", "ada@", "@example.com", "a b@example.com", "a@exa mple.com", "a@example.com\nb@example.com",
     "a@example.com\x00", "x" * 250 + "@example.com", "a@b@example.com", "\ud800@example.com"],
)  # fmt: skip
def test_it_refuses_a_holder_that_is_no_email_address(holder):
    license = make_license(seat_limit=1)

    with pytest.raises(Invalid) as refused:
        assign(license, holder)

    assert refused.value.pointer == "/holder"
    assert counts(license) == (0, 0, 1)


def test_it_refuses_where_seats_float():
    with pytest.raises(SeatsNotNamed):
        assign(make_license(seat_kind="floating", seat_limit=5))


def test_it_refuses_on_a_license_that_cannot_be_used():
    revoked = make_license()
    lifecycle.revoke(license=revoked, by=BY, at=AT, reason="test")
    draft = lifecycle.prepare(customer=revoked.customer, plan_revision=make_revision(), by=BY, at=AT)
    expired = make_license(duration=DAY)

    for license, at in ((revoked, AT), (draft, AT), (expired, AT + DAY)):
        with pytest.raises(LicenseNotUsable):
            assign(license, at=at)
        assert counts(license)[:2] == (0, 0)


def test_it_gives_seats_in_grace_until_it_ends():
    license = make_license(duration=DAY, grace_period=DAY)

    assert assign(license, at=AT + 2 * DAY - TICK).created
    with pytest.raises(LicenseNotUsable):
        assign(license, "b@example.com", at=AT + 2 * DAY)


# --- reserve, block ---------------------------------------------------------------------------------


def test_it_keeps_a_seat_that_is_taken_up_later():
    license = make_license(seat_limit=1)
    kept = seats.reserve(license=license, holder="a@example.com", by=BY, at=AT)

    with pytest.raises(NoSeatAvailable):
        assign(license, "b@example.com")
    taken = assign(license, at=AT + DAY)

    assert (kept.seat.state, kept.seat.assigned_at) == ("reserved", None)
    assert (taken.seat.pk, taken.created, taken.seat.assigned_at) == (kept.seat.pk, True, AT + DAY)
    assert counts(license) == (1, 1, 1)


def test_it_keeps_no_second_seat_for_one_holder():
    license = make_license(seat_limit=2)
    first = seats.reserve(license=license, holder="a@example.com", by=BY, at=AT)

    again = seats.reserve(license=license, holder="A@example.com", by=BY, at=AT)

    assert (again.seat, again.created) == (first.seat, False)
    assert counts(license) == (1, 1, 2)


def test_it_lets_a_blocked_seat_take_up_its_place():
    license = make_license(seat_limit=1)
    seat = assign(license).seat

    blocked = seats.block(seat=seat, by=BY, at=AT, reason="left")

    assert blocked.state == "blocked"
    with pytest.raises(SeatIsBlocked):
        assign(license)
    with pytest.raises(NoSeatAvailable):
        assign(license, "b@example.com")
    with pytest.raises(SeatIsBlocked):
        seats.transfer(seat=seat, to="b@example.com", by=BY, at=AT)
    assert seats.unblock(seat=seat, by=BY, at=AT).state == "assigned"
    assert assign(license).created is False


def test_it_does_not_say_of_a_kept_seat_that_it_was_taken_up_when_it_is_blocked():
    license = make_license(seat_limit=1)
    seat = seats.reserve(license=license, holder="a@example.com", by=BY, at=AT).seat

    blocked = seats.block(seat=seat, by=BY, at=AT + DAY, reason="left")

    assert blocked.assigned_at is None


def test_it_does_not_take_up_a_kept_seat_by_unblocking_it():
    license = make_license(seat_limit=1)
    seat = seats.reserve(license=license, holder="a@example.com", by=BY, at=AT).seat
    before = AuditEntry.objects.count()

    assert seats.unblock(seat=seat, by=BY, at=AT).state == "reserved"
    assert AuditEntry.objects.count() == before


@pytest.mark.parametrize("act", ["block", "unblock", "transfer"])
def test_it_does_nothing_with_a_released_seat(act):
    license = make_license(seat_limit=1)
    seat = seats.release(seat=assign(license).seat, by=BY, at=AT)
    calls = {
        "block": lambda: seats.block(seat=seat, by=BY, at=AT, reason="x"),
        "unblock": lambda: seats.unblock(seat=seat, by=BY, at=AT),
        "transfer": lambda: seats.transfer(seat=seat, to="b@example.com", by=BY, at=AT),
    }

    with pytest.raises(SeatReleased):
        calls[act]()

    assert counts(license) == (0, 0, 1)


# --- transfer ---------------------------------------------------------------------------------------


def test_it_hands_a_seat_over_when_all_are_taken():
    license = make_license(seat_limit=1)
    seat = assign(license).seat

    heir = seats.transfer(seat=seat, to="B@example.com", by=BY, at=AT + DAY)

    seat.refresh_from_db()
    assert (heir.holder, heir.state, seat.state) == ("b@example.com", "assigned", "released")
    assert counts(license) == (1, 1, 1)


def test_it_hands_nothing_to_whoever_has_a_seat():
    license = make_license(seat_limit=2)
    seat, _ = assign(license).seat, assign(license, "b@example.com")

    with pytest.raises(HolderHasSeat):
        seats.transfer(seat=seat, to="b@example.com", by=BY, at=AT)

    seat.refresh_from_db()
    assert seat.state == "assigned"
    assert counts(license) == (2, 2, 2)


def test_it_hands_nothing_to_the_holder_themselves():
    license = make_license(seat_limit=2, seat_churn_limit=1, churn_window=30 * DAY)
    seat = assign(license).seat

    with pytest.raises(HolderHasSeat):
        seats.transfer(seat=seat, to=" A@example.com", by=BY, at=AT)

    seat.refresh_from_db()
    assert seat.state == "assigned"


# --- churn, ceilings --------------------------------------------------------------------------------


def test_it_limits_how_many_seats_change_hands_within_the_window():
    license = make_license(seat_limit=5, seat_churn_limit=2, churn_window=30 * DAY)
    held = [assign(license, f"{number}@example.com").seat for number in range(5)]
    seats.release(seat=held[0], by=BY, at=AT)
    seats.transfer(seat=held[1], to="x@example.com", by=BY, at=AT + DAY)

    with pytest.raises(SeatChurnExceeded):
        seats.release(seat=held[2], by=BY, at=AT + 30 * DAY - TICK)
    with pytest.raises(SeatChurnExceeded):
        seats.transfer(seat=held[2], to="y@example.com", by=BY, at=AT + 30 * DAY - TICK)

    # The window is half-open: at its very end the first release no longer counts.
    assert seats.release(seat=held[2], by=BY, at=AT + 30 * DAY).state == "released"


def test_it_throws_nobody_out_when_the_limit_falls_and_grants_nothing_until_use_is_below():
    license = make_license(seat_limit=5)
    held = [assign(license, f"{number}@example.com").seat for number in range(5)]

    lifecycle.change_limits(license=license, seat_limit=2, by=BY, at=AT)
    ceilings, refused = [], 0
    for seat in held:
        ceilings.append(counts(license))
        try:
            assign(license, "new@example.com")
        except NoSeatAvailable:
            refused += 1
        else:
            break
        seats.release(seat=seat, by=BY, at=AT)

    assert ceilings == [(5, 5, 5), (4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 2)]
    assert refused == 4
    assert counts(license) == (2, 2, 2)


def test_it_raises_the_ceiling_with_the_limit_at_once():
    license = make_license(seat_limit=1)
    assign(license)

    lifecycle.change_limits(license=license, seat_limit=2, by=BY, at=AT)

    assert assign(license, "b@example.com").created


def test_it_releases_everything_at_once_whatever_the_churn_limit():
    license = make_license(seat_limit=3, seat_churn_limit=0, churn_window=DAY)
    for number in range(3):
        assign(license, f"{number}@example.com")

    with transaction.atomic():
        released = seats.release_all(license=seats.lock(license.pk), by=BY, at=AT, reason="moved")

    assert released == 3
    assert counts(license) == (0, 0, 3)


@pytest.mark.parametrize(
    "broken",
    [
        {"seats_used": 11},
        {"seats_ceiling": 9},
        {"seats_ceiling": None},
        {"seat_limit": None},
        {"activations_used": 6},
        {"activations_ceiling": 1},
        {"seats_used": -1},
    ],
)
def test_it_has_the_database_refuse_what_the_rule_would_never_write(broken):
    license = make_license(seat_limit=10, activation_limit=5)

    with pytest.raises(IntegrityError), transaction.atomic():
        License.objects.filter(pk=license.pk).update(**broken)


def test_it_has_the_database_refuse_a_second_live_seat_of_one_holder():
    seat = assign(make_license()).seat

    with pytest.raises(IntegrityError), transaction.atomic():
        Seat.objects.create(license=seat.license, created_at=AT, holder=seat.holder, state="reserved")


def test_it_moves_the_revision_with_every_change_so_that_pictures_of_it_are_told_apart():
    license = make_license(seat_limit=2)
    revisions = [license.revision]

    def note():
        revisions.append(License.objects.get(pk=license.pk).revision)

    seat = seats.reserve(license=license, holder="a@example.com", by=BY, at=AT).seat
    note()
    assign(license)
    note()
    seats.block(seat=seat, by=BY, at=AT, reason="x")
    note()
    seats.unblock(seat=seat, by=BY, at=AT)
    note()
    heir = seats.transfer(seat=seat, to="b@example.com", by=BY, at=AT)
    note()
    seats.release(seat=heir, by=BY, at=AT)
    note()

    assert revisions == sorted(set(revisions))
    assert len(revisions) == 7
