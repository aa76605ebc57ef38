"""Capture of a database as the pages of an accepted lock-free copy: nothing touched, no lock taken (DESIGN 4)."""

from ha_sync.capture.pages.source import PagesSource

__all__ = ["PagesSource"]
