"""Sparkplug B: what an edge node says, over any MQTT broker. Pure: messages in, actions out.

An edge node begins with a birth certificate that names its metrics, their types and units; after
that it sends changes, by alias. Its messages are numbered, 0 to 255 and anew. What is missing is
counted, and the node is asked for its birth again, as it is when nobody here has heard it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from libs.common.errors import Invalid, Unavailable
from services.ingest.domain.payload import LONGEST_METRIC, Decoded, Window, as_us
from services.ingest.domain.sparkplug_payload import (
    BOOLEAN,
    Declared,
    Payload,
    add_metric,
    declared_in,
    parse,
    set_value,
)

NAMESPACE = "spBv1.0"
MOST_DEVICES = 1_000
MOST_METRICS = 20_000
"""Of one edge node, with all its devices."""
ASK_AGAIN = timedelta(seconds=30)
"""How long an edge node is given for the birth it was asked for."""

_NODE_SAYS = frozenset({"NBIRTH", "NDATA", "NDEATH"})
_DEVICE_SAYS = frozenset({"DBIRTH", "DDATA", "DDEATH"})
_OVERHEAD = 200
"""Bytes of a declared metric, besides its name."""
_BD_SEQ = "bdSeq"
_CONTROL = ("Node Control/", "Device Control/")
REBIRTH = "Node Control/Rebirth"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic by which an edge node speaks: `spBv1.0/<group>/<kind>/<node>[/<device>]`."""

    group: str
    kind: str
    node: str
    device: str | None

    @property
    def node_path(self) -> str:
        """Which edge node it is."""
        return f"{self.group}/{self.node}"

    @property
    def path(self) -> str:
        """Of whom it speaks: `group/node`, or `group/node/device`."""
        return self.node_path if self.device is None else f"{self.node_path}/{self.device}"


@dataclass(frozen=True, slots=True)
class Points:
    """Values, of the edge node itself or of one of its devices."""

    path: str
    decoded: Decoded


@dataclass(frozen=True, slots=True)
class Online:
    """A birth certificate came."""

    path: str


@dataclass(frozen=True, slots=True)
class Offline:
    """Who it was that was heard is dead; of an edge node so are all its devices."""

    path: str


@dataclass(frozen=True, slots=True)
class Gap:
    """So many messages of the edge node are missing; `Points` that follow count them as well."""

    missing: int


@dataclass(frozen=True, slots=True)
class AskRebirth:
    """The edge node should be sent `rebirth_command`, on `topic`."""

    topic: str


@dataclass(frozen=True, slots=True)
class Write:
    """What an edge node is to be sent, so that `metric` of `path` becomes `value`."""

    topic: str
    payload: bytes
    path: str
    metric: str
    value: float | bool | str


Action = Points | Online | Offline | Gap | AskRebirth


def parse_topic(topic: str) -> Topic | None:
    """Return a topic by which an edge node speaks; None for any other, commands and STATE too."""
    match topic.split("/"):
        case [namespace, group, kind, node] if namespace == NAMESPACE and kind in _NODE_SAYS:
            return Topic(group, kind, node, None)
        case [namespace, group, kind, node, device] if (
            namespace == NAMESPACE and kind in _DEVICE_SAYS
        ):
            return Topic(group, kind, node, device)
        case _:
            return None


def rebirth_command(at: datetime) -> bytes:
    """Return the payload of the NCMD that asks an edge node for its birth certificates."""
    return _command(REBIRTH, BOOLEAN, True, at)


def _command(metric: str, datatype: int, value: float | bool | str, at: datetime) -> bytes:
    ms = as_us(at) // 1000
    command = Payload(timestamp=ms)
    set_value(command.metrics.add(name=metric, timestamp=ms, datatype=datatype), value)
    encoded: bytes = command.SerializeToString()
    return encoded


class SparkplugNode:
    """One edge node with its devices, as far as its messages tell of it."""

    def __init__(self, group: str, node: str) -> None:
        self._group = group
        self._node = node
        self._born = False
        self._bd_seq: int | None = None
        self._last_seq: int | None = None
        self._asked_at: datetime | None = None
        self._names: dict[str | None, dict[str, Declared]] = {}
        """Of the node itself (None) and of its devices: what their births declare."""
        self._aliases: dict[int, tuple[str | None, Declared]] = {}
        """An alias is unique within the edge node."""
        self.declared = 0
        """Bytes, about, of what its births declare."""

    def take(
        self, topic: str, payload: bytes, received_at: datetime, window: Window
    ) -> list[Action]:
        """Take one message. Raises Malformed or Invalid if it is none: then nothing has changed."""
        spoken = parse_topic(topic)
        if spoken is None:
            raise Invalid("no topic by which an edge node speaks")
        parsed = parse(payload)
        if spoken.kind == "NDEATH":
            return self._die(spoken, parsed)
        if spoken.kind.endswith("BIRTH"):
            self._check_room(spoken, parsed)
        actions: list[Action] = []
        if spoken.kind == "NBIRTH" and self._begin(parsed):
            actions.append(Offline(spoken.path))
        missing = self._count(parsed)
        if missing:
            actions.append(Gap(missing))
        if spoken.kind == "DDEATH":
            self._forget(spoken.device)
            if missing:
                # Without a value, so that the ledger knows of them.
                actions.append(Points(spoken.path, Decoded(as_us(received_at), gaps=missing)))
            actions.append(Offline(spoken.path))
        else:
            if spoken.kind.endswith("BIRTH"):
                self._declare(spoken.device, parsed)
                actions.append(Online(spoken.path))
            decoded = self._read(spoken, parsed, received_at, window)
            decoded.gaps = missing
            actions.append(Points(spoken.path, decoded))
        if missing or self._is_unknown(spoken, parsed):
            actions += self._ask(received_at)
        return actions

    def _begin(self, parsed: Any) -> bool:
        """Start anew with a birth: what was declared before holds no more.

        Returns whether the life that was heard before is over: one birth more in the same is no end.
        """
        was, self._bd_seq = self._bd_seq, _bd_seq(parsed)
        self._names.clear()
        self._aliases.clear()
        self._born = True
        self._last_seq = None
        self._asked_at = None
        return was is not None and self._bd_seq is not None and was != self._bd_seq

    def _die(self, spoken: Topic, parsed: Any) -> list[Action]:
        died = _bd_seq(parsed)
        if self._bd_seq is not None and died is not None and died != self._bd_seq:
            # The will of a connection that another has taken the place of.
            return []
        self._born = False
        self._last_seq = None
        self._names.clear()
        self._aliases.clear()
        return [Offline(spoken.path)]

    def _check_room(self, spoken: Topic, parsed: Any) -> None:
        others = sum(len(names) for device, names in self._names.items() if device != spoken.device)
        if spoken.kind == "NBIRTH":
            others = 0
        elif spoken.device not in self._names and len(self._names) > MOST_DEVICES:
            raise Invalid(f"an edge node has at most {MOST_DEVICES} devices")
        if others + len(parsed.metrics) > MOST_METRICS:
            raise Invalid(f"an edge node has at most {MOST_METRICS} metrics")

    def _declare(self, device: str | None, parsed: Any) -> None:
        self._forget(device)
        names = self._names[device] = {}
        for metric in parsed.metrics:
            declared = declared_in(metric)
            if declared is None:
                continue
            names[declared.name] = declared
            if metric.HasField("alias"):
                self._aliases[metric.alias] = (device, declared)
        self.declared = sum(
            _OVERHEAD + len(name) for names in self._names.values() for name in names
        )

    def _forget(self, device: str | None) -> None:
        if self._names.pop(device, None) is not None:
            self._aliases = {
                alias: held for alias, held in self._aliases.items() if held[0] != device
            }

    def _count(self, parsed: Any) -> int:
        """Return how many messages are missing before this one."""
        if not parsed.HasField("seq") or parsed.seq > 255:
            return 0
        last, self._last_seq = self._last_seq, int(parsed.seq)
        if last is None or last == parsed.seq:
            # The first that is heard, or the same once more.
            return 0
        return int(parsed.seq - last - 1) % 256

    def _read(self, spoken: Topic, parsed: Any, received_at: datetime, window: Window) -> Decoded:
        decoded = Decoded(as_us(received_at))
        for index, metric in enumerate(parsed.metrics):
            declared = self._declared(spoken.device, metric)
            name = declared.name if declared is not None else metric.name
            if name == _BD_SEQ or name.startswith(_CONTROL):
                decoded.ends.append(len(decoded.points))
                continue
            add_metric(decoded, index, metric, declared, parsed, window)
        return decoded

    def _declared(self, device: str | None, metric: Any) -> Declared | None:
        if metric.name:
            return self._names.get(device, {}).get(metric.name) or declared_in(metric)
        held = self._aliases.get(metric.alias) if metric.HasField("alias") else None
        return held[1] if held is not None and held[0] == device else None

    def _is_unknown(self, spoken: Topic, parsed: Any) -> bool:
        """Whether the message speaks of what no birth has told."""
        return not self._born or any(
            self._declared(spoken.device, metric) is None for metric in parsed.metrics
        )

    def _ask(self, now: datetime) -> list[Action]:
        if self._asked_at is not None and now < self._asked_at + ASK_AGAIN:
            return []
        self._asked_at = now
        return [AskRebirth(self._command_topic(None))]

    def _command_topic(self, device: str | None) -> str:
        if device is None:
            return f"{NAMESPACE}/{self._group}/NCMD/{self._node}"
        return f"{NAMESPACE}/{self._group}/DCMD/{self._node}/{device}"

    def write(
        self, device: str | None, name: str, params: Mapping[str, Any], at: datetime
    ) -> Write:
        """Return how a command is put to the edge node, or to one of its devices.

        `write` takes {metric, value}, of a metric that its birth names; `rebirth` nothing. Raises
        Unavailable while no birth has been heard, Invalid if the command is none that it can be given.
        """
        if name == "rebirth":
            topic = self._command_topic(None)
            node = f"{self._group}/{self._node}"
            return Write(topic, rebirth_command(at), node, REBIRTH, True)
        if name != "write" or params.keys() != {"metric", "value"}:
            raise Invalid(
                "the commands of Sparkplug are `write` with {metric, value}, and `rebirth`"
            )
        if device not in self._names:
            raise Unavailable("no birth of it has been heard yet")
        metric, value = params["metric"], params["value"]
        declared = self._names[device].get(metric) if isinstance(metric, str) else None
        if declared is None:
            raise Invalid(f"its birth names no metric {str(metric)[:LONGEST_METRIC]!r}")
        payload = _command(declared.name, declared.datatype, value, at)
        path = f"{self._group}/{self._node}" + (f"/{device}" if device is not None else "")
        return Write(self._command_topic(device), payload, path, declared.name, value)


def _bd_seq(parsed: Any) -> int | None:
    for metric in parsed.metrics:
        if metric.name == _BD_SEQ:
            return int(metric.long_value or metric.int_value)
    return None
