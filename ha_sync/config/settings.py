"""What ``sync.toml`` says, as frozen dataclasses. docs/sync-toml.md tells every key, its unit, range and default.

Sizes in MiB, times in the unit that the name ends with. The defaults stand here and nowhere else; those that depend on
another key (priority, quiet_ms, mailboxes) are decided in ``ha_sync.config.dataset``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ha_sync.core.dataset import DatasetName, Priority

DEFAULT_PEER_PORT = 9527
DEFAULT_CONFIG = "/etc/ha-sync/sync.toml"

SOCKET_NAME = "sync.sock"
"""The control socket, below ``run_dir``."""


class Kind(enum.Enum):
    """What a dataset is."""

    SQLITE = "sqlite"
    TREE = "tree"


class CaptureMode(enum.Enum):
    """How a database is captured (DESIGN 4)."""

    ROWS = "rows"
    PAGES = "pages"
    AUTO = "auto"


class Hold(enum.Enum):
    """What a promotion does with held files (call files)."""

    RELEASE = "release"  # put them where the PBX takes them
    KEEP = "keep"  # leave them aside for the administrator


class Medium(enum.Enum):
    """What a storage is."""

    SD = "sd"
    USB = "usb"
    NAS = "nas"


class Mode(enum.Enum):
    """Whether deletions follow to the other node's storage."""

    MIRROR = "mirror"  # within the mass-delete guard
    ADD_ONLY = "add-only"  # what is deleted or renamed on the Active stays on the Standby


class Merge(enum.Enum):
    """When a divergence is merged into the new Active."""

    AUTO = "auto"  # as soon as the nodes are in step and it harms nobody
    MANUAL = "manual"  # by `ha-sync divergence merge` alone


class Compression(enum.Enum):
    """Of frames on the wire."""

    AUTO = "auto"  # where it pays: small frames always, bulk only when the link is slower than zstd
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLocalRows:
    """Rows of a table that belong to the node: the WHERE clause is SQL over that table's columns."""

    table: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteSettings:
    """``[[dataset]]`` with ``kind = "sqlite"``."""

    name: DatasetName
    path: str
    priority: Priority
    capture: CaptureMode = CaptureMode.AUTO
    pages_max_mib: int = 32  # above it `pages` is refused: degraded, needs rows
    writer_busy_timeout_ms: int | None = None  # stated by the administrator; None: unknown
    live_triggers: bool = False  # the program takes triggers while it runs (CDR: yes, astdb: no)
    log_entries_max: int = 1_000_000  # the change log trims itself to this many
    node_local_tables: tuple[str, ...] = ()
    node_local_rows: tuple[NodeLocalRows, ...] = ()

    @property
    def kind(self) -> Kind:
        """For status and the protocol."""
        return Kind.SQLITE

    @property
    def essential(self) -> bool:
        """Whether a node without it is no whole node."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """What ``[[storage]]`` says besides the keys of a tree."""

    medium: Medium
    mode: Mode = Mode.ADD_ONLY
    rate_mib_per_s: int = 30  # of what is sent and compared, so that calls do not suffer; 0: no bound


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSettings:
    """``[[dataset]]`` with ``kind = "tree"``. Patterns are globs over the relative path (``fnmatch`` per component)."""

    name: DatasetName
    path: str
    priority: Priority
    growing: bool = False  # files are streamed while they are being written
    quiet_ms: int = 0  # ship when quiet for so long; 200 where priority is config
    mailboxes: bool = False  # voicemail: a folder with messages is one unit, read when unlocked
    exclude: tuple[str, ...] = ()  # never looked at
    node_local: tuple[str, ...] = ()  # exists on both nodes, never replicated
    hold: tuple[str, ...] = ()  # call files: kept aside on the Standby
    hold_at_promotion: Hold = Hold.KEEP
    mass_delete_percent: int = 50  # more than this share of the files gone at once: halt
    trash_mib: int = 1024  # deleted and replaced content kept on the Standby, oldest dropped first
    poll_s: float | None = None  # scan period where inotify does not work; None: decided from the filesystem
    reconcile_s: float = 300.0  # metadata scan that backs up inotify
    storage: StorageSettings | None = None  # it is a `[[storage]]`

    @property
    def kind(self) -> Kind:
        """For status and the protocol."""
        return Kind.TREE

    @property
    def essential(self) -> bool:
        """Whether a node without it is no whole node: a medium may be pulled out."""
        return self.storage is None

    @property
    def keeps_deleted(self) -> bool:
        """Whether what is gone on the Active stays on the Standby."""
        return self.storage is not None and self.storage.mode is Mode.ADD_ONLY


DatasetSettings = SqliteSettings | TreeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """``[node]``: this node's places and addresses."""

    name: str = ""  # for people; default the host name
    state_dir: str = "/var/lib/ha-sync"
    run_dir: str = "/run/ha-sync"
    listen: tuple[str, ...] = (f"0.0.0.0:{DEFAULT_PEER_PORT}",)  # peer port, the same at each address
    peer: tuple[str, ...] = ()  # host:port of the other node, the best first; learned when joining
    active_at: str = ""  # named in the Standby's refusals: cluster IP or the Active's address

    @property
    def socket_path(self) -> str:
        """The unix socket at which this node's tools reach the engine."""
        return f"{self.run_dir.rstrip('/')}/{SOCKET_NAME}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """``[stream]``."""

    compression: Compression = Compression.AUTO
    window_mib: int = 16  # sent and not yet received, per dataset
    bulk_mib_per_s: int = 0  # bound on a full sync; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceSettings:
    """``[divergence]``: what a former Active wrote and the other node never got."""

    merge: Merge = Merge.AUTO  # call records, voicemail and recordings
    max_mib: int = 2048  # of all archives of this node


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSettings:
    """``[backup]``."""

    full: str = "0 3 * * *"  # cron expression in the node's local time; "": no full backup but on request
    rate_mib_per_s: int = 100  # of content read on each node during one; 0: no bound


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """``[metrics]``: for Prometheus, plain HTTP; nobody is asked who he is."""

    listen: tuple[str, ...] = ()  # host:port; none: off


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """``[api]``: the gRPC API of both daemons over TLS; every client needs a certificate."""

    listen: tuple[str, ...] = ()  # host:port; none: off
    certificate: str = ""  # PEM files, by absolute path; read again when they change
    key: str = ""
    client_authority: str = ""  # who signs the clients' certificates
    clients: tuple[str, ...] = ()  # common names that are let in; none: whoever the authority signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of ``sync.toml``."""

    node: NodeSettings = field(default_factory=NodeSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    backup: BackupSettings = field(default_factory=BackupSettings)
    divergence: DivergenceSettings = field(default_factory=DivergenceSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    datasets: tuple[DatasetSettings, ...] = ()  # the storages too
    notices: tuple[str, ...] = ()  # accepted, but worth telling (settings of parts that do not run yet)
    file: str = ""  # that they came from; empty: none
    shared: str = ""  # the pair's part of it, as ``config.shared`` tells it
