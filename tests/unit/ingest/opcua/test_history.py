"""Reading the history of a server that means harm has an end too."""

import asyncio
from typing import Any, cast

from asyncua import ua

from services.ingest.protocols.opcua.health import Health
from services.ingest.protocols.opcua.history import EMPTY_PAGES, History
from services.ingest.protocols.opcua.items import Device, Item, Items
from services.ingest.protocols.opcua.points import Points
from services.ingest.protocols.opcua.progress import Progress
from tests.unit.ingest.opcua.server import Server, a_connector, a_reception


class NoPoints(Points):
    """Takes what is nothing."""

    async def bring(self, *_: Any) -> None:
        """Take it."""


async def test_a_history_that_promises_more_for_ever_is_given_up() -> None:
    def no_values(_: Any) -> ua.HistoryReadResult:
        answer = ua.HistoryReadResult()
        answer.HistoryData = ua.HistoryData()
        answer.ContinuationPoint = b"more"
        asked.append(answer)
        return answer

    asked: list[Any] = []
    connector = a_connector(items=[{"device": "press", "metric": "temp", "node_id": "ns=2;s=Temp"}])
    reception, health = a_reception(), Health(lambda state, reason: None)
    items = Items(connector, reception, health)
    device = Device("press", cast(Any, None), cast(Any, None))
    (settings,) = connector.settings.items
    items._items = [Item(settings, device, "Temp", ua.NodeId("Temp", 2))]
    points, progress = NoPoints(reception, health), Progress(connector)
    session = Server(no_values).session
    history = History(session, connector, reception, items, points, progress, health)
    async with asyncio.timeout(30):
        lacking = await history._read(0)
    assert lacking == {device}
    assert len(asked) == EMPTY_PAGES
