"""``ha-sync upgrade-plan``: the verb by its own name; what it says is decided in ``upgrade``."""

from ha_sync.cli.upgrade import upgrade_plan

__all__ = ["upgrade_plan"]
