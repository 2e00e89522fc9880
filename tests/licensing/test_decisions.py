"""The decision record: refusals are buffered, written in batches, and none is lost in silence."""

import sqlite3
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from licensing import decisions
from licensing.models import Anomaly, DecisionRecord
from tests.factories import AT

pytestmark = pytest.mark.django_db


def remember(number: int = 1, **overrides: Any) -> None:
    for _ in range(number):
        decisions.remember(
            **{"request_id": "r-1", "at": AT, "license_id": None, "caller": "t", "code": "held", "looked_at": ("held",)}
            | overrides
        )


def test_it_costs_the_request_no_query(django_assert_num_queries):
    with django_assert_num_queries(0):
        remember()


def test_it_writes_what_was_refused_and_why():
    remember(code="expired", looked_at=("revoked", "held", "expired"))

    assert decisions.flush() == 1

    row = DecisionRecord.objects.get()
    assert (row.request_id, row.code, row.looked_at) == ("r-1", "expired", ["revoked", "held", "expired"])


def test_it_writes_in_batches(django_assert_max_num_queries):
    remember(2_500)

    with django_assert_max_num_queries(30):
        assert decisions.flush() == 2_500


def test_it_keeps_what_the_database_would_not_take(monkeypatch):
    remember(3)

    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("away")

    with monkeypatch.context() as away:
        away.setattr(DecisionRecord.objects, "bulk_create", refuse)
        nothing = decisions.flush()

    assert nothing == 0
    assert decisions.flush() == 3


def test_it_says_how_many_it_had_no_room_for(monkeypatch):
    monkeypatch.setattr(decisions, "CAPACITY", 2)
    remember(5)

    decisions.flush()

    assert DecisionRecord.objects.count() == 2
    assert Anomaly.objects.get(rule="decision_records_dropped").evidence == {"dropped": 3}


def test_it_loses_one_bad_row_only_and_says_so():
    remember(2)
    decisions._buffer[0].looked_at = [object()]  # no JSON can hold it
    remember(1)

    written = decisions.flush()

    assert written == DecisionRecord.objects.count() == 2
    assert Anomaly.objects.get(rule="decision_records_dropped").evidence == {"dropped": 1}


def test_it_forgets_after_thirty_days():
    remember(at=AT)
    remember(at=AT + timedelta(days=1))
    decisions.flush()

    assert decisions.forget(at=AT + timedelta(days=30, hours=1)) == 1
    assert DecisionRecord.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_it_is_written_by_itself_within_seconds(loose):
    remember(2)

    deadline = time.monotonic() + 10
    while DecisionRecord.objects.count() < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert DecisionRecord.objects.count() == 2


def test_it_writes_the_rest_at_an_orderly_stop(tmp_path):
    program = (
        "import django; django.setup()\n"
        "from django.core.management import call_command; call_command('migrate', verbosity=0)\n"
        "from django.utils import timezone; from licensing import decisions\n"
        "decisions.remember(request_id='last', at=timezone.now(), license_id=None, caller='t', code='held',"
        " looked_at=())\n"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "DJANGO_SETTINGS_MODULE": "portal.settings",
        "LICENTIA_ENV": "test",
        "VAR_DIR": str(tmp_path),
    }
    root = Path(__file__).resolve().parents[2]

    subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, check=True)

    with sqlite3.connect(tmp_path / "licentia.sqlite3") as database:
        assert database.execute("SELECT request_id FROM licensing_decisionrecord").fetchall() == [("last",)]
