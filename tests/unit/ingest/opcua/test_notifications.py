"""Notifications read quickly say what the library says of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.protocols.opcua import notifications
from services.ingest.protocols.opcua.alarms import Alarm, alarm_of, severity_of
from services.ingest.protocols.opcua.bounds import MOST_ELEMENTS
from services.ingest.protocols.opcua.notifications import read_published
from services.ingest.protocols.opcua.values import OVERFLOW, Unsupported

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SCALARS = [
    (True, ua.VariantType.Boolean),
    (-5, ua.VariantType.SByte),
    (200, ua.VariantType.Byte),
    (-30_000, ua.VariantType.Int16),
    (60_000, ua.VariantType.UInt16),
    (-(2**31), ua.VariantType.Int32),
    (2**32 - 1, ua.VariantType.UInt32),
    (-(2**63), ua.VariantType.Int64),
    (2**64 - 1, ua.VariantType.UInt64),
    (1.5, ua.VariantType.Float),
    (-2.25, ua.VariantType.Double),
    ("Störung ✓", ua.VariantType.String),
    ("", ua.VariantType.String),
    (AT, ua.VariantType.DateTime),
]


def notification(*values: ua.DataValue) -> bytes:
    response = ua.PublishResponse()
    change = ua.DataChangeNotification()
    for handle, value in enumerate(values):
        item = ua.MonitoredItemNotification()
        item.ClientHandle = handle
        item.Value = value
        change.MonitoredItems.append(item)
    response.Parameters.SubscriptionId = 7
    response.Parameters.AvailableSequenceNumbers = [4, 5]
    message = response.Parameters.NotificationMessage
    message.SequenceNumber = 5
    message.PublishTime = AT
    message.NotificationData = [change]
    return bytes(struct_to_binary(response))


def forbid_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> Any:
        raise AssertionError("left to the library")

    monkeypatch.setattr(notifications, "_read_any", refuse)


@pytest.mark.parametrize(("value", "kind"), SCALARS)
def test_each_kind_of_scalar_is_read_without_the_library(
    value: Any, kind: ua.VariantType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ua.DataValue(
        ua.Variant(value, kind),
        StatusCode=ua.StatusCode(ua.StatusCodes.UncertainLastUsableValue),
        SourceTimestamp=AT,
        ServerTimestamp=AT + timedelta(seconds=1),
    )
    written = notification(data)
    slowly = notifications._read_any(written)
    forbid_the_library(monkeypatch)
    published = read_published(written)
    assert published == slowly
    (change,) = published.changes
    assert change.value == (value.isoformat() if isinstance(value, datetime) else value)
    assert change.source_us == 1_772_366_400_000_000
    assert change.server_us == 1_772_366_401_000_000
    assert (published.sequence, published.published_us) == (5, 1_772_366_400_000_000)


def test_what_has_no_value_no_time_or_an_old_one_is_read_so() -> None:
    published = read_published(
        notification(
            ua.DataValue(StatusCode=ua.StatusCode(ua.StatusCodes.BadSensorFailure)),
            ua.DataValue(ua.Variant(1.0), SourceTimestamp=datetime(1601, 1, 1, tzinfo=UTC)),
        )
    )
    assert [change.value for change in published.changes] == [None, 1.0]
    assert published.changes[0].status == ua.StatusCodes.BadSensorFailure
    assert published.changes[1].source_us is None


def test_an_array_is_left_to_the_library_and_refused_there() -> None:
    published = read_published(notification(ua.DataValue(ua.Variant([1.0, 2.0]))))
    assert isinstance(published.changes[0].value, Unsupported)
    assert "array" in published.changes[0].value.reason


def test_that_the_queue_overflowed_is_seen() -> None:
    data = ua.DataValue(ua.Variant(1.0), StatusCode=ua.StatusCode(OVERFLOW))
    (change,) = read_published(notification(data)).changes
    assert change.status & OVERFLOW == OVERFLOW


def test_a_keep_alive_has_nothing_to_acknowledge() -> None:
    response = ua.PublishResponse()
    response.Parameters.NotificationMessage.SequenceNumber = 9
    assert not read_published(bytes(struct_to_binary(response))).has_data


def test_what_is_no_answer_is_refused_and_a_subscription_that_ended_is_told() -> None:
    fault = ua.ServiceFault()
    with pytest.raises(ua.UaError, match="no answer"):
        read_published(bytes(struct_to_binary(fault)))
    response = ua.PublishResponse()
    ended = ua.StatusChangeNotification(ua.StatusCode(ua.StatusCodes.BadTimeout))
    response.Parameters.NotificationMessage.NotificationData = [ended]
    assert read_published(bytes(struct_to_binary(response))).status_change == (
        ua.StatusCodes.BadTimeout
    )


@pytest.mark.parametrize("has_more", [True, False])
def test_that_there_is_more_is_told_however_it_is_read(has_more: bool) -> None:
    response = ua.PublishResponse()
    response.Parameters.MoreNotifications = has_more
    written = bytes(struct_to_binary(response))
    assert read_published(written).has_more is has_more
    assert notifications._read_any(written).has_more is has_more


@pytest.mark.parametrize("filler", [ua.DataValue(ua.Variant(1.0)), ua.DataValue(ua.Variant([1.0]))])
def test_more_than_can_be_read_while_all_others_wait_is_refused(filler: ua.DataValue) -> None:
    assert len(read_published(notification(*[filler] * 1_000)).changes) == 1_000
    with pytest.raises(ua.UaError, match="more than"):
        read_published(notification(*[filler] * (MOST_ELEMENTS + 1)))


@given(cut=st.integers(0, 400), flip=st.integers(0, 399), byte=st.integers(0, 255))
def test_spoilt_bytes_are_refused_or_read_and_never_loop(cut: int, flip: int, byte: int) -> None:
    written = bytearray(notification(*[ua.DataValue(ua.Variant(float(n))) for n in range(10)]))
    written[min(flip, len(written) - 1)] = byte
    try:
        published = read_published(bytes(written[: max(0, len(written) - cut)]))
    except AssertionError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, the connection ends with it
        return
    assert len(published.changes) <= len(written)


def test_parts_that_say_to_be_shorter_than_they_are_are_not_read_again_and_again() -> None:
    written = notification(ua.DataValue(ua.Variant(1.0)))
    part = written.index(notifications._DATA_CHANGE)
    hostile = bytearray(written)
    # A thousand million parts, each of which leads back to the first.
    hostile[part - 4 : part] = (10**9).to_bytes(4, "little")
    hostile[part + 5 : part + 9] = (-9).to_bytes(4, "little", signed=True)
    with pytest.raises(Exception):  # noqa: B017 - whatever the library says of it
        read_published(bytes(hostile))


def test_events_come_with_the_values_and_say_what_they_are_about() -> None:
    response = ua.PublishResponse()
    event = ua.EventFieldList()
    event.ClientHandle = 3
    event.EventFields = [
        ua.Variant(ua.NodeId(ua.ObjectIds.AlarmConditionType)),
        ua.Variant("Press 7"),
        ua.Variant(ua.LocalizedText("oil low")),
        ua.Variant(700, ua.VariantType.UInt16),
        ua.Variant("OilAlarm"),
        ua.Variant(True),
        ua.Variant(True),
    ]
    listed = ua.EventNotificationList([event])
    response.Parameters.NotificationMessage.NotificationData = [listed]
    published = read_published(bytes(struct_to_binary(response)))
    assert published.has_data
    [raised] = published.events
    assert raised.handle == 3
    assert alarm_of(raised.fields) == Alarm("Press 7", "OilAlarm", "oil low", 700, True)


@pytest.mark.parametrize(
    ("severity", "word"),
    [(1, "info"), (200, "info"), (201, "low"), (401, "medium"), (700, "high"), (1_000, "critical")],
)
def test_each_word_of_ours_has_a_fifth_of_the_severities(severity: int, word: str) -> None:
    assert severity_of(severity) == word


def test_an_event_that_is_no_condition_is_an_alarm_named_after_its_type() -> None:
    kind = ua.NodeId(ua.ObjectIds.DeviceFailureEventType)
    fields = [kind, "Press", ua.LocalizedText("it\udcff failed"), 900, None, None, None]
    assert alarm_of(fields) == Alarm("Press", "DeviceFailureEventType", "it? failed", 900, True)
    assert alarm_of([kind, None, None, None, None, None, None]) is None
    assert alarm_of(fields[:3]) is None
