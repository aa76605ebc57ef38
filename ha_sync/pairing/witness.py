"""Makes log entries of connections that TLS itself refuses: a stranger, an expired certificate.

gRPC gives such a connection no handler and no status; its core writes one line to standard error, without the peer's
address. So: descriptor 2 becomes a pipe, a thread passes everything on to the true standard error, and the core's line
becomes an event. The address comes from the kernel's table of connections, read before each handshake: whoever arrived
lately and was never let in. Where several are under way the entry names them all. Only for the engine's own process:
``install`` before it makes anything of gRPC (the core reads GRPC_VERBOSITY once), ``watch`` when it is paired. Linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator

from ha_sync.pairing.gate import Gate, Refusals
from ha_sync.pairing.keyring import Keyring

ARRIVALS_MAX = 256  # overflow: the oldest is forgotten; its refusal may be ascribed to another
HANDSHAKE_S_MAX = 30.0
LINE_MAX = 1 << 16
PIPE_BYTES = 1 << 20  # what any user may set (pipe(7))
PASS_ON_S = 2.0
_INFORMATIVE = re.compile(rb"^I\d{4} .*\.cc:\d+\] ")  # lines of the core that only GRPC_VERBOSITY=info brings
_WARNS_OF_INFO = b"Log level INFO is not suitable for production"
_REFUSED = re.compile(rb"Handshake failed with error (.*)$")
_MEANING = {
    "certificate has expired": "its certificate has expired, by this node's clock",
    "unable to get local issuer certificate": "its certificate was not given by this pair: a stranger, or a dead token",
    "self signed certificate": "its certificate was not given by this pair: a stranger",
    "certificate signature failure": "its certificate has a stranger's signature",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
}


class HandshakeWitness:
    """Watches one peer port: ``install``, ``watch``, and ``remove`` at the end."""

    def __init__(self, refusals: Refusals, *, port: int) -> None:
        self._refusals = refusals
        self._port = port
        self._arrivals: OrderedDict[str, float] = OrderedDict()
        self._present: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._true_stderr = -1
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """Takes over standard error."""
        assert self._thread is None, "installed twice"
        os.environ["GRPC_VERBOSITY"] = "info"
        self._true_stderr = os.dup(2)
        reading, writing = os.pipe()
        # A thread of the core that holds the interpreter's lock and waits for room here would wait for ever.
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.dup2(writing, 2)
        os.close(writing)
        self._thread = threading.Thread(target=self._pass_on, args=(reading,), name="stderr-witness", daemon=True)
        self._thread.start()

    def watch(self, keyring: Keyring, gate: Gate) -> None:
        """Begins to note who arrives at the peer port and who is let in."""
        keyring.on_connection(self.arrived)
        gate.on_let_in(self.let_in)

    def remove(self) -> None:
        """Gives standard error back. Blocks until what was written has been passed on, for a bounded time."""
        if self._thread is not None:
            os.dup2(self._true_stderr, 2)  # the pipe's last writing end closes here: the thread comes to its end
            self._thread.join(PASS_ON_S)  # a child that is still running may hold the pipe: let it
            if not self._thread.is_alive():
                os.close(self._true_stderr)
            self._thread = None

    def arrived(self) -> None:
        """A handshake begins, in a thread of gRPC's."""
        now = time.monotonic()
        with self._lock:
            present = frozenset(connections(self._port))
            for address in present - self._present:
                self._arrivals[address] = now
            self._present = present
            while len(self._arrivals) > ARRIVALS_MAX:
                self._arrivals.popitem(last=False)

    def let_in(self, address: str) -> None:
        """TLS let this caller in."""
        with self._lock:
            self._arrivals.pop(address, None)

    def _pass_on(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as stream:
            rest = b""
            while piece := stream.read(LINE_MAX):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._line(line)
                if len(rest) > LINE_MAX:
                    self._write(rest)
                    rest = b""
            if rest:
                self._write(rest)

    def _line(self, line: bytes) -> None:
        refused = _REFUSED.search(line)
        if refused is not None:
            self._tell(refused[1].decode(errors="replace"))
        elif not _INFORMATIVE.match(line) and _WARNS_OF_INFO not in line:
            self._write(line + b"\n")

    def _tell(self, text: str) -> None:
        known = (meaning for sign, meaning in _MEANING.items() if sign in text)
        reason = next(known, f"TLS: {text.rpartition('OPENSSL_internal:')[2]}")
        suspects = self._suspects()
        if suspects:  # else it was a handshake of this process' own, as a client: the dialer tells of it
            self._refusals.tell(peer=suspects, reason=reason, attempted="TLS handshake")

    def _suspects(self) -> str:
        now = time.monotonic()
        with self._lock:
            for address, at in list(self._arrivals.items()):
                if now - at > HANDSHAKE_S_MAX:
                    del self._arrivals[address]
            found = list(self._arrivals)
            if len(found) == 1:
                self._arrivals.clear()
        return " or ".join(found[:4])

    def _write(self, content: bytes) -> None:
        with contextlib.suppress(OSError):  # a closed standard error is nobody's fault here
            os.write(self._true_stderr, content)


def connections(port: int) -> Iterator[str]:
    """Remote addresses of this machine's TCP connections to its port ``port`` (proc(5): /proc/net/tcp)."""
    for path, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        try:
            with open(path, encoding="ascii") as table:
                rows = table.readlines()[1:]
        except OSError:
            continue
        wanted = f":{port:04X}"
        for row in rows:
            local, remote, state = row.split(maxsplit=4)[1:4]
            if local.endswith(wanted) and state != "0A":  # listening
                yield _address(remote, family)


def _address(text: str, family: socket.AddressFamily) -> str:
    host, _, port = text.partition(":")
    # Each 32-bit word stands in the machine's byte order.
    words = [int(host[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(host), 8)]
    packed = b"".join(words)
    if len(packed) == 16 and packed.startswith(b"\0" * 10 + b"\xff\xff"):
        packed, family = packed[12:], socket.AF_INET
    name = socket.inet_ntop(family, packed)
    return f"[{name}]:{int(port, 16)}" if family == socket.AF_INET6 else f"{name}:{int(port, 16)}"
