"""Just enough reading of SQL to find the parts of a CREATE INDEX statement that SQLite's pragmas do not tell.

Understands comments, strings, quoted names and parentheses; nothing is interpreted. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))
  | (?P<string>'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
  | (?P<word>[^\W\d][\w$]*|\d[\w.]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def _tokens(sql: str) -> Iterator[tuple[str, str, int, int]]:
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup or "other"
        if kind != "space":
            yield kind, match.group(), match.start(), match.end()


def index_terms(sql: str) -> tuple[str, ...]:
    """The texts of the indexed terms, with COLLATE but without ASC and DESC."""
    depth, start, terms = 0, 0, []
    for kind, text, at, end in _tokens(sql):
        if kind != "other":
            continue
        if text == "(":
            depth += 1
            if depth == 1:
                start = end
        elif text == ")":
            depth -= 1
            if depth == 0:
                terms.append(sql[start:at])
                break
        elif text == "," and depth == 1:
            terms.append(sql[start:at])
            start = end
    return tuple(re.sub(r"\s+(ASC|DESC)\s*$", "", term, flags=re.IGNORECASE).strip() for term in terms)


def after_where(sql: str) -> str:
    """The condition of a partial index, or empty."""
    depth, closed = 0, False
    for kind, text, _, end in _tokens(sql):
        if kind == "other" and text == "(":
            depth += 1
        elif kind == "other" and text == ")":
            depth -= 1
            closed = closed or depth == 0
        elif closed and depth == 0 and kind == "word" and text.upper() == "WHERE":
            return sql[end:].strip()
    return ""


def mentions(expression: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns whose names occur in an expression (perhaps more than it really uses)."""
    words = set()
    for kind, text, _, _ in _tokens(expression):
        if kind == "word":
            words.add(text.casefold())
        elif kind == "quoted":
            words.add(text[1:-1].replace(text[-1] * 2, text[-1]).casefold())
        elif kind == "string":
            words.add(text[1:-1].replace("''", "'").casefold())
    return tuple(name for name in columns if name.casefold() in words)
