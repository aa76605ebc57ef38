"""An administrator's request is answered by what the arbiter does, refuses, or gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ha_agent.agent.requests import GIVEN_UP, Answered, Requests
from ha_agent.arbiter.actions import Moved, Refused
from ha_agent.arbiter.transitions import TABLE
from ha_agent.arbiter.values import Cause, Epoch, Phase, Reason

pytestmark = pytest.mark.req("R6")
WITHIN_S = 20.0


def move(row: str, before: Phase, after: Phase, cause: Cause = Cause.PLANNED, epoch: int = 8) -> Moved:
    return Moved(row=row, why="", before=before, after=after, cause=cause, epoch=Epoch(epoch))


async def answer(requests: Requests, *steps: Callable[[], None]) -> Answered:
    """Asks; the first step happens within the call, the others later, one at a time."""

    async def later() -> None:
        for step in steps[1:]:
            await asyncio.sleep(0)
            step()

    asking = asyncio.create_task(requests.ask(steps[0], timeout_s=WITHIN_S))
    await asyncio.sleep(0)
    await later()
    return await asyncio.wait_for(asking, WITHIN_S)


async def test_a_refusal_is_the_answer_with_the_peers_reasons_and_the_detail() -> None:
    requests = Requests()

    def refuse() -> None:
        requests.detail = "sleep (pid 7) has /pbx/cdr.db open"
        requests.refused(Refused(reason=Reason.QUIESCE_FAILED, peer_reasons=(Reason.BEHIND,)))

    assert await answer(requests, lambda: None, refuse) == Answered(
        done=False,
        reason=Reason.QUIESCE_FAILED,
        peer_reasons=(Reason.BEHIND,),
        detail="sleep (pid 7) has /pbx/cdr.db open",
    )


@pytest.mark.parametrize(
    ("left_s", "detail"), [(95.2, "about 95 s are left"), (None, "how long it will take is not known yet")]
)
@pytest.mark.req("R23")
async def test_a_refusal_for_a_full_backup_says_how_long_that_will_take(left_s: float | None, detail: str) -> None:
    requests = Requests()
    requests.backup_left_s = left_s
    refused = Refused(reason=Reason.BACKUP_RUNNING, peer_reasons=())
    answered = await answer(requests, lambda: requests.refused(refused))
    assert (answered.done, answered.reason, answered.detail) == (False, Reason.BACKUP_RUNNING, detail)


async def test_a_planned_switch_is_done_when_the_peer_serves_and_not_before_the_go() -> None:
    requests = Requests()
    answered = await answer(
        requests,
        lambda: requests.peer_serves(Epoch(7)),
        lambda: requests.moved(move("granted", Phase.OFFERING, Phase.RELEASING)),
        lambda: requests.peer_serves(Epoch(7)),
        lambda: requests.moved(move("go", Phase.RELEASING, Phase.STANDBY)),
        lambda: requests.peer_serves(Epoch(9)),
    )
    assert answered == Answered(done=True, epoch=Epoch(9))


async def test_a_role_that_comes_back_was_not_switched() -> None:
    requests = Requests()
    answered = await answer(
        requests,
        lambda: requests.moved(move("go", Phase.RELEASING, Phase.STANDBY)),
        lambda: requests.moved(move("serve", Phase.ADDING, Phase.ACTIVE, Cause.SILENCE)),
    )
    assert (answered.done, answered.reason) == (False, Reason.PEER_LOST)


async def test_a_forced_take_over_is_done_when_this_node_serves() -> None:
    requests = Requests()
    answered = await answer(
        requests,
        lambda: requests.moved(move("force-dead", Phase.STANDBY, Phase.CLAIMING, Cause.FORCED)),
        lambda: requests.moved(move("add", Phase.CLAIMING, Phase.ADDING, Cause.FORCED)),
        lambda: requests.moved(move("serve", Phase.ADDING, Phase.ACTIVE, Cause.FORCED)),
    )
    assert answered == Answered(done=True, epoch=Epoch(8))


@pytest.mark.parametrize(
    ("row", "before", "after", "reason"),
    [
        ("claim-answered", Phase.CLAIMING, Phase.STANDBY, Reason.FOREIGN_HOLDER),
        ("claim-not-stored", Phase.CLAIMING, Phase.STANDBY, Reason.STORE_FAILED),
        ("add-failed", Phase.ADDING, Phase.FENCED, Reason.ADDRESS_FAILED),
        ("follow", Phase.CLAIMING, Phase.STANDBY, Reason.PEER_HEARD),
    ],
)
async def test_a_forced_take_over_that_is_given_up_says_why_at_once(
    row: str, before: Phase, after: Phase, reason: Reason
) -> None:
    requests = Requests()
    answered = await answer(
        requests,
        lambda: requests.moved(move("force-dead", Phase.STANDBY, Phase.CLAIMING, Cause.FORCED)),
        lambda: requests.moved(move(row, before, after, Cause.FORCED)),
    )
    assert (answered.done, answered.reason) == (False, reason)


@pytest.mark.parametrize("row", ["lease-lapsed", "outranked", "stop"])
async def test_an_active_that_loses_the_role_meanwhile_has_switched_nothing(row: str) -> None:
    requests = Requests()
    after = Phase.LEFT if row == "stop" else Phase.FENCED
    answered = await answer(
        requests,
        lambda: requests.moved(move("switch", Phase.ACTIVE, Phase.QUIESCING)),
        lambda: requests.moved(move(row, Phase.QUIESCING, after)),
    )
    assert (answered.done, answered.reason) == (False, Reason.NOT_ACTIVE)


def test_the_rows_that_give_a_claim_up_are_rows_of_the_table() -> None:
    assert GIVEN_UP.keys() <= {row.name for row in TABLE}


async def test_a_second_request_is_told_that_one_is_under_way() -> None:
    requests = Requests()
    first = asyncio.create_task(requests.ask(lambda: None, timeout_s=WITHIN_S))
    await asyncio.sleep(0)
    assert await requests.ask(lambda: None, timeout_s=WITHIN_S) == Answered(done=False, reason=Reason.BUSY)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    requests.peer_serves(Epoch(3))
    done = await answer(requests, lambda: requests.refused(Refused(reason=Reason.NOT_ACTIVE)))
    assert done.reason is Reason.NOT_ACTIVE, "whoever went away leaves the next one free"


async def test_a_request_that_nothing_answers_ends_with_its_time() -> None:
    assert await Requests().ask(lambda: None, timeout_s=0.01) == Answered(done=False, reason=Reason.DEADLINE)


async def test_what_is_not_waited_for_is_done_unless_it_was_refused_at_once() -> None:
    requests = Requests()
    assert await requests.ask(lambda: None, timeout_s=0) == Answered(done=True)
    refused = await requests.ask(lambda: requests.refused(Refused(reason=Reason.PEER_HEARD)), timeout_s=0)
    assert (refused.done, refused.reason) == (False, Reason.PEER_HEARD)
