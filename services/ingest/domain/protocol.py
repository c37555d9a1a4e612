"""By which protocol a device speaks, and in which form it writes."""

from enum import StrEnum


class Protocol(StrEnum):
    """A way in. A device's profile names its own, or it is recorded at first contact."""

    MQTT = "mqtt"
    COAP = "coap"
    AMQP = "amqp"
    OPCUA = "opcua"
    HTTP = "http"
    MODBUS = "modbus"
    MQTT_BRIDGE = "mqtt_bridge"


class PayloadFormat(StrEnum):
    """How telemetry is written. Named by the sender, the profile, or recognised."""

    JSON = "json"
    CBOR = "cbor"
    SENML_JSON = "senml+json"
    SENML_CBOR = "senml+cbor"
    NDJSON = "ndjson"
    CSV = "csv"
    INFLUX = "influx"
    SPARKPLUG = "sparkplug_b"
    THINGSBOARD = "thingsboard"
    NATIVE = "native"
    """Values that the protocol itself has types for: OPC UA, Modbus."""
