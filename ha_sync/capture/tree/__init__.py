"""A tree of files on the Active: watches, scans, and the frames that bring the Standby's copy up to date."""

from ha_sync.capture.tree.source import TreeSource

__all__ = ["TreeSource"]
