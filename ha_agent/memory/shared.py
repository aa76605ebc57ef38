"""The version of the pair's shared settings that this node has, in ``<state_dir>/shared-settings.json``. Blocking.

It is of one pair: what was known of another one is not known. A version is (epoch, serial): the epoch of the Active
that last changed them, and how often they were changed. A change that only a dead Active had loses against the epoch of
the one that took over. Replaced whole, durable when stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ha_agent.errors import OperatorNeeded
from ha_agent.memory.book import write_whole
from ha_agent.memory.membership import membership

FILE_NAME = "shared-settings.json"
BYTES_MAX = 1 << 21
_VERSION = re.compile(r"(\d{1,13})\.(\d{1,13})\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Version:
    """Which shared settings."""

    epoch: int = 0
    serial: int = 0

    def __str__(self) -> str:
        return f"{self.epoch}.{self.serial}"


NO_VERSION = Version()


def version_of(text: str) -> Version | None:
    """None: it is none."""
    found = _VERSION.match(text)
    return Version(epoch=int(found[1]), serial=int(found[2])) if found is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What was stored last."""

    version: Version = NO_VERSION
    digest: str = ""  # of the shared part of ha.toml as it was then


class SharedStore:
    """One file, one writer."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._path = os.path.join(state_dir, FILE_NAME)

    def _cluster(self) -> str:
        member = membership(self._state_dir)
        return str(member.cluster_id) if member is not None else ""

    def read(self) -> Known:
        """Nothing known where it is not there, or cannot be understood: then the Active's word is taken again."""
        try:
            with open(self._path, "rb") as file:
                facts = json.loads(file.read(BYTES_MAX))
            version = version_of(facts["version"])
            if facts["cluster"] != self._cluster():
                return Known()
            return Known(version=version or NO_VERSION, digest=str(facts["digest"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Known()

    def store(self, known: Known) -> None:
        """Raises OperatorNeeded."""
        facts = {"cluster": self._cluster(), "version": str(known.version), "digest": known.digest}
        try:
            write_whole(self._path, json.dumps(facts, indent=1).encode() + b"\n")
        except OSError as failed:
            raise OperatorNeeded("cannot store", subject=self._path, reason=failed.strerror or str(failed)) from failed


def text_of(shared: Mapping[str, object]) -> str:
    """The same text for the same settings."""
    return json.dumps(shared, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def digest_of(text: str) -> str:
    """Of ``text_of``."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
