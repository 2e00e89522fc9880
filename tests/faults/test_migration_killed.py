"""A migration that is killed half-way: run again it ends where one that was left alone ends, guards and all."""

import contextlib
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

from tests.api.running import ROOT, database_beside, migrate, python
from tests.faults.conftest import Line

LONG = bool(os.environ.get("LICENTIA_SOAK"))
KILLS = 12 if LONG else 2
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
    with database_beside() as alone, database_beside(empty=True) as killed, tempfile.TemporaryDirectory() as folder:
        urls = [url or f"sqlite:///{folder}/{name}.sqlite3" for url, name in ((alone, "alone"), (killed, "killed"))]
        migrate(_environment(folder, urls[0]))
        whole = schema(urls[0])
        number = _applied(urls[0])

        places = sorted(dice.sample(range(number - 1), KILLS))
        deaths = sum(_kill(folder, urls[1], place, dice) for place in places)
        code = _migrate(folder, urls[1]).wait()
        missing = python(
            "from licensing import guards\nprint(json.dumps(guards.missing()))", _environment(folder, urls[1])
        )

        assert (code, missing) == (0, [])
        assert schema(urls[1]) == whole
        assert deaths >= KILLS / 2  # a machine with nothing else to do may be through before the last ones
        database = "SQLite" if killed is None else "PostgreSQL"
        tell({"fault": "migration_killed", "seed": seed, "deaths": deaths, "database": database, "alerts": []})


def _environment(folder: str, url: str) -> dict[str, str]:
    return {**os.environ, "LICENTIA_ENV": "test", "VAR_DIR": folder, "DATABASE_URL": url, "LOG_LEVEL": "ERROR"}


def _migrate(folder: str, url: str) -> Any:
    line = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
    return subprocess.Popen(line, cwd=ROOT, env=_environment(folder, url))


def _kill(folder: str, url: str, place: int, dice: random.Random) -> bool:
    """Migrate, and kill it at some instant once so many migrations are made; return whether it was still at it."""
    process = _migrate(folder, url)
    until = time.monotonic() + 120
    while process.poll() is None and _applied(url) <= place and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(dice.uniform(0.0, 0.3))
    process.send_signal(signal.SIGKILL)
    return bool(process.wait() < 0)


def _applied(url: str) -> int:
    """Return how many migrations are made; 0 where that cannot be told yet."""
    count = "SELECT count(*) FROM django_migrations"
    try:
        if url.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
                return int(connection.execute(count).fetchone()[0])
        with psycopg.connect(url) as asked:
            return int(asked.execute(count).fetchone()[0])
    except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):
        return 0


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
