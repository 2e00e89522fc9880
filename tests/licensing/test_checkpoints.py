"""Checkpoints: made in time, signed, and taken to places besides the database; a place that fails is said."""

import json
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from licensing import chain, checkpoints, crypto, ids, keyring, sweeps
from licensing.checkpoints import BEHIND, ENTRIES, IDLE, UNCOVERED
from licensing.models import Anomaly, AuditCheckpoint, AuditEntry, AuditLink, OutboxMessage
from tests.factories import make_customer
from tests.licensing import tampering

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)
MINUTE = timedelta(seconds=61)  # a turn takes its own time too


@pytest.fixture
def file(tmp_path: Path, settings) -> Path:
    settings.AUDIT_CHECKPOINT_FILE = str(tmp_path / "far" / "checkpoints.jsonl")
    return Path(settings.AUDIT_CHECKPOINT_FILE)


def write(count: int = 1) -> None:
    customer = make_customer()
    for number in range(count):
        tampering.write(customer, number)


def made() -> list[int]:
    return list(AuditCheckpoint.objects.order_by("at").values_list("size", flat=True))


def test_it_says_what_it_signs_and_the_ring_agrees():
    write()
    chain.turn(at=timezone.now())

    row = checkpoints.latest()

    assert row is not None
    text = checkpoints.of(row).text()
    assert text.splitlines()[:3] == [
        "licentia audit checkpoint 1",
        f"size {AuditEntry.objects.count()}",
        f"head {chain.standing(at=timezone.now()).head.hex()}",
    ]
    crypto.verify(text.encode(), bytes(row.signature), row.kid)
    assert checkpoints.read(checkpoints.of(row).line()) == checkpoints.of(row)


def test_one_is_made_a_minute_while_entries_come_and_an_hour_while_none_do():
    write()
    at = timezone.now()
    sizes = []
    for after, more in ((0, 0), (30, 1), (59, 0), (61, 0), (130, 0), (3600, 0), (3662, 0)):
        if more:
            write()
        chain.turn(at=at + after * SECOND)
        sizes.append(len(made()))

    assert sizes == [1, 1, 1, 2, 2, 2, 3]
    assert made() == [2, 4, 4]
    assert timedelta(hours=1) == IDLE


def test_one_is_made_before_a_thousand_entries_more(monkeypatch):
    monkeypatch.setattr(chain, "BATCH", 10)
    monkeypatch.setattr(checkpoints, "ENTRIES", 40)
    write()
    at = timezone.now()
    chain.turn(at=at)
    write(200)

    chain.turn(at=at)

    steps = [after - before for before, after in zip(made(), made()[1:], strict=False)]
    assert len(steps) >= 4
    assert max(steps) <= 40
    assert ENTRIES == 1_000


def test_none_is_made_of_nothing():
    assert checkpoints.make(at=timezone.now(), asked=True) is None
    assert not checkpoints.due(at=timezone.now())


@pytest.mark.parametrize("change", ["size", "head", "at", "kid", "signature", "id", "more", "less", "json", "spelling"])
def test_it_reads_only_what_it_writes(change):
    write()
    chain.turn(at=timezone.now())
    row = checkpoints.latest()
    assert row is not None
    said: dict[str, Any] = json.loads(checkpoints.of(row).line())
    match change:
        case "size":
            said["size"] = "2"
        case "more":
            said["more"] = 1
        case "less":
            said.pop("kid")
        case "spelling":
            said["head"] = said["head"].upper()
        case "kid":
            said["kid"] = 7
        case "json":
            pass
        case name:
            said[name] = f"{said[name]}x"

    with pytest.raises(checkpoints.NotACheckpoint):
        checkpoints.read("{" if change == "json" else json.dumps(said))


# --- the file ---------------------------------------------------------------------------------------


def test_each_is_a_line_of_the_file(file):
    at = timezone.now()
    for minute in range(3):
        write()
        chain.turn(at=at + minute * MINUTE)

    found = [one for _, one in checkpoints.in_file(file)]

    assert found == [checkpoints.of(row) for row in AuditCheckpoint.objects.order_by("size")]
    assert len(found) == 3
    assert os.stat(file).st_mode & 0o007 == 0


def test_another_process_writes_none_twice_and_a_new_file_gets_them_all(file, monkeypatch):
    at = timezone.now()
    for minute in range(3):
        write()
        chain.turn(at=at + minute * MINUTE)
    whole = file.read_text()
    monkeypatch.setattr(checkpoints, "_reached", None)  # another process

    again = checkpoints.write(at=at)
    file.unlink()
    monkeypatch.setattr(checkpoints, "_reached", None)
    monkeypatch.setattr(checkpoints, "LINES", 2)
    anew = checkpoints.write(at=at)

    assert (again, anew) == (0, 3)
    assert file.read_text() == whole


def test_it_goes_on_after_a_line_that_a_crash_cut_off(file, monkeypatch):
    at = timezone.now()
    write()
    chain.turn(at=at)
    write()
    checkpoints.make(at=at + timedelta(seconds=5), asked=True)
    row = checkpoints.latest()
    assert row is not None
    with file.open("a") as half:
        half.write(checkpoints.of(row).line()[:50])

    checkpoints.write(at=at)

    assert [one.size if one else None for _, one in checkpoints.in_file(file)] == made()
    file.write_text(file.read_text().replace('"size"', '"siz"', 1))
    assert None in [one for _, one in checkpoints.in_file(file)]


def test_a_file_that_knows_what_the_database_does_not_is_an_anomaly(file, monkeypatch):
    """The database was set back, or somebody put another in its place."""
    at = timezone.now()
    write()
    chain.turn(at=at)
    row = checkpoints.latest()
    assert row is not None
    row.pk, row.size = ids.uuid7(), 99
    row.signature = crypto.sign(checkpoints.of(row).text().encode())[1]
    with file.open("a") as more:
        more.write(checkpoints.of(row).line() + "\n")
    monkeypatch.setattr(checkpoints, "_reached", None)

    checkpoints.write(at=at)

    assert Anomaly.objects.get().rule == "audit_checkpoint_unknown"


def test_a_file_that_cannot_be_written_is_an_anomaly_shown_and_made_up_for(file):
    at = timezone.now()
    file.parent.write_text("no folder")
    write()
    chain.turn(at=at)
    write()
    chain.turn(at=at + MINUTE)

    anomaly = Anomaly.objects.get()
    shown = checkpoints.problems(at=at + MINUTE)
    file.parent.unlink()
    chain.turn(at=at + timedelta(minutes=3))

    assert (anomaly.rule, anomaly.object_id, anomaly.severity) == ("audit_checkpoint_not_delivered", "file", "critical")
    assert AuditLink.objects.count() == AuditEntry.objects.count()
    assert "audit_sink:file" in shown
    assert [one.size for _, one in checkpoints.in_file(file) if one] == made()
    assert "audit_sink:file" not in checkpoints.problems(at=at + timedelta(minutes=3))


# --- mail and webhook -------------------------------------------------------------------------------


def relay(at: Any) -> None:
    sweeps.run(sweeps.OUTBOX, at=at)


def test_it_is_mailed_to_the_addresses_once_in_a_while(settings, mailoutbox):
    settings.AUDIT_CHECKPOINT_MAIL = ["auditor@example.com"]
    at = timezone.now()
    for minute in (0, 1, 2, 61):
        write()
        chain.turn(at=at + minute * MINUTE)

    relay(at + timedelta(hours=2))

    row = AuditCheckpoint.objects.order_by("size").first()
    assert row is not None
    assert [mail.to for mail in mailoutbox] == [["auditor@example.com"]] * 2
    lines = [line for line in str(mailoutbox[0].body).splitlines() if line.startswith("{")]
    assert [checkpoints.read(line) for line in lines] == [checkpoints.of(row)]
    assert checkpoints.of(row).text() in str(mailoutbox[0].body)


class Receiver(HTTPServer):
    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Post)


class Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        server.got.append(self.rfile.read(int(self.headers["Content-Length"])))
        status = server.answers.pop(0) if server.answers else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def receiver(settings) -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    settings.AUDIT_CHECKPOINT_WEBHOOK = f"http://127.0.0.1:{server.server_port}/"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_is_posted_to_the_webhook(receiver):
    at = timezone.now()
    for minute in range(2):
        write()
        chain.turn(at=at + minute * MINUTE)

    relay(at + timedelta(hours=1))

    assert [checkpoints.read(body.decode()).size for body in receiver.got] == made()


@pytest.mark.parametrize("answer", [500, 302, 404])
def test_a_webhook_that_refuses_is_an_anomaly_shown_and_tried_again(receiver, answer):
    at = timezone.now()
    receiver.answers.append(answer)
    write()
    chain.turn(at=at)
    relay(at + SECOND)

    anomaly = Anomaly.objects.get()
    shown = checkpoints.problems(at=at + SECOND)
    relay(at + timedelta(minutes=1))

    assert (anomaly.rule, anomaly.object_id) == ("audit_checkpoint_not_delivered", "webhook")
    assert str(answer) in shown["audit_sink:webhook"]
    assert len(receiver.got) == 2
    assert OutboxMessage.objects.get(kind=checkpoints.WEBHOOK).delivered_at is not None
    assert "audit_sink:webhook" not in checkpoints.problems(at=at + MINUTE)


# --- how they stand ---------------------------------------------------------------------------------


def test_without_a_signing_key_the_chain_goes_on_and_it_is_an_anomaly(monkeypatch):
    def none(purpose: str) -> Any:
        raise crypto.KeyRingError("The key ring has no primary key for 'sign'.")

    write()
    monkeypatch.setattr(crypto.ring(), "primary", none)
    at = timezone.now()

    chain.turn(at=at)

    assert AuditLink.objects.count() == AuditEntry.objects.count() > 0
    assert Anomaly.objects.get().rule == "audit_checkpoint_not_made"
    assert set(checkpoints.problems(at=at + UNCOVERED + SECOND)) == {"audit_checkpoint"}


def test_entries_that_wait_and_places_that_lack_are_said(file):
    at = timezone.now()
    write()
    late = set(checkpoints.problems(at=at + chain.LATE + 2 * SECOND))
    chain.turn(at=at)
    fine = checkpoints.problems(at=at)
    write()
    checkpoints.make(at=at + SECOND, asked=True)
    file.write_text(file.read_text().splitlines()[0] + "\n")

    assert late == {"audit_chain"}
    assert fine == {}
    assert "audit_sink:file" in checkpoints.problems(at=at + BEHIND + 3 * SECOND)


def test_health_doctor_and_metrics_say_it(client, tmp_path):
    from portal import doctor

    at = timezone.now()
    for job in sweeps.every():
        sweeps.run(job, at=at)
    chain.turn(at=at)
    good = client.get("/health/ready").json()["degraded"]
    write()
    (tmp_path / "no folder").write_text("")
    with override_settings(AUDIT_CHECKPOINT_FILE=str(tmp_path / "no folder" / "checkpoints.jsonl")):
        chain.turn(at=at + MINUTE)
        bad = client.get("/health/ready").json()["degraded"]
        found = [finding for finding in doctor.examine() if finding.wrong]
        metrics = client.get("/metrics").content.decode()

    assert good == []
    assert "audit_sink:file" in bad
    assert [finding.subject for finding in found] == ["audit sink:file"]
    assert 'licentia_audit_sink_failing{sink="file"} 1.0' in metrics
    assert f"licentia_audit_chain_entries {float(AuditEntry.objects.count())}" in metrics


def test_the_ring_keeps_the_public_half_of_a_disabled_key(tmp_path, settings):
    settings.KEYRING_FILE, settings.KEYRING = str(tmp_path / "ring.json"), ""
    crypto.write(crypto.ring(), tmp_path / "ring.json")
    former = crypto.ring().primary("sign").kid
    public = crypto.public_key(former)
    key = keyring.add(purpose="sign", at=timezone.now())
    keyring.promote(kid=key.kid, at=timezone.now(), force=True)
    keyring.disable(kid=former, at=timezone.now())

    disabled = crypto.public_key(former)
    keyring.destroy(kid=former, at=timezone.now(), now=True)
    destroyed = crypto.public_key(former)
    crypto.forget()

    assert (disabled, destroyed) == (public, None)
    with pytest.raises(crypto.KeyRingError):
        crypto.public_key("sign-unheard-of")
