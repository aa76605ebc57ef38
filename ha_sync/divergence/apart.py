"""Runs the work on a live database in a process of its own (``child``), and ends it with its task."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys

from ha_sync.errors import HaSyncError, WrongState

END_S = 10.0
"""So long a child may take to end after its input ended: one transaction."""

ANSWER_MAX = 64 * 1024 * 1024

_ERRORS: dict[str, type[HaSyncError]] = {"state": WrongState}


async def run_apart(order: dict[str, object]) -> dict[str, object]:
    """The result of one order. Raises the child's HaSyncError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ha_sync.divergence.child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=ANSWER_MAX,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        answer, complaint = await asyncio.gather(process.stdout.read(), process.stderr.read())
        await process.wait()
    finally:
        process.stdin.close()
        await _ended(process)
    try:
        told = json.loads(answer)
    except ValueError:
        lines = complaint.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"it ended with {process.returncode}"
        raise HaSyncError("the process of a merge failed", reason=reason) from None
    if "error" in told:
        raise _ERRORS.get(told["error"]["kind"], HaSyncError)(told["error"]["sentence"])
    result: dict[str, object] = told["result"]
    return result


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
