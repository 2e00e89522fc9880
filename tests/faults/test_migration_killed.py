"""A migration that is killed half-way: run again it ends where one that was left alone ends, guards and all."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.api.running import ROOT, database_beside, python
from tests.faults.conftest import Line

LONG = bool(os.environ.get("LICENTIA_SOAK"))
KILLS = 30 if LONG else 2
# The database is one of its own; the mark says that what is claimed here is claimed of both.
pytestmark = pytest.mark.django_db

ON_POSTGRESQL = """
SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable FROM information_schema.columns
 WHERE table_schema = 'public'
UNION ALL SELECT tablename || ' ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT conrelid::regclass::text || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
 WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT tgrelid::regclass::text || ' ' || tgname || ' ' || tgenabled::text FROM pg_trigger
 WHERE NOT tgisinternal
UNION ALL SELECT app || ' ' || name FROM django_migrations
"""
ON_SQLITE = "SELECT type || ' ' || name || ' ' || sql FROM sqlite_master WHERE sql IS NOT NULL"


def schema(url: str) -> list[str]:
    """Return everything a database is made of, but for its rows."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        rows = connection.execute(ON_SQLITE).fetchall()
        rows += connection.execute("SELECT app || ' ' || name FROM django_migrations").fetchall()
        connection.close()
    else:
        with psycopg.connect(url) as asked:
            rows = asked.execute(ON_POSTGRESQL).fetchall()
    return sorted(row[0] for row in rows)


def test_it_ends_where_one_left_alone_ends(tell: Callable[[Line], None]) -> None:
    seed = int(os.environ.get("LICENTIA_SEED", random.SystemRandom().randrange(2**32)))
    print(f"LICENTIA_SEED={seed}")
    dice = random.Random(seed)
    with (
        database_beside(empty=True) as alone,
        database_beside(empty=True) as killed,
        tempfile.TemporaryDirectory() as folder,
    ):
        urls = [url or f"sqlite:///{folder}/{name}.sqlite3" for url, name in ((alone, "alone"), (killed, "killed"))]
        begun = time.monotonic()
        assert _migrate(folder, urls[0], None) == 0
        whole = time.monotonic() - begun

        deaths = 0
        while deaths < KILLS and _migrate(folder, urls[1], dice.uniform(0.15 * whole, 0.6 * whole)) != 0:
            deaths += 1
        code = _migrate(folder, urls[1], None)
        missing = python(
            "from licensing import guards\nprint(json.dumps(guards.missing()))", _environment(folder, urls[1])
        )

        assert (code, missing) == (0, [])
        assert schema(urls[1]) == schema(urls[0])
        assert deaths
        database = "SQLite" if killed is None else "PostgreSQL"
        tell({"fault": "migration_killed", "seed": seed, "deaths": deaths, "database": database, "alerts": []})


def _environment(folder: str, url: str) -> dict[str, str]:
    return {**os.environ, "LICENTIA_ENV": "test", "VAR_DIR": folder, "DATABASE_URL": url, "LOG_LEVEL": "ERROR"}


def _migrate(folder: str, url: str, seconds: float | None) -> int:
    """Migrate, and kill it after so many seconds; return how it ended."""
    process: Any = subprocess.Popen(
        [sys.executable, "manage.py", "migrate", "--verbosity=0"], cwd=ROOT, env=_environment(folder, url)
    )
    try:
        return int(process.wait(seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return int(process.wait())


def test_it_sees_what_is_missing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.sqlite3"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE django_migrations (app, name)")
        before = schema(f"sqlite:///{path}")
        connection.execute("CREATE INDEX one ON django_migrations (app)")
        connection.commit()
        connection.close()

        assert schema(f"sqlite:///{path}") != before
