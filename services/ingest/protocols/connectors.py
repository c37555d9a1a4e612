"""What the kinds of connectors have in common: how settings are written, and when a run begins anew."""

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from typing import Annotated, Any, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from libs.common.errors import AppError, Unavailable
from libs.common.tasks import end
from services.ingest.domain.device import Source
from services.ingest.domain.payload import LONGEST_METRIC
from services.ingest.usecases.connectors import Connector
from services.ingest.usecases.sources import Sources

LOOKED_UP_EVERY_S = 30.0
"""How often it is looked whether devices that there are not have been registered."""


class ConnectorSettings(BaseModel):
    """Settings of a connector, or a part of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


DeviceName = Annotated[str, Field(min_length=1, max_length=256)]
"""Its id, or its name."""


class MetricSettings(ConnectorSettings):
    """A value of the other side's, and the metric of a device that it is."""

    device: DeviceName
    metric: Annotated[str, Field(min_length=1, max_length=LONGEST_METRIC)]


M = TypeVar("M", bound=MetricSettings)


def each_metric_once(values: list[M]) -> list[M]:
    """Return the values. Raises ValueError if two of them are one metric."""
    seen = set()
    for value in values:
        key = (value.device, value.metric)
        if key in seen:
            raise ValueError(f"the metric {value.metric!r} of {value.device!r} is named twice")
        seen.add(key)
    return values


class Found(Protocol):
    """A device that a connector speaks for."""

    @property
    def source(self) -> Source:
        """The device as this process knows it."""
        ...


async def until_devices_change(
    connector: Connector,
    sources: Sources,
    work: Coroutine[Any, Any, None],
    devices: Mapping[str, Found],
    unknown: Collection[str],
) -> None:
    """Do the work until one of the devices is cut off, or one that is unknown is registered.

    Both may grow meanwhile. Raises Unavailable when one changes: all begins anew then, the devices
    are looked up, and with them what they may. Raises also what the work raises.
    """
    changed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def cut(device_id: UUID, reason: str) -> None:
        if not changed.done() and any(
            device.source.device_id == device_id for device in devices.values()
        ):
            changed.set_result(f"a device was cut off: {reason}")

    async def look() -> None:
        while not changed.done():
            await asyncio.sleep(LOOKED_UP_EVERY_S)
            try:
                is_there = await connector.devices.has_any(unknown)
            except AppError:
                continue  # the database is away
            if is_there and not changed.done():
                changed.set_result("a device that there was not is registered now")

    sources.on_revoked.append(cut)
    working, looking = asyncio.create_task(work), asyncio.create_task(look())
    either: set[asyncio.Future[Any]] = {working, changed}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Unavailable(changed.result())
        await working
    finally:
        sources.on_revoked.remove(cut)
        await end(looking)
        if not working.done():
            await end(working)
