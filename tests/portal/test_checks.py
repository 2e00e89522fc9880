"""System checks: each unsafe or half-made configuration is named, with its mend, and does not start."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, connection

from licensing import crypto, guards
from licensing.crypto import KeyRing
from portal import checks

GOOD = {
    "PRODUCTION": True,
    "SECRET_KEY": "k9Zr" * 20 + "aB3-_xY7QwErTy",
    "DATABASE_URL": "postgres://u:p@db.example.com/licentia?sslmode=verify-full&sslrootcert=system",
    "REDIS_URL": "rediss://:p@redis.example.com/0",
    "CELERY_BROKER_URL": "rediss://:p@redis.example.com/0",
    "PUBLIC_URL": "https://licenses.example.com",
    "ALLOWED_HOSTS": ["licenses.example.com"],
    "TRUSTED_PROXIES": ["10.0.0.0/8"],
    "EMAIL_URL": "smtp+tls://u:p@mail.example.com:587",
    "KEYRING_FILE": "",
    "KEYRING": KeyRing.generate().dump(),
}


@pytest.fixture
def configured(settings):
    def configure(**changes):
        for name, value in (GOOD | changes).items():
            setattr(settings, name, value)
        crypto.forget()

    yield configure
    crypto.forget()


def ids(found) -> list[str]:
    return [each.id for each in found]


def test_it_passes_a_configuration_that_is_safe(configured):
    configured()

    assert checks.production_is_safe() == []
    assert checks.key_ring_is_readable() == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"SECRET_KEY": "unset"}, "E001"),
        ({"SECRET_KEY": "short"}, "E001"),
        ({"SECRET_KEY": "a" * 60}, "E001"),
        ({"SECRET_KEY": "abcdefghijklmno" * 4}, "E001"),
        ({"KEYRING": ""}, "E002"),
        ({"DATABASE_URL": "sqlite:////srv/licentia.sqlite3"}, "E003"),
        ({"DATABASE_URL": "postgres://u:p@db.example.com/licentia"}, "E004"),
        ({"DATABASE_URL": "postgres://u:p@db.example.com/licentia?sslmode=require"}, "E004"),
        ({"DATABASE_URL": "postgres://u:p@127.0.0.1/licentia?sslmode=verify-ca"}, "E004"),
        ({"REDIS_URL": ""}, "E005"),
        ({"REDIS_URL": "redis://redis.example.com/0"}, "E005"),
        ({"CELERY_BROKER_URL": "redis://redis.example.com/0"}, "E006"),
        ({"CELERY_BROKER_URL": "filesystem://"}, "E006"),
        ({"CELERY_BROKER_URL": "amqp://mq.example.com"}, "E006"),
        ({"PUBLIC_URL": "http://licenses.example.com"}, "E007"),
        ({"PUBLIC_URL": "https://"}, "E007"),
        ({"PUBLIC_URL": "licenses.example.com"}, "E007"),
        ({"ALLOWED_HOSTS": []}, "E008"),
        ({"ALLOWED_HOSTS": ["*"]}, "E008"),
        ({"ALLOWED_HOSTS": ["licenses.example.com", "*"]}, "E008"),
        ({"TRUSTED_PROXIES": []}, "E009"),
        ({"EMAIL_URL": ""}, "E010"),
        ({"WEBHOOKS_TO_LOOPBACK": True}, "E031"),
    ],
)
def test_it_names_what_is_unsafe_and_its_mend(configured, changes, code):
    configured(**changes)

    found = checks.production_is_safe()

    # SQLite has no host to encrypt a connection to.
    assert ids(found) == [f"licentia.{code}"]
    assert all(each.hint and each.msg for each in found)
    assert all(value not in each.msg + each.hint for each in found for value in changes.values() if value == "short")


@pytest.mark.parametrize(
    "changes",
    [
        {"DATABASE_URL": "postgresql://u:p@%2Fvar%2Frun%2Fpostgresql/licentia"},
        {"CELERY_BROKER_URL": "amqps://u:p@mq.example.com"},
        {"KEYRING": "", "KEYRING_FILE": "/srv/keyring.json"},
    ],
)
def test_it_passes_other_ways_to_be_safe(configured, changes):
    configured(**changes)

    assert checks.production_is_safe() == []


def test_it_asks_nothing_of_an_embedded_installation(configured):
    configured(PRODUCTION=False, SECRET_KEY="", DATABASE_URL="sqlite:///x", REDIS_URL="", ALLOWED_HOSTS=["*"])

    assert checks.production_is_safe() == []


@pytest.mark.parametrize("ring", ["rubbish", "{}", '{"keys": []}'])
def test_it_refuses_a_ring_it_cannot_read(configured, ring):
    configured(KEYRING=ring)

    assert ids(checks.key_ring_is_readable()) == ["licentia.E011"]


def test_it_refuses_a_ring_file_that_is_not_there_or_is_a_folder(configured, tmp_path):
    configured(KEYRING="", KEYRING_FILE=str(tmp_path / "none.json"), KEYRING_CREATE=False)
    gone = checks.key_ring_is_readable()
    configured(KEYRING="", KEYRING_FILE=str(tmp_path), KEYRING_CREATE=False)
    folder = checks.key_ring_is_readable()

    assert (ids(gone), ids(folder)) == (["licentia.E011"], ["licentia.E012"])
    assert not Path(tmp_path / "none.json").exists()


@pytest.mark.django_db
def test_it_sees_a_guard_that_does_not_stand():
    guard = guards.expected(connection.vendor)[0]
    before = checks.guards_stand()
    on = f' ON "{guard.table}"' if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f'DROP TRIGGER "guard_{guard.name}"{on}')

    found = checks.guards_stand()

    assert before == []
    assert ids(found) == ["licentia.E014"]
    assert guard.name in found[0].msg
    assert "migrate" in found[0].hint
    with pytest.raises(ImproperlyConfigured, match="guards"):
        checks.refuse_to_start_unguarded()


@pytest.mark.parametrize(
    ("production", "host", "refused"),
    [
        (False, "127.0.0.1", False),
        (False, "localhost", False),
        (False, "licenses.example.com", True),
        (False, "0.0.0.0", True),
        (True, "licenses.example.com", False),
    ],
)
def test_it_keeps_what_makes_its_own_secrets_on_this_machine(settings, production, host, refused):
    settings.PRODUCTION, settings.PUBLIC_HOST = production, host

    assert ids(checks.embedded_stays_at_home()) == (["licentia.E016"] if refused else [])


@pytest.mark.django_db
def test_it_says_when_the_database_cannot_be_asked(monkeypatch):
    def away(**_):
        raise DatabaseError("connection refused")

    monkeypatch.setattr(guards, "missing", away)

    assert ids(checks.guards_stand()) == ["licentia.E013"]


@pytest.mark.django_db
def test_it_refuses_sqlite_without_immediate_transactions(settings):
    ours = checks.sqlite_waits()
    settings.DATABASES = {"default": settings.DATABASES["default"] | {"OPTIONS": {}}}

    assert ours == []
    assert ids(checks.sqlite_waits()) == (["licentia.E015"] if connection.vendor == "sqlite" else [])


@pytest.mark.django_db
def test_it_does_not_start_unsafe(configured):
    configured(SECRET_KEY="unset", EMAIL_URL="")

    with pytest.raises(ImproperlyConfigured) as refused:
        checks.refuse_to_start_unguarded()

    assert "SECRET_KEY" in str(refused.value)
    assert "EMAIL_URL" in str(refused.value)


@pytest.mark.django_db(transaction=True)
def test_it_starts_as_it_stands_here():
    checks.refuse_to_start_unguarded()
    call_command("check", databases=["default"], verbosity=0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"STRIPE_SECRET_KEY": "sk_live_x"}, "E018"),
        ({"STRIPE_WEBHOOK_SECRET": "whsec_x"}, "E018"),
        ({"STRIPE_API_BASE": "http://127.0.0.1:1"}, "E018"),
        ({"STRIPE_SECRET_KEY": "pk_live_x", "STRIPE_WEBHOOK_SECRET": "whsec_x"}, "E019"),
        ({"STRIPE_SECRET_KEY": "rk_live_x", "STRIPE_WEBHOOK_SECRET": "sk_x"}, "E020"),
        (
            {"STRIPE_SECRET_KEY": "sk_live_x", "STRIPE_WEBHOOK_SECRET": "whsec_x", "STRIPE_API_BASE": "https://x.org"},
            "E021",
        ),
        ({"DUNNING_HOLD_DAYS": 14}, "E022"),
        ({"DUNNING_REMINDER_DAYS": [0, 3]}, "E022"),
    ],
)
def test_it_names_payments_configured_by_half(configured, changes, code):
    configured(**changes)

    found = checks.payments_are_whole()

    assert code in [each.id.removeprefix("licentia.") for each in found]
    assert all("live_x" not in f"{each.msg} {each.hint}" for each in found)


def test_it_passes_payments_configured_whole_or_not_at_all(configured):
    configured()
    off = checks.payments_are_whole()
    configured(STRIPE_SECRET_KEY="rk_live_x", STRIPE_WEBHOOK_SECRET="whsec_x", DUNNING_HOLD_DAYS=0)

    assert (off, checks.payments_are_whole()) == ([], [])
