"""The schema of what stands in ``ha.toml`` once: ``[node]``, ``[vendor]``, ``[ha]``, ``[alarms]``, ``[report]``.

Pure. The rules between keys are in ``relations``.
"""

from __future__ import annotations

from ha_agent.arbiter.values import Policy, Station
from ha_agent.settings.entry_fields import ALARM, PATH, PROBE, SERVICE
from ha_agent.settings.schema import Field, Kind, Section, choice, flag
from ha_agent.settings.values import AfterSwitch, Mode, NetworkMode, OnOff, RemoteTakeOver

TIMEOUT_MAX_S = {Mode.LOCAL: 10, Mode.REMOTE: 60}
FXO_PORTS_MAX = 256


def _folder(key: str, default: str, what: str, range_told: str = "absolute path") -> Field:
    return Field(key=key, kind=Kind.TEXT, default=default, range_told=range_told, what=what)


def _free(key: str, what: str, *, default_told: str = "empty") -> Field:
    return Field(
        key=key, kind=Kind.TEXT, default="", default_told=default_told, range_told="up to 64 characters", what=what
    )


def _command(key: str, what: str, example: str, *, default: tuple[str, ...] = ()) -> Field:
    return Field(key=key, kind=Kind.COMMAND, default=default, example=example, what=what)


NODE = Section(
    name="node",
    fields=(
        _free("name", "for people", default_told="the host name"),
        _free("model", "of the machine; two models do not make a pair, not even by force"),
        _free("firmware", "told to the peer; two that differ switch by themselves only in an upgrade window"),
        _folder(
            "state_dir",
            "/var/lib/ha-sync",
            "the same as in `sync.toml`: `agent.json`, `logs/agent-logs.db`, and the identity that the pairing made",
        ),
        _folder(
            "run_dir",
            "/run/ha-sync",
            "the same as in `sync.toml`: `agent.sock`, and `active` while the services may run. On a file system that "
            "is empty after a boot",
            "absolute path of at most 96 bytes",
        ),
        _folder("proc_dir", "/proc", "where processes are looked up (tests)"),
        _folder("sys_net_dir", "/sys/class/net", 'where `kind = "link"` looks (tests)'),
        _folder("dahdi_dir", "/proc/dahdi", "where FXO ports are looked up (tests)"),
        _command(
            "reboot_command",
            'for `after_switch = "reboot"`',
            '["/usr/bin/systemctl", "reboot"]',
            default=("/usr/bin/systemctl", "reboot"),
        ),
        _command(
            "calls_command",
            "prints the number of calls in progress and ends with 0 within 5 s; asked before settings are saved",
            '["/usr/local/sbin/calls-in-progress"]',
        ),
    ),
)

VENDOR = Section(
    name="vendor",
    fields=(
        _command(
            "command",
            "prints lines `key = value` with the keys of this section, `model` and `firmware`, and ends with 0 within "
            "10 s; what it says goes before what is written here",
            '["/usr/local/sbin/vendor-facts"]',
        ),
        choice("cloud_im", OnOff, "whether Cloud IM is on at this node", default=None),
        _free("cloud_storage", "kind of the cloud storage, `none` where there is none"),
        _free("entitlements", "kinds of the entitlements, in one word or separated by commas"),
        _free("dhcp", "how the node's DHCP server is set (`off`, or range and options in one line)"),
        _free("dhcp_gateway", "the default gateway that the DHCP server hands out"),
        _free("nat_host", "the node's own external host (its WAN address)"),
        _free("nat_networks", "the node's local networks behind the NAT, separated by commas"),
        choice(
            "fxo_splitters",
            OnOff,
            "confirmed by hand: FXO ports of the same number are on line splitters",
            default=None,
        ),
    ),
)

HA = Section(
    name="ha",
    fields=(
        flag("enabled", "off: the agent idles; what stands in the file is checked all the same", shared=True),
        choice(
            "mode",
            Mode,
            "`remote`: a disaster recovery site. A longer timeout is allowed, and `cluster_ip` may be left out",
            default=Mode.LOCAL.value,
            shared=True,
        ),
        choice(
            "station_type",
            Station,
            "fixed identity of the node, one of each. It decides a tied cold start, nothing else: no node takes the "
            "role back",
            default=None,
            needed='"primary" on one node and "secondary" on the other',
        ),
        Field(
            key="cluster_ip",
            kind=Kind.TEXT,
            range_told="IPv4 address/prefix",
            default_told='required with `mode = "local"`',
            needed='the address that phones use, e.g. "192.168.129.53/24" (mode "local" needs one)',
            what="what phones use. An address that neither node has by itself, added by the agent as /32; the prefix "
            "says which network it belongs to",
            shared=True,
        ),
        Field(
            key="cluster_ip6",
            kind=Kind.TEXT,
            range_told="IPv6 address/prefix",
            what="the same for IPv6, not link-local; needs `ipv6 = true`",
            shared=True,
        ),
        Field(
            key="peer_ip",
            kind=Kind.TEXT,
            range_told="address",
            needed="the other node's own static address",
            what='the other node\'s own static address; with `network_mode = "route"` that of its LAN',
        ),
        Field(
            key="peer_mac",
            kind=Kind.TEXT,
            range_told="six pairs of hex digits",
            needed="the hardware address of the other node's LAN port (mode route with two ports: LAN 2)",
            what="hardware address of the other node's LAN port (route mode with two ports: LAN 2). A beat that names "
            "another one is dropped",
        ),
        Field(
            key="interface",
            kind=Kind.TEXT,
            range_told="interface name",
            needed='the interface that carries the cluster IP, e.g. "eth0"',
            what="carries the cluster IP; needs a static address of this node. `lo`: a stand-in for tests and "
            "demonstrations ([why](adr/0007-stand-in.md))",
        ),
        Field(
            key="gateway",
            kind=Kind.TEXT,
            range_told="address, `none`",
            default_told="`none`",
            what="asked by ARP or ND: is this node still on the LAN? With `none`, carrier and known neighbours count",
        ),
        Field(
            key="heartbeat_port",
            kind=Kind.INTEGER,
            default=9527,
            high=65535,
            unit="UDP port; 0: tests only",
            what="UDP; 0: tests only",
            shared=True,
        ),
        Field(
            key="heartbeat_timeout_s",
            kind=Kind.NUMBER,
            default=7.0,
            low=3,
            high=TIMEOUT_MAX_S[Mode.LOCAL],
            unit="seconds",
            range_told='3-10; 3-60 with `mode = "remote"`',
            what="T: silence after which the Standby takes over. The lease of the cluster IP is T - 2, at least 1",
            shared=True,
        ),
        choice(
            "remote_take_over",
            RemoteTakeOver,
            'with `mode = "remote"` and no cluster IP, where nobody can be asked whether the other site serves: '
            "`by_hand`: only `ha-sync switch --force` takes over a silent Active; `automatic`: the timeout does",
            default=RemoteTakeOver.BY_HAND.value,
            shared=True,
        ),
        flag("ipv6", "allows IPv6 addresses in this file", shared=True),
        choice(
            "network_mode",
            NetworkMode,
            "how the node is wired; compared between the nodes and looked at by `ha-sync preflight`",
            default=NetworkMode.SWITCH.value,
            shared=True,
        ),
        flag(
            "software_fault_switch",
            "a software fault that the agent finds on the Active moves the role. Off: alarm only",
            shared=True,
        ),
        flag(
            "hardware_fault_switch",
            "the same for hardware faults. A lost link of `interface` switches without it",
            shared=True,
        ),
        Field(
            key="fxo_ports",
            kind=Kind.INTEGERS,
            default=(),
            low=1,
            high=1024,
            unit="DAHDI channel numbers",
            most=FXO_PORTS_MAX,
            range_told=f"channel numbers 1-1024, at most {FXO_PORTS_MAX}",
            what="FXO ports that may move the role, with `hardware_fault_switch`",
            shared=True,
        ),
        choice(
            "policy",
            Policy,
            "the Active is proven dead and the Standby is not ready: serve with an alarm, or do not serve. Data that "
            "is inconsistent or was never synced never serves by itself",
            default=Policy.AVAILABILITY.value,
            shared=True,
        ),
        choice(
            "after_switch",
            AfterSwitch,
            "what an old Active restarts before it goes on as Standby; `reboot` runs `reboot_command`",
            default=AfterSwitch.SERVICES.value,
            shared=True,
        ),
        Field(
            key="drain_deadline_s",
            kind=Kind.NUMBER,
            default=30.0,
            low=1,
            high=600,
            unit="seconds",
            what="planned switch: from the first stop hook until all data is on the peer; past it the services start "
            "again",
            shared=True,
        ),
        Field(
            key="maintenance_max_s",
            kind=Kind.NUMBER,
            default=14400.0,
            low=60,
            high=86400,
            unit="seconds",
            what="longest `ha-sync maintenance --for`",
            shared=True,
        ),
        flag("observe_only", "decide and log, do nothing. Both nodes the same", shared=True),
    ),
)

ALARMS = Section(
    name="alarms",
    fields=(
        Field(
            key="repeat_s",
            kind=Kind.NUMBER,
            default=14_400.0,
            high=604_800,
            unit="seconds; 0: never, else 60 or more",
            range_told="60-604800; 0: never",
            what="what stands is told again so often",
            shared=True,
        ),
        Field(
            key="group_s",
            kind=Kind.NUMBER,
            default=5.0,
            low=0.1,
            high=600,
            unit="seconds",
            what="what comes within this time goes into one message",
            shared=True,
        ),
        Field(
            key="clear_after_s",
            kind=Kind.NUMBER,
            default=60.0,
            high=3600,
            unit="seconds",
            what="what has been gone so long is over",
            shared=True,
        ),
        Field(
            key="messages_per_hour_max",
            kind=Kind.INTEGER,
            default=20,
            low=2,
            high=1000,
            unit="messages to each target",
            what="messages to each target",
            shared=True,
        ),
    ),
)

REPORT = Section(
    name="report",
    fields=(
        Field(
            key="url",
            kind=Kind.TEXT,
            range_told="`https://` or `http://`",
            needed='where role changes are posted, e.g. "https://manage.example.org/ha"',
            what="the management service to which each change of role is reported",
            shared=True,
        ),
        Field(
            key="secret_file",
            kind=Kind.TEXT,
            range_told="absolute path",
            default="",
            default_told="required",
            needed="the file with the secret that signs what is reported",
            what="holds the secret that signs what is reported; one on each node",
            shared=True,
        ),
        flag("cloud_im", "whether the pair serves Cloud IM: the report says which node does", shared=True),
        Field(
            key="custom_domain",
            kind=Kind.TEXT,
            range_told="a domain",
            default="",
            default_told="none",
            what="belongs to the Primary, whatever its role",
            shared=True,
        ),
        *(field for field in ALARM.fields if field.key in {"ca_file", "verify"}),
        Field(
            key="deadline_s",
            kind=Kind.NUMBER,
            default=15.0,
            low=1,
            high=300,
            unit="seconds",
            what="of one delivery, from the connection to the answer",
            shared=True,
        ),
    ),
)

SECTIONS = {section.name: section for section in (NODE, VENDOR, HA, PATH, SERVICE, PROBE, ALARMS, ALARM, REPORT)}
"""In the order of the documents."""
