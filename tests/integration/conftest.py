"""What several files of integration tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty tree of the Active."""
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Where its catalogue will be."""
    return tmp_path / "state" / "catalogue.db"
