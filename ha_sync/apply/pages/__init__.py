"""The Standby's copy of a database captured as pages: published whole and verified (DESIGN 4, 5)."""

from ha_sync.apply.pages.sink import PagesSink

__all__ = ["PagesSink"]
