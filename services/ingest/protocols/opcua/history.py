"""What was missed: read from a server's history, and said to be missing where it has none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import structlog
from asyncua import ua
from asyncua.client.ua_session import UaSession

from services.ingest.domain.payload import Decoded, as_us
from services.ingest.protocols.health import Health
from services.ingest.protocols.opcua.connection import said
from services.ingest.protocols.opcua.items import Device, Item, Items
from services.ingest.protocols.opcua.points import Points
from services.ingest.protocols.opcua.progress import Progress
from services.ingest.protocols.opcua.site import OpcUaSettings
from services.ingest.protocols.opcua.values import change_of, moment_of
from services.ingest.usecases.connectors import Connector
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

HISTORY_AHEAD = timedelta(days=1)
"""How far a server's clock may be ahead of ours."""
HISTORY_VALUES = 250
"""Of each node, in one answer: with all nodes of a request no more than is asked of what is new."""
EMPTY_PAGES = 3

_NO_VALUE_THERE = (ua.StatusCodes.GoodNoData, ua.StatusCodes.BadNoData)
_SESSION_IS_OVER = (
    ua.StatusCodes.BadSessionIdInvalid,
    ua.StatusCodes.BadSessionClosed,
    ua.StatusCodes.BadSecureChannelIdInvalid,
    ua.StatusCodes.BadSecureChannelClosed,
    ua.StatusCodes.BadConnectionClosed,
)
"""What a request is answered with that the next connection can ask again."""


@dataclass(frozen=True, slots=True)
class _Page:
    """Where the reading of a node's history goes on."""

    handle: int
    item: Item
    start: int
    continuation: bytes | None = None
    reached: int = 0
    """The time of the last value; µs since 1970."""
    empty: int = 0
    """How many pages in a row brought nothing, though more was promised."""


class History:
    """Reads what the server has of the time since all was durable here, with overlap."""

    def __init__(
        self,
        session: UaSession,
        connector: Connector,
        reception: Reception,
        items: Items,
        points: Points,
        progress: Progress,
        health: Health,
    ) -> None:
        self._session = session
        self._connector = connector
        self._settings: OpcUaSettings = connector.settings
        self._reception = reception
        self._items = items
        self._points = points
        self._progress = progress
        self._health = health

    async def catch_up(self) -> None:
        """Take in what was missed; where it is not to be had, note that there is a gap."""
        progress = self._progress
        is_first = progress.until is None
        if is_first and self._settings.history and self._connector.created_at is not None:
            # Of what came before the first note of ours, too.
            progress.until = as_us(self._connector.created_at)
        if progress.until is not None and len(self._items):
            # Whatever its clock said then: nothing was durable after now, or is kept from before.
            reached = min(progress.until, as_us(self._reception.clock.now()))
            start = reached - round(self._settings.history_overlap_s * 1_000_000)
            start = max(start, self._reception.window.earliest)
            lacking = set(self._items.devices.values())
            if self._settings.history:
                lacking = await self._read(start)
            if lacking and not is_first:
                await self._note_gap(lacking, progress.until)
        progress.is_caught_up = True

    async def _note_gap(self, lacking: set[Device], since: int) -> None:
        now = self._reception.clock.now()
        await self._points.bring({each: Decoded(as_us(now), gaps=1) for each in lacking}, now)
        why = "the server keeps no history" if self._settings.history else "history is off"
        moment = moment_of(since).isoformat(timespec="seconds")
        self._health.note(
            "history", f"what changed since {moment} while not connected is missing: {why}"
        )

    async def _read(self, since: int) -> set[Device]:
        """Take in the history since then; return the devices of which some is not to be had."""
        lacking = set()
        historized = await self._find_historized()
        until = as_us(self._reception.clock.now() + HISTORY_AHEAD)
        readable = []
        at_once = self._items.limits.read_history
        for some in self._items.found(at_once):
            for handle, item in some:
                if item.node_id in historized:
                    readable.append(_Page(handle, item, since))
                else:
                    lacking.add(item.device)
        for first in range(0, len(readable), at_once):
            pages = readable[first : first + at_once]
            while pages:
                await self._points.until_there_is_room()
                # One request has one beginning for all of its nodes.
                asked = [page for page in pages if page.start == pages[0].start]
                pages = [page for page in pages if page.start != asked[0].start]
                pages += await self._read_pages(asked, until, lacking)
        return lacking

    async def _read_pages(
        self, asked: Sequence[_Page], until: int, lacking: set[Device]
    ) -> list[_Page]:
        """Take in some history; return where there is more."""
        try:
            results = await self._session.history_read(_raw_values(asked, until))
        except ua.UaStatusCodeError as error:
            if error.code in _SESSION_IS_OVER:
                raise
            log.info("a server does not give its history", error=said(error))
            lacking.update(page.item.device for page in asked)
            return []
        now = self._reception.clock.now()
        by_device: dict[Device, Decoded] = {}
        more = []
        for page, result in zip(asked, results, strict=True):
            if not result.StatusCode.is_good() and result.StatusCode.value not in _NO_VALUE_THERE:
                lacking.add(page.item.device)
                continue
            decoded = by_device.setdefault(page.item.device, Decoded(as_us(now)))
            changes = [change_of(page.handle, data) for data in _values_in(result.HistoryData)]
            for change in changes:
                self._points.add(page.item, change, decoded)
            last = changes[-1].source_us or 0 if changes else 0
            empty = 0 if last > page.reached else page.empty + 1
            further = replace(page, reached=max(last, page.reached), empty=empty)
            if result.ContinuationPoint:
                if empty < EMPTY_PAGES:
                    more.append(replace(further, continuation=result.ContinuationPoint))
                else:
                    lacking.add(page.item.device)  # it promises more for ever
            elif len(changes) >= HISTORY_VALUES and last > page.start:
                # Some servers give what was asked for and do not say that there is more.
                more.append(replace(further, start=last, continuation=None))
        await self._points.bring(by_device, now)
        return more

    async def _find_historized(self) -> set[ua.NodeId]:
        """Return the nodes whose history may be read. A server may answer for others with nothing."""
        found: set[ua.NodeId] = set()
        for some in self._items.found(self._items.limits.read):
            levels = await self._session.read_attributes(
                [item.node_id for _, item in some], ua.AttributeIds.UserAccessLevel
            )
            for (_, item), level in zip(some, levels, strict=True):
                held = level.Value.Value if level.Value is not None else None
                if held is not None and held >> ua.AccessLevel.HistoryRead.value & 1:
                    found.add(item.node_id)
        return found


def _raw_values(pages: Sequence[_Page], until: int) -> ua.HistoryReadParameters:
    details = ua.ReadRawModifiedDetails()
    details.IsReadModified = False
    details.StartTime = moment_of(pages[0].start)
    details.EndTime = moment_of(until)
    details.NumValuesPerNode = HISTORY_VALUES
    details.ReturnBounds = False
    params = ua.HistoryReadParameters()
    params.HistoryReadDetails = details
    params.TimestampsToReturn = ua.TimestampsToReturn.Both
    params.ReleaseContinuationPoints = False
    for page in pages:
        value = ua.HistoryReadValueId()
        value.NodeId = page.item.node_id
        value.IndexRange = ""
        value.ContinuationPoint = page.continuation
        params.NodesToRead.append(value)
    return params


def _values_in(held: Any) -> list[ua.DataValue]:
    if isinstance(held, ua.HistoryData):
        return list(held.DataValues or [])
    return []
