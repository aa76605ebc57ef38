"""The switch log (R31): every switch with its trigger, reason, epoch, health of both nodes, positions, time per phase.

An entry is opened when the switch begins and closed with its result; both are put, nobody waits. One that was left open
by a crash is closed as *interrupted* at the next start. ``revision`` grows with every change to any entry: who follows
sees an entry when it is opened, at each phase, and when it is closed. Durations come from monotonic times that the
caller hands in; begin and end are wall clock, for people, the end being the begin plus the duration.
"""

from __future__ import annotations

import enum
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from sqlite3 import Connection
from typing import NewType

from ha_agent.logs.writer import Job, LogWriter, clean, reading, wall_clock

logger = logging.getLogger("ha_agent.switches")

ROWS_MAX = 5000
FOLLOW_BATCH = 100

SwitchId = NewType("SwitchId", str)
Facts = Mapping[str, str]
Tell = Callable[[str, str, Mapping[str, object]], None]
"""``tell(severity, what, fields)``: an event."""

ENDED = "a switch ended"
SEVERITIES = {"observed": "info", "refused": "info", "aborted": "warning", "done": "warning"}
"""Of the event that says so; of all other results an error."""


class Result(enum.Enum):
    """What became of a switch."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"  # given up before the address moved; the Active went on serving
    REFUSED = "refused"
    OBSERVED = "observed"  # observe-only: it would have been done
    INTERRUPTED = "interrupted"  # the agent ended in the middle


class Phase(enum.Enum):
    """Parts of a switch whose time is told (seconds)."""

    DETECT = "detect"
    DECIDE = "decide"
    ADDRESS = "address"
    SERVICES = "services"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One entry."""

    id: SwitchId
    revision: int
    begun_unix_s: float
    ended_unix_s: float | None
    took_s: float | None
    trigger: str
    reason: str
    epoch: int
    role_before: str
    role_after: str
    own_health: dict[str, str]
    peer_health: dict[str, str]
    positions: dict[str, str]
    finished: dict[str, str]  # what the promotion finished for the dead node: "dataset: what" and how often
    phases_s: dict[str, float]
    result: Result
    error: str


class SwitchLog:
    """One per agent, over a writer that it shares with the events. Any thread, never blocks, but for ``query``."""

    def __init__(self, writer: LogWriter, *, tell: Tell) -> None:
        """``tell``: each switch that has ended is an event too."""
        self._writer = writer
        self._tell = tell
        self._begun: dict[SwitchId, float] = {}
        self._told: dict[SwitchId, dict[str, object]] = {}  # what the event will say

    def begin(
        self,
        *,
        now: float,
        trigger: str,
        reason: str,
        epoch: int,
        role_before: str,
        role_after: str,
        own_health: Facts,
        peer_health: Facts,
        positions: Facts,
    ) -> SwitchId:
        """A switch has begun at ``now`` (monotonic). Every id is closed by ``end``."""
        switch = SwitchId(uuid.uuid4().hex)
        self._begun[switch] = now
        row = {
            "key": switch,
            "begun_unix_s": wall_clock(),
            "trigger_": clean(trigger),
            "reason": clean(reason),
            "epoch": epoch,
            "role_before": role_before,
            "role_after": role_after,
            "own_health": _told(own_health),
            "peer_health": _told(peer_health),
            "positions": _told(positions),
        }
        self._told[switch] = {key: row[key] for key in ("trigger_", "reason", "epoch", "role_before", "role_after")}
        logger.warning("a switch begins", extra={"trigger": trigger, "reason": reason, "epoch": epoch})
        self._writer.put(_insert(row))
        return switch

    def phase(self, switch: SwitchId, phase: Phase, seconds: float) -> None:
        """A part of it took so long; said again, it counts anew."""
        assert switch in self._begun, switch
        self._writer.put(_update(switch, {}, phase=(phase.value, round(seconds, 6))))

    def add(self, switch: SwitchId, **facts: Facts | int | str) -> None:
        """What became known later, each by the name of its field."""
        assert switch in self._begun, switch
        assert facts.keys() <= {"epoch", "reason", "own_health", "peer_health", "positions", "finished"}, facts
        plain = {key: value if isinstance(value, int) else _told(value) for key, value in facts.items()}
        self._told[switch] |= {key: plain[key] for key in ("epoch", "reason") if key in plain}
        self._writer.put(_update(switch, plain))

    def end(self, switch: SwitchId, result: Result, *, now: float, error: str = "") -> None:
        """It is over."""
        assert result is not Result.OPEN, switch
        took_s = max(0.0, now - self._begun.pop(switch))
        fields = self._told.pop(switch) | {"result": result.value, "took_s": f"{took_s:.3f}", "error": error}
        fields["trigger"] = fields.pop("trigger_")
        self._tell(SEVERITIES.get(result.value, "error"), ENDED, fields)
        self._writer.put(_update(switch, {"took_s": took_s, "result": result.value, "error": clean(error)}))

    def query(
        self, *, since_unix_s: float = 0.0, limit: int = 100, result: Result | None = None, after_revision: int = 0
    ) -> list[Switch]:
        """See ``read_switches``; sees all that was put before the call. Blocking."""
        self._writer.flush()
        return read_switches(
            self._writer.path, since_unix_s=since_unix_s, limit=limit, result=result, after_revision=after_revision
        )

    async def follow(self, *, after_revision: int) -> AsyncGenerator[Switch, None]:
        """Entries as they are opened and changed, for ever."""
        place = after_revision

        def read() -> list[Switch]:
            return read_switches(self._writer.path, limit=FOLLOW_BATCH, after_revision=place, onward=True)

        async for batch in self._writer.follow(read):
            for entry in batch:
                place = entry.revision
                yield entry


def read_switches(
    path: str,
    *,
    since_unix_s: float = 0.0,
    limit: int = 100,
    result: Result | None = None,
    after_revision: int = 0,
    onward: bool | None = None,
) -> list[Switch]:
    """Entries that began at or after ``since_unix_s``, oldest first; a log that does not exist is empty. Blocking.

    At most ``limit``: the newest, but with ``after_revision`` those changed first after it, in the order of changes.
    """
    onward = after_revision > 0 if onward is None else onward
    of_result = "" if result is None else "AND result = ? "
    order = "revision ASC" if onward else "id DESC"
    statement = (
        "SELECT key, revision, begun_unix_s, took_s, trigger_, reason, epoch, role_before, role_after, own_health, "
        "peer_health, positions, phases_s, result, error, finished "
        "FROM switch WHERE begun_unix_s >= ? AND revision > ? "
        f"{of_result}ORDER BY {order} LIMIT ?"
    )
    values = [since_unix_s, after_revision, *([] if result is None else [result.value]), limit]
    with reading(path, "switch") as database:
        rows = database.execute(statement, values).fetchall() if database else []
    found = [_switch(row) for row in rows]
    return found if onward else found[::-1]


def prepare_switches(database: Connection) -> None:
    """Makes the table."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS switch (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, "
        "revision INTEGER NOT NULL, begun_unix_s REAL NOT NULL, took_s REAL, trigger_ TEXT NOT NULL, "
        "reason TEXT NOT NULL, epoch INTEGER NOT NULL, role_before TEXT NOT NULL, role_after TEXT NOT NULL, "
        "own_health TEXT NOT NULL, peer_health TEXT NOT NULL, positions TEXT NOT NULL, "
        "finished TEXT NOT NULL DEFAULT '{}', "
        "phases_s TEXT NOT NULL DEFAULT '{}', result TEXT NOT NULL DEFAULT 'open', error TEXT NOT NULL DEFAULT '')"
    )
    database.execute("CREATE INDEX IF NOT EXISTS idx_switch_revision ON switch (revision)")


def close_left_open(database: Connection, *, tell: Tell) -> None:
    """A job for the agent's start: what is open now was left so by one that is gone. How long it took is not known."""
    found = database.execute(
        "SELECT key, trigger_, reason, epoch, role_before, role_after FROM switch WHERE result = 'open' ORDER BY id"
    ).fetchall()
    for key, *facts in found:
        closing = {"result": Result.INTERRUPTED.value, "error": "the agent ended in the middle"}
        _update(key, closing)(database)
        told = dict(zip(("trigger", "reason", "epoch", "role_before", "role_after"), facts, strict=True))
        tell("error", ENDED, told | closing)


def trim_switches(database: Connection, *, rows_max: int = ROWS_MAX) -> None:
    """Bounds the rows. There are few switches; their age does not matter."""
    newest = database.execute("SELECT coalesce(max(id), 0) FROM switch").fetchone()[0]
    database.execute("DELETE FROM switch WHERE id <= ?", (newest - rows_max,))


_NEXT_REVISION = "SELECT coalesce(max(revision), 0) + 1 FROM switch"


def _told(value: Facts | str) -> str:
    if isinstance(value, str):
        return clean(value)
    return json.dumps({str(key): clean(fact) for key, fact in value.items()})


def _insert(row: dict[str, object]) -> Job:
    columns = ", ".join(row)
    marks = ", ".join("?" * len(row))
    statement = f"INSERT INTO switch ({columns}, revision) VALUES ({marks}, ({_NEXT_REVISION}))"

    def job(database: Connection) -> None:
        database.execute(statement, [*row.values()])

    return job


def _update(key: str, changes: Mapping[str, object], phase: tuple[str, float] | None = None) -> Job:
    def job(database: Connection) -> None:
        found = database.execute("SELECT id, phases_s FROM switch WHERE key = ?", (key,)).fetchone()
        if found is None:  # its opening was lost: the disk was full, or the file was damaged
            return
        phases = json.loads(found[1]) | (dict([phase]) if phase else {})
        row = {**changes, "phases_s": json.dumps(phases)}
        columns = ", ".join(f"{key} = ?" for key in row)
        statement = f"UPDATE switch SET {columns}, revision = ({_NEXT_REVISION}) WHERE id = ?"
        database.execute(statement, [*row.values(), found[0]])

    return job


def _switch(
    row: tuple[str, int, float, float | None, str, str, int, str, str, str, str, str, str, str, str, str],
) -> Switch:
    begun_unix_s, took_s = row[2], row[3]
    return Switch(
        id=SwitchId(row[0]),
        revision=row[1],
        begun_unix_s=begun_unix_s,
        ended_unix_s=None if took_s is None else begun_unix_s + took_s,
        took_s=took_s,
        trigger=row[4],
        reason=row[5],
        epoch=row[6],
        role_before=row[7],
        role_after=row[8],
        own_health=json.loads(row[9]),
        peer_health=json.loads(row[10]),
        positions=json.loads(row[11]),
        finished=json.loads(row[15]),
        phases_s=json.loads(row[12]),
        result=Result(row[13]),
        error=row[14],
    )
