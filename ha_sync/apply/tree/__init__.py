"""The Standby's end of a tree: stages frames, publishes groups whole, guards the tree, finishes it at promotion."""

from ha_sync.apply.tree.sink import TreeSink

__all__ = ["TreeSink"]
