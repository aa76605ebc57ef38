"""The file that says "services may run here": units carry ``ConditionPathExists=`` of it (DESIGN 9a).

It lies on /run, which is empty after a boot: a node that comes up starts nothing by itself, whatever it was before. It
is made before the first start hook and removed before the first stop hook, so that nothing restarts what is being
stopped.
Blocking, but one call on a file system in memory.
"""

from __future__ import annotations

import contextlib
import os

from ha_agent.errors import OperatorNeeded


def allow(path: str, text: str) -> None:
    """Makes the file; ``text`` is for people. Raises ``OperatorNeeded`` where that is not possible."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.chmod(path, 0o644)
    except OSError as failed:
        raise OperatorNeeded(
            "cannot make the condition file",
            subject=path,
            reason=failed.strerror or str(failed),
            hint="units with ConditionPathExists will not start; mend the folder",
        ) from failed


def forbid(path: str) -> None:
    """Removes the file; it may be gone already. Raises ``OperatorNeeded`` where it cannot be removed."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as failed:
        raise OperatorNeeded(
            "cannot remove the condition file",
            subject=path,
            reason=failed.strerror or str(failed),
            hint="units may start at the next boot of this node; remove the file by hand",
        ) from failed
