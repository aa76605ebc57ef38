"""A merge between nodes takes exactly what was announced, and the settings of it say what is wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ha_proto.sync.v1 import merge_pb2 as pb
from ha_sync.config import Merge, SqliteSettings, TreeSettings
from ha_sync.config.parse import settings_of
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.divergence.apart import run_apart
from ha_sync.divergence.child import settings_out
from ha_sync.divergence.merging import Merging
from ha_sync.divergence.saving_rows import take_everything
from ha_sync.divergence.tree_index import Action, Object
from ha_sync.errors import ConfigFault, PeerUnreachable, ProtocolFault, Refused, WrongState
from ha_sync.service.merging import PIECE_MAX, _Remote


class Call:
    """What the Active wrote."""

    def __init__(self) -> None:
        self.wanted: list[list[int]] = []

    async def write(self, answer: pb.MergeAnswer) -> None:
        self.wanted.append(list(answer.wanted.objects))


async def pieces(*items: pb.MergePiece) -> AsyncIterator[pb.MergeMessage]:
    for item in items:
        yield pb.MergeMessage(piece=item)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def piece(number: int, offset: int, data: bytes, *, last: bool = False) -> pb.MergePiece:
    return pb.MergePiece(object=number, offset=offset, data=data, last=last)


def remote(*items: pb.MergePiece, index_bytes: int = 4, call: Call | None = None) -> _Remote:
    begin = pb.MergeBegin(dataset="cdr", index_bytes=index_bytes)
    return _Remote(begin, pieces(*items), call or Call(), bytes_max=1000)


@pytest.mark.req("R13")
async def test_an_index_comes_in_order_and_whole(tmp_path: Path) -> None:
    call = Call()
    path = await remote(piece(0, 0, b"ab"), piece(0, 2, b"cd", last=True), call=call).index(str(tmp_path))
    assert content(path) == b"abcd"
    assert call.wanted == [[0]]


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    "items",
    [
        (piece(0, 1, b"abcd", last=True),),  # not from the beginning
        (piece(1, 0, b"abcd", last=True),),  # another object
        (piece(0, 0, b"abcde", last=True),),  # more than was announced
        (piece(0, 0, b"abc", last=True),),  # less
        (piece(0, 0, b"a" * (PIECE_MAX + 1), last=True),),
        (piece(0, 0, b"ab"), piece(0, 0, b"ab", last=True)),  # twice the same
    ],
)
async def test_what_does_not_fit_is_refused(tmp_path: Path, items: tuple[pb.MergePiece, ...]) -> None:
    with pytest.raises(ProtocolFault):
        await remote(*items).index(str(tmp_path))


@pytest.mark.req("R13")
async def test_a_call_that_ends_in_the_middle_is_said(tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachable):
        await remote(piece(0, 0, b"ab")).index(str(tmp_path))


@pytest.mark.req("R13")
async def test_an_index_beyond_the_bound_is_refused_before_anything_is_taken() -> None:
    with pytest.raises(Refused, match="max_mib"):
        remote(index_bytes=1001)


@pytest.mark.req("R13")
async def test_contents_are_those_that_were_asked_for(tmp_path: Path) -> None:
    items = tuple(Object(number=number, path=b"x", action=Action.PUT, size=2) for number in (3, 7))
    call = Call()
    got = await remote(piece(3, 0, b"33", last=True), piece(7, 0, b"77", last=True), call=call).contents(
        items, str(tmp_path)
    )
    assert {number: content(path) for number, path in got.items()} == {3: b"33", 7: b"77"}
    assert call.wanted == [[3, 7]]
    assert {os.path.dirname(path) for path in got.values()} == {str(tmp_path)}


# ---- settings


@pytest.mark.req("R13")
def test_the_settings_of_divergence() -> None:
    plain = settings_of({}, source="x").divergence
    assert (plain.merge, plain.max_mib) == (Merge.AUTO, 2048)
    given = settings_of({"divergence": {"merge": "manual", "max_mib": 5}}, source="x").divergence
    assert (given.merge, given.max_mib) == (Merge.MANUAL, 5)


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    ("values", "named"),
    [({"merge": "never"}, "merge"), ({"max_mib": 0}, "max_mib"), ({"max_gib": 1}, "max_gib")],
)
def test_a_fault_in_them_is_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigFault, match=named):
        settings_of({"divergence": values}, source="x")


# ---- a change of role


class Stuck:
    """An archive whose index never comes."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def index(self, folder: str) -> str:
        self.asked.set()
        await asyncio.Event().wait()
        return folder

    async def contents(self, items: tuple[Object, ...], folder: str) -> dict[int, str]:
        raise AssertionError((items, folder))


@pytest.mark.req("R25", "R13")
async def test_a_node_that_leaves_its_role_merges_nothing_any_more(tmp_path: Path) -> None:
    settings = TreeSettings(name=DatasetName("t"), path=str(tmp_path), priority=Priority.RECORDINGS)
    merging, source = Merging(str(tmp_path / "divergence")), Stuck()
    going = asyncio.ensure_future(merging.merge(settings, source, force=False))
    await source.asked.wait()
    await merging.leave()
    with pytest.raises(WrongState, match="role"):
        await going
    with pytest.raises(WrongState, match="role"):
        await merging.merge(settings, source, force=False)
    merging.arrive()
    source.asked.clear()
    again = asyncio.ensure_future(merging.merge(settings, source, force=False))
    await source.asked.wait()
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    assert os.listdir(tmp_path / "divergence") == []


@pytest.mark.req("R25")
def test_what_a_crash_left_of_a_merge_goes_at_the_next_start(tmp_path: Path) -> None:
    tree, folder = tmp_path / "tree", tmp_path / "divergence"
    (tree / ".ha-merge").mkdir(parents=True)
    (tree / ".ha-merge" / "1").write_bytes(b"staged")
    (tree / "kept").write_bytes(b"kept")
    (folder / ".staging-merge-t").mkdir(parents=True)
    (folder / "1" / "t").mkdir(parents=True)
    settings = TreeSettings(name=DatasetName("t"), path=str(tree), priority=Priority.RECORDINGS)
    assert Merging(str(folder)).recover((settings,)) == ""
    assert os.listdir(tree) == ["kept"]
    assert os.listdir(folder) == ["1"]


@pytest.mark.req("R25")
async def test_the_process_of_a_merge_ends_with_its_task(tmp_path: Path) -> None:
    """It waits for a lock that nobody gives back; its task is cancelled; it is gone when that returns."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    for path in (old, new):
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE cdr (id INTEGER PRIMARY KEY, u)")
            connection.execute("INSERT INTO cdr (u) VALUES (?)", (path.name,))
        connection.close()
    settings = SqliteSettings(
        name=DatasetName("cdr"), path=str(new), priority=Priority.CDR, writer_busy_timeout_ms=600_000
    )
    take_everything(settings, str(old), target=f"{tmp_path}/image", room=1 << 30)
    locker = sqlite3.connect(new, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    order = {"job": "merge", "settings": settings_out(settings), "image": f"{tmp_path}/image", "force": False}
    task = asyncio.ensure_future(run_apart(order))
    while not children():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children()
    locker.execute("ROLLBACK")
    assert locker.execute("SELECT u FROM cdr").fetchall() == [("new.db",)]
    locker.close()


def children() -> list[int]:
    """Processes of this one that merge."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        pids = [int(text) for text in file.read().split()]
    found = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"ha_sync.divergence.child" in file.read():
                found.append(pid)
    return found
