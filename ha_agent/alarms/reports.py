"""What the management service is told of a role change (R17). Pure.

The new Active reports, once for each epoch, and again when what it says of the pair has changed: another node in the
place of one, another domain. A node's reports come in order and bear a sequence without gaps; between the two nodes the
epoch is the order, and a receiver forgets what is of a lower epoch than it has.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ha_agent.settings.values import ReportSettings

VERSION = 1
TYPES = {"primary": "host", "secondary": "spare"}
"""The management service's words for the station types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One of the two nodes."""

    station_type: str  # primary | secondary
    mac: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFacts:
    """What this node knows of the pair."""

    cluster_id: str
    node: str  # this node's name
    cluster_addresses: tuple[str, ...]
    own: Station
    peer: Station


def report_of(facts: PairFacts, settings: ReportSettings, *, epoch: int, cause: str) -> dict[str, Any]:
    """This node is Active: everything but sequence and time."""
    both = sorted((facts.own, facts.peer), key=lambda node: node.station_type)
    primary = next((node for node in both if node.station_type == "primary"), facts.own)
    return {
        "version": VERSION,
        "kind": "role",
        "cluster_id": facts.cluster_id,
        "epoch": epoch,
        "cause": cause,
        "reporter": {"name": facts.node, "mac": facts.own.mac},
        "active_mac": facts.own.mac,
        "cluster_addresses": list(facts.cluster_addresses),
        "nodes": [_node(node, active=node is facts.own) for node in both],
        # It follows the Active, and is bound to the MAC of the node that serves it.
        "cloud_im": {"mac": facts.own.mac} if settings.cloud_im else None,
        # It belongs to the Primary, whoever is Active.
        "custom_domain": (
            {"name": settings.custom_domain, "mac": primary.mac} if settings.custom_domain else None
        ),
    }  # fmt: skip


def digest_of(report: Mapping[str, Any]) -> str:
    """What makes two reports say the same: all but why."""
    said = {name: value for name, value in report.items() if name != "cause"}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def dated(report: Mapping[str, Any], *, sequence: int, unix_s: float) -> dict[str, Any]:
    """Ready to be queued."""
    at = dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).isoformat(timespec="milliseconds")
    return {**report, "sequence": sequence, "at": at}


def _node(node: Station, *, active: bool) -> dict[str, str]:
    return {
        "mac": node.mac,
        "address": node.address,
        "station_type": node.station_type,
        "type": TYPES[node.station_type],
        "role": "active" if active else "standby",
    }
