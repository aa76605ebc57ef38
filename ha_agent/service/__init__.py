"""The agent's process and its gRPC API on the unix socket: the engine attaches there, tools ask there (R33)."""
