"""Events of the agent (R32): what happened, and alarms that are raised and cleared.

An alarm is known by what it is and what it is about; it is raised once and cleared once, however often it is said.
``standing`` lists those that are raised now. Those that stood when the agent ended are cleared at its next start, with
the reason: who still finds the fault raises it again. Times are wall clock, for people; order is the id's.
"""

from __future__ import annotations

import enum
import json
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from sqlite3 import Connection

from ha_agent.logs.writer import Job, LogWriter, clean, reading, wall_clock

logger = logging.getLogger("ha_agent.events")

ROWS_MAX = 100_000
DAYS_MAX = 90.0
ROWS_KEPT_MIN = 1000  # whatever their date: a clock that jumped must not empty the log
FOLLOW_BATCH = 500
EARLY_MAX = 64
SEVERITIES = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_RESERVED = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""Names that a log record has itself; ``logging`` raises KeyError where a field takes one."""


Listener = Callable[[str, str, str, str, Mapping[str, object]], None]


class Edge(enum.Enum):
    """What an event says about an alarm."""

    NONE = "none"  # no alarm: it happened, and that is all
    RAISED = "raised"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row."""

    id: int  # grows, never reused
    unix_s: float
    severity: str  # info | warning | error
    what: str
    subject: str
    edge: Edge
    fields: dict[str, str]


class EventLog:
    """One per agent, over a writer that it shares with the switch log. Any thread, never blocks, but for ``query``."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._raised: set[tuple[str, str]] = set()
        self._listener: Listener | None = None
        self._early: deque[tuple[str, str, str, str, Mapping[str, object]]] = deque(maxlen=EARLY_MAX)
        self._listening = threading.Lock()  # of the two above

    def listen(self, listener: Listener) -> None:
        """``listener(severity, what, subject, edge, fields)`` is called for each event, by whichever thread tells it.

        Also for those that came before anybody listened, the newest ``EARLY_MAX``. It must neither block nor raise,
        nor tell an event. Only one listens.
        """
        with self._listening:
            self._listener = listener
            while self._early:
                listener(*self._early.popleft())

    def append(self, severity: str, what: str, fields: Mapping[str, object]) -> None:
        """Something happened. ``what`` is constant text; what varies goes into ``fields``."""
        self._put(severity, what, "", Edge.NONE, fields)

    def raise_alarm(self, severity: str, what: str, subject: str, fields: Mapping[str, object]) -> bool:
        """A fault has begun. False: it was raised already, and nothing is written."""
        if (what, subject) in self._raised:
            return False
        self._raised.add((what, subject))
        self._put(severity, what, subject, Edge.RAISED, fields)
        return True

    def clear_alarm(self, what: str, subject: str, fields: Mapping[str, object]) -> bool:
        """A fault has ended. False: it was not raised, and nothing is written."""
        if (what, subject) not in self._raised:
            return False
        self._raised.discard((what, subject))
        self._put("info", what, subject, Edge.CLEARED, fields)
        return True

    @property
    def standing(self) -> tuple[tuple[str, str], ...]:
        """What is raised now, as (what, subject)."""
        return tuple(sorted(self._raised))

    def query(
        self, *, since_unix_s: float = 0.0, limit: int = 1000, severity: str = "info", after_id: int = 0
    ) -> list[Event]:
        """See ``read_events``; sees all that was put before the call. Blocking."""
        self._writer.flush()
        return read_events(
            self._writer.path, since_unix_s=since_unix_s, limit=limit, severity=severity, after_id=after_id
        )

    async def follow(self, *, after_id: int, severity: str = "info") -> AsyncGenerator[Event, None]:
        """Events after ``after_id`` as they are written, for ever."""
        place = after_id

        def read() -> list[Event]:
            return read_events(self._writer.path, limit=FOLLOW_BATCH, severity=severity, after_id=place, onward=True)

        async for batch in self._writer.follow(read):
            for event in batch:
                place = event.id
                yield event

    def _put(self, severity: str, what: str, subject: str, edge: Edge, fields: Mapping[str, object]) -> None:
        assert severity in SEVERITIES, severity
        extra = {f"{key}_" if key in _RESERVED else key: value for key, value in fields.items()}
        logger.log(SEVERITIES[severity], what, extra=extra | {"subject": subject, "edge": edge.value})
        self._writer.put(insert(severity, what, subject, edge, fields))
        with self._listening:
            if self._listener is not None:
                self._listener(severity, what, subject, edge.value, fields)
            else:
                self._early.append((severity, what, subject, edge.value, fields))


def insert(severity: str, what: str, subject: str, edge: Edge, fields: Mapping[str, object]) -> Job:
    """A job that writes one event, dated now."""
    told = json.dumps({str(key): clean(value) for key, value in fields.items()})
    row = (wall_clock(), severity, clean(what), clean(subject), edge.value, told)

    def job(database: Connection) -> None:
        database.execute(
            "INSERT INTO event (unix_s, severity, what, subject, edge, fields) VALUES (?, ?, ?, ?, ?, ?)", row
        )

    return job


def read_events(
    path: str,
    *,
    since_unix_s: float = 0.0,
    limit: int = 1000,
    severity: str = "info",
    after_id: int = 0,
    onward: bool | None = None,
) -> list[Event]:
    """Events at or after ``since_unix_s``, of at least ``severity``, oldest first. A log that does not exist is empty.

    At most ``limit``: the newest ones, but with ``after_id`` the first ones after it, so that a reader can go on.
    Blocking.
    """
    onward = after_id > 0 if onward is None else onward
    wanted = [name for name, level in SEVERITIES.items() if level >= SEVERITIES[severity]]
    statement = (
        "SELECT id, unix_s, severity, what, subject, edge, fields FROM event WHERE id > ? AND unix_s >= ? "
        f"AND severity IN ({','.join('?' * len(wanted))}) ORDER BY id {'ASC' if onward else 'DESC'} LIMIT ?"
    )
    with reading(path, "event") as database:
        rows = database.execute(statement, [after_id, since_unix_s, *wanted, limit]).fetchall() if database else []
    events = [_event(row) for row in rows]
    return events if onward else events[::-1]


def prepare_events(database: Connection) -> None:
    """Makes the table, and clears the alarms that stood when the last agent ended."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY AUTOINCREMENT, unix_s REAL NOT NULL, "
        "severity TEXT NOT NULL, what TEXT NOT NULL, subject TEXT NOT NULL, edge TEXT NOT NULL, fields TEXT NOT NULL)"
    )
    database.execute("CREATE INDEX IF NOT EXISTS idx_event_unix_s ON event (unix_s)")


def clear_left_over(database: Connection) -> None:
    """A job for the agent's start."""
    left_over = database.execute(
        "SELECT what, subject FROM event AS newest WHERE edge = 'raised' AND NOT EXISTS (SELECT 1 FROM event AS later "
        "WHERE later.what = newest.what AND later.subject = newest.subject AND later.edge = 'cleared' "
        "AND later.id > newest.id) GROUP BY what, subject"
    ).fetchall()
    for what, subject in left_over:
        insert("info", what, subject, Edge.CLEARED, {"reason": "the agent was started anew"})(database)


def trim_events(database: Connection, *, rows_max: int = ROWS_MAX, days_max: float = DAYS_MAX) -> None:
    """Bounds rows and age."""
    newest = database.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
    oldest_unix_s = wall_clock() - days_max * 86400
    database.execute("DELETE FROM event WHERE id <= ?", (newest - rows_max,))
    database.execute(
        "DELETE FROM event WHERE unix_s < ? AND id <= ?", (oldest_unix_s, newest - min(ROWS_KEPT_MIN, rows_max))
    )


def _event(row: tuple[int, float, str, str, str, str, str]) -> Event:
    return Event(
        id=row[0],
        unix_s=row[1],
        severity=row[2],
        what=row[3],
        subject=row[4],
        edge=Edge(row[5]),
        fields=json.loads(row[6]),
    )
