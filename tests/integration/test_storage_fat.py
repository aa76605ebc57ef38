"""A Standby whose storage is FAT, by the layer of the tests: what cannot lie there is told, the rest goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ha_sync.backup.full.looking import TreeLook
from ha_sync.catalogue.tree import key_of, path_of
from ha_sync.config import Medium, StorageSettings, TreeSettings
from ha_sync.core.compare import digest_of
from ha_sync.core.position import NOWHERE
from ha_sync.core.representation import common, holding_of
from tests.support import tree_apply_feed as feed
from tests.support.fat_layer import lay

pytestmark = pytest.mark.req("R9")

ODD_NS = 1_700_000_001_234_567_890


def fat(root: Path, **more: object) -> TreeSettings:
    return feed.settings(str(root), storage=StorageSettings(medium=Medium.USB), **more)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "usb0"
    made.mkdir()
    lay(monkeypatch, str(made))
    return made


async def test_what_fat_cannot_hold_is_left_out_and_told_and_the_rest_arrives(root: Path, tmp_path: Path) -> None:
    standby = await feed.standby(fat(root), str(tmp_path / "state" / "catalogue.db"))
    assert standby.sink.applied == NOWHERE
    await standby.group(
        feed.directory(b"Calls"),
        feed.put(b"Calls/good.wav", b"good", mtime_ns=ODD_NS),
        feed.put(b"Calls/12:30.wav", b"no colon"),
        feed.put(b"Calls/ends.", b"no dot"),
        feed.put(b"Calls/GOOD.WAV", b"another in capitals"),
        feed.directory(b"calls"),
        feed.put(b"calls/below.wav", b"below a name that folds"),
        feed.link(b"latest", b"Calls/good.wav"),
        feed.put(b"last.wav", b"last"),
    )
    assert standby.failures == []
    assert feed.tree_of(str(root)).keys() == {"Calls", "Calls/good.wav", "last.wav"}
    assert (root / "Calls" / "good.wav").read_bytes() == b"good"
    told = {fields["path"]: str(fields["reason"]) for _, what, fields in standby.events if "cannot lie" in what}
    assert told.keys() == {"Calls/12:30.wav", "Calls/ends.", "Calls/GOOD.WAV", "calls", "calls/below.wav", "latest"}
    assert "folds case" in told["Calls/GOOD.WAV"]
    assert dict(standby.sink.report().counts)["unrepresented"] == len(told)
    await standby.sink.close()


async def test_a_deletion_does_not_hit_the_other_name_that_is_one_where_case_is_folded(
    root: Path, tmp_path: Path
) -> None:
    standby = await feed.standby(fat(root), str(tmp_path / "state" / "catalogue.db"))
    await standby.group(feed.put(b"a.wav", b"kept"), feed.put(b"A.WAV", b"left out"))
    await standby.group(feed.delete(b"A.WAV"))
    assert (root / "a.wav").read_bytes() == b"kept"
    await standby.group(feed.delete(b"a.wav"))
    assert not (root / "a.wav").exists()
    await standby.sink.close()


async def test_the_guard_does_not_put_back_what_fat_cannot_keep(root: Path, tmp_path: Path) -> None:
    standby = await feed.standby(fat(root, reconcile_s=0.2), str(tmp_path / "state" / "catalogue.db"))
    await standby.group(
        feed.directory(b"d", mode=0o750, mtime_ns=ODD_NS), feed.put(b"d/f", b"x", mode=0o640, mtime_ns=ODD_NS)
    )
    # A stranger shows that the guard has looked.
    (root / "d" / "stranger").write_bytes(b"s")
    await standby.until(lambda: any("not the active's" in what for _, what, _ in standby.events))
    assert not [what for _, what, _ in standby.events if "put back" in what]
    assert standby.needs == []
    assert (root / "d" / "stranger").read_bytes() == b"s"
    await standby.sink.close()


def test_a_tree_and_its_copy_on_fat_are_told_the_same(root: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for place, exact in ((here, True), (root, False)):
        (place / "d").mkdir(parents=True)
        for number in range(4):
            path = place / "d" / f"f{number}"
            path.write_bytes(bytes(number))
            # The layer rounds what is set below the storage.
            time_ns = ODD_NS + number * 700_000_000
            os.utime(path, ns=(time_ns, time_ns if exact else time_ns - time_ns % 2_000_000_000))
    both = common(holding_of("ext4"), holding_of("vfat"))
    digests = []
    for place in (here, root):
        look = TreeLook(fat(place), standby=place == root)
        look.holding = both
        items = look.cut(None)
        assert [path_of(key) for key, _ in items if key != key_of(b"")] == [b"d", b"d/f0", b"d/f1", b"d/f2", b"d/f3"]
        digests.append((look.digest(items, content=False), digest_of(look.see(items, content=True))))
        look.close()
    assert digests[0] == digests[1]
