"""The agent's two logs in one small database: switches (R31) and events (R32). Bounded, queryable, followed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection

from ha_agent.logs import events, switches
from ha_agent.logs.events import Edge, Event, EventLog, read_events
from ha_agent.logs.switches import Phase, Result, Switch, SwitchId, SwitchLog, read_switches
from ha_agent.logs.writer import Job, LogWriter

__all__ = [
    "AgentLogs",
    "Edge",
    "Event",
    "EventLog",
    "Phase",
    "Result",
    "Switch",
    "SwitchId",
    "SwitchLog",
    "open_logs",
    "read_events",
    "read_switches",
]

FILE_NAME = "agent-logs.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLogs:
    """What ``open_logs`` opened."""

    events: EventLog
    switches: SwitchLog
    writer: LogWriter

    def close(self) -> None:
        """Writes what is pending and stops. Blocking."""
        self.writer.close()


def open_logs(
    path: str, *, event_rows_max: int = events.ROWS_MAX, switch_rows_max: int = switches.ROWS_MAX
) -> AgentLogs:
    """Opens both, once per agent: what an agent before left open or raised is closed. Does not block."""

    def trim(database: Connection) -> None:
        events.trim_events(database, rows_max=event_rows_max)
        switches.trim_switches(database, rows_max=switch_rows_max)

    writer = LogWriter(path, prepare=_prepare, on_omission=_omission, trim=trim)
    event_log = EventLog(writer)
    writer.put(partial(switches.close_left_open, tell=event_log.append))
    writer.put(events.clear_left_over)
    return AgentLogs(events=event_log, switches=SwitchLog(writer, tell=event_log.append), writer=writer)


def _prepare(database: Connection) -> None:
    events.prepare_events(database)
    switches.prepare_switches(database)


def _omission(count: int) -> Job:
    return partial(_say_omission, count)


def _say_omission(count: int, database: Connection) -> None:
    insert = events.insert("warning", "log entries were left out", "", Edge.NONE, {"count": count})
    insert(database)
