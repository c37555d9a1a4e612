"""The protocols that the suite is run for."""

from tests.contract.devices.amqp_driver import AmqpDevice
from tests.contract.devices.coap_driver import CoapDevice
from tests.contract.devices.driver import DeviceDriver
from tests.contract.devices.http_driver import HttpDevice
from tests.contract.devices.mqtt_driver import Mqtt5Device, MqttDevice, WebSocketDevice
from tests.contract.devices.opcua_driver import OpcUaDevice

DRIVERS: tuple[type[DeviceDriver], ...] = (
    MqttDevice,
    Mqtt5Device,
    WebSocketDevice,
    HttpDevice,
    CoapDevice,
    OpcUaDevice,
)
"""Those that come to a door of ingest's own."""

AT_BROKERS: tuple[type[DeviceDriver], ...] = (AmqpDevice,)
"""Those that come to a broker, which keeps what they say until ingest takes it."""
