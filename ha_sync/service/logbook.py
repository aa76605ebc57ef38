"""The backup log and the storage log of one engine, and what the control API tells of them (R31).

Whatever is wrong with a request is a ``ConfigFault`` that names the field, its value and what it may be.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, TypeVar

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.core.dataset import Report
from ha_sync.core.examine import Finding
from ha_sync.errors import ConfigFault
from ha_sync.logs.runs import FINDINGS_MAX, Kind, LoggedRun, Result, RunLog

RUNS_LIMIT: Final = 100
RUNS_LIMIT_MAX: Final = 1_000_000
SINCE_MAX_UNIX_S: Final = 1e11
_ID_MAX: Final = 100

_Choice = TypeVar("_Choice", bound=enum.Enum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logbook:
    """Both logs, open."""

    backup: RunLog
    storage: RunLog

    def close(self) -> None:
        """Writes what is pending. Blocking."""
        self.backup.close()
        self.storage.close()

    def named(self, name: str) -> RunLog:
        """By the name that a request has."""
        logs = {"backup": self.backup, "storage": self.storage}
        if name not in logs:
            raise _fault("log", name, tuple(logs))
        return logs[name]


def open_logbook(state_dir: str, report: Report) -> Logbook:
    """Opens both; what an engine before left running is closed as interrupted. Does not block."""
    folder = os.path.join(state_dir, "logs")
    return Logbook(
        backup=RunLog(os.path.join(folder, "backup.db"), report=report),
        storage=RunLog(os.path.join(folder, "storage.db"), report=report),
    )


async def list_runs(logbook: Logbook, request: pb.ListRunsRequest) -> AsyncIterator[pb.RunRecord]:
    """Answers ``ListRuns``."""
    log = logbook.named(request.log)
    limit = request.limit or RUNS_LIMIT
    _in_range("limit", limit, 1, RUNS_LIMIT_MAX)
    _in_range("since_unix_s", request.since_unix_s, 0, SINCE_MAX_UNIX_S)
    result, kind = _choice("result", request.result, Result), _choice("kind", request.kind, Kind)

    def wanted(run: LoggedRun) -> bool:
        return (
            run.begun_unix_s >= request.since_unix_s
            and (result is None or run.result is result)
            and (kind is None or run.kind is kind)
            and (not request.id or run.id == request.id)
        )

    if request.id:
        known = [run for run in (await _existing(log, request),) if wanted(run)]
    else:
        query = functools.partial(log.query, since_unix_s=request.since_unix_s, result=result, kind=kind, limit=limit)
        known = await asyncio.to_thread(query)
    for run in known:
        yield record_of(run)
    if request.follow:
        async for run in log.follow(after_revision=max((run.revision for run in known), default=0)):
            if wanted(run):
                yield record_of(run)


async def list_findings(logbook: Logbook, request: pb.ListFindingsRequest) -> AsyncIterator[pb.FindingRecord]:
    """Answers ``ListFindings``."""
    log = logbook.named(request.log)
    limit = request.limit or FINDINGS_MAX
    _in_range("limit", limit, 1, RUNS_LIMIT_MAX)
    run = await _existing(log, request)
    for finding in await asyncio.to_thread(functools.partial(log.findings, run.id, limit=limit)):
        yield finding_of(finding)


async def _existing(log: RunLog, request: pb.ListRunsRequest | pb.ListFindingsRequest) -> LoggedRun:
    run = await asyncio.to_thread(log.get, request.id)
    if run is None:
        hint = f"`ha-sync logs {request.log}` lists the runs"
        raise ConfigFault("the call", (f"id: {request.id[:_ID_MAX]!r} is no run of the {request.log} log; {hint}",))
    return run


def record_of(run: LoggedRun) -> pb.RunRecord:
    """As the protocol has it."""
    tally = run.tally
    return pb.RunRecord(
        id=run.id,
        kind=run.kind.value,
        trigger=run.trigger.value,
        peer=run.peer,
        begin_unix_s=run.begun_unix_s,
        end_unix_s=run.ended_unix_s,
        took_s=run.took_s,
        result=run.result.value,
        objects=tally.objects,
        differing=tally.differing,
        repaired=tally.repaired,
        unverified=tally.unverified,
        bytes_read=tally.bytes_read,
        bytes_sent=tally.bytes_sent,
        findings=run.found,
        findings_kept=run.found_kept,
        reason=run.reason,
        error=run.error,
        facts=run.facts,
    )


def finding_of(finding: Finding) -> pb.FindingRecord:
    """As the protocol has it."""
    return pb.FindingRecord(
        dataset=finding.dataset,
        subject=finding.subject,
        fault=finding.fault.value,
        side=finding.side.value,
        repaired=finding.repaired,
        equal_until_unix_s=finding.equal_until_unix_s,
        detail=finding.detail,
    )


def _choice(field: str, text: str, kind: type[_Choice]) -> _Choice | None:
    if not text:
        return None
    known = {item.value: item for item in kind}
    if text not in known:
        raise _fault(field, text, tuple(known))
    return known[text]


def _in_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigFault("the call", (f"{field}: {value:g} is not between {low:g} and {high:g}",))


def _fault(field: str, value: str, known: tuple[str, ...]) -> ConfigFault:
    return ConfigFault("the call", (f"{field}: {value[:_ID_MAX]!r} is none of {', '.join(known)}",))
