"""The arithmetic of the lease. Pure; seconds.

The kernel counts whole seconds and takes an address away 0.1 s before to 0.9 s after its lifetime (measured), so a
lease from evidence at ``e`` is over, even if this process never runs again, at ``e + lease + KERNEL_LATE_S`` at the
latest. The other node waits until ``e + T``; ``Settings.lease_s`` of the arbiter leaves that room (a test holds it).
"""

from __future__ import annotations

import math

KERNEL_LATE_S = 1.9
"""0.9 s of the kernel, and up to one for a lifetime that is not whole seconds."""


def valid_s(left_s: float) -> int:
    """The kernel's ``valid_lft`` for a lease with ``left_s`` to go; never 0, which the kernel refuses.

    Rounded down; only below one second up, which ``KERNEL_LATE_S`` covers.
    """
    assert left_s > 0, left_s
    return max(1, math.floor(left_s))


def gone_for_certain_at(valid_until: float) -> float:
    """When the kernel has removed an address whose last lease ended at ``valid_until``, whatever this process did."""
    return valid_until + KERNEL_LATE_S


def may_call(*, now: float, not_after: float) -> bool:
    """Asked right before each call that adds or renews, and right after it: no means delete."""
    return now < not_after
