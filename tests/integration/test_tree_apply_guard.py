"""Local tampering with a Standby's tree is undone and told; what is the node's own is left alone."""

from __future__ import annotations

# ruff: noqa: ASYNC240 - the tests look at small files while nothing else runs
import os
from pathlib import Path

import pytest

from ha_sync.core.position import Answer
from tests.support.tree_apply_feed import (
    Standby,
    delete,
    directory,
    grow,
    put,
    settings,
    standby,
    tree_of,
)

pytestmark = pytest.mark.req("R15")


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def catalogue(tmp_path: Path) -> str:
    return str(tmp_path / "catalogue.db")


async def guarded(root: str, catalogue: str, **more: object) -> Standby:
    node = await standby(settings(root, **more), catalogue)
    await node.group(directory(b"d"), put(b"d/x", b"one"), put(b"y", b"two"))
    return node


def told(node: Standby) -> list[str]:
    return [what for severity, what, _ in node.events if severity == "warning"]


async def test_a_changed_file_is_asked_for_and_comes_back(root: str, catalogue: str) -> None:
    node = await guarded(root, catalogue)
    Path(root, "d/x").write_text("tampered")
    await node.until(lambda: node.needs == [b"d/x"])
    assert node.events[0][2]["write_to"] == "192.0.2.1"
    await node.begin()  # the stream was lost meanwhile: it is asked for again
    assert node.needs == [b"d/x", b"d/x"]
    await node.group(put(b"d/x", b"one"))
    assert tree_of(root)["d/x"] == ("file", 0o644, b"one")
    await node.until(lambda: dict(node.sink.report().counts)["wanted"] == 0)
    await node.sink.close()


async def test_a_deleted_directory_is_asked_for_with_all_below(root: str, catalogue: str) -> None:
    node = await guarded(root, catalogue)
    os.unlink(f"{root}/d/x")
    os.rmdir(f"{root}/d")
    await node.until(lambda: set(node.needs) >= {b"d", b"d/x"})
    await node.group(directory(b"d"), put(b"d/x", b"one"))
    assert tree_of(root)["d/x"] == ("file", 0o644, b"one")
    await node.sink.close()


async def test_a_stranger_goes_to_the_trash(root: str, catalogue: str) -> None:
    node = await guarded(root, catalogue)
    before = tree_of(root)
    Path(root, "d/stranger").write_text("local")
    await node.until(lambda: len(told(node)) == 1)
    assert tree_of(root) == before
    assert any(name.endswith("-stranger") for name in os.listdir(f"{root}/.ha-trash"))
    await node.sink.close()


async def test_changed_metadata_is_put_back_without_asking(root: str, catalogue: str) -> None:
    node = await guarded(root, catalogue)
    before = tree_of(root)
    times = os.stat(f"{root}/y").st_mtime_ns
    os.chmod(f"{root}/y", 0o600)
    os.utime(f"{root}/y", ns=(1, 1))
    os.chmod(f"{root}/d", 0o700)
    await node.until(lambda: told(node) == ["changed metadata was put back"] * 2)
    assert tree_of(root) == before
    assert os.stat(f"{root}/y").st_mtime_ns == times
    assert node.needs == []
    await node.sink.close()


async def test_what_was_changed_while_nobody_looked_is_found_at_the_start(root: str, catalogue: str) -> None:
    node = await guarded(root, catalogue)
    await node.sink.close()
    Path(root, "y").write_text("tampered")
    Path(root, "new").mkdir()
    Path(root, "new/z").write_text("local")
    node = await standby(settings(root), catalogue)
    await node.until(lambda: node.needs == [b"y"] and len(told(node)) == 2)
    assert "new" not in tree_of(root)
    await node.sink.close()


async def test_our_own_work_is_not_tampering(root: str, catalogue: str) -> None:
    node = await guarded(root, catalogue, growing=True)
    for number in range(100):
        name = b"d/f%d" % number
        await node.send(grow(name + b".wav", 0, b"x" * 100), put(name, b"1" * number))
        await node.send(put(name + b".wav", b"y" * 100))
        if number % 2:
            await node.send(delete(name))
    await node.until(lambda: node.sink.applied.sequence == node.sequence)
    Path(root, "d/stranger").write_text("the last event: all others were looked at when it is told")
    await node.until(lambda: bool(told(node)))
    assert [fields["path"] for _, _, fields in node.events] == ["d/stranger"]
    assert node.needs == []
    await node.sink.close()


async def test_the_nodes_own_files_are_left_alone(root: str, catalogue: str) -> None:
    node = await guarded(root, catalogue, node_local=("own",), exclude=("d/*.tmp",), mailboxes=True)
    Path(root, "own").write_text("mine")
    Path(root, "d/a.tmp").write_text("mine")
    Path(root, "d/.lock").write_text("")
    Path(root, "d/stranger").write_text("")
    await node.until(lambda: bool(told(node)))
    assert {"own", "d/a.tmp", "d/.lock"} <= set(tree_of(root))
    assert "d/stranger" not in tree_of(root)
    assert {b"own", b"d/a.tmp", b"d/.lock"}.isdisjoint(await node.inventory())
    await node.sink.close()


async def test_data_that_was_never_replicated_is_not_taken_for_tampering(root: str, catalogue: str) -> None:
    """After a switch the old Active's own records must survive until the compare decides."""
    node = await guarded(root, catalogue)
    await node.sink.promote()
    await node.sink.close()
    Path(root, "recorded-as-active").write_text("precious")
    node = await standby(settings(root), catalogue, begin=False)
    await node.begin(Answer.COMPARE)
    assert b"recorded-as-active" in await node.inventory()
    await node.group(put(b"z", b"3"), consistent=False)
    assert "recorded-as-active" in tree_of(root)
    assert told(node) == []
    await node.sink.close()


async def test_too_much_tampering_leads_to_a_compare(
    root: str, catalogue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ha_sync.apply.tree.guard.WANTED_MAX", 3)
    node = await guarded(root, catalogue)
    await node.group(*(put(b"f%d" % n, b"x") for n in range(10)))
    for n in range(10):
        os.unlink(f"{root}/f{n}")
    await node.until(lambda: bool(node.failures))
    assert node.sink.applied.sequence == 0
    await node.sink.close()
