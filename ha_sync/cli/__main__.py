"""``python -m ha_sync.cli``: the same as ``ha-sync``."""

from ha_sync.cli.main import main

main()
