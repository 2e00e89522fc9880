"""What a request passes first: its id, its address, and for the API an answer whatever happens."""

import json

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import path

from licensing.api import door
from licensing.keyformat import generate
from portal.middleware import AnswerMiddleware, client_address, plain_request, request_id_of

KEY = generate()
NONCE = "n" * 22


def echo(request):
    return HttpResponse(request.body, content_type="application/json")


def broken(request):
    raise RuntimeError(f"cannot use {KEY}")


urlpatterns = [path("api/v1/echo", echo), path("api/v1/broken", broken)]


@pytest.fixture(autouse=True)
def _proxies(settings):
    settings.TRUSTED_PROXIES = ["10.0.0.0/8", "2001:db8::/32"]
    settings.ALLOWED_HOSTS = ["*"]
    door._trusted.cache_clear()
    yield
    door._trusted.cache_clear()


def request(method="get", target="/", address="192.0.2.7", **headers):
    extra = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return getattr(RequestFactory(), method)(target, REMOTE_ADDR=address, **extra)


@pytest.mark.parametrize(
    ("address", "forwarded", "client"),
    [
        ("192.0.2.7", "", "192.0.2.7"),
        ("192.0.2.7", "203.0.113.9", "192.0.2.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "spoofed, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, rubbish", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, rubbish, 10.0.0.3", "10.0.0.3"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("2001:db8::1", "2001:4860::8", "2001:4860::8"),
        ("10.0.0.1", " 203.0.113.9 ", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9:4711", "10.0.0.1"),
        ("", "203.0.113.9", None),
        ("unix:", "203.0.113.9", "unix:"),
        ("10.0.0.1", "203.0.113.9, 2001:db8::7", "203.0.113.9"),
    ],
)
def test_it_believes_only_trusted_proxies_about_the_client(address, forwarded, client):
    made = request(address=address, x_forwarded_for=forwarded)

    assert client_address(made) == client


@pytest.mark.parametrize(
    ("address", "given", "taken"),
    [
        ("10.0.0.1", "abcdefgh", True),
        ("10.0.0.1", "a" * 64, True),
        ("10.0.0.1", "A.b_c-9012", True),
        ("10.0.0.1", "short", False),
        ("10.0.0.1", "a" * 65, False),
        ("10.0.0.1", "with space", False),
        ("10.0.0.1", "line\nbreak", False),
        ("10.0.0.1", "größe-größe", False),
        ("10.0.0.1", "<script>alert", False),
        ("192.0.2.7", "abcdefgh", False),
    ],
)
def test_it_takes_a_request_id_from_trusted_proxies_only(address, given, taken):
    found = request_id_of(request(address=address, x_request_id=given))

    assert (found == given) is taken
    assert len(found) >= 8


def test_it_gives_each_page_its_request_id():
    one, two = (AnswerMiddleware(lambda _: HttpResponse("page"))(request()) for _ in range(2))

    assert one["X-Request-Id"] != two["X-Request-Id"]


def test_it_builds_the_target_from_the_public_url_and_never_from_the_host(settings):
    settings.PUBLIC_URL = "https://licenses.example.com"
    made = plain_request(request(target="/api/v1/x?a=1", host="evil.example.com"))

    assert made.target == "https://licenses.example.com/api/v1/x?a=1"


# --- the API's short way ----------------------------------------------------------------------------


def asked(settings, method="post", target="/api/v1/echo", body=b"{}", **headers):
    settings.ROOT_URLCONF = __name__
    extra = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    made = RequestFactory().generic(method.upper(), target, body, content_type="application/json", **extra)
    return AnswerMiddleware(lambda _: HttpResponse("the pages' way"))(made)


def problem(response):
    return response.status_code, json.loads(response.content)["code"]


def test_it_answers_the_api_itself(settings):
    response = asked(settings, body=b'{"a":1}')

    assert (response.status_code, response.content) == (200, b'{"a":1}')
    assert response["Cache-Control"] == "no-store"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["X-Request-Id"]
    assert "Set-Cookie" not in response
    assert "Signature" not in response


def test_it_says_not_found_in_the_apis_words(settings):
    response = asked(settings, target="/api/v1/nothing")

    assert problem(response) == (404, "not_found")
    assert response["Content-Type"] == "application/problem+json"


def test_it_says_nothing_of_what_broke(settings):
    response = asked(settings, target="/api/v1/broken")

    assert problem(response) == (500, "internal_error")
    assert KEY.encode() not in response.content
    assert b"RuntimeError" not in response.content
    assert json.loads(response.content)["request_id"] == response["X-Request-Id"]


@pytest.mark.parametrize("target", ["/api/v1/echo", "/api/v1/nothing", "/api/v1/broken"])
def test_it_signs_every_answer_to_a_request_with_a_nonce(settings, target):
    response = asked(settings, target=target, x_licentia_nonce=NONCE)

    assert response["Signature"].startswith("licentia=:")
    assert '"x-licentia-nonce";req' in response["Signature-Input"]


def test_it_answers_nothing_unsigned_when_it_cannot_sign(settings):
    from licensing import crypto

    settings.KEYRING, settings.KEYRING_FILE = "", ""
    crypto.forget()
    try:
        response = asked(settings, x_licentia_nonce=NONCE)
    finally:
        crypto.forget()

    assert (response.status_code, response.content) == (500, b"")


def test_it_refuses_a_body_that_is_too_large(settings):
    response = asked(settings, body=b"x" * 1_048_577, x_licentia_nonce=NONCE)

    assert problem(response) == (413, "body_too_large")
    assert "Signature" in response


@pytest.mark.parametrize("length", ["rubbish", "-1", "1e3", "٣"])
def test_it_refuses_a_length_that_is_none_without_breaking(settings, length):
    settings.ROOT_URLCONF = __name__
    made = RequestFactory().post("/api/v1/echo", b"{}", content_type="application/json")
    made.META["CONTENT_LENGTH"] = length

    response = AnswerMiddleware(lambda _: HttpResponse())(made)

    assert problem(response) == (400, "malformed")


def test_it_refuses_a_host_that_is_not_allowed(settings):
    settings.ALLOWED_HOSTS = ["licenses.example.com"]

    assert asked(settings, host="evil.example.com").status_code == 400
    assert asked(settings, host="licenses.example.com").status_code == 200


@pytest.mark.parametrize(("address", "status"), [("10.0.0.1", 200), ("192.0.2.7", 400)])
def test_it_believes_only_a_trusted_proxy_that_a_request_came_by_https(settings, address, status):
    settings.PRODUCTION, settings.ROOT_URLCONF = True, __name__
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    made = RequestFactory().post(
        "/api/v1/echo", b"{}", content_type="application/json", REMOTE_ADDR=address, HTTP_X_FORWARDED_PROTO="https"
    )

    assert AnswerMiddleware(lambda _: HttpResponse())(made).status_code == status


def test_it_refuses_plain_http_in_production_and_does_not_redirect(settings):
    settings.PRODUCTION = True
    settings.SECURE_HSTS_SECONDS = 31_536_000

    response = asked(settings)

    assert problem(response) == (400, "https_required")
    assert "Location" not in response
    assert response["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"
