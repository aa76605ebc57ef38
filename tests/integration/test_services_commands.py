"""Programs with a deadline: the group is killed, daemons live, output is bounded, the loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from ha_agent.commands import OUTPUT_BYTES_MAX, Commands, Ending

SH = "/bin/sh"


@pytest.fixture
async def commands() -> AsyncIterator[Commands]:
    made = Commands()
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    while alive(pid):
        await asyncio.sleep(0.01)


async def pid_in(file: Path) -> int:
    while not (line := first_line(file)).endswith("\n"):
        await asyncio.sleep(0.01)
    return int(line)


def first_line(file: Path) -> str:
    return file.read_text() if file.exists() else ""


async def test_a_program_that_ends_in_time_is_told_with_status_and_output(commands: Commands) -> None:
    done = await commands.run((SH, "-c", "echo out; echo err >&2; exit 7"), deadline_s=10)
    assert (done.ending, done.status, done.output, done.reason) == (Ending.FAILED, 7, "out\nerr", "exit status 7")
    assert (await commands.run(("/bin/true",), deadline_s=10)).ok


async def test_a_program_reads_what_it_is_given_and_nothing_more(commands: Commands) -> None:
    given = b"x" * 1_000_000  # more than a pipe takes
    done = await commands.run((SH, "-c", "wc -c"), deadline_s=20, given=given)
    assert (done.ending, done.output) == (Ending.OK, "1000000")
    assert (await commands.run((SH, "-c", "wc -c"), deadline_s=20)).output == "0"


async def test_a_program_killed_by_a_signal_is_told_so(commands: Commands) -> None:
    done = await commands.run((SH, "-c", "kill -9 $$"), deadline_s=10)
    assert (done.ending, done.status, done.reason) == (Ending.FAILED, -9, "signal 9")


async def test_a_program_that_is_not_there_is_no_error_of_ours(commands: Commands) -> None:
    done = await commands.run(("/nonexistent/program",), deadline_s=10)
    assert (done.ending, done.status) == (Ending.NOT_STARTED, None)
    assert "nonexistent" in done.output


async def test_an_overrun_kills_the_program_and_its_children(commands: Commands, tmp_path: Path) -> None:
    child = tmp_path / "child"
    done = await commands.run((SH, "-c", f"sleep 60 & echo $! > {child}; wait"), deadline_s=0.5)
    assert done.ending is Ending.OVERRUN
    await asyncio.wait_for(gone(await pid_in(child)), 5)


async def test_a_program_that_ignores_signals_is_killed_all_the_same(commands: Commands) -> None:
    done = await commands.run((SH, "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"), deadline_s=0.3)
    assert (done.ending, done.status) == (Ending.OVERRUN, -signal.SIGKILL)


async def test_cancelling_kills_the_group(commands: Commands, tmp_path: Path) -> None:
    child = tmp_path / "child"
    task = asyncio.create_task(commands.run((SH, "-c", f"sleep 60 & echo $! > {child}; wait"), deadline_s=60))
    pid = await asyncio.wait_for(pid_in(child), 5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await asyncio.wait_for(gone(pid), 5)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen((SH, "-c", "exec sleep 60"), start_new_session=True)


@pytest.mark.parametrize("turns", range(5))
async def test_a_cancellation_at_the_very_moment_of_the_start_is_not_lost(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    started: Future[subprocess.Popen[bytes]] = Future()
    monkeypatch.setattr(commands._starters, "submit", lambda _: started)
    task = asyncio.create_task(commands.run((SH, "-c", "exec sleep 60"), deadline_s=60))
    await asyncio.sleep(0)
    process = sleeper()
    started.set_running_or_notify_cancel()
    started.set_result(process)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(asyncio.to_thread(process.wait), 5)


async def test_a_daemon_that_keeps_the_output_open_is_not_waited_for_and_lives(
    commands: Commands, tmp_path: Path
) -> None:
    pid_file, fed = tmp_path / "pid", tmp_path / "fed"
    os.mkfifo(fed)
    script = f"setsid {SH} -c 'echo $$ > {pid_file}; read go < {fed}; yes | head -c 300000; echo done > {fed}' & exit 0"
    done = await commands.run((SH, "-c", script), deadline_s=10)
    assert done.ok
    pid = await asyncio.wait_for(pid_in(pid_file), 5)
    # It may write more than a pipe holds: its output is still being taken away.
    await asyncio.to_thread(fed.write_text, "go\n")
    assert await asyncio.wait_for(asyncio.to_thread(fed.read_text), 10) == "done\n"
    await asyncio.wait_for(gone(pid), 5)


async def test_only_the_end_of_much_output_is_kept(commands: Commands) -> None:
    done = await commands.run((SH, "-c", "yes x | head -c 1000000; echo the end"), deadline_s=20)
    assert done.output.endswith("the end")
    assert len(done.output) <= OUTPUT_BYTES_MAX


async def test_a_stuck_program_does_not_stop_others(commands: Commands) -> None:
    stuck = asyncio.create_task(commands.run((SH, "-c", "sleep 60"), deadline_s=60))
    done = await asyncio.gather(*(commands.run(("/bin/true",), deadline_s=20) for _ in range(8)))
    assert all(one.ok for one in done)
    assert not stuck.done()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)


async def test_the_environment_is_added_to(commands: Commands) -> None:
    done = await commands.run((SH, "-c", "echo $HA_EPOCH $PATH"), deadline_s=10, environment={"HA_EPOCH": "4"})
    assert done.output == f"4 {os.environ['PATH']}"


async def test_no_descriptor_is_left(commands: Commands) -> None:
    await commands.run(("/bin/true",), deadline_s=10)
    gc.collect()  # what earlier tests dropped is not to be closed in between
    before = len(os.listdir("/proc/self/fd"))
    for command in (("/bin/true",), ("/nonexistent",), (SH, "-c", "sleep 60")):
        await commands.run(command, deadline_s=0.3)
    # The kernel closes the outputs of a killed group one after the other; ours follows the last of them.
    async with asyncio.timeout(30):
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)


async def test_after_the_close_nothing_is_started() -> None:
    commands = Commands()
    commands.close()
    assert (await commands.run(("/bin/true",), deadline_s=1)).ending is Ending.NOT_STARTED
