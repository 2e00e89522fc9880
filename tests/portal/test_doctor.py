"""The doctor finds what is wrong, says the mend, and exits accordingly."""

import json

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from licensing import sweeps
from licensing.catalog import Grant
from licensing.models import KeyCanary
from portal.doctor import examine
from tests.factories import make_license

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _jobs_ran():
    for job in sweeps.every():
        sweeps.run(job, at=timezone.now())


def wrong() -> dict[str, str]:
    return {finding.subject: finding.mend for finding in examine() if finding.wrong}


def test_it_finds_nothing_wrong_where_nothing_is():
    assert wrong() == {}


def test_it_finds_redis_away(settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    assert wrong() == {"redis": "Start it; see REDIS_URL."}


def test_it_finds_a_missing_guard():
    table = ' ON "licensing_auditentry"' if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f'DROP TRIGGER "guard_licensing_auditentry_update"{table}')

    assert wrong() == {"guards": "Run: manage.py migrate"}


def test_it_finds_a_key_that_the_ring_lacks():
    KeyCanary.objects.create(kid="seal-lost", purpose="seal", value="v1", created_at=timezone.now())

    found = next(finding for finding in examine() if finding.subject == "key ring")

    assert "seal-lost" in found.wrong
    assert "keyring" in found.mend


def test_it_finds_a_counter_that_differs_from_what_is_held():
    license = make_license()
    type(license).objects.filter(pk=license.pk).update(seats_used=1)

    assert list(wrong()) == ["seat counters"]


def test_it_exits_with_one_and_prints_json_when_something_is_wrong(settings, capsys):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--json")

    assert ended.value.code == 1
    assert any(row["wrong"] for row in json.loads(capsys.readouterr().out))


def test_it_finds_an_allowance_that_no_meter_counts():
    grant = Grant("renders", kind="allowance", meter="renders", amount=5, overage="charge")
    make_license(scheme="usage", grants=[grant])

    found = next(finding for finding in examine() if finding.subject == "meters of plans on sale")

    assert "no meter 'renders' is published" in found.wrong
    assert "Publish the meter" in found.mend
