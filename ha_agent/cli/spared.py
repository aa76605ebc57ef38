"""What the agent's process does without, for the sake of memory: 5 of its 45 MiB were OpenSSL.

asyncio loads ``ssl`` and hashlib ``_hashlib`` where they are, and both do without where they are not. The agent needs
neither: its one server is a unix socket (gRPC brings a TLS of its own), its digests are BLAKE2, which hashlib has in
itself. So they are said not to be there, before anything asks. Whatever needs TLS, such as the delivery of an
alarm, is a child process.

Invariant: a process that has loaded asyncio already, such as one of the tests, is left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

SPARED = ("ssl", "_ssl", "_hashlib")
_M_ARENA_MAX = -8  # mallopt(3)


def spare() -> None:
    """To be called before the first import of asyncio or hashlib. Whoever imports one of these gets ImportError."""
    if "asyncio" in sys.modules or "hashlib" in sys.modules:
        return
    for name in SPARED:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's way to say so
    # One heap for the dozen threads, most of which are gRPC's and idle, in place of one each. Another libc has no such.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
