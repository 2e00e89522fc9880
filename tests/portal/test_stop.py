"""An orderly stop loses nothing that left its request: last-seen stamps, counters, records of refusals."""

import http.client
import json
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery.signals import worker_process_shutdown
from django.utils import timezone

from licensing import decisions
from licensing.models import DecisionRecord
from tests.api.running import Running, database_beside, python, running
from tests.servers import Postgres
from tests.signing import Signer

MACHINES = 30
# The server has a database of its own; the mark says that what is claimed here is claimed of both databases.
pytestmark = pytest.mark.django_db

ROWS = f"""
from datetime import UTC, datetime, timedelta
from licensing import activations
from tests.factories import BY, make_license_and_key
at = datetime.now(UTC) - timedelta(days=1)
made = []
for number in range({MACHINES}):
    license, key = make_license_and_key(at=at, activation_limit=None)
    bound = activations.activate(license=license, fingerprint=f"plain-machine-{{number:04}}", by=BY, at=at).activation
    made.append({{"key": key, "fingerprint": bound.fingerprint, "activation": str(bound.pk)}})
print(json.dumps(made))
"""
KEPT = """
from django.db.models import Max
from licensing import nonces
from licensing.models import Activation, DecisionRecord
print(json.dumps({
    "refused": sorted(DecisionRecord.objects.values_list("request_id", flat=True)),
    "seen": {str(row.pk): row.last_seen_at.timestamp() for row in Activation.objects.all()},
    "floors": {str(row.pk): nonces.floor_of(row.pk) for row in Activation.objects.all()},
}))
"""


class Client:
    """A program on one machine that signs and one that holds the key, both over one connection that stays open."""

    def __init__(self, server: Running, row: Any) -> None:
        self.connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
        self.key, self.fingerprint, self.plain = row["key"], row["fingerprint"], row["activation"]
        self.signer = Signer()
        self.refused: list[str] = []
        self.seen: dict[str, float] = {}
        self.highest = 1

    def post(self, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any, str]:
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read()), str(answer.getheader("x-request-id"))

    def by_key(self) -> dict[str, str]:
        return {"Authorization": f"License {self.key}", "x-licentia-nonce": secrets.token_urlsafe(18)}

    def signed(self, path: str, body: Any) -> dict[str, str]:
        self.highest = next(self.signer.counters)
        return self.signer.headers("POST", path, json.dumps(body).encode(), counter=self.highest)

    def register(self) -> None:
        path, body = "/api/v1/activations", {"fingerprint": f"signs-{self.fingerprint}", "public_key": self.signer.jwk}
        status, made, _ = self.post(path, body, self.by_key() | self.signed(path, body))
        assert status == 201, made
        self.signer.keyid = made["id"]
        self.validate({}, signing=True)

    def validate(self, body: dict[str, str], *, signing: bool) -> None:
        """Ask; on 503, which a memory of nonces that has just begun may answer, ask again. Note what must be kept."""
        for _ in range(20):
            at = time.time()
            headers = self.signed("/api/v1/validate", body) if signing else self.by_key()
            status, answer, request_id = self.post("/api/v1/validate", body, headers)
            if status != 503:
                break
            time.sleep(0.5)
        assert status == 200, answer
        self.seen[self.signer.keyid if signing else self.plain] = at
        if not answer["valid"]:
            self.refused.append(request_id)

    def work(self) -> None:
        for _ in range(3):
            self.validate({}, signing=True)
            self.validate({"product": "another"}, signing=True)
            self.validate({"fingerprint": self.fingerprint}, signing=False)
            self.validate({"fingerprint": self.fingerprint, "product": "another"}, signing=False)


@pytest.mark.parametrize("redis", ["with Redis", "without Redis"])
def test_it_loses_nothing_at_an_orderly_stop(redis: str, settings: Any) -> None:
    """Hundreds of calls at two processes, half of them refused; the signal comes right after the last answer."""
    more = {"REDIS_URL": ""} if redis == "without Redis" else {}
    with database_beside() as url, running(seed=ROWS, database_url=url, workers=2, **more) as server:
        settings.PUBLIC_URL = server.url
        clients = [Client(server, row) for row in server.seeds]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Client.register, clients))
            list(pool.map(Client.work, clients))

        log = server.stop()

        kept = python(KEPT, server.environment)
    assert kept["refused"] == sorted(request_id for client in clients for request_id in client.refused)
    assert len(kept["refused"]) == 6 * MACHINES
    late = {
        machine: at - kept["seen"][machine]
        for client in clients
        for machine, at in client.seen.items()
        if kept["seen"][machine] < at
    }
    assert late == {}
    assert {client.signer.keyid: kept["floors"][client.signer.keyid] for client in clients} == {
        client.signer.keyid: client.highest for client in clients
    }
    assert "lost_at_stop" not in log


@pytest.mark.postgres
def test_it_says_how_much_it_loses_when_the_database_is_away_at_the_stop() -> None:
    with Postgres() as database:
        url = database.create_database("stop")
        with running(seed=ROWS, database_url=url, workers=2) as server:
            clients = [Client(server, row) for row in server.seeds[:6]]
            for client in clients * 4:  # both processes know the answer, and everything so far is written
                client.validate({"fingerprint": client.fingerprint, "product": "another"}, signing=False)
            time.sleep(2.5)
            database.kill()
            for client in clients:
                client.validate({"fingerprint": client.fingerprint, "product": "another"}, signing=False)

            log = server.stop()

    lost = re.findall(r"lost_at_stop.*", re.sub(r"\x1b\[[0-9;]*m", "", log))
    assert (
        sum(int(number) for line in lost if "decision-records" in line for number in re.findall(r"count=(\d+)", line))
        == 6
    ), log[-3000:]
    assert any("stamps" in line for line in lost)


@pytest.mark.django_db(transaction=True)
def test_a_process_of_the_job_workers_pool_loses_nothing_either() -> None:
    """Celery ends those without any finalizer, and says so before."""
    decisions.remember(
        request_id="r-1", at=timezone.now(), license_id=None, caller="t", code="held", looked_at=("held",)
    )

    worker_process_shutdown.send(sender=None, pid=1, exitcode=0)

    assert DecisionRecord.objects.get().request_id == "r-1"
