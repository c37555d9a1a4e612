"""OPC UA's values as points, and back."""

from typing import Any
from uuid import UUID

import pytest
from asyncua import ua

from libs.common.historian.point import Kind, Quality
from services.ingest.domain.device import Series, Source
from services.ingest.domain.payload import Decoded
from services.ingest.protocols.opcua.values import (
    Unsupported,
    add_value,
    kind_of,
    quality_of,
    scalar_of,
    status_of,
    variant_for,
)


def source(**series: Kind) -> Source:
    known = {name: Series(n, kind) for n, (name, kind) in enumerate(series.items())}
    return Source(UUID(int=1), UUID(int=2), 1, 0, known)


@pytest.mark.parametrize(
    ("status", "quality"),
    [
        (ua.StatusCodes.Good, Quality.GOOD),
        (ua.StatusCodes.GoodClamped, Quality.GOOD),
        (ua.StatusCodes.UncertainLastUsableValue, Quality.UNCERTAIN),
        (ua.StatusCodes.BadSensorFailure, Quality.BAD),
        (0xFFFFFFFF, Quality.BAD),
    ],
)
def test_the_severity_of_a_status_is_the_quality(status: int, quality: Quality) -> None:
    assert quality_of(status) is quality
    assert quality_of(status_of(quality)) is quality


def test_a_bad_value_without_a_value_keeps_its_series_kind() -> None:
    known = source(level=Kind.NUMBER, running=Kind.BOOL, state=Kind.TEXT)
    decoded = Decoded(0)
    for metric in ("level", "running", "state"):
        add_value(decoded, known, metric, 1, None, Quality.BAD, kind=Kind.NUMBER)
    assert [point.kind for point in decoded.points] == [Kind.NUMBER, Kind.BOOL, Kind.TEXT]
    assert not decoded.refused


def test_a_first_value_that_is_bad_and_empty_is_of_the_kind_its_node_has_or_waits() -> None:
    decoded = Decoded(0)
    for metric, data_type in (
        ("level", ua.NodeId(ua.ObjectIds.Float)),
        ("running", ua.NodeId(ua.ObjectIds.Boolean)),
        ("state", ua.NodeId(ua.ObjectIds.String)),
        ("since", ua.NodeId(ua.ObjectIds.UtcTime)),
        ("anything", ua.NodeId(ua.ObjectIds.BaseDataType)),
        ("theirs", ua.NodeId(1, 2)),
    ):
        add_value(decoded, source(), metric, 1, None, Quality.BAD, kind=kind_of(data_type))
    assert [(point.metric, point.kind) for point in decoded.points] == [
        ("level", Kind.NUMBER),
        ("running", Kind.BOOL),
        ("state", Kind.TEXT),
        ("since", Kind.TEXT),
    ]
    assert not decoded.refused


def test_what_no_point_can_hold_says_why() -> None:
    assert isinstance(scalar_of(ua.Variant([1, 2])), Unsupported)
    assert isinstance(scalar_of(ua.Variant(b"\x00", ua.VariantType.ByteString)), Unsupported)
    assert scalar_of(ua.Variant(ua.LocalizedText("warm"))) == "warm"
    assert scalar_of(ua.Variant(None, ua.VariantType.Null)) is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, ua.VariantType.Boolean),
        (3, ua.VariantType.Int16),
        (3.0, ua.VariantType.Int16),
        (3, ua.VariantType.Double),
        ("on", ua.VariantType.String),
    ],
)
def test_a_command_s_value_becomes_the_type_of_its_node(value: Any, kind: ua.VariantType) -> None:
    assert variant_for(value, kind).VariantType is kind


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, ua.VariantType.Boolean),
        (True, ua.VariantType.Int16),
        (40_000, ua.VariantType.Int16),
        (3.5, ua.VariantType.Int32),
        ("3", ua.VariantType.Double),
        (3, ua.VariantType.String),
        ({}, ua.VariantType.ExtensionObject),
        (float("nan"), ua.VariantType.Int32),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(value: Any, kind: ua.VariantType) -> None:
    with pytest.raises(ValueError, match=r"node holds|cannot be written"):
        variant_for(value, kind)
