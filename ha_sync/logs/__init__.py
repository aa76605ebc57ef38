"""Event log of the engine: bounded, queryable, one writer."""
