"""The agent's reasons in words: what is wrong, what to do about it, and how a command that met it ends.

The agent sends a reason as a code (``peer_not_ready``); words are made here, where they are shown. A text that is no
code is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ha_sync.cli.output import plain
from ha_sync.errors import HaSyncError, PeerUnreachable, Refused, WrongState


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """Of one code."""

    text: str
    remedy: str = ""
    kind: type[HaSyncError] = Refused


_SEE_PEER: Final = "see `ha-sync status` on the peer"

MEANINGS: Final[dict[str, Meaning]] = {
    "not_active": Meaning(
        text="this node is not the Active",
        remedy="ask the Active; if it is dead, `ha-sync switch --force` here",
        kind=WrongState,
    ),
    "peer_silent": Meaning(text="the peer is not heard", remedy=_SEE_PEER, kind=PeerUnreachable),
    "peer_heard": Meaning(text="the peer is alive", remedy="switch there, or stop it first"),
    "peer_not_ready": Meaning(text="the peer is not ready to take over", remedy="mend what it names, or --force"),
    "peer_refused": Meaning(text="the peer refused to take over", remedy=_SEE_PEER),
    "peer_lost": Meaning(text="the peer fell silent in the middle", remedy=_SEE_PEER, kind=PeerUnreachable),
    "peer_link_down": Meaning(text="the peer's LAN interface has no carrier", remedy="check its cable"),
    "backup_running": Meaning(text="a full backup is running", remedy="wait for its end, or end it with --force"),
    "busy": Meaning(
        text="the roles are changing already, or the node has just started",
        remedy="try again in a few seconds",
        kind=WrongState,
    ),
    "deadline": Meaning(
        text="the deadline passed before everything was on the peer",
        remedy="a longer --timeout, or --accept-data-loss",
        kind=HaSyncError,
    ),
    "quiesce_failed": Meaning(
        text="something still writes to the replicated data",
        remedy="stop it, or --accept-data-loss",
        kind=HaSyncError,
    ),
    "cancelled": Meaning(text="it was cancelled", kind=HaSyncError),
    "link_down": Meaning(text="the LAN interface has no carrier", remedy="check the cable"),
    "gateway_unseen": Meaning(text="the gateway does not answer", remedy="check the LAN"),
    "engine_gone": Meaning(text="the engine is gone", remedy="is `ha-sync serve` running?"),
    "unsound": Meaning(
        text="the data is inconsistent or was never fully synced", remedy="wait for the end of the full sync"
    ),
    "behind": Meaning(text="the data is behind the Active's", remedy="wait until it has caught up"),
    "faulty": Meaning(text="a health probe is bad", remedy="see `ha-sync status`"),
    "store_failed": Meaning(
        text="the epoch could not be stored durably", remedy="check the disk of state_dir", kind=HaSyncError
    ),
    "address_failed": Meaning(
        text="the kernel did not take the cluster IP", remedy="see `ha-sync logs events`", kind=HaSyncError
    ),
    "same_station": Meaning(
        text="both nodes have the same station type", remedy="make one of them secondary in its ha.toml"
    ),
    "settings_differ": Meaning(
        text="the settings of the two nodes contradict each other", remedy="make both ha.toml agree"
    ),
    "model_differs": Meaning(text="the two nodes are of different models"),
    "firmware_differs": Meaning(
        text="the two firmwares differ and no upgrade window is open",
        remedy="upgrade the other node; `ha-sync upgrade begin` allows it for a while",
    ),
    "schema_apart": Meaning(text="the two firmwares share no data layout", remedy="upgrade the older node"),
    "observing": Meaning(text="a node only observes", remedy="end observe-only in its ha.toml", kind=WrongState),
    "held": Meaning(text="held after repeated automatic switches", remedy="`ha-sync release` ends it", kind=WrongState),
    "maintenance": Meaning(text="maintenance", remedy="`ha-sync maintenance --end` ends it", kind=WrongState),
    "foreign_holder": Meaning(
        text="another device answers for the cluster IP", remedy="`ha-sync logs events` names its MAC"
    ),
}


def words(reason: str) -> str:
    """One reason for a person, safe for a terminal."""
    return MEANINGS[reason].text if reason in MEANINGS else plain(reason)


def list_of(reasons: Iterable[str]) -> str:
    """Several reasons on one line."""
    return "; ".join(words(reason) for reason in reasons)


def refusal(attempted: str, reason: str, kind: type[HaSyncError] | None = None) -> HaSyncError:
    """The error that a refused command ends with: of ``kind``, else as the code means; a mere text is a failure."""
    meaning = MEANINGS.get(reason) or Meaning(text=reason or "the agent gave no reason", kind=HaSyncError)
    return (kind or meaning.kind)(attempted, reason=plain(meaning.text), hint=meaning.remedy)
