"""The fleet as a process of its own, for a network that the tests are not in, or a fleet that is large.

Reads from its standard input who the devices are and where they go: JSON, one line. It works until
every protocol has had so many points acknowledged; or, once all its devices are in, it waits for another
line and works for so many seconds. To its standard output it writes JSON, one object a line: how it
does, once a second, and at the end each device's entry of the ledger.
"""

import asyncio
import json
import logging
import os
import resource
import sys
import time
from typing import Any
from uuid import UUID

from clients.simulator.protocols import Doors
from libs.common.service import settle_memory
from tests.fleet.fleet import PAUSE_S, RECONNECT_S, Fleet, Member

WITHIN_S = 240.0
PATIENCE_S = 30.0


async def work(told: dict[str, Any]) -> None:
    """Work as told."""
    # A large fleet is a million objects that stay, which full collections would go through again and again.
    settle_memory()
    doors = Doors(told["url"], {name: (host, port) for name, (host, port) in told["doors"].items()})
    members = [Member(protocol, UUID(id_), token) for protocol, id_, token in told["members"]]
    fleet = Fleet(
        doors,
        members,
        pause_s=told.get("pause_s", PAUSE_S),
        patience_s=PATIENCE_S,
        reconnect_s=told.get("reconnect_s", RECONNECT_S),
        most_waiting=told["most_waiting"],
    )
    telling = asyncio.create_task(_tell(fleet))
    async with fleet:
        if "points" in told:
            await fleet.works(told["points"], within_s=WITHIN_S)
        else:
            await _work_for(fleet, told)
        await fleet.settles(within_s=WITHIN_S)
        telling.cancel()
        # When thousands leave, aiomqtt asks to write to some sockets that it has just closed.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        _say(**_state(fleet), settled=True)
    for device_id, entry in fleet.ledger.entries.items():
        _say(device=str(device_id), sent=list(entry.sent), acknowledged=list(entry.acknowledged))
    # All is told. A device that does not leave must not hold up the end.
    os._exit(0)


async def _work_for(fleet: Fleet, told: dict[str, Any]) -> None:
    await fleet.comes_in()
    settle_memory()
    if not await asyncio.to_thread(sys.stdin.readline):
        raise EOFError("nobody said that the other processes' devices are in as well")
    for seconds, hurry in told["stretches"]:
        fleet.hurry = hurry
        await asyncio.sleep(seconds)


async def _tell(fleet: Fleet) -> None:
    while True:
        _say(**_state(fleet), settled=False)
        await asyncio.sleep(1)


def _state(fleet: Fleet) -> dict[str, float]:
    return {
        "entered": fleet.entered,
        "connected": fleet.connected,
        "waiting": fleet.waiting,
        "points": sum(fleet.acknowledged.values()),
        "reconnects": fleet.reconnects,
        "cpu_s": time.process_time(),
    }


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(work(json.loads(sys.stdin.readline())))
