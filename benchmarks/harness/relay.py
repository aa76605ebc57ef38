"""A relay between the nodes that can be cut: its connections reset at once, new ones refused until it opens again."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

RESET = struct.pack("ii", 1, 0)
CHUNK = 1 << 20


class Relay:
    """Listens on a free port of 127.0.0.1 and passes everything to ``target`` (host:port) and back."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = self._listen(0)
        self._port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._lock = threading.Lock()
        self._living: set[socket.socket] = set()
        self.accepted = 0  # connections since it was made
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        return listener

    def reset(self) -> None:
        """Ends every connection; new ones are taken at once."""
        with self._lock:
            living, self._living = self._living, set()
        for each in living:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut(self) -> None:
        """Ends every connection and refuses new ones."""
        listener = self._listener
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        self._accepting.join()
        self.reset()

    def open(self) -> None:
        """Takes connections again, on the same port."""
        self._listener = self._listen(self._port)
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                one, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                other = socket.create_connection(self._target, timeout=5)
            except OSError:
                one.close()
                continue
            other.settimeout(None)
            with self._lock:
                self._living |= {one, other}
            for source, sink in ((one, other), (other, one)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        room = memoryview(bytearray(CHUNK))
        with contextlib.suppress(OSError):
            while size := source.recv_into(room):
                sink.sendall(room[:size])
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._living.discard(each)
            each.close()
