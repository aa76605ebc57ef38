"""Loss of power between any two durable steps of a procedure of the pair's life, in a process of its own.

``python -m tests.support.power_cut`` reads lines PROCEDURE, DIRECTORY, N (by tabs) and answers each with how a child
ended that did the procedure: by SIGKILL before its Nth call that names, removes or syncs something, or by itself where
it got by with fewer. What was renamed without having been synced is emptied first, as a file system may leave it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ha_agent.memory import window
from ha_agent.memory.shared import SharedStore
from ha_agent.service.settings import take_shared
from ha_agent.settings import document
from ha_agent.settings import saving as agent_saving
from ha_agent.settings.document import Change
from ha_proto.agent.v1 import settings_pb2
from ha_sync.accounts import Account, AccountStore
from ha_sync.config import saving as engine_saving
from ha_sync.pairing import durable, invitations
from ha_sync.pairing.identity import Identity, init_cluster, with_revoked
from ha_sync.pairing.keyring import Keyring

STEPS = ("rename", "replace", "link", "unlink", "rmdir", "mkdir", "fsync")
SECRET = "scrypt$15$8$1$" + "QUFBQUFBQUFBQUFBQUFBQQ" + "$" + "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE"


class PowerCut:
    """Counts the steps of this process, and ends it before one of them."""

    def __init__(self, last: int) -> None:
        self._left = last
        self._synced: set[tuple[int, int]] = set()
        self._doubtful: list[str] = []
        for name in STEPS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left <= 0:
                self._die()
            if name == "fsync":
                status = os.fstat(arguments[0])
                self._synced.add((status.st_dev, status.st_ino))
            done = call(*arguments, **options)
            if name in {"rename", "replace"} and not options:
                self._look(str(arguments[1]))
            return done

        return counted

    def _look(self, path: str) -> None:
        status = os.lstat(path)
        if os.path.isfile(path) and (status.st_dev, status.st_ino) not in self._synced:
            self._doubtful.append(path)

    def _die(self) -> None:
        for path in self._doubtful:
            os.truncate(path, 0)
        os.kill(os.getpid(), signal.SIGKILL)


# ---- the procedures; each may be said again, as an administrator would


def init(place: Path) -> None:
    """`ha-sync pair init`"""
    if not (place / "state" / "identity").exists():  # else: "this node is paired already"
        init_cluster(str(place / "state"), node_name="a", address="192.0.2.1:9527")
    Identity.load(str(place / "state"))


def token(place: Path) -> None:
    """`ha-sync pair token`"""
    identity = Identity.load(str(place / "state"))
    invitations.Invitations(identity.directory).create(identity)


def dissolved(place: Path) -> None:
    """`ha-sync pair dissolve`: the mark before anything is removed, and the end of it."""
    if (place / "state" / "identity").exists():
        keyring = Keyring(Identity.load(str(place / "state")))
        keyring.change_facts(_dissolved)
        durable.remove_directory(keyring.identity.directory)


def _dissolved(identity: Identity) -> Identity:
    return replace(identity, dissolved=True, peer_dissolved=True)


def settings(place: Path) -> None:
    """`ha-sync settings set`"""
    path = str(place / "ha.toml")
    change = Change(place=document.place_of("ha.peer_ip"), value="192.168.129.54")
    agent_saving.save(path, agent_saving.draft(path, (change,)))


def shared(place: Path) -> None:
    """The Standby takes the Active's settings."""
    text = json.dumps({"ha": {"enabled": True, "cluster_ip": "192.168.129.60/24", "heartbeat_timeout_s": 5}})
    told = settings_pb2.SharedSettings(version="4.2", text=text)
    take_shared(str(place / "ha.toml"), SharedStore(str(place / "state")), told)


def definitions(place: Path) -> None:
    """The Standby takes what the Active replicates."""
    path = str(place / "sync.toml")
    engine_saving.save(path, engine_saving.draft(path, json.dumps({"backup": {"full": "30 4 * * *"}})))


def upgrade(place: Path) -> None:
    """`ha-sync upgrade begin` and `end`"""
    window.open_from(str(place / "state"), "1.0.27.5")
    window.close(str(place / "state"))


def replaced(place: Path) -> None:
    """A new machine has joined: the broken one is let in no more."""
    keyring = Keyring(Identity.load(str(place / "state")))
    keyring.change_facts(lambda identity: with_revoked(identity, "0" * 32))


def account(place: Path) -> None:
    """`ha-sync account set`"""
    AccountStore(str(place / "state")).put(Account(name="admin", secret=SECRET, changed_unix_s=1.0), epoch=4)


PROCEDURES: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (init, token, replaced, dissolved, settings, shared, definitions, upgrade, account)
}


def main() -> None:
    """See the module. One process with everything loaded, and no thread: its children begin where it is."""
    for line in sys.stdin:
        name, place, last = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            try:
                PowerCut(int(last))
                PROCEDURES[name](Path(place))
            except BaseException:  # noqa: BLE001 - told, and the child ends
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
