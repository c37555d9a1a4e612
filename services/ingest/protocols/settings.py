"""What each protocol is configured by. Ingest's settings are all of these, and more."""

from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class DeviceSettings(BaseModel):
    """What holds for a device whatever it speaks."""

    model_config = ConfigDict(frozen=True)

    device_messages_per_second: float = Field(1_000.0, gt=0)
    """How many messages a device may send, by all protocols and connections to one process. By HTTP
    ten points, or a thousand bytes, are one. MQTT reads one that sends more slowly, and disconnects it
    in the end; HTTP answers 429, CoAP 4.29, OPC UA BadTooManyOperations; AMQP disconnects it."""
    device_burst: float = Field(5_000.0, ge=1)
    """How many of these it may send at once."""
    devices_per_tenant: int = Field(100_000, ge=1)
    """How many devices a tenant may have."""
    metrics_per_device: int = 1_000
    mqtt_packet_bytes: int = 262_144
    """The largest MQTT packet taken, also from a broker that a tenant connects; by AMQP the largest
    message."""


class MqttSettings(DeviceSettings):
    """Of the MQTT endpoint."""

    mqtt_host: str = "0.0.0.0"  # noqa: S104 - devices come from everywhere
    mqtt_port: int = Field(1883, ge=0, le=65535)
    """0 takes any free port."""
    mqtt_tls_port: int | None = Field(None, ge=0, le=65535)
    """8883, as a rule. Absent: no TLS."""
    mqtt_tls_certificate: Path | None = None
    """PEM, with those between it and its authority. Taken up anew when the file changes."""
    mqtt_tls_key: Path | None = None
    mqtt_tls_client_ca: Path | None = None
    """Whose certificates devices may show instead of a token: PEM. Absent: nobody's."""
    mqtt_websocket_port: int | None = Field(None, ge=0, le=65535)
    """MQTT over WebSocket, at /mqtt. Absent: none."""
    mqtt_websocket_tls_port: int | None = Field(None, ge=0, le=65535)
    """The same with TLS (wss://). Absent: none."""
    mqtt_connections: int = 20_000
    """How many devices may be connected to one process, if it may open twice as many files."""
    mqtt_strangers: int = Field(4_000, ge=1)
    """How many of these may not have logged in yet, if it may open eight times as many files."""
    mqtt_strangers_per_address: int = Field(1_000, ge=1)
    """How many of these may come from one address."""
    mqtt_connect_bytes: int = Field(16_384, ge=1_024)
    """The largest CONNECT taken, its will included; whoever it is may send one."""
    mqtt_session_kept: timedelta = Field(timedelta(days=7), ge=timedelta(), le=timedelta(days=365))
    """How long the session of an MQTT device that is away is kept at most. 0: none is kept."""
    mqtt_over_quota: timedelta = timedelta(seconds=60)
    """For how long an MQTT device may want to send more than it may, before it is disconnected."""


class CoapSettings(BaseModel):
    """Of the CoAP endpoint."""

    model_config = ConfigDict(frozen=True)

    coap_host: str = "0.0.0.0"  # noqa: S104 - devices come from everywhere
    coap_port: int | None = Field(None, ge=0, le=65535)
    """Where devices speak CoAP: UDP port 5683, as a rule. Absent: no CoAP."""
    coap_dtls_port: int | None = Field(None, ge=0, le=65535)
    """Where devices speak CoAP over DTLS with a key shared beforehand: UDP port 5684, as a rule.
    Absent: no DTLS. Needs INGEST_COAP_PORT, and INGEST_CREDENTIALS_KEY for the keys."""
    coap_dtls_sessions: int = Field(10_000, ge=1)
    """How many devices may have a DTLS session with one process; the one silent longest gives way."""
    coap_message_bytes: int = Field(65_536, ge=1024)
    """The largest CoAP message taken, in one datagram or in blocks."""
    coap_answer_within: timedelta = Field(timedelta(seconds=5), ge=timedelta(milliseconds=100))
    """How long a device waits for its 2.04; then it is told that its points are not safe yet."""
    coap_remembered: int = Field(500_000, ge=1_000)
    """How many of the latest messages are known when they come again, about 80 bytes each."""
    coap_devices: int = Field(50_000, ge=1)
    """How many devices one process knows without looking them up."""
    coap_observers: int = Field(10_000, ge=0)
    """How many observations of one process's devices there may be."""
    coap_strangers_per_minute: int = Field(60, ge=1)
    """How many requests without a credential are answered to one address; more are ignored."""
    state_dir: Path | None = None
    """A folder that survives a restart, for what CoAP received lately, so that what is sent again
    after the restart is the same point. One process a folder. Absent: it is not kept."""

    @model_validator(mode="after")
    def _dtls_stands_before_coap(self) -> Self:
        if self.coap_dtls_port is not None and self.coap_port is None:
            raise ValueError("INGEST_COAP_DTLS_PORT needs INGEST_COAP_PORT")
        return self


class OpcUaSettings(DeviceSettings):
    """Of the OPC UA server."""

    opcua_host: str = "0.0.0.0"  # noqa: S104 - devices come from everywhere
    opcua_port: int | None = Field(None, ge=0, le=65535)
    """Where OPC UA clients come in: 4840, as a rule. Absent: no OPC UA server."""
    opcua_certificate: Path | None = None
    """Our application's certificate, to clients and to the servers we connect to: PEM. It and its
    key are made where these files are not there yet. Absent: made anew at each start."""
    opcua_key: Path | None = None
    opcua_trusted: Path | None = None
    """A folder with the certificates of clients that may come in, or of their CAs. Absent: any
    client's will do, and who it is says the device's token."""
    opcua_sessions: int = Field(500, ge=1)
    """How many OPC UA clients may be connected to one process."""


class AmqpSettings(DeviceSettings):
    """Of the broker that devices publish to by AMQP."""

    amqp_url: SecretStr | None = None
    """The RabbitMQ that devices publish to, and the virtual host that is theirs alone:
    amqp://user:password@host/devices. Absent: no AMQP for devices."""
    amqp_management_url: SecretStr | None = None
    """Its management API, to cut revoked devices off: http://user:password@host:15672"""
    amqp_auth_key: SecretStr = SecretStr("")
    """What the broker shows when it asks who devices are; random. Empty: it is not answered."""
    amqp_queue_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """How much may wait in the broker; then it refuses, and the devices keep what they have."""
