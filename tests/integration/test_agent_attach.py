"""The agent's and the engine's ends of ``Attach`` against each other, over a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from ha_agent.engine_link import DIRECTIVES_MAX, Drained, EngineLink
from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc
from ha_sync.core.dataset import Finished, Role
from ha_sync.core.paths import Heard
from ha_sync.core.standing import Standing
from ha_sync.errors import Fenced, Retryable
from ha_sync.service.attach import AgentLink
from ha_sync.service.peer import AgentPath
from ha_sync.service.tidings import Tidings

WITHIN_S = 20.0


class FakeNode:
    """What ``AgentLink`` needs of a node."""

    def __init__(self) -> None:
        self.role: Role | None = None
        self.epoch = 0
        self.promised = 0
        self.active_at = ""
        self.settings = SimpleNamespace(datasets=(SimpleNamespace(path="/pbx/cdr.db"),))
        self.taken: list[tuple[str, int]] = []
        self.fails: list[Exception] = []
        self.waits: list[Exception] = []
        self.missing: tuple[str, ...] = ()
        self.finishes: dict[int, tuple[Any, ...]] = {}  # by the promotion of an epoch
        self.replicated = asyncio.Event()
        self.replicated.set()
        self.asked = asyncio.Event()  # somebody waits for the replication
        self.keeper = SimpleNamespace(leaving=self._leaving)
        self.left = 0  # so often merges were ended

    async def _leaving(self) -> None:
        self.left += 1

    async def set_role(self, role: Role, epoch: int) -> tuple[Any, ...]:
        if self.fails:
            raise self.fails.pop(0)
        self.taken.append((role.value, epoch))
        self.role, self.epoch, self.promised = role, epoch, max(epoch, self.promised)
        return self.finishes.pop(epoch, ())

    async def wait_replicated(self, names: tuple[str, ...], *, timeout_s: float) -> tuple[str, ...]:
        assert names == (), "all datasets"
        if self.waits:
            raise self.waits.pop(0)
        self.asked.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self.replicated.wait()
        except TimeoutError:
            return ("cdr: 3 changes not yet on the standby",)
        return self.missing

    def standing(self, *, founder: bool) -> Standing:
        return Standing(data=self.epoch, sound=True, current=True, progress=9, positions=f"cdr:{self.epoch}")


class FakeLink:
    """What ``AgentLink`` needs of the dialing."""

    def __init__(self) -> None:
        self.said: list[tuple[AgentPath, ...]] = []
        self.holds = [""]
        self.lost = 0

    def hold(self, reason: str) -> None:
        if reason != self.holds[-1]:
            self.holds.append(reason)

    def direct(self, paths: tuple[AgentPath, ...]) -> None:
        self.said.append(paths)

    def agent_lost(self) -> None:
        self.lost += 1


class FakeBackups:
    """What ``AgentLink`` needs of the full backups."""

    def __init__(self, *, running: bool = False) -> None:
        self.running = running
        self.left_s = 40.0 if running else None
        self.ended: list[str] = []

    async def end(self, why: str) -> None:
        self.ended.append(why)
        self.running, self.left_s = False, None


@dataclass(slots=True)
class Ends:
    """An agent that serves its socket, and the means to start engines at it."""

    path: str
    link: EngineLink
    reports: list[pb.EngineReport] = field(default_factory=list)
    lost: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def reported(self, report: pb.EngineReport) -> None:
        self.reports.append(report)
        self.news.set()

    def was_lost(self) -> None:
        self.lost += 1
        self.news.set()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not wanted():
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), 0.1)

    async def until_reported(self, wanted: Callable[[pb.EngineReport], bool]) -> pb.EngineReport:
        await self.until(lambda: self.link.report is not None and wanted(self.link.report))
        assert self.link.report is not None
        return self.link.report


@contextlib.asynccontextmanager
async def listening(path: str, *, silent_s: float = 60.0) -> AsyncIterator[Ends]:
    ends = Ends(path, None)  # type: ignore[arg-type]
    link = ends.link = EngineLink(on_report=ends.reported, on_lost=ends.was_lost, silent_s=silent_s)

    class Servicer(agent_pb2_grpc.AgentServiceServicer):
        async def Attach(self, reports: Any, _context: Any) -> AsyncIterator[pb.Directive]:  # noqa: N802
            async with contextlib.aclosing(link.serve(reports)) as directives:
                async for directive in directives:
                    yield directive

    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    watching = asyncio.create_task(link.watch())
    try:
        yield ends
    finally:
        watching.cancel()
        await server.stop(0)


@contextlib.asynccontextmanager
async def attached(
    path: str,
    node: FakeNode,
    events: list[str] | None = None,
    link: FakeLink | None = None,
    backups: FakeBackups | None = None,
    *,
    tidings: Tidings | None = None,
) -> AsyncIterator[AgentLink]:
    told = events if events is not None else []
    engine = AgentLink(
        node,  # type: ignore[arg-type]
        socket_path=path,
        membership=lambda: None,
        report=lambda _severity, what, fields: told.append(f"{what} {fields.get('reason', '')}".strip()),
        link=link or FakeLink(),  # type: ignore[arg-type]
        full_backups=backups or FakeBackups(),  # type: ignore[arg-type]
        tidings=tidings,
    )
    running = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@pytest.fixture
async def ends(run_dir: Path) -> AsyncIterator[Ends]:
    async with listening(str(run_dir / "agent.sock")) as made:
        yield made


async def test_the_engine_takes_the_role_it_is_directed_and_tells_what_it_has(ends: Ends) -> None:
    node = FakeNode()
    ends.link.direct("active", 4, active_at="192.0.2.53")
    async with attached(ends.path, node):
        report = await ends.until_reported(lambda report: report.promoted == 4)
        assert (report.role, report.epoch, report.data, report.sound, report.progress) == ("active", 4, 4, True, 9)
        assert (list(report.paths), node.active_at) == (["/pbx/cdr.db"], "192.0.2.53")
        assert await ends.link.promoted(4, within_s=WITHIN_S)
        assert not await ends.link.promoted(5, within_s=0.01)


@pytest.mark.req("R32")
async def test_the_engine_tells_what_stands_in_each_report_and_what_happened_once_a_call(ends: Ends) -> None:
    tidings = Tidings(lambda: [("error", "dataset halted", "cdr", {"reason": "deletes"})])
    tidings.note("error", "first", {})
    ends.link.direct("standby", 4, active_at="")
    async with attached(ends.path, FakeNode(), tidings=tidings):
        await ends.until(lambda: len(ends.reports) >= 3)
        tidings.note("warning", "second", {"dataset": "cdr"})
        count = len(ends.reports)
        await ends.until(lambda: len(ends.reports) >= count + 3)
    told = [(notice.what, notice.serial) for report in ends.reports for notice in report.notices]
    assert told == [("first", 1), ("second", 2)]
    assert {report.run for report in ends.reports} == {tidings.run}
    assert {(one.what, one.subject) for report in ends.reports for one in report.troubles} == {
        ("dataset halted", "cdr")
    }
    assert all(report.troubles for report in ends.reports)
    before = len(ends.reports)
    async with attached(ends.path, FakeNode(), tidings=tidings):  # nobody knows what became of the last call
        await ends.until(lambda: len(ends.reports) > before)
    assert [notice.serial for notice in ends.reports[before].notices] == [1, 2]


async def test_an_engine_that_starts_anew_is_told_its_role_again(ends: Ends) -> None:
    ends.link.direct("standby", 3, active_at="")
    first, second = FakeNode(), FakeNode()
    async with attached(ends.path, first):
        await ends.until_reported(lambda report: report.role == "standby")
    await ends.until(lambda: ends.lost == 1)
    async with attached(ends.path, second):
        await ends.until_reported(lambda report: report.role == "standby")
    assert first.taken == second.taken == [("standby", 3)]


async def test_an_agent_that_starts_anew_finds_the_engine_again(run_dir: Path) -> None:
    path = str(run_dir / "agent.sock")
    node, events = FakeNode(), []
    async with attached(path, node, events):
        for epoch in (2, 4):
            async with listening(path) as ends:
                ends.link.direct("active", epoch, active_at="")
                await ends.until_reported(lambda report, epoch=epoch: report.promoted == epoch)
    assert node.taken == [("active", 2), ("active", 4)]
    assert node.role is Role.ACTIVE, "without an agent it keeps the role it has"
    assert events[:3] == ["attached to the agent", "agent lost: the engine keeps its role", "attached to the agent"]


async def test_a_newer_engine_ends_the_call_of_the_older(ends: Ends) -> None:
    async def reports(node_id: str) -> AsyncIterator[pb.EngineReport]:
        yield pb.EngineReport(node_id=node_id)
        await asyncio.Event().wait()

    ends.link.direct("standby", 1, active_at="")
    older, newer = ends.link.serve(reports("older")), ends.link.serve(reports("newer"))
    assert (await anext(older)).role.epoch == 1
    assert (await anext(newer)).role.epoch == 1
    with pytest.raises(StopAsyncIteration):
        await anext(older)
    await ends.until_reported(lambda report: report.node_id == "newer")
    assert ends.lost == 0, "the end of the older call is not the loss of the newer engine"
    await newer.aclose()


@pytest.mark.req("R26")
async def test_what_a_promotion_finished_is_told_until_the_next_epoch(ends: Ends) -> None:
    node = FakeNode()
    node.finishes = {2: (("spool", Finished(what="call file kept", subject="c")),)}
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node):
        report = await ends.until_reported(lambda report: report.promoted == 2)
        assert [one.what for one in report.finished] == ["call file kept"]
        ends.link.direct("active", 2, active_at="")  # said again: nothing is finished twice, nothing is forgotten
        ends.link.direct("active", 4, active_at="")
        report = await ends.until_reported(lambda report: report.promoted == 4)
        assert not report.finished


@pytest.mark.req("R6")
async def test_a_quiesce_is_told_with_the_digest_of_the_final_positions(ends: Ends) -> None:
    node = FakeNode()
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node):
        await ends.until_reported(lambda report: report.promoted == 2)
        drained = await ends.link.quiesce(within_s=WITHIN_S, end_backup=False)
        report = await ends.until_reported(lambda report: bool(report.quiesced))
        assert drained == Drained(digest=report.digest)
        # Another one is another: an old answer does not count.
        node.replicated.clear()
        late = await ends.link.quiesce(within_s=0.3, end_backup=False)
        assert late.digest is None


@pytest.mark.req("R23", "R6")
async def test_a_full_backup_is_reported_and_ended_by_a_forced_switch_alone(ends: Ends) -> None:
    node, backups, events = FakeNode(), FakeBackups(running=True), [""]
    ends.link.direct("active", 4, active_at="")
    async with attached(ends.path, node, events, backups=backups):
        report = await ends.until_reported(lambda report: report.role == "active")
        assert (report.backup, report.backup_left_s) == (True, 40.0)
        await ends.link.quiesce(within_s=WITHIN_S, end_backup=False)
        assert backups.ended == []
        await ends.link.quiesce(within_s=WITHIN_S, end_backup=True)
        report = await ends.until_reported(lambda report: not report.backup)
        assert not report.HasField("backup_left_s")
    assert backups.ended == ["a forced switch"]
    assert "a full backup is ended by a forced switch" in events


@pytest.mark.req("R6")
async def test_what_a_quiesce_still_waits_for_is_named(ends: Ends) -> None:
    node = FakeNode()
    node.missing = ("cdr: 3 changes not yet on the standby",)
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node):
        await ends.until_reported(lambda report: report.promoted == 2)
        asked = asyncio.create_task(ends.link.quiesce(within_s=2.0, end_backup=False))
        await ends.until_reported(lambda report: bool(report.waiting_for))
        assert await asked == Drained(digest=None, waiting_for=node.missing)


async def test_a_quiesce_without_an_engine_waits_for_the_engine(ends: Ends) -> None:
    assert await ends.link.quiesce(within_s=0.01, end_backup=False) == Drained(digest=None, waiting_for=("the engine",))


@pytest.mark.req("R6")
async def test_an_engine_that_restarts_in_a_quiesce_goes_on_with_it(ends: Ends) -> None:
    ends.link.direct("active", 2, active_at="")
    first, second = FakeNode(), FakeNode()
    first.replicated.clear()
    second.waits = [Retryable("cannot wait for", subject="cdr", reason="starting")]
    async with attached(ends.path, first):
        await ends.until_reported(lambda report: report.promoted == 2)
        quiescing = asyncio.create_task(ends.link.quiesce(within_s=WITHIN_S, end_backup=False))
        await asyncio.wait_for(first.asked.wait(), WITHIN_S)
    async with attached(ends.path, second):
        assert (await quiescing).digest is not None
        assert second.taken == [("active", 2)], "the role comes first"


async def test_a_quiesce_that_is_over_is_not_told_to_the_next_engine(ends: Ends) -> None:
    async def reports() -> AsyncIterator[pb.EngineReport]:
        await asyncio.Event().wait()
        yield pb.EngineReport()

    ends.link.direct("active", 2, active_at="")
    await ends.link.quiesce(within_s=0.01, end_backup=False)
    directives = ends.link.serve(reports())
    first = await anext(directives)
    ends.link.direct("active", 4, active_at="")
    second = await anext(directives)
    await directives.aclose()
    assert (first.role.epoch, second.role.epoch) == (2, 4)


@pytest.mark.req("R6")
async def test_a_quiesce_that_was_given_up_ends_in_the_engine_too(ends: Ends) -> None:
    node = FakeNode()
    node.replicated.clear()
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node):
        await ends.until_reported(lambda report: report.promoted == 2)
        asked = asyncio.create_task(ends.link.quiesce(within_s=WITHIN_S, end_backup=False))
        await asyncio.wait_for(node.asked.wait(), WITHIN_S)
        asked.cancel()
        ends.link.resume()
        # What comes after it is carried out: the engine is not stuck in the wait, and answers nothing late.
        ends.link.direct("standby", 3, active_at="")
        report = await ends.until_reported(lambda report: report.role == "standby")
        node.replicated.set()
        assert report.quiesced == 0


async def test_an_engine_that_says_nothing_is_lost_and_is_there_again_when_it_speaks(run_dir: Path) -> None:
    path = str(run_dir / "agent.sock")
    async with listening(path, silent_s=0.3) as ends:
        ends.link.direct("standby", 1, active_at="")
        speaks = asyncio.Event()
        speaks.set()

        async def reports() -> AsyncIterator[pb.EngineReport]:
            while True:
                await speaks.wait()
                yield pb.EngineReport(role="standby")
                await asyncio.sleep(0.02)

        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            call = agent_pb2_grpc.AgentServiceStub(channel).Attach(reports())
            await ends.until(lambda: ends.link.report is not None)
            speaks.clear()
            await ends.until(lambda: ends.lost == 1 and ends.link.report is None)
            speaks.set()
            await ends.until(lambda: ends.link.report is not None)
            call.cancel()
            await ends.until(lambda: ends.link.report is None)


async def test_a_role_that_the_disk_refuses_is_tried_again_and_said_once(ends: Ends, monkeypatch: Any) -> None:
    monkeypatch.setattr("ha_sync.service.attach.ROLE_RETRY_S", 0.01)
    node, events = FakeNode(), []
    node.fails = [sqlite3.OperationalError("database or disk is full")] * 3
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node, events):
        await ends.until_reported(lambda report: report.promoted == 2)
    assert [event for event in events if "cannot be taken" in event] == [
        "the role cannot be taken database or disk is full"
    ]


async def test_while_a_role_cannot_be_taken_a_newer_one_replaces_it(ends: Ends) -> None:
    node, events = FakeNode(), []
    node.fails = [OSError(28, "No space left on device")]
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node, events):
        await ends.until(lambda: bool(events) and "cannot be taken" in events[-1])
        ends.link.direct("standby", 3, active_at="")
        await ends.until_reported(lambda report: report.role == "standby")
    assert node.taken == [("standby", 3)], "the older role was never taken"


@pytest.mark.req("R13")
async def test_an_epoch_that_goes_back_is_refused_by_the_engine_and_said(ends: Ends) -> None:
    node, events = FakeNode(), []
    node.fails = [Fenced("cannot become active in", subject="epoch 2", reason="epoch 5 has been seen")]
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node, events):
        await ends.until(lambda: any("refused" in event for event in events))
        assert (await ends.until_reported(lambda report: True)).promoted == 0


async def test_to_follow_is_safe_in_whatever_epoch_was_seen(ends: Ends) -> None:
    node = FakeNode()
    node.promised = 9
    ends.link.direct("standby", 3, active_at="")
    async with attached(ends.path, node):
        await ends.until(lambda: node.taken == [("standby", 9)])


async def test_a_directive_of_another_version_does_not_end_the_engine(ends: Ends) -> None:
    node, events = FakeNode(), []
    ends.link.direct("emperor", 3, active_at="")
    async with attached(ends.path, node, events):
        await ends.until(lambda: "a directive of the agent is not understood" in events)
        ends.link.direct("standby", 3, active_at="")
        await ends.until(lambda: node.taken == [("standby", 3)])


async def test_an_engine_that_reads_nothing_gets_the_newest_role_when_it_reads_again(ends: Ends) -> None:
    held = asyncio.Event()

    async def reports() -> AsyncIterator[pb.EngineReport]:
        await held.wait()
        yield pb.EngineReport()

    directives = ends.link.serve(reports())
    ends.link.direct("standby", 1, active_at="")
    first = asyncio.create_task(anext(directives))
    assert (await first).role.epoch == 1
    for epoch in range(2, 3 * DIRECTIVES_MAX):
        ends.link.direct("standby", epoch, active_at="")
    got = [await anext(directives) for _ in range(DIRECTIVES_MAX)]
    assert got[-1].role.epoch == 3 * DIRECTIVES_MAX - 1
    await directives.aclose()


CABLE = pb.PeerPath(name="cable", address="169.254.9.1", state="both")
DEAD_CABLE = pb.PeerPath(name="cable", address="169.254.9.1", state="lost")
LAN = pb.PeerPath(name="lan", address="fd77::1", state="unknown")
AS_TOLD = (
    AgentPath(name="cable", host="169.254.9.1", heard=Heard.HEARD),
    AgentPath(name="lan", host="fd77::1", heard=Heard.UNKNOWN),
)


@pytest.mark.req("R10", "R22")
async def test_the_engine_is_told_of_the_paths_with_its_role_and_whenever_they_change(ends: Ends) -> None:
    node, link = FakeNode(), FakeLink()
    ends.link.tell_paths((CABLE, LAN))
    ends.link.direct("standby", 3, active_at="")
    async with attached(ends.path, node, link=link):
        await ends.until(lambda: link.said == [AS_TOLD])
        for _ in range(3):
            ends.link.tell_paths((CABLE, LAN))  # nothing new
        ends.link.tell_paths((LAN, DEAD_CABLE))
        await ends.until(lambda: len(link.said) == 2)
        assert [path.heard for path in link.said[1]] == [Heard.UNKNOWN, Heard.SILENT]
        assert node.taken == [("standby", 3)], "the role is the same"
    assert link.lost == 0


@pytest.mark.req("R7")
async def test_the_engine_is_told_to_hold_its_streams_and_that_they_may_go_on(ends: Ends) -> None:
    node, link = FakeNode(), FakeLink()
    ends.link.direct("standby", 3, active_at="")
    async with attached(ends.path, node, link=link):
        await ends.until(lambda: node.taken == [("standby", 3)])
        ends.link.tell_hold("schema_apart")
        ends.link.tell_hold("schema_apart")  # nothing new
        await ends.until(lambda: len(link.holds) == 2)
        ends.link.tell_hold("")
        await ends.until(lambda: len(link.holds) == 3)
    assert link.holds == ["", "the two nodes share no data layout: upgrade the older one", ""]
    assert node.taken == [("standby", 3)], "the role is the same"


async def test_half_a_path_is_none(ends: Ends) -> None:
    link = FakeLink()
    ends.link.tell_paths((pb.PeerPath(name="cable", address="169.254.9.1", state="half"),))
    ends.link.direct("standby", 3, active_at="")
    async with attached(ends.path, FakeNode(), link=link):
        await ends.until(lambda: bool(link.said))
    assert link.said[0][0].heard is Heard.SILENT


async def test_without_its_agent_the_engine_knows_nothing_of_beats(run_dir: Path) -> None:
    path, link = str(run_dir / "agent.sock"), FakeLink()
    async with attached(path, FakeNode(), link=link):
        async with listening(path) as ends:
            ends.link.direct("standby", 3, active_at="")
            await ends.until(lambda: bool(link.said))
            assert link.lost == 0
        async with asyncio.timeout(WITHIN_S):
            while link.lost == 0:
                await asyncio.sleep(0.01)


@pytest.mark.req("R6", "R10")
async def test_a_path_that_changes_in_the_middle_of_a_quiesce_does_not_end_it(ends: Ends) -> None:
    node, link = FakeNode(), FakeLink()
    node.replicated.clear()
    ends.link.tell_paths((CABLE, LAN))
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node, link=link):
        await ends.until_reported(lambda report: report.promoted == 2)
        quiescing = asyncio.create_task(ends.link.quiesce(within_s=WITHIN_S, end_backup=False))
        async with asyncio.timeout(WITHIN_S):
            await node.asked.wait()
        ends.link.tell_paths((LAN, DEAD_CABLE))
        await ends.until(lambda: len(link.said) == 2)
        node.replicated.set()
        assert (await quiescing).digest is not None


async def test_an_epoch_that_was_refused_is_not_refused_again_for_each_change_of_a_path(ends: Ends) -> None:
    node, events, link = FakeNode(), [], FakeLink()
    fenced = Fenced("cannot become active in", subject="epoch 2", reason="epoch 5 has been seen")
    node.fails = [fenced, fenced]
    ends.link.direct("active", 2, active_at="")
    async with attached(ends.path, node, events, link):
        await ends.until(lambda: any("refused" in event for event in events))
        ends.link.tell_paths((CABLE, LAN))
        await ends.until(lambda: AS_TOLD in link.said)
        await ends.until_reported(lambda _report: True)
    assert node.fails == [fenced]
