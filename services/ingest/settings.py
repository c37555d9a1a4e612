"""What ingest is configured by: environment variables that begin with INGEST_."""

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network

from pydantic import Field, SecretStr

from libs.common.settings import ServiceSettings, config
from services.ingest.protocols.settings import (
    AmqpSettings,
    CoapSettings,
    MqttSettings,
    OpcUaSettings,
)


class Settings(AmqpSettings, OpcUaSettings, CoapSettings, MqttSettings, ServiceSettings):
    """Ingest's settings: what each protocol has, and what the service has besides."""

    model_config = config("INGEST_")

    historian_writer_url: SecretStr
    """The role that writes points: postgresql://historian_writer:…@host/iiot"""
    endpoints: bool = True
    """Whether this process talks to devices and serves HTTP."""
    writer: bool = True
    """Whether this process writes the historian."""

    wrong_tokens_per_minute: int = Field(300, ge=1)
    """How many tokens that are nobody's one address may show by MQTT. Good ones do not count."""
    presence_lease: timedelta = Field(timedelta(seconds=20), ge=timedelta(seconds=1))
    """How long a process that devices connect to may be silent before its devices are offline."""

    credentials_key: SecretStr = SecretStr("")
    """What secrets that must be read again are sealed with: random, 16 characters at least. Empty:
    none can be kept."""

    connector_addresses: tuple[IPv4Network | IPv6Network, ...] = ()
    """The networks that tenants' connectors may connect to, as JSON. Empty: all but loopback,
    link-local (the clouds' metadata), multicast, and where our database and brokers are."""
    connectors: int = Field(200, ge=0)
    """How many connectors, of all tenants, one process runs."""
    connector_lease: timedelta = Field(timedelta(seconds=10), ge=timedelta(seconds=1))
    """How long a process may be silent before another runs its connectors."""

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
    contacts_every: timedelta = Field(timedelta(seconds=10), ge=timedelta(milliseconds=50))
    """How often is written down which devices were heard, and looked who has fallen silent."""
    offline_after: timedelta = Field(timedelta(minutes=10), ge=timedelta(seconds=1))
    """After how long a silence a device without a connection is offline, unless its profile says."""
    deleted_kept: timedelta = timedelta(days=30)
    """How long a device that was removed can be restored."""
    claim_url: str = "http://localhost:8000/claim"
    """Where the QR code on a device's label leads to: the gateway's `/claim`, as a phone reaches it."""
    wrong_keys_per_minute: int = Field(60, ge=1)
    """How many provisioning keys that are nobody's one address may show. Good ones do not count."""
    reports_per_minute: int = Field(30, ge=1)
    """How many alarms and status words a device may send; as many at once. More go to quarantine."""
    replies_per_minute: int = Field(600, ge=1)
    """How many answers to commands a device may send; as many at once. More go to quarantine."""

    commands_resend_after: timedelta = Field(timedelta(seconds=30), ge=timedelta(seconds=1))
    """How long a command that was sent may go unacknowledged before it is sent again."""
    commands_looked_after: timedelta = Field(timedelta(seconds=1), ge=timedelta(milliseconds=50))
    """How often is looked which commands' time is over."""
    commands_kept: timedelta = timedelta(days=90)
    """How long it is kept what became of a command."""

    quarantine_rows: int = Field(10_000, ge=100)
    """How many entries a tenant's quarantine holds; the oldest give way to those that come."""
    quarantine_bytes: int = Field(64 * 1024 * 1024, ge=1024 * 1024)
    """How many bytes of payload a tenant's quarantine holds."""
    quarantine_entry_bytes: int = Field(262_144, ge=256, le=1024 * 1024)
    """How many bytes are kept of a message in quarantine; of a longer one the beginning."""

    writer_rows: int = 5_000
    """How many points are written in one transaction, about."""
    ledger_folded: timedelta = timedelta(seconds=5)
    """How often what the writer wrote down is added to the ledger; who reads it does so at once."""
    usage_told: timedelta = timedelta(seconds=5)
    """How often is told how many points were stored of tenants, as the ledger has them."""
    storage_counted: timedelta = timedelta(hours=1)
    """How often is counted how much tenants store; it reads all points that there are."""
    quotas_believed: timedelta = timedelta(minutes=1)
    """How long a tenant's plan is believed. A change is told by event, at once."""
    ledger_kept: timedelta = timedelta(days=400)
    """How long the ledger's hours are kept."""
    inbox_kept: timedelta = timedelta(days=7)
    """How long it is remembered which batches were stored, and which tenants are gone."""
    strays_housed: timedelta = timedelta(seconds=5)
    """How often partitions are made for points of days that have none, twenty days at a time."""
    housekeeping: timedelta = timedelta(minutes=10)
    """How often partitions are made ahead, strays counted, inbox, keys and gone tenants trimmed."""
