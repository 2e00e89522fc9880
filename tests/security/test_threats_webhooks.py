"""T19, a webhook address that leads inside: nothing but a public address is ever connected to, under any name; and what
is there cannot keep a relay (F19)."""

import json
import resource
import socket
import time
from datetime import timedelta

import pytest

from licensing import outbox, posting, sweeps, webhooks
from licensing.errors import Invalid
from licensing.models import WebhookDelivery
from tests.factories import AT, BY, make_license
from tests.receiver import receiving

INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "168.63.129.16",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:a00:1::1",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "100::1",
]
PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


class Wire:
    """Counts connections instead of making them, and answers for the resolver."""

    def __init__(self, monkeypatch, *answers):
        self.connected, self.asked, self.answers = [], 0, list(answers)
        monkeypatch.setattr(socket, "getaddrinfo", self.resolve)
        monkeypatch.setattr(socket.socket, "connect", self.connect, raising=True)

    def resolve(self, host, port, *args, **kwargs):
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (
                kinds[":" in address],
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in answer
        ]

    def connect(self, connection, address=None):
        self.connected.append(connection if address is None else address)
        raise ConnectionRefusedError("counted")


def post(url="https://hooks.example.com/", **options):
    return posting.post(url=url, body=b"{}", headers={}, **options)


@pytest.mark.parametrize("address", INSIDE)
def test_t19_a_name_that_leads_inside_is_not_connected_to(address, monkeypatch):
    wire = Wire(monkeypatch, [address])

    with pytest.raises(posting.AddressRefused):
        post()

    assert wire.connected == []


@pytest.mark.parametrize("address", INSIDE)
def test_t19_an_address_that_leads_inside_makes_no_endpoint(address):
    shown = f"[{address.partition('%')[0]}]" if ":" in address else address

    for scheme in ("https", "http"):
        with pytest.raises(Invalid):
            posting.check(f"{scheme}://{shown}/")


@pytest.mark.parametrize("address", PUBLIC)
def test_t19_a_public_address_is_connected_to_once_as_it_was_resolved(address, monkeypatch):
    wire = Wire(monkeypatch, [address])

    with pytest.raises(posting.Unanswered):
        post()

    assert [to[:2] for to in wire.connected] == [(address, 443)]
    assert wire.asked == 1


def test_t19_one_inside_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    wire = Wire(monkeypatch, ["8.8.8.8", "10.0.0.1"])

    with pytest.raises(posting.AddressRefused):
        post()

    assert wire.connected == []


def test_t19_a_name_that_changes_its_mind_is_asked_once_and_connected_as_answered(monkeypatch):
    """DNS rebinding: public when it is looked at, inside when it would be connected to."""
    wire = Wire(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])

    with pytest.raises(posting.Unanswered):
        post()

    assert wire.asked == 1
    assert [to[0] for to in wire.connected] == ["8.8.8.8"]


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "0"])
def test_t19_another_way_to_write_this_machine_is_seen_through(host):
    with receiving() as receiver:
        port = receiver.url.rpartition(":")[2]

        with pytest.raises((posting.AddressRefused, posting.Unanswered)):
            post(f"http://{host}:{port}")

        assert receiver.requests == []


def test_t19_a_redirect_is_an_answer_and_not_followed(settings):
    settings.WEBHOOKS_TO_LOOPBACK = True
    with receiving() as target, receiving() as receiver:
        for status in (301, 302, 303, 307, 308):
            receiver.status, receiver.headers = status, {"Location": target.url}

            assert post(receiver.url).status == status

        assert len(receiver.requests) == 5
        assert target.requests == []


def test_t19_a_proxy_of_the_environment_is_not_used(monkeypatch, settings):
    settings.WEBHOOKS_TO_LOOPBACK = True
    with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)

        assert post(receiver.url).status == 200
        assert proxy.requests == []


def test_t19_this_machine_is_connected_to_only_where_the_settings_say_so(settings):
    with receiving() as receiver:
        settings.WEBHOOKS_TO_LOOPBACK = True
        assert post(receiver.url).status == 200
        settings.WEBHOOKS_TO_LOOPBACK = False
        with pytest.raises(posting.AddressRefused):
            post(receiver.url)

    assert len(receiver.requests) == 1


def test_t19_a_certificate_of_nobody_known_is_not_trusted(tmp_path, settings):
    """Whoever stands in the middle gets no message, and no signature to try."""
    settings.WEBHOOKS_TO_LOOPBACK = True
    import ssl
    import threading

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(AT - timedelta(days=365))
        .not_valid_after(AT + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    received = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take():
            connection, _ = server.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as wrapped:
                    received.append(wrapped.recv(1000))
            except OSError:
                pass

        threading.Thread(target=take, daemon=True).start()
        with pytest.raises(posting.Unanswered, match="CERTIFICATE_VERIFY_FAILED|certificate"):
            post(f"https://127.0.0.1:{server.getsockname()[1]}/")

    assert received in ([], [b""])


@pytest.mark.parametrize(
    ("hostile", "seconds"),
    [("slow_head", 2.0), ("silent", 2.0), ("for_ever_continue", 5.0), ("huge_head", 5.0), ("garbage", 5.0)],
)
def test_f19_whoever_does_not_answer_properly_costs_bounded_time_and_bytes(hostile, seconds, settings):
    settings.WEBHOOKS_TO_LOOPBACK = True
    with receiving() as receiver:
        receiver.hostile = hostile
        begun = time.monotonic()

        with pytest.raises(posting.Unanswered):
            post(receiver.url, seconds=seconds)

        assert time.monotonic() - begun < seconds + 2
        assert receiver.sent_bytes < 64 << 20


@pytest.mark.parametrize("hostile", ["slow_body", "huge_body"])
def test_f19_an_answer_is_its_status_however_long_its_body_would_be(hostile, settings):
    settings.WEBHOOKS_TO_LOOPBACK = True
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with receiving() as receiver:
        receiver.hostile = hostile
        begun = time.monotonic()

        answer = post(receiver.url)

        assert (answer.status, len(answer.body) <= 1024) == (200, True)
        assert time.monotonic() - begun < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB


@pytest.mark.django_db
def test_f19_a_hostile_target_keeps_no_other_from_its_messages(settings, monkeypatch):
    settings.WEBHOOKS_TO_LOOPBACK = True
    monkeypatch.setattr(posting.post, "__kwdefaults__", {**posting.post.__kwdefaults__, "seconds": 1.0})
    with receiving() as hostile, receiving() as receiver:
        hostile.hostile = "slow_head"
        webhooks.create(url=hostile.url, by=BY, at=AT)
        webhooks.create(url=receiver.url, by=BY, at=AT)
        for _ in range(10):
            make_license()
        begun = time.monotonic()

        delivered, _ = outbox.relay(handlers=sweeps.OUR_HANDLERS, at=AT)

        assert time.monotonic() - begun < 5
    assert delivered == 10
    assert {json.loads(body)["type"] for _, _, body in receiver.requests} == {"license.issued"}
    assert WebhookDelivery.objects.filter(status=None).count() == 1
