"""``[metrics]`` and ``[api]``: the two ports of the engine that are closed unless the file says where they listen."""

from __future__ import annotations

from ha_sync.config import place
from ha_sync.config.reading import Faults, Table
from ha_sync.config.settings import ApiSettings, MetricsSettings

ADDRESSES_MAX = 16
CLIENTS_MAX = 256
NAME_MAX = 64  # of a common name (RFC 5280)
FILES = ("certificate", "key", "client_authority")


def parse_metrics(top: Table, faults: Faults) -> MetricsSettings:
    """``[metrics]``."""
    table = Table("metrics", top.table("metrics", "[metrics]") or {}, faults)
    listen = table.one_or_more("listen", (), place.listen_address, most=ADDRESSES_MAX)
    table.finish()
    return MetricsSettings(listen=listen)


def parse_api(top: Table, faults: Faults) -> ApiSettings:
    """``[api]``."""
    table = Table("api", top.table("api", "[api]") or {}, faults)
    listen = table.one_or_more("listen", (), place.listen_address, most=ADDRESSES_MAX)
    files = {key: table.text(key, "", place.absolute_path) for key in FILES}
    clients = table.texts("clients", _name, most=CLIENTS_MAX)
    if table.has("listen"):
        for key in FILES:
            if not table.has(key):
                table.fault(key, "is missing: the port is open to whoever has a certificate, and to nobody else")
    else:
        for key in (*FILES, "clients"):
            if table.has(key):
                table.fault(key, "says nothing without `listen`: state it, or drop this key")
    table.finish()
    return ApiSettings(listen=listen, clients=clients, **files)


def _name(text: str) -> str:
    return "" if 0 < len(text) <= NAME_MAX else f"must have 1 to {NAME_MAX} characters"
