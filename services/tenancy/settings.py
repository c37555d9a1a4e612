"""What tenancy is configured by: environment variables that begin with TENANCY_."""

from datetime import timedelta

from pydantic import Field, SecretStr

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Tenancy's settings."""

    model_config = config("TENANCY_")

    first_admin_email: str = ""
    """Who may log in first. Used when there is no user at all, and never again."""
    first_admin_password: SecretStr = SecretStr("")
    """Their password: 12 characters at least."""
    invitation_lifetime: timedelta = timedelta(days=7)
    """How long an invitation may be accepted."""
    password_workers: int = Field(2, ge=1, le=64)
    """How many passwords are hashed at once; each takes a core for some 30 ms, and 19 MiB."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often old answers to requests with an Idempotency-Key are removed, and looked which tenants'
    removal is to be said again."""
    removed_again_after: timedelta = timedelta(days=1)
    """How long after a tenant's removal that is said once more: all that was under way must be over."""
