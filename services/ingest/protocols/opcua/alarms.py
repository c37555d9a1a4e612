"""Events of an OPC UA server's (OPC 10000-9, alarms and conditions) as alarms of devices. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from asyncua import ua

from services.ingest.protocols.opcua.values import clean

SERVER = ua.NodeId(ua.ObjectIds.Server)
"""Whose events are those of all that the server has."""
REFRESH_START = ua.NodeId(ua.ObjectIds.RefreshStartEventType)
REFRESH_END = ua.NodeId(ua.ObjectIds.RefreshEndEventType)
LONGEST_MESSAGE = 1_000
LONGEST_KEY = 200

_BASE = ua.NodeId(ua.ObjectIds.BaseEventType)
_CONDITION = ua.NodeId(ua.ObjectIds.ConditionType)
_FIELDS: tuple[tuple[ua.NodeId, tuple[str, ...]], ...] = (
    (_BASE, ("EventType",)),
    (_BASE, ("SourceName",)),
    (_BASE, ("Message",)),
    (_BASE, ("Severity",)),
    (_CONDITION, ("ConditionName",)),
    (_CONDITION, ("Retain",)),
    (ua.NodeId(ua.ObjectIds.AlarmConditionType), ("ActiveState", "Id")),
)
_SEVERITIES = ((801, "critical"), (601, "high"), (401, "medium"), (201, "low"), (0, "info"))


class Raised(NamedTuple):
    """An event, by the monitored item that it came by and its fields in the order asked for."""

    handle: int
    fields: list[Any]


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that began, went on or ended."""

    source: str
    """The source's name."""
    key: str
    message: str
    severity: int
    """From 1 to 1000, the worst."""
    is_active: bool

    def payload(self) -> bytes:
        """Return it as a device would report it."""
        return msgspec.json.encode(
            {
                "severity": severity_of(self.severity),
                "message": self.message or self.key,
                "key": self.key,
                "active": self.is_active,
            }
        )


def severity_of(severity: int) -> str:
    """Return our word for a severity: each has a fifth of the scale."""
    return next(word for least, word in _SEVERITIES if severity >= least)


def event_filter() -> ua.EventFilter:
    """Return what of an event is wanted."""
    wanted = ua.EventFilter()
    for event_type, path in _FIELDS:
        operand = ua.SimpleAttributeOperand()
        operand.TypeDefinitionId = event_type
        operand.BrowsePath = [ua.QualifiedName(name, 0) for name in path]
        operand.AttributeId = ua.AttributeIds.Value
        wanted.SelectClauses.append(operand)
    return wanted


def kind_of(fields: Sequence[Any]) -> ua.NodeId | None:
    """Return an event's type, None if it does not tell."""
    return fields[0] if fields and isinstance(fields[0], ua.NodeId) else None


def alarm_of(fields: Sequence[Any]) -> Alarm | None:
    """Return the alarm that an event is of, None if it has no source that could be a device.

    A condition that is not retained any more is over. An event that is no condition has no end:
    its alarm is closed by people.
    """
    if len(fields) != len(_FIELDS):
        return None
    kind, source, message, severity, condition, retain, active = fields
    if not isinstance(source, str) or not source:
        return None
    key = condition if isinstance(condition, str) and condition else _name_of(kind)
    is_active = active if isinstance(active, bool) else retain if isinstance(retain, bool) else True
    return Alarm(
        clean(source)[:LONGEST_KEY],
        clean(key)[:LONGEST_KEY] or "event",
        clean(_text_of(message))[:LONGEST_MESSAGE],
        severity if isinstance(severity, int) else 500,
        is_active,
    )


def _name_of(kind: Any) -> str:
    if not isinstance(kind, ua.NodeId):
        return "event"
    if kind.NamespaceIndex == 0 and kind.Identifier in ua.ObjectIdNames:
        return str(ua.ObjectIdNames[kind.Identifier])
    return str(kind.to_string())


def _text_of(message: Any) -> str:
    if isinstance(message, ua.LocalizedText):
        return message.Text or ""
    return message if isinstance(message, str) else ""
