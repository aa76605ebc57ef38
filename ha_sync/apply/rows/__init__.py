"""Apply of a database that is captured by its rows (DESIGN 4, ``rows``)."""

from ha_sync.apply.rows.sink import RowsSink

__all__ = ["RowsSink"]
