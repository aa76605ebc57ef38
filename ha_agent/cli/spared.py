"""What the agent's process never loads, for the sake of memory: 5 of its 45 MiB were OpenSSL.

asyncio loads ``ssl`` and hashlib ``_hashlib`` where they are, and both do without where they are not. The agent needs
neither: its one server is a unix socket (gRPC brings a TLS of its own), its digests are BLAKE2, which hashlib has in
itself. So they are said not to be there, before anything asks. Whatever needs TLS one day belongs into a child process.

Invariant: a process that has loaded asyncio already, such as one of the tests, is left as it is.
"""

from __future__ import annotations

import sys

SPARED = ("ssl", "_ssl", "_hashlib")


def spare() -> None:
    """To be called before the first import of asyncio or hashlib. Whoever imports one of these gets ImportError."""
    if "asyncio" in sys.modules or "hashlib" in sys.modules:
        return
    for name in SPARED:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's way to say so
