"""How ml is configured."""

from datetime import timedelta

from pydantic import Field

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Settings of ml: `ML_…`."""

    model_config = config("ML_")

    training_points: int = 500_000
    """From how many points a model may be trained."""
    models_per_tenant: int = Field(1_000, ge=1)
    """How many models a tenant may have."""
    lateness: timedelta = Field(timedelta(minutes=5), ge=timedelta())
    """A point that is received longer than this after its own time is not judged."""
    refresh_every: timedelta = timedelta(seconds=10)
    """How often all models are compared with the database, should a word of a change be lost."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which events were handled."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often inbox marks and old answers to requests with a key are forgotten."""
