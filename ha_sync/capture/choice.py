"""Rows or pages: the choice of ``capture = "auto"`` (DESIGN 4), decided from facts in a pure function.

First, do no harm: rows need triggers, and triggers created under a running program may break it; pages need nothing but
a small database. ``look`` gathers the facts and is blocking; it must run where no SQLite connection of this process to
the same file is open, since it closes a descriptor of it (POSIX locks).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import apsw

from ha_sync.config import CaptureMode, SqliteSettings
from ha_sync.database.header import HEADER_BYTES, parse_header
from ha_sync.database.holders import holders
from ha_sync.database.triggers import has_log

BUSY_TIMEOUT_ENOUGH_MS = 500
"""A writer that waits at least this long takes no harm from our short reads (a tenth of it at the most)."""

LOOK_TIMEOUT_MS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What matters about a database for the choice."""

    readable: bool  # a file with a SQLite header
    write_ahead_log: bool = False
    triggers_installed: bool = False
    open_by: str = ""  # the other programs that have it open


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The method and the reason in words for ``status``."""

    method: str  # rows | pages
    why: str


def choose(settings: SqliteSettings, found: Found) -> Choice:
    """The rule."""
    if settings.capture is not CaptureMode.AUTO:
        return Choice(method=settings.capture.value, why="as the settings say")
    if not found.readable:
        return Choice(method="pages", why="auto: no database yet")
    journal = "write-ahead log" if found.write_ahead_log else "rollback journal"
    timeout = settings.writer_busy_timeout_ms
    if not found.write_ahead_log and (timeout is None or timeout < BUSY_TIMEOUT_ENOUGH_MS):
        known = "unknown" if timeout is None else f"only {timeout} ms"
        return Choice(method="pages", why=f"auto: {journal}, busy timeout of its writer {known}")
    if found.triggers_installed:
        return Choice(method="rows", why=f"auto: {journal}, triggers are installed")
    if settings.live_triggers:
        return Choice(method="rows", why=f"auto: {journal}, its program takes triggers while it runs")
    if not found.open_by:
        return Choice(method="rows", why=f"auto: {journal}, no program has it open")
    return Choice(method="pages", why=f"auto: {journal}, {found.open_by} has it open, so no triggers can be installed")


def look(settings: SqliteSettings) -> Found:
    """Reads the header; asks a little more only where the answer can matter and asking is harmless."""
    if settings.capture is not CaptureMode.AUTO:
        return Found(readable=True)
    try:
        fd = os.open(settings.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return Found(readable=False)
    try:
        header = parse_header(os.pread(fd, HEADER_BYTES, 0))
    except OSError:
        header = None
    finally:
        os.close(fd)
    if header is None:
        return Found(readable=False)
    patient = (settings.writer_busy_timeout_ms or 0) >= BUSY_TIMEOUT_ENOUGH_MS
    if not header.write_ahead_log and not patient:
        return Found(readable=True)
    found = holders(settings.path)
    return Found(
        readable=True,
        write_ahead_log=header.write_ahead_log,
        open_by=", ".join(str(holder) for holder in found[:3]),
        triggers_installed=bool(found) and _has_triggers(settings.path),
    )


def _has_triggers(path: str) -> bool:
    try:
        db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error:
        return False
    try:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.set_busy_timeout(LOOK_TIMEOUT_MS)
        return has_log(db)
    except apsw.Error:
        return False
    finally:
        db.close()
