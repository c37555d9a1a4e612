"""The MQTT endpoint as a door: its ports, plain and with TLS, over TCP and over WebSocket."""

from datetime import timedelta
from functools import partial

from starlette.datastructures import State

from libs.common.db.transactions import Transactions
from libs.common.http.bounds import within_open_files
from libs.common.jobs import Ticker
from services.ingest.protocols.mqtt.admission import Capacity
from services.ingest.protocols.mqtt.asides import Desk
from services.ingest.protocols.mqtt.endpoint import Endpoint
from services.ingest.protocols.mqtt.keeper import Keeper
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.tls import Certificate
from services.ingest.protocols.mqtt.websocket import WebSocket
from services.ingest.protocols.settings import MqttSettings
from services.ingest.store.mqtt_sessions import MqttSessions
from services.ingest.store.store import IngestStore
from services.ingest.usecases.reception import Reception

CERTIFICATE_LOOKED_AT = timedelta(seconds=5)
"""How often the files of the TLS certificate are looked at."""


class MqttDoor:
    """Where devices come in by MQTT."""

    def __init__(
        self,
        settings: MqttSettings,
        reception: Reception,
        transactions: Transactions[IngestStore],
        sessions: MqttSessions,
    ) -> None:
        self._settings = settings
        self._clock = reception.clock
        self._watch: Ticker | None = None
        self.endpoint = Endpoint(
            reception,
            limits=Limits(
                max_packet_size=settings.mqtt_packet_bytes,
                max_connect_size=settings.mqtt_connect_bytes,
                session_expiry=int(settings.mqtt_session_kept.total_seconds()),
                messages_per_second=settings.device_messages_per_second,
                burst=settings.device_burst,
                over_quota_s=settings.mqtt_over_quota.total_seconds(),
            ),
            keeper=Keeper(sessions),
            desk=Desk(
                reception, transactions, settings.devices_per_tenant, settings.mqtt_packet_bytes
            ),
            capacity=Capacity(
                # Half the files a process may open; the rest is for HTTP, the databases and the bus.
                within_open_files(settings.mqtt_connections, 1 / 2),
                within_open_files(settings.mqtt_strangers, 1 / 8),
                settings.mqtt_strangers_per_address,
            ),
        )

    async def open(self, state: State) -> None:
        """Listen, and look after the certificate where there is one."""
        settings = self._settings
        listen = partial(self.endpoint.listen, settings.mqtt_host)
        state.mqtt_port = await listen(settings.mqtt_port)
        if settings.mqtt_websocket_port is not None:
            state.mqtt_websocket_port = await listen(settings.mqtt_websocket_port, over=WebSocket)
        if settings.mqtt_tls_port is None and settings.mqtt_websocket_tls_port is None:
            return
        certificate = self._certificate()
        self._watch = Ticker("ingest.certificate", CERTIFICATE_LOOKED_AT, certificate.renew)
        self._watch.start()
        if settings.mqtt_tls_port is not None:
            state.mqtt_tls_port = await listen(settings.mqtt_tls_port, certificate)
        if settings.mqtt_websocket_tls_port is not None:
            state.mqtt_websocket_tls_port = await listen(
                settings.mqtt_websocket_tls_port, certificate, WebSocket
            )

    async def stop(self) -> None:
        """Close the ports and the connections; write down the sessions."""
        if self._watch is not None:
            await self._watch.stop()
        await self.endpoint.stop()

    def _certificate(self) -> Certificate:
        settings = self._settings
        if settings.mqtt_tls_certificate is None:
            raise SystemExit("INGEST_MQTT_TLS_PORT needs INGEST_MQTT_TLS_CERTIFICATE (and _KEY)")
        return Certificate(
            settings.mqtt_tls_certificate,
            settings.mqtt_tls_key,
            settings.mqtt_tls_client_ca,
            self._clock,
        )
