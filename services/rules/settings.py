"""How rules is configured."""

from datetime import timedelta

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Settings of rules: `RULES_…`."""

    model_config = config("RULES_")

    refresh_every: timedelta = timedelta(seconds=10)
    """How often all definitions are compared with the database, should a word of a change be lost."""
    checkpoint_every: timedelta = timedelta(seconds=15)
    """How often is noted up to where points were looked at, where nothing else changed."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which events were handled."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often the inbox is trimmed."""
