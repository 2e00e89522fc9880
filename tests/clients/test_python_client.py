"""The client as a stranger's program uses it, against a real server over HTTP."""

import socket
import threading
from collections.abc import Iterator
from wsgiref.simple_server import make_server

import httpx
import pytest
from django.utils import timezone
from licentia_client import Client, NotBelieved, Refused

from licensing import crypto
from tests.factories import make_credential, make_license, make_license_and_key

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server(live_server, settings) -> str:
    settings.PUBLIC_URL = live_server.url
    return str(live_server.url)


def test_it_validates_a_license_by_its_key(server):
    _, key = make_license_and_key(at=timezone.now())

    verdict = Client(server, license_key=key).validate()

    assert verdict.valid
    assert verdict.code == "valid"


def test_it_takes_seats_and_is_refused_the_one_too_many(server):
    license = make_license(at=timezone.now(), seat_limit=2)
    client = Client(server, credential=make_credential()[1])

    taken = [client.assign_seat(str(license.pk), f"person-{number}@example.com") for number in range(2)]
    with pytest.raises(Refused) as refused:
        client.assign_seat(str(license.pk), "one-too-many@example.com")

    assert all(seat.created for seat in taken)
    assert refused.value.code == "no_seat_available"


def test_it_frees_a_seat_for_somebody_else(server):
    license = make_license(at=timezone.now(), seat_limit=1)
    client = Client(server, credential=make_credential()[1])
    seat = client.assign_seat(str(license.pk), "first@example.com")

    client.release_seat(seat.id)

    assert client.assign_seat(str(license.pk), "second@example.com").created


def test_it_tells_a_refusal_by_its_code(server):
    _, key = make_license_and_key(at=timezone.now())

    with pytest.raises(Refused) as refused:
        Client(server, license_key=f"{key[:-1]}{'0' if key[-1] != '0' else '1'}").validate()

    assert refused.value.status == 401


def test_it_does_not_believe_a_server_with_another_key(server):
    _, key = make_license_and_key(at=timezone.now())
    stranger = crypto.KeyRing.generate()
    others = crypto.jwks()
    others["keys"][0]["x"] = crypto.b64(stranger.primary("sign").public_bytes())

    with pytest.raises(NotBelieved):
        Client(server, license_key=key, keys=others).validate()


@pytest.fixture
def replaying(server) -> Iterator[tuple[str, list]]:
    """A server in the middle that answers every request with the first answer it ever saw."""
    seen: list = []

    def application(environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if not seen:
            headers = {
                "authorization": environ["HTTP_AUTHORIZATION"],
                "x-licentia-nonce": environ["HTTP_X_LICENTIA_NONCE"],
                "content-type": "application/json",
            }
            seen.append(httpx.post(server + environ["PATH_INFO"], content=body, headers=headers))
        answer = seen[0]
        kept = ("content-type", "content-digest", "signature", "signature-input")
        start_response("200 OK", [(name, answer.headers[name]) for name in kept])
        return [answer.content]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    httpd = make_server("127.0.0.1", port, application)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{port}", seen
    httpd.shutdown()
    httpd.server_close()


def test_it_does_not_believe_a_replayed_answer(replaying, settings):
    url, seen = replaying
    settings.PUBLIC_URL = url
    _, key = make_license_and_key(at=timezone.now())
    client = Client(url, license_key=key, keys=crypto.jwks())

    first = client.validate()
    with pytest.raises(NotBelieved):
        client.validate()

    assert first.valid
    assert seen
