"""Which way to the other node a stream goes: the addresses that are known, in order, and when to change. Pure.

The order is that of whoever made it: the agent, which hears beats on every path, then sync.toml or the pairing. A path
that is silent, or that failed within the last FAILED_S, stands behind all others. A new stream goes where the others
go, and a stream stays where it is until its path is silent or breaks. It goes back to a better path only when that one
has been good for STEADY_S and has answered since, and at a quiet moment: a cable with a loose contact must not drag
the streams to and fro.

Invariants: ``order`` names every known address once; a stream never leaves for a path that is silent. Seconds are
monotonic.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

STEADY_S = 30.0
FAILED_S = 10.0


class Heard(enum.Enum):
    """What the agent says of the beats on a path."""

    HEARD = "heard"
    UNKNOWN = "unknown"  # no agent, or it does not know yet
    SILENT = "silent"  # nothing comes, or nothing gets there


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPath:
    """One way to the other node."""

    name: str = ""  # as in ha.toml; empty: an address of sync.toml or of the pairing
    address: str  # host:port, unique
    heard: Heard = Heard.UNKNOWN

    def __str__(self) -> str:
        return f"{self.name} ({self.address})" if self.name else self.address


class Why(enum.Enum):
    """Why a stream changed its path."""

    SILENT = "no heartbeats on the path"
    FAILED = "the path failed"
    GONE = "the path is not named any more"
    BETTER = "a better path is back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The streams go another way than before."""

    before: PeerPath
    after: PeerPath
    why: Why


class Paths:
    """What one node knows of its ways to the other."""

    def __init__(self) -> None:
        self.known: tuple[PeerPath, ...] = ()  # the best first
        self._bad_at: dict[str, float] = {}  # when last it was silent or failed
        self._failed_at: dict[str, float] = {}
        self._answered: set[str] = set()  # since it was bad
        self._used: PeerPath | None = None

    @property
    def used(self) -> PeerPath | None:
        """The path of the newest stream."""
        return self._used

    def know(self, paths: tuple[PeerPath, ...], *, now: float) -> None:
        """What there is, the best first; of an address that stands there twice the first counts."""
        before = {path.address: path for path in self.known}
        first: dict[str, PeerPath] = {}
        for path in paths:
            first.setdefault(path.address, path)
        self.known = tuple(first.values())
        for path in self.known:
            was = before.get(path.address, path)
            if Heard.SILENT in {path.heard, was.heard}:
                self._spoil(path.address, now)
        addresses = {path.address for path in self.known}
        self._bad_at = {address: at for address, at in self._bad_at.items() if address in addresses}
        self._failed_at = {address: at for address, at in self._failed_at.items() if address in addresses}
        self._answered &= addresses

    def answered(self, address: str) -> None:
        """The other node was reached there, and proved who it is."""
        self._answered.add(address)
        self._failed_at.pop(address, None)

    def failed(self, address: str, *, now: float) -> None:
        """It was not."""
        self._failed_at[address] = now
        self._spoil(address, now)

    def taken(self, path: PeerPath, *, now: float) -> Moved | None:
        """A stream goes there now."""
        before, self._used = self._used, path
        if before is None or before.address == path.address:
            return None
        return Moved(before=before, after=path, why=self._why(before.address, now=now))

    def rest(self) -> None:
        """This node has no streams: where they went is forgotten."""
        self._used = None

    def order(self, *, now: float) -> tuple[PeerPath, ...]:
        """In which order to dial."""
        wanted = (self.better(self._used.address, now=now) or self._used).address if self._used else ""

        def rank(path: PeerPath) -> tuple[bool, bool, bool]:
            return (path.heard is Heard.SILENT, self._bad_lately(path.address, now), path.address != wanted)

        return tuple(sorted(self.known, key=rank))  # stable: what is equal stays in the order of preference

    def must_leave(self, address: str, *, now: float) -> Why | None:
        """Why a stream that goes there has to go elsewhere at once, if there is anything better to try."""
        path = self._find(address)
        # What failed is not tried again and again: beats and streams may differ (a firewall, a dead agent over there).
        elsewhere = any(
            other.address != address
            and other.heard is not Heard.SILENT
            and not self._failed(other.address, STEADY_S, now)
            for other in self.known
        )
        if not elsewhere:
            return None
        if path is None:
            return Why.GONE
        return Why.SILENT if path.heard is Heard.SILENT else None

    def better(self, address: str, *, now: float) -> PeerPath | None:
        """Where a stream that goes there should go when it is quiet."""
        return next((path for path in self.preferred(address) if self._steady(path.address, now)), None)

    def preferred(self, address: str) -> tuple[PeerPath, ...]:
        """What would be better than that path, if it answers."""
        index = next((at for at, path in enumerate(self.known) if path.address == address), len(self.known))
        return tuple(path for path in self.known[:index] if path.heard is not Heard.SILENT)

    def state_of(self, path: PeerPath, *, now: float) -> str:
        """For people: what the beats say of it, or that it failed although they come."""
        failed = self._failed(path.address, FAILED_S, now)
        return "failed" if failed and path.heard is not Heard.SILENT else path.heard.value

    def name_of(self, host: str) -> str:
        """What the path is called at whose other end the other node has this address."""
        return next((path.name for path in self.known if host_of(path.address) == host), "")

    def _why(self, address: str, *, now: float) -> Why:
        path = self._find(address)
        if path is None:
            return Why.GONE
        if path.heard is Heard.SILENT:
            return Why.SILENT
        return Why.FAILED if self._bad_lately(address, now) else Why.BETTER

    def _find(self, address: str) -> PeerPath | None:
        return next((path for path in self.known if path.address == address), None)

    def _spoil(self, address: str, now: float) -> None:
        self._bad_at[address] = now
        self._answered.discard(address)

    def _bad_lately(self, address: str, now: float) -> bool:
        return now - self._bad_at.get(address, float("-inf")) < FAILED_S

    def _failed(self, address: str, within_s: float, now: float) -> bool:
        """And has not answered since."""
        return now - self._failed_at.get(address, float("-inf")) < within_s

    def _steady(self, address: str, now: float) -> bool:
        return address in self._answered and now - self._bad_at.get(address, float("-inf")) >= STEADY_S


def at_port(host: str, port: str) -> str:
    """``host:port``, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """Of ``host:port``, without brackets and interface; an IPv4 address that came in at an IPv6 socket is IPv4."""
    return address.rpartition(":")[0].strip("[]").partition("%")[0].removeprefix("::ffff:")
