"""Pages for what went wrong."""

import pytest
from django.template.loader import render_to_string

from tests import factories


@pytest.mark.django_db
def test_an_unknown_address_gets_a_page_of_ours(client):
    answer = client.get("/nowhere/")

    assert answer.status_code == 404
    assert "There is nothing here" in answer.text


@pytest.mark.django_db
def test_a_fault_gets_a_page_that_needs_no_database(client, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("portal.overview.customers_of", broken)
    client.force_login(factories.make_user(), backend="django.contrib.auth.backends.ModelBackend")
    client.raise_request_exception = False

    answer = client.get("/")

    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "secret detail" not in answer.text


@pytest.mark.parametrize("name", ["400", "403", "403_csrf", "404", "429", "500"])
def test_each_renders_without_a_request(name):
    assert "portal.css" in render_to_string(f"{name}.html")
