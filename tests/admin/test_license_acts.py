"""What staff can do to a license: each act by its page, the audit entry it leaves, and who may."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from licensing import keys, lifecycle, seats
from licensing.models import AuditEntry, Hold, License, LicenseKey, OutboxMessage, Seat
from licensing.states import LicenseStatus
from tests.admin.conftest import act, adding, last_entry, listing, page, recorded, sign_in, text_of
from tests.factories import AT, BY, make_customer, make_license, make_license_and_key, make_revision, opened

pytestmark = pytest.mark.django_db
KEY = re.compile(r"LIC1(?:-[0-9A-Z]{5}){7}")
NOW = datetime.now(UTC)

PERMISSIONS = {
    "issue": "licensing.issue_license",
    "renew": "licensing.issue_license",
    "hold": "licensing.hold_license",
    "lift": "licensing.hold_license",
    "assign-seat": "licensing.manage_seats",
    "reserve-seat": "licensing.manage_seats",
    "reveal-key": "licensing.reveal_key",
    "rotate-key": "licensing.reveal_key",
    "change-limits": "licensing.change_license",
    "change-terms": "licensing.change_license",
    "undo-change": "licensing.change_license",
    "transfer": "licensing.change_license",
    "revoke": "licensing.revoke_license",
    "accept-terms": "licensing.issue_license",
}


def facts(license: License) -> Any:
    return (
        License.objects.filter(pk=license.pk).values().get(),
        Hold.objects.count(),
        Seat.objects.count(),
        LicenseKey.objects.count(),
        recorded().count(),
        OutboxMessage.objects.count(),
    )


def assert_by_staff(client: Any, entry: AuditEntry) -> None:
    entry = opened(entry)
    assert (entry.actor_kind, entry.actor_label, entry.address) == (
        "staff",
        client.user.email,
        "127.0.0.1",
    )
    assert entry.request_id


def test_issues_a_license_in_two_steps_and_shows_its_key_once(staff: Client) -> None:
    customer, revision = make_customer(), make_revision(duration=timedelta(days=30))

    added = staff.post(adding(License), {
        "customer": customer.pk, "plan_revision": revision.pk, "starts_at_0": "", "starts_at_1": "",
        "expires_at_0": "", "expires_at_1": "", "seat_limit": "3", "activation_limit": "",
    })  # fmt: skip
    license = License.objects.get()
    asked = staff.get(added.headers["Location"])
    issued = staff.post(act(license, "issue"), {"reason": "Order 17"})

    assert added.headers["Location"] == act(license, "issue")
    assert customer.name in text_of(asked)
    assert issued.status_code == 200
    assert "no-store" in issued.headers["Cache-Control"]
    license.refresh_from_db()
    assert (license.issued_at is not None, license.seat_limit, license.activation_limit) == (True, 3, 5)
    [key] = set(KEY.findall(text_of(issued)))
    assert keys.find(key) == license
    entry = last_entry()
    assert (entry.action, entry.license_id, entry.reason) == ("license.issued", license.pk, "Order 17")
    assert_by_staff(staff, entry)
    assert key not in text_of(staff.get(page(license)))


def test_issuing_twice_is_refused_and_makes_no_second_key(staff: Client) -> None:
    license = make_license()

    response = staff.post(act(license, "issue"), {"reason": "again"})

    assert response.status_code == 422
    assert "issued already" in text_of(response)
    assert LicenseKey.objects.count() == 1


def test_a_revision_that_is_not_offered_cannot_be_issued(staff: Client) -> None:
    draft = make_revision(publish=False)

    response = staff.post(adding(License), {"customer": make_customer().pk, "plan_revision": draft.pk})

    assert response.status_code == 200
    assert "valid choice" in text_of(response)
    assert not License.objects.exists()


def test_what_a_rule_refuses_stands_beside_its_field(staff: Client) -> None:
    response = staff.post(adding(License), {
        "customer": make_customer().pk, "plan_revision": make_revision().pk,
        "expires_at_0": "2001-01-01", "expires_at_1": "00:00",
    })  # fmt: skip

    assert response.status_code == 200
    assert "A license expires after it starts." in str(response.context["adminform"].form.errors["expires_at"])
    assert not License.objects.exists()


def test_holds_a_license(staff: Client) -> None:
    license = make_license(at=NOW)

    response = staff.post(act(license, "hold"), {"reason": "dispute", "note": "Chargeback 9"}, follow=True)

    assert response.redirect_chain[0][0] == page(license)
    assert "The license is held." in text_of(response)
    assert lifecycle.status_of(License.objects.get(), NOW) == LicenseStatus.HELD
    entry = last_entry()
    assert (entry.action, entry.after, entry.reason) == ("license.held", {"hold": "dispute"}, "Chargeback 9")
    assert_by_staff(staff, entry)


def test_holding_twice_for_one_reason_is_refused(staff: Client) -> None:
    license = make_license()
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)

    response = staff.post(act(license, "hold"), {"reason": "unpaid", "note": "again"})

    assert response.status_code == 422
    assert "held for this reason already" in text_of(response)
    assert Hold.objects.count() == 1


def test_lifts_a_hold(staff: Client) -> None:
    license = make_license()
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)

    response = staff.post(act(license, "lift"), {"reason": "unpaid", "note": "Paid"})

    assert response.status_code == 302
    assert Hold.objects.get().lifted_at is not None
    entry = last_entry()
    assert (entry.action, entry.before, entry.reason) == ("license.lifted", {"hold": "unpaid"}, "Paid")
    assert staff.post(act(license, "lift"), {"reason": "unpaid", "note": "Paid"}).status_code == 422


def test_renews_by_the_plans_duration_or_the_one_given(staff: Client) -> None:
    license = make_license(at=NOW)
    assert license.expires_at is not None

    staff.post(act(license, "renew"), {"duration": "", "reason": "Order 18"})
    staff.post(act(license, "renew"), {"duration": "2 weeks", "reason": "Goodwill"})

    license.refresh_from_db()
    assert license.expires_at == NOW + timedelta(days=365 + 365 + 14)
    entry = last_entry()
    assert (entry.action, entry.reason) == ("license.renewed", "Goodwill")
    assert "expires_at" in entry.after


def test_a_time_span_that_is_none_is_said(staff: Client) -> None:
    license = make_license(at=NOW)

    response = staff.post(act(license, "renew"), {"duration": "soon", "reason": "x"})

    assert response.status_code == 422
    assert "Write a time span" in text_of(response)


def test_revokes_for_good(staff: Client) -> None:
    license = make_license()

    assert staff.post(act(license, "revoke"), {"reason": " "}).status_code == 422
    assert staff.post(act(license, "revoke"), {"reason": "Refunded"}).status_code == 302
    again = staff.post(act(license, "revoke"), {"reason": "Refunded"})

    license.refresh_from_db()
    assert license.revoked_at is not None
    assert again.status_code == 302
    entry = AuditEntry.objects.get(action="license.revoked")
    assert entry.reason == "Refunded"
    assert "Revoke…" not in text_of(staff.get(page(license)))


def test_reveals_the_key_on_the_answer_only(staff: Client) -> None:
    license, key = make_license_and_key()

    asked = staff.get(act(license, "reveal-key"))
    response = staff.post(act(license, "reveal-key"), {"reason": "Customer lost it"})

    assert key not in text_of(asked)
    assert key in text_of(response)
    assert "no-store" in response.headers["Cache-Control"]
    entry = last_entry()
    assert (entry.action, entry.reason, entry.after) == ("key.revealed", "Customer lost it", {"key_last5": key[-5:]})
    assert_by_staff(staff, entry)


def test_replaces_the_key(staff: Client) -> None:
    license, key = make_license_and_key()

    response = staff.post(act(license, "rotate-key"), {"reason": "Published by mistake"})

    [new] = set(KEY.findall(text_of(response)))
    assert new != key
    assert keys.find(new) == license
    assert last_entry().action == "key.rotated"


def test_transfers_to_another_customer_by_code(staff: Client) -> None:
    license = make_license()
    seats.assign(license=license, holder="ann@example.com", by=BY, at=AT)
    other = make_customer(code="other")

    wrong = staff.post(act(license, "transfer"), {"to": "nobody", "reason": "Sold"})
    right = staff.post(act(license, "transfer"), {"to": " Other ", "reason": "Sold"})

    assert wrong.status_code == 422
    assert right.status_code == 302
    license.refresh_from_db()
    assert license.customer == other
    entry = last_entry()
    assert (entry.action, entry.reason, entry.after["seats_released"]) == ("license.transferred", "Sold", 1)


def test_changes_limits(staff: Client) -> None:
    license = make_license()

    staff.post(act(license, "change-limits"), {"seat_limit": "", "activation_limit": "2", "reason": "Deal"})

    license.refresh_from_db()
    assert (license.seat_limit, license.activation_limit) == (None, 2)
    assert (last_entry().action, last_entry().reason) == ("license.limits_changed", "Deal")


@pytest.mark.parametrize(("name", "state"), [("assign-seat", "assigned"), ("reserve-seat", "reserved")])
def test_gives_a_seat(staff: Client, name: str, state: str) -> None:
    license = make_license(at=NOW)

    response = staff.post(act(license, name), {"holder": "Ann@example.com"})

    assert response.status_code == 302
    seat = Seat.objects.get()
    assert (seat.holder, seat.state) == ("ann@example.com", state)
    assert (last_entry().action, last_entry().object_id) == (f"seat.{state}", str(seat.pk))


def test_a_full_license_says_so(staff: Client) -> None:
    license = make_license(at=NOW, seat_limit=0)

    response = staff.post(act(license, "assign-seat"), {"holder": "ann@example.com"})

    assert response.status_code == 422
    assert "All 0 seats are taken." in text_of(response)


@pytest.mark.parametrize("name", PERMISSIONS)
def test_opening_an_acts_page_changes_nothing(staff: Client, name: str) -> None:
    license = make_license()
    before = facts(license)

    response = staff.get(act(license, name), {"reason": "x", "note": "x", "holder": "ann@example.com"})

    assert response.status_code == 200
    assert "csrfmiddlewaretoken" in text_of(response)
    assert facts(license) == before


@pytest.mark.parametrize("name", PERMISSIONS)
def test_an_act_needs_its_permission(name: str) -> None:
    license = make_license()
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    before = facts(license)
    others = {permission for permission in PERMISSIONS.values() if permission != PERMISSIONS[name]}
    without = sign_in("licensing.view_license", *others)
    allowed = sign_in("licensing.view_license", PERMISSIONS[name])
    blind = sign_in(PERMISSIONS[name])

    assert without.get(act(license, name)).status_code == 403
    assert without.post(act(license, name), {"reason": "x", "note": "x"}).status_code == 403
    assert blind.post(act(license, name), {"reason": "x"}).status_code == 403
    assert act(license, name) not in text_of(without.get(page(license)))
    assert allowed.get(act(license, name)).status_code == 200
    if name not in ("issue", "accept-terms", "undo-change"):
        assert act(license, name) in text_of(allowed.get(page(license)))
    assert facts(license) == before


def test_terms_written_past_the_rules_are_accepted_by_a_person(staff: Client) -> None:
    license = make_license()
    assert act(license, "accept-terms") not in text_of(staff.get(page(license)))
    License.objects.filter(pk=license.pk).update(activation_limit=7, activations_ceiling=7)

    shown = text_of(staff.get(page(license)))
    assert act(license, "accept-terms") in shown
    assert "written past the rules" in shown
    staff.post(act(license, "accept-terms"), {"reason": "Ticket 12"})

    entry = last_entry()
    assert (entry.action, entry.license_id, entry.reason) == ("license.terms_accepted", license.pk, "Ticket 12")
    assert_by_staff(staff, entry)
    assert act(license, "accept-terms") not in text_of(staff.get(page(license)))


def test_issuing_needs_its_permission() -> None:
    assert sign_in("licensing.view_license", "licensing.add_license").get(adding(License)).status_code == 403
    assert sign_in("licensing.view_license", "licensing.issue_license").get(adding(License)).status_code == 200


def test_an_act_on_nothing_is_not_found(staff: Client) -> None:
    license = make_license()
    url = act(license, "hold")

    assert staff.get(url.replace(str(license.pk), "01890000-0000-7000-8000-000000000000")).status_code == 404
    assert staff.get(url.replace(str(license.pk), "rubbish")).status_code == 404
    assert staff.get(url.replace("/hold/", "/delete/")).status_code == 404


def test_an_act_without_csrf_token_is_refused() -> None:
    license = make_license()
    client = Client(enforce_csrf_checks=True)
    client.cookies = sign_in(is_superuser=True).cookies

    assert client.post(act(license, "revoke"), {"reason": "x"}).status_code == 403
    license.refresh_from_db()
    assert license.revoked_at is None


def test_page_shows_verdict_rules_seats_and_record(staff: Client) -> None:
    license = make_license(at=NOW)
    seats.assign(license=license, holder="ann@example.com", by=BY, at=NOW)
    lifecycle.hold(license=license, reason="abuse", note="Shared key", by=BY, at=NOW)

    text = text_of(staff.get(page(license)))

    for piece in ("The license is held: abuse.", "staff-rules__stop", "ann@example.com", "Shared key", "seat.assigned"):
        assert piece in text


def test_status_filter_agrees_with_the_status(staff: Client) -> None:
    active, held = make_license(at=NOW), make_license(at=NOW)
    lifecycle.hold(license=held, reason="abuse", by=BY, at=NOW)
    expired = make_license(expires_at=AT + timedelta(days=1))

    for status, license in (("active", active), ("held", held), ("expired", expired)):
        response = staff.get(listing(License), {"status": status})

        assert [row.pk for row in response.context["cl"].result_list] == [license.pk]


def test_list_finds_by_customer_holder_and_key_tail(staff: Client) -> None:
    license, key = make_license_and_key(customer=make_customer(name="Brückner"), at=NOW)
    seats.assign(license=license, holder="ann@example.com", by=BY, at=NOW)
    make_license()

    for term in ("Brückner", "ann@example.com", key[-5:], str(license.pk), str(license.customer_id)):
        response = staff.get(listing(License), {"q": term})

        assert [row.pk for row in response.context["cl"].result_list] == [license.pk], term


def test_page_of_a_busy_license_takes_few_queries(staff: Client, django_assert_max_num_queries: Any) -> None:
    license = make_license(at=NOW, seat_limit=None)
    for number in range(40):
        seats.assign(license=license, holder=f"h{number}@example.com", by=BY, at=NOW)

    with django_assert_max_num_queries(35):
        response = staff.get(page(license))

    assert text_of(response).count("Release…") == 20
