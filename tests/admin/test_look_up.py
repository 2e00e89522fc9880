"""The look-up box: from a pasted key, an id, the last 5 characters or a holder's email to the license."""

import pytest
from django.test import Client
from django.urls import reverse

from licensing import keys, seats
from licensing.models import AuditEntry, License, LicenseKey
from tests.admin.conftest import last_entry, listing, page, sign_in, text_of
from tests.factories import AT, BY, make_license, make_license_and_key, opened

pytestmark = pytest.mark.django_db
URL = "/admin/look-up/"


def test_pasted_key_leads_to_the_license_with_its_verdict_and_is_recorded(staff: Client) -> None:
    license, key = make_license_and_key()

    response = staff.post(URL, {"q": f"  {key.lower().replace('-', ' ')} "})
    shown = staff.get(response.headers["Location"])

    assert response.status_code == 302
    assert response.headers["Location"] == page(license)
    assert "Verdict now" in text_of(shown)
    entry = last_entry()
    assert (entry.action, entry.license_id, entry.after) == ("license.looked_up", license.pk, {"key_last5": key[-5:]})
    assert opened(entry).actor_label == staff.user.email  # type: ignore[attr-defined]
    assert key not in text_of(shown)


def test_mistyped_key_is_said_and_not_shown_again(staff: Client) -> None:
    _, key = make_license_and_key()
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")

    response = staff.post(URL, {"q": wrong})

    assert response.status_code == 422
    assert "typing error" in text_of(response)
    assert wrong not in text_of(response)
    assert not AuditEntry.objects.filter(action="license.looked_up").exists()


def test_cut_key_is_said_and_not_shown_again(staff: Client) -> None:
    _, key = make_license_and_key()

    response = staff.post(URL, {"q": key[:30]})

    assert response.status_code == 422
    assert "of 35 characters" in text_of(response)
    assert key[:30] not in text_of(response)


def test_retired_key_leads_to_its_license_and_says_so(staff: Client) -> None:
    license, key = make_license_and_key()
    keys.rotate(license=license, by=BY, reason="lost", at=AT)

    response = staff.post(URL, {"q": key}, follow=True)

    assert response.redirect_chain[0][0] == page(license)
    assert "This key was replaced" in text_of(response)


def test_id_of_license_seat_or_key_leads_to_the_license(staff: Client) -> None:
    license = make_license()
    seat = seats.assign(license=license, holder="ann@example.com", by=BY, at=AT).seat

    for found in (license.pk, seat.pk, LicenseKey.objects.get().pk):
        response = staff.post(URL, {"q": str(found)})

        assert response.headers["Location"] == page(license)


def test_last_five_characters_lead_to_the_license(staff: Client) -> None:
    license, key = make_license_and_key()

    response = staff.post(URL, {"q": key[-5:].lower()})

    assert response.headers["Location"] == page(license)


def test_holder_with_several_licenses_gets_them_listed(staff: Client) -> None:
    one, other = make_license(), make_license()
    for license in (one, other):
        seats.assign(license=license, holder="ann@example.com", by=BY, at=AT)

    response = staff.post(URL, {"q": "Ann@Example.com"})

    assert response.status_code == 200
    assert page(one) in text_of(response)
    assert page(other) in text_of(response)


@pytest.mark.parametrize(
    "text", ["", "ABCDE", "nobody@example.com", "01890000-0000-7000-8000-000000000000", "' OR 1=1"]
)
def test_nothing_found_is_said(staff: Client, text: str) -> None:
    make_license()

    assert staff.post(URL, {"q": text}).status_code == 422


def test_get_looks_nothing_up(staff: Client) -> None:
    license, _ = make_license_and_key()

    response = staff.get(URL, {"q": str(license.pk)})

    assert response.status_code == 200
    assert str(license.pk) not in text_of(response)


def test_needs_the_permission_to_view_licenses() -> None:
    _, key = make_license_and_key()

    assert sign_in().post(URL, {"q": key}).status_code == 403
    assert sign_in("licensing.view_license").post(URL, {"q": key}).status_code == 302
    assert sign_in(is_staff=False).post(URL, {"q": key}).headers["Location"].startswith(reverse("admin:login"))


def test_post_without_csrf_token_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    client.cookies = sign_in(is_superuser=True).cookies

    assert client.post(URL, {"q": "x"}).status_code == 403


def test_key_typed_into_the_lists_search_is_refused_with_a_hint(staff: Client) -> None:
    _, key = make_license_and_key()

    for typed in (key, key.lower(), key[:30], key.replace("-", ""), "lsk_" + "a" * 43):
        response = staff.get(listing(License), {"q": typed}, follow=True)

        assert response.redirect_chain[0][0] == listing(License)
        assert "Look up" in text_of(response)
        assert typed not in text_of(response)


def test_key_in_an_address_is_not_carried_to_the_login() -> None:
    _, key = make_license_and_key()

    response = Client().get(listing(License), {"q": key})

    assert key not in response.headers["Location"]


def test_there_is_no_search_that_sends_what_is_typed_in_an_address(staff: Client) -> None:
    assert staff.get("/admin/search/", {"s": "x"}).status_code == 404
    assert 'name="s"' not in text_of(staff.get(reverse("admin:index")))
