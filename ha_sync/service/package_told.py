"""What a package says of itself, as the protocol tells it."""

from __future__ import annotations

from typing import Any

from ha_proto.sync.v1 import control_pb2 as pb


def told_of(result: dict[str, Any]) -> pb.PackageTold:
    """From the result of a check."""
    head = result["head"]
    return pb.PackageTold(
        format=head["format"],
        made_by=head["made_by"],
        cluster_id=head["cluster_id"],
        node_id=head["node_id"],
        node=head["node"],
        role=head["role"],
        epoch=head["epoch"],
        model=head["model"],
        firmware=head["firmware"],
        created=head["created"],
        entries=result["entries"],
        content_bytes=result["content_bytes"],
        package_bytes=result["package_bytes"],
        moving=result["moving"],
        datasets=[_dataset(one) for one in head["datasets"]],
        chosen=result["chosen"],
        refusals=result["refusals"],
        notes=result["notes"],
    )


def _dataset(one: dict[str, Any]) -> pb.PackageDataset:
    schema = one["schema"]
    return pb.PackageDataset(
        name=one["name"],
        kind=one["kind"],
        position=one["position"],
        present=one["present"],
        user_version=None if schema is None else schema["user_version"],
        notes=one["notes"],
    )
