"""``python -m ha_sync.sample.echo ADDRESS PORT``: sends UDP datagrams back from ADDRESS while this host has it.

The socket is bound to the address before it is there (IP_FREEBIND of ip(7)), so an answer comes as soon as it is. Runs
until it is ended.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

IP_FREEBIND: Final = 15  # linux/in.h; the socket module has no name for it
DATAGRAM_MAX: Final = 2048


def main(address: str, port: int) -> None:
    """Until it is ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        echo.bind((address, port))
        while True:
            try:
                data, sender = echo.recvfrom(DATAGRAM_MAX)
                echo.sendto(data, sender)
            except OSError:  # the address left between question and answer
                continue


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
