"""What waits to be sent, in order for each target; and what the rules knew. Survives a kill and a power cut.

The queues are held in memory, bounded, and written behind by one thread into a small database: ``put`` never waits for
a disk, and where the disk takes nothing, what is in memory is sent all the same. A message is taken off the disk after
it was sent: a crash in between sends it again, with the same id. Overflow: beyond ``WAITING_MAX`` messages or
``BYTES_MAX`` bytes to a target its oldest is dropped and counted. Counts survive too. Making it blocks, nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from sqlite3 import Connection
from typing import Any

from ha_agent.alarms.values import Alarm, Key, Told
from ha_agent.logs.writer import Job, LogWriter, reading, wall_clock
from ha_agent.settings.values import Severity

log = logging.getLogger("ha_agent.alarms")

FILE_NAME = "alarms.db"
WAITING_MAX = 200
BYTES_MAX = 2 * 1024 * 1024

_TABLES = (
    """CREATE TABLE IF NOT EXISTS message (id TEXT PRIMARY KEY, place INTEGER NOT NULL, target TEXT NOT NULL,
    unix_s REAL NOT NULL, document TEXT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS tally (target TEXT PRIMARY KEY, counts TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS alarm (key TEXT PRIMARY KEY, alarm TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One that waits."""

    id: str
    place: int  # grows over all targets, never reused while anything waits
    target: str
    unix_s: float
    document: Mapping[str, Any]
    size: int  # bytes of the document


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Of one target, since ever."""

    sent: int = 0
    dropped: int = 0  # the oldest, for want of room
    given_up: int = 0  # refused again and again
    sent_unix_s: float | None = None


@dataclass(slots=True, kw_only=True)
class _Queue:
    waiting: deque[Message] = field(default_factory=deque)
    size: int = 0
    tally: Tally = field(default_factory=Tally)


class Outbox:
    """Of one agent. ``path`` None: nothing is kept, for there is nobody to tell."""

    def __init__(self, path: str | None, targets: Iterable[str]) -> None:
        self._queues = {name: _Queue() for name in targets}
        self._place = 0
        self._writer: LogWriter | None = None
        self.alarms: list[Alarm] = []  # what an earlier run knew
        self.facts: dict[str, str] = {}  # the same of single values
        if path is not None:
            self._open(path)

    def _open(self, path: str) -> None:
        try:
            with reading(path, "fact") as database:
                if database is not None:
                    self._load(database)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as failed:  # the writer sets a damaged file aside
            log.error("what waited to be sent could not be read", extra={"reason": str(failed)})
        self._writer = LogWriter(path, prepare=_prepare, on_omission=_omitted, trim=_nothing)
        known = tuple(self._queues)
        marks = ",".join("?" * len(known))

        def forget_strangers(database: Connection) -> None:
            """What waits for a target that the settings do not name any more."""
            database.execute(f"DELETE FROM message WHERE target NOT IN ({marks})", known)
            database.execute(f"DELETE FROM tally WHERE target NOT IN ({marks})", known)

        self._writer.put(forget_strangers)

    def _load(self, database: Connection) -> None:
        for target, counts in database.execute("SELECT target, counts FROM tally"):
            if target in self._queues:
                self._queues[target].tally = Tally(**json.loads(counts))
        found = database.execute("SELECT id, place, target, unix_s, document FROM message ORDER BY place").fetchall()
        for id_, place, target, unix_s, text in found:
            self._place = max(self._place, place)
            if target in self._queues:
                self._append(
                    Message(
                        id=id_, place=place, target=target, unix_s=unix_s, document=json.loads(text), size=len(text)
                    )
                )
        self.alarms = [_alarm_of(json.loads(text)) for (text,) in database.execute("SELECT alarm FROM alarm")]
        self.facts = dict(database.execute("SELECT name, value FROM fact").fetchall())

    def close(self) -> None:
        """Writes what is pending. Blocking."""
        if self._writer is not None:
            self._writer.close()

    # ---- messages

    def put(self, target: str, document: Mapping[str, Any]) -> None:
        """Queues a message."""
        text = json.dumps(document)
        self._place += 1
        message = Message(
            id=str(uuid.uuid4()), place=self._place, target=target, unix_s=wall_clock(), document=document,
            size=len(text),
        )  # fmt: skip
        self._append(message)
        self._write(
            "INSERT INTO message (id, place, target, unix_s, document) VALUES (?, ?, ?, ?, ?)",
            message.id, message.place, target, message.unix_s, text,
        )  # fmt: skip
        queue = self._queues[target]
        while len(queue.waiting) > WAITING_MAX or queue.size > BYTES_MAX:
            self._remove(queue.waiting[0])
            self._count(target, dropped=queue.tally.dropped + 1)

    def head(self, target: str) -> Message | None:
        """The oldest that waits."""
        waiting = self._queues[target].waiting
        return waiting[0] if waiting else None

    def sent(self, message: Message) -> None:
        """It has arrived."""
        self._remove(message)
        tally = self._queues[message.target].tally
        self._count(message.target, sent=tally.sent + 1, sent_unix_s=wall_clock())

    def give_up(self, message: Message) -> None:
        """It will never be taken."""
        self._remove(message)
        self._count(message.target, given_up=self._queues[message.target].tally.given_up + 1)

    def waiting(self, target: str) -> tuple[int, float | None]:
        """How many wait, and since when."""
        waiting = self._queues[target].waiting
        return len(waiting), waiting[0].unix_s if waiting else None

    def tally(self, target: str) -> Tally:
        """Since ever."""
        return self._queues[target].tally

    # ---- what the rules knew

    def keep_alarms(self, changes: Mapping[Key, Alarm | None]) -> None:
        """In the same order as the messages: whoever finds an alarm told finds its message, or it was sent."""
        for key, alarm in changes.items():
            name = json.dumps(key)
            if alarm is None:
                self._write("DELETE FROM alarm WHERE key = ?", name)
            else:
                text = json.dumps(_plain(alarm))
                self._write("INSERT OR REPLACE INTO alarm (key, alarm) VALUES (?, ?)", name, text)

    def keep_fact(self, name: str, value: str) -> None:
        """A single value."""
        self.facts[name] = value
        self._write("INSERT OR REPLACE INTO fact (name, value) VALUES (?, ?)", name, value)

    # ---- the disk

    def _remove(self, message: Message) -> None:
        queue = self._queues[message.target]
        if any(one is message for one in queue.waiting):  # else it was dropped while it was under way
            queue.waiting.remove(message)
            queue.size -= message.size
            self._write("DELETE FROM message WHERE id = ?", message.id)

    def _append(self, message: Message) -> None:
        queue = self._queues[message.target]
        queue.waiting.append(message)
        queue.size += message.size

    def _count(self, target: str, **counts: Any) -> None:
        queue = self._queues[target]
        queue.tally = replace(queue.tally, **counts)
        text = json.dumps(asdict(queue.tally))
        self._write("INSERT OR REPLACE INTO tally (target, counts) VALUES (?, ?)", target, text)

    def _write(self, statement: str, *values: Any) -> None:
        if self._writer is not None:
            self._writer.put(lambda database: _execute(database, statement, values))


def _execute(database: Connection, statement: str, values: tuple[Any, ...]) -> None:
    database.execute(statement, values)


def _prepare(database: Connection) -> None:
    for table in _TABLES:
        database.execute(table)


def _nothing(_database: Connection) -> None:
    """Memory bounds what is on the disk."""


def _omitted(count: int) -> Job:
    log.error("messages could not be written to the disk", extra={"count": count})
    return _nothing


def _plain(alarm: Alarm) -> dict[str, Any]:
    return asdict(alarm) | {
        "key": list(alarm.key),
        "severity": alarm.severity.value,
        "told": alarm.told.value,
        "fields": dict(alarm.fields),
    }


def _alarm_of(plain: dict[str, Any]) -> Alarm:
    changed = {"key": Key(*plain["key"]), "severity": Severity(plain["severity"]), "told": Told(plain["told"])}
    return Alarm(**(plain | changed))


def path_of(state_dir: str) -> str:
    """Where it stands."""
    return os.path.join(state_dir, FILE_NAME)
