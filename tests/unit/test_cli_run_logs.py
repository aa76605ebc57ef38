"""``ha-sync logs backup`` and ``ha-sync logs storage``: runs as a table and as JSON, and what one run found."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.main import main
from ha_sync.cli.times import moment
from tests.support.client import start_ha_sync
from tests.support.control_service import FakeEngine, fake_engine

pytestmark = pytest.mark.req("R31")

Run = Callable[..., tuple[Any, str, str]]

BACKUP = pb.RunRecord(
    id="20231114T221320-abcdef",
    kind="full-backup",
    trigger="schedule",
    peer="n-2",
    begin_unix_s=1_700_000_000.5,
    end_unix_s=1_700_000_062.0,
    took_s=61.5,
    result="partial",
    objects=70_000,
    differing=3,
    repaired=2,
    unverified=1,
    bytes_read=2_147_483_648,
    bytes_sent=900,
    findings=12_000,
    findings_kept=10_000,
    facts={"depth": "content"},
    error="one is busy \x1b",
)
GOING = pb.RunRecord(
    id="20231114T221500-000001", kind="export", trigger="manual", begin_unix_s=1_700_000_100, result="running"
)
FINDINGS = [
    pb.FindingRecord(
        dataset="files",
        subject="a\nb",
        fault="content",
        side="standby",
        repaired=True,
        equal_until_unix_s=1_600_000_000,
        detail="block 3",
    ),
    pb.FindingRecord(dataset="cdr", subject="cdr 7", fault="unverified", side="active"),
]
TABLE = [
    (
        "BEGIN                          KIND          TRIGGER   RESULT        SECONDS    OBJECTS   DIFFER  REPAIRED"
        "       READ       SENT  RUN"
    ),
    (
        f"{moment(1_700_000_000.5)}  full-backup   schedule  partial         61.50      70000        3         2"
        "    2.0 GiB      900 B  20231114T221320-abcdef"
    ),
    "    peer: n-2",
    "    depth: content",
    "    not verified: 1",
    "    findings: 12000, of these 10000 kept",
    r"    error: 'one is busy \x1b'",
]


@pytest.fixture
def engine(run_dir: Path) -> Iterator[FakeEngine]:
    with fake_engine(str(run_dir / "sync.sock")) as fake:
        fake.answers |= {"ListRuns": [BACKUP, GOING], "ListFindings": FINDINGS}
        yield fake


@pytest.fixture
def run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["logs", *arguments, "--socket", str(run_dir / "sync.sock")])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def test_runs_are_a_table_with_what_else_there_is_below(engine: FakeEngine, run: Run) -> None:
    code, out, err = run("backup")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        *TABLE,
        (
            f"{moment(1_700_000_100)}  export        manual    running             -          0        0         0"
            "        0 B        0 B  20231114T221500-000001"
        ),
    ]
    assert engine.asked == [pb.ListRunsRequest(log="backup")]


def test_what_is_asked_for_is_asked_of_the_engine(engine: FakeEngine, run: Run) -> None:
    wanted = ("--since", "2023-11-14T22:13:20+00:00", "--result", "failed", "--kind", "storage-sync", "--limit", "5")
    assert run("storage", *wanted)[0] == 0
    assert engine.asked == [
        pb.ListRunsRequest(log="storage", since_unix_s=1_700_000_000, result="failed", kind="storage-sync", limit=5)
    ]


def test_json_has_one_run_a_line_with_every_field(engine: FakeEngine, run: Run) -> None:
    first, second = (json.loads(line) for line in run("backup", "--json")[1].splitlines())
    assert first["bytes_read"] == 2_147_483_648
    assert first["facts"] == {"depth": "content"}
    assert (second["end_unix_s"], second["took_s"], second["result"]) == (None, None, "running")
    assert set(first) == set(second) == {field.name for field in pb.RunRecord.DESCRIPTOR.fields}


def test_one_run_is_shown_with_its_findings(engine: FakeEngine, run: Run) -> None:
    engine.answers["ListRuns"] = [BACKUP]
    code, out, _ = run("backup", "--run", BACKUP.id)
    equal_until = moment(1_600_000_000)
    assert (code, out.splitlines()) == (
        0,
        [
            *TABLE,
            f"DATASET  FAULT       SIDE     REPAIRED  {'EQUAL UNTIL'.ljust(len(equal_until))}  SUBJECT",
            f"files    content     standby  yes       {equal_until}  'a\\nb' (block 3)",
            f"cdr      unverified  active   no        {'-'.ljust(len(equal_until))}  cdr 7",
        ],
    )
    assert engine.asked == [
        pb.ListRunsRequest(log="backup", id=BACKUP.id),
        pb.ListFindingsRequest(log="backup", id=BACKUP.id),
    ]
    told = json.loads(run("backup", "--run", BACKUP.id, "--json")[1])
    assert (told["id"], told["findings"]) == (BACKUP.id, 12_000)
    assert [item["equal_until_unix_s"] for item in told["found"]] == [1_600_000_000, None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("backup", "--result", "bad"), "'bad' is not one of 'running', 'done'"),
        (("backup", "--kind", "bad"), "'bad' is not one of 'full-backup'"),
        (("storage", "--since", "soon"), "'soon': give an age like 10m"),
        (("storage", "--limit", "0"), "0 is not in the range"),
        (("backup", "--run", "x", "--follow", "--limit", "3"), "--run tells of one run: leave out --follow, --limit"),
        (("backup", "--run", ""), "--run: give the id of a run, as `ha-sync logs backup` shows it"),
    ],
)
def test_a_wrong_request_names_what_is_wrong_and_is_never_sent(
    engine: FakeEngine, run: Run, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert engine.asked == []


def test_what_the_engine_does_not_know_ends_as_it_says(engine: FakeEngine, run: Run) -> None:
    engine.fails = (grpc.StatusCode.INVALID_ARGUMENT, "id: 'x' is no run of the backup log", 2)
    assert run("backup", "--run", "x") == (2, "", "ha-sync: id: 'x' is no run of the backup log\n")


def test_an_interrupted_follower_is_done_not_failed(engine: FakeEngine, run_dir: Path) -> None:
    over = threading.Event()

    def answer(asked: Any, _context: grpc.ServicerContext) -> Iterator[Any]:
        yield BACKUP
        if asked.follow:
            yield GOING
            over.wait(60)

    engine.answers["ListRuns"] = answer
    with start_ha_sync("logs", "backup", "--follow", "--json", "--socket", run_dir / "sync.sock") as process:
        try:
            assert process.stdout is not None
            assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == [BACKUP.id, GOING.id]
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
            over.set()
    assert (process.returncode, err) == (0, "")
