"""What ``ha.toml`` says, as frozen facts. Durations in seconds, sizes in MiB, addresses parsed.

Invariants, held by ``parse``: ``PairSettings.lease_s + 1 <= heartbeat_timeout_s``; the cluster IP is neither a path's
address nor the peer's; names of paths, services and probes are unique within their kind.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass, field

from ha_agent.arbiter.values import Mac, Policy, Station

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Command = tuple[str, ...]
"""A program and its arguments; the program by absolute path, no shell in between."""

HEARTBEAT_PORT = 9527
LAN_PATH = "lan"
SOCKET_NAME = "agent.sock"
LEASE_MARGIN_S = 2.0
LEASE_MIN_S = 1.0


class Mode(enum.Enum):
    """Where the two nodes stand (R1.2)."""

    LOCAL = "local"  # one room, one cluster IP
    REMOTE = "remote"  # disaster recovery site


class NetworkMode(enum.Enum):
    """How the node is wired (R1.15, R19)."""

    SWITCH = "switch"
    ROUTE = "route"


class RemoteTakeOver(enum.Enum):
    """What a silent Active at the other site leads to, where no address can be asked for (mode ``remote``)."""

    BY_HAND = "by_hand"
    AUTOMATIC = "automatic"


class OnOff(enum.Enum):
    """A fact of the vendor's that may also be unknown."""

    ON = "on"
    OFF = "off"


class AfterSwitch(enum.Enum):
    """What the old Active restarts before it comes back as Standby (R16)."""

    SERVICES = "services"
    REBOOT = "reboot"


class OnStandby(enum.Enum):
    """What a service does on the Standby (DESIGN 9a)."""

    STOPPED = "stopped"
    RUNNING = "running"  # must be warm and touches no replicated database; never stopped by a switch


class ProbeKind(enum.Enum):
    """What a configured probe looks at."""

    PROCESS = "process"
    AMI = "ami"
    SIP = "sip"
    COMMAND = "command"
    LINK = "link"
    STORAGE = "storage"


class When(enum.Enum):
    """In which role a probe looks."""

    ACTIVE = "active"  # only while the services of this node are meant to run
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """``[node]``: this machine, also needed where HA is off."""

    name: str = ""
    model: str = ""  # must be equal on both nodes
    firmware: str = ""
    state_dir: str = "/var/lib/ha-sync"
    run_dir: str = "/run/ha-sync"
    proc_dir: str = "/proc"
    sys_net_dir: str = "/sys/class/net"
    dahdi_dir: str = "/proc/dahdi"
    reboot_command: Command = ("/usr/bin/systemctl", "reboot")  # for after_switch = "reboot"
    calls_command: Command = ()  # prints the number of calls in progress

    @property
    def socket_path(self) -> str:
        """The agent's own socket."""
        return f"{self.run_dir}/{SOCKET_NAME}"

    @property
    def condition_file(self) -> str:
        """Exists while the services may run; units carry ``ConditionPathExists`` of it."""
        return f"{self.run_dir}/active"


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorSettings:
    """``[vendor]``: what only the vendor's own programs, or a person, can know. Empty: not stated."""

    command: Command = ()
    cloud_im: str = ""
    cloud_storage: str = ""
    entitlements: str = ""
    dhcp: str = ""
    dhcp_gateway: str = ""
    nat_host: str = ""
    nat_networks: str = ""
    fxo_splitters: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSettings:
    """One way on which beats travel."""

    name: str
    local: Address | None  # None: the kernel chooses
    peer: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSwitches:
    """Which faults may move the role (R1.9, R1.10); what may not is still an alarm."""

    software: bool = False
    hardware: bool = False
    fxo_ports: frozenset[int] = frozenset()  # DAHDI channel numbers; count only where ``hardware`` is on


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """``[ha]`` and ``[[path]]`` of a node that is part of a pair."""

    mode: Mode
    station: Station
    cluster_ip: ipaddress.IPv4Interface | None  # None only in remote mode
    cluster_ip6: ipaddress.IPv6Interface | None
    peer_ip: Address
    peer_mac: Mac
    interface: str
    gateway: Address | None
    heartbeat_port: int
    heartbeat_timeout_s: float
    ipv6: bool
    network_mode: NetworkMode
    remote_take_over: RemoteTakeOver
    switches: FaultSwitches
    policy: Policy
    after_switch: AfterSwitch
    drain_deadline_s: float  # planned switch: from the first stop hook until both positions are equal
    maintenance_max_s: float
    observe_only: bool
    paths: tuple[PathSettings, ...]  # at least one

    @property
    def lease_s(self) -> float:
        """Lifetime of the cluster IP in the kernel (DESIGN 8): T - 2, at least 1."""
        return max(LEASE_MIN_S, self.heartbeat_timeout_s - LEASE_MARGIN_S)

    @property
    def by_hand(self) -> bool:
        """Whether no silence makes this node take over: nobody can be asked whether the other site serves."""
        return not self.cluster_addresses and self.remote_take_over is RemoteTakeOver.BY_HAND

    @property
    def cluster_addresses(self) -> tuple[Address, ...]:
        """What only the Active holds."""
        return tuple(shared.ip for shared in (self.cluster_ip, self.cluster_ip6) if shared is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """One ``[[service]]``."""

    name: str
    start: Command
    stop: Command
    probe: Command = ()  # exits with 0 when the service works; none: started is ready
    start_deadline_s: float = 30.0  # the start command and then, together with it, the first good probe
    stop_deadline_s: float = 15.0
    probe_deadline_s: float = 2.0  # one look
    order: int = 0
    standby: OnStandby = OnStandby.STOPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """One ``[[probe]]``. Fields of other kinds than its own are empty."""

    name: str
    kind: ProbeKind
    fall: int  # so many bad looks in a row are a fault
    rise: int  # so many good looks in a row end it
    interval_s: float
    deadline_s: float  # of one look; past it the look is bad
    when: When
    switch: bool = True  # False: never more than an alarm, whatever the switches say
    pid_file: str = ""
    process: str = ""
    address: tuple[str, int] = ("", 0)
    username: str = ""
    secret_file: str = ""
    command: Command = ()
    interface: str = ""
    paths: tuple[str, ...] = ()
    min_free_mib: int = 0
    mounted: bool = False


class Severity(enum.Enum):
    """How bad it is; the least that a target wants to be told."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class TargetKind(enum.Enum):
    """How somebody is told."""

    MAIL = "mail"
    WEBHOOK = "webhook"


class Security(enum.Enum):
    """How the way to the mail server is encrypted."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


REPORT = "report"
"""The name of the management service among the targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One ``[[alarm]]``, or the management service of ``[report]``. Fields of the other kind are empty."""

    name: str
    kind: TargetKind
    severity: Severity = Severity.WARNING
    secret_file: str = ""  # password of the mail account, or the secret that signs a webhook
    ca_file: str = ""  # the only authority to trust; empty: those of the system
    verify: bool = True
    deadline_s: float = 15.0  # of one delivery, from the connection to the answer
    url: str = ""
    host: str = ""
    port: int = 0
    security: Security = Security.STARTTLS
    username: str = ""
    sender: str = ""
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """``[alarms]``: how often the targets are told."""

    repeat_s: float = 14_400.0  # of what stands; 0: never
    group_s: float = 5.0  # what comes within it goes into one message
    clear_after_s: float = 60.0  # so long gone is over
    messages_per_hour_max: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """``[report]``: the management service (R17)."""

    target: Target
    cloud_im: bool = False
    custom_domain: str = ""  # belongs to the Primary


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSettings:
    """Whom to tell."""

    rates: Rates = field(default_factory=Rates)
    targets: tuple[Target, ...] = ()
    report: ReportSettings | None = None

    @property
    def everyone(self) -> tuple[Target, ...]:
        """All targets, the management service last."""
        return (*self.targets, *((self.report.target,) if self.report is not None else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole file."""

    node: NodeSettings = field(default_factory=NodeSettings)
    vendor: VendorSettings = field(default_factory=VendorSettings)
    pair: PairSettings | None = None  # None: HA is off, the agent idles
    services: tuple[ServiceSettings, ...] = ()  # in the order of starting
    probes: tuple[ProbeSettings, ...] = ()
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    warnings: tuple[str, ...] = ()  # sentences for a person; nothing is refused for them
