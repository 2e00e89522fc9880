"""Terms somebody wrote past the rules: refused, named, never proved anew by accident, and mended.

That every edit is noticed at read stands in `tests/security/test_threats_stored.py`.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from licensing import catalog, crypto, feed, guards, keyring, lifecycle, pictures, proofs, snapshots
from licensing.crypto import KeyRing
from licensing.decision import Scope
from licensing.errors import Refused
from licensing.models import AuditEntry, License
from licensing.pictures import Question
from portal import doctor
from tests.factories import AT, BY, make_customer, make_license, make_license_and_key, make_plan, make_revision

pytestmark = pytest.mark.django_db
NOW = timezone.now()
YEAR = timedelta(days=365)


def read(license: License) -> Any:
    return pictures.read(Question.of("id", str(license.pk), Scope()))


def by_hand(license: License, **values: Any) -> None:
    """Write into the row as somebody who owns the tables does: no rule, and no guard. The test's end puts it back."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for guard in guards.expected(connection.vendor):
            if guard.table == License._meta.db_table:
                table = f' ON "{guard.table}"' if connection.vendor == "postgresql" else ""
                cursor.execute(f'DROP TRIGGER IF EXISTS "guard_{guard.name}"{table}')
    License.objects.filter(pk=license.pk).update(**values)


def test_what_the_rules_write_always_fits() -> None:
    plan = make_plan()
    license = make_license(plan_revision=make_revision(plan=plan, maintenance=YEAR, grace_period=YEAR), at=NOW)
    other = catalog.publish(
        revision=catalog.draft(plan=plan, by=BY, at=NOW, seat_limit=3, activation_limit=4, duration=YEAR), by=BY, at=NOW
    )
    steps: list[Callable[[datetime], Any]] = [
        lambda at: lifecycle.renew(license=license, by=BY, at=at),
        lambda at: lifecycle.change_limits(license=license, seat_limit=7, by=BY, at=at),
        lambda at: lifecycle.hold(license=license, reason="staff", by=BY, at=at),
        lambda at: lifecycle.hold(license=license, reason="unpaid", by=BY, at=at),
        lambda at: lifecycle.lift(license=license, reason="staff", by=BY, at=at),
        lambda at: lifecycle.lift(license=license, reason="unpaid", by=BY, at=at),
        lambda at: lifecycle.change_plan(license=license, plan_revision=other, by=BY, at=at),
        lambda at: lifecycle.transfer(license=license, to=make_customer(), by=BY, at=at, reason="sold"),
        lambda at: lifecycle.revoke(license=license, by=BY, at=at, reason="over"),
    ]

    for number, step in enumerate(steps):
        step(NOW + timedelta(minutes=number + 1))
        assert read(license) is not None
        assert proofs.stand(License.objects.get(pk=license.pk))


def test_a_rule_does_not_prove_what_others_wrote() -> None:
    license = make_license(at=NOW)
    by_hand(license, seat_limit=1_000, seats_ceiling=1_000)

    for act in (
        lambda: lifecycle.renew(license=license, by=BY, at=NOW),
        lambda: lifecycle.change_limits(license=license, activation_limit=3, by=BY, at=NOW),
        lambda: lifecycle.hold(license=license, reason="staff", by=BY, at=NOW),
        lambda: lifecycle.revoke(license=license, by=BY, at=NOW, reason="so"),
    ):
        with pytest.raises(proofs.TermsAltered):
            act()
    with pytest.raises(proofs.TermsAltered):
        read(license)


def test_a_program_is_told_nothing_but_that_there_is_no_answer(client: Client) -> None:
    license, key = make_license_and_key(at=NOW)
    by_hand(license, seat_limit=1_000, seats_ceiling=1_000)
    feed.forget()

    answer = client.post(
        "/api/v1/validate",
        data={},
        content_type="application/json",
        headers={"authorization": f"License {key}", "x-licentia-nonce": "n" * 22},
    )

    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"] == "60"
    assert "signature" in answer.headers


def test_the_last_known_state_is_no_way_around_it(settings: Any) -> None:
    license = make_license(outage_policy="lenient", at=NOW)
    question = Question.of("id", str(license.pk), Scope())
    assert snapshots.get(question) is not None
    by_hand(license, seat_limit=1_000, seats_ceiling=1_000)

    snapshots._kept._copies[question].read_at -= feed.FRESH_SECONDS + 1
    if settings.REDIS_URL:
        feed.call("DEL", f"{snapshots._prefix()}snapshot:{snapshots._name(question)}")

    with pytest.raises(proofs.TermsAltered):
        snapshots.get(question)


def test_the_doctor_names_it_and_staff_may_accept_it() -> None:
    license = make_license(at=NOW)
    assert next(finding for finding in doctor.examine() if finding.subject == "license terms").wrong == ""
    by_hand(license, seat_limit=1_000, seats_ceiling=1_000)

    finding = next(finding for finding in doctor.examine() if finding.subject == "license terms")
    assert str(license.pk) in finding.wrong
    lifecycle.accept_terms(license=license, by=BY, at=NOW, reason="mended by hand in an outage, ticket 12")

    assert read(license).snapshot.seat_limit == 1_000
    entry = AuditEntry.objects.get(action="license.terms_accepted")
    assert (entry.after["seat_limit"], entry.reason) == (1_000, "mended by hand in an outage, ticket 12")
    assert next(finding for finding in doctor.examine() if finding.subject == "license terms").wrong == ""


def test_accepting_needs_a_reason_and_something_to_accept() -> None:
    license = make_license(at=NOW)

    with pytest.raises(Refused, match="as they were written"):
        lifecycle.accept_terms(license=license, by=BY, at=NOW, reason="just so")


@pytest.fixture
def ring(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """A ring in a file of its own."""
    settings.KEYRING, settings.KEYRING_FILE = "", str(tmp_path / "ring.json")
    crypto.write(KeyRing.generate(), tmp_path / "ring.json")
    crypto.forget()
    yield tmp_path / "ring.json"
    crypto.refuse_writes("")
    settings.KEYRING_FILE = ""
    crypto.forget()


def test_a_rotation_proves_anew_what_fits_and_nothing_else(ring: Path) -> None:
    honest, altered = make_license(at=NOW), make_license(at=NOW)
    former = honest.terms_kid
    by_hand(altered, seat_limit=1_000, seats_ceiling=1_000)
    new = keyring.add(purpose="digest", at=NOW)
    keyring.promote(kid=new.kid, at=NOW, force=True)
    assert read(honest) is not None

    list(keyring.reencrypt(at=NOW))

    assert License.objects.get(pk=honest.pk).terms_kid == new.kid
    assert License.objects.get(pk=altered.pk).terms_kid == former
    assert keyring.rows_under(former) == {"licensing_license": 1}
    with pytest.raises(keyring.StillInUse):
        keyring.disable(kid=former, at=NOW)
    assert read(honest) is not None
    with pytest.raises(proofs.TermsAltered):
        read(altered)


def test_while_the_key_is_lost_answers_go_on(ring: Path) -> None:
    license = make_license(at=NOW)
    keyring.start(at=NOW)
    crypto.write(KeyRing([key for key in crypto.ring().keys if key.purpose != "digest"]), ring)
    crypto.forget()

    assert keyring.start(at=NOW)

    assert read(license) is not None


def test_the_migration_proves_what_is_there() -> None:
    license = make_license(at=NOW)
    held = make_license(at=AT)
    lifecycle.hold(license=held, reason="staff", by=BY, at=NOW)
    License.objects.update(terms_kid="", terms_mac=None)
    migration = import_module("licensing.migrations.0003_license_terms_mac")

    migration.seal(apps, SimpleNamespace(connection=connection))

    assert read(license) is not None
    assert read(held).snapshot.holds == ("staff",)


def test_the_command_says_what_is_wrong() -> None:
    by_hand(make_license(at=NOW), seat_limit=1_000, seats_ceiling=1_000)
    out = StringIO()

    with pytest.raises(SystemExit):
        call_command("doctor", stdout=out)

    assert "terms no rule wrote" in out.getvalue()
