"""What both sides of a join must agree on. Pure."""

from __future__ import annotations

import uuid

from ha_proto.sync.v1 import pairing_pb2

PROTOCOL = 1


def signed_parts(request: pairing_pb2.JoinRequest) -> tuple[bytes, ...]:
    """What the token's proof covers: every field but the proof itself."""
    return (
        str(request.protocol).encode(),
        request.token_id.encode(),
        request.certificate_request,
        request.node_id.encode(),
        request.node_name.encode(),
        request.address.encode(),
        request.mac.encode(),
        request.station_type.encode(),
    )


def is_node_id(text: str) -> bool:
    """Whether this is a node id as ``new_node_id`` makes them."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
