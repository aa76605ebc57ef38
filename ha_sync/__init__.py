"""The replication engine: capture, stream, apply, and what administers them."""
