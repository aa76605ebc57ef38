# ruff: noqa: ASYNC230 - the tests are the other program, and it blocks
"""What a barrier over a tree covers: all that was written before it, whatever is under way."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from ha_sync.capture.tree.parts import PART_BYTES
from tests.support.tree_capture_model import Pair, settings_of


@pytest.mark.req("R21")
async def test_the_barrier_covers_what_was_appended_to_an_open_recording(root, catalogue):
    async with Pair(settings_of(root, growing=True), catalogue) as pair:
        await pair.caught_up()
        with open(root / "call.wav", "wb", buffering=0) as file:
            for size in (100, 40_000, 70_000):
                file.write(os.urandom(size))
                await pair.caught_up()
                assert len(pair.model.partials[b"call.wav"]) == file.tell()


@pytest.mark.req("R21", "R22")
async def test_the_barrier_waits_for_the_acknowledgement_of_what_was_appended(root, catalogue):
    async with Pair(settings_of(root, growing=True), catalogue) as pair:
        await pair.caught_up()
        pair.acknowledging = False
        with open(root / "call.wav", "wb", buffering=0) as file:
            file.write(os.urandom(40_000))
            await pair.until(lambda: len(pair.model.partials.get(b"call.wav", b"")) == 40_000)
            target = await pair.source.settled()
            acknowledged = pair.source.report().acknowledged
            assert acknowledged is None or acknowledged.sequence < target.sequence


@pytest.mark.req("R22")
async def test_the_barrier_covers_a_group_that_is_only_half_handed_out(root, catalogue):
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        for number in range(6):
            (root / f"{number}.wav").write_bytes(os.urandom(1_500_000))
        pair._task.cancel()
        await asyncio.wait([pair._task])
        frames = pair.session.frames()
        first = await anext(frames)
        assert not first.group_end
        target = await pair.source.settled()
        assert target.sequence >= first.position.sequence
        await frames.aclose()


@pytest.mark.req("R22", "R6")
async def test_the_barrier_waits_for_all_that_a_session_that_broke_had_sent(root, catalogue):
    """What was in flight goes again in groups of higher positions: the first of them says nothing of the others."""
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        await pair.disconnect()
        for name in ("a", "b", "c"):
            (root / name).write_bytes(os.urandom(PART_BYTES))  # each a group, and the largest that goes whole
        await pair.connect_by_hand()
        target = asyncio.create_task(pair.source.settled())
        async with contextlib.aclosing(pair.session.frames()) as frames:
            while not target.done():
                await asyncio.wait([target, asyncio.ensure_future(anext(frames))], timeout=1)
        await pair.disconnect()
        await pair.connect_by_hand()
        durable = []
        async with contextlib.aclosing(pair.session.frames()) as frames:
            while len(durable) < 3:
                if pair.model.take(await anext(frames)):
                    pair.session.acknowledge(pair.model.applied)
                    await pair.source.run(lambda: None)
                    durable.append(pair.source.report().acknowledged.sequence >= target.result().sequence)
            assert durable[:2] == [False, False]
        await pair.until(lambda: pair.source.report().acknowledged.sequence >= target.result().sequence)
        pair.assert_equal()


@pytest.mark.req("R22", "R9")
async def test_the_barrier_waits_for_a_large_file_that_everything_else_overtakes(root, catalogue):
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        await pair.disconnect()
        await pair.connect_by_hand()
        (root / "large").write_bytes(os.urandom(3 * PART_BYTES))
        target = await pair.source.settled()
        (root / "small").write_bytes(b"x")
        await pair.source.settled()
        async with contextlib.aclosing(pair.session.frames()) as frames:
            while b"large" not in pair.model.things:
                reached = pair.source.report().acknowledged
                assert reached is None or reached.sequence < target.sequence
                if pair.model.take(await anext(frames)):
                    pair.session.acknowledge(pair.model.applied)
                    await pair.source.run(lambda: None)
            assert b"small" in pair.model.things
        await pair.until(lambda: pair.source.report().acknowledged.sequence >= target.sequence)


@pytest.mark.req("R22")
async def test_the_barrier_waits_for_what_was_taken_and_is_not_marked_yet(root, catalogue):
    (root / "f").write_text("x")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        source = pair.source
        source._settle.closed(b"f", 1.0)
        marking = asyncio.create_task(source._notice(source._settle.flush))
        await asyncio.sleep(0)
        assert source._settle.waiting == 0
        await source._notice(source._settle.flush)
        assert marking.done()


@pytest.mark.req("R20", "R22")
async def test_a_file_that_is_cut_short_is_never_closed_and_is_covered_by_the_barrier(root, catalogue):
    (root / "call.wav").write_bytes(os.urandom(131_073))
    async with Pair(settings_of(root, growing=True), catalogue) as pair:
        await pair.caught_up()
        os.truncate(root / "call.wav", 65_536)
        await pair.caught_up()
        pair.assert_equal()


@pytest.mark.req("R20", "R22")
async def test_a_new_file_that_is_cut_short_and_open_nowhere_is_covered_by_the_barrier(root, catalogue):
    async with Pair(settings_of(root, growing=True), catalogue) as pair:
        await pair.caught_up()
        fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o640)
        try:
            os.write(fd, os.urandom(131_073))
            # With a directory, or it would be link() and not linkat(), which does not follow.
            os.link(f"/proc/self/fd/{fd}", root / "call.wav", src_dir_fd=fd, follow_symlinks=True)
        finally:
            os.close(fd)  # before it had a name to be watched by: only what follows is told
        os.truncate(root / "call.wav", 65_536)
        with open(root / "going-on.wav", "wb", buffering=0) as recording:
            recording.write(b"x" * 1000)
            await pair.caught_up()
            assert b"call.wav" in pair.model.things
            assert b"going-on.wav" not in pair.model.things
        await pair.until(lambda: b"going-on.wav" in pair.model.things)
        await pair.caught_up()
        pair.assert_equal()
