"""A dataset on this node, in its present role, and what is told of it; the values that ``node`` works with.

One event loop. What an endpoint holds is changed by ``node`` alone.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

from ha_sync.apply.tree.trash import remove_tree
from ha_sync.config import DatasetSettings
from ha_sync.config.settings import Kind
from ha_sync.core.dataset import DatasetReport, Sink, Source
from ha_sync.files.places import MARKER, PARTIAL, STAGE, TRASH
from ha_sync.stream.subscriber import Subscriber


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Which pair this node belongs to."""

    cluster_id: str
    node_id: str
    peer_id: str  # "" until one joined
    founder: bool  # began the pair: before it ever served, its data is the pair's data


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """One dataset on this node, in its present role."""

    settings: DatasetSettings
    source: Source | None = None
    sink: Sink | None = None
    subscriber: Subscriber | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    publishing: asyncio.Task[None] | None = None
    subscriber_at: str = ""  # host:port from which the Standby called
    tried: asyncio.Event = field(default_factory=asyncio.Event)  # in this role: opened, or failed once
    fault: str = ""
    based: bool = False  # before this node served it, it was a copy of the other node's


@dataclass(slots=True, kw_only=True)
class Stillness:
    """What became of the data while the node stood still."""

    exchanged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatus:
    """A dataset's settings, its report and whether its stream is connected."""

    settings: DatasetSettings
    report: DatasetReport
    connected: bool
    peer_at: str = ""  # host:port of the other node's end of its stream


def take_tasks(endpoint: Endpoint) -> list[asyncio.Task[None]]:
    """What runs for it, to be cancelled; it has nothing any more."""
    tasks, endpoint.tasks = endpoint.tasks, []
    if endpoint.publishing is not None:
        tasks.append(endpoint.publishing)
    return tasks


def remove_hidden(settings: DatasetSettings) -> tuple[str, ...]:
    """The mark of a folder and what is hidden in it; held call files are the PBX's and stay. Blocking."""
    if settings.kind is not Kind.TREE:
        return ()
    try:
        folder = os.open(settings.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    try:
        found = [name for name in (STAGE, PARTIAL, TRASH, MARKER) if os.fsdecode(name) in os.listdir(folder)]
        for name in found:
            remove_tree(folder, name)
        return tuple(os.path.join(settings.path, os.fsdecode(name)) for name in found)
    finally:
        os.close(folder)
