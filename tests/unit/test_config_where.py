"""The WHERE clause of node-local rows: judged by SQLite before any database is opened."""

from __future__ import annotations

import pytest

from ha_sync.config.where import where_problem


@pytest.mark.req("R5")
@pytest.mark.parametrize(
    "clause",
    [
        "key = '/pbx/UUID'",
        "name IN ('externhost', 'localnet')",
        "a = 1 OR b LIKE 'x%' AND c IS NOT NULL",
        '"order" = 1 AND [c d] > 2',
        "length(name) > 3 -- a comment\n",
        "data = x'00ff'",
        "a = 1\n  OR b = 2",
    ],
)
def test_a_clause_over_the_tables_columns_is_taken(clause: str) -> None:
    assert where_problem(clause) == ""


@pytest.mark.parametrize(
    ("clause", "says"),
    [
        ("", "node_local_tables"),
        ("  ", "node_local_tables"),
        ("a = 1; DROP TABLE x", "semicolon"),
        ("a = ';'", "semicolon"),
        ("name IN ('x'", "incomplete input"),
        ("a = 1) OR (1", "syntax error"),
        ("a = 1 --", "incomplete input"),
        ("a = 'x", "unrecognized token"),
        ("a == = 1", "syntax error"),
        ("no_such_function(a)", "no such function"),
        ("a = (SELECT 1)", "subqueries"),
        ("a IN (SELECT x FROM y)", "no such table"),
        ("a = random()", "non-deterministic"),
        ("a = ?", "parameters"),
        ("max(a) > 1", "aggregate"),
        ("t2.a = 1", "name columns alone"),
        ("NEW.a = 1", "name columns alone"),
        ("a = 1 ORDER BY a", "ORDER"),
        ("a = '\0'", "unrecognized token"),
        ("a" * 5000, "longer"),
        (" AND ".join(f"c{number} = 1" for number in range(200)), "more than 128 columns"),
    ],
)
def test_what_sqlite_or_a_trigger_would_not_take_is_refused(clause: str, says: str) -> None:
    assert says in where_problem(clause)
