"""A machine with a key of its own against the served application: what it sends, believes, and does without it."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings as installed
from django.utils import timezone
from licentia_client import InstallationCopied, Machine, NotBelieved, Refused, ServerAway, SignedClient, signed
from licentia_client.answers import Server
from licentia_client.offline import FileRefused

from licensing import crypto, feed, lifecycle
from licensing.models import Activation, Anomaly, License
from tests.api.conftest import MISSING_ID
from tests.clients import between as betweens
from tests.clients.between import Asked, Between, Said
from tests.factories import BY, make_license_and_key
from tests.signing import for_other_libraries

pytestmark = pytest.mark.django_db(transaction=True)
FINGERPRINT = "machine-0123456789"
HOUR, DAY = 3_600.0, 86_400.0


@pytest.fixture
def way(live_server, settings) -> Iterator[Between]:
    """The way to the server, which is known by the address of whoever stands on it."""
    if installed.REDIS_URL:
        feed.call("SET", f"{installed.REDIS_KEY_PREFIX}:nonces:epoch", 1)
    with betweens.between(live_server.url) as found:
        settings.PUBLIC_URL = found.url
        yield found


@dataclass
class Clocks:
    """The clocks of a machine: how far time has gone on from now, and how far the wall clock was set."""

    passed: float = 0.0
    shift: float = 0.0

    def wall(self) -> float:
        return time.time() + self.passed + self.shift

    def uptime(self) -> tuple[str, float]:
        return "boot", time.monotonic() + self.passed


def make_machine(folder: Path, clocks: Clocks | None = None) -> Machine:
    clocks = clocks or Clocks()
    return Machine.open(folder, fingerprint=FINGERPRINT, wall=clocks.wall, uptime=clocks.uptime, traces=())


def make_client(way: Between, folder: Path, clocks: Clocks | None = None, **more: Any) -> SignedClient:
    """Return a client as a program has it that has just been started."""
    keys = more.pop("keys", None) or crypto.jwks()
    return SignedClient(way.url, machine=make_machine(folder, clocks), keys=keys, timeout_seconds=10.0, **more)


def licensed(**terms: Any) -> tuple[License, str]:
    return make_license_and_key(**{"at": timezone.now(), "require_signed_clients": True} | terms)


# --- who asks ---------------------------------------------------------------------------------------


def test_it_sends_the_license_key_once_and_signs_everything(way, tmp_path):
    license, key = licensed()
    client = make_client(way, tmp_path / "m", product=license.product.code)

    activation = client.activate(key)
    standing = client.check()
    client.heartbeat()
    client.entitlements()

    assert (standing.allowed, standing.code, standing.source) == (True, "valid", "server")
    assert str(Activation.objects.get().pk) == activation == make_client(way, tmp_path / "m").activate("LIC1-any")
    with_key = [asked for asked in way.asked if key in json.dumps([asked.headers, asked.body.decode()])]
    assert [(asked.method, asked.path) for asked in with_key] == [("POST", "/api/v1/activations")]
    of_the_api = [asked for asked in way.asked if asked.path.startswith("/api/")]
    assert all("signature" in asked.headers and "x-licentia-counter" in asked.headers for asked in of_the_api)
    counters = [int(asked.headers["x-licentia-counter"]) for asked in of_the_api]
    assert counters == sorted(set(counters))
    assert key not in "".join(path.read_text() for path in (tmp_path / "m").iterdir())


def test_it_sends_no_license_key_to_a_server_that_does_not_prove_itself(way, tmp_path):
    _, key = licensed()
    others = {"keys": [{**crypto.jwks()["keys"][0], "x": betweens.url64(_stranger().public_key().public_bytes_raw())}]}

    with pytest.raises(NotBelieved):
        make_client(way, tmp_path / "m", keys=others).activate(key)

    assert not [asked for asked in way.asked if "authorization" in asked.headers]
    assert not Activation.objects.exists()


@pytest.mark.parametrize("ahead", [-400 * DAY, -3_000.0, 3_000.0, 400 * DAY])
def test_it_is_heard_with_a_clock_that_is_wrong(ahead, way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m", Clocks(shift=ahead))

    client.activate(key)

    assert client.check()
    assert not Anomaly.objects.filter(rule="cloned_installation").exists()


def test_it_refuses_a_folder_or_a_key_that_others_can_read(tmp_path):
    make_machine(tmp_path / "m")
    for path, mode in ((tmp_path / "m", 0o755), (tmp_path / "m" / "machine.json", 0o640)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(FileRefused) as refused:
            make_machine(tmp_path / "m")
        assert refused.value.code == "not_private"
        assert "chmod" in refused.value.detail
        path.chmod(before)
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(FileRefused) as refused:
        make_machine(tmp_path / "open")

    assert refused.value.code == "not_private"
    assert not list((tmp_path / "open").iterdir())
    assert make_machine(tmp_path / "m").fingerprint == FINGERPRINT


def test_it_keeps_nothing_that_others_can_read(way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    client.check()

    kept = [tmp_path / "m", tmp_path / ".m.clock", *(tmp_path / "m").iterdir()]

    assert {path.name for path in kept} >= {"machine.json", "counter", "clock", "activation", ".m.clock"}
    assert not [path for path in kept if path.stat().st_mode & 0o077]


def test_it_reports_a_copied_installation(way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    client.check()
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    make_client(way, tmp_path / "m").validate()
    copy = make_client(way, tmp_path / "copy")

    with pytest.raises(InstallationCopied):
        copy.validate()
    standing = copy.check()

    assert standing.copied
    assert standing.allowed  # what is done about it, the vendor decides
    assert Anomaly.objects.get(rule="cloned_installation").object_id == client.activation
    assert make_client(way, tmp_path / "m").check().allowed


def test_it_is_let_go_by_the_server_and_can_come_back(way, tmp_path):
    _, key = licensed(activation_limit=1)
    client = make_client(way, tmp_path / "m")
    first = client.activate(key)
    assert client.check()
    client.deactivate()

    assert client.check().code == "activation_ended"
    way.answer = way.nobody
    assert not make_client(way, tmp_path / "m").check()
    way.answer = None
    again = make_client(way, tmp_path / "m")
    assert again.check().code == "activation_required"
    assert again.activate(key) != first
    assert again.check()


# --- how fast ---------------------------------------------------------------------------------------


def test_it_answers_from_memory_while_that_is_fresh(way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    first, asked = client.check(), len(way.asked)
    shutil.rmtree(tmp_path / "m")

    def once() -> float:
        began = time.process_time()
        for _ in range(20_000):
            client.check()
        return (time.process_time() - began) / 20_000

    assert min(once() for _ in range(5)) < 5e-6  # a slow machine under load; the goal is one: benchmarks/sdk.py
    assert client.check() is first
    assert len(way.asked) == asked


def test_it_asks_again_when_it_is_not_fresh_any_more(way, tmp_path):
    license, key = licensed()
    client = make_client(way, tmp_path / "m", fresh_seconds=0.2)
    client.activate(key)
    assert client.check()
    lifecycle.revoke(license=license, reason="test", by=BY, at=timezone.now())
    assert client.check()
    time.sleep(0.25)

    assert client.check().code == "revoked"


# --- without the server -----------------------------------------------------------------------------


def test_it_goes_by_its_last_verdict_until_that_ends(way, tmp_path):
    license, key = licensed()
    clocks = Clocks()
    client = make_client(way, tmp_path / "m", clocks, product=license.product.code)
    client.activate(key)
    client.check()
    way.answer = way.nobody

    def later(seconds: float) -> signed.Standing:
        clocks.passed = seconds
        return make_client(way, tmp_path / "m", clocks, product=license.product.code).check()

    assert (later(1).allowed, later(1).source, later(1).code) == (True, "token", "valid")
    assert later(23 * HOUR).source == "token"
    assert later(23 * HOUR).license["id"] == str(license.pk)
    assert not later(24 * HOUR + 1)
    assert not later(1 * HOUR)  # time does not go back
    assert not make_client(way, tmp_path / "m", clocks, product="other").check()
    way.answer = None
    assert later(0).source == "server"


def test_it_goes_by_a_borrowed_lease_when_the_verdict_has_ended(way, tmp_path):
    license, key = licensed(seat_kind="floating", seat_limit=2, offline_period=timedelta(days=10))
    clocks = Clocks()
    client = make_client(way, tmp_path / "m", clocks)
    client.activate(key)
    lease = client.borrow(ttl_seconds=7 * 86_400)
    way.answer = way.nobody

    def later(days: float) -> signed.Standing:
        clocks.passed = days * DAY
        return make_client(way, tmp_path / "m", clocks).check()

    assert client.borrowed().id == lease.id
    assert client.borrowed().license == str(license.pk)
    assert later(0.5).source == "token"
    assert (later(2).allowed, later(2).source) == (True, "lease")
    assert later(6.9).source == "lease"
    assert not later(7.1)


def test_it_forgets_a_lease_that_was_checked_in(way, tmp_path):
    _, key = licensed(seat_kind="floating", seat_limit=1, offline_period=timedelta(days=10))
    clocks = Clocks()
    client = make_client(way, tmp_path / "m", clocks)
    client.activate(key)
    lease = client.borrow()
    client.check_in(lease.id)
    way.answer = way.nobody
    clocks.passed = 2 * DAY

    assert not make_client(way, tmp_path / "m", clocks).check()
    with pytest.raises(FileRefused):
        client.borrowed()


def test_it_takes_no_lease_of_another_machine(way, tmp_path):
    _, key = licensed(seat_kind="floating", seat_limit=2, offline_period=timedelta(days=10))
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    lease = client.borrow()
    other = Machine.open(tmp_path / "other", fingerprint="machine-of-another")

    def code_of(token: str, machine: Machine, **more: Any) -> str:
        try:
            signed.BorrowedLease.read(token, keys=client.keys, machine=machine, **more)
        except FileRefused as refused:
            return refused.code
        return "fine"

    renewed = client.check_out()
    assert code_of(lease.token, client.machine) == "fine"
    assert code_of(lease.token, other) == "wrong_machine"
    assert code_of(lease.token, client.machine, product="other") == "wrong_product"
    assert code_of(lease.token, client.machine, issuer="https://other.example") == "wrong_product"
    assert code_of(client.validate().token, client.machine) == "malformed"
    assert renewed.id == lease.id
    for at, character in enumerate(lease.token):
        flipped = lease.token[:at] + chr(ord(character) ^ 1) + lease.token[at + 1 :]
        assert code_of(flipped, client.machine) in ("malformed", "not_authentic")


def _stranger() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def _faults(way: Between, stranger: Ed25519PrivateKey) -> dict[str, Callable[[Asked], Said | None]]:
    yes = {"valid": True, "code": "valid", "detail": "", "license": None, "token": ""}
    yes |= {"fresh_until": "2099-01-01T00:00:00Z", "checked_at": "2026-01-01T00:00:00Z"}

    def bent(change: Callable[[Said], Said]) -> Callable[[Asked], Said]:
        return lambda asked: change(way.pass_on(asked))

    def as_valid(said: Said) -> Said:
        return replace(said, body=said.body.replace(b'"valid":false', b'"valid":true').replace(b"revoked", b"valid"))

    return {
        "nobody": way.nobody,
        "unsigned yes": lambda asked: Said(200, {"content-type": "application/json"}, json.dumps(yes).encode()),
        "signed by another": lambda asked: betweens.signed(stranger, "k", way.url, asked, 200, yes),
        "refusal made valid": bent(as_valid),
        "other status": bent(lambda said: replace(said, status=201)),
        "cut short": bent(lambda said: replace(said, body=said.body[:-1])),
        "no signature": bent(lambda said: replace(said, headers={"content-type": "application/json"})),
        "redirected": lambda asked: Said(302, {"location": "http://127.0.0.1:9/"}, b""),
        "broken": lambda asked: Said(500, {}, b"<html>"),
        "gateway": lambda asked: Said(502, {"retry-after": "999999999"}, b""),
        "not modified": lambda asked: Said(304, {}, b""),
        "compressed nonsense": lambda asked: Said(200, {"content-encoding": "gzip"}, b"\x1f\x8b nonsense"),
        "request bent": lambda asked: way.pass_on(replace(asked, body=asked.body + b" ")),
        "counter bent": lambda asked: way.pass_on(replace(asked, headers={**asked.headers, "x-licentia-counter": "1"})),
    }


def test_it_makes_nothing_valid_by_a_fault_and_nothing_invalid(way, tmp_path):
    license, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    client.check()
    faults = _faults(way, _stranger())

    def sources() -> dict[str, str]:
        found = {}
        for name, fault in faults.items():
            way.answer = fault
            standing = make_client(way, tmp_path / "m").check()
            found[name] = standing.source if standing.allowed else standing.code
        way.answer = None
        return found

    # The one that only bends refusals lets through what is valid.
    assert sources() == dict.fromkeys(faults, "token") | {"refusal made valid": "server"}
    lifecycle.revoke(license=license, reason="test", by=BY, at=timezone.now())
    assert make_client(way, tmp_path / "m").check().code == "revoked"
    assert sources() == dict.fromkeys(faults, "revoked")


def test_it_allows_nothing_before_the_server_did(way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    assert client.check().code == "activation_required"
    client.activate(key)
    way.answer = way.nobody

    assert not client.check()
    with pytest.raises(ServerAway):
        client.validate()


def test_it_goes_on_with_what_this_process_was_told_when_its_folder_is_gone(way, tmp_path):
    license, key = licensed()
    client = make_client(way, tmp_path / "m", fresh_seconds=0.0)
    client.activate(key)
    assert client.check().source == "server"
    shutil.move(tmp_path / "m", tmp_path / "moved")
    (tmp_path / "m").write_text("no folder")

    assert (client.check().allowed, client.check().source) == (True, "token")
    (tmp_path / "m").unlink()
    shutil.move(tmp_path / "moved", tmp_path / "m")
    lifecycle.revoke(license=license, reason="test", by=BY, at=timezone.now())
    client._fresh_until = 0.0
    assert client.check().code == "revoked"
    shutil.move(tmp_path / "m", tmp_path / "moved")
    (tmp_path / "m").write_text("no folder")
    client._fresh_until = 0.0
    assert not client.check()


@pytest.mark.parametrize("bent", ["another keyid", "an authorization more", "another media type"])
def test_it_forgets_nothing_for_a_request_that_was_bent_on_its_way(bent, way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    assert client.check()

    def bend(asked: Asked) -> Said | None:
        headers = dict(asked.headers)
        match bent:
            case "another keyid":
                headers["signature-input"] = headers["signature-input"].replace(client.activation, MISSING_ID)
            case "an authorization more":
                headers["authorization"] = "Basic Zm9vOmJhcg=="
            case "another media type":
                headers["content-type"] = "text/plain"
        return way.pass_on(replace(asked, headers=headers))

    way.answer = bend
    client._fresh_until = 0.0

    assert client.check().allowed
    assert client.activation
    way.answer = None
    assert make_client(way, tmp_path / "m").check()


def test_it_waits_when_it_is_asked_to(way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    client.validate()
    asked = len(way.asked)
    client._waiting = (signed.running() + 60, Refused(429, "throttled", "Too many requests.", 60))

    with pytest.raises(Refused) as refused:
        client.validate()

    assert refused.value.code == "throttled"
    assert len(way.asked) == asked


# --- what is believed -------------------------------------------------------------------------------


def test_it_believes_no_answer_with_a_byte_flipped(way):
    """Status, headers and body: each byte of what is said, one bit at a time, to the very request it answers."""
    _, key = licensed(require_signed_clients=False)
    asked = {"authorization": f"License {key}", "x-licentia-nonce": "n" * 22}
    server = Server(way.url, keys=crypto.jwks(), timeout_seconds=10.0)
    server.ask("POST", "/api/v1/validate", b"{}", headers=asked)
    genuine = way.said[-1]
    covered = ("content-digest", "signature-input", "signature")

    def flips(text: str) -> Iterator[str]:
        for position in range(len(text)):
            for bit in (1, 4) if position % 2 else (2, 8):
                flipped = chr(ord(text[position]) ^ bit)
                if flipped.isprintable():
                    yield text[:position] + flipped + text[position + 1 :]

    bent = [replace(genuine, status=status) for status in (201, 202, 300, 400, 401, 500)]
    for name in covered:
        bent += [replace(genuine, headers={**genuine.headers, name: text}) for text in flips(genuine.headers[name])]
    for position in range(len(genuine.body)):
        body = bytearray(genuine.body)
        body[position] ^= 1 << position % 8
        bent.append(replace(genuine, body=bytes(body)))
    accepted = []
    for said in bent:
        way.answer = lambda asked, said=said: said
        try:
            server.ask("POST", "/api/v1/validate", b"{}", headers=asked)
        except NotBelieved:
            continue
        accepted.append(said)

    assert len(bent) > 1_000
    assert accepted == []
    way.answer = lambda asked: genuine
    assert server.ask("POST", "/api/v1/validate", b"{}", headers=asked).status == 200


def test_t1_it_accepts_none_of_a_thousand_answers_of_a_look_alike_server(way, tmp_path, monkeypatch):
    """Threat T1: a server in the server's place, with a key and a list of keys of its own, and with everything that
    the server has ever said."""
    license, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    for _ in range(20):
        client.validate()
    recorded = [said for asked, said in zip(way.asked, way.said, strict=True) if asked.path == "/api/v1/validate"]
    lists = [said for asked, said in zip(way.asked, way.said, strict=True) if "jwks" in asked.path]
    lifecycle.revoke(license=license, reason="test", by=BY, at=timezone.now())
    assert client.validate().code == "revoked"
    stranger, true_kid = _stranger(), crypto.jwks()["keys"][0]["kid"]
    public = {"kty": "OKP", "crv": "Ed25519", "x": betweens.url64(stranger.public_key().public_bytes_raw())}
    told = {"keys": 0, "verdicts": 0}

    def verdict(kid: str) -> dict[str, Any]:
        now, shown = int(time.time()), json.loads(recorded[0].body)
        claims = {"iss": way.url, "aud": license.product.code, "sub": str(license.pk), "jti": "x", "ver": 1}
        claims |= {"iat": now, "nbf": now, "exp": now + 86_400, "valid": True, "code": "valid"}
        claims |= {"terms": shown["license"], "fingerprint": FINGERPRINT}
        return {**shown, "token": betweens.jws(stranger, kid, "license+jwt", claims)}

    def look_alike(asked: Asked) -> Said:
        turn = told["verdicts"] % 4
        if "jwks" in asked.path:
            told["keys"] += 1
            kid = (true_kid, "own")[turn % 2]
            own = betweens.signed(stranger, kid, way.url, asked, 200, {"keys": [{**public, "kid": kid}]})
            return lists[0] if turn == 3 else own
        told["verdicts"] += 1
        if turn >= 2:  # what the server said at another time, as it was or with the digest of another of them
            said = recorded[told["verdicts"] % len(recorded)]
            return said if turn == 2 else replace(said, headers={**recorded[0].headers, "x": "y"})
        kid = (true_kid, "own")[turn]
        return betweens.signed(stranger, kid, way.url, asked, 200, verdict(kid))

    monkeypatch.setattr(signed, "KEYS_AGAIN_SECONDS", 0.0)
    way.answer = look_alike
    accepted = 0
    while told["verdicts"] < 1_000:
        try:
            client.validate()
        except NotBelieved:
            continue
        accepted += 1

    assert accepted == 0
    assert told["keys"] >= 250
    assert (client.check().allowed, client.check().code) == (False, "revoked")
    assert not make_client(way, tmp_path / "m").check()
    assert client.keys == crypto.jwks()
    way.answer = None
    assert client.validate().code == "revoked"


# --- the server's keys ------------------------------------------------------------------------------


@pytest.fixture
def ring() -> Iterator[Callable[..., None]]:
    """Rotate signing keys: call with the keys there shall be, by name and state."""
    former = crypto.ring()
    named: dict[str, Any] = {"first": former.primary("sign")}

    def turn(**states: str) -> None:
        for name in states:
            named.setdefault(name, crypto.make_key("sign"))
        rest = [key for key in former.keys if key.purpose != "sign"]
        crypto.use(crypto.KeyRing([*rest, *(replace(named[name], state=state) for name, state in states.items())]))

    turn.kid = lambda name: named[name].kid  # type: ignore[attr-defined]
    yield turn
    crypto.use(former)


def kids(client: SignedClient) -> set[str]:
    return {key["kid"] for key in client.keys["keys"]}


def test_it_follows_a_rotation_it_slept_through_without_a_new_program(ring, way, tmp_path):
    _, key = licensed()
    pinned = crypto.jwks()
    client = make_client(way, tmp_path / "m", keys=pinned)
    client.activate(key)
    ring(first="active", second="active", third="primary")

    standing = client.check()

    assert standing.source == "server"
    assert kids(client) == {ring.kid("first"), ring.kid("second"), ring.kid("third")}
    way.answer = way.nobody
    assert make_client(way, tmp_path / "m", keys=pinned).check().source == "token"  # signed by the third


def test_it_believes_a_disabled_key_no_more_once_it_has_heard_of_it(ring, way, tmp_path):
    _, key = licensed()
    pinned = crypto.jwks()
    client = make_client(way, tmp_path / "m", keys=pinned)
    client.activate(key)
    client.check()
    leaked = for_other_libraries(crypto.ring().primary("sign"))
    kid = ring.kid("first")
    ring(first="active", second="primary")
    assert client.validate().valid
    ring(first="disabled", second="primary")
    client._keys_at = client._keys_again = 0.0  # a day has gone by

    assert client.validate().valid
    assert kids(client) == {ring.kid("second")}

    def by_the_leaked_key(asked: Asked) -> Said:
        body = crypto.jwks() if "jwks" in asked.path else {"valid": True}
        return betweens.signed(leaked, kid, way.url, asked, 200, body)

    way.answer = by_the_leaked_key
    with pytest.raises(NotBelieved):
        client.validate()
    with pytest.raises(NotBelieved):
        make_client(way, tmp_path / "m", keys=pinned).validate()
    way.answer = None
    assert make_client(way, tmp_path / "m", keys=pinned).check()


def test_it_learns_from_a_process_beside_it(ring, way, tmp_path):
    _, key = licensed()
    pinned = crypto.jwks()
    one = make_client(way, tmp_path / "m", keys=pinned)
    one.activate(key)
    other = make_client(way, tmp_path / "m", keys=pinned)
    ring(first="active", second="primary")
    one.validate()
    lists = sum("jwks" in asked.path for asked in way.asked)

    assert other.validate().valid
    assert kids(other) == kids(one)
    assert sum("jwks" in asked.path for asked in way.asked) == lists


def test_it_goes_by_the_keys_of_a_new_program_rather_than_by_those_it_learned(ring, way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    ring(second="primary")
    with pytest.raises(NotBelieved):
        client.validate()  # nobody it knows vouches for the second

    assert make_client(way, tmp_path / "m", keys=crypto.jwks()).validate().valid


# --- the clock --------------------------------------------------------------------------------------


def test_it_tells_the_server_once_of_a_clock_turned_back(way, tmp_path):
    _, key = licensed()
    clocks = Clocks()
    client = make_client(way, tmp_path / "m", clocks, fresh_seconds=0.0)
    client.activate(key)
    client.check()
    assert not Anomaly.objects.filter(rule="clock_turned_back").exists()

    clocks.shift = -10 * DAY
    way.answer = way.nobody
    assert make_client(way, tmp_path / "m", clocks).check().clock_rolled_back
    way.answer = None
    standing = make_client(way, tmp_path / "m", clocks).check()

    assert (standing.source, standing.clock_rolled_back) == ("server", True)
    found = Anomaly.objects.get(rule="clock_turned_back")
    assert (found.object_id, found.count) == (client.activation, 1)
    assert not make_client(way, tmp_path / "m", clocks).check().clock_rolled_back
    found.refresh_from_db()
    assert found.count == 1


def test_it_asks_after_a_sleep(way, tmp_path):
    """The time a machine sleeps counts: the clock that says how long an answer is fresh goes on meanwhile."""
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    client.check()

    assert signed.running() > time.monotonic() - 1
    assert client._fresh_until <= signed.running() + 3_600.0
    verdict = client.validate()
    assert datetime.fromisoformat(verdict.fresh_until).timestamp() > time.time() + 3_600


# --- threads and forks ------------------------------------------------------------------------------


def test_it_is_shared_by_threads(way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    asked, found = len(way.asked), []
    threads = [threading.Thread(target=lambda: found.append(client.check().allowed)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [True] * 8
    assert len(way.asked) == asked + 1


def test_it_outlives_a_fork_while_another_thread_is_asking(way, tmp_path):
    _, key = licensed()
    client = make_client(way, tmp_path / "m")
    client.activate(key)
    client.validate()
    held = threading.Event()
    way.answer = lambda asked: held.wait(20) and None
    client._fresh_until = 0.0
    thread = threading.Thread(target=client.check)
    thread.start()
    while not [asked for asked in way.asked if asked.path == "/api/v1/validate"][1:]:
        time.sleep(0.01)
    way.answer = way.nobody

    child = os.fork()
    if child == 0:
        os._exit(0 if client.check().source == "token" and client._counter.next() else 1)
    deadline, ended = time.monotonic() + 15, (0, 0)
    while ended == (0, 0) and time.monotonic() < deadline:
        ended = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    held.set()
    thread.join()

    assert ended == (child, 0)
