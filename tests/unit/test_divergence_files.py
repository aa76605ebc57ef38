"""Files and messages of an archive: saved by what differs, merged by what they are, under the PBX's own lock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ha_sync.catalogue.tree import TreeCatalogue
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.divergence import mailbox_lock
from ha_sync.divergence.archive import CONTENTS, FILES
from ha_sync.divergence.mailbox_lock import locked, release_left
from ha_sync.divergence.merging_tree import TreeMerge
from ha_sync.divergence.outcome import Outcome
from ha_sync.divergence.placing import FOLDER, Placing
from ha_sync.divergence.saving_tree import TakenFiles, take_tree
from ha_sync.divergence.tree_index import Action, Object, TreeIndex, content_path
from ha_sync.errors import OperatorNeeded, ProtocolFault, WrongState
from ha_sync.files.blocks import content_of
from ha_sync.files.confine import Root

BOX = "default/100/INBOX"
TEXT = "[message]\nmsg_id={}\norigtime=1\ncallerid=x\n"


def settings_of(path: Path, **more: object) -> TreeSettings:
    return TreeSettings(name=DatasetName("t"), path=str(path), priority=Priority.VOICEMAIL, **more)


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def message(root: Path, number: int, name: str, sound: bytes, *, folder: str = BOX, text: bool = True) -> None:
    put(root / folder / f"msg{number:04d}.wav", sound)
    if text:
        put(root / folder / f"msg{number:04d}.txt", TEXT.format(name))


def saved(settings: TreeSettings, into: Path, *, room: int = 1 << 30) -> TakenFiles:
    into.mkdir(exist_ok=True)
    left = [room]

    def takes(size: int) -> bool:
        left[0] -= size
        return left[0] >= 0

    return take_tree(
        settings,
        catalogue_path=f"{into}/state/catalogue.db",
        index_path=f"{into}/{FILES}",
        contents=f"{into}/{CONTENTS}",
        room=takes,
        goes_on=lambda: None,
    )


def merged(settings: TreeSettings, archive: Path) -> Outcome:
    merge = TreeMerge(settings, f"{archive}/{FILES}", note=f"{archive}/note")
    try:
        for unit in merge.units():
            paths = {item.number: content_path(f"{archive}/{CONTENTS}", item.number) for item in unit.files}
            merge.place(unit, paths)
    finally:
        merge.close()
    return merge.outcome


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.req("R13")
def test_a_name_that_another_content_has_gets_one_beside_it(nodes, tmp_path):
    a, b = nodes
    put(a / "x/call.wav", b"from a")
    put(a / "same", b"same")
    put(b / "x/call.wav", b"from b")
    put(b / "same", b"same")
    saved(settings_of(a), tmp_path / "archive")
    outcome = merged(settings_of(b), tmp_path / "archive")
    assert (outcome.added, outcome.present, outcome.left) == (1, 1, 0)
    digits = content_of(b"from a").hash.hex()[:8]
    assert tree(b) == {"same": b"same", "x/call.wav": b"from b", f"x/call-{digits}.wav": b"from a"}
    assert merged(settings_of(b), tmp_path / "archive").added == 0
    assert not (b / os.fsdecode(FOLDER)).exists()


@pytest.mark.req("R13", "R25")
def test_messages_are_known_by_what_they_are_in_any_folder_and_number(nodes, tmp_path):
    a, b = nodes
    settings, there = settings_of(a, mailboxes=True), settings_of(b, mailboxes=True)
    message(a, 0, "moved", b"one")
    message(a, 1, "new", b"two")
    message(a, 2, "moved", b"other sound")  # a forward keeps the msg_id
    message(b, 0, "here", b"zero")
    message(b, 0, "moved", b"one", folder="default/100/Old")
    saved(settings, tmp_path / "archive")
    outcome = merged(there, tmp_path / "archive")
    assert (outcome.added, outcome.present, outcome.left) == (2, 1, 0)
    found = tree(b)
    assert [found[f"{BOX}/msg000{number}.wav"] for number in range(3)] == [b"zero", b"two", b"other sound"]
    assert sorted(path for path in found if path.startswith(BOX)) == sorted(
        f"{BOX}/msg000{number}.{extension}" for number in range(3) for extension in ("txt", "wav")
    )
    assert merged(there, tmp_path / "archive").added == 0


@pytest.mark.req("R13", "R25")
def test_what_is_no_whole_message_and_what_belongs_to_the_owner_is_left(nodes, tmp_path):
    a, b = nodes
    settings, there = settings_of(a, mailboxes=True), settings_of(b, mailboxes=True)
    message(a, 0, "half", b"one", text=False)
    put(a / "default/100/secret.conf", b"password=1")
    put(b / "default/100/secret.conf", b"password=2")
    put(a / "default/100/unavail.wav", b"greeting")
    put(a / "default/100/tmp/abc.wav", b"worthless")
    put(a / BOX / ".lock", b"")
    saved(settings, tmp_path / "archive")
    outcome = merged(there, tmp_path / "archive")
    assert (outcome.added, outcome.left) == (1, 2)
    assert tree(b) == {"default/100/secret.conf": b"password=2", "default/100/unavail.wav": b"greeting"}


@pytest.mark.req("R13", "R26")
def test_call_files_are_never_handed_over(nodes, tmp_path):
    a, b = nodes
    put(a / "outgoing/call", b"dial")
    saved(settings_of(a), tmp_path / "archive")
    outcome = merged(settings_of(b, hold=("outgoing/*",)), tmp_path / "archive")
    assert (outcome.added, outcome.left) == (0, 1)
    assert tree(b) == {}


@pytest.mark.req("R13", "R26")
def test_an_interrupted_recording_is_saved_so_that_it_plays(nodes, tmp_path):
    a, b = nodes
    header = b"RIFF" + bytes(4) + b"WAVEfmt " + (16).to_bytes(4, "little") + bytes(12) + b"\2\0\x10\0data" + bytes(4)
    put(a / "call.wav", header + b"x" * 1000)
    saved(settings_of(a), tmp_path / "archive")
    with TreeIndex(f"{tmp_path}/archive/{FILES}") as index:
        (item,) = list(index.objects())
    assert item.header == header
    merged(settings_of(b), tmp_path / "archive")
    assert (b / "call.wav").read_bytes()[40:44] == (1000).to_bytes(4, "little")
    assert (a / "call.wav").read_bytes()[40:44] == bytes(4)


@pytest.mark.req("R13")
def test_only_what_the_peer_did_not_acknowledge_is_saved(nodes, tmp_path):
    a, _ = nodes
    put(a / "known", b"1")
    put(a / "changed", b"1")
    put(a / "gone", b"1")
    (tmp_path / "archive").mkdir()
    catalogue = TreeCatalogue(f"{tmp_path}/archive/state/catalogue.db")
    for name in ("known", "changed", "gone"):
        catalogue.put_entries([entry_of(a, name)])
    catalogue.close()
    (a / "changed").write_bytes(b"2")
    (a / "gone").unlink()
    os.chmod(a / "known", 0o600 if (a / "known").stat().st_mode & 0o777 != 0o600 else 0o644)
    found = saved(settings_of(a), tmp_path / "archive")
    with TreeIndex(f"{tmp_path}/archive/{FILES}") as index:
        actions = {item.path: item.action for item in index.objects()}
    assert actions == {b"changed": Action.PUT, b"gone": Action.GONE, b"known": Action.META}
    assert (found.files, found.gone) == (1, 1)


def entry_of(root: Path, name: str):
    from ha_sync.catalogue.tree import TYPE_FILE, Entry, Witness

    status = (root / name).stat()
    content = content_of((root / name).read_bytes())
    return Entry(
        path=name.encode(),
        type=TYPE_FILE,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=content.size,
        hash=content.hash,
        block_size=content.block_size,
        witness=Witness(inode=status.st_ino, ctime_ns=status.st_ctime_ns),
    )


@pytest.mark.req("R13")
def test_what_has_no_room_is_named(nodes, tmp_path):
    a, _ = nodes
    put(a / "1", b"x" * 100)
    put(a / "2", b"x" * 100)
    found = saved(settings_of(a), tmp_path / "archive", room=150)
    assert (found.files, found.left_out_count, found.left_out) == (1, 1, ["2: no room for 100 bytes"])


@pytest.mark.req("R13")
def test_another_directory_at_the_path_is_not_taken_for_an_emptied_one(nodes, tmp_path):
    a, _ = nodes
    put(a / "f", b"1")
    (tmp_path / "archive").mkdir()
    catalogue = TreeCatalogue(f"{tmp_path}/archive/state/catalogue.db")
    catalogue.put_entries([entry_of(a, "f")])
    catalogue.put("root_identity", "abc")
    catalogue.close()
    (a / "f").unlink()
    with pytest.raises(OperatorNeeded, match="marker"):
        saved(settings_of(a), tmp_path / "archive")


# ---- hostile archives


@pytest.mark.req("R13")
@pytest.mark.parametrize("path", [b"../out", b"/etc/x", b"a/../../x", b"a//b"])
def test_a_path_that_leads_elsewhere_is_refused(nodes, tmp_path, path):
    _, b = nodes
    put(tmp_path / "archive" / CONTENTS / "0" / "1", b"evil")
    content = content_of(b"evil")
    with TreeIndex(f"{tmp_path}/archive/{FILES}", create=True) as index:
        index.add(Object(number=1, path=path, action=Action.PUT, type=1, size=4, hash=content.hash, kept=True))
    with pytest.raises(ProtocolFault):
        merged(settings_of(b), tmp_path / "archive")
    assert tree(b) == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.req("R13")
def test_a_content_that_is_not_what_the_index_says_is_refused(nodes, tmp_path):
    a, b = nodes
    put(a / "f", b"right")
    saved(settings_of(a), tmp_path / "archive")
    put(tmp_path / "archive" / CONTENTS / "0" / "1", b"wrong")
    with pytest.raises(ProtocolFault, match="hash"):
        merged(settings_of(b), tmp_path / "archive")
    assert tree(b) == {}


@pytest.mark.req("R13")
def test_an_index_of_another_shape_is_refused(nodes, tmp_path):
    _, b = nodes
    put(tmp_path / "archive" / FILES, b"no database")
    with pytest.raises(ProtocolFault):
        merged(settings_of(b), tmp_path / "archive")


# ---- the lock


@pytest.mark.req("R25")
def test_the_lock_is_the_pbxs_own_and_is_given_back(nodes, tmp_path):
    a, _ = nodes
    (a / BOX).mkdir(parents=True)
    root = Root(str(a))
    with locked(root, BOX.encode(), note=f"{tmp_path}/note", text=1, sounds=()):
        assert os.listdir(a / BOX) == [".lock"]
        assert (tmp_path / "note").exists()
    assert os.listdir(a / BOX) == []
    assert not (tmp_path / "note").exists()
    root.close()


@pytest.mark.req("R25")
def test_a_lock_of_the_pbx_puts_the_merge_off_and_stays(nodes, tmp_path, monkeypatch):
    a, _ = nodes
    put(a / BOX / ".lock", b"")
    monkeypatch.setattr(mailbox_lock, "WAIT_S", 0.0)
    root = Root(str(a))
    with (
        pytest.raises(WrongState, match="locked"),
        locked(root, BOX.encode(), note=f"{tmp_path}/note", text=1, sounds=()),
    ):
        pass
    assert os.listdir(a / BOX) == [".lock"]
    root.close()


@pytest.mark.req("R25")
@pytest.mark.parametrize("finished", [False, True])
def test_a_lock_that_a_crash_left_goes_with_the_sound_without_its_text(nodes, tmp_path, finished):
    a, _ = nodes
    message(a, 0, "old", b"old")
    message(a, 1, "ours", b"ours", text=finished)
    put(a / BOX / ".lock", b"")
    inode = {name: (a / BOX / name).stat().st_ino for name in os.listdir(a / BOX)}
    text = inode.get("msg0001.txt", 1)
    kept = {"folder": str(a / BOX), "own": ".lock-1", "inode": inode[".lock"], "text": text}
    (tmp_path / "note").write_text(json.dumps({**kept, "sounds": [inode["msg0001.wav"]]}))
    assert release_left(f"{tmp_path}/note") == str(a / BOX)
    ours = {"msg0001.txt", "msg0001.wav"} if finished else set()
    assert set(os.listdir(a / BOX)) == {"msg0000.txt", "msg0000.wav"} | ours
    assert release_left(f"{tmp_path}/note") == ""


@pytest.mark.req("R25")
def test_a_lock_that_is_somebody_elses_by_now_stays(nodes, tmp_path):
    a, _ = nodes
    put(a / BOX / ".lock", b"")
    inode = (a / BOX / ".lock").stat().st_ino
    kept = {"folder": str(a / BOX), "own": ".lock-1", "inode": inode + 1, "text": 1, "sounds": []}
    (tmp_path / "note").write_text(json.dumps(kept))
    release_left(f"{tmp_path}/note")
    assert os.listdir(a / BOX) == [".lock"]


@pytest.mark.req("R25")
def test_placing_never_replaces(nodes, tmp_path):
    _, b = nodes
    put(b / "taken", b"here")
    put(tmp_path / "content", b"new")
    item = Object(number=1, path=b"taken", action=Action.PUT, type=1, mode=0o640, hash=content_of(b"new").hash)
    placing = Placing(str(b))
    staged = placing.stage(f"{tmp_path}/content", item)
    assert not placing.publish(staged, b"taken")
    assert placing.publish(staged, b"folder/free")
    placing.close()
    assert tree(b) == {"taken": b"here", "folder/free": b"new"}
    assert (b / "folder/free").stat().st_mode & 0o777 == 0o640
