"""What a series is held in: its unit, its kind and its range, whatever a device writes."""

import math
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.events.base import Message
from libs.common.events.ingest import TelemetryReceived
from libs.common.historian.point import Kind, Quality
from services.ingest.domain.device import Series, Source
from services.ingest.domain.payload import Window, decode
from services.ingest.domain.profile import MetricDeclaration, Profile
from services.ingest.usecases.telemetry import Intake, IntakeLimits, accept

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
WINDOW = Window.around(NOW, past=timedelta(days=365), ahead=timedelta(minutes=5))


class Registry:
    """Keeps series as the database would."""

    async def register(
        self, source: Source, kinds: dict[str, Kind], units: dict[str, str], most: int
    ) -> None:
        for metric, kind in kinds.items():
            source.series.setdefault(metric, Series(len(source.series) + 1, kind))
        for metric, unit in units.items():
            series = source.series[metric]
            source.series[metric] = Series(series.id, series.kind, series.unit or unit)


class Plant:
    """A device and what is stored of it."""

    def __init__(self) -> None:
        self.source = Source(uuid4(), uuid4(), 1, 0, {})
        self.stored: list[tuple[str, float, Quality]] = []
        self.intake = Intake(
            self._publish,
            Registry(),
            SystemClock(),
            IntakeLimits(linger=timedelta(milliseconds=1)),
        )

    async def _publish(self, messages: Sequence[Message]) -> None:
        names = {series.id: metric for metric, series in self.source.series.items()}
        for message in messages:
            _, series, _, values, quality = TelemetryReceived.from_message(message).columns()
            self.stored += [
                (names[number], round(value, 6), Quality(graded))
                for number, value, graded in zip(series, values, quality, strict=True)
            ]

    async def sends(self, payload: str) -> list[str]:
        """Send a payload; return why what of it is refused."""
        decoded = decode(payload.encode(), NOW, WINDOW)
        refused = await accept(self.intake, self.source, decoded, within=timedelta(seconds=5))
        return [refusal.reason for refusal in refused]

    def profile(self, fields: dict[str, str] | None = None, **metrics: MetricDeclaration) -> None:
        """Declare what devices of its type send."""
        self.source.profile = Profile(uuid4(), 1, metrics=metrics, fields=fields or {})


@pytest.fixture
async def plant() -> AsyncIterator[Plant]:
    plant = Plant()
    plant.intake.start()
    yield plant
    await plant.intake.stop()


async def test_a_series_keeps_the_first_unit_it_hears_and_others_are_converted(
    plant: Plant,
) -> None:
    assert await plant.sends('{"values": {"t": 20}, "units": {"t": "degC"}}') == []
    assert await plant.sends('{"values": {"t": 212}, "units": {"t": "°F"}}') == []
    assert await plant.sends('{"t": 30}') == []
    assert [value for _, value, _ in plant.stored] == [20.0, 100.0, 30.0]
    assert plant.source.series["t"].unit == "degC"


async def test_a_series_without_a_unit_learns_one_that_is_named_later(plant: Plant) -> None:
    await plant.sends('{"p": 1}')
    assert await plant.sends('{"values": {"p": 2}, "units": {"p": "bar"}}') == []
    assert await plant.sends('{"values": {"p": 300}, "units": {"p": "kPa"}}') == []
    assert [value for _, value, _ in plant.stored] == [1.0, 2.0, 3.0]


async def test_a_unit_that_nobody_knows_or_that_measures_something_else_is_refused(
    plant: Plant,
) -> None:
    assert await plant.sends('{"values": {"t": 1, "n": 2}, "units": {"t": "flurb"}}') == [
        "unknown_unit"
    ]
    assert "t" not in plant.source.series, "no series is made for it"
    await plant.sends('{"values": {"t": 1}, "units": {"t": "degC"}}')
    assert await plant.sends('{"values": {"t": 1}, "units": {"t": "bar"}}') == ["unit_mismatch"]
    assert await plant.sends('{"values": {"t": 1}, "units": {"t": "flurb"}}') == ["unknown_unit"]
    assert [name for name, _, _ in plant.stored] == ["n", "t"]


async def test_the_profiles_unit_wins_over_the_devices(plant: Plant) -> None:
    plant.profile(t=MetricDeclaration(unit="degC"))
    await plant.sends('{"values": {"t": 212}, "units": {"t": "degF"}}')
    await plant.sends('{"t": 20}')
    assert [value for _, value, _ in plant.stored] == [100.0, 20.0]
    assert plant.source.series["t"].unit == "degC"


async def test_a_number_outside_its_range_is_stored_as_uncertain_after_conversion(
    plant: Plant,
) -> None:
    plant.profile(t=MetricDeclaration(unit="degC", minimum=-40, maximum=120))
    await plant.sends('{"values": {"t": 212}, "units": {"t": "degF"}}')
    await plant.sends('{"t": 121}')
    await plant.sends('{"values": {"t": 999}, "quality": "bad"}')
    assert plant.stored == [
        ("t", 100.0, Quality.GOOD),
        ("t", 121.0, Quality.UNCERTAIN),
        ("t", 999.0, Quality.BAD),
    ]


async def test_fields_are_stored_under_the_metrics_that_the_profile_maps_them_to(
    plant: Plant,
) -> None:
    plant.profile({"tmp": "temp"}, temp=MetricDeclaration(maximum=100))
    await plant.sends('{"tmp": 120, "rpm": 5}')
    assert plant.stored == [("temp", 120.0, Quality.UNCERTAIN), ("rpm", 5.0, Quality.GOOD)]


async def test_a_declared_kind_holds_from_the_first_value_on(plant: Plant) -> None:
    plant.profile(on=MetricDeclaration(kind=Kind.BOOL), mode=MetricDeclaration(kind=Kind.TEXT))
    assert await plant.sends('{"on": 1, "mode": 5}') == ["type_changed"]
    assert await plant.sends('{"on": 0.5}') == ["type_changed"]
    assert await plant.sends('{"on": false, "mode": "auto"}') == []
    assert {m: Kind(s.kind) for m, s in plant.source.series.items()} == {
        "on": Kind.BOOL,
        "mode": Kind.TEXT,
    }


async def test_a_bad_value_that_is_none_is_stored_as_such_whatever_the_series_holds(
    plant: Plant,
) -> None:
    await plant.sends('{"on": true, "t": 1}')
    assert await plant.sends('{"values": {"on": null, "t": null}, "quality": "bad"}') == []
    (_, on, first), (_, t, second) = plant.stored[2:]
    assert math.isnan(on)
    assert math.isnan(t)
    assert first is second is Quality.BAD


async def test_what_is_refused_for_its_unit_can_be_sent_again_as_it_stands(plant: Plant) -> None:
    await plant.sends('{"values": {"t": 1}, "units": {"t": "degC"}}')
    decoded = decode(b'{"values": {"t": 5}, "units": {"t": "bar"}, "quality": "bad"}', NOW, WINDOW)
    [refusal] = plant.intake.misfits(plant.source, decoded)
    assert refusal.part == {
        "ts": NOW.timestamp() * 1000,
        "values": {"t": 5.0},
        "quality": "bad",
        "units": {"t": "bar"},
    }
