"""What ingest is configured by: environment variables that begin with INGEST_."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr

from libs.common.settings import ServiceSettings, config


class Settings(ServiceSettings):
    """Ingest's settings."""

    model_config = config("INGEST_")

    historian_writer_url: SecretStr
    """The role that writes points: postgresql://historian_writer:…@host/iiot"""
    endpoints: bool = True
    """Whether this process talks to devices and serves HTTP."""
    writer: bool = True
    """Whether this process writes the historian."""

    mqtt_host: str = "0.0.0.0"  # noqa: S104 - devices come from everywhere
    mqtt_port: int = Field(1883, ge=0, le=65535)
    """0 takes any free port."""
    mqtt_tls_port: int | None = Field(None, ge=0, le=65535)
    """8883, as a rule. Absent: no TLS."""
    mqtt_tls_certificate: Path | None = None
    mqtt_tls_key: Path | None = None
    mqtt_connections: int = 20_000
    """How many devices may be connected to one process."""
    mqtt_packet_bytes: int = 262_144
    """The largest MQTT packet taken."""

    bridge_broker: str | None = None
    """Another MQTT broker to listen to: mqtt://user:password@host:1883. Absent: none."""
    bridge_topic: str = "v1/devices/+/telemetry"
    """What to subscribe to there; the first `+` is the device's id."""
    bridge_tenant: str | None = None
    """The tenant (its id) whose devices speak there."""
    bridge_client_id: str = "iiot-bridge"
    """Stable, so that the broker keeps what comes while we are away."""

    batch_linger: timedelta = timedelta(milliseconds=20)
    """How long a point waits for others to travel with."""
    batch_points: int = 8_000
    """A batch of this many points leaves at once."""
    pending_points: int = 60_000
    """With more than this not yet durable, devices are not read from for a while."""
    accept_within: timedelta = timedelta(seconds=10)
    """How long an HTTP client is kept waiting for its points to be durable."""

    clock_ahead: timedelta = timedelta(minutes=5)
    """How far in the future a point's time may lie."""
    oldest: timedelta = timedelta(days=365)
    """How far in the past a point's time may lie."""
    metrics_per_device: int = 1_000

    writer_rows: int = 5_000
    """How many points are written in one transaction, about."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which batches were stored."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often partitions are made ahead, strays counted, the inbox trimmed."""
