"""The log of runs: what began is ended or closed as interrupted, nobody waits for it, and it stays small."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.core.dataset import DatasetName
from ha_sync.core.examine import Fault, Finding, Side
from ha_sync.logs import runs, writer
from ha_sync.logs.runs import Kind, LoggedRun, Result, RunLog, Tally, Trigger

pytestmark = pytest.mark.req("R31")

CDR, FILES = DatasetName("cdr"), DatasetName("files")


class Opened:
    """A log and what it reported."""

    def __init__(self, log: RunLog, events: list[tuple[str, str, dict[str, object]]]) -> None:
        self.log = log
        self.events = events

    def backup(self, result: Result = Result.DONE, *, kind: Kind = Kind.FULL_BACKUP, error: str = "") -> str:
        """A whole run."""
        run = self.log.begin(kind, Trigger.SCHEDULE, now=0.0)
        self.log.end(run, result, now=1.0, error=error)
        return run


@contextlib.contextmanager
def opened(path: Path, **limits: int) -> Iterator[Opened]:
    events: list[tuple[str, str, dict[str, object]]] = []
    log = RunLog(str(path), report=lambda *event: events.append(event), **limits)
    try:
        yield Opened(log, events)
    finally:
        log.close()


def missing(subject: str, **facts: object) -> Finding:
    return Finding(dataset=FILES, subject=subject, fault=Fault.MISSING, side=Side.STANDBY, **facts)  # type: ignore[arg-type]


def test_a_run_is_told_while_it_goes_on_and_with_everything_when_it_ended(tmp_path: Path) -> None:
    with opened(tmp_path / "logs" / "backup.db") as it:
        run = it.log.begin(
            Kind.FULL_BACKUP, Trigger.MANUAL, now=100.0, peer="n-2", reason="asked", facts={"depth": "content"}
        )
        (going,) = it.log.query()
        assert (going.id, going.result, going.took_s, going.ended_unix_s) == (run, Result.RUNNING, None, None)
        tally = Tally(objects=7, differing=3, repaired=2, unverified=1, bytes_read=2**40, bytes_sent=9)
        it.log.end(run, Result.PARTIAL, now=102.5, tally=tally, error="one is busy")
        assert it.log.query() == [
            LoggedRun(
                id=run,
                revision=2,
                kind=Kind.FULL_BACKUP,
                trigger=Trigger.MANUAL,
                peer="n-2",
                begun_unix_s=going.begun_unix_s,
                took_s=2.5,
                result=Result.PARTIAL,
                tally=tally,
                found=0,
                found_kept=0,
                reason="asked",
                error="one is busy",
                facts={"depth": "content"},
            )
        ]
        assert it.log.get(run) == it.log.query()[0]
        assert it.log.get("another") is None


def test_findings_are_kept_in_order_as_they_were_told(tmp_path: Path) -> None:
    told = [
        missing("a/b \udcff\n"),
        Finding(
            dataset=CDR,
            subject="cdr 7",
            fault=Fault.ROTTEN,
            side=Side.ACTIVE,
            repaired=True,
            equal_until_unix_s=1_700_000_000.5,
            detail="page 3",
        ),
    ]
    with opened(tmp_path / "backup.db") as it:
        run, other = (it.log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0) for _ in range(2))
        it.log.found(other, missing("of another run"))
        for finding in told:
            it.log.found(run, finding)
        it.log.end(run, Result.DONE, now=1.0)
        found = it.log.findings(run)
        assert found[1] == told[1]
        assert found[0].subject == "a/b \\udcff\n"  # SQLite takes no lone surrogate
        assert it.log.findings(run, limit=1) == found[:1]
        assert it.log.query()[0].found == 2


def test_of_too_many_findings_the_first_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    with opened(tmp_path / "backup.db", findings_max=3) as it:
        run = it.log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0)
        for number in range(10):
            it.log.found(run, missing(str(number)))
        it.log.end(run, Result.DONE, now=1.0)
        (entry,) = it.log.query()
        assert (entry.found, entry.found_kept) == (10, 3)
        assert [finding.subject for finding in it.log.findings(run)] == ["0", "1", "2"]


def test_findings_that_the_disk_is_too_slow_for_are_counted_and_the_end_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PENDING_MAX", 0)
    with opened(tmp_path / "backup.db") as it:
        run = it.log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0)
        it.log.found(run, missing("a"))
        it.log.end(run, Result.DONE, now=1.0)
        (entry,) = it.log.query()
        assert (entry.result, entry.found, entry.found_kept) == (Result.DONE, 1, 0)


def test_a_query_is_bounded_by_time_result_kind_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 200.0, 300.0, 400.0])
    monkeypatch.setattr(runs, "wall_clock", lambda: next(times))
    with opened(tmp_path / "backup.db") as it:
        first, failed = it.backup(), it.backup(Result.FAILED)
        sync, last = it.backup(kind=Kind.FULL_SYNC), it.backup()

        def ids(**wanted: object) -> list[str]:
            return [run.id for run in it.log.query(**wanted)]  # type: ignore[arg-type]

        assert ids() == [first, failed, sync, last]
        assert ids(since_unix_s=200.0) == [failed, sync, last]
        assert ids(result=Result.FAILED) == [failed]
        assert ids(result=Result.RUNNING) == []
        assert ids(kind=Kind.FULL_SYNC) == [sync]
        assert ids(limit=2) == [sync, last]
        assert ids(after_revision=it.log.query()[1].revision, limit=1) == [sync]  # a reader goes on without a gap


def test_a_flood_of_one_kind_never_pushes_out_another_nor_what_is_going_on(tmp_path: Path) -> None:
    with opened(tmp_path / "backup.db", runs_max=3) as it:
        nightly = it.backup()
        going = it.log.begin(Kind.FULL_SYNC, Trigger.BOOT, now=0.0)
        it.log.found(going, missing("x"))
        for _ in range(20):
            it.backup(kind=Kind.FULL_SYNC)
            it.log.flush()
        kept = [run.id for run in it.log.query()]
        assert kept[:2] == [nightly, going]
        assert len(kept) == 2 + 3
        assert len(it.log.findings(going)) == 1


def test_findings_of_a_run_that_is_forgotten_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "backup.db"
    with opened(path, runs_max=1) as it:
        for _ in range(3):
            run = it.log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0)
            it.log.found(run, missing("x"))
            it.log.end(run, Result.DONE, now=1.0)
            it.log.flush()
        assert len(it.log.findings(run)) == 1
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT run FROM finding").fetchall() == [(run,)]


def test_findings_altogether_are_bounded_the_oldest_go_and_their_run_says_so(tmp_path: Path) -> None:
    with opened(tmp_path / "backup.db", findings_kept_max=4) as it:
        for _ in range(2):
            run = it.log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0)
            for number in range(3):
                it.log.found(run, missing(str(number)))
            it.log.end(run, Result.DONE, now=1.0)
            it.log.flush()
        assert [(entry.found, entry.found_kept) for entry in it.log.query()] == [(3, 1), (3, 3)]


CUT_OFF = """
import sys, time
from ha_sync.core.examine import Fault, Finding, Side
from ha_sync.logs.runs import Kind, Result, RunLog, Trigger
log = RunLog(sys.argv[1], report=lambda *event: None)
done = log.begin(Kind.EXPORT, Trigger.MANUAL, now=0.0)
log.end(done, Result.DONE, now=1.0)
run = log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0, peer="n-2")
log.found(run, Finding(dataset="files", subject="a", fault=Fault.MISSING, side=Side.STANDBY))
assert log.flush()
print(run, flush=True)
time.sleep(600)
"""


def test_a_run_cut_off_by_a_kill_is_closed_as_interrupted_at_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "backup.db"
    with subprocess.Popen([sys.executable, "-c", CUT_OFF, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    with opened(path) as it:
        done, cut_off = it.log.query()
        assert done.result is Result.DONE
        assert (cut_off.id, cut_off.result, cut_off.took_s) == (run, Result.INTERRUPTED, None)
        assert (cut_off.found, cut_off.found_kept, cut_off.error) == (1, 1, "the engine ended in the middle")
        assert it.events == [
            ("warning", "a run was cut off by the end of the engine", {"run": run, "kind": "full-backup"})
        ]
    with opened(path) as again:
        assert [entry.result for entry in again.log.query()] == [Result.DONE, Result.INTERRUPTED]
        assert again.events == []


def test_a_run_that_began_on_a_disk_that_took_nothing_is_written_whole_at_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.write_text("in the way")
    with opened(folder / "backup.db") as it:
        run = it.log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0, peer="n-2")
        it.log.flush()
        folder.unlink()
        it.log.end(run, Result.DONE, now=3.0)
        (entry,) = it.log.query()
        assert (entry.id, entry.peer, entry.result, entry.took_s) == (run, "n-2", Result.DONE, 3.0)
        assert [what for _, what, _ in it.events] == ["a log of runs could not be written"]


def test_a_damaged_log_is_set_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "backup.db"
    path.write_bytes(b"not a database, for long enough to be read as one" * 100)
    with opened(path) as it:
        run = it.backup()
        assert [entry.id for entry in it.log.query()] == [run]
        ((severity, what, fields),) = it.events
    assert (severity, what) == ("error", "a log of runs was damaged and set aside")
    assert Path(str(fields["kept_as"])).read_bytes().startswith(b"not a database")


def test_the_last_time_of_equality_is_kept_by_dataset_whatever_becomes_of_the_runs(tmp_path: Path) -> None:
    path = tmp_path / "backup.db"
    with opened(path, runs_max=1) as it:
        assert it.log.last_equal(CDR) is None
        for unix_s in (100.0, 200.0):
            run = it.log.begin(Kind.FULL_BACKUP, Trigger.SCHEDULE, now=0.0)
            it.log.equal(run, CDR, unix_s)
            it.log.end(run, Result.DONE, now=1.0)
        it.backup()
    with opened(path) as it:
        assert (it.log.last_equal(CDR), it.log.last_equal(FILES)) == (200.0, None)


async def test_a_follower_sees_a_run_begin_and_end(tmp_path: Path) -> None:
    with opened(tmp_path / "backup.db") as it:
        it.backup()
        (before,) = await asyncio.to_thread(it.log.query)
        async with contextlib.aclosing(it.log.follow(after_revision=before.revision)) as entries:
            run = it.log.begin(Kind.EXPORT, Trigger.MANUAL, now=0.0)
            begun = await anext(entries)
            it.log.end(run, Result.REFUSED, now=1.0)
            ended = await anext(entries)
    assert (begun.id, begun.result) == (run, Result.RUNNING)
    assert (ended.id, ended.result) == (run, Result.REFUSED)


def test_a_run_that_was_begun_is_ended_once(tmp_path: Path) -> None:
    with opened(tmp_path / "backup.db") as it:
        run = it.log.begin(Kind.EXPORT, Trigger.MANUAL, now=0.0)
        it.log.end(run, Result.CANCELLED, now=1.0)
        with pytest.raises(KeyError):
            it.log.end(run, Result.DONE, now=2.0)
