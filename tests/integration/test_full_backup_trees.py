"""The full backup of a tree, both ends in one process, the Standby's guard asleep: whatever was spoilt is found."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from ha_sync.backup.full import trees as trees_module
from ha_sync.backup.full.trees import TreeExaminer, TreeWitness
from ha_sync.core import compare as compare_module
from ha_sync.core.examine import Depth, Examined, Fault, Side
from ha_sync.errors import OperatorNeeded, Retryable
from tests.support.rows_examined import LocalPeer, LocalRun
from tests.support.tree_apply_feed import tree_of
from tests.support.tree_apply_pair import TreePair

# ruff: noqa: ASYNC230, ASYNC240 - small files of the test's own

pytestmark = pytest.mark.req("R23", "R13")

Told = set[tuple[str, Fault, Side, bool]]


class Backup:
    """Full backups of a pair."""

    def __init__(self, pair: TreePair) -> None:
        self.pair = pair
        self.peer = LocalPeer(TreeWitness(pair._settings(pair.standby)))  # type: ignore[arg-type]
        self.examiner = TreeExaminer(pair._settings(pair.active), pair.source)

    async def run(self, *, depth: Depth = Depth.CONTENT, cursor: bytes = b"") -> tuple[Examined, LocalRun]:
        run = LocalRun(SimpleNamespace(source=self.pair.source), depth=depth, cursor=cursor)  # type: ignore[arg-type]
        return await self.examiner.examine(self.peer, run), run

    async def told(self, *, depth: Depth = Depth.CONTENT) -> Told:
        return (await self.run(depth=depth))[1].told()


def furnish(root: str, count: int = 60) -> list[Path]:
    paths = [Path(root, f"d{number % 5}", f"f{number:03}") for number in range(count)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(4, "big") * 300)
    (Path(root, "d0") / "link").symlink_to("f000")
    (Path(root) / "empty").mkdir()
    return paths


@pytest.fixture
def small_ranges(monkeypatch):
    """So that a small tree has many."""
    for module, name, value in (
        (trees_module, "RANGE_OBJECTS", 7),
        (trees_module, "PLAIN_OBJECTS", 9),
        (trees_module, "ENTRIES_MAX", 4),
        (trees_module, "PATHS_MAX", 3),
        (compare_module, "RANGE_OBJECTS", 7),
    ):
        monkeypatch.setattr(module, name, value)


async def asleep(pair: TreePair) -> None:
    await pair.caught_up()
    guard = pair.sink._guard
    assert guard is not None
    guard.start = lambda: None  # type: ignore[method-assign]
    await guard.stop()


async def test_equal_trees_are_equal_and_every_object_is_looked_at_once(tmp_path: Path, small_ranges: None) -> None:
    async with TreePair(str(tmp_path), {}) as pair:
        furnish(pair.active)
        await asleep(pair)
        found, run = await Backup(pair).run()
        assert run.findings == []
        assert found.objects == run.objects == 60 + 5 + 1 + 1 + 1  # files, folders, link, empty, root
        assert found.content_bytes == 60 * 1200
        # From any cursor the rest, and nothing twice.
        for cursor in run.cursors[::3]:
            rest, again = await Backup(pair).run(cursor=cursor)
            assert again.findings == []
            assert rest.objects < found.objects


@pytest.mark.parametrize("depth", list(Depth))
async def test_each_kind_of_difference_is_named_and_repaired(tmp_path: Path, small_ranges: None, depth: Depth) -> None:
    async with TreePair(str(tmp_path), {}) as pair:
        furnish(pair.active)
        await asleep(pair)
        standby = Path(pair.standby)
        (standby / "d1/f001").write_bytes(b"other")
        (standby / "d2/f002").unlink()
        os.chmod(standby / "d3/f003", 0o640)
        (standby / "d4/new").write_bytes(b"surplus")
        (standby / "newdir/sub").mkdir(parents=True)
        (standby / "newdir/sub/x").write_bytes(b"surplus too")
        (standby / "d0/link").unlink()
        (standby / "d0/link").symlink_to("elsewhere")
        (standby / "empty").rmdir()
        (standby / "empty").write_bytes(b"a file where a folder was")
        os.utime(standby / "d3/f008", ns=(1, 1))
        backup = Backup(pair)
        told = await backup.told(depth=depth)
        moved = {"d1", "d2", "d3", "d4", "d0", "."}  # folders whose time moved with what happened in them
        assert {item for item in told if item[0] not in moved} == {
            ("d1/f001", Fault.CONTENT, Side.STANDBY, True),
            ("d2/f002", Fault.MISSING, Side.STANDBY, True),
            ("d3/f003", Fault.METADATA, Side.STANDBY, True),
            ("d4/new", Fault.SURPLUS, Side.STANDBY, True),
            ("newdir", Fault.SURPLUS, Side.STANDBY, True),
            ("newdir/sub", Fault.SURPLUS, Side.STANDBY, True),
            ("newdir/sub/x", Fault.SURPLUS, Side.STANDBY, True),
            ("d0/link", Fault.CONTENT, Side.STANDBY, True),
            ("empty", Fault.CONTENT, Side.STANDBY, True),
            ("d3/f008", Fault.METADATA, Side.STANDBY, True),
        }
        assert all(item[3] for item in told)
        assert tree_of(pair.standby) == tree_of(pair.active)
        assert await backup.told(depth=depth) == set()


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_was_spoilt_is_equal_afterwards(tmp_path: Path, small_ranges: None, seed: int) -> None:
    dice = random.Random(seed)
    async with TreePair(str(tmp_path), {}) as pair:
        paths = furnish(pair.active)
        await asleep(pair)
        for path in dice.sample(paths, 20):
            other = Path(pair.standby, path.relative_to(pair.active))
            match dice.randrange(4):
                case 0:
                    other.write_bytes(dice.randbytes(dice.randrange(3000)))
                case 1:
                    other.unlink(missing_ok=True)
                case 2:
                    other.with_name(f"x{dice.randrange(100)}").write_bytes(b"x")
                case 3:
                    other.chmod(dice.choice([0o600, 0o755]))
        backup = Backup(pair)
        found, run = await backup.run()
        assert found.repaired == found.differing
        assert all(finding.repaired for finding in run.findings)
        assert tree_of(pair.standby) == tree_of(pair.active)
        assert await backup.told() == set()


async def test_metadata_alone_is_sent_without_the_content(tmp_path: Path) -> None:
    async with TreePair(str(tmp_path), {}) as pair:
        Path(pair.active, "large").write_bytes(os.urandom(3_000_000))
        await asleep(pair)
        inode = os.stat(Path(pair.standby, "large")).st_ino
        os.chmod(Path(pair.standby, "large"), 0o600)
        assert await Backup(pair).told() == {("large", Fault.METADATA, Side.STANDBY, True)}
        assert os.stat(Path(pair.standby, "large")).st_ino == inode


async def test_what_keeps_changing_is_in_motion(tmp_path: Path) -> None:
    async with TreePair(str(tmp_path), {}) as pair:
        furnish(pair.active, 5)
        await asleep(pair)
        busy = Path(pair.active, "busy.log")
        with busy.open("wb", buffering=0) as file:
            file.write(b"begins\n")

            async def writes() -> None:
                while True:
                    file.write(b"a line\n")
                    await asyncio.sleep(0.001)

            writing = asyncio.create_task(writes())
            found, run = await Backup(pair).run()
            writing.cancel()
        assert run.findings == []
        assert found.differing == 0


async def test_excluded_and_held_paths_are_no_difference(tmp_path: Path) -> None:
    more = {"exclude": ("tmp",), "node_local": ("own/*",), "hold": ("calls/*",)}
    async with TreePair(str(tmp_path), more) as pair:
        for path in ("tmp/x", "own/y", "calls/one", "plain"):
            Path(pair.active, path).parent.mkdir(parents=True, exist_ok=True)
            Path(pair.active, path).write_text(path)
        await asleep(pair)
        Path(pair.standby, "own").mkdir(exist_ok=True)
        Path(pair.standby, "own/z").write_text("this node's")
        backup = Backup(pair)
        told = await backup.told()
        assert {item for item in told if item[0] not in {"own", "."}} == set()
        Path(pair.standby, ".ha-held/calls/one").write_text("spoilt")
        assert ("calls/one", Fault.CONTENT, Side.STANDBY, True) in await backup.told()
        assert Path(pair.standby, ".ha-held/calls/one").read_text() == "calls/one"


async def test_a_tree_that_a_guard_holds_back_is_not_compared(tmp_path: Path) -> None:
    async with TreePair(str(tmp_path), {}) as pair:
        paths = furnish(pair.active, 200)
        await asleep(pair)
        for path in paths:
            path.unlink()
        with pytest.raises(OperatorNeeded):
            await Backup(pair).run()
        assert len(list(Path(pair.standby).rglob("f*"))) == 200


async def test_a_thousand_strangers_on_the_standby_do_not_halt_the_active(tmp_path: Path) -> None:
    async with TreePair(str(tmp_path), {}) as pair:
        furnish(pair.active, 5)
        await asleep(pair)
        for number in range(1000):
            Path(pair.standby, f"stranger{number:04}").write_text("x")
        found, run = await Backup(pair).run()
        assert {finding.fault for finding in run.findings} - {Fault.METADATA} == {Fault.SURPLUS}
        assert found.repaired == found.differing >= 1000
        assert tree_of(pair.standby) == tree_of(pair.active)


async def test_a_root_that_is_not_there_is_tried_again_later(tmp_path: Path) -> None:
    async with TreePair(str(tmp_path), {}) as pair:
        furnish(pair.active, 3)
        await asleep(pair)
        os.rename(pair.active, f"{pair.active}.away")
        with pytest.raises((Retryable, OperatorNeeded)):
            await Backup(pair).run()
        os.rename(f"{pair.active}.away", pair.active)
