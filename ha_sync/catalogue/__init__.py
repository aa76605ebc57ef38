"""What this node has and how far its peer is, durably: SQLite files of our own."""
