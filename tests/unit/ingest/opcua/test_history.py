"""Reading the history of a server that means harm has an end too."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from asyncua import ua

from services.ingest.protocols.health import Health
from services.ingest.protocols.opcua.history import EMPTY_PAGES, History
from services.ingest.protocols.opcua.items import Device, Item, Items
from services.ingest.protocols.opcua.limits import Limits, limits_of
from services.ingest.protocols.opcua.points import Points
from services.ingest.protocols.opcua.progress import Progress
from tests.unit.ingest.opcua.server import Server, a_connector, a_reception


class NoPoints(Points):
    """Takes what is nothing."""

    async def bring(self, *_: Any) -> None:
        """Take it."""


def a_history(answer: Callable[[Any], Any], nodes: int = 1) -> tuple[History, Items, Device]:
    """Return the history of some nodes of a press, at a server that answers so."""
    settings = [
        {"device": "press", "metric": f"m{number}", "node_id": f"ns=2;i={number}"}
        for number in range(nodes)
    ]
    connector = a_connector(items=settings)
    reception, health = a_reception(), Health(lambda state, reason: None)
    items = Items(connector, reception, health)
    device = Device("press", cast(Any, None), cast(Any, None))
    items._items = [
        Item(each, device, str(each.node_id), ua.NodeId.from_string(str(each.node_id)))
        for each in connector.settings.items
    ]
    points, progress = NoPoints(reception, health), Progress(connector)
    session = Server(answer).session
    history = History(session, connector, reception, items, points, progress, health)
    return history, items, device


async def test_a_history_that_promises_more_for_ever_is_given_up() -> None:
    def no_values(_: Any) -> ua.HistoryReadResult:
        answer = ua.HistoryReadResult()
        answer.HistoryData = ua.HistoryData()
        answer.ContinuationPoint = b"more"
        asked.append(answer)
        return answer

    asked: list[Any] = []
    history, _, device = a_history(no_values)
    async with asyncio.timeout(30):
        lacking = await history._read(0)
    assert lacking == {device}
    assert len(asked) == EMPTY_PAGES


async def test_a_server_that_refuses_to_read_its_history_has_none() -> None:
    def refuse(_: Any) -> Any:
        raise ua.UaStatusCodeError(ua.StatusCodes.BadHistoryOperationUnsupported)

    history, _, device = a_history(refuse)
    assert await history._read(0) == {device}


async def test_a_session_that_is_over_says_nothing_of_the_history() -> None:
    def refuse(_: Any) -> Any:
        raise ua.UaStatusCodeError(ua.StatusCodes.BadSessionIdInvalid)

    history, _, _ = a_history(refuse)
    with pytest.raises(ua.UaStatusCodeError):
        await history._read(0)


async def test_no_more_histories_are_asked_for_at_once_than_the_server_reads() -> None:
    def none_yet(params: ua.HistoryReadParameters) -> ua.HistoryReadResult:
        asked.append(len(params.NodesToRead))
        answer = ua.HistoryReadResult()
        answer.StatusCode = ua.StatusCode(ua.StatusCodes.GoodNoData)
        answer.HistoryData = ua.HistoryData()
        return answer

    asked: list[int] = []
    history, items, _ = a_history(none_yet, nodes=3)
    items.limits = Limits(read_history=1)
    assert await history._read(0) == set()
    assert asked == [1, 1, 1]


@pytest.mark.parametrize(
    ("told", "limits"),
    [
        ([100, 50, 10, 5], Limits(100, 50, 10, 5)),
        ([0, 0, 0, 0], Limits()),
        ([2**32 - 1, "many", None, 1_000], Limits()),
    ],
)
async def test_a_server_s_limits_are_heeded_where_it_has_some(
    told: list[Any], limits: Limits
) -> None:
    class Telling(Server):
        async def read_attributes(self, nodes: list[Any], attribute: Any) -> list[ua.DataValue]:
            return [ua.DataValue(None if each is None else ua.Variant(each)) for each in told]

    assert await limits_of(Telling(lambda _: None).session) == limits
