"""The operator's command, one verb per file."""
