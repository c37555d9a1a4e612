"""Telemetry that somebody sends for several devices, or for one: whose it is, and taking it."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from libs.common.errors import FieldError, Invalid
from services.ingest.domain.device import Source
from services.ingest.domain.lines import Addressed
from services.ingest.domain.payload import Decoded, Refusal
from services.ingest.usecases.quotas import Quotas
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Intake, accept

MOST_FAULTS = 20


@dataclass(slots=True)
class Taken:
    """What became of a body: how many points were taken, and what was refused."""

    accepted: int
    refused: list[Refusal]


async def own(source: Source, addressed: Addressed) -> list[tuple[Source, Decoded]]:
    """Return a device's points. Raises Invalid if it names another."""
    others = [name for name in addressed if name is not None and _id(name) != source.device_id]
    if others:
        raise Invalid(
            "a device's token is for its own telemetry",
            errors=[
                FieldError(f"#/{index}/device_id", "a device speaks for itself alone")
                for index in _indexes(addressed, others)
            ],
        )
    return [(source, decoded) for decoded in addressed.values()]


async def of_tenant(
    sources: Sources, tenant_id: UUID, device_id: UUID | None, addressed: Addressed
) -> list[tuple[Source, Decoded]]:
    """Return the points with the tenant's devices, `device_id` for what names none.

    Raises Invalid if a device is not named, NotFound if the tenant has none such.
    """
    unnamed = [
        name for name in addressed if (device_id if name is None else _id(name or "")) is None
    ]
    if unnamed:
        raise Invalid(
            "a user names the device",
            errors=[
                FieldError(f"#/{index}/device_id", "the id of a device is required")
                for index in _indexes(addressed, unnamed)
            ],
        )
    found = []
    for name, decoded in addressed.items():
        meant = device_id if name is None else _id(name)
        assert meant is not None
        found.append((await sources.of_tenant(tenant_id, meant), decoded))
    return found


async def take(
    intake: Intake,
    quotas: Quotas,
    brought: list[tuple[Source, Decoded]],
    *,
    within: timedelta,
    charged: int | None = None,
) -> Taken:
    """Take the points of all devices, and return when all are durable.

    `charged` is what the one device was charged for the payload already. Raises as `accept` does, and
    OverQuota if one of the devices must wait: then nothing is taken.
    """
    points: dict[Source, int] = {}
    for source, decoded in brought:
        points[source] = points.get(source, 0) + decoded.size
    if charged is None:
        quotas.check(*points)
    for source, count in points.items():
        quotas.settle(source, count, charged or 0)
    taken = await asyncio.gather(
        *(accept(intake, source, decoded, within=within) for source, decoded in brought)
    )
    return Taken(
        accepted=sum(len(decoded.points) for _, decoded in brought),
        refused=sorted(
            (refusal for refused in taken for refusal in refused),
            key=lambda refusal: refusal.index,
        ),
    )


def _id(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None


def _indexes(addressed: Addressed, names: list[str | None] | list[str]) -> list[int]:
    indexes = sorted(
        {index for name in names for index in addressed[name].indexes or [0]},
    )
    return indexes[:MOST_FAULTS]
