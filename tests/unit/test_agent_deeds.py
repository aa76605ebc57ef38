"""What the arbiter says is done in order and answered; what fails is said and ends nothing."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import typing
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ha_agent
from ha_agent.agent.deeds import CALLS_MAX, Deeds
from ha_agent.agent.requests import Requests
from ha_agent.arbiter import actions as act
from ha_agent.arbiter import effects
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.state import Book
from ha_agent.arbiter.values import Cause, Epoch, Phase
from ha_agent.cluster_ip.holder import Probed
from ha_agent.cluster_ip.lease import HELD, Answer, Outcome
from ha_agent.commands import Ending, Finished
from ha_agent.settings import settings_of
from tests.unit.test_agent_settings import HA

WITHIN_S = 20.0
GONE = Answer(outcome=Outcome.GONE, reason="removed")
REFUSED = Answer(outcome=Outcome.REFUSED, reason="no such interface")


class FakeHolder:
    """Answers as it is told to, when it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: dict[str, Any] = {"add": HELD, "renew": HELD, "remove": GONE, "holds": True}
        self.open = asyncio.Event()
        self.open.set()

    async def _call(self, name: str) -> Any:
        self.calls.append(name)
        await self.open.wait()
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def add(self, **_facts: float) -> Any:
        return await self._call("add")

    async def renew(self, **_facts: float) -> Any:
        return await self._call("renew")

    async def remove(self) -> Any:
        return await self._call("remove")

    async def holds(self) -> Any:
        return await self._call("holds")

    async def probe(self, **_facts: Any) -> Any:
        return await self._call("probe")

    def hush(self) -> None:
        self.calls.append("hush")

    def announce(self, count: int) -> None:
        self.calls.append(f"announce {count}")


class World:
    """Deeds with fakes around them, and the events that they told."""

    def __init__(self, *, ha: dict[str, Any] | None = None) -> None:
        self.holder = FakeHolder()
        self.told: list[tuple[type, dict[str, Any]]] = []
        self.events: list[str] = []
        self.stored: list[Book] = []
        self.store_fails: list[Exception] = []
        self.ran: list[tuple[str, ...]] = []
        self.state = SimpleNamespace(holds=True, phase=Phase.ACTIVE, engine=None, epoch=Epoch(4))
        parts = SimpleNamespace(
            holder=self.holder,
            store=SimpleNamespace(store=self._store),
            events=SimpleNamespace(append=lambda _severity, what, _fields: self.events.append(what)),
            chronicle=SimpleNamespace(moved=lambda move, now: None),
            commands=SimpleNamespace(run=self._run),
            monitor=SimpleNamespace(vector=SimpleNamespace(bad=())),
        )
        self.deeds = Deeds(
            settings_of({"ha": HA | (ha or {})}, source="ha.toml"),
            parts,  # type: ignore[arg-type]
            tell=lambda kind, **facts: self.told.append((kind, facts)),
            state=lambda: self.state,  # type: ignore[arg-type,return-value]
            send_beat=lambda: None,
            requests=Requests(),
            clock=lambda: 1.0,
        )

    def _store(self, book: Book) -> None:
        if self.store_fails:
            raise self.store_fails.pop(0)
        self.stored.append(book)

    async def _run(self, command: tuple[str, ...], *, deadline_s: float) -> Finished:
        self.ran.append(command)
        return Finished(command=command, ending=Ending.FAILED, status=1, output="no", took_s=0.0)

    @property
    def kinds(self) -> list[type]:
        return [kind for kind, _ in self.told]

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not wanted():
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def working(world: World) -> AsyncIterator[World]:
    running = asyncio.create_task(world.deeds.run())
    try:
        yield world
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def move(row: str, after: Phase = Phase.STANDBY, cause: Cause = Cause.PLANNED) -> act.Moved:
    return act.Moved(row=row, why="", before=Phase.ACTIVE, after=after, cause=cause, epoch=Epoch(4))


ADD = act.AddAddress(epoch=Epoch(4), valid_until=9.0, not_after=9.0)
RENEW = act.RenewAddress(valid_until=9.0)


async def test_every_action_has_a_deed() -> None:
    assert set(World().deeds._how) == set(typing.get_args(act.Action))


async def test_every_event_is_told_by_somebody() -> None:
    told = set()
    for path in Path(ha_agent.__file__).parent.rglob("*.py"):
        if "arbiter" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ev":
                    told.add(node.attr)
    assert told == {kind.__name__ for kind in typing.get_args(ev.Event)}


@pytest.mark.req("R13")
async def test_calls_for_the_address_are_made_in_the_order_of_the_actions() -> None:
    async with working(World()) as world:
        world.holder.open.clear()
        world.deeds.perform((ADD, RENEW, act.RemoveAddress()))
        await world.until(lambda: "add" in world.holder.calls)
        assert "remove" not in world.holder.calls
        world.holder.open.set()
        await world.until(lambda: ev.AddressGone in world.kinds)
        # Who lets go announces nothing more, at once, whatever waits.
        assert world.holder.calls == ["hush", "add", "renew", "remove"]
        assert world.kinds == [ev.AddressAdded, ev.AddressGone]


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    ("action", "name", "answer", "event"),
    [
        (ADD, "add", REFUSED, ev.AddressFailed),
        (ADD, "add", Answer(outcome=Outcome.LATE), ev.AddressFailed),
        (ADD, "add", GONE, ev.AddressGone),
        (RENEW, "renew", REFUSED, ev.AddressFailed),
        (RENEW, "renew", GONE, ev.AddressGone),
    ],
)
async def test_an_address_that_is_not_held_is_told(action: Any, name: str, answer: Answer, event: type) -> None:
    async with working(World()) as world:
        world.holder.answers[name] = answer
        world.deeds.perform((action,))
        await world.until(lambda: bool(world.told))
        assert world.kinds == [event]


@pytest.mark.req("R13")
async def test_an_address_that_may_still_be_there_is_not_called_gone() -> None:
    async with working(World()) as world:
        world.holder.answers["remove"] = REFUSED
        world.deeds.perform((act.RemoveAddress(),))
        await world.until(lambda: bool(world.events))
        assert world.told == []


@pytest.mark.req("R13")
async def test_an_address_that_went_by_itself_is_noticed() -> None:
    async with working(World()) as world:
        world.holder.answers["holds"] = False
        world.deeds.look_whether_held()
        await world.until(lambda: world.kinds == [ev.AddressGone])


@pytest.mark.req("R13")
async def test_what_a_renewal_has_just_seen_is_not_asked_again() -> None:
    async with working(World()) as world:
        world.deeds.look_whether_held(unless_seen_since=0.5)
        world.deeds.perform((RENEW,))
        await world.until(lambda: world.holder.calls == ["holds", "renew"])
        world.deeds.look_whether_held(unless_seen_since=0.5)  # the renewal was at 1.0
        world.deeds.look_whether_held(unless_seen_since=1.5)
        world.deeds.look_whether_held()
        world.deeds.perform((RENEW,))
        await world.until(lambda: world.holder.calls.count("renew") == 2)
        assert world.holder.calls == ["holds", "renew", "holds", "holds", "renew"]


@pytest.mark.req("R13")
async def test_a_renewal_that_failed_has_seen_nothing() -> None:
    async with working(World()) as world:
        world.holder.answers["renew"] = REFUSED
        world.deeds.perform((RENEW,))
        await world.until(lambda: world.kinds == [ev.AddressFailed])
        world.deeds.look_whether_held(unless_seen_since=0.5)
        await world.until(lambda: world.holder.calls == ["renew", "holds"])


@pytest.mark.req("R31")
async def test_who_only_observes_misses_no_address() -> None:
    async with working(World(ha={"observe_only": True})) as world:
        world.holder.answers["holds"] = False
        world.deeds.look_whether_held()
        world.deeds.perform((act.RemoveAddress(),))
        await world.until(lambda: bool(world.told))
        assert "holds" not in world.holder.calls


async def test_a_kernel_that_stands_still_does_not_fill_the_memory() -> None:
    async with working(World()) as world:
        world.holder.open.clear()
        for _ in range(10 * CALLS_MAX):
            world.deeds.perform((RENEW,))
        await world.until(lambda: world.holder.calls == ["renew"])
        world.holder.open.set()
        world.deeds.look_whether_held()
        await world.until(lambda: len(world.holder.calls) >= CALLS_MAX)
        world.deeds.perform((act.RemoveAddress(),))
        await world.until(lambda: ev.AddressGone in world.kinds)
        assert world.holder.calls.count("renew") <= CALLS_MAX + 1


async def test_a_deed_that_fails_is_said_and_the_next_is_done() -> None:
    async with working(World()) as world:
        world.holder.answers["add"] = RuntimeError("broken")
        world.deeds.perform((ADD, act.RemoveAddress()))
        await world.until(lambda: world.kinds == [ev.AddressGone])
        assert world.events == ["a deed of the agent failed"]


@pytest.mark.req("R10")
@pytest.mark.parametrize("answer", [Probed(answered_by=None, sent=True), OSError("gone"), RuntimeError("broken")])
async def test_a_question_to_the_lan_is_always_answered_and_a_failure_proves_nothing(answer: Any) -> None:
    async with working(World()) as world:
        world.holder.answers["probe"] = answer
        world.deeds.perform((act.Probe(asked_at=0.5, count=3, wait_s=0.1),))
        await world.until(lambda: bool(world.told))
        sent = not isinstance(answer, Exception)
        assert world.told == [(ev.ProbeDone, {"asked_at": 0.5, "answered_by": None, "sent": sent})]


def book(promised: int) -> Book:
    return Book(promised=Epoch(promised))


@pytest.mark.req("R12")
async def test_of_several_books_that_wait_the_newest_is_written() -> None:
    world = World()
    world.deeds.perform((act.StoreBook(book=book(1)), act.StoreBook(book=book(2))))
    async with working(world):
        await world.until(lambda: world.told == [(ev.BookStored, {"book": book(2)})])
        assert world.stored == [book(2)]


@pytest.mark.req("R12")
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("can't start new thread")])
async def test_a_book_that_cannot_be_stored_is_said_and_the_next_one_is_tried(failure: Exception) -> None:
    async with working(World()) as world:
        world.store_fails = [failure]
        world.deeds.perform((act.StoreBook(book=book(1)),))
        await world.until(lambda: world.kinds == [ev.BookFailed])
        world.deeds.perform((act.StoreBook(book=book(1)),))
        await world.until(lambda: world.kinds == [ev.BookFailed, ev.BookStored])


@pytest.mark.req("R16")
async def test_the_old_active_restarts_its_machine_where_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ha_agent.agent.deeds.REBOOT_AFTER_S", 0.0)
    world = World(ha={"after_switch": "reboot"})
    async with working(world):
        world.deeds.perform((move("follow"),))
        world.deeds._served = True
        world.deeds.perform((move("go"), move("follow"), move("follow-on")))
        await world.until(lambda: "this machine could not be restarted" in world.events)
        assert world.ran == [("/usr/bin/systemctl", "reboot")], "once, and only after it served"


@pytest.mark.req("R16")
@pytest.mark.parametrize("ha", [{"after_switch": "services"}, {"after_switch": "reboot", "observe_only": True}])
async def test_no_machine_is_restarted_otherwise(ha: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ha_agent.agent.deeds.REBOOT_AFTER_S", 0.0)
    async with working(World(ha=ha)) as world:
        world.deeds._served = True
        world.deeds.perform((move("go"), act.RemoveAddress()))
        await world.until(lambda: ev.AddressGone in world.kinds)
        for _ in range(50):  # turns of the loop: whatever was begun would have run by now
            await asyncio.sleep(0)
        assert world.ran == []


@pytest.mark.req("R6")
def test_where_a_loss_is_accepted_what_still_runs_is_stopped_before_the_offer() -> None:
    state = SimpleNamespace(serial=1, lossy=True, forced=True, cause=Cause.FORCED, offer=None)
    out: list[Any] = []
    effects.offer_undrained(state, None, out)  # type: ignore[arg-type]
    assert [type(action) for action in out] == [act.StopServices, act.SendBeat]
