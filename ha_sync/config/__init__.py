"""The engine's settings: ``sync.toml`` parsed once into frozen dataclasses, all faults reported together.

Unknown keys fail. Every fault names the field, the value and the remedy. Paths are absolute. Sizes in MiB, times in
the unit that the key's name ends with.
"""

from __future__ import annotations

from ha_sync.config.parse import load, load_node, shared_text
from ha_sync.config.settings import (
    DEFAULT_CONFIG,
    DEFAULT_PEER_PORT,
    SOCKET_NAME,
    ApiSettings,
    BackupSettings,
    CaptureMode,
    Compression,
    DatasetSettings,
    DivergenceSettings,
    Hold,
    Kind,
    Medium,
    Merge,
    MetricsSettings,
    Mode,
    NodeLocalRows,
    NodeSettings,
    Settings,
    SqliteSettings,
    StorageSettings,
    StreamSettings,
    TreeSettings,
)

__all__ = [
    "DEFAULT_CONFIG",
    "DEFAULT_PEER_PORT",
    "SOCKET_NAME",
    "ApiSettings",
    "BackupSettings",
    "CaptureMode",
    "Compression",
    "DatasetSettings",
    "DivergenceSettings",
    "Hold",
    "Kind",
    "Medium",
    "Merge",
    "MetricsSettings",
    "Mode",
    "NodeLocalRows",
    "NodeSettings",
    "Settings",
    "SqliteSettings",
    "StorageSettings",
    "StreamSettings",
    "TreeSettings",
    "load",
    "load_node",
    "shared_text",
]
