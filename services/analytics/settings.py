"""How analytics is configured."""

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Settings of analytics: `ANALYTICS_…`."""

    model_config = config("ANALYTICS_")

    statistics_points: int = 2_000_000
    """Over how many points one request may compute statistics."""
