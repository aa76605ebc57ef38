"""A copy beside a living write-ahead log, with the program's steps put between ours one by one: no races, no chance."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ha_sync.database import lockfree
from ha_sync.database.live_log import INDEX_BYTES, LiveLog, LogIndex, parse_index
from ha_sync.database.lockfree import Copy, LockFreeReader, Refusal, Rejected, Unchanged
from tests.support.log_program import LogProgram
from tests.support.pages_random_writer import broken

PLACES = (
    "before the log is opened",
    "before index 1",
    "before piece 1 of the file",
    "before piece 2 of the file",
    "before index 2",
    "before the frames",
    "after some frames",
    "before index 3",
    "before the names",
)

EVENTS = {
    "commits": ("commit", "commit"),
    "rolls back": ("rollback",),
    "commits and checkpoints": ("commit", "checkpoint"),
    "has a transaction open, which it commits later": ("begin",),
    "begins the log anew": ("restart", "commit"),
    "begins the log anew and checkpoints": ("restart", "commit", "commit", "checkpoint"),
    "begins the log anew twice": ("restart", "commit", "restart", "commit", "checkpoint"),
    "truncates the log": ("truncate",),
    "truncates the log and fills it": ("truncate", "commit", "checkpoint"),
    "shrinks the database": ("shrink", "checkpoint"),
    "closes": ("close",),
    "closes and comes back": ("close", "open", "commit", "checkpoint"),
    "dies and comes back": ("die", "open", "commit", "checkpoint"),
    "does without a log": ("no_log", "commit"),
}


class Schedule:
    """Calls ``event`` when the reader comes to ``place``, once."""

    def __init__(self) -> None:
        self.place = ""
        self.event: Callable[[], None] = lambda: None
        self.met: list[str] = []
        self.counts: dict[str, int] = {}

    def arm(self, place: str, event: Callable[[], None]) -> None:
        self.place, self.event = place, event
        self.counts = {}
        self.met = []

    def come_to(self, place: str) -> None:
        self.met.append(place)
        if place == self.place:
            self.place = ""
            self.event()

    def nth(self, what: str) -> int:
        self.counts[what] = self.counts.get(what, 0) + 1
        return self.counts[what]


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> Schedule:
    schedule = Schedule()

    class Stepped(LiveLog):
        def __init__(self, path: str) -> None:
            schedule.come_to("before the log is opened")
            super().__init__(path)

        def index(self, since: LogIndex | None = None) -> LogIndex:
            schedule.come_to(f"before index {schedule.nth('index')}")
            return super().index(since)

        def lay_over(self, index: LogIndex, put: Callable[[int, memoryview], object]) -> None:
            schedule.come_to("before the frames")

            def putting(offset: int, page: memoryview) -> None:
                put(offset, page)
                if schedule.nth("frame") == 2:
                    schedule.come_to("after some frames")

            super().lay_over(index, putting)

        def require_same_files(self) -> None:
            schedule.come_to("before the names")
            super().require_same_files()

    read = lockfree._read_exactly

    def reading(fd: int, view: memoryview, offset: int) -> None:
        schedule.come_to(f"before piece {schedule.nth('piece')} of the file")
        read(fd, view, offset)

    monkeypatch.setattr(lockfree, "LiveLog", Stepped)
    monkeypatch.setattr(lockfree, "_read_exactly", reading)
    monkeypatch.setattr(lockfree, "READ_BYTES", 32 * 1024)
    return schedule


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def reader(path: Path) -> Iterator[LockFreeReader]:
    reader = LockFreeReader(str(path))
    yield reader
    reader.close()


def number_in(found: Copy | Rejected | Unchanged) -> int:
    assert isinstance(found, Copy), found
    assert found.image is not None
    return number_of_image(found.image)


def number_of_image(image: bytes) -> int:
    plain = bytearray(image)
    plain[18:20] = b"\x01\x01"
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(bytes(plain))
        assert broken(db) == ""
        return int(db.execute("SELECT number FROM meta").fetchone()[0])


def begun(program: LogProgram) -> None:
    """Several commits, of which the file has some."""
    program.do("open", "commit", "commit", "commit", "checkpoint", "commit", "commit")


def commits_of(event: tuple[str, ...]) -> int:
    return sum(step in {"commit", "shrink"} for step in event)


@pytest.mark.req("R22", "R25")
@pytest.mark.parametrize("what", EVENTS)
def test_wherever_a_step_of_the_program_falls_a_copy_is_one_state_and_no_older_one(
    path: Path, schedule: Schedule, what: str
) -> None:
    event = EVENTS[what]
    for place in PLACES:
        for name in ("", "-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        reader = LockFreeReader(str(path))
        with LogProgram(path) as program:
            begun(program)
            assert number_in(reader.attempt(whole=True)) == 5
            schedule.arm(place, lambda: program.do(*event))
            found = reader.attempt(whole=True)
            assert place in schedule.met
            after = 5 + commits_of(event)
            if not isinstance(found, Rejected):
                assert 5 <= number_in(found) <= after, place
            if event == ("begin",):
                program.do("end")
                after += 1
            schedule.arm("", lambda: None)
            assert number_in(reader.attempt(whole=True, patient=False)) == after, place
        reader.close()


@pytest.mark.req("R25")
@pytest.mark.parametrize("place", PLACES)
def test_a_program_that_closes_while_it_is_read_puts_its_log_away_as_ever(
    path: Path, reader: LockFreeReader, schedule: Schedule, place: str
) -> None:
    """SQLite before 3.50 may write a log that nobody can read by its checksums: left behind, it would be lost."""
    with LogProgram(path) as program:
        begun(program)
        log = Path(f"{path}-wal")
        with open(log, "r+b") as file:
            file.seek(32 + 16)
            file.write(bytes(8))  # the first frame's checksum: living programs do not look at it
        schedule.arm(place, lambda: program.do("close"))
        found = reader.attempt(whole=True)
        assert place in schedule.met
        if not isinstance(found, Rejected):
            assert number_in(found) == 5
        assert not log.exists()
        assert number_in(reader.attempt(whole=True)) == 5
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT number FROM meta").fetchone() == (5,)


@pytest.mark.req("R25")
def test_a_look_beside_a_log_leaves_no_file_and_does_not_keep_the_program_from_anything(
    path: Path, reader: LockFreeReader, schedule: Schedule
) -> None:
    with LogProgram(path) as program:
        begun(program)
        files = sorted(entry.name for entry in path.parent.iterdir())
        size = Path(f"{path}-wal").stat().st_size
        # A reader's mark would keep the log from being emptied.
        schedule.arm("before the frames", lambda: program.do("truncate"))
        reader.attempt()
        assert size > 0
        assert Path(f"{path}-wal").stat().st_size == 0
        assert sorted(entry.name for entry in path.parent.iterdir()) == files


@pytest.mark.req("R22")
def test_a_snapshot_beside_a_log_is_a_database_of_its_own(path: Path, reader: LockFreeReader, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.db"
    with LogProgram(path) as program:
        begun(program)
        program.do("shrink", "commit")
        found = reader.snapshot_to(str(target), within_s=5)
        assert isinstance(found, Copy)
        assert number_of_image(target.read_bytes()) == 7
        whole = reader.attempt(whole=True)
        assert isinstance(whole, Copy)
        assert whole.image == target.read_bytes()
        assert found.size == whole.size == target.stat().st_size


def test_what_nobody_committed_is_not_read_again(path: Path, reader: LockFreeReader, schedule: Schedule) -> None:
    with LogProgram(path) as program:
        begun(program)
        assert number_in(reader.attempt(whole=True, skip_unchanged=True)) == 5
        schedule.arm("", lambda: None)
        assert reader.attempt(skip_unchanged=True) == Unchanged()
        assert "before piece 1 of the file" not in schedule.met
        program.do("rollback")
        schedule.arm("", lambda: None)
        assert reader.attempt(skip_unchanged=True) == Unchanged()
        program.do("commit")
        schedule.arm("", lambda: None)
        assert number_in(reader.attempt(whole=True, skip_unchanged=True)) == 6


def test_a_transaction_that_is_still_to_be_committed_asks_for_another_look(path: Path, reader: LockFreeReader) -> None:
    with LogProgram(path) as program:
        begun(program)
        program.do("begin")
        copy = reader.attempt(whole=True)
        assert number_in(copy) == 5
        assert isinstance(copy, Copy)
        assert copy.look_again
        assert reader.attempt(skip_unchanged=True) == Unchanged(look_again=True)
        program.do("end")
        copy = reader.attempt(whole=True, skip_unchanged=True)
        assert number_in(copy) == 6
        assert isinstance(copy, Copy)
        assert not copy.look_again


def test_a_database_that_grew_in_its_log_beyond_the_bound_is_refused(path: Path) -> None:
    with LogProgram(path) as program:
        program.do("open", "truncate")
        reader = LockFreeReader(str(path), bytes_max=path.stat().st_size)
        assert isinstance(reader.attempt(), Copy)
        program.do(*["commit"] * 20)
        found = reader.attempt()
        assert isinstance(found, Rejected)
        assert found.why is Refusal.TOO_LARGE
        reader.close()


def test_an_index_that_is_being_written_says_nothing(path: Path) -> None:
    with LogProgram(path) as program:
        begun(program)
        data = Path(f"{path}-shm").read_bytes()[: 2 * INDEX_BYTES]
        assert parse_index(data) is not None
        for at in range(2 * INDEX_BYTES):
            torn = bytearray(data)
            torn[at] ^= 1
            assert parse_index(bytes(torn)) is None, at
            both = bytearray(data)
            both[at % INDEX_BYTES] ^= 1
            both[at % INDEX_BYTES + INDEX_BYTES] ^= 1
            assert parse_index(bytes(both)) is None, at
        assert parse_index(data[:-1]) is None
        assert parse_index(bytes(2 * INDEX_BYTES)) is None
