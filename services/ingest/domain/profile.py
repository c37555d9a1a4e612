"""What devices of one type have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.historian.point import Kind
from services.ingest.domain.protocol import PayloadFormat, Protocol


@dataclass(frozen=True, slots=True)
class MetricDeclaration:
    """What a profile declares of a metric; None is undeclared.

    `unit` is a unit that pint knows; values that come in another of its dimension are converted to
    it. A number outside `minimum` to `maximum` is stored with quality uncertain.
    """

    kind: Kind | None = None
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What devices of one type have in common, as far as taking their points needs it.

    `fields` maps the names in a payload to metrics, for devices that name them otherwise.
    """

    id: UUID
    version: int
    metrics: Mapping[str, MetricDeclaration] = field(default_factory=dict)
    protocol: Protocol | None = None
    payload_format: PayloadFormat | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    offline_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A profile as it is kept: what it declares, under a name. Times are UTC."""

    name: str
    description: str
    declares: Profile
    created_at: datetime
    updated_at: datetime

    @property
    def id(self) -> UUID:
        """Its id."""
        return self.declares.id
