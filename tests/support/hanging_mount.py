"""A mounted filesystem that never answers, as an NFS server that is gone: FUSE without a library, saying only hello.

Whoever asks it anything waits until ``gone``. Root only. Nothing of the test itself may touch the place meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import threading

INIT = 26
_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_HELLO = struct.Struct("<IIIIHHIIHHI28x")


def cannot_hang() -> str:
    """Why there is no such mount here; empty where there is."""
    if os.geteuid() != 0:
        return "only root mounts filesystems"
    return "" if os.path.exists("/dev/fuse") else "there is no /dev/fuse"


class HangingMount:
    """Mounted at its making, over whatever was there."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"silent:/export", os.fsencode(place), b"fuse", 0, options):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number), place)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 256 * 1024)
            except OSError:
                return  # it was unmounted
            _, operation, unique, *_ = _IN.unpack_from(request)
            if operation == INIT:
                body = _HELLO.pack(7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0)
                os.write(self._fd, _OUT.pack(_OUT.size + len(body), 0, unique) + body)

    def gone(self) -> None:
        """Everybody who waits is told so, and what was mounted before is seen again."""
        subprocess.run(["umount", "-f", "-l", self._place], check=True)
        self._thread.join(10)
        os.close(self._fd)
