"""The steps of a storage's sync, with a stream, a plan and an examiner that are told what to do."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest

from ha_sync.core.examine import Depth, Examined, Finding, Peer, Run
from ha_sync.errors import Refused, Retryable
from ha_sync.external.syncing import Needed, StorageSync

pytestmark = pytest.mark.req("R9")

DONE = Examined(objects=3, content_bytes=0, differing=0, repaired=0, unverified=0)


@dataclass
class Stream:
    """What the live stream of a storage does."""

    away: str = ""
    admitted: bool = False
    in_full_sync: bool = True
    connected: bool = True
    backlog: int = 3
    objects: int = 3
    sent_bytes: int = 0
    held: list[bool] = field(default_factory=list)
    barriers: int = 0

    def arrive(self) -> None:
        """All of it is on the Standby."""
        self.in_full_sync, self.backlog = False, 0

    async def admit(self, *, admitted: bool) -> None:
        self.admitted = admitted

    def hold(self, *, held: bool) -> None:
        if self.held[-1:] != [held]:
            self.held.append(held)

    async def replicated(self) -> None:
        assert not self.in_full_sync
        self.barriers += 1


@dataclass
class TheRun:
    """The run it is part of."""

    going: asyncio.Event = field(default_factory=asyncio.Event)
    phases: list[str] = field(default_factory=list)
    depth: Depth = Depth.METADATA
    cursor: bytes = b""
    equal_until_unix_s: float | None = None
    expected: int = 0

    async def spend(self, content_bytes: int) -> None:
        await self.going.wait()

    def in_phase(self, words: str) -> None:
        self.phases.append(words)

    def expect(self, *, objects: int, content_bytes: int) -> None:
        self.expected = objects

    def sending(self, *, objects: int, content_bytes: int) -> None: ...
    def advance(self, *, objects: int, content_bytes: int) -> None: ...
    def found(self, finding: Finding) -> None: ...
    async def replicated(self) -> None: ...
    async def reached(self, cursor: bytes) -> None: ...


class Compares:
    """The tree's examiner."""

    async def examine(self, peer: Peer, run: Run) -> Examined:
        run.expect(objects=3, content_bytes=0)
        return DONE


class Asked:
    """A peer that is never asked here."""

    def ask(self, question: bytes) -> contextlib.AbstractAsyncContextManager[bytes]:
        raise AssertionError(question)


@dataclass
class Site:
    """All together."""

    stream: Stream
    run: TheRun
    refuses: str = ""

    async def plan(self, peer: Peer, run: Run) -> Needed:
        if self.refuses:
            raise Refused("will not", reason=self.refuses)
        return Needed(objects=3, content_bytes=30)

    def begin(self) -> asyncio.Task[Examined]:
        sync = StorageSync("usb0", self.stream, plan=self.plan, examiner=Compares)
        return asyncio.ensure_future(sync.examine(Asked(), self.run))  # type: ignore[arg-type]


@pytest.fixture
async def site() -> Site:
    made = Site(stream=Stream(), run=TheRun())
    made.run.going.set()
    return made


async def until(condition: object) -> None:
    async with asyncio.timeout(20):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_the_first_sync_plans_admits_sends_and_compares(site: Site) -> None:
    site.stream.arrive()
    assert await site.begin() == DONE
    assert site.run.phases == ["planning", "sending", "comparing"]
    assert site.stream.admitted


async def test_a_later_one_needs_no_plan(site: Site) -> None:
    site.stream.admitted, site.refuses = True, "a plan was made"
    site.stream.arrive()
    assert await site.begin() == DONE
    assert site.run.phases == ["sending", "comparing"]


async def test_what_is_refused_is_never_admitted(site: Site) -> None:
    site.refuses = "lacks room"
    with pytest.raises(Refused, match="lacks room"):
        await site.begin()
    assert not site.stream.admitted


async def test_a_pause_holds_the_stream_until_it_goes_on(site: Site) -> None:
    work = site.begin()
    await until(lambda: "sending" in site.run.phases)
    site.run.going.clear()
    await until(lambda: site.stream.held[-1:] == [True])
    site.run.going.set()
    await until(lambda: site.stream.held[-1:] == [False])
    site.stream.arrive()
    assert await work == DONE


async def test_a_first_sync_that_is_cancelled_takes_the_admission_back(site: Site) -> None:
    work = site.begin()
    await until(lambda: site.stream.admitted)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: not site.stream.admitted)


async def test_a_later_sync_that_is_cancelled_leaves_the_stream_as_it_is(site: Site) -> None:
    site.stream.admitted = True
    work = site.begin()
    await until(lambda: "sending" in site.run.phases)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await asyncio.sleep(0)
    assert site.stream.admitted


async def test_a_storage_that_is_away_is_waited_for(site: Site) -> None:
    site.stream.away = "nothing is mounted"
    site.stream.arrive()
    work = site.begin()
    await until(lambda: site.run.phases == ["waiting for the storage"])
    site.stream.away = ""
    assert await work == DONE


async def test_one_that_goes_away_in_mid_run_ends_this_part_of_it_and_stays_admitted(site: Site) -> None:
    work = site.begin()
    await until(lambda: "sending" in site.run.phases)
    site.stream.away = "nothing is mounted"
    with pytest.raises(Retryable, match="nothing is mounted"):
        await work
    assert site.stream.admitted
