"""How much of a stream may be under way: the Active's side of flow control. Pure; bytes.

A frame counts from the moment it is sent until the Standby says that its memory was released (`received`, cumulative).
A single frame larger than the window is let through alone, so nothing can wait for ever.
"""

from __future__ import annotations

from ha_sync.errors import ProtocolFault


class Window:
    """Cumulative bytes sent and received in one call."""

    def __init__(self, size: int) -> None:
        assert size > 0, size
        self._size = size
        self._sent = 0
        self._received = 0

    @property
    def under_way(self) -> int:
        """Bytes sent and not yet received."""
        return self._sent - self._received

    def fits(self, size: int) -> bool:
        """Whether a frame of ``size`` may be sent now."""
        return self.under_way == 0 or self.under_way + size <= self._size

    def sent(self, size: int) -> None:
        """A frame was handed to the transport."""
        self._sent += size

    def received(self, total: int) -> int:
        """The Standby's cumulative count; returns how much it released. Raises ProtocolFault where it cannot be."""
        if not self._received <= total <= self._sent:
            raise ProtocolFault(
                "refused an acknowledgement",
                subject=f"of {total} bytes",
                reason=f"between {self._received} and {self._sent} is possible",
            )
        released = total - self._received
        self._received = total
        return released
