"""The agent: heartbeats, the role of this node, the cluster IP. A stranger to the engine (``ha_sync``)."""
