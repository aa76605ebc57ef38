"""What a former Active knows to be on the other node, as its capture remembered it over a crash or a change of role.

Everything may be older than the truth, never newer: what is wrongly held for unacknowledged is recognised by its
content when it is merged. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from ha_sync.core.position import Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAcknowledged:
    """Of a database captured by rows."""

    epoch: Epoch
    device: int
    inode: int
    log: str  # hex: the log's own name
    logged: int  # the other node has what the log says up to here
    anything: bool  # it acknowledged something in this epoch
    whole: frozenset[str]  # tables whose content it may lack although no entry of the log says so


@dataclass(frozen=True, slots=True, kw_only=True)
class PagesAcknowledged:
    """Of a database captured as pages: the content that the other node has."""

    size: int
    block_size: int
    hashes: bytes  # 16 bytes a block


Acknowledged = RowsAcknowledged | PagesAcknowledged
