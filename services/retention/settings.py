"""How retention is configured."""

from datetime import timedelta

from pydantic import Field

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Settings of retention: `RETENTION_…`."""

    model_config = config("RETENTION_")

    default_days: int = Field(365, ge=1, le=36_500)
    """For how many days points are kept where a tenant has no policy of its own."""
    erases_daily: bool = True
    """Whether this process erases by itself; by request it always does."""
    look_every: timedelta = timedelta(hours=1)
    """How often is looked whether this day's erasing is still to be done."""
    batch_rows: int = Field(50_000, ge=1)
    """How many points are deleted in one transaction."""
    request_rows: int = Field(1_000_000, ge=1)
    """How many points of a tenant one request deletes or counts; the daily run takes the rest."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which events were handled."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often inbox marks and old answers to requests with a key are forgotten."""
