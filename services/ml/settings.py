"""How ml is configured."""

from datetime import timedelta

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Settings of ml: `ML_…`."""

    model_config = config("ML_")

    training_points: int = 500_000
    """From how many points a model may be trained."""
    refresh_every: timedelta = timedelta(seconds=10)
    """How often all models are compared with the database, should a word of a change be lost."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which events were handled."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often the inbox is trimmed."""
