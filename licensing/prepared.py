"""Prepared statements through the driver itself, for the hot paths.

Django's cursors, and psycopg's, cost several times what such a statement does (measured: A5). On PostgreSQL a statement
stays prepared in its session, for planning it costs more than all the rest.
"""

from typing import Any

import orjson
import psycopg
from django.db import DEFAULT_DB_ALIAS, connections


def one(query: str, values: list[Any]) -> list[Any] | None:
    """Return the one row of a query of one JSON column, None where there is none.

    Raises what Django raises for the same failure.
    """
    server: Any = connections[DEFAULT_DB_ALIAS]
    server.ensure_connection()
    if server.queries_logged:  # so that a test can count it
        server.queries_log.append({"sql": query, "time": "0.000"})
    with server.wrap_database_errors:
        if server.vendor == "postgresql":
            value = _prepared(server.connection, query, values)
        else:
            row = server.connection.execute(query, values).fetchone()
            value = row[0] if row is not None else None
    return orjson.loads(value) if value is not None else None


def _prepared(session: Any, query: str, values: list[Any]) -> bytes | None:
    names: dict[str, bytes] = session.__dict__.setdefault("licentia_prepared", {})
    name = names.get(query)
    if name is None:
        name = f"licentia_{len(names)}".encode()
        made = session.pgconn.prepare(name, query.encode())
        if made.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise _failure(session, made)
        names[query] = name
    result = session.pgconn.exec_prepared(
        name, [value.encode() if isinstance(value, str) else value for value in values]
    )
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        raise _failure(session, result)
    found: bytes | None = result.get_value(0, 0) if result.ntuples else None
    return found


def _failure(session: Any, result: Any) -> Exception:
    if session.pgconn.status != psycopg.pq.ConnStatus.OK:  # the connection is lost: its result does not say so
        return psycopg.OperationalError(result.error_message.decode(errors="replace"))
    return psycopg.errors.error_from_result(result)
