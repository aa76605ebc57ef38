# ruff: noqa: ASYNC230 - the tests are the other program, and it blocks
"""A tree on the Active, followed by a strict Standby in memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys

import pytest

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.capture.tree import reading
from ha_sync.core.dataset import DatasetState, Priority
from ha_sync.core.position import Answer
from ha_sync.files import watch
from tests.support.tree_capture_model import Model, Pair, settings_of

C = pb.TreeChange
BLOCK = 128 * 1024


def run(script: str, *arguments: object) -> None:
    """As another process."""
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)


def changes_of(pair: Pair, path: bytes) -> list[pb.TreeChange]:
    return [change for group in pair.model.groups for change in group if change.path == path]


@pytest.mark.req("R20")
async def test_what_is_there_and_what_is_written_later_reaches_the_standby(root, catalogue):
    (root / "sub").mkdir()
    (root / "sub" / "old.wav").write_bytes(os.urandom(300_000))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.consistent
        run("import sys; open(sys.argv[1], 'w').write('new')", root / "new.wav")
        await pair.until(lambda: b"new.wav" in pair.model.things)
        os.unlink(root / "sub" / "old.wav")
        (root / "sub" / "other").write_bytes(b"x" * 200_000)
        await pair.caught_up()
        pair.assert_equal()
        report = pair.source.report()
        assert report.state is DatasetState.STREAMING
        assert report.lag is not None
        assert report.lag.samples > 0


@pytest.mark.req("R22")
async def test_a_restart_resumes_and_sends_nothing_that_the_standby_has(root, catalogue):
    for number in range(50):
        (root / f"f{number}").write_bytes(os.urandom(5000))
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.caught_up()
    await asyncio.sleep(0.1)
    await pair.stop()
    (root / "while-away").write_bytes(b"new")
    sent = pair.model.payload_bytes
    again = await Pair(settings_of(root), catalogue, model=pair.model).start()
    await again.caught_up()
    assert again.answer is Answer.RESUME
    again.assert_equal()
    assert again.model.payload_bytes - sent < 5000
    await again.stop()


@pytest.mark.req("R22")
async def test_a_new_epoch_compares_and_sends_only_what_differs(root, catalogue, tmp_path):
    for number in range(200):
        (root / f"f{number:03}").write_bytes(os.urandom(3000))
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.caught_up()
    await pair.stop()
    model = pair.model
    stale = model.things.pop(b"f007")
    model.things[b"only-there"] = stale
    model.things[b"f008"] = stale
    model.payload_bytes = 0
    again = await Pair(settings_of(root), catalogue, model=model).start(epoch=4)
    await again.caught_up()
    assert again.answer is Answer.COMPARE
    again.assert_equal()
    assert model.payload_bytes < 10_000
    assert model.consistent
    await again.stop()


async def test_only_the_blocks_that_differ_go(root, catalogue):
    content = bytearray(os.urandom(10 * BLOCK))
    (root / "big").write_bytes(content)
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.model.payload_bytes = 0
        run("import sys; f = open(sys.argv[1], 'r+b'); f.seek(700000); f.write(b'changed')", root / "big")
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes == BLOCK


async def test_a_block_larger_than_a_frame_goes_in_pieces(root, catalogue, monkeypatch):
    # Files of more than two gigabytes have such blocks.
    monkeypatch.setattr(reading, "block_size_for", lambda size: 1024 * 1024)
    (root / "huge").write_bytes(os.urandom(3 * 1024 * 1024 + 700_001))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.assert_equal()


async def test_a_renamed_file_and_a_touched_file_send_no_content(root, catalogue):
    (root / "a").write_bytes(os.urandom(900_000))
    (root / "b").write_bytes(os.urandom(9000))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        await pair.until(lambda: not pair.source.worker.journal.in_flight)
        pair.model.payload_bytes = 0
        os.mkdir(root / "d")
        os.rename(root / "a", root / "d" / "renamed")
        os.utime(root / "b", ns=(5, 5))
        os.chmod(root / "b", 0o600)
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes == 0
        assert changes_of(pair, b"b")[-1].action == C.ACTION_META


async def test_holes_are_neither_read_nor_sent(root, catalogue):
    with open(root / "sparse", "wb") as file:
        file.truncate(200 * BLOCK)
        file.seek(50 * BLOCK)
        file.write(b"data")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes == BLOCK


@pytest.mark.req("R21")
async def test_a_recording_streams_while_it_grows_and_its_close_sends_the_header_and_the_tail(root, catalogue):
    async with Pair(settings_of(root, growing=True), catalogue) as pair:
        await pair.caught_up()
        with open(root / "call.wav", "wb", buffering=0) as file:
            file.write(bytes(44))
            for _ in range(40):
                file.write(os.urandom(32_768))
            await pair.until(lambda: len(pair.model.partials.get(b"call.wav", b"")) == 44 + 40 * 32_768)
            assert b"call.wav" not in pair.model.things
            pair.model.payload_bytes = 0
            file.write(os.urandom(1000))
            file.seek(4)
            file.write(b"\x01\x02\x03\x04")
        await pair.until(lambda: b"call.wav" in pair.model.things)
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes <= 2 * BLOCK + 2000
        assert pair.model.partials == {}


@pytest.mark.req("R20")
async def test_what_is_noticed_while_a_frame_is_being_sent_is_not_forgotten(root, catalogue):
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair._task.cancel()
        await asyncio.wait([pair._task])
        pair._task = None
        frames = pair.session.frames()
        (root / "first.wav").write_bytes(b"1")
        assert await anext(frames)
        (root / "second.wav").write_bytes(b"2")
        # Noticed, and the session was roused, before it is asked again.
        await pair.until(lambda: b"second.wav" in pair.source.worker.journal.live)
        await pair.source.run(lambda: None)
        async with asyncio.timeout(10):
            assert await anext(frames)
        await frames.aclose()


@pytest.mark.req("R20")
async def test_attributes_of_a_directory_that_changed_while_nobody_looked_are_found(root, catalogue):
    (root / "sub").mkdir()
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        model = pair.model
    os.setxattr(root / "sub", "user.note", b"changed")
    async with Pair(settings_of(root), catalogue, model=model) as pair:
        assert pair.answer is Answer.RESUME
        await pair.caught_up()
        pair.assert_equal()


@pytest.mark.req("R20")
async def test_what_was_changed_through_a_hard_link_in_a_directory_that_was_moved_in_is_found(
    root, catalogue, tmp_path
):
    (root / "f").write_text("before")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        (tmp_path / "aside").mkdir()
        os.link(root / "f", tmp_path / "aside" / "other")
        with open(tmp_path / "aside" / "other", "r+") as file:
            file.write("after!")
        os.rename(tmp_path / "aside", root / "moved-in")
        await pair.caught_up()
        pair.assert_equal()


@pytest.mark.req("R20")
@pytest.mark.parametrize("name", ["removed", "replaced"])
async def test_what_was_changed_through_a_hard_link_that_is_gone_is_found(root, catalogue, name):
    (root / "f").write_text("x")
    os.link(root / "f", root / "other")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        os.chmod(root / "other", 0o600)
        if name == "removed":
            os.unlink(root / "other")
        else:
            (root / "new").write_text("y")
            os.rename(root / "new", root / "other")
        await pair.caught_up()
        pair.assert_equal()


async def test_a_log_that_is_held_open_is_published_while_it_is_open(root, catalogue):
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        with open(root / "full.log", "wb", buffering=0) as file:
            file.write(b"one line\n")
            await pair.until(lambda: b"full.log" in pair.model.things and pair.model.things[b"full.log"].content != b"")


@pytest.mark.req("R20")
async def test_a_configuration_written_line_by_line_is_shipped_once_and_whole(root, catalogue):
    (root / "sip.conf").write_text("old\n")
    settings = settings_of(root, priority=Priority.CONFIG, quiet_ms=200)
    async with Pair(settings, catalogue) as pair:
        await pair.caught_up()
        seen = len(pair.model.groups)
        script = (
            "import sys\nfor name in ('sip.conf', 'extensions.conf'):\n"
            "  path = sys.argv[1] + '/' + name\n  open(path, 'w').close()\n"
            "  for n in range(30):\n    with open(path, 'a') as f: f.write(f'line {n}\\n')\n"
        )
        run(script, root)
        await pair.until(lambda: b"extensions.conf" in pair.model.things)
        groups = [g for g in pair.model.groups[seen:] if g]
        # The root goes along: that a file was made in it moved its time.
        assert [sorted(c.path for c in group) for group in groups] == [[b"", b"extensions.conf", b"sip.conf"]]
        assert pair.model.things[b""].mtime_ns == root.stat().st_mtime_ns
        pair.assert_equal()


def leave_message(folder: str, number: int, text: str) -> None:
    """As Asterisk does: link the lock, rename the audio in, the text last, unlink the lock."""
    open(f"{folder}/.lock-12ab", "w").close()
    os.link(f"{folder}/.lock-12ab", f"{folder}/.lock")
    os.unlink(f"{folder}/.lock-12ab")
    for suffix in ("wav", "txt"):
        with open(f"{folder}/../tmp/new.{suffix}", "w") as file:
            file.write(f"{text} {suffix}" * 400)
        os.rename(f"{folder}/../tmp/new.{suffix}", f"{folder}/msg{number:04}.{suffix}")
    os.unlink(f"{folder}/.lock")


@pytest.fixture
def mailbox(root):
    box = root / "default" / "100"
    for name in ("INBOX", "Old", "tmp"):
        (box / name).mkdir(parents=True)
    return box


@pytest.mark.req("R20", "R25")
async def test_a_mailbox_is_shipped_as_one_unit_with_its_text_last_and_no_locks(root, mailbox, catalogue):
    async with Pair(settings_of(root, mailboxes=True, priority=Priority.VOICEMAIL), catalogue) as pair:
        await pair.caught_up()
        for number in range(3):
            leave_message(str(mailbox / "INBOX"), number, f"message {number}")
        await pair.until(lambda: b"default/100/INBOX/msg0002.txt" in pair.model.things)
        for group in pair.model.groups:
            names = [c.path.rpartition(b"/")[2] for c in group if c.unit]
            assert names == sorted(names, key=lambda name: name.endswith(b".txt"))
            assert len({c.unit for c in group if c.unit}) <= 1
        assert not [p for p in pair.model.things if b"lock" in p or b"tmp" in p]


@pytest.mark.req("R20", "R25")
async def test_renames_under_the_lock_of_a_mailbox_never_mix_messages(root, mailbox, catalogue):
    inbox, old = mailbox / "INBOX", mailbox / "Old"
    for number in range(4):
        leave_message(str(inbox), number, f"message {number}")
    async with Pair(settings_of(root, mailboxes=True, priority=Priority.VOICEMAIL), catalogue) as pair:
        await pair.caught_up()
        seen = len(pair.model.groups)
        open(inbox / ".lock", "w").close()
        await asyncio.sleep(0)
        for suffix in ("txt", "wav"):
            shutil.copy(inbox / f"msg0001.{suffix}", old / f"msg0000.{suffix}")
        for number in (1, 2):
            for suffix in ("wav", "txt"):
                os.rename(inbox / f"msg{number + 1:04}.{suffix}", inbox / f"msg{number:04}.{suffix}")
            # Long enough for a look that must not happen.
            await asyncio.sleep(0.15)
        assert len([g for g in pair.model.groups[seen:] if any(c.unit for c in g)]) == 0
        os.unlink(inbox / ".lock")
        await pair.caught_up()
        skip = lambda path: b"tmp" in path or b"lock" in path  # noqa: E731
        pair.assert_equal(skip=skip)
        units = [g for g in pair.model.groups[seen:] if any(c.unit for c in g)]
        assert len(units) == 1
        assert {c.path.split(b"/")[2] for c in units[0] if c.unit} == {b"INBOX", b"Old"}


@pytest.mark.req("R5")
async def test_node_local_and_excluded_paths_and_special_files_are_not_captured(root, catalogue):
    (root / "keys").mkdir()
    (root / "keys" / "secret").write_text("mine")
    (root / "cache.tmp").write_text("x")
    (root / "kept").write_text("x")
    os.mkfifo(root / "pipe")
    settings = settings_of(root, exclude=("*.tmp",), node_local=("keys",))
    model = Model()
    async with Pair(settings, catalogue, model=model) as pair:
        await pair.caught_up()
        (root / "keys" / "more").write_text("mine")
        (root / "other.tmp").write_text("x")
        await pair.caught_up()
        assert set(model.things) == {b"", b"kept"}
        assert dict(pair.source.report().counts)["skipped_special"] == 1


async def test_a_standbys_own_node_local_files_are_not_deleted_by_a_compare(root, catalogue):
    first = await Pair(settings_of(root), catalogue).start()
    (root / "keys").mkdir()
    (root / "keys" / "secret").write_text("theirs")
    await first.caught_up()
    await first.stop()
    again = await Pair(settings_of(root, node_local=("keys",)), catalogue, model=first.model).start(epoch=4)
    await again.caught_up()
    assert b"keys/secret" in again.model.things
    await again.stop()


@pytest.mark.req("R25")
async def test_names_that_are_no_utf8_and_symlinks_travel_as_they_are(root, catalogue):
    base = os.fsencode(root)
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b"n" * 255):
        with open(base + b"/" + name, "wb") as file:
            file.write(name)
    os.symlink(b"/etc/\xff", base + b"/link")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.assert_equal()
        os.unlink(base + b"/link")
        os.symlink(b"elsewhere", base + b"/link")
        await pair.caught_up()
        pair.assert_equal()


@pytest.mark.req("R20", "R22")
async def test_a_directory_that_is_replaced_while_its_files_are_on_their_way_loses_them_on_the_standby(
    root, catalogue, tmp_path
):
    (root / "d").mkdir()
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.acknowledging = False
        for name in ("x", "y"):
            (root / "d" / name).write_text(name)
        await pair.until(lambda: {b"d/x", b"d/y"} <= pair.model.things.keys())
        # Nothing is acknowledged yet, so no catalogue knows these files when the new directory is scanned.
        os.rename(root / "d", tmp_path / "away")
        (root / "d").mkdir()
        (root / "d" / "z").mkdir()
        await pair.until(lambda: b"d/z" in pair.model.things and not pair.source._scans)
        pair.acknowledging = True
        pair.session.acknowledge(pair.model.applied)
        await pair.caught_up()
        pair.assert_equal()


@pytest.mark.req("R20", "R22")
async def test_what_a_scan_misses_is_gone_even_if_it_was_open(root, catalogue):
    (root / "call.wav").write_bytes(bytes(100))
    async with Pair(settings_of(root, growing=True), catalogue) as pair:
        await pair.caught_up()
        watcher = pair.source._watcher
        assert watcher is not None
        watcher.on_event = lambda event: None  # type: ignore[method-assign]
        (root / "call.wav").unlink()
        pair.source.worker.is_open = lambda path: True
        pair.source._scan(b"", noticed=0.0)
        await pair.until(lambda: b"call.wav" not in pair.model.things)


@pytest.mark.req("R20", "R22")
async def test_a_file_of_a_directory_that_took_a_name_is_not_the_one_that_was_open_there(root, catalogue, tmp_path):
    for place in (root / "d", tmp_path / "new"):
        place.mkdir()
        (place / "call.wav").write_text(str(place))
    async with Pair(settings_of(root, growing=True), catalogue) as pair:
        await pair.caught_up()
        with open(root / "d" / "call.wav", "ab", buffering=0) as file:
            file.write(bytes(100))
            await pair.until(lambda: pair.source._settle.is_open(b"d/call.wav"))
            # Closed only after its directory went, and another one has the name.
            os.rename(root / "d", tmp_path / "away")
            os.rename(tmp_path / "new", root / "d")
            await pair.caught_up()
            pair.assert_equal()


@pytest.mark.req("R20", "R22")
async def test_what_is_in_flight_is_not_read_again_when_it_is_acknowledged(root, catalogue):
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.acknowledging = False
        (root / "f").write_text("x")
        await pair.until(lambda: b"f" in pair.model.things)
        target = await pair.source.settled()
        assert pair.source.worker.journal.held == {}
        assert pair.model.applied.sequence >= target.sequence


async def test_a_root_that_comes_later_is_waited_for_and_detach_leaves_no_trace(root, catalogue):
    os.rmdir(root)
    pair = Pair(settings_of(root), catalogue)
    await pair.source.open(2)
    await pair.until(lambda: pair.source.report().state is DatasetState.WAITING)
    root.mkdir()
    (root / "f").write_text("x")
    await pair.connect()
    await pair.until(lambda: b"f" in pair.model.things)
    assert await pair.source.detach() == (str(root / ".ha-dataset"),)
    assert os.listdir(root) == ["f"]
    await pair.stop()


@pytest.mark.req("R22")
async def test_lost_events_are_made_up_for_by_a_scan(root, catalogue):
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        watcher = pair.source._watcher
        assert watcher is not None
        # The library's thread says so when the kernel's queue has overflowed; here nothing else arrives.
        watcher.on_event = lambda event: None  # type: ignore[method-assign]
        (root / "d").mkdir()
        for number in range(30):
            (root / "d" / f"f{number}").write_text(str(number))
        watcher.on_queue_overflow()
        await pair.until(lambda: b"d/f29" in pair.model.things)
        pair.assert_equal()


@pytest.mark.req("R22")
async def test_what_the_standby_needs_again_is_sent_whole(root, catalogue):
    (root / "f").write_bytes(os.urandom(300_000))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        good = pair.model.things[b"f"]
        pair.model.things[b"f"] = Model().things.get(b"f", good.__class__(**{**_fields(good), "content": b"rotten"}))
        pair.session.need((b"f",))
        await pair.until(lambda: pair.model.things[b"f"].content == good.content)


def _fields(thing: object) -> dict[str, object]:
    return {name: getattr(thing, name) for name in thing.__dataclass_fields__}  # type: ignore[attr-defined]


async def test_where_inotify_does_not_work_the_tree_is_scanned(root, catalogue, monkeypatch):
    monkeypatch.setattr(watch, "POLLED_FILESYSTEMS", frozenset({watch.filesystem_type(str(root))}))
    async with Pair(settings_of(root, poll_s=0.1), catalogue) as pair:
        (root / "f").write_text("x")
        await pair.until(lambda: b"f" in pair.model.things)
        (root / "f").write_text("longer")
        await pair.caught_up()
        pair.assert_equal()
        assert pair.source.report().method.startswith("tree: scanned")


async def test_a_database_inside_a_tree_is_named_once_with_the_remedy(root, catalogue):
    (root / "x.db").write_bytes(b"SQLite format 3\0" + bytes(4080))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        assert len([e for e in pair.events if "SQLite" in e[1]]) == 1
        pair.assert_equal()


async def test_a_directory_that_became_a_symlink_is_not_reached_through_it(root, catalogue):
    (root / "d").mkdir()
    for number in range(5):
        (root / "d" / f"f{number}").write_text("x")
    async with Pair(settings_of(root, mass_delete_percent=100), catalogue) as pair:
        await pair.caught_up()
        seen = len(pair.model.groups)
        shutil.rmtree(root / "d")
        os.symlink("elsewhere", root / "d")
        await pair.caught_up()
        pair.assert_equal()
        for group in pair.model.groups[seen:]:
            paths = [change.path for change in group]
            at = paths.index(b"d") if b"d" in paths else len(paths)
            assert not [path for path in paths[at:] if path.startswith(b"d/")]
