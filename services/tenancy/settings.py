"""What tenancy is configured by: environment variables that begin with TENANCY_."""

from pydantic import Field, SecretStr

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Tenancy's settings."""

    model_config = config("TENANCY_")

    first_admin_email: str = ""
    """Who may log in first. Used when there is no user at all, and never again."""
    first_admin_password: SecretStr = SecretStr("")
    """Their password: 12 characters at least."""
    password_workers: int = Field(2, ge=1, le=64)
    """How many passwords are hashed at once; each takes a core for some 30 ms, and 19 MiB."""
