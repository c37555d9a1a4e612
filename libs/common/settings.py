"""What every service is configured by. A service derives its own, with its prefix.

Read once, in `app.py`. Each setting comes from the environment (`INGEST_DATABASE_URL`) or from a
file of that name in lower case in the secrets' folder; those that all services share also answer to
their plain name (`BUS_URL`).
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.common.http.bounds import Bounds

SECRETS = Path(os.environ.get("IIOT_SECRETS_DIR", "/run/secrets"))


def shared(prefix: str, name: str) -> AliasChoices:
    """Return the names that a shared setting answers to: the service's own first."""
    return AliasChoices(f"{prefix}{name}", name)


def config(prefix: str) -> SettingsConfigDict:
    """Return how a service's settings are read."""
    return SettingsConfigDict(
        env_prefix=prefix,
        frozen=True,
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
        extra="ignore",
        populate_by_name=True,
    )


class ServiceSettings(BaseSettings):
    """The settings that all services have. Durations are ISO 8601: PT10S."""

    model_config = SettingsConfigDict(frozen=True)

    database_url: SecretStr
    """The service's own role: postgresql://<service>_rw:…@host/iiot"""
    engine_database_url: SecretStr
    """The role that crosses tenants by name: postgresql://<service>_engine:…@host/iiot"""
    database_pool: int = 5
    """Connections kept open; twice as many under load."""
    bus_url: SecretStr = Field(SecretStr(""), validation_alias="BUS_URL")
    """RabbitMQ: amqp://user:password@host/vhost. (The edge hands its own bus in.)"""
    telemetry_shards: int = Field(4, validation_alias="TELEMETRY_SHARDS", ge=1, le=64)
    """Into how many streams telemetry is divided by device; the same for all services."""
    idempotency_keys_kept: timedelta = Field(
        timedelta(hours=24), validation_alias="IDEMPOTENCY_KEYS_KEPT"
    )
    """How long a request with an Idempotency-Key is answered as it was the first time."""
    gateway_jwks_url: str = Field(
        "http://gateway:8000/.well-known/jwks.json", validation_alias="GATEWAY_JWKS_URL"
    )
    """Where the public keys are published that principals are verified with."""
    host: str = Field("0.0.0.0", validation_alias="HOST")  # noqa: S104 - inside a container
    port: int = 8000
    connections: int = Field(4_000, ge=1)
    """How many clients may be connected to one process by HTTP, if it may open as many files."""
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", validation_alias="LOG_LEVEL"
    )
    log_file: Path | None = Field(None, validation_alias="LOG_FILE")
    """Also write the log there, rotating."""
    drain: timedelta = Field(timedelta(seconds=10), validation_alias="DRAIN")
    """How long a stopping service may finish what it has begun."""
    drain_notice: timedelta = Field(timedelta(0), validation_alias="DRAIN_NOTICE")
    """How long, before that, it takes requests as ever and says that it is not ready: as long as
    balancers need to notice."""

    def bounds(self) -> Bounds:
        """Return what the HTTP server bears."""
        return Bounds(connections=self.connections)
