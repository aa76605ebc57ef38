"""``<state_dir>/accounts.json`` (0600): replaced whole, durable when stored. Blocking; one writer.

``version`` is EPOCH.SERIAL of the Active that changed it last. A Standby's file is what the Active's is, whatever stood
there: after pairing the Active's accounts are those of both nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace

from ha_sync.accounts.secret import problem_of
from ha_sync.errors import ConfigFault, OperatorNeeded, ProtocolFault, Refused

FILE_NAME = "accounts.json"
FORMAT = 1
ACCOUNTS_MAX = 64
BYTES_MAX = 1 << 16

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_VERSION = re.compile(r"(\d{1,13})\.(\d{1,13})\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One administrator."""

    name: str
    secret: str  # see ``secret``
    changed_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The whole file."""

    version: str = "0.0"
    accounts: tuple[Account, ...] = ()

    def content(self) -> bytes:
        """As it is stored and as it travels."""
        facts = {"format": FORMAT, "version": self.version, "accounts": [asdict(one) for one in self.accounts]}
        return json.dumps(facts, indent=1).encode() + b"\n"


class AccountStore:
    """The file of one node."""

    def __init__(self, state_dir: str) -> None:
        self._path = os.path.join(state_dir, FILE_NAME)

    def read(self) -> Accounts:
        """None yet: an empty one. Raises OperatorNeeded where it is damaged."""
        try:
            with open(self._path, "rb") as file:
                return accounts_of(file.read(BYTES_MAX + 1))
        except FileNotFoundError:
            return Accounts()
        except (OSError, ProtocolFault) as broken:
            raise OperatorNeeded(
                "cannot read the accounts in",
                subject=self._path,
                reason=str(broken),
                hint="remove the file: the Active's comes again, or make them anew with `ha-sync account set`",
            ) from broken

    def put(self, account: Account, *, epoch: int) -> bool:
        """Makes or changes one; whether it is new."""
        if not _NAME.match(account.name):
            raise ConfigFault("the call", (f"name: {account.name!r}: 1 to 64 of a-z, A-Z, 0-9, dot, dash, _ and @",))
        if problem := problem_of(account.secret):
            raise ConfigFault("the call", (f"secret: {problem}",))
        known = self.read()
        others = tuple(one for one in known.accounts if one.name != account.name)
        if len(others) >= ACCOUNTS_MAX:
            raise Refused("cannot add an account", reason=f"there are {ACCOUNTS_MAX}", hint="remove one first")
        kept = tuple(sorted((*others, account), key=lambda one: one.name))
        self._store(replace(known, version=_next(known.version, epoch), accounts=kept))
        return len(others) == len(known.accounts)

    def remove(self, name: str, *, epoch: int) -> None:
        """Raises Refused where there is none of that name."""
        known = self.read()
        left = tuple(one for one in known.accounts if one.name != name)
        if len(left) == len(known.accounts):
            listed = ", ".join(one.name for one in known.accounts) or "none"
            raise Refused("cannot remove the account", subject=name, reason=f"there is no such one; known: {listed}")
        self._store(replace(known, version=_next(known.version, epoch), accounts=left))

    def replace(self, content: bytes) -> Accounts:
        """What the Active has, in the place of one's own. Raises ProtocolFault where it is no such file."""
        taken = accounts_of(content)
        self._store(taken)
        return taken

    def _store(self, accounts: Accounts) -> None:
        draft = f"{self._path}.new"
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(accounts.content())
                file.flush()
                os.fsync(descriptor)
            os.rename(draft, self._path)
            folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as failed:
            raise OperatorNeeded("cannot store", subject=self._path, reason=failed.strerror or str(failed)) from failed


def accounts_of(content: bytes) -> Accounts:
    """Raises ProtocolFault."""
    try:
        if len(content) > BYTES_MAX:
            raise ValueError(f"longer than {BYTES_MAX} bytes")
        facts = json.loads(content)
        if facts["format"] != FORMAT or not _VERSION.match(facts["version"]) or len(facts["accounts"]) > ACCOUNTS_MAX:
            raise ValueError("its format, its version, or too many accounts")
        found = tuple(
            Account(name=str(one["name"]), secret=str(one["secret"]), changed_unix_s=float(one["changed_unix_s"]))
            for one in facts["accounts"]
        )
        if any(not _NAME.match(one.name) or problem_of(one.secret) for one in found):
            raise ValueError("a name or a secret")
        return Accounts(version=facts["version"], accounts=found)
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        raise ProtocolFault("cannot use accounts", reason=f"{type(wrong).__name__}: {wrong}") from wrong


def _next(version: str, epoch: int) -> str:
    found = _VERSION.match(version)
    assert found is not None, version
    known, serial = int(found[1]), int(found[2])
    return f"{known}.{serial + 1}" if known >= epoch else f"{epoch}.1"
