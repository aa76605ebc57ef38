"""The services at a switch, with real hooks: their order, and what ends what."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ha_agent.agent.duty import Duty, Quieted
from ha_agent.commands import Commands
from ha_agent.engine_link import Drained
from ha_agent.services import Outcome, Services
from ha_agent.settings import ServiceSettings
from ha_proto.agent.v1 import agent_pb2 as pb

WITHIN_S = 20.0


class FakeEngine:
    """The engine's part: promoted and drained as the test says."""

    def __init__(self) -> None:
        self.is_promoted = True
        self.drained = Drained(digest="d")
        self.resumed = 0
        self.report: pb.EngineReport | None = pb.EngineReport(pid=os.getpid(), paths=[])
        self.fails: Exception | None = None
        self.over = asyncio.Event()  # no restore wants the services stopped
        self.over.set()
        self.awaited = 0
        self.answers: list[tuple[int, bool, str]] = []

    async def promoted(self, epoch: int, *, within_s: float) -> bool:
        if self.fails:
            raise self.fails
        return self.is_promoted

    async def quiesce(self, *, within_s: float, end_backup: bool) -> Drained:
        return self.drained

    def resume(self) -> None:
        self.resumed += 1

    directed = 4

    async def restored(self) -> None:
        self.awaited += 1
        await self.over.wait()

    def answer_restore(self, serial: int, *, stopped: bool, reason: str = "") -> None:
        self.answers.append((serial, stopped, reason))


@dataclass(slots=True)
class Work:
    """A duty with two services, and what it did."""

    folder: Path
    duty: Duty
    engine: FakeEngine
    reported: list[str] = field(default_factory=list)
    expected: list[bool] = field(default_factory=list)

    @property
    def told(self) -> list[str]:
        """What the hooks wrote down."""
        path = self.folder / "told"
        return path.read_text().split() if path.exists() else []

    @property
    def condition(self) -> Path:
        return self.folder / "active"

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not wanted():
                await asyncio.sleep(0.01)

    async def started(self, epoch: int = 2) -> Outcome:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.duty.start(epoch, done=done.set_result)
        return await asyncio.wait_for(done, WITHIN_S)

    async def quieted(self, within_s: float = WITHIN_S) -> Quieted:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Quieted] = loop.create_future()
        self.duty.quiesce(deadline=loop.time() + within_s, end_backup=False, done=done.set_result)
        return await asyncio.wait_for(done, WITHIN_S)


def hook(folder: Path, word: str, *, holds: bool = False, status: int = 0) -> tuple[str, ...]:
    """Writes a word; ``holds``: until the file of its name is there."""
    wait = f"while [ ! -e {folder}/{word} ]; do sleep 0.01; done; " if holds else ""
    return ("/bin/sh", "-c", f"echo begin-{word} >> {folder}/told; {wait}echo {word} >> {folder}/told; exit {status}")


@contextlib.asynccontextmanager
async def working(folder: Path, *services: ServiceSettings) -> AsyncIterator[Work]:
    commands, executor, engine = Commands(), ThreadPoolExecutor(2), FakeEngine()
    work = Work(folder, None, engine)  # type: ignore[arg-type]

    def report(_severity: str, what: str, _fields: dict[str, object]) -> None:
        work.reported.append(what)

    made = Services(services, commands, executor, report, condition_file=str(work.condition))
    work.duty = Duty(made, engine, report, expect=work.expected.append)  # type: ignore[arg-type]
    try:
        yield work
    finally:
        await work.duty.close()
        commands.close()
        executor.shutdown()


def service(folder: Path, name: str, **changes: object) -> ServiceSettings:
    plain = {"start": hook(folder, f"start-{name}"), "stop": hook(folder, f"stop-{name}")}
    return ServiceSettings(name=name, **(plain | changes))  # type: ignore[arg-type]


def ends_of(told: list[str]) -> list[str]:
    return [word for word in told if not word.startswith("begin-")]


async def test_services_start_in_order_after_the_promotion_and_stop_in_the_reverse(tmp_path: Path) -> None:
    async with working(tmp_path, service(tmp_path, "db"), service(tmp_path, "pbx")) as work:
        assert (await work.started()).ok
        assert work.condition.read_text() == "active in epoch 2\n"
        work.duty.stop()
        await work.until(lambda: len(ends_of(work.told)) == 4)
        assert ends_of(work.told) == ["start-db", "start-pbx", "stop-pbx", "stop-db"]
        # A hook writes its word before its end is seen.
        await work.until(lambda: work.expected == [True, False] and not work.condition.exists())


async def test_services_start_although_the_engine_does_not_finish_and_that_is_said(tmp_path: Path) -> None:
    async with working(tmp_path, service(tmp_path, "pbx")) as work:
        work.engine.is_promoted = False
        assert (await work.started()).ok
        assert work.reported == ["the engine did not finish its promotion"]


@pytest.mark.req("R16")
async def test_a_service_that_does_not_start_is_told_and_the_next_one_starts(tmp_path: Path) -> None:
    broken = service(tmp_path, "db", start=hook(tmp_path, "start-db", status=3))
    async with working(tmp_path, broken, service(tmp_path, "pbx")) as work:
        outcome = await work.started()
        assert [(step.service, step.reason) for step in outcome.failures] == [("db", "exit status 3")]
        assert ends_of(work.told) == ["start-db", "start-pbx"]


async def test_a_stop_ends_a_start_that_runs(tmp_path: Path) -> None:
    slow = service(tmp_path, "pbx", start=hook(tmp_path, "start-pbx", holds=True))
    async with working(tmp_path, slow) as work:
        done: list[Outcome] = []
        work.duty.start(2, done=done.append)
        await work.until(lambda: work.told == ["begin-start-pbx"])
        work.duty.stop()
        await work.until(lambda: "stop-pbx" in work.told)
        assert "start-pbx" not in work.told, "its hook was killed"
        assert done == [], "a start that was ended has no outcome"


async def test_a_stop_is_not_ended_by_another_stop(tmp_path: Path) -> None:
    slow = service(tmp_path, "pbx", stop=hook(tmp_path, "stop-pbx", holds=True))
    async with working(tmp_path, slow) as work:
        work.duty.stop()
        await work.until(lambda: work.told == ["begin-stop-pbx"])
        work.duty.stop()
        (tmp_path / "stop-pbx").touch()
        await work.until(lambda: "stop-pbx" in work.told)
        assert work.told == ["begin-stop-pbx", "stop-pbx"]


async def test_a_stop_that_was_ordered_behind_an_ended_stop_is_waited_for_at_the_end(tmp_path: Path) -> None:
    slow = service(tmp_path, "pbx", stop=hook(tmp_path, "stop-pbx", holds=True))
    async with working(tmp_path, slow) as work:
        work.duty.stop()
        await work.until(lambda: work.told == ["begin-stop-pbx"])
        work.duty.start(4, done=lambda _outcome: None)
        work.duty.stop()
        closing = asyncio.create_task(work.duty.close())
        await work.until(lambda: work.told.count("begin-stop-pbx") == 2)
        (tmp_path / "stop-pbx").touch()
        await asyncio.wait_for(closing, WITHIN_S)
        assert work.told[-1] == "stop-pbx", "a node without the role does not leave its services running"


async def test_the_end_of_the_agent_ends_a_start(tmp_path: Path) -> None:
    slow = service(tmp_path, "pbx", start=hook(tmp_path, "start-pbx", holds=True))
    async with working(tmp_path, slow) as work:
        work.duty.start(2, done=lambda _outcome: None)
        await work.until(lambda: work.told == ["begin-start-pbx"])
        await asyncio.wait_for(work.duty.close(), WITHIN_S)
        assert work.told == ["begin-start-pbx"]


@pytest.mark.req("R6")
async def test_a_quiesce_stops_and_drains_and_hands_on_the_digest(tmp_path: Path) -> None:
    async with working(tmp_path, service(tmp_path, "pbx")) as work:
        await work.started()
        quieted = await work.quieted()
        assert (quieted.digest, quieted.reason) == ("d", "")
        assert ends_of(work.told) == ["start-pbx", "stop-pbx"]
        assert work.expected == [True, False]


@pytest.mark.req("R6")
async def test_a_quiesce_that_fails_says_who_and_leaves_it_to_whoever_ordered_it(tmp_path: Path) -> None:
    stubborn = service(tmp_path, "db", stop=hook(tmp_path, "stop-db", status=1))
    async with working(tmp_path, service(tmp_path, "pbx"), stubborn) as work:
        quieted = await work.quieted()
        assert (quieted.digest, quieted.reason) == (None, "not stopped: db")
        # Nothing is started behind the arbiter's back: where the loss was accepted, the role goes all the same.
        assert ends_of(work.told) == ["stop-db", "stop-pbx"]
        work.duty.resume(2)
        await work.until(lambda: len(ends_of(work.told)) == 4)
        assert ends_of(work.told)[2:] == ["start-pbx", "start-db"]
        await work.until(lambda: (work.engine.resumed, work.expected) == (1, [False, True]))


@pytest.mark.req("R6")
async def test_a_quiesce_names_who_still_writes(tmp_path: Path) -> None:
    database = tmp_path / "cdr.db"
    writer = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f"exec 3>>{database}; echo; exec sleep 600", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert writer.stdout is not None
        await writer.stdout.readline()
        async with working(tmp_path, service(tmp_path, "pbx")) as work:
            work.engine.report = pb.EngineReport(pid=os.getpid(), paths=[str(database)])
            quieted = await work.quieted(within_s=0.5)
            assert quieted.digest is None
            assert quieted.reason == f"sleep (pid {writer.pid}) has {database} open"
    finally:
        writer.kill()
        await writer.wait()


@pytest.mark.req("R6")
async def test_a_quiesce_that_is_not_drained_says_what_is_missing(tmp_path: Path) -> None:
    async with working(tmp_path, service(tmp_path, "pbx")) as work:
        work.engine.drained = Drained(digest=None, waiting_for=("cdr: 3 changes", "astdb: 1 change"))
        quieted = await work.quieted()
        assert quieted.reason == "not on the Standby: cdr: 3 changes; astdb: 1 change"


@pytest.mark.req("R6")
async def test_a_quiesce_that_is_given_up_starts_the_services_again(tmp_path: Path) -> None:
    slow = service(tmp_path, "pbx", stop=hook(tmp_path, "stop-pbx", holds=True))
    async with working(tmp_path, slow) as work:
        done: list[Quieted] = []
        deadline = asyncio.get_running_loop().time() + WITHIN_S
        work.duty.quiesce(deadline=deadline, end_backup=False, done=done.append)
        await work.until(lambda: work.told == ["begin-stop-pbx"])
        work.duty.resume(2)
        await work.until(lambda: "start-pbx" in work.told)
        assert done == []
        assert work.condition.exists()


async def test_what_fails_unforeseen_is_said_and_the_next_order_is_done(tmp_path: Path) -> None:
    async with working(tmp_path, service(tmp_path, "pbx")) as work:
        work.engine.fails = RuntimeError("out of threads")
        work.duty.start(2, done=lambda _outcome: None)
        await work.until(lambda: work.reported == ["an order to the services failed"])
        work.engine.fails = None
        assert (await work.started(4)).ok


@pytest.mark.req("R24")
async def test_a_restore_keeps_the_services_stopped_until_the_engine_says_that_it_is_over(tmp_path: Path) -> None:
    async with working(tmp_path, service(tmp_path, "db"), service(tmp_path, "pbx")) as work:
        await work.started()
        work.engine.over.clear()
        work.duty.restore(7, within_s=WITHIN_S)
        await work.until(lambda: bool(work.engine.answers))
        assert work.engine.answers == [(7, True, "")]
        assert ends_of(work.told)[2:] == ["stop-pbx", "stop-db"]
        assert not work.condition.exists()
        work.engine.over.set()
        await work.until(lambda: len(ends_of(work.told)) == 6)
        await work.until(lambda: work.expected == [True, False, True])
        assert work.condition.read_text() == "active in epoch 4\n"


@pytest.mark.req("R24")
async def test_a_restore_is_told_who_still_writes_and_the_services_start_again(tmp_path: Path) -> None:
    stubborn = service(tmp_path, "pbx", stop=hook(tmp_path, "stop-pbx", status=1))
    async with working(tmp_path, stubborn) as work:
        work.engine.over.clear()
        work.duty.restore(7, within_s=0.5)
        await work.until(lambda: bool(work.engine.answers))
        assert work.engine.answers == [(7, False, "not stopped: pbx")]
        work.engine.over.set()
        await work.until(lambda: "start-pbx" in work.told)


@pytest.mark.req("R24", "R6")
async def test_no_order_starts_the_services_while_the_data_is_exchanged(tmp_path: Path) -> None:
    async with working(tmp_path, service(tmp_path, "pbx")) as work:
        work.engine.over.clear()
        work.duty.restore(7, within_s=WITHIN_S)
        await work.until(lambda: bool(work.engine.answers))
        quieted = await work.quieted()  # a forced switch: it ends the waiting, not the restore
        assert quieted.digest == "d"
        work.duty.resume(2)
        await work.until(lambda: work.engine.resumed == 1)
        again = asyncio.create_task(work.started(4))
        await work.until(lambda: work.engine.awaited >= 2)  # by the restore and whoever came last
        assert "start-pbx" not in work.told
        work.engine.over.set()
        assert (await again).ok
        assert ends_of(work.told)[-1] == "start-pbx"
