"""Packs, checks and stages in a process of its own: ``python -m ha_sync.backup.package``.

The task comes as one JSON document on standard input. An export's package goes to standard output. What the parent
must know goes to standard error, a JSON object a line: ``expect`` (what there is to do), ``done`` (bytes so far), and
at last ``result`` or ``error``. The process is nicer than the engine, so that calls and streams do not wait for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import IO, Any, Final

import apsw

from ha_sync.backup.package.databases import user_version_of
from ha_sync.backup.package.exporting import Exporter, expect
from ha_sync.backup.package.fit import Fit, NodeFacts, fit
from ha_sync.backup.package.format import Head
from ha_sync.backup.package.plan import DatasetPlan, plans_in
from ha_sync.backup.package.reader import Package, Verified
from ha_sync.backup.package.staging import Stager, require_room
from ha_sync.errors import HaSyncError, OperatorNeeded, Refused

TELL_EVERY_S: Final = 0.2
NICE: Final = 10
_PR_SET_PDEATHSIG: Final = 1


class Teller:
    """Progress for the parent."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._done = 0
        self._told = float("-inf")

    def tell(self, **facts: object) -> None:
        """One line."""
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()

    def spend(self, count: int) -> None:
        """So many bytes more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._told >= TELL_EVERY_S:
            self._told = now
            self.tell(done=self._done)


def main() -> int:
    """The process."""
    teller = Teller(sys.stderr)
    try:
        os.nice(NICE)
        task = json.loads(sys.stdin.read())
        _die_with_parent(task["parent"])
        result = TASKS[task["do"]](task, teller)
    except HaSyncError as error:
        teller.tell(error=asdict_of(error))
        return error.exit_code
    except BrokenPipeError:
        return 1  # the parent has gone, or reads no more
    except (OSError, apsw.Error, MemoryError) as error:
        teller.tell(error=asdict_of(OperatorNeeded("the package failed", reason=str(error))))
        return OperatorNeeded.exit_code
    teller.tell(result=result)
    return 0


def _die_with_parent(parent: int) -> None:
    """An engine that starts again tidies up what its dead one left: nobody may still be writing there."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0 or os.getppid() != parent:
        raise SystemExit(1)


def export(task: dict[str, Any], teller: Teller) -> dict[str, Any]:
    """Packs to standard output."""
    plans = plans_in(task["plans"])
    teller.tell(expect=asdict(expect(plans, spool_dir=task["spool"])))
    head = Head(**task["head"], datasets=())
    out = sys.stdout.buffer
    packed = Exporter(plans, head, spool_dir=task["spool"], spend=teller.spend).pack(out)
    out.flush()
    return asdict(packed)


def verify(task: dict[str, Any], teller: Teller) -> dict[str, Any]:
    """Reads all of a package, checks it, and says whether it fits this node."""
    with Package(task["path"]) as package:
        verified, answer = _verified(package, task, teller, times=2)
        return _told(verified, answer)


def stage(task: dict[str, Any], teller: Teller) -> dict[str, Any]:
    """The same, and then puts its content beside the data."""
    plans = {plan.name: plan for plan in plans_in(task["plans"])}
    with Package(task["path"]) as package:
        verified, answer = _verified(package, task, teller, times=4)
        if answer.refusals:
            raise Refused("refused the package", subject=task["path"], reason=answer.reason)
        chosen = {name: plans[name] for name in answer.chosen}
        require_room(package, chosen)
        staged = Stager(chosen, spend=teller.spend).stage(package)
        return {**_told(verified, answer), "staged": asdict(staged)}


TASKS: Final = {"export": export, "verify": verify, "stage": stage}


def _verified(package: Package, task: dict[str, Any], teller: Teller, *, times: int) -> tuple[Verified, Fit]:
    # Of the whole once as it is on disk, then decoded; staging reads it again and writes it.
    teller.tell(expect={"objects": package.head.entries, "content_bytes": package.size + _times(package, times)})
    verified = package.verify(teller.spend)
    facts = task["facts"]
    plans = plans_in(task["plans"])
    node = NodeFacts(
        cluster_id=facts["cluster_id"],
        model=facts["model"],
        firmware=facts["firmware"],
        kinds={plan.name: plan.kind for plan in plans},
        versions=_versions(plans),
    )
    return verified, fit(package.head, node, datasets=tuple(task["datasets"]), foreign=task["foreign"])


def _times(package: Package, times: int) -> int:
    return package.head.content_bytes * times // 2


def _versions(plans: tuple[DatasetPlan, ...]) -> dict[str, int | None]:
    return {plan.name: user_version_of(plan.path) for plan in plans if plan.kind == "sqlite"}


def _told(verified: Verified, answer: Fit) -> dict[str, Any]:
    head = verified.head
    return {
        "head": {**asdict(head), "datasets": [asdict(one) for one in head.datasets]},
        "entries": verified.entries,
        "content_bytes": verified.content_bytes,
        "package_bytes": verified.package_bytes,
        "moving": verified.moving,
        "chosen": answer.chosen,
        "refusals": answer.refusals,
        "notes": answer.notes,
    }


def asdict_of(error: HaSyncError) -> dict[str, object]:
    """So that the parent can raise it again."""
    return {
        "class": type(error).__name__,
        "attempted": error.attempted,
        "subject": error.subject,
        "reason": error.reason,
        "hint": error.hint,
    }
