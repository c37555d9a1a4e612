"""A subscription: what changes on a server is asked for, taken, and acknowledged when it is durable."""

import asyncio
from collections.abc import Sequence

from asyncua import ua
from asyncua.client.ua_session import UaSession

from libs.common.errors import Unavailable
from services.ingest.domain.payload import Decoded, as_us
from services.ingest.protocols.health import Health
from services.ingest.protocols.opcua.alarms import SERVER, event_filter
from services.ingest.protocols.opcua.conditions import Conditions
from services.ingest.protocols.opcua.items import Device, Item, Items
from services.ingest.protocols.opcua.notifications import Published, read_published
from services.ingest.protocols.opcua.points import Points
from services.ingest.protocols.opcua.progress import Progress
from services.ingest.protocols.opcua.site import OpcUaSettings
from services.ingest.usecases.reception import Reception

UNDER_WAY = 4
"""Publish requests that wait at the server, or whose answer is being made durable."""
KEEP_ALIVES = 10
"""Publishing intervals after which a server that has nothing to say says so."""
LIFETIME_MS = 120_000
"""After which it drops a subscription that nobody listens to: longer than we take to be durable."""
NOTIFICATIONS = 5_000
"""Asked for in one answer: what is more comes with the next, and others have their turn between."""
LEAST_SILENCE_S = 10.0
LONGEST_SILENCE_S = 600.0
"""How long a server may be silent that wants to speak more rarely than it was asked to."""
EVENTS_QUEUED = 1_000


class Subscription:
    """All items of a connector, and the server's events if they are wanted."""

    def __init__(
        self,
        session: UaSession,
        settings: OpcUaSettings,
        reception: Reception,
        items: Items,
        points: Points,
        conditions: Conditions,
        progress: Progress,
        health: Health,
    ) -> None:
        self._session = session
        self._settings = settings
        self._reception = reception
        self._items = items
        self._points = points
        self._conditions = conditions
        self._progress = progress
        self._health = health
        self._event_handle = len(items)
        self._sequence: int | None = None
        self._publishers = UNDER_WAY
        self._silence_s = LEAST_SILENCE_S
        self._waiting: set[asyncio.Timeout] = set()
        """How long the answers that the server owes us are waited for."""
        self.id = 0
        """By which the server knows it, once it is created."""

    async def create(self) -> None:
        """Subscribe. Raises Unavailable if nothing of what is wanted can be had."""
        made = await self._create()
        self.id = int(made.SubscriptionId)
        self._silence_s = _silence_s(self._settings.publishing_ms, made)
        subscribed = 0
        for some in self._items.found(self._items.limits.monitor):
            results = await self._monitor([_values_of(item, handle) for handle, item in some])
            for (_, item), result in zip(some, results, strict=True):
                subscribed += self._is_made(item.address, result)
        if self._settings.events:
            (result,) = await self._monitor([_events(self._event_handle)])
            subscribed += self._is_made("events", result)
        if (len(self._items) or self._settings.events) and not subscribed:
            raise Unavailable(f"nothing can be read: {self._health.in_words()}")

    async def listen(self) -> None:
        """Ask for what is new, until that ends: by what it raises."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(UNDER_WAY):
                tasks.create_task(self._publish())

    async def _create(self) -> ua.CreateSubscriptionResult:
        params = ua.CreateSubscriptionParameters()
        params.RequestedPublishingInterval = self._settings.publishing_ms
        params.RequestedMaxKeepAliveCount = KEEP_ALIVES
        params.RequestedLifetimeCount = max(
            3 * KEEP_ALIVES, round(LIFETIME_MS / self._settings.publishing_ms)
        )
        params.MaxNotificationsPerPublish = NOTIFICATIONS
        params.PublishingEnabled = True
        request = ua.CreateSubscriptionRequest()
        request.Parameters = params
        # The library would begin to listen by itself, and acknowledge what nobody has taken.
        data = await self._session._send_request(request)
        response = ua.ua_binary.struct_from_binary(ua.CreateSubscriptionResponse, data)
        response.ResponseHeader.ServiceResult.check()
        return response.Parameters

    async def _monitor(
        self, wanted: list[ua.MonitoredItemCreateRequest]
    ) -> Sequence[ua.MonitoredItemCreateResult]:
        params = ua.CreateMonitoredItemsParameters()
        params.SubscriptionId = self.id
        params.TimestampsToReturn = ua.TimestampsToReturn.Both
        params.ItemsToCreate = wanted
        made: Sequence[ua.MonitoredItemCreateResult] = await self._session.create_monitored_items(
            params
        )
        return made

    def _is_made(self, about: str, result: ua.MonitoredItemCreateResult) -> bool:
        is_good: bool = result.StatusCode.is_good()
        if not is_good:
            self._health.note(about, result.StatusCode.name)
        return is_good

    async def _publish(self) -> None:
        """Ask for what is new, take it, acknowledge it with the next question; for ever."""
        acknowledged: list[ua.SubscriptionAcknowledgement] = []
        while True:
            await self._points.until_there_is_room()
            try:
                published = await self._ask(acknowledged)
            except ua.uaerrors.BadTooManyPublishRequests:
                self._publishers -= 1
                if self._publishers:
                    return  # it takes fewer at a time than this
                raise
            acknowledged = []
            if not published.has_data:
                self._progress.reach(published.published_us)
                continue
            before = self._progress.begin(None if published.has_more else published.published_us)
            await self._take(published)
            self._progress.end(before)
            acknowledged = [ua.SubscriptionAcknowledgement(self.id, published.sequence)]

    async def _ask(self, acknowledged: list[ua.SubscriptionAcknowledgement]) -> Published:
        """Return what the server answers a Publish request with.

        Raises TimeoutError if it is silent for too long: answers no request at all. A single one
        waits as many keep-alives as there are requests before it.
        """
        request = ua.PublishRequest()
        request.Parameters.SubscriptionAcknowledgements = acknowledged
        async with asyncio.timeout(self._silence_s) as wait:
            self._waiting.add(wait)
            try:
                data = await self._session._send_request(request, timeout=0)
            finally:
                self._waiting.discard(wait)
        heard = asyncio.get_running_loop().time()
        for other in self._waiting:
            if not other.expired():
                other.reschedule(heard + self._silence_s)
        published = read_published(data.read(len(data)))
        ua.StatusCode(published.service_result).check()
        if published.status_change is not None:
            raise Unavailable(f"the subscription: {ua.StatusCode(published.status_change).name}")
        return published

    async def _take(self, published: Published) -> None:
        """Hand over what was published, and return when all of it is durable."""
        missed = self._count_missed(published.sequence)
        now = self._reception.clock.now()
        by_device: dict[Device, Decoded] = {}
        if missed:
            for device in self._items.devices.values():
                by_device[device] = Decoded(as_us(now), gaps=missed)
        for change in published.changes:
            if change.handle < len(self._items):
                item = self._items[change.handle]
                decoded = by_device.get(item.device)
                if decoded is None:
                    decoded = by_device[item.device] = Decoded(as_us(now))
                self._points.add(item, change, decoded)
        events = [each.fields for each in published.events if each.handle == self._event_handle]
        await asyncio.gather(self._points.bring(by_device, now), self._conditions.take(events))

    def _count_missed(self, sequence: int) -> int:
        expected, self._sequence = self._sequence, sequence
        if expected is None or sequence in (expected + 1, 1):
            return 0
        return max(0, sequence - expected - 1)


def _silence_s(asked_ms: float, made: ua.CreateSubscriptionResult) -> float:
    """Return how long a server may say nothing that was asked to publish so often."""
    asked_s = asked_ms * KEEP_ALIVES / 1_000
    revised_s: float = made.RevisedPublishingInterval * made.RevisedMaxKeepAliveCount / 1_000
    return max(LEAST_SILENCE_S, min(2 * revised_s, max(2 * asked_s, LONGEST_SILENCE_S)))


def _values_of(item: Item, handle: int) -> ua.MonitoredItemCreateRequest:
    settings = item.settings
    wanted = ua.MonitoringParameters()
    wanted.SamplingInterval = -1.0 if settings.sampling_ms is None else settings.sampling_ms
    wanted.QueueSize = settings.queue_size
    changes = ua.DataChangeFilter()
    changes.Trigger = ua.DataChangeTrigger.StatusValue
    if settings.deadband is not None:
        changes.DeadbandType = (
            ua.DeadbandType.Absolute
            if settings.deadband.kind == "absolute"
            else ua.DeadbandType.Percent
        )
        changes.DeadbandValue = settings.deadband.value
        wanted.Filter = changes
    return _monitored(item.node_id, ua.AttributeIds.Value, handle, wanted)


def _events(handle: int) -> ua.MonitoredItemCreateRequest:
    wanted = ua.MonitoringParameters()
    wanted.SamplingInterval = 0
    wanted.QueueSize = EVENTS_QUEUED
    wanted.Filter = event_filter()
    return _monitored(SERVER, ua.AttributeIds.EventNotifier, handle, wanted)


def _monitored(
    node_id: ua.NodeId, attribute: ua.AttributeIds, handle: int, wanted: ua.MonitoringParameters
) -> ua.MonitoredItemCreateRequest:
    wanted.ClientHandle = handle
    wanted.DiscardOldest = True
    request = ua.MonitoredItemCreateRequest()
    request.ItemToMonitor.NodeId = node_id
    request.ItemToMonitor.AttributeId = attribute
    request.MonitoringMode = ua.MonitoringMode.Reporting
    request.RequestedParameters = wanted
    return request
