"""Where a pair stands in an upgrade of its firmware, from what both nodes say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_sync.cli.upgrade import Scene, plan_of, refusal_of, same

OLD = Scene(
    role="active", firmware="1.0", peer_role="standby", peer_firmware="1.0", ready=True, began_from="1.0", reasons="r"
)


@pytest.mark.req("R7")
@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (-1, {"peer_role": ""}),
        (-1, {"role": "starting"}),
        (-1, {"peer_firmware": ""}),
        (-1, {"began_from": None, "open_there": True}),
        (0, {"began_from": None}),
        (1, {"began_from": None, "peer_firmware": "2.0"}),
        (2, {}),
        (3, {"peer_firmware": "2.0", "ready": False}),
        (4, {"peer_firmware": "2.0"}),
        (5, {"firmware": "2.0"}),
        (4, {"role": "standby", "peer_role": "active", "firmware": "2.0"}),
        (5, {"role": "standby", "peer_role": "active", "peer_firmware": "2.0"}),
        (6, {"firmware": "2.0", "peer_firmware": "2.0", "ready": False}),
        (7, {"firmware": "2.0", "peer_firmware": "2.0"}),
    ],
)
def test_each_scene_has_its_step(step: int, changes: dict[str, object]) -> None:
    plan = plan_of(replace(OLD, **changes))  # type: ignore[arg-type]
    assert plan.step == step
    assert plan.todo


@pytest.mark.req("R7")
@pytest.mark.parametrize(
    ("before", "refused", "changes"),
    [
        ("upgrade", "no upgrade window", {"began_from": None, "role": "standby"}),
        ("upgrade", "this node is the Active", {}),
        ("upgrade", "", {"role": "standby", "peer_role": "active"}),
        ("upgrade", "", {"role": "standby", "peer_role": "active", "began_from": None, "open_there": True}),
        ("switch", "not the Active", {"role": "standby", "peer_role": "active"}),
        ("switch", "not ready", {"ready": False}),
        ("switch", "", {"peer_firmware": "2.0"}),
    ],
)
def test_a_step_out_of_order_is_refused_with_the_reason(before: str, refused: str, changes: dict[str, object]) -> None:
    why = refusal_of(replace(OLD, **changes), before)  # type: ignore[arg-type]
    assert (refused in why) if refused else why == ""


def test_the_beats_carry_the_beginning_of_a_long_firmware_only() -> None:
    long = "1.0.29.17-release-2026-09"
    assert same(long, long[:20])
    assert not same("1.0", "1.0.1")
    assert not same(long, "1.0")
