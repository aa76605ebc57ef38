"""Capture of a database by its rows: triggers log dirty keys, current rows are read later (DESIGN 4, ``rows``)."""

from ha_sync.capture.rows.source import RowsSource

__all__ = ["RowsSource"]
