"""Who this node is, in ``<state_dir>/identity/`` (0700, every file 0600).

====================  ============================================================
ca.pem, ca.key        the pair's authority; both nodes have both
node.pem, node.key    this node; a renewal replaces the certificate and keeps the key, so it is one rename
heartbeat.key         32 bytes, shared with the peer
identity.json         ids, names, the peer, who is revoked, the newest wall clock seen
tokens.json           outstanding one-time tokens (``invitations``)
====================  ============================================================

The directory appears whole (init, join) and each later change is one file replaced: a crash leaves the old or the new.
The authority's key may be taken off a node by hand; then that node cannot invite, and its peer renews for it.
Blocking: call from an executor.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import uuid
from dataclasses import dataclass

from cryptography import x509

from ha_sync.errors import OperatorNeeded, Refused, WrongState
from ha_sync.pairing import certificates, durable
from ha_sync.pairing.certificates import LIFETIME_S, Key, Member, NotOurs
from ha_sync.pairing.clock import believable, read_clock

FORMAT = 1
STATION_TYPES = ("", "primary", "secondary")
HEARTBEAT_KEY_BYTES = 32
REVOKED_MAX = 1000  # oldest forgotten: a node revoked so long ago has no valid certificate any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other node, as far as it is known."""

    node_id: str
    address: str  # host:port of its peer port; empty: it did not say
    node_name: str = ""
    mac: str = ""
    station_type: str = ""
    certificate_fingerprint: str = ""  # SHA-256, hexadecimal, of the newest one known


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """All that ``identity/`` says, but for the tokens."""

    directory: str
    cluster_id: str
    node_id: str
    node_name: str
    address: str  # host:port at which the peer reaches this node; empty: not told yet
    station_type: str = ""
    peer: Peer | None = None
    revoked_nodes: tuple[str, ...] = ()
    revoked_serials: tuple[int, ...] = ()
    promised_epoch: int = 0  # told when joining
    dissolved: bool = False  # the pair is ended: what is left here is on its way out
    peer_dissolved: bool = False  # the other node said so too: nobody needs this identity any more
    lifetime_s: float = LIFETIME_S
    issued_unix_s: float  # when the certificate was made, by the clock of whoever made it
    newest_unix_s: float  # newest wall clock that this node ever stored
    authority: x509.Certificate
    authority_key: Key | None
    certificate: x509.Certificate
    key: Key
    heartbeat_key: bytes

    def __repr__(self) -> str:
        return f"Identity(node {self.node_id} of cluster {self.cluster_id})"  # keys stay out of logs

    @property
    def member(self) -> Member:
        """This node, as its certificate says."""
        return Member(cluster_id=self.cluster_id, node_id=self.node_id)

    @property
    def ends_unix_s(self) -> float:
        """When this node's certificate ends."""
        return certificates.ends_unix_s(self.certificate)

    @staticmethod
    def load(state_dir: str) -> Identity:
        """Reads ``<state_dir>/identity``. Raises ``WrongState`` (not paired), ``OperatorNeeded`` (damaged)."""
        directory = identity_directory(state_dir)
        if not exists(state_dir):
            raise not_paired(directory)
        try:
            return _read(directory)
        except (OSError, NotOurs, ValueError, KeyError, TypeError) as broken:
            raise OperatorNeeded(
                "cannot use the identity in",
                subject=directory,
                reason=f"{type(broken).__name__}: {broken}",
                hint="restore it from a copy, or remove it and join again",
            ) from broken


def identity_directory(state_dir: str) -> str:
    """Where the identity lives."""
    return os.path.join(os.path.abspath(state_dir), "identity")


def exists(state_dir: str) -> bool:
    """Whether this node belongs to a pair."""
    return os.path.lexists(identity_directory(state_dir))


def not_paired(directory: str) -> WrongState:
    """The error of a node without an identity."""
    hint = "`ha-sync pair init` on the first node, `ha-sync pair join TOKEN` on the second"
    return WrongState("this node is not paired", reason=f"there is no {directory}", hint=hint)


def init_cluster(
    state_dir: str,
    *,
    node_name: str = "",
    address: str = "",
    station_type: str = "",
    lifetime_s: float = LIFETIME_S,
    now_unix_s: float | None = None,
) -> Identity:
    """Makes the identity of the first node of a new pair. Raises ``WrongState`` where one exists."""
    refuse_existing(state_dir)
    check_station_type(station_type)
    now = read_clock().unix_s if now_unix_s is None else now_unix_s
    member = Member(cluster_id=str(uuid.uuid4()), node_id=new_node_id())
    authority_key, key = certificates.new_key(), certificates.new_key()
    authority = certificates.make_authority(authority_key, member.cluster_id)
    identity = Identity(
        directory=identity_directory(state_dir),
        cluster_id=member.cluster_id,
        node_id=member.node_id,
        node_name=node_name or socket.gethostname(),
        address=address,
        station_type=station_type,
        lifetime_s=lifetime_s,
        issued_unix_s=now,
        newest_unix_s=now,
        authority=authority,
        authority_key=authority_key,
        certificate=certificates.make_certificate(
            authority_key=authority_key,
            authority_name=authority.subject,
            public_key=key.public_key(),
            member=member,
            ends_unix_s=believable(unix_s=now, newest_unix_s=0.0) + lifetime_s,
        ),
        key=key,
        heartbeat_key=os.urandom(HEARTBEAT_KEY_BYTES),
    )
    create(identity)
    return identity


def refuse_existing(state_dir: str) -> None:
    """Raises ``WrongState`` when this node belongs to a pair already."""
    if exists(state_dir):
        raise WrongState(
            "this node belongs to a pair already",
            reason=f"{identity_directory(state_dir)} exists",
            hint="to leave that pair for good: `ha-sync pair dissolve`",
        )


def check_station_type(station_type: str) -> None:
    """Raises ``Refused`` on a word that is none."""
    if station_type not in STATION_TYPES:
        raise Refused("cannot use the station type", subject=station_type, hint="primary or secondary")


def new_node_id() -> str:
    """A fresh node id."""
    return str(uuid.uuid4())


def create(identity: Identity) -> None:
    """Stores a new identity, whole or not at all."""
    durable.make_private_directory(os.path.dirname(identity.directory))
    files = {
        "ca.pem": certificates.certificate_pem(identity.authority),
        "node.key": certificates.key_pem(identity.key),
        "node.pem": certificates.certificate_pem(identity.certificate),
        "heartbeat.key": identity.heartbeat_key,
        "identity.json": _facts(identity),
        "lock": b"",
    }
    if identity.authority_key is not None:
        files["ca.key"] = certificates.key_pem(identity.authority_key)
    try:
        durable.write_directory(identity.directory, files)
    except OSError as failed:
        raise OperatorNeeded("cannot store the identity in", subject=identity.directory, reason=str(failed)) from failed


def store_facts(identity: Identity) -> None:
    """Replaces ``identity.json``."""
    durable.write_file(os.path.join(identity.directory, "identity.json"), _facts(identity))


def store_certificate(identity: Identity) -> None:
    """Replaces ``node.pem``."""
    content = certificates.certificate_pem(identity.certificate)
    durable.write_file(os.path.join(identity.directory, "node.pem"), content)


def with_revoked(identity: Identity, node_id: str, serials: tuple[int, ...] = ()) -> Identity:
    """The identity with one more node refused for ever."""
    nodes = tuple(known for known in identity.revoked_nodes if known != node_id)
    numbers = tuple(known for known in identity.revoked_serials if known not in serials)
    return dataclasses.replace(
        identity,
        revoked_nodes=(*nodes, node_id)[-REVOKED_MAX:],
        revoked_serials=(*numbers, *serials)[-REVOKED_MAX:],
    )


_PLAIN = (
    "cluster_id",
    "node_id",
    "node_name",
    "address",
    "station_type",
    "promised_epoch",
    "lifetime_s",
    "issued_unix_s",
    "newest_unix_s",
)


def _facts(identity: Identity) -> bytes:
    facts: dict[str, object] = {"format": FORMAT}
    facts |= {name: getattr(identity, name) for name in _PLAIN}
    facts["dissolved"], facts["peer_dissolved"] = identity.dissolved, identity.peer_dissolved
    facts["peer"] = dataclasses.asdict(identity.peer) if identity.peer else None
    facts["revoked_nodes"] = list(identity.revoked_nodes)
    facts["revoked_serials"] = [str(serial) for serial in identity.revoked_serials]  # beyond what JSON readers keep
    return json.dumps(facts, indent=2).encode() + b"\n"


def _read(directory: str) -> Identity:
    facts = json.loads(_content(directory, "identity.json"))
    if facts["format"] != FORMAT:
        raise ValueError(f"identity.json has format {facts['format']}, this program knows {FORMAT}")
    identity = Identity(
        directory=directory,
        **{name: facts[name] for name in _PLAIN},
        dissolved=bool(facts.get("dissolved", False)),  # an older version did not write these two
        peer_dissolved=bool(facts.get("peer_dissolved", False)),
        peer=Peer(**facts["peer"]) if facts["peer"] else None,
        revoked_nodes=tuple(facts["revoked_nodes"]),
        revoked_serials=tuple(int(serial) for serial in facts["revoked_serials"]),
        authority=certificates.load_certificate(_content(directory, "ca.pem")),
        authority_key=_authority_key(directory),
        certificate=certificates.load_certificate(_content(directory, "node.pem")),
        key=certificates.load_key(_content(directory, "node.key")),
        heartbeat_key=_content(directory, "heartbeat.key"),
    )
    _check(identity)
    return identity


def _authority_key(directory: str) -> Key | None:
    if not os.path.lexists(os.path.join(directory, "ca.key")):
        return None
    return certificates.load_key(_content(directory, "ca.key"))


def _content(directory: str, name: str) -> bytes:
    with open(os.path.join(directory, name), "rb") as file:
        return file.read()


def _check(identity: Identity) -> None:
    """The files belong together. Raises ``NotOurs``."""
    if certificates.member_of(identity.certificate) != identity.member:
        raise NotOurs("node.pem is of another node than identity.json")
    if not certificates.is_issued_by(identity.certificate, identity.authority):
        raise NotOurs("node.pem was not signed by ca.pem")
    if not certificates.same_key(identity.certificate.public_key(), identity.key.public_key()):
        raise NotOurs("node.key does not belong to node.pem")
    ca_key = identity.authority_key
    if ca_key is not None and not certificates.same_key(ca_key.public_key(), identity.authority.public_key()):
        raise NotOurs("ca.key does not belong to ca.pem")
    if len(identity.heartbeat_key) != HEARTBEAT_KEY_BYTES:
        raise NotOurs("heartbeat.key has not 32 bytes")
