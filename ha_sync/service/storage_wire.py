"""A storage as a node found it, on the wire and back."""

from __future__ import annotations

from typing import Any

from ha_proto.sync.v1 import storage_pb2 as pb
from ha_sync.external.inventory import Found

_FIELDS = tuple(Found.__slots__)


def found_to_wire(found: Found) -> pb.FoundStorage:
    """For the other node, and for this node's tools."""
    fields: dict[str, Any] = {name: getattr(found, name) for name in _FIELDS}
    return pb.FoundStorage(**fields)


def found_from_wire(message: pb.FoundStorage) -> Found:
    """As the other node said it."""
    return Found(**{name: getattr(message, name) for name in _FIELDS})
