"""Whether a WHERE clause of ``node_local_rows`` can be used at all, before any database is opened.

The clause must hold on both nodes and inside a trigger of any program's connection: columns of its own table and
SQLite's own deterministic functions, nothing else. SQLite itself judges: a partial index has the same rules.
"""

from __future__ import annotations

import re

import apsw

WHERE_CHARS_MAX = 4096
_COLUMNS_MAX = 128
_NO_COLUMN = re.compile(r"no such column: (.+)\Z", re.DOTALL)


def where_problem(clause: str) -> str:
    """What is wrong with the clause, or an empty string. The columns are taken on trust: no schema is known here."""
    if not clause.strip():
        return "is empty: list the table in node_local_tables to leave out all of its rows"
    if len(clause) > WHERE_CHARS_MAX:
        return f"is longer than {WHERE_CHARS_MAX} characters"
    if ";" in clause:
        return "must not contain a semicolon"
    probe = apsw.Connection(":memory:")
    try:
        return _judge(probe, clause)
    finally:
        probe.close()


def _judge(probe: apsw.Connection, clause: str) -> str:
    probe.execute("CREATE TABLE t (_ha_probe)")
    for _ in range(_COLUMNS_MAX):
        problem = _first_error(probe, clause)
        missing = _NO_COLUMN.match(problem)
        if missing is None:
            return f"SQLite does not take it: {problem}" if problem else ""
        column = missing.group(1)
        if "." in column:
            return f"{column}: name columns alone, without a table in front"
        try:
            probe.execute(f'ALTER TABLE t ADD COLUMN "{column.replace(chr(34), chr(34) * 2)}"')
        except apsw.Error as error:
            return f"SQLite does not take it: {error}"
    return f"names more than {_COLUMNS_MAX} columns"


def _first_error(probe: apsw.Connection, clause: str) -> str:
    # Bare first: only so does "a = 1) OR (1" show that its parentheses are not its own.
    for statement in (f"EXPLAIN SELECT 1 FROM t WHERE {clause}", f"CREATE INDEX i ON t (_ha_probe) WHERE ({clause})"):
        try:
            probe.execute(statement).fetchall()
        except apsw.BindingsError:
            return "it has parameters"
        except apsw.Error as error:
            return str(error)
    return ""
