"""Signing in and out, and what a person can do about a password."""

import re

import pytest
from django.core import mail
from django.test import Client
from django.urls import reverse

from tests import factories

pytestmark = pytest.mark.django_db
LOGIN = "/accounts/login/"


def sign_in(client, email, password=factories.PASSWORD):
    return client.post(LOGIN, {"login": email, "password": password})


@pytest.mark.parametrize("spelled", ["ada@example.com", "Ada@Example.COM"])
def test_it_lets_a_person_in_by_email(client, spelled):
    factories.make_user(email="ada@example.com")

    answer = sign_in(client, spelled)

    assert (answer.status_code, answer.url) == (302, "/")
    assert client.get("/").status_code == 200


def test_it_leads_back_to_where_the_person_was_going_but_never_to_another_site(client):
    factories.make_user(email="ada@example.com")

    there = client.post(LOGIN, {"login": "ada@example.com", "password": factories.PASSWORD, "next": "/?status=held"})
    elsewhere = Client().post(
        LOGIN, {"login": "ada@example.com", "password": factories.PASSWORD, "next": "https://example.org/"}
    )

    assert there.url == "/?status=held"
    assert elsewhere.url == "/"


def test_it_does_not_say_whether_an_address_is_known(client):
    factories.make_user(email="ada@example.com")

    known = sign_in(client, "ada@example.com", "wrong")
    unknown = sign_in(client, "eve@example.com", "wrong")

    def errors(answer):
        return re.findall(r'class="notice error".*?</div>', answer.text, re.DOTALL)

    assert errors(known)
    assert errors(known) == errors(unknown)


def test_it_refuses_a_closed_account(client):
    factories.make_user(email="ada@example.com", is_active=False)

    sign_in(client, "ada@example.com")

    assert client.get("/").status_code == 302


def test_after_five_wrong_passwords_it_pauses_this_person_and_nobody_else(client):
    factories.make_user(email="ada@example.com")
    factories.make_user(email="grace@example.com")
    for _ in range(5):
        paused = sign_in(client, "ada@example.com", "wrong")

    assert paused.status_code == 429
    assert "Too many tries" in paused.text
    assert sign_in(client, "Ada@example.com").status_code == 429
    assert sign_in(Client(), "grace@example.com").status_code == 302


def test_it_signs_out_by_post_only(client):
    factories.make_user(email="ada@example.com")
    sign_in(client, "ada@example.com")

    asked = client.get(reverse("account_logout"))
    done = client.post(reverse("account_logout"))

    assert asked.status_code == 200
    assert done.url == LOGIN
    assert client.get("/").status_code == 302


def test_nobody_signs_up(client):
    page = client.get("/accounts/signup/")
    client.post(
        "/accounts/signup/",
        {"email": "eve@example.com", "password1": factories.PASSWORD, "password2": factories.PASSWORD},
    )

    assert "by invitation" in page.text
    assert "/accounts/signup/" not in client.get(LOGIN).text
    assert sign_in(client, "eve@example.com").status_code == 200


@pytest.mark.parametrize("path", ["email/", "confirm-email/", "confirm-email/abc/", "login/code/confirm/"])
def test_pages_not_offered_are_not_there(client, path):
    client.force_login(factories.make_user(), backend="django.contrib.auth.backends.ModelBackend")

    assert client.get(f"/accounts/{path}").status_code == 404
    assert client.post(f"/accounts/{path}", {"email": "x@example.com", "action_add": ""}).status_code == 404


def test_a_forgotten_password_is_set_anew_by_the_link_in_the_mail(client):
    factories.make_user(email="ada@example.com")

    asked = client.post(reverse("account_reset_password"), {"email": "ada@example.com"}, follow=True)
    letter = mail.outbox[0]
    link = re.search(r"http://testserver(/\S+)", letter.body)[1]
    page = client.get(link, follow=True)
    new = "staple battery horse correct"
    done = client.post(page.request["PATH_INFO"], {"password1": new, "password2": new}, follow=True)

    assert "Look into your mailbox" in asked.text
    assert letter.subject == "Licentia: Set a new password"
    assert "Set a new password" in page.text
    assert "Your password is changed" in done.text
    assert sign_in(client, "ada@example.com", new).status_code == 302
    assert "no longer works" in Client().get(link, follow=True).text


def test_the_mail_to_an_unknown_address_offers_no_sign_up(client):
    asked = client.post(reverse("account_reset_password"), {"email": "eve@example.com"}, follow=True)

    assert "Look into your mailbox" in asked.text
    assert "No account has this address." in mail.outbox[0].body
    assert "signup" not in mail.outbox[0].body


def test_a_person_changes_the_password(client):
    person = factories.make_user()
    client.force_login(person, backend="django.contrib.auth.backends.ModelBackend")
    new = "staple battery horse correct"

    short = client.post(
        reverse("account_change_password"),
        {"oldpassword": factories.PASSWORD, "password1": "short", "password2": "short"},
    )
    done = client.post(
        reverse("account_change_password"),
        {"oldpassword": factories.PASSWORD, "password1": new, "password2": new},
        follow=True,
    )

    assert "at least 15 characters" in short.text
    assert "Your password is changed." in done.text
    person.refresh_from_db()
    assert person.check_password(new)


@pytest.mark.parametrize(
    "path", ["login/", "password/reset/", "password/reset/done/", "password/reset/key/done/", "signup/", "inactive/"]
)
def test_its_pages_are_ours_and_free_of_inline_code(client, path):
    answer = client.get(f"/accounts/{path}")

    assert answer.status_code == 200
    assert "portal.css" in answer.text
    assert "<script" not in answer.text
    assert "style=" not in answer.text


def test_the_head_of_a_page_says_who_is_there(client):
    person = factories.make_user()
    client.force_login(person, backend="django.contrib.auth.backends.ModelBackend")

    page = client.get("/").text

    assert person.email in page
    assert "Sign out" in page
    assert "Staff admin" not in page
