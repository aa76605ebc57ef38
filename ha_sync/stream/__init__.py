"""Carries frames from a source on the Active to a sink on the Standby, in order, resumable, bounded."""
