"""Many clients at once, each with a connection of its own, at a real server of two processes."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.api.running import Running, database_beside, running

# The server has a database of its own; the mark says that what is claimed here is claimed of both databases.
pytestmark = pytest.mark.django_db

ROWS = """
from datetime import UTC, datetime
from tests.factories import make_credential, make_license_and_key, make_member
licenses = []
for _ in range(10):
    license, key = make_license_and_key(at=datetime.now(UTC), seat_limit=10, activation_limit=5)
    member = make_member(customer=license.customer, role="viewer")
    licenses.append({"id": str(license.pk), "key": key, "customer": str(license.customer_id),
        "plan": str(license.plan_revision.plan_id), "member": str(member.pk)})
print(json.dumps({"secret": make_credential()[1], "licenses": licenses}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with database_beside() as url, running(seed=ROWS, database_url=url, workers=2) as server:
        yield server


@pytest.fixture
def license(server: Running) -> Any:
    """A license of ten seats and five machines that no other test uses."""
    return server.seeds["licenses"].pop()


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: Any


def at_once(
    server: Running, number: int, request: Callable[[int], tuple[str, str, Any]], **headers: str
) -> list[Reply]:
    """Send `number` requests, each over its own connection, in the same moment."""
    ready = threading.Barrier(number, timeout=60)
    sent = {"Authorization": f"Bearer {server.seeds['secret']}", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}

    def client(position: int) -> Reply:
        method, path, body = request(position)
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        connection.connect()
        ready.wait()
        connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, json.loads(text) if text else None)

    with ThreadPoolExecutor(number) as clients:
        return list(clients.map(client, range(number)))


def one(server: Running, path: str) -> Any:
    return at_once(server, 1, lambda _: ("GET", path, None))[0].body


def test_it_gives_ten_seats_to_ten_of_fifty_clients(server: Running, license: Any) -> None:
    replies = at_once(
        server,
        50,
        lambda number: ("POST", "/seats", {"license": license["id"], "holder": f"holder-{number}@example.com"}),
    )

    assert Counter(reply.status for reply in replies) == {201: 10, 409: 40}
    assert {reply.body["code"] for reply in replies if reply.status == 409} == {"no_seat_available"}
    live = one(server, f"/seats?license={license['id']}&state=assigned&limit=200")["results"]
    given = {reply.body["id"] for reply in replies if reply.status == 201}
    assert {seat["id"] for seat in live} == given
    assert len(live) == 10
    assert one(server, f"/licenses/{license['id']}")["seats_used"] == 10


def test_it_gives_one_holder_one_seat_however_many_ask(server: Running, license: Any) -> None:
    body = {"license": license["id"], "holder": "ada@example.com"}

    replies = at_once(server, 20, lambda _: ("POST", "/seats", body))

    assert Counter(reply.status for reply in replies) == {201: 1, 200: 19}
    assert len({reply.body["id"] for reply in replies}) == 1
    assert one(server, f"/licenses/{license['id']}")["seats_used"] == 1


def test_it_answers_twenty_copies_of_one_request_with_one_effect(server: Running, license: Any) -> None:
    body = {"customer": license["customer"], "plan": license["plan"]}

    replies = at_once(server, 20, lambda _: ("POST", "/licenses", body), Idempotency_Key="only-one-license")

    assert {reply.status for reply in replies} == {201}
    assert Counter(reply.headers.get("idempotent-replayed") for reply in replies) == {None: 1, "true": 19}
    assert len({reply.body["key"] for reply in replies}) == 1
    issued = one(server, f"/licenses?customer={license['customer']}")["results"]
    assert len(issued) == 2  # the one that was there, and the one of all twenty


def test_it_lets_another_request_try_after_copies_were_refused(server: Running, license: Any) -> None:
    body = {"customer": license["customer"], "email": "eve@example.com", "role": "viewer"}
    first = at_once(server, 1, lambda _: ("POST", "/members", body))
    assert first[0].status == 201

    replies = at_once(server, 10, lambda _: ("POST", "/members", body), Idempotency_Key="refused-each-time")

    assert Counter((reply.status, reply.body["code"]) for reply in replies) == {(409, "already_member"): 10}
    assert all("idempotent-replayed" not in reply.headers for reply in replies)


def test_it_activates_five_machines_of_twenty(server: Running, license: Any) -> None:
    replies = at_once(
        server,
        20,
        lambda number: ("POST", "/activations", {"fingerprint": f"{number:032}"}),
        Authorization=f"License {license['key']}",
        X_Licentia_Nonce="0123456789abcdefghijkl",
    )

    assert Counter(reply.status for reply in replies) == {201: 5, 409: 15}
    assert {reply.body["code"] for reply in replies if reply.status == 409} == {"activation_limit_reached"}
    assert all("signature" in reply.headers for reply in replies)
    assert one(server, f"/licenses/{license['id']}")["activations_used"] == 5


def test_it_removes_a_member_once_and_knows_none_afterwards(server: Running, license: Any) -> None:
    replies = at_once(server, 10, lambda _: ("DELETE", f"/members/{license['member']}", None))

    assert Counter(reply.status for reply in replies) == {204: 1, 404: 9}


def test_it_releases_a_seat_once_for_all_who_ask(server: Running, license: Any) -> None:
    body = {"license": license["id"], "holder": "ada@example.com"}
    seat = at_once(server, 1, lambda _: ("POST", "/seats", body))[0].body

    replies = at_once(server, 10, lambda _: ("DELETE", f"/seats/{seat['id']}", None))

    assert Counter(reply.status for reply in replies) == {204: 10}
    assert one(server, f"/licenses/{license['id']}")["seats_used"] == 0


def test_it_invites_one_person_once_to_many_customers_at_once(server: Running) -> None:
    customers = [license["customer"] for license in server.seeds["licenses"]]

    replies = at_once(
        server,
        len(customers),
        lambda number: (
            "POST",
            "/members",
            {"customer": customers[number], "email": "consultant@example.com", "role": "viewer"},
        ),
    )

    assert len(customers) > 1
    assert Counter(reply.status for reply in replies) == {201: len(customers)}
