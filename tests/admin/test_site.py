"""The staff site's frame: login and lock-out, content security policy, navigation."""

import pytest
from django.test import Client
from django.urls import reverse

from licensing import keyformat
from tests.admin.conftest import sign_in, text_of
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.django_db


def log_in(client: Client, email: str, password: str) -> int:
    return client.post(reverse("admin:login"), {"username": email, "password": password}).status_code


def test_staff_logs_in_by_email() -> None:
    user = make_user(is_staff=True)
    client = Client()

    assert log_in(client, user.email, PASSWORD) == 302
    assert client.get(reverse("admin:index")).status_code == 200


def test_who_came_without_a_destination_gets_the_overview() -> None:
    user = make_user(is_staff=True)
    client = Client()

    asked = client.get(reverse("admin:login"))
    response = client.post(asked.headers["Location"], {"username": user.email, "password": PASSWORD})

    assert response.headers["Location"] == reverse("admin:index")


def test_a_customers_member_does_not_get_in() -> None:
    user = make_user()
    client = Client()

    assert log_in(client, user.email, PASSWORD) == 200
    assert client.get(reverse("admin:index")).status_code == 302


def test_after_five_wrong_passwords_even_the_right_one_is_refused() -> None:
    user = make_user(is_staff=True)
    client = Client()
    answers = [log_in(client, user.email, "wrong") for _ in range(5)]

    sixth = log_in(client, user.email, "wrong")
    right = log_in(client, user.email, PASSWORD)

    assert answers[:4] == [200] * 4
    assert sixth == right == 429
    assert client.get(reverse("admin:index")).status_code == 302


def test_others_are_not_locked_out_with_them() -> None:
    user, other = make_user(is_staff=True), make_user(is_staff=True)
    for _ in range(6):
        log_in(Client(), user.email, "wrong")

    assert log_in(Client(), other.email, PASSWORD) == 302


@pytest.mark.parametrize("name", ["index", "look_up", "licensing_license_changelist", "password_change"])
def test_staff_pages_get_a_policy_the_theme_can_live_with(staff: Client, name: str) -> None:
    policy = staff.get(reverse(f"admin:{name}")).headers["Content-Security-Policy"]

    assert "script-src 'self' 'unsafe-eval'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'self'" in policy


def test_the_login_page_gets_it_too_and_other_pages_do_not() -> None:
    client = Client()

    assert "unsafe-eval" in client.get(reverse("admin:login") + "?next=/admin/").headers["Content-Security-Policy"]
    assert "unsafe-eval" not in client.get(reverse("account_login")).headers["Content-Security-Policy"]


def test_the_sidebar_shows_only_what_a_person_may_see() -> None:
    text = text_of(sign_in("licensing.view_seat").get(reverse("admin:index")))

    assert reverse("admin:licensing_seat_changelist") in text
    assert reverse("admin:licensing_license_changelist") not in text
    assert reverse("admin:portal_user_changelist") not in text
    assert "Look up" not in text


@pytest.mark.parametrize(
    "address", ["/admin/licensing/auditentry/?kind=%00", "/admin/licensing/license/?scheme__exact=%00"]
)
def test_it_refuses_an_address_no_database_takes(staff: Client, address: str) -> None:
    assert staff.get(address).status_code == 400


def test_it_bears_a_look_up_of_what_no_database_takes(staff: Client) -> None:
    assert staff.post("/admin/look-up/", {"text": "ab\0cd"}).status_code < 500


def test_it_does_not_repeat_a_key_that_stands_in_a_path(staff: Client) -> None:
    key = keyformat.generate()

    answer = staff.get(f"/admin/licensing/license/{key}/change/", follow=True)

    assert key not in answer.text
