"""One OPC UA session: what it may do, which is all of it about one device.

The library's session asks services that know the whole server. This one has an address space of its
own, and services that know nothing else.
"""

import asyncio
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog
from asyncua import ua
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.address_space import AttributeService, ViewService
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_session import InternalSession
from asyncua.server.subscription_service import SubscriptionService

from libs.common.errors import AppError, Invalid, Unavailable
from libs.common.historian.point import Kind
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing, to_json
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Decoded, Point, as_us
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.protocols.opcua.space import (
    MOST_COMMANDS,
    DeviceSpace,
    metric_node,
)
from services.ingest.protocols.opcua.values import (
    Unsupported,
    add_value,
    is_text,
    quality_of,
    scalar_of,
    us_of,
)
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.quotas import OverQuota
from services.ingest.usecases.reception import Reception
from services.ingest.usecases.telemetry import accept

log = structlog.get_logger(__name__)

LEAST_INTERVAL_MS = 100.0
"""How often a subscription publishes at most. The library would do it as fast as it is asked to."""
SHOWN_EVERY_S = 0.05
MOST_SUBSCRIPTIONS = 10
MOST_ITEMS = 2_000
MOST_QUEUED = 20
"""Values of one monitored item that wait to be published."""
MOST_IN_A_CALL = 1_000
MOST_REFERENCES = 5_000
"""That one Browse is answered with, beyond those of its first node."""
MOST_PATH_ELEMENTS = 3_000
"""In one request to translate paths."""
LONGEST_INTERVAL_MS = 60_000.0

_GOOD = ua.StatusCode(ua.StatusCodes.Good)
_KINDS = {"number": Kind.NUMBER, "bool": Kind.BOOL, "text": Kind.TEXT}
_CHANNELS = {each.value: each for each in Channel}


class Home(typing.Protocol):
    """Who is told of a session that has its device, and of its end."""

    space_numbers: int
    metrics: int
    """How many metrics a device may have."""
    reception: Reception

    def came(self, session: "DeviceSession", source: Source) -> None:
        """Note that a session has its device."""
        ...

    def went(self, session: "DeviceSession", source: Source, reason: str) -> None:
        """Note that it is over."""
        ...


class _View(ViewService):
    """The library's, which follows a path over each node as often as there are ways to it."""

    def _find_elements_in_node(
        self, el: ua.RelativePathElement, nodeid: ua.NodeId
    ) -> list[ua.NodeId]:
        return list(dict.fromkeys(super()._find_elements_in_node(el, nodeid)))

    def _navigate(
        self, start_nodeid: ua.NodeId, elements: list[ua.RelativePathElement]
    ) -> list[ua.NodeId]:
        current = [start_nodeid]
        for element in elements:
            met = [each for node in current for each in self._find_elements_in_node(element, node)]
            current = list(dict.fromkeys(met))
        return current


class DeviceSession(InternalSession):
    """A session: what it may see is its device's address space, and no service looks beyond."""

    def __init__(self, server: Home, inner: InternalServer, name: str) -> None:
        super().__init__(
            inner, inner.aspace, inner.subscription_service, name, User(UserRole.Anonymous), True
        )
        self._server = server
        self._reception = server.reception
        self.source: Source | None = None
        self.space: DeviceSpace | None = None
        self.abort: Callable[[], None] = lambda: None
        """Closes the connection."""
        self._inlet: Inlet | None = None
        self._shown: dict[str, Point] = {}
        self._showing: asyncio.Task[None] | None = None
        self._items = 0
        self._is_commanded = False

    def admit(self, source: Source) -> None:
        """Let the session be a device's."""
        if self.source is not None:
            if self.source is not source:
                raise ServiceError(ua.StatusCodes.BadUserAccessDenied)
            return
        server, inner = self._server, self.iserver
        server.space_numbers += 1
        self.source = source
        self.user = User(UserRole.User, name=str(source.device_id))
        self.space = space = DeviceSpace(inner.aspace, source.device_id, server.space_numbers)
        self.aspace = space
        self.subscription_service = SubscriptionService(space, iserver=inner)
        self._attributes = AttributeService(space)
        self._view = _View(space)
        self._inlet = Inlet(self._reception, source)
        for metric, series in list(source.series.items()):
            space.add_metric(metric, Kind(series.kind))
        declared = {} if source.profile is None else source.profile.metrics
        for metric, declaration in declared.items():
            if declaration.kind is not None:
                space.add_metric(metric, declaration.kind)
        self._offer_methods(space)
        server.came(self, source)

    def end(self, reason: str) -> None:
        """Close the connection from our side."""
        self._leave(reason)
        self.abort()

    def note(self, points: Sequence[Point]) -> None:
        """Show what the device said, by whatever protocol; the newest of each metric, soon."""
        for point in points:
            self._shown[point.metric] = point
        if self._showing is None:
            self._showing = self._reception.spawn(self._show())

    # --- services

    async def read(self, params: ua.ReadParameters) -> list[ua.DataValue]:
        _bound(params.NodesToRead)
        values: list[ua.DataValue] = self._attributes.read(params)
        return values

    async def browse(self, params: ua.BrowseParameters) -> list[ua.BrowseResult]:
        _bound(params.NodesToBrowse)
        results: list[ua.BrowseResult] = []
        found, wanted = 0, params.NodesToBrowse
        for description in wanted:
            if found > MOST_REFERENCES:
                # The same large node a thousand times would be minutes of work, for all who wait.
                result = ua.BrowseResult()
                result.StatusCode = ua.StatusCode(ua.StatusCodes.BadNoContinuationPoints)
            else:
                params.NodesToBrowse = [description]
                (result,) = self._view.browse(params)
                found += len(result.References)
                # Others have their turn between two nodes.
                await asyncio.sleep(0)
            results.append(_unknown_if_invalid(result))
        return results

    async def browse_next(self, parameters: ua.BrowseNextParameters) -> list[ua.BrowseResult]:
        raise ServiceError(ua.StatusCodes.BadServiceUnsupported)

    async def translate_browsepaths_to_nodeids(
        self, params: list[ua.BrowsePath]
    ) -> list[ua.BrowsePathResult]:
        _bound(params)
        if any(not path.RelativePath.Elements for path in params):
            raise ServiceError(ua.StatusCodes.BadNothingToDo)
        if sum(len(path.RelativePath.Elements) for path in params) > MOST_PATH_ELEMENTS:
            raise ServiceError(ua.StatusCodes.BadTooManyOperations)
        found = []
        for path in params:
            found += self._view.translate_browsepaths_to_nodeids([path])
            await asyncio.sleep(0)
        return [_unknown_if_invalid(result) for result in found]

    async def write(self, params: ua.WriteParameters) -> list[ua.StatusCode]:
        """Answer when the values are durable on the bus."""
        _bound(params.NodesToWrite)
        source = self._own_source()
        try:
            self._reception.quotas.spend(source, len(params.NodesToWrite))
        except OverQuota as error:
            raise ServiceError(ua.StatusCodes.BadTooManyOperations) from error
        now = self._reception.clock.now()
        decoded = Decoded(as_us(now))
        codes: list[int] = []
        metrics: list[str | None] = []
        for item in params.NodesToWrite:
            metric, code = self._read_written(item, source, decoded, as_us(now))
            metrics.append(metric)
            codes.append(code)
        if decoded.points:
            await self._take(source, decoded, metrics, codes)
        return [ua.StatusCode(code) for code in codes]

    async def call(self, params: list[ua.CallMethodRequest]) -> list[ua.CallMethodResult]:
        _bound(params)
        return [await self._call(each) for each in params]

    async def history_read(self, params: ua.HistoryReadParameters) -> list[ua.HistoryReadResult]:
        raise ServiceError(ua.StatusCodes.BadHistoryOperationUnsupported)

    async def history_update(
        self, params: ua.HistoryUpdateParameters
    ) -> list[ua.HistoryUpdateResult]:
        raise ServiceError(ua.StatusCodes.BadHistoryOperationUnsupported)

    async def add_nodes(self, params: list[ua.AddNodesItem]) -> list[ua.AddNodesResult]:
        raise ServiceError(ua.StatusCodes.BadUserAccessDenied)

    async def delete_nodes(self, params: ua.DeleteNodesParameters) -> list[ua.StatusCode]:
        raise ServiceError(ua.StatusCodes.BadUserAccessDenied)

    async def add_references(self, params: list[ua.AddReferencesItem]) -> list[ua.StatusCode]:
        raise ServiceError(ua.StatusCodes.BadUserAccessDenied)

    async def delete_references(self, params: list[ua.DeleteReferencesItem]) -> list[ua.StatusCode]:
        raise ServiceError(ua.StatusCodes.BadUserAccessDenied)

    async def transfer_subscriptions(
        self, params: ua.TransferSubscriptionsParameters, callback: Callable[..., Any]
    ) -> list[ua.TransferResult]:
        raise ServiceError(ua.StatusCodes.BadServiceUnsupported)

    async def create_subscription(
        self,
        params: ua.CreateSubscriptionParameters,
        callback: Callable[..., Any],
        request_callback: Callable[..., Any] | None = None,
    ) -> ua.CreateSubscriptionResult:
        if len(self.subscription_service.subscriptions) >= MOST_SUBSCRIPTIONS:
            raise ServiceError(ua.StatusCodes.BadTooManySubscriptions)
        asked = params.RequestedPublishingInterval
        # Not so for NaN either.
        params.RequestedPublishingInterval = (
            min(asked, LONGEST_INTERVAL_MS) if asked > LEAST_INTERVAL_MS else LEAST_INTERVAL_MS
        )
        made: ua.CreateSubscriptionResult = await super().create_subscription(
            params, callback, request_callback
        )
        return made

    async def create_monitored_items(
        self, params: ua.CreateMonitoredItemsParameters
    ) -> list[ua.MonitoredItemCreateResult]:
        _bound(params.ItemsToCreate)
        if self._items + len(params.ItemsToCreate) > MOST_ITEMS:
            raise ServiceError(ua.StatusCodes.BadTooManyMonitoredItems)
        space = self._own_space()
        subscription = self.subscription_service.subscriptions.get(params.SubscriptionId)
        for item in params.ItemsToCreate:
            # A queue of nothing is one without end to the library.
            asked = max(1, min(item.RequestedParameters.QueueSize, MOST_QUEUED))
            item.RequestedParameters.QueueSize = asked
            wanted = item.RequestedParameters.Filter
            if isinstance(wanted, ua.ExtensionObject) and wanted.TypeId.is_null():
                item.RequestedParameters.Filter = None
            elif wanted is not None and not _can_filter(item, space):
                raise ServiceError(ua.StatusCodes.BadMonitoredItemFilterUnsupported)
            if item.ItemToMonitor.NodeId == space.commands and subscription is not None:
                item.RequestedParameters.QueueSize = MOST_COMMANDS
        results: list[
            ua.MonitoredItemCreateResult
        ] = await self.subscription_service.create_monitored_items(params)
        self._items = self._count_items()
        if any(
            item.ItemToMonitor.NodeId == space.commands and result.StatusCode.is_good()
            for item, result in zip(params.ItemsToCreate, results, strict=True)
        ):
            self._attach()
        return results

    async def modify_monitored_items(
        self, params: ua.ModifyMonitoredItemsParameters
    ) -> list[ua.MonitoredItemModifyResult]:
        # The library does not bound what it is asked for here.
        raise ServiceError(ua.StatusCodes.BadServiceUnsupported)

    async def delete_monitored_items(
        self, params: ua.DeleteMonitoredItemsParameters
    ) -> list[ua.StatusCode]:
        results: list[ua.StatusCode] = self.subscription_service.delete_monitored_items(params)
        self._items = self._count_items()
        return results

    async def delete_subscriptions(self, ids: list[int]) -> list[ua.StatusCode]:
        results: list[ua.StatusCode] = await super().delete_subscriptions(ids)
        self._items = self._count_items()
        return results

    async def close_session(self, delete_subs: bool = True) -> None:
        # Nobody can come back to a session of ours, so nothing of it stays.
        await super().close_session(True)
        self._leave("connection lost")

    # --- writing

    def _read_written(
        self, item: ua.WriteValue, source: Source, decoded: Decoded, now: int
    ) -> tuple[str | None, int]:
        """Add what is written to `decoded`; return its metric, or None and why it is refused."""
        space = self._own_space()
        if item.NodeId not in space:
            return None, ua.StatusCodes.BadNodeIdUnknown
        known = space.metrics.get(item.NodeId)
        if known is None or item.AttributeId != ua.AttributeIds.Value:
            return None, ua.StatusCodes.BadNotWritable
        if item.IndexRange:
            return None, ua.StatusCodes.BadWriteNotSupported
        metric, kind = known
        data = item.Value
        value = scalar_of(data.Value)
        quality = quality_of(0 if data.StatusCode is None else data.StatusCode.value)
        if isinstance(value, Unsupported) or (value is not None and _kind_of(value) is not kind):
            return None, ua.StatusCodes.BadTypeMismatch
        ts = us_of(data.SourceTimestamp) or now
        if self._reception.window.disbelief(ts, data.SourceTimestamp) is not None:
            return None, ua.StatusCodes.BadInvalidTimestamp
        before = len(decoded.refused)
        add_value(decoded, source, metric, ts, value, quality, kind=kind)
        if len(decoded.refused) > before:
            del decoded.refused[before:]
            return None, ua.StatusCodes.BadOutOfRange
        return metric, ua.StatusCodes.Good

    async def _take(
        self, source: Source, decoded: Decoded, metrics: list[str | None], codes: list[int]
    ) -> None:
        self._reception.met(source, Protocol.OPCUA, PayloadFormat.NATIVE)
        failed = ua.StatusCodes.BadInternalError
        refused: dict[str | None, str] = {}
        try:
            refusals = await accept(
                self._reception.intake, source, decoded, within=self._reception.believed.within
            )
        except Unavailable:
            failed = ua.StatusCodes.BadResourceUnavailable
        except AppError as error:
            log.info("an OPC UA write is refused", reason=error.detail)
        else:
            refused = {refusal.metric: refusal.reason for refusal in refusals}
            failed = ua.StatusCodes.Good
        for index, metric in enumerate(metrics):
            if metric is None:
                continue
            codes[index] = failed
            if metric in refused:
                codes[index] = (
                    ua.StatusCodes.BadTypeMismatch
                    if refused[metric] == "type_changed"
                    else ua.StatusCodes.BadOutOfRange
                )

    # --- methods

    def _offer_methods(self, space: DeviceSpace) -> None:
        space.add_method(
            "AddMetric",
            self._add_metric,
            [("name", "of the metric"), ("type", "number, bool or text")],
            [("node", ua.ObjectIds.NodeId)],
        )
        space.add_method("Publish", self._publish, [("payload", "telemetry as JSON")])
        space.add_method(
            "Report",
            self._report,
            [("channel", "alerts, status or attributes"), ("payload", "as JSON")],
        )
        space.add_method(
            "Reply",
            self._reply,
            [
                ("id", "of the command"),
                ("status", "acknowledged, succeeded or failed"),
                ("result", "as JSON; of a command that failed, the reason"),
            ],
        )

    async def _call(self, request: ua.CallMethodRequest) -> ua.CallMethodResult:
        result = ua.CallMethodResult()
        space = self._own_space()
        if request.ObjectId not in space or request.MethodId not in space:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown)
            return result
        method = space.methods.get(request.MethodId)
        arguments = [each.Value for each in request.InputArguments or []]
        if method is None:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadMethodInvalid)
            return result
        try:
            if not all(isinstance(each, str) and is_text(each) for each in arguments):
                raise TypeError
            result.OutputArguments = await method(*arguments)
        except TypeError:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadInvalidArgument)
        except OverQuota:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadTooManyOperations)
        except Unavailable:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadResourceUnavailable)
        except AppError as error:
            log.info("an OPC UA call is refused", reason=error.detail)
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadInvalidArgument)
        result.InputArgumentResults = [_GOOD] * len(arguments)
        return result

    async def _add_metric(self, name: str, kind: str) -> list[ua.Variant]:
        source, space = self._own_source(), self._own_space()
        if kind not in _KINDS:
            raise Invalid("type is one of number, bool, text")
        probe = Decoded(0)
        probe.add(0, name, 0, 0.0)
        if probe.refused:
            raise Invalid(probe.refused[0].detail)
        series = source.series.get(name)
        shown = space.metrics.get(metric_node(source.device_id, name))
        wanted = _KINDS[kind]
        if (series is not None and series.kind != wanted) or (shown and shown[1] is not wanted):
            raise Invalid("the metric is of another type")
        if shown is None and len(space.metrics) >= self._server.metrics:
            raise Invalid("the device has as many metrics as it may")
        node = space.add_metric(name, wanted)
        return [ua.Variant(node, ua.VariantType.NodeId)]

    async def _publish(self, payload: str) -> list[ua.Variant]:
        await self._bring(Channel.TELEMETRY, payload.encode())
        return []

    async def _report(self, channel: str, payload: str) -> list[ua.Variant]:
        if channel not in _CHANNELS:
            raise Invalid(f"channel is one of {', '.join(_CHANNELS)}")
        await self._bring(_CHANNELS[channel], payload.encode())
        return []

    async def _reply(self, command_id: str, status: str, result: str) -> list[ua.Variant]:
        said: dict[str, Any] = {"id": command_id, "status": status}
        if status == "failed":
            said["error"] = result
        elif result:
            try:
                said["result"] = msgspec.json.decode(result)
            except (msgspec.DecodeError, RecursionError) as error:
                raise Invalid("result is JSON") from error
        await self._bring(Channel.REPLIES, msgspec.json.encode(said))
        return []

    async def _bring(self, channel: Channel, payload: bytes) -> None:
        """Hand a message over as any other protocol does; return when it is durable."""
        source, inlet = self._own_source(), self._inlet
        assert inlet is not None
        if self._reception.intake.is_full:
            raise Unavailable("too much is under way; send again shortly", retry_after_s=1)
        self._reception.met(source, Protocol.OPCUA, PayloadFormat.JSON)
        durable = asyncio.Event()
        self._reception.quotas.charge(source, len(payload))
        inlet.take(channel, payload, self._reception.clock.now(), durable.set)
        try:
            async with asyncio.timeout(self._reception.believed.within.total_seconds()):
                await durable.wait()
        except TimeoutError:
            raise Unavailable("it is not safe yet; send again", retry_after_s=2) from None

    # --- commands

    def _attach(self) -> None:
        if not self._is_commanded:
            self._is_commanded = True
            self._reception.downlinks.attach(self._own_source(), self._send)

    async def _send(self, outgoing: Outgoing) -> Delivered:
        if self.source is None or not self._is_listening():
            raise Unavailable("nobody subscribes to the device's commands")
        space = self._own_space()
        await space.show_command(to_json(outgoing).decode(), self._reception.clock.now())
        return Delivered.SENT

    def _is_listening(self) -> bool:
        commands = self._own_space().commands
        return any(
            item.read_value_id is not None and item.read_value_id.NodeId == commands
            for subscription in self.subscription_service.subscriptions.values()
            for item in subscription.monitored_item_srv._monitored_items.values()
        )

    # --- parts

    def _own_source(self) -> Source:
        if self.source is None or self.source.is_revoked:
            raise ServiceError(ua.StatusCodes.BadUserAccessDenied)
        return self.source

    def _own_space(self) -> DeviceSpace:
        if self.space is None:
            raise ServiceError(ua.StatusCodes.BadSessionNotActivated)
        return self.space

    def _count_items(self) -> int:
        return sum(
            len(subscription.monitored_item_srv._monitored_items)
            for subscription in self.subscription_service.subscriptions.values()
        )

    async def _show(self) -> None:
        while self._shown:
            # What a busy device says is shown at the pace at which subscriptions publish.
            await asyncio.sleep(SHOWN_EVERY_S)
            points, self._shown = list(self._shown.values()), {}
            if self.space is not None:
                await self.space.show(points)
        self._showing = None

    def _leave(self, reason: str) -> None:
        source, self.source = self.source, None
        if source is None:
            return
        if self._inlet is not None:
            self._inlet.close()
        self._reception.quotas.keep(source)
        if self._is_commanded:
            self._reception.downlinks.detach(source, self._send)
        self._server.went(self, source, reason)
        log.info("opc ua session ends", device=str(source.device_id), reason=reason)


def _bound(asked: Sequence[object] | None) -> None:
    """Refuse a call that asks for too much at once. Raises ServiceError."""
    if asked is not None and len(asked) > MOST_IN_A_CALL:
        raise ServiceError(ua.StatusCodes.BadTooManyOperations)


def _can_filter(item: ua.MonitoredItemCreateRequest, space: DeviceSpace) -> bool:
    """Whether an item's filter is one that the library can apply to what the item holds."""
    wanted = item.RequestedParameters.Filter
    if not isinstance(wanted, ua.DataChangeFilter):
        return False
    if wanted.DeadbandType == ua.DeadbandType.None_:
        return True
    _, kind = space.metrics.get(item.ItemToMonitor.NodeId, (None, None))
    return wanted.DeadbandType == ua.DeadbandType.Absolute and kind is Kind.NUMBER


def _unknown_if_invalid(result: Any) -> Any:
    """Say of a node that there is none in the word that all services have for it."""
    if result.StatusCode.value == ua.StatusCodes.BadNodeIdInvalid:
        result.StatusCode = ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown)
    return result


def _kind_of(value: bool | int | float | str) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOL
    return Kind.TEXT if isinstance(value, str) else Kind.NUMBER
