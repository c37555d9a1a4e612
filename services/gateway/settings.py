"""What the gateway is configured by: environment variables that begin with GATEWAY_."""

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from uuid import uuid5

from pydantic import Field, SecretStr

from libs.common.http.bounds import Bounds
from libs.common.settings import ServiceSettings, config, shared
from services.gateway.domain.policy import INSTALLATION, CallerKind, Match, Policy
from services.gateway.domain.routes import API


class Settings(ServiceSettings):
    """The gateway's settings."""

    model_config = config("GATEWAY_")

    upstreams: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Where the services are, as JSON: {"ingest": "http://ingest:8000", …}, or a list of addresses,
    which take turns. (The edge hands apps in.)"""
    upstreams_file: Path | None = None
    """The same in a file, which is looked at each second: services come and go without a restart. It wins."""
    drain_notice: timedelta = Field(
        timedelta(seconds=1), validation_alias=shared("GATEWAY_", "DRAIN_NOTICE")
    )
    upstream_timeout: timedelta = timedelta(seconds=60)
    """How long a service may be silent while it answers."""
    max_body_bytes: int = 16 * 1024 * 1024
    """The largest request body passed on; services have limits of their own."""

    redis_url: SecretStr = Field(SecretStr(""), validation_alias="REDIS_URL")
    """Where replicas count requests together. Absent: each for itself. Not a cache that evicts."""
    requests_per_minute: int = Field(1_000, ge=1)
    """How much one user may ask for."""
    requests_per_minute_of: dict[str, int] = Field(default_factory=dict)
    """Limits of their own for parts of the API, as JSON: {"analytics": 300}."""
    api_key_requests_per_minute: int = Field(1_000, ge=1)
    """How much one API key may ask for."""
    api_key_requests_per_minute_of: dict[str, int] = Field(
        default_factory=lambda: {"analytics": 30, "devices": 100, "telemetry": 200}
    )
    """The same for parts of the API. Programs ask without end; who sits before a console does not."""
    logins_per_minute: int = Field(5, ge=1)
    """Attempts to log in to one account from one address."""
    login_failures_per_address: int = Field(30, ge=1)
    """Failures to log in from one address to accounts that do not know it, in ten minutes."""
    login_failures_per_account: int = Field(100, ge=1)
    """Failures to log in to one account from all addresses it does not know, in an hour."""
    account_requests_per_address: int = Field(20, ge=1)
    """How often one address may register or forget a password, in ten minutes."""
    account_mails_per_hour: int = Field(5, ge=1)
    """How much mail strangers may cause to one address; beyond, none is sent."""
    anonymous_per_minute: int = Field(300, ge=1)
    """Requests from one address that nobody vouches for, logins and refreshes among them."""
    device_requests_per_minute: int = Field(6_000, ge=1)
    """How often one device may send by HTTP."""
    wrong_tokens_per_minute: int = Field(300, ge=1)
    """How many devices' tokens that are nobody's one address may show. Good ones do not count."""
    connections_per_address: int = Field(500, ge=1)
    """How many HTTP connections one address may have open; a trusted proxy may have any number."""
    live_connections_per_minute: int = Field(300, ge=1)
    """How many live connections may be opened from one address."""
    live_connections_of_session: int = Field(20, ge=1)
    """How many live connections one login may have open at one gateway, a tab each."""
    live_connections_of_user: int = Field(50, ge=1)
    """The same for one user in one tenant."""
    live_connections_of_tenant: int = Field(1_000, ge=1)
    """The same for all users of a tenant."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks of the proxies before us, whose X-Forwarded-For is believed; as JSON."""
    metrics_networks: tuple[IPv4Network | IPv6Network, ...] = (
        IPv4Network("127.0.0.0/8"),
        IPv6Network("::1/128"),
        IPv4Network("10.0.0.0/8"),
        IPv4Network("172.16.0.0/12"),
        IPv4Network("192.168.0.0/16"),
    )
    """From where /metrics may be read, directly; as JSON."""
    public_url: str = Field("", pattern=r"^(https?://[^/?#\s]+)?/?$")
    """The address that people use, such as https://iiot.example: passkeys are bound to its name, and
    pages from there may use cookies. Absent: passkeys work at localhost alone."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of other sites whose scripts may open live connections; our own always may."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which we are called; others are refused. Empty: any."""

    access_lifetime: timedelta = timedelta(minutes=15)
    refresh_lifetime: timedelta = timedelta(days=14)
    """How long a client may stay away without logging in again."""
    session_lifetime: timedelta = timedelta(days=90)
    ticket_lifetime: timedelta = timedelta(seconds=30)
    key_lifetime: timedelta = timedelta(days=90)
    """When the key that signs tokens is succeeded by another."""
    key_passphrase: SecretStr = SecretStr("")
    """Encrypts the signing keys in the database. The same for all replicas, and kept: without it they cannot be read."""

    revocation_catch_up: timedelta = timedelta(seconds=3)
    """How often it is looked for revocations whose event was missed."""
    usage_told: timedelta = timedelta(seconds=5)
    """How often is told how many calls tenants made. A process that is killed forgets those since."""
    housekeeping: timedelta = timedelta(minutes=1)
    inbox_kept: timedelta = timedelta(days=7)
    console_dir: Path | None = None
    """The built console, served at /. Absent: none."""

    def rate_limits(self) -> list[Policy]:
        """Return the limits that hold until others are set at run time."""
        of = CallerKind
        return [
            _default("user", self.requests_per_minute, kind=of.USER),
            *(
                _default(part, most, kind=of.USER, path=f"{API}{part}")
                for part, most in self.requests_per_minute_of.items()
            ),
            _default("api-key", self.api_key_requests_per_minute, kind=of.API_KEY),
            *(
                _default(f"api-key-{part}", most, kind=of.API_KEY, path=f"{API}{part}")
                for part, most in self.api_key_requests_per_minute_of.items()
            ),
            _default("device", self.device_requests_per_minute, kind=of.DEVICE),
            _default("address", self.anonymous_per_minute, kind=of.ANONYMOUS),
            _default("live", self.live_connections_per_minute, kind=of.ANONYMOUS, path=f"{API}ws"),
        ]

    def bounds(self) -> Bounds:
        """Return what the HTTP server bears. Anybody can reach it, so no address may fill it."""
        return Bounds(
            connections=self.connections,
            connections_per_address=self.connections_per_address,
            proxies=self.trusted_proxies,
        )


def _default(name: str, most: int, *, kind: CallerKind, path: str | None = None) -> Policy:
    return Policy(
        id=uuid5(INSTALLATION, name),
        name=name,
        match=Match(kind=kind, path=path),
        requests=most,
    )
