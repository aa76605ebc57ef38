"""The log of runs (R31): the backup log and the storage log are one ``RunLog`` each, in a file of its own.

    run = log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=time.monotonic(), peer="b")
    log.found(run, finding)
    log.equal(run, dataset, since_unix_s)
    log.end(run, Result.DONE, now=time.monotonic(), tally=Tally(objects=70_000))

These four take any thread and never block. Every run that was begun is ended once, also when it is cancelled; one that
a crash cut off is closed as *interrupted* when the log is opened again. Progress is not written. A run that began on a
full disk is written whole at its end. Of a run's findings the first ``FINDINGS_MAX`` are kept; ``found`` counts all.

Bounded: the newest ``RUNS_MAX`` runs of each kind (a flapping connection's full syncs never push out the nightly
backups), and ``FINDINGS_KEPT_MAX`` findings altogether, those of the newest runs. ``revision`` grows with every change
to any run: who follows sees a run when it begins and when it ends. Durations come from monotonic times that the caller
hands in; the begin is wall clock, for people, and the end is the begin plus the duration.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NewType

from sqlite_utils import Database

from ha_sync.core.dataset import DatasetName, Report
from ha_sync.core.examine import Fault, Finding, Side
from ha_sync.logs.writer import Job, LogWriter, clean, reading, wall_clock

RUNS_MAX: Final = 2000
FINDINGS_MAX: Final = 10_000
FINDINGS_KEPT_MAX: Final = 200_000
FOLLOW_BATCH: Final = 100

RunId = NewType("RunId", str)
"""When it began (UTC) and some random digits: ``20260301T020000-3fa4c1``."""


class Kind(enum.Enum):
    """What was done."""

    FULL_BACKUP = "full-backup"
    FULL_SYNC = "full-sync"
    EXPORT = "export"
    RESTORE = "restore"
    MERGE = "merge"
    STORAGE_SYNC = "storage-sync"


class Trigger(enum.Enum):
    """Why it began."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    BOOT = "boot"
    REJOIN = "rejoin"
    RESTORE = "restore"


class Result(enum.Enum):
    """What became of it."""

    RUNNING = "running"
    DONE = "done"
    PARTIAL = "partial"  # something differs still, or could not be looked at
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"  # the engine ended in the middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of a run; what has no meaning for its kind stays 0."""

    objects: int = 0  # files, rows
    differing: int = 0
    repaired: int = 0
    unverified: int = 0
    bytes_read: int = 0  # content, on this node
    bytes_sent: int = 0  # to the peer or the medium


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """One entry."""

    id: RunId
    revision: int
    kind: Kind
    trigger: Trigger
    peer: str
    begun_unix_s: float
    took_s: float | None  # None: running, or cut off
    result: Result
    tally: Tally
    found: int  # findings
    found_kept: int  # of these, how many the log has
    reason: str
    error: str
    facts: dict[str, str]  # what else is worth telling: datasets, depth, file

    @property
    def ended_unix_s(self) -> float | None:
        """When it ended, as far as is known."""
        return None if self.took_s is None else self.begun_unix_s + self.took_s


@dataclass(slots=True, kw_only=True)
class _Open:
    """A run that this process began and has not ended."""

    begun: float  # monotonic
    row: dict[str, object] = field(default_factory=dict)
    found: int = 0
    kept: int = 0


class RunLog:
    """One per file and engine; works from its making until ``close``."""

    def __init__(
        self,
        path: str,
        *,
        report: Report,
        runs_max: int = RUNS_MAX,
        findings_max: int = FINDINGS_MAX,
        findings_kept_max: int = FINDINGS_KEPT_MAX,
    ) -> None:
        """Closes what a crash left open; says so through ``report``, which is called on the writing thread."""
        assert runs_max > 0, runs_max
        self._findings_max = findings_max
        self._report = report
        self._open: dict[RunId, _Open] = {}

        def trim(database: Database) -> None:
            _trim(database, runs_max=runs_max, findings_kept_max=findings_kept_max)

        self._writer = LogWriter(path, prepare=self._prepare, trim=trim, report=report)

    # ---- writing

    def begin(
        self,
        kind: Kind,
        trigger: Trigger,
        *,
        now: float,
        peer: str = "",
        reason: str = "",
        facts: Mapping[str, object] | None = None,
    ) -> RunId:
        """A run has begun at ``now`` (monotonic)."""
        begun_unix_s = wall_clock()
        stamp = dt.datetime.fromtimestamp(begun_unix_s, dt.UTC).strftime("%Y%m%dT%H%M%S")
        run = RunId(f"{stamp}-{secrets.token_hex(3)}")
        row: dict[str, object] = {
            "key": run,
            "kind": kind.value,
            "trigger_": trigger.value,
            "peer": clean(peer),
            "begun_unix_s": begun_unix_s,
            "result": Result.RUNNING.value,
            "reason": clean(reason),
            "facts": _told(facts or {}),
        }
        self._open[run] = _Open(begun=now, row=row)
        self._writer.put(_store(row))
        return run

    def found(self, run: RunId, finding: Finding) -> None:
        """One object was not as it should be. Beyond the limit it is only counted."""
        entry = self._open[run]
        entry.found += 1
        if entry.kept < self._findings_max:
            entry.kept += self._writer.put(_insert_finding(run, finding), may_be_left_out=True)

    def equal(self, run: RunId, dataset: DatasetName, since_unix_s: float) -> None:
        """The run proved by content that the dataset was the same on both nodes at that time (wall clock)."""
        assert run in self._open, run
        self._writer.put(_store_equal(run, dataset, since_unix_s))

    def end(
        self,
        run: RunId,
        result: Result,
        *,
        now: float,
        tally: Tally | None = None,
        reason: str = "",
        error: str = "",
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """It is over. ``reason`` and ``facts`` where given replace those of the begin."""
        assert result is not Result.RUNNING, result
        entry = self._open.pop(run)
        tally = tally or Tally()
        row = entry.row | {
            "took_s": max(0.0, now - entry.begun),
            "result": result.value,
            "objects": tally.objects,
            "differing": tally.differing,
            "repaired": tally.repaired,
            "unverified": tally.unverified,
            "bytes_read": tally.bytes_read,
            "bytes_sent": tally.bytes_sent,
            "found": entry.found,
            "error": clean(error),
        }
        if reason:
            row["reason"] = clean(reason)
        if facts is not None:
            row["facts"] = _told(facts)
        self._writer.put(_store(row))

    # ---- reading: blocking, sees all that was put before the call

    def query(
        self,
        *,
        since_unix_s: float = 0.0,
        result: Result | None = None,
        kind: Kind | None = None,
        limit: int = 100,
        after_revision: int = 0,
    ) -> list[LoggedRun]:
        """Runs that began at or after ``since_unix_s``, oldest first: see ``read_runs``."""
        self._writer.flush()
        return read_runs(
            self._writer.path,
            since_unix_s=since_unix_s,
            result=result,
            kind=kind,
            limit=limit,
            after_revision=after_revision,
        )

    def get(self, run: str) -> LoggedRun | None:
        """The one with this id."""
        self._writer.flush()
        found = _read(self._writer.path, "key = ?", [run], order="id", limit=1)
        return found[0] if found else None

    def findings(self, run: str, *, limit: int = FINDINGS_MAX) -> list[Finding]:
        """What the run found, in order; at most ``limit``."""
        self._writer.flush()
        statement = (
            "SELECT dataset, subject, fault, side, repaired, equal_until_unix_s, detail FROM finding "
            "WHERE run = ? ORDER BY id LIMIT ?"
        )
        with reading(self._writer.path, "finding") as database:
            rows = database.execute(statement, [run, limit]).fetchall() if database else []
        return [_finding(row) for row in rows]

    def last_equal(self, dataset: DatasetName) -> float | None:
        """When both nodes were last proved equal there (wall clock); None: never."""
        self._writer.flush()
        with reading(self._writer.path, "equal") as database:
            statement = "SELECT unix_s FROM equal WHERE dataset = ?"
            row = database.execute(statement, [dataset]).fetchone() if database else None
        return None if row is None else float(row[0])

    async def follow(self, *, after_revision: int) -> AsyncGenerator[LoggedRun, None]:
        """Runs as they begin and end, for ever."""
        place = after_revision

        def read() -> list[LoggedRun]:
            return read_runs(self._writer.path, limit=FOLLOW_BATCH, after_revision=place, onward=True)

        async for batch in self._writer.follow(read):
            for entry in batch:
                place = entry.revision
                yield entry

    def flush(self) -> bool:
        """Waits until everything put so far is durable. Blocking. False: not within some seconds."""
        return self._writer.flush()

    def close(self) -> None:
        """Writes what is pending and stops. Blocking."""
        self._writer.close()

    def _prepare(self, database: Database) -> None:
        """A file is opened once per engine: what stands there as running was left so. How long it took is not known."""
        _make_tables(database)
        left = database.conn.execute("SELECT key, kind FROM run WHERE result = 'running' ORDER BY id").fetchall()
        for key, kind in left:
            database.conn.execute(
                f"UPDATE run SET result = 'interrupted', error = ?, revision = ({_NEXT_REVISION}), "
                "found = (SELECT count(*) FROM finding WHERE run = key) WHERE key = ?",
                ("the engine ended in the middle", key),
            )
            self._report("warning", "a run was cut off by the end of the engine", {"run": key, "kind": kind})


def read_runs(
    path: str,
    *,
    since_unix_s: float = 0.0,
    result: Result | None = None,
    kind: Kind | None = None,
    limit: int = 100,
    after_revision: int = 0,
    onward: bool | None = None,
) -> list[LoggedRun]:
    """Runs that began at or after ``since_unix_s``, oldest first; a log that does not exist is empty. Blocking.

    At most ``limit``: the newest, but with ``after_revision`` those changed first after it, in the order of changes.
    """
    onward = after_revision > 0 if onward is None else onward
    where, values = "begun_unix_s >= ? AND revision > ?", [since_unix_s, after_revision]
    filters: dict[str, enum.Enum | None] = {"result": result, "kind": kind}
    wanted = {name: value.value for name, value in filters.items() if value is not None}
    where += "".join(f" AND {name} = ?" for name in wanted)
    order = "revision ASC" if onward else "id DESC"
    found = _read(path, where, [*values, *wanted.values()], order=order, limit=limit)
    return found if onward else found[::-1]


_TALLY: Final = ("objects", "differing", "repaired", "unverified", "bytes_read", "bytes_sent")
_NEXT_REVISION: Final = "SELECT coalesce(max(revision), 0) + 1 FROM run"


def _make_tables(database: Database) -> None:
    tally = "".join(f"{name} INTEGER NOT NULL DEFAULT 0, " for name in _TALLY)
    database.conn.execute(
        "CREATE TABLE IF NOT EXISTS run (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, "
        "revision INTEGER NOT NULL, kind TEXT NOT NULL, trigger_ TEXT NOT NULL, peer TEXT NOT NULL, "
        f"begun_unix_s REAL NOT NULL, took_s REAL, result TEXT NOT NULL, {tally}found INTEGER NOT NULL DEFAULT 0, "
        "reason TEXT NOT NULL, error TEXT NOT NULL DEFAULT '', facts TEXT NOT NULL)"
    )
    database.conn.execute(
        "CREATE TABLE IF NOT EXISTS finding (id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, "
        "dataset TEXT NOT NULL, subject TEXT NOT NULL, fault TEXT NOT NULL, side TEXT NOT NULL, "
        "repaired INTEGER NOT NULL, equal_until_unix_s REAL, detail TEXT NOT NULL)"
    )
    database.conn.execute(
        "CREATE TABLE IF NOT EXISTS equal (dataset TEXT PRIMARY KEY, unix_s REAL NOT NULL, run TEXT NOT NULL)"
    )
    database.table("run").create_index(["revision"], if_not_exists=True)
    database.table("finding").create_index(["run"], if_not_exists=True)


def _trim(database: Database, *, runs_max: int, findings_kept_max: int) -> None:
    """A run that goes on is never taken away."""
    connection = database.conn
    for (kind,) in connection.execute("SELECT kind FROM run GROUP BY kind HAVING count(*) > ?", (runs_max,)).fetchall():
        connection.execute(
            "DELETE FROM run WHERE kind = ? AND result <> 'running' AND id <= "
            "(SELECT id FROM run WHERE kind = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (kind, kind, runs_max),
        )
        connection.execute("DELETE FROM finding WHERE run NOT IN (SELECT key FROM run)")
    oldest, newest = connection.execute("SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM finding").fetchone()
    if newest - oldest >= findings_kept_max:
        connection.execute("DELETE FROM finding WHERE id <= ?", (newest - findings_kept_max,))


def _store(row: Mapping[str, object]) -> Job:
    """The whole run each time: its begin may have been lost to a full disk."""
    columns = ", ".join(row)
    marks = ", ".join("?" * len(row))
    changes = ", ".join(f"{name} = excluded.{name}" for name in (*row, "revision"))
    statement = (
        f"INSERT INTO run ({columns}, revision) VALUES ({marks}, ({_NEXT_REVISION})) "
        f"ON CONFLICT (key) DO UPDATE SET {changes}"
    )
    values = [*row.values()]

    def job(database: Database) -> None:
        database.conn.execute(statement, values)

    return job


def _insert_finding(run: RunId, finding: Finding) -> Job:
    values = (
        run,
        clean(finding.dataset),
        clean(finding.subject),
        finding.fault.value,
        finding.side.value,
        int(finding.repaired),
        finding.equal_until_unix_s,
        clean(finding.detail),
    )

    def job(database: Database) -> None:
        database.conn.execute(
            "INSERT INTO finding (run, dataset, subject, fault, side, repaired, equal_until_unix_s, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )

    return job


def _store_equal(run: RunId, dataset: DatasetName, unix_s: float) -> Job:
    def job(database: Database) -> None:
        database.conn.execute("INSERT OR REPLACE INTO equal VALUES (?, ?, ?)", (dataset, unix_s, run))

    return job


def _read(path: str, where: str, values: Iterable[object], *, order: str, limit: int) -> list[LoggedRun]:
    statement = (
        "SELECT key, revision, kind, trigger_, peer, begun_unix_s, took_s, result, found, reason, error, facts, "
        f"(SELECT count(*) FROM finding WHERE finding.run = run.key), {', '.join(_TALLY)} "
        f"FROM run WHERE {where} ORDER BY {order} LIMIT ?"
    )
    with reading(path, "run") as database:
        rows = database.execute(statement, [*values, limit]).fetchall() if database else []
    return [
        LoggedRun(
            id=RunId(row[0]),
            revision=row[1],
            kind=Kind(row[2]),
            trigger=Trigger(row[3]),
            peer=row[4],
            begun_unix_s=row[5],
            took_s=row[6],
            result=Result(row[7]),
            found=row[8],
            found_kept=row[12],
            reason=row[9],
            error=row[10],
            facts=json.loads(row[11]),
            tally=Tally(**dict(zip(_TALLY, row[13:], strict=True))),
        )
        for row in rows
    ]


def _finding(row: tuple[str, str, str, str, int, float | None, str]) -> Finding:
    return Finding(
        dataset=DatasetName(row[0]),
        subject=row[1],
        fault=Fault(row[2]),
        side=Side(row[3]),
        repaired=bool(row[4]),
        equal_until_unix_s=row[5],
        detail=row[6],
    )


def _told(facts: Mapping[str, object]) -> str:
    return json.dumps({str(key): clean(fact) for key, fact in facts.items()})
