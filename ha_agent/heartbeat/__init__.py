"""Beats: who is heard, on which path, how long ago."""
