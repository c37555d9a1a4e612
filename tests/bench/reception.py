"""A reception as benches of one endpoint have it: every device is let in, every series is known.

What it stands on (a registry, presence, quotas) costs nothing, so that what is measured is the endpoint.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from libs.common.auth.guesses import Guesses
from libs.common.clock import SystemClock
from libs.common.events.base import Message
from libs.common.historian.point import Kind
from services.ingest.domain.device import Series, Source
from services.ingest.domain.quota import Rate
from services.ingest.usecases.quotas import Quotas
from services.ingest.usecases.reception import Believed, Reception
from services.ingest.usecases.telemetry import Intake, IntakeLimits


class Registry:
    """Knows every device, and every series of it."""

    def __init__(self) -> None:
        self.on_revoked: list[Any] = []
        self.devices: dict[str, Source] = {}

    async def register(
        self, source: Source, kinds: dict[str, Kind], units: dict[str, str], most: int
    ) -> None:
        """Number what is new."""
        for metric, kind in kinds.items():
            source.series[metric] = Series(len(source.series) + 1, int(kind))

    async def source(self, name: str) -> Source:
        """Return the device of that name."""
        if name not in self.devices:
            self.devices[name] = a_device(uuid4())
        return self.devices[name]


class Silent:
    """Takes no notice of who comes and goes, keeps no session, sends no command."""

    def __init__(self) -> None:
        self.on_taken_over: list[Any] = []

    def came(self, source: Source, by: object, reason: str) -> None:
        """Take no notice."""

    def went(self, source: Source, by: object, reason: str) -> None:
        """Take no notice."""

    def attach(self, source: Source, send: object, most: int | None = None) -> None:
        """Take no notice."""

    def detach(self, source: Source, send: object) -> None:
        """Take no notice."""

    def forget(self, source: Source) -> None:
        """Take no notice."""

    async def stop(self) -> None:
        """Have nothing to end."""


def a_device(device_id: UUID, metrics: Sequence[str] = ()) -> Source:
    """Return a device whose metrics are numbers, and known."""
    series = {metric: Series(n, int(Kind.NUMBER)) for n, metric in enumerate(metrics)}
    return Source(device_id, uuid4(), 1, device_id.int % 4, series)


class OpenReception(Reception):
    """A reception whose devices show their id in the token's place."""

    metrics: Sequence[str] = ()
    """What each device that logs in has told of already."""

    async def login(self, token: str, origin: str) -> Source:
        """Return the device whose id it is."""
        return a_device(UUID(token), self.metrics)


def open_reception(
    publish: Callable[[Sequence[Message]], Awaitable[None]], metrics: Sequence[str] = ()
) -> tuple[OpenReception, Registry]:
    """Put a reception together whose points are durable when `publish` returns."""
    clock, registry, silent = SystemClock(), Registry(), cast(Any, Silent())
    reception = OpenReception(
        cast(Any, registry),
        Intake(publish, registry, clock, IntakeLimits()),
        silent,
        cast(Any, None),
        Quotas(Rate(1e9, 1e9), cast(Any, None), clock),
        silent,
        Guesses(1_000),
        clock,
        Believed(timedelta(days=365), timedelta(minutes=5), timedelta(seconds=10)),
    )
    reception.metrics = metrics
    return reception, registry
