"""``ha-sync package`` against an engine that answers as it was told: the file, what is printed, how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.main import main
from tests.support.control_service import FakeEngine, fake_engine

EXPECTED = pb.ExportPackageResponse(expected=pb.PackageExpected(objects=3, content_bytes=1000))
DONE = pb.PackageExported(entries=3, content_bytes=1000, package_bytes=8, blake2b="ab", run="r1")


@pytest.fixture
def engine(run_dir: Path) -> Iterator[FakeEngine]:
    with fake_engine(str(run_dir / "sync.sock")) as fake:
        fake.answers["ExportPackage"] = exporting(DONE)
        yield fake


@pytest.fixture
def run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["package", *arguments, "--socket", str(run_dir / "sync.sock")])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def exporting(done: pb.PackageExported, *pieces: bytes) -> list[pb.ExportPackageResponse]:
    data = [pb.ExportPackageResponse(data=piece) for piece in pieces or (b"pack", b"age!")]
    return [EXPECTED, *data, pb.ExportPackageResponse(exported=done)]


@pytest.mark.req("R24")
def test_an_export_puts_the_whole_file_under_its_name_for_its_owner_alone(
    engine: FakeEngine, run: Any, tmp_path: Path
) -> None:
    file = tmp_path / "pbx.package"
    file.write_bytes(b"an older one")
    code, out, err = run("export", str(file))
    assert (code, file.read_bytes()) == (0, b"package!")
    assert file.stat().st_mode & 0o777 == 0o600, "it holds every password of the PBX"
    assert out.splitlines() == [f"exported 3 objects, 0.0 MiB in 0.0 MiB, to {file}", "blake2b ab"]
    assert err.startswith("exporting")
    assert os.listdir(tmp_path) == ["pbx.package"]
    assert engine.asked == [pb.ExportPackageRequest()]


@pytest.mark.req("R24")
def test_what_could_not_be_read_is_named_and_ends_with_4(engine: FakeEngine, run: Any, tmp_path: Path) -> None:
    fault = pb.PackageFault(dataset="cdr", subject="x\ny", fault="unverified", detail="no permission")
    told = pb.PackageExported(faults=[fault], moving=["rec/a"], moving_count=3, absent=["voicemail"])
    engine.answers["ExportPackage"] = exporting(told)
    code, out, _ = run("export", str(tmp_path / "f"), "--from-standby")
    assert (code, engine.asked[0].allow_standby) == (4, True)
    assert out.splitlines()[2:] == [
        "this node has nothing of dataset voicemail",
        "did not hold still, packed as it was got: rec/a",
        "... and 2 more did not hold still",
        "unverified: cdr 'x\\ny': no permission",
    ]
    code, out, err = run("export", str(tmp_path / "f"), "--json")
    assert (code, json.loads(out)["moving_count"], err) == (4, 3, "")


@pytest.mark.req("R24")
def test_an_export_that_breaks_off_leaves_the_older_file(engine: FakeEngine, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "pbx.package"
    file.write_bytes(b"an older one")

    def broken(_request: Any, context: grpc.ServicerContext) -> Iterator[pb.ExportPackageResponse]:
        yield from exporting(DONE)[:2]
        context.abort(grpc.StatusCode.UNAVAILABLE, "the disk is on fire")

    engine.answers["ExportPackage"] = broken
    assert run("export", str(file))[0] == 1
    engine.answers["ExportPackage"] = exporting(DONE)[:-1]
    code, _, err = run("export", str(file))
    assert code == 1
    assert "ended before its end" in err
    assert (os.listdir(tmp_path), file.read_bytes()) == (["pbx.package"], b"an older one")


@pytest.mark.req("R24")
def test_what_a_killed_export_left_is_used_again_and_one_that_runs_is_not_disturbed(
    engine: FakeEngine, run: Any, tmp_path: Path
) -> None:
    file, unfinished = tmp_path / "f", tmp_path / ".f.part"
    unfinished.write_bytes(b"left behind, and longer than what comes")
    with unfinished.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = run("export", str(file))
        assert (code, "another export writes there" in err) == (6, True)
        assert unfinished.exists()
    assert run("export", str(file))[0] == 0
    assert (os.listdir(tmp_path), file.read_bytes()) == (["f"], b"package!")


@pytest.mark.req("R24")
def test_room_is_asked_for_before_anything_is_taken(engine: FakeEngine, run: Any, tmp_path: Path) -> None:
    engine.answers["ExportPackage"] = [
        pb.ExportPackageResponse(expected=pb.PackageExpected(content_bytes=1 << 60)), *exporting(DONE)[1:]
    ]  # fmt: skip
    code, _, err = run("export", str(tmp_path / "f"))
    assert (code, "no room for the package" in err) == (1, True)
    assert os.listdir(tmp_path) == []
    code, _, err = run("export", str(tmp_path / "no" / "folder"))
    assert (code, "cannot write" in err) == (1, True)


@pytest.mark.req("R24")
def test_standard_output_has_the_package_and_nothing_else(engine: FakeEngine, run_dir: Path) -> None:
    line = [sys.executable, "-m", "ha_sync.cli", "package", "export", "-", "--socket", str(run_dir / "sync.sock")]
    for more in ([], ["--json"]):
        done = subprocess.run([*line, *more], capture_output=True, timeout=60, check=True)
        assert done.stdout == b"package!"
        assert b"ab" in done.stderr


TOLD = pb.PackageTold(
    format=1, made_by="0.1.0", node="a", role="active", epoch=4, created="2026-01-01T00:00:00+00:00", entries=3,
    datasets=[pb.PackageDataset(name="cdr", kind="sqlite", present=True, user_version=3)], chosen=["cdr"],
)  # fmt: skip


@pytest.mark.req("R24")
def test_a_check_says_what_it_is_and_whether_it_fits(engine: FakeEngine, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    engine.answers["VerifyPackage"] = [pb.PackageProgress(phase="done", package=TOLD)]
    code, out, _ = run("verify", str(file), "--dataset", "cdr", "--foreign")
    assert code == 0
    assert engine.asked[0] == pb.VerifyPackageRequest(path=str(file), datasets=["cdr"], foreign=True)
    assert out.splitlines() == [
        f"{file} is whole: 3 objects, 0.0 MiB, format 1",
        "made on 2026-01-01T00:00:00+00:00 by a as active in epoch 4, version 0.1.0",
        "DATASET  KIND    SCHEMA  CONTENT  NOTES",
        "cdr      sqlite  3",
    ]
    told = pb.PackageTold(refusals=["it is of another cluster"])
    engine.answers["VerifyPackage"] = [pb.PackageProgress(phase="done", package=told)]
    code, _, err = run("verify", str(file))
    assert (code, "it is of another cluster" in err) == (6, True)
    code, out, _ = run("verify", str(file), "--json")
    assert (code, json.loads(out)["refusals"]) == (6, ["it is of another cluster"]), "one document"


@pytest.mark.req("R24")
def test_a_restore_tells_its_phases_and_what_came_of_it(engine: FakeEngine, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    restored = pb.PackageRestored(
        epoch=6, entries=3, datasets=["cdr"], left_out=2, not_applied=["owner of 3 objects"], notes=["a note"]
    )  # fmt: skip
    engine.answers["RestorePackage"] = [
        pb.PackageProgress(phase="verifying", done_bytes=1 << 20, expected_bytes=2 << 20),
        pb.PackageProgress(phase="stopping"),
        pb.PackageProgress(phase="exchanging"),
        pb.PackageProgress(phase="raising"),
        pb.PackageProgress(phase="done", restored=restored),
    ]
    code, out, err = run("restore", str(file))
    assert code == 0
    assert err.splitlines() == [
        "checking and unpacking beside the data: 1.0 MiB of 2.0 MiB",
        "stopping the services",
        "exchanging the data",
        "raising the epoch",
    ]
    assert out.splitlines() == [
        "restored cdr: 3 objects, 0.0 MiB; epoch 6 is served now",
        "2 objects of the package are this node's own and stayed as they were",
        "not applied: owner of 3 objects",
        "note: a note",
        "the Standby follows by a full sync: see `ha-sync status`",
    ]
    engine.fails = (grpc.StatusCode.PERMISSION_DENIED, "refused the package: it is damaged", 6)
    code, out, _ = run("restore", str(file), "--json")
    assert (code, json.loads(out)["error"]["message"]) == (6, "refused the package: it is damaged")
    assert run("restore", str(tmp_path / "nowhere"))[0] == 2
