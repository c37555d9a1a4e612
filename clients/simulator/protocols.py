"""Which protocols the plant speaks, and where the platform is met by each."""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from urllib.parse import urlsplit

from clients.simulator.commands import OnCommand
from clients.simulator.devices.device import Device, OnAcknowledged
from clients.simulator.station import Credential

Address = tuple[str, int]
"""Host and port."""

PORTS = {"mqtt": 1883, "mqtt-websocket": 8083, "coap": 5683, "amqp": 5672, "opcua": 4840}
"""Where a protocol is spoken, as a rule."""
PROTOCOLS = ("http", "mqtt", "mqtt5", "mqtt-websocket", "coap", "amqp", "opcua")


class Doors:
    """Where the platform is met: its URL, and host and port of each protocol beside HTTP.

    Those that are not given are the usual port of the URL's host. Raises ValueError if it has none.
    """

    def __init__(self, url: str, addresses: Mapping[str, Address] | None = None) -> None:
        self.url = url
        """Without `/api/v1`."""
        host = urlsplit(url).hostname
        if host is None:
            raise ValueError(f"{url!r} is no URL of a platform")
        self._addresses = {name: (host, port) for name, port in PORTS.items()} | dict(
            addresses or {}
        )

    def __repr__(self) -> str:
        return f"Doors({self.url!r}, {self._addresses!r})"

    def address(self, protocol: str) -> Address:
        """Return where a protocol is spoken; MQTT 5 where MQTT is."""
        return self._addresses["mqtt" if protocol == "mqtt5" else protocol]


def make_device(
    protocol: str,
    doors: Doors,
    credential: Credential,
    *,
    on_acknowledged: OnAcknowledged | None = None,
    on_command: OnCommand | None = None,
) -> Device:
    """Return a device that speaks the protocol, one of PROTOCOLS; it is not yet connected."""
    return _kind(protocol, doors)(
        credential.id,
        credential.token,
        # Jitter only: it need not repeat, and devices must not share it.
        Random(),
        on_acknowledged=on_acknowledged,
        on_command=on_command,
    )


def _kind(protocol: str, doors: Doors) -> Callable[..., Device]:
    """Return what makes such a device. A protocol's library is loaded when it is spoken."""
    if protocol == "http":
        from clients.simulator.devices.http import HttpDevice

        return partial(HttpDevice, url=doors.url)
    host, port = doors.address(protocol)
    match protocol:
        case "mqtt":
            from clients.simulator.devices.mqtt import MqttDevice

            return partial(MqttDevice, host=host, port=port)
        case "mqtt5":
            from clients.simulator.devices.mqtt import Mqtt5Device

            return partial(Mqtt5Device, host=host, port=port)
        case "mqtt-websocket":
            from clients.simulator.devices.mqtt import WebSocketDevice

            return partial(WebSocketDevice, host=host, port=port)
        case "coap":
            from clients.simulator.devices.coap import CoapDevice

            return partial(CoapDevice, host=host, port=port)
        case "amqp":
            from clients.simulator.devices.amqp import AmqpDevice

            return partial(AmqpDevice, host=host, port=port)
        case "opcua":
            from clients.simulator.devices.opcua import OpcUaDevice

            return partial(OpcUaDevice, host=host, port=port)
        case _:
            raise ValueError(f"{protocol} is not spoken here; there are {', '.join(PROTOCOLS)}")
