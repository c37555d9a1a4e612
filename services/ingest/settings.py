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
    """How many devices may be connected to one process, if it may open twice as many files."""
    mqtt_strangers: int = Field(4_000, ge=1)
    """How many of these may not have logged in yet, if it may open eight times as many files."""
    mqtt_strangers_per_address: int = Field(1_000, ge=1)
    """How many of these may come from one address."""
    wrong_tokens_per_minute: int = Field(300, ge=1)
    """How many tokens that are nobody's one address may show by MQTT. Good ones do not count."""
    presence_lease: timedelta = Field(timedelta(seconds=20), ge=timedelta(seconds=1))
    """How long a process that devices connect to may be silent before its devices are offline."""
    mqtt_packet_bytes: int = 262_144
    """The largest MQTT packet taken."""

    bridge_broker: str | None = None
    """Another MQTT broker to listen to: mqtt://user:password@host:1883. Absent: none."""
    bridge_ca: Path | None = None
    """Whom to trust with mqtts://: certificates in PEM. Absent: those the system trusts."""
    bridge_topic: str = "v1/devices/+/telemetry"
    """What to subscribe to there; the first `+` is the device's id."""
    bridge_tenant: str | None = None
    """The tenant (its id) whose devices speak there."""
    bridge_client_id: str = "iiot-bridge"
    """Stable, so that the broker keeps what comes while we are away."""

    verify_every: timedelta = timedelta(seconds=30)
    """How often is looked whether the devices that are connected may go on. Revocation is told by
    event, at once; a device whose event was lost is cut by then."""

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
    devices_per_tenant: int = Field(100_000, ge=1)
    """How many devices a tenant may have."""
    reports_per_minute: int = Field(30, ge=1)
    """How many alarms and status words a device may send; as many at once. More go to quarantine."""
    metrics_per_device: int = 1_000

    quarantine_rows: int = Field(10_000, ge=100)
    """How many entries a tenant's quarantine holds; the oldest give way to those that come."""
    quarantine_bytes: int = Field(64 * 1024 * 1024, ge=1024 * 1024)
    """How many bytes of payload a tenant's quarantine holds."""
    quarantine_entry_bytes: int = Field(262_144, ge=256, le=1024 * 1024)
    """How many bytes are kept of a message in quarantine; of a longer one the beginning."""

    writer_rows: int = 5_000
    """How many points are written in one transaction, about."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which batches were stored, and which tenants are gone."""
    strays_housed: timedelta = timedelta(seconds=5)
    """How often partitions are made for points of days that have none, twenty days at a time."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often partitions are made ahead, strays counted, inbox, keys and gone tenants trimmed."""
