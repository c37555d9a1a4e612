"""How rules is configured."""

from datetime import timedelta

from pydantic import Field

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Settings of rules: `RULES_…`."""

    model_config = config("RULES_")

    per_tenant: int = Field(10_000, ge=1)
    """How many rules a tenant may have."""
    lateness: timedelta = Field(timedelta(minutes=5), ge=timedelta())
    """A point that is received longer than this after its own time fires and clears nothing."""
    refresh_every: timedelta = timedelta(seconds=10)
    """How often all definitions are compared with the database, should a word of a change be lost."""
    checkpoint_every: timedelta = timedelta(seconds=15)
    """How often is noted up to where points were looked at, where nothing else changed."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which events were handled."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often inbox marks and old answers to requests with a key are forgotten."""
