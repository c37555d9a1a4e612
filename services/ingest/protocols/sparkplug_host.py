"""Sparkplug B: edge nodes and their devices as a host application hears them, over whichever connection."""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime
from itertools import dropwhile, takewhile
from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog

from libs.common.errors import AppError, TooLarge
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.device import Source
from services.ingest.domain.gateway import NotBehind
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.sparkplug import (
    REBIRTH,
    Action,
    AskRebirth,
    Offline,
    Online,
    Points,
    SparkplugNode,
    Topic,
    parse_topic,
    rebirth_command,
)
from services.ingest.protocols.native import already
from services.ingest.usecases.downlinks import Send
from services.ingest.usecases.inlet import Inlet, after, nothing
from services.ingest.usecases.reception import Reception
from services.ingest.usecases.telemetry import Done

log = structlog.get_logger(__name__)

MOST_NODES = 1_000
"""Edge nodes remembered for one connection."""
MOST_DECLARED = 8 * 1024 * 1024
"""Bytes of what their births declare, all in all."""
MOST_AWAITED = 1_000
"""Commands that a report of the written value will end."""


class _Awaited(NamedTuple):
    """A command that was sent: it is done when the metric of the path is reported to have the value."""

    command_id: UUID
    inlet: Inlet
    """Of the device that it was sent to."""
    path: str
    metric: str
    value: float | bool | str


InletOf = Callable[[str], Awaitable[Inlet | None]]
"""Finds the device that is called `group/node` or `group/node/device`. Raises NotBehind if it may not
be spoken for, Unavailable."""
Transmit = Callable[[Outgoing | None, str, bytes], Awaitable[Delivered]]
"""Sends a payload on a topic, for a command if there is one; raises as `Send`."""
LetGo = Callable[[str, bytes, datetime, Done, str], None]
"""Takes a message that is no known device's: topic, payload, when it came, `done`, and why."""


class SparkplugHost:
    """Listens to edge nodes over one connection: births and deaths, values, and what is missing.

    A node that is not known yet, as after each connection, is asked for its birth certificates.
    Who has been born can be sent commands until it dies.
    """

    def __init__(
        self,
        reception: Reception,
        protocol: Protocol,
        inlet_of: InletOf,
        transmit: Transmit,
        let_go: LetGo,
        own: Source | None = None,
    ) -> None:
        """`own` is the edge node whose connection it is, if it is one's: that tells who is there."""
        self._own = own
        self._reception = reception
        self._protocol = protocol
        self._inlet_of = inlet_of
        self._transmit = transmit
        self._let_go = let_go
        self._nodes: OrderedDict[str, SparkplugNode] = OrderedDict()
        self._here: dict[str, Source] = {}
        """Who is alive, as far as was heard, by path."""
        self._ways: dict[str, tuple[Source, Send]] = {}
        """Whom commands can be sent to, by path."""
        self._awaited: OrderedDict[UUID, _Awaited] = OrderedDict()
        """Commands that were sent and are not done, the oldest first."""
        self._awaited_of: dict[tuple[str, str], list[_Awaited]] = {}
        """The same by path and metric, in the order they were sent."""

    def leave(self, reason: str) -> None:
        """Say that nobody can tell any more who is alive."""
        for path in list(self._ways):
            self._close_way(path)
        for source in self._here.values():
            self._reception.presence.went(source, self, reason)
        self._here.clear()

    async def take(
        self, topic: str, payload: bytes, at: datetime, done: Done, most_bytes: int
    ) -> None:
        """Take a message of an edge node; `done` is called when all of it is durable.

        Raises what finding the device raises.
        """
        spoken = parse_topic(topic)
        if spoken is None:
            done()  # a command, or another host's state: not said to us
            return
        # Before anything of it is counted: what cannot be looked up now comes once more as a whole.
        inlet, stranger = None, None
        try:
            inlet = await self._inlet_of(spoken.path)
        except NotBehind as error:
            stranger = error
        try:
            if len(payload) > most_bytes:
                raise TooLarge(f"{len(payload)} bytes, where at most {most_bytes} are taken")
            actions = self._node(spoken.group, spoken.node).take(
                topic, payload, at, self._reception.window
            )
        except AppError as error:
            if stranger is not None:
                raise stranger from None
            self._refuse(inlet, topic, payload, at, done, error)
            return
        if spoken.kind.endswith("BIRTH"):
            self._make_room()
        if stranger is not None:
            raise stranger
        done = after(1 + sum(isinstance(action, Points) for action in actions), done)
        for action in actions:
            await self._act(action, spoken, inlet, topic, payload, at, done)
        if spoken.kind == "NBIRTH":
            self._reported(spoken.path, REBIRTH, True, at)
        done()

    async def _act(
        self,
        action: Action,
        spoken: Topic,
        inlet: Inlet | None,
        topic: str,
        payload: bytes,
        at: datetime,
        done: Done,
    ) -> None:
        """Do what a message asks for; `inlet` is that of whom it speaks, if it is a known device."""
        match action:
            case Points(path, decoded):
                if inlet is None:
                    self._let_go(topic, payload, at, done, "of unknown devices")
                    return
                self._came(path, inlet.source, "sparkplug data")
                self._reception.met(inlet.source, self._protocol, PayloadFormat.SPARKPLUG)
                reported = list(decoded.points) if self._awaited else []
                inlet.take(Channel.TELEMETRY, payload, at, done, already(decoded))
                for point in reported:
                    self._reported(path, point.metric, point.value, at)
            case Online(path):
                if inlet is not None:
                    self._came(path, inlet.source, "sparkplug birth")
                    self._open_way(spoken, inlet)
            case Offline(path):
                self._died(path)
            case AskRebirth(asked):
                await self._transmit(None, asked, rebirth_command(at))
            case _:
                log.warning("messages of an edge node are missing", topic=topic, gap=action.missing)

    def _came(self, path: str, source: Source, reason: str) -> None:
        if source is not self._own and self._here.get(path) is not source:
            self._here[path] = source
            self._reception.presence.came(source, self, reason)

    def _died(self, path: str) -> None:
        """Note that a device is dead, or an edge node and with it all its devices."""
        for dead in [each for each in self._ways if _is_within(each, path)]:
            self._close_way(dead)
        for dead in [each for each in self._here if _is_within(each, path)]:
            self._reception.presence.went(self._here.pop(dead), self, "sparkplug death")

    # --- commands

    def _open_way(self, born: Topic, inlet: Inlet) -> None:
        """Let commands reach who has been born."""
        self._close_way(born.path)

        async def send(outgoing: Outgoing) -> Delivered:
            now = self._reception.clock.now()
            node = self._node(born.group, born.node)
            write = node.write(born.device, outgoing.name, outgoing.params, now)
            # Before it leaves: the report may be here before the acknowledgement.
            self._await(_Awaited(outgoing.id, inlet, write.path, write.metric, write.value))
            try:
                return await self._transmit(outgoing, write.topic, write.payload)
            except AppError:
                self._await_no_more(outgoing.id)
                raise

        self._ways[born.path] = (inlet.source, send)
        self._reception.downlinks.attach(inlet.source, send)

    def _close_way(self, path: str) -> None:
        way = self._ways.pop(path, None)
        if way is not None:
            self._reception.downlinks.detach(*way)

    def _await(self, awaited: _Awaited) -> None:
        self._await_no_more(awaited.command_id)  # it may have been sent before
        self._awaited[awaited.command_id] = awaited
        self._awaited_of.setdefault((awaited.path, awaited.metric), []).append(awaited)
        if len(self._awaited) > MOST_AWAITED:
            self._await_no_more(next(iter(self._awaited)))

    def _await_no_more(self, command_id: UUID) -> None:
        awaited = self._awaited.pop(command_id, None)
        if awaited is not None:
            key = awaited.path, awaited.metric
            self._awaited_of[key].remove(awaited)
            if not self._awaited_of[key]:
                del self._awaited_of[key]

    def _reported(self, path: str, metric: str, value: float | bool | str, at: datetime) -> None:
        """End the command that asked for this: Sparkplug has no answer but the value itself.

        A node tells of changes: what was written several times in a row it reports once.
        """

        def is_other(awaited: _Awaited) -> bool:
            return not _is_alike(awaited.value, value)

        asked = dropwhile(is_other, self._awaited_of.get((path, metric), ()))
        for awaited in list(takewhile(lambda each: not is_other(each), asked)):
            self._await_no_more(awaited.command_id)
            reply = {"id": awaited.command_id, "status": "succeeded", "result": {metric: value}}
            awaited.inlet.take(Channel.REPLIES, msgspec.json.encode(reply), at, nothing)

    # --- what cannot be taken

    def _refuse(
        self,
        inlet: Inlet | None,
        topic: str,
        payload: bytes,
        at: datetime,
        done: Done,
        error: AppError,
    ) -> None:
        if inlet is None:
            self._let_go(topic, payload, at, done, "of unknown devices")
            return
        self._reception.intake.refuse_message(
            inlet.source, error.slug, error.detail, payload, done, received_at=at
        )

    def _node(self, group: str, name: str) -> SparkplugNode:
        key = f"{group}/{name}"
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = SparkplugNode(group, name)
        self._nodes.move_to_end(key)
        if len(self._nodes) > MOST_NODES:
            self._nodes.popitem(last=False)
        return node

    def _make_room(self) -> None:
        """Forget the edge nodes that were silent longest; they are asked for their birth again."""
        declared = sum(node.declared for node in self._nodes.values())
        while declared > MOST_DECLARED and len(self._nodes) > 1:
            _, node = self._nodes.popitem(last=False)
            declared -= node.declared


def _is_within(path: str, node_or_device: str) -> bool:
    return path == node_or_device or path.startswith(f"{node_or_device}/")


def _is_alike(written: float | bool | str, reported: float | bool | str) -> bool:
    """Whether a reported value is the one that was written, as far as a 32-bit float can tell."""
    if isinstance(written, str) or isinstance(reported, str):
        return written == reported
    return math.isclose(written, reported, rel_tol=1e-6)
