"""A sample PBX: does to its files what a real Asterisk does (docs/sample-pbx.md), and keeps a ledger of it.

Everything a test, a bench or the demo needs: settings and the command that starts it, the ``sync.toml`` of its tree,
and the checker that proves from the ledger what arrived on another node. Knows nothing of the engine.
"""

from ha_sync.sample.check import Verdict, check
from ha_sync.sample.settings import SampleSettings, start_command
from ha_sync.sample.synctoml import sync_toml

__all__ = ["SampleSettings", "Verdict", "check", "start_command", "sync_toml"]
