"""What tenancy is configured by: environment variables that begin with TENANCY_."""

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network

from pydantic import Field, SecretStr

from libs.common.mail_settings import MailSettings
from libs.common.settings import config


class Settings(MailSettings):
    """Tenancy's settings."""

    model_config = config("TENANCY_")

    first_admin_email: str = ""
    """Who may log in first. Used when there is no user at all, and never again."""
    first_admin_password: SecretStr = SecretStr("")
    """Their password, as long as `TENANCY_PASSWORD_MIN_LENGTH` asks."""
    password_min_length: int = Field(15, ge=8, le=256)
    """Characters of a new password. 15 where it may be the only factor (NIST SP 800-63B-4)."""
    sealing_key: SecretStr = SecretStr("")
    """Seals what must be read again, such as the secrets of one-time codes: 16 random characters at least.
    The same for all replicas, and kept. Absent: none of it can be set up."""
    invitation_lifetime: timedelta = timedelta(days=7)
    """How long an invitation may be accepted."""
    api_keys_per_tenant: int = Field(200, ge=1)
    """How many API keys a tenant may have."""
    password_workers: int = Field(2, ge=1, le=64)
    """How many passwords are hashed at once; each takes a core for some 30 ms, and 19 MiB."""
    identity_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that tenants' identity providers may be in, as JSON. Absent: any but loopback, link-local
    and this platform's own servers."""
    mail_tick: timedelta = timedelta(seconds=2)
    """How often to look for mail that is due, and for requests of who registers or forgot a password."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often inbox marks and old answers to requests with a key are forgotten, and looked which
    tenants' removal is to be said again."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which events were handled."""
    removed_again_after: timedelta = timedelta(days=1)
    """How long after a tenant's removal that is said once more: all that was under way must be over."""
    erasure_grace: timedelta = timedelta(days=30)
    """How long a tenant that is closed can be taken back, unless who closes it says."""
    default_plan: str = "unlimited"
    """The plan of a tenant that is opened without one."""
    plans_told: timedelta = timedelta(seconds=5)
    """How often is looked whether a plan changed that its tenants are to be told of."""
