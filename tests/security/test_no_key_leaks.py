"""Known keys go through everything there is; then nothing that was left behind holds one of them.

First the scanner is shown to find a key planted in each place, so that finding none means something.
"""

import base64
import gzip
import io
import json
import logging
import urllib.parse

import pytest
import redis
from django.conf import settings
from django.core.cache import cache
from django.db import DatabaseError, connection, transaction
from django.test import Client

from licensing import (
    activations,
    anomalies,
    audit,
    credentials,
    decisions,
    gate,
    idempotency,
    keys,
    lifecycle,
    outbox,
    seats,
    sweeps,
    tasks,
    validation,
)
from licensing.errors import LicensingError
from licensing.keyformat import generate
from licensing.models import AuditEntry, Product
from portal.celery import app
from tests.canary import Scanner, forms
from tests.factories import (
    AT,
    BY,
    make_actor,
    make_credential,
    make_customer,
    make_license_and_key,
    make_member,
    make_user,
)

pytestmark = pytest.mark.django_db(transaction=True)
NONCE = "n" * 22


@pytest.fixture(autouse=True)
def _nothing_said_before():
    """The change feed of all tests before would be looked through as well."""
    if settings.REDIS_URL:
        redis.Redis.from_url(settings.REDIS_URL).delete(f"{settings.REDIS_KEY_PREFIX}:changes")


@pytest.fixture
def log_lines():
    """What the configured handler would have written, by every logger there is, down to debug."""
    sink = io.StringIO()
    options = dict(settings.LOGGING["formatters"]["line"])
    handler = logging.StreamHandler(sink)
    handler.setFormatter(options.pop("()")(**options))
    from portal.logs import RedactingFilter

    handler.addFilter(RedactingFilter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield sink
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture
def broker(tmp_path):
    """A folder for Celery's messages, as the embedded installation has one."""
    was = (app.conf.broker_url, app.conf.broker_transport_options)
    (tmp_path / "broker").mkdir()
    app.conf.broker_url = "filesystem://"
    app.conf.broker_transport_options = {
        "data_folder_in": str(tmp_path / "broker"),
        "data_folder_out": str(tmp_path / "broker"),
        "control_folder": str(tmp_path / "broker"),
    }
    _forget_connections()
    yield tmp_path / "broker"
    app.conf.broker_url, app.conf.broker_transport_options = was
    _forget_connections()


def _forget_connections() -> None:
    app._pool = app.amqp._producer_pool = None


def scanned(secrets, log_lines, *folders) -> Scanner:
    """Scan all that is left: every table, Redis, the log, the folders."""
    scanner = Scanner(secrets)
    with connection.cursor() as cursor:
        scanner.look_at_rows(cursor, connection.introspection.table_names(cursor))
    if settings.REDIS_URL:
        scanner.look_at_redis(redis.Redis.from_url(settings.REDIS_URL))
    scanner.look(log_lines.getvalue(), "log")
    for folder in folders:
        scanner.look_at_folder(folder)
    return scanner


def found(secret, log_lines, *folders) -> set[str]:
    return {leak.place for leak in scanned([secret], log_lines, *folders).leaks}


# --- the scanner finds what is planted --------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        str,
        str.lower,
        lambda key: key.replace("-", ""),
        lambda key: key.replace("-", " "),
        lambda key: key[5:40],
        lambda key: key[::-1].replace("-", ""),
        lambda key: urllib.parse.quote(key.replace("-", " ")),
        lambda key: urllib.parse.quote_plus(key.replace("-", " ")),
        lambda key: key.encode().hex(),
        lambda key: key.encode().hex().upper(),
        lambda key: base64.b64encode(key.encode()).decode(),
        lambda key: base64.b64encode(b"a" + key.encode()).decode(),
        lambda key: base64.b64encode(b"ab" + key.encode() + b"c").decode(),
        lambda key: base64.urlsafe_b64encode(b"abcd" + key.replace("-", "").encode()).decode(),
        lambda key: base64.b64encode(f"License {key}".encode()).decode(),
        lambda key: base64.b32encode(key.encode()).decode(),
        lambda key: json.dumps({"key": key}),
        lambda key: "".join(f"\\u{ord(sign):04x}" for sign in key),
        lambda key: key.encode("utf-16-le").decode("latin-1"),
    ],
)
def test_it_finds_a_key_in_any_form(write):
    key = generate()
    scanner = Scanner([generate(), key])

    scanner.look(f"before {write(key)} after", "here")

    assert {leak.secret for leak in scanner.leaks} == {key}


def test_it_finds_nothing_in_what_holds_no_key():
    scanner = Scanner([generate() for _ in range(20)])

    scanner.look("".join(generate() for _ in range(2_000)), "other keys")
    scanner.look(gzip.compress(b"nothing"), "compressed")

    assert scanner.leaks == []
    assert min(len(form) for form in forms(generate()).values()) >= 14


def test_it_finds_a_key_planted_in_each_place(log_lines, broker, tmp_path):
    client = redis.Redis.from_url(settings.REDIS_URL)
    prefix = settings.REDIS_KEY_PREFIX
    places = {}

    def plant(name, act):
        key = generate()
        act(key)
        places[name] = key

    plant("table", lambda key: Product.objects.create(code="a", name=f"A {key}", created_at=AT))
    plant("JSON column", lambda key: outbox.enqueue(kind="x", payload={"deep": [key.lower()]}, at=AT))
    plant("cache", lambda key: cache.set("planted", {"key": key}, 600))
    plant("redis name", lambda key: client.set(f"{prefix}:{key}", 1, ex=600))
    plant("redis hash", lambda key: client.hset(f"{prefix}:h", "field", key))
    plant("redis list", lambda key: client.rpush(f"{prefix}:l", base64.b64encode(key.encode())))
    plant("redis set", lambda key: client.sadd(f"{prefix}:s", key))
    plant("redis stream", lambda key: client.xadd(f"{prefix}:x", {"key": key}))
    plant("broker", lambda key: app.send_task("licensing.sweep", args=[key]))
    plant("file", lambda key: (tmp_path / "notes.txt").write_text(key))
    plant("compressed file", lambda key: (tmp_path / "log.gz").write_bytes(gzip.compress(key.encode())))
    plant("file name", lambda key: (tmp_path / key).touch())
    plant("log", lambda key: log_lines.write(key))

    leaks = {leak.secret for leak in scanned(list(places.values()), log_lines, broker, tmp_path).leaks}
    missed = [name for name, key in places.items() if key not in leaks]

    client.delete(*(f"{prefix}:{name}" for name in "hlsx"))
    cache.delete("planted")
    assert missed == []


# --- and there is nothing to find -------------------------------------------------------------------


def asked(method, target, body=None, **headers) -> gate.Request:
    return gate.Request(
        method=method,
        target=f"https://licenses.example.com{target}",
        headers={"content-type": "application/json", "x-licentia-nonce": NONCE, **headers},
        body=json.dumps(body or {}).encode(),
        address="192.0.2.7",
        request_id="request-1",
    )


def use(key: str, secret: str) -> None:
    """Do with a key and a credential's secret whatever there is to do, rightly and wrongly."""
    typo = key[:-1] + ("A" if key[-1] != "A" else "B")
    for written in (key, key.lower(), typo, generate(), key.replace("-", " ")):
        for request in (
            asked("POST", "/api/v1/validate", authorization=f"License {written}"),
            asked("POST", "/api/v1/validate", {"license_key": written}, authorization=f"Bearer {secret}"),
            asked("POST", "/api/v1/validate", {"license_key": written}, authorization=f"License {key}"),
            asked("POST", "/api/v1/validate", {written: 1}, authorization=f"Bearer {secret}"),
            asked("POST", "/api/v1/validate", {"fingerprint": written}, authorization=f"License {key}"),
            asked("POST", f"/api/v1/validate?key={written}", authorization=f"Bearer {written}"),
        ):
            gate.sign(request, gate.validate(request, AT))
    client = Client(raise_request_exception=False)
    for target in (f"/api/v1/licenses/{key}", f"/{key}", f"/api/v1/validate?license_key={key}", f"/licenses/{key}/"):
        for authorization in (f"License {key}", f"Bearer {secret}", f"Basic {base64.b64encode(key.encode()).decode()}"):
            client.get(target, headers={"authorization": authorization, "x-licentia-nonce": NONCE})
            client.post(
                target,
                data=json.dumps({"license_key": key, "name": key}),
                content_type="application/json",
                headers={"authorization": authorization, "idempotency-key": key, "x-licentia-nonce": NONCE},
            )


def break_things(key: str, license) -> None:
    """Have errors happen with the key in their words: in the log, in rows that keep errors, in tasks."""
    log = logging.getLogger("licensing.canary")
    try:
        raise RuntimeError(f"cannot use {key}") from ValueError({"license_key": key})
    except RuntimeError:
        log.exception("failed with %s", key)
        log.error("failed with %r", {"key": [key.encode(), key]})
    outbox.enqueue(kind="canary", payload={}, at=AT)

    def refused(message):
        raise ConnectionError(f"the server said: {key} is unknown")

    outbox.relay(handlers={"canary": refused}, at=AT)

    def work(at):
        raise OSError(f"cannot open {key}")

    with pytest.raises(OSError, match="cannot open"):
        sweeps.run(sweeps.Job("canary", sweeps.RETENTION.every, work, sweeps.RETENTION.lag), at=AT)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SELECT '{key}' FROM no_such_table")
    for act in (
        lambda: keys.find(key + "0"),
        lambda: keys.look_up(generate(), by=BY, at=AT),
        lambda: credentials.authenticate(key, address=None, request_id="r", at=AT),
        lambda: activations.activate(license=license, fingerprint=f"{key}!", by=BY, at=AT),
        lambda: seats.assign(license=license, holder=key, by=BY, at=AT),
    ):
        with pytest.raises(LicensingError) as error:
            act()
        log.exception("refused", exc_info=error.value)


def test_it_leaves_no_key_and_no_secret_behind(log_lines, broker, tmp_path, mailoutbox, settings):
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    member = make_member()
    _, secret = make_credential(at=AT)
    made = [make_license_and_key(customer=member.customer) for _ in range(5)]
    known = [key for _, key in made]
    staff = make_user(is_staff=True, is_superuser=True)

    for license, key in made:
        use(key, secret)
        by = make_actor(id=str(staff.pk))
        assert keys.reveal(license=license, by=by, reason="they lost it", at=AT) == key
        keys.look_up(key, by=by, at=AT)
        seats.assign(license=license, holder="ada@example.com", by=by, at=AT)
        activations.activate(license=license, fingerprint="machine-000000000001", by=by, at=AT)
        lifecycle.hold(license=license, reason="unpaid", by=by, at=AT)
        idempotency.once(
            principal="credential-1",
            key=license.pk.hex,
            request=key.encode(),
            at=AT,
            act=lambda key=key: (201, key.encode()),
        )
        break_things(key, license)
        tasks.sweep.apply_async()
        known.append(keys.rotate(license=license, by=by, reason="leaked", at=AT))
    known.append(lifecycle.transfer(license=made[0][0], to=make_customer(), by=BY, at=AT, reason="sold") and made[0][1])
    validation.verdict_for_staff(license_id=made[0][0].pk, at=AT)
    anomalies.flag(
        rule="r", severity="high", object_kind="x", object_id="1", at=AT, evidence={"plain": audit.plain({})}
    )
    decisions.flush()
    sweeps.run(sweeps.EXPIRATION, at=AT)
    sweeps.run(sweeps.OUTBOX, at=AT)
    for mail in mailoutbox:
        log_lines.write(f"{mail.subject}\n{mail.body}\n{mail.message()}\n")

    scanner = scanned([*known, secret], log_lines, broker, tmp_path)

    assert [str(leak) for leak in scanner.leaks] == []
    assert scanner.read > 50_000
    assert AuditEntry.objects.filter(action="key.revealed").count() == 5
    assert "failed with" in log_lines.getvalue()
    assert "Traceback" in log_lines.getvalue()


def test_it_leaves_no_key_behind_when_staff_reveal_one(log_lines, client):
    from django.urls import NoReverseMatch, reverse

    license, key = make_license_and_key()
    client.force_login(make_user(is_staff=True, is_superuser=True), backend="django.contrib.auth.backends.ModelBackend")

    for name in ("admin:licensing_license_changelist", "admin:licensing_license_change"):
        arguments = [license.pk] if name.endswith("_change") else []
        try:
            page = client.get(reverse(name, args=arguments), {"q": key} if not arguments else None)
        except NoReverseMatch:
            continue
        assert key not in page.content.decode().replace(f'value="{key}"', "")
    keys.reveal(license=license, by=make_actor(), reason="asked", at=AT)

    assert found(key, log_lines) == set()
