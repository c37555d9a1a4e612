"""The edge as a process of a bench: all services in one, as in `make run`, without the plant.

    python -m tests.bench.edge DIRECTORY PORT MQTT_PORT

The database is the one at POSTGRES_URL, whose roles' passwords lie in the directory. A file `ready` appears
there when everything runs; SIGTERM ends it.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from deploy.edge.platform import Options, running
from deploy.local.database import PlatformDatabase
from deploy.local.servers import GivenServer
from libs.common import log
from libs.common.clock import SystemClock


async def run(directory: Path, port: int, mqtt_port: int) -> None:
    """Run until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    database = PlatformDatabase(
        GivenServer("PostgreSQL", os.environ["POSTGRES_URL"]), directory / "passwords.json"
    )
    options = Options(
        port=port,
        mqtt_port=mqtt_port,
        admin_email=os.environ["TENANCY_FIRST_ADMIN_EMAIL"],
        admin_password=os.environ["TENANCY_FIRST_ADMIN_PASSWORD"],
    )
    async with running(database, SystemClock(), options):
        (directory / "ready").touch()
        await ended.wait()


if __name__ == "__main__":
    log.configure("edge", level="warning")
    uvloop.run(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
