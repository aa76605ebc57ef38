"""The schema of what may stand in ``ha.toml`` several times: paths, services, probes, alarm targets. Pure."""

from __future__ import annotations

from ha_agent.settings.schema import Field, Kind, Section, choice, flag
from ha_agent.settings.values import OnStandby, ProbeKind, Security, Severity, TargetKind, When

ARGUMENTS_MAX = 64
RECIPIENTS_MAX = 32
SYSTEMCTL = '["/usr/bin/systemctl", "start", "asterisk"]'


def _name(range_told: str, what: str, example: str, *, shared: bool = False) -> Field:
    return Field(
        key="name", kind=Kind.TEXT, range_told=range_told, needed=f'e.g. name = "{example}"', what=what, shared=shared
    )


def _command(key: str, what: str, needed: str = "", example: str = SYSTEMCTL) -> Field:
    default = None if needed else ()
    return Field(
        key=key, kind=Kind.COMMAND, default=default, most=ARGUMENTS_MAX, needed=needed, example=example, what=what
    )


def _seconds(key: str, low: float, high: float, default: float | None, *, what: str, told: str = "") -> Field:
    return Field(
        key=key, kind=Kind.NUMBER, low=low, high=high, unit="seconds", default=default, default_told=told, what=what
    )


def _text(key: str, range_told: str, what: str, *, needed: str = "", shared: bool = False) -> Field:
    default = None if needed else ""
    told = "" if needed else "none"
    return Field(
        key=key,
        kind=Kind.TEXT,
        range_told=range_told,
        default=default,
        default_told=told,
        needed=needed,
        what=what,
        shared=shared,
    )


PATH = Section(
    name="path",
    most=8,
    fields=(
        _name("1-64 of `a-z`, `0-9`, `.`, `-`, `_`", "the same on both nodes", "cable"),
        _text("local", "address", "this node's address on the path", needed="this node's own address on the path"),
        _text(
            "peer",
            "address",
            "the other node's; link-local IPv6 with its interface: `fe80::1%eth1`",
            needed="the other node's address on the path",
        ),
    ),
)

SERVICE = Section(
    name="service",
    most=32,
    fields=(
        _name("as of a path", "for logs; its probe is the cause `service:NAME`", "asterisk"),
        _command("start", "run by a promotion only", f"the command that starts it, e.g. {SYSTEMCTL}"),
        _command(
            "stop",
            "run when the role goes",
            'the command that stops it, e.g. ["/usr/bin/systemctl", "stop", "asterisk"]',
        ),
        _command(
            "probe",
            "ends with 0 when the service works. The start waits for it; then it is watched every 2 s: 3 bad looks are "
            "a software fault, 2 good ones end it",
        ),
        _seconds("start_deadline_s", 0.1, 600, 30.0, what="the start command and the first good probe, together"),
        _seconds(
            "stop_deadline_s",
            0.1,
            600,
            15.0,
            what="the stop command; together no more than `drain_deadline_s`, else a warning",
        ),
        _seconds("probe_deadline_s", 0.1, 60, 2.0, what="one look"),
        Field(
            key="order",
            kind=Kind.INTEGER,
            low=-10_000,
            high=10_000,
            unit="low starts first and stops last",
            range_told="-10000 to 10000",
            default_told="the place in the file",
            what="low starts first and stops last",
        ),
        choice(
            "standby",
            OnStandby,
            "`running`: must be warm on the Standby and touches no replicated data; a switch neither starts nor stops "
            "it. The agent starts it once, when it starts itself",
            default=OnStandby.STOPPED.value,
        ),
    ),
)

PROBE = Section(
    name="probe",
    most=64,
    fields=(
        _name("as of a path", "the cause is `KIND:NAME`", "asterisk"),
        Field(
            key="kind",
            kind=Kind.CHOICE,
            options=tuple(kind.value for kind in ProbeKind),
            range_told="see below",
            needed="what it looks at: " + ", ".join(f'"{kind.value}"' for kind in ProbeKind),
            what="what it looks at",
        ),
        Field(
            key="fall",
            kind=Kind.INTEGER,
            low=1,
            high=100,
            unit="bad looks in a row",
            default_told="3; `process` 1, `link` 2",
            what="bad looks in a row",
        ),
        Field(
            key="rise",
            kind=Kind.INTEGER,
            low=1,
            high=100,
            unit="good looks in a row",
            default=2,
            what="good looks in a row",
        ),
        _seconds("interval_s", 0.05, 3600, None, what="from look to look", told="1; `command`, `storage`: 2"),
        _seconds(
            "deadline_s",
            0.05,
            60,
            None,
            what="of one look; past it the look is bad. More than `fall` intervals: a warning, because a "
            "fault shows late",
            told="`process`, `link` 1; `ami`, `sip` 2; `command`, `storage` 5",
        ),
        Field(
            key="when",
            kind=Kind.CHOICE,
            options=tuple(when.value for when in When),
            default_told="`active`; `link`, `storage` `always`",
            what="`active`: only while the services of this node are meant to run",
        ),
        flag("switch", "`false`: never more than an alarm", default=True),
        _text(
            "process",
            "1-15 bytes",
            "name as in `/proc/PID/comm`; it or `pid_file` is required, both guard against a stale pid file",
        ),
        _text("pid_file", "absolute path", "holds the pid"),
        _text(
            "address",
            "address:port, `[::1]:5060` for IPv6",
            "no host names: a name would need a resolver in the middle of a fault",
            needed='where it listens, e.g. "127.0.0.1:5060"',
        ),
        _text(
            "username",
            "up to 64 characters",
            "with `secret_file`; without both the ping goes without a login, which proves that the manager lives",
        ),
        _text("secret_file", "absolute path", "the secret on one line; read at each login"),
        _command(
            "command",
            "ends with 0 when all is well",
            'a program that exits with 0 when all is well, e.g. ["/usr/bin/test", "-e", "/run/ok"]',
        ),
        _text("interface", "interface name", "e.g. the port of a second trunk", needed='e.g. "eth1"'),
        Field(
            key="paths",
            kind=Kind.TEXTS,
            range_told="absolute paths",
            needed='folders that must take data, e.g. ["/var/spool/asterisk"]',
            example='["/var/spool/asterisk"]',
            what="folders that must take data",
        ),
        Field(
            key="min_free_mib",
            kind=Kind.INTEGER,
            high=1 << 24,
            unit="MiB",
            range_told="0-16777216 MiB",
            default=16,
            what="less is full",
        ),
        flag("mounted", "each path must be a mount point itself"),
    ),
)

ALARM = Section(
    name="alarm",
    most=16,
    fields=(
        _name("as of a path, not `report`", "for logs", "noc", shared=True),
        choice(
            "kind",
            TargetKind,
            "how it is told",
            default=None,
            needed="how it is told: " + ", ".join(f'"{kind.value}"' for kind in TargetKind),
            shared=True,
        ),
        choice("severity", Severity, "the least that is told", default=Severity.WARNING.value, shared=True),
        _text(
            "server",
            "host or host:port",
            "`mail`: the mail server; the port is 587, with `tls` 465, with `none` 25",
            needed='the mail server, e.g. "mail.example.org" or "mail.example.org:587"',
            shared=True,
        ),
        choice(
            "security",
            Security,
            "`mail`: how the way to the server is encrypted; `none` not with a password",
            default=Security.STARTTLS.value,
            shared=True,
        ),
        _text("username", "up to 64 characters", "`mail`: with `password_file`", shared=True),
        _text("password_file", "absolute path", "`mail`: holds the password; one on each node", shared=True),
        _text(
            "from",
            "mail address",
            "`mail`: the sender",
            needed='the sender, e.g. "pbx-a@example.org"',
            shared=True,
        ),
        Field(
            key="to",
            kind=Kind.TEXTS,
            most=RECIPIENTS_MAX,
            range_told=f"1-{RECIPIENTS_MAX} mail addresses",
            needed='who is told, e.g. ["admin@example.org"]',
            example='["admin@example.org"]',
            what="`mail`: who is told",
            shared=True,
        ),
        _text(
            "url",
            "`https://` or `http://`",
            "`webhook`: where it is posted; no name or password in it",
            needed='where it is posted, e.g. "https://noc.example.org/hooks/pbx"',
            shared=True,
        ),
        _text(
            "secret_file",
            "absolute path",
            "`webhook`: holds the secret that signs what is sent; one on each node",
            shared=True,
        ),
        _text("ca_file", "absolute path", "the only authority to trust; without it those of the system", shared=True),
        flag("verify", "`false`: the other end may be anybody; a warning", default=True, shared=True),
        Field(
            key="deadline_s",
            kind=Kind.NUMBER,
            low=1,
            high=300,
            unit="seconds",
            default_told="15; `mail` 30",
            what="of one delivery, from the connection to the answer",
            shared=True,
        ),
    ),
)
