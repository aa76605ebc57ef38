"""A process that holds the cluster IP and renews it twice a second: what an agent is to the kernel. Run in a namespace.

    python -m tests.support.netns_agent INTERFACE ADDRESS LEASE_S

Prints one line for each outcome, with the monotonic time. Its evidence is always fresh.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time

from ha_agent.cluster_ip.lease import Lease, Outcome


async def main(interface: str, address: str, lease_s: int) -> None:
    lease = Lease(interface, ipaddress.ip_address(address))
    answer = await lease.add(valid_s=lease_s, not_after=time.monotonic() + lease_s)
    while True:
        print(answer.outcome.value, f"{time.monotonic():.3f}", answer.reason, flush=True)
        if answer.outcome is not Outcome.HELD:
            break
        evidence = time.monotonic()
        await asyncio.sleep(0.5)
        answer = await lease.renew(valid_s=lease_s, not_after=evidence + lease_s)
    await lease.close()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
