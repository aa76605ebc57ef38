"""Replicate and Describe on the peer port, for the paired node only.

`Replicate` is registered by hand: its answers are bytes that `stream.wire` has already encoded, so that a payload is
not copied through protobuf. On the wire it is exactly what the .proto says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.errors import HaSyncError, ProtocolFault
from ha_sync.node import Node
from ha_sync.pairing.gate import Gate
from ha_sync.service.status_map import Context, abort, unary

SERVICE = "ha_proto.sync.v1.ReplicationService"


class ReplicationServicer:
    """What the Active offers to its Standby."""

    def __init__(
        self,
        node: Node,
        gate: Gate,
        *,
        node_id: str,
        shared: Callable[[], Awaitable[Mapping[str, str]]],
        dissolved: Callable[[], bool],
    ) -> None:
        """``shared``: versions of what both nodes share beside the data; ``dissolved``: whether the pair was ended."""
        self._node = node
        self._gate = gate
        self._node_id = node_id
        self._shared = shared
        self._dissolved = dissolved

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """To be added to the server."""
        methods = {
            "Replicate": grpc.stream_stream_rpc_method_handler(
                self.Replicate, request_deserializer=pb.SubscriberMessage.FromString, response_serializer=None
            ),
            "Describe": grpc.unary_unary_rpc_method_handler(
                self.Describe,
                request_deserializer=pb.DescribeRequest.FromString,
                response_serializer=pb.DescribeResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def Replicate(self, requests: AsyncIterator[pb.SubscriberMessage], context: Context) -> None:  # noqa: N802 - the name in the protocol
        """Serves one dataset to one subscriber."""
        try:
            caller = self._gate.authorize(context)
            first = await anext(aiter(requests), None)
            if first is None or first.WhichOneof("message") != "subscribe":
                raise ProtocolFault("refused a stream", reason="its first message is not Subscribe")
            await self._node.publish(first.subscribe, aiter(requests), context.write, peer_at=caller.address)
        except HaSyncError as error:
            await abort(context, error)

    @unary
    async def Describe(self, _request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802 - the name in the protocol
        """What is replicated here."""
        self._gate.authorize(context)
        role = self._node.role
        return pb.DescribeResponse(
            node_id=self._node_id,
            role=role.value if role else "",
            epoch=self._node.epoch,
            shared=await self._shared(),
            dissolved=self._dissolved(),
            datasets=[
                pb.DatasetDescription(name=item.settings.name, kind=item.settings.kind.value, absent=item.report.absent)
                for item in self._node.datasets()
            ],
        )
