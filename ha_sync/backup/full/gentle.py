"""Threads that read only when nobody else wants the disk.

The processor's priority is left alone: a thread that waits for the processor while it holds the interpreter's lock
would hold up the live stream with it.
"""

from __future__ import annotations

import ctypes
import platform
from concurrent.futures import ThreadPoolExecutor

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv7l": 314, "i686": 289}
_THIS_THREAD = (1, 0)  # IOPRIO_WHO_PROCESS, myself: ioprio_set(2)
_IDLE = 3 << 13


def quiet_executor(name: str) -> ThreadPoolExecutor:
    """One thread, in the disk's idle class where the kernel and its scheduler know that."""
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=read_when_idle)


def read_when_idle() -> None:
    """For the calling thread. What the kernel refuses is left as it is: the rate is bounded anyway."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, *_THIS_THREAD, _IDLE)
