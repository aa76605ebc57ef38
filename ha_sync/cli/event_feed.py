"""Events of this node's engine and of its agent, as one list by time.

Each daemon keeps a log of its own, in the order of its ids; between the two only the wall clock tells. A follower asks
twice: what was, merged; then what comes, leaving out what it has shown already.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

import grpc

from ha_proto.agent.v1 import agent_pb2
from ha_proto.sync.v1 import control_pb2
from ha_sync.cli.client import AGENT, ENGINE, QUICK_S, Daemon, meaning_of, talk
from ha_sync.cli.failures import say
from ha_sync.cli.output import plain
from ha_sync.cli.times import moment
from ha_sync.errors import HaSyncError

OVERLAP: Final = 1000
"""Events that are asked for again when following begins: more cannot happen between the two questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event, and which daemon told it."""

    source: str  # engine | agent
    id: int  # grows within its source
    unix_s: float
    severity: str
    what: str
    fields: dict[str, str] = field(default_factory=dict)
    subject: str = ""  # of an alarm
    edge: str = "none"  # none | raised | cleared

    def line(self) -> str:
        """For a person, in local time."""
        what = self.what if self.edge == "none" else f"{self.edge}: {self.what}"
        about = f" ({plain(self.subject)})" if self.subject else ""
        fields = " ".join(f"{name}={plain(self.fields[name])}" for name in sorted(self.fields))
        return f"{moment(self.unix_s)} {self.severity:<7} {self.source:<6} {what}{about} {fields}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One daemon's log."""

    daemon: Daemon
    path: str
    request: type[Any]  # of its ListEvents; both have the same three fields

    @property
    def name(self) -> str:
        """The column of its events."""
        return self.daemon.name

    def history(self, since_unix_s: float, limit: int) -> list[Told]:
        """The newest so many since then, oldest first."""
        with talk(self.daemon, self.path) as stub:
            request = self.request(since_unix_s=since_unix_s, limit=limit)
            return [self._told(event) for event in stub.ListEvents(request, timeout=QUICK_S)]

    def pour(self, call: Any, after: int, show: Callable[[Told], None]) -> None:
        """Shows what comes in a following ``call`` and was not shown before. Raises when the daemon goes away."""
        try:
            for event in call:
                if event.id > after:
                    show(self._told(event))
        except grpc.RpcError as error:
            raise meaning_of(error, self.daemon, self.path) from error

    def _told(self, event: Any) -> Told:
        alarm = {"subject": event.subject, "edge": event.edge or "none"} if self.daemon is AGENT else {}
        return Told(
            source=self.name,
            id=event.id,
            unix_s=event.unix_s,
            severity=event.severity,
            what=event.what,
            fields=dict(event.fields),
            **alarm,
        )


def sources(engine_path: str, agent_path: str, chosen: str) -> tuple[Source, ...]:
    """The engine's log, the agent's, or both where ``chosen`` is empty."""
    both = (
        Source(daemon=ENGINE, path=engine_path, request=control_pb2.ListEventsRequest),
        Source(daemon=AGENT, path=agent_path, request=agent_pb2.ListEventsRequest),
    )
    return tuple(source for source in both if chosen in {"", source.name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What was, and who told it."""

    events: tuple[Told, ...]
    answered: tuple[Source, ...]

    def last_of(self, source: Source) -> int:
        """Id of the newest shown event of a source, 0 without one."""
        return max((event.id for event in self.events if event.source == source.name), default=0)


def past(asked: Sequence[Source], since_unix_s: float, limit: int) -> Past:
    """Merged by time. A source that is away is said and left out; raises the first's failure where all are."""
    lists, answered, failures = [], [], []
    for source in asked:
        try:
            lists.append(source.history(since_unix_s, limit))
            answered.append(source)
        except HaSyncError as error:
            failures.append(error)
    for failure in failures if answered else failures[1:]:
        say(failure)
    if not answered:
        raise failures[0]
    merged = heapq.merge(*lists, key=lambda event: event.unix_s)
    return Past(events=tuple(merged)[-limit:], answered=tuple(answered))


def follow(known: Past, since_unix_s: float, show: Callable[[Told], None]) -> None:
    """Shows what comes, until all sources have ended; raises the last one's failure.

    ``show`` is called in threads, one call at a time.
    """
    lock = Lock()

    def in_turn(event: Told) -> None:
        with lock:
            show(event)

    with ExitStack() as stack:
        # Entered first, left last: the threads end when their calls are cancelled.
        threads = stack.enter_context(ThreadPoolExecutor(len(known.answered)))
        pouring: dict[Future[None], Source] = {}
        for source in known.answered:
            stub = stack.enter_context(talk(source.daemon, source.path))
            call = stub.ListEvents(source.request(since_unix_s=since_unix_s, limit=OVERLAP, follow=True))
            stack.callback(call.cancel)
            pouring[threads.submit(source.pour, call, known.last_of(source), in_turn)] = source
        _await(pouring)


def _await(pouring: dict[Future[None], Source]) -> None:
    left = len(pouring)
    for ended in as_completed(pouring):
        left -= 1
        error = ended.exception()
        if error is None:
            continue
        if left == 0 or not isinstance(error, HaSyncError):
            raise error
        say(error)
