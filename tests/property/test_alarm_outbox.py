"""The outbox against a plain list, restarted at any moment; and killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha_agent.alarms.outbox import Outbox

pytestmark = pytest.mark.req("R32", "R17")

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "3"))
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "sent", "give up", "restart"]), st.sampled_from(["a", "b"])),
    max_size=40,
)


def numbers(outbox: Outbox, target: str) -> list[int]:
    return [message.document["n"] for message in outbox._queues[target].waiting]


@settings(max_examples=40)
@given(STEPS)
def test_it_is_a_list_for_each_target_whatever_is_restarted(steps: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "alarms.db")
        model: dict[str, list[int]] = {"a": [], "b": []}
        gone = {"sent": {"a": 0, "b": 0}, "give up": {"a": 0, "b": 0}}
        outbox = Outbox(path, model)
        for number, (step, target) in enumerate(steps):
            head = outbox.head(target)
            if step == "put":
                outbox.put(target, {"n": number})
                model[target].append(number)
            elif step == "restart":
                outbox.close()
                outbox = Outbox(path, model)
            elif head is not None:
                assert head.document["n"] == model[target].pop(0)
                (outbox.sent if step == "sent" else outbox.give_up)(head)
                gone[step][target] += 1
        outbox.close()
        outbox = Outbox(path, model)
        outbox.close()
        for target, waiting in model.items():
            assert numbers(outbox, target) == waiting
            tally = outbox.tally(target)
            assert (tally.sent, tally.given_up) == (gone["sent"][target], gone["give up"][target])


CHILD = """
import sys
from ha_agent.alarms.outbox import Outbox
outbox, taken = Outbox(sys.argv[1], ["a"]), -1
for number in range(int(sys.argv[2]), 10**9):
    outbox.put("a", {"n": number})
    if number % 3 == 0:
        head = outbox.head("a")
        outbox.sent(head)
        taken = head.document["n"]
    if number % 5 == 4:
        outbox._writer.flush()
        print(number, taken, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 7, 19][: max(1, ROUNDS)])
def test_a_kill_leaves_the_queue_without_gaps_and_loses_nothing_that_was_durable(tmp_path: Path, lines: int) -> None:
    path, begin = str(tmp_path / "alarms.db"), 0
    for _ in range(ROUNDS):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, path, str(begin)], stdout=subprocess.PIPE, env=environment
        ) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(lines)]
            child.send_signal(signal.SIGKILL)
            said += child.stdout.readlines()  # what it said before it was gone
        last, taken = map(int, said[-1].split())
        outbox = Outbox(path, ["a"])
        found = numbers(outbox, "a")
        outbox.close()
        assert found == list(range(found[0], found[-1] + 1)), "in order, without gaps"
        assert found[-1] >= last
        assert found[0] > taken, "what was sent, and known to be, does not come back"
        begin = found[-1] + 1
