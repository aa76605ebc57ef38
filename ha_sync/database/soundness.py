"""Is a copy of a database sound? Answered by SQLite's ``quick_check`` on a copy of our own, never on a live file.

Only damage of the structure counts: a row that breaks a CHECK or NOT NULL, or a full-text index that does not fit its
content, is the application's business, and a table whose module or collation we do not have cannot be judged. Blocking;
call from an executor.
"""

from __future__ import annotations

import os
import re
import urllib.parse

import apsw

_OF_THE_APPLICATION = re.compile(
    r"^(NULL value in|CHECK constraint failed|NUMERIC value in|TEXT value in|non-\w+ value in|unable to validate"
    r"|malformed inverted index|fts\d: |In RTree )"
)
_FINDINGS_MAX = 20
_VERSIONS = slice(18, 20)
_JOURNAL = b"\x01\x01"
"""What the header's file format versions say without a write-ahead log (sqlite.org/fileformat2.html, 1.3.3)."""


def damage_of_image(image: bytes | memoryview) -> str:
    """What is wrong with a database in memory; empty when nothing is."""
    if not image:
        return ""
    # A database in memory has no write-ahead log; the header must not ask for one. Images are large: SQLite's own copy
    # is the only other one where it does not.
    plain = image if image[_VERSIONS] == _JOURNAL else b"".join((image[:18], _JOURNAL, memoryview(image)[20:]))
    connection = apsw.Connection(":memory:")
    try:
        connection.deserialize("main", plain)
        return damage_of(connection)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return str(error)
    finally:
        connection.close()


def damage_of_file(path: str, *, thorough: bool = False) -> str:
    """What is wrong with a file that nobody writes; it is read without locks and leaves no companions behind.

    ``thorough`` compares the indices with their tables too (``integrity_check``).
    """
    if os.stat(path).st_size == 0:
        return ""
    try:
        connection = apsw.Connection(
            f"file:{urllib.parse.quote(os.fsencode(path))}?immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return str(error)
    try:
        return damage_of(connection, check="integrity_check" if thorough else "quick_check")
    finally:
        connection.close()


def damage_of(connection: apsw.Connection, *, check: str = "quick_check") -> str:
    """What is wrong with an open database: by ``quick_check``, or by ``integrity_check`` as to its indices too."""
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        lines = [str(row[0]) for row in connection.execute(f"PRAGMA main.{check}({_FINDINGS_MAX})")]
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        return str(error)
    except apsw.Error:
        return ""  # a module, function or collation that only the application has
    return "; ".join(line for line in lines if line != "ok" and not _OF_THE_APPLICATION.match(line))
