"""The CoAP endpoint as a door: its port, and the one of DTLS before it.

Its libraries are loaded when it opens: what needs no CoAP needs none of their memory.
"""

from contextlib import AsyncExitStack

from starlette.datastructures import State

from libs.common.db.transactions import Transactions
from services.ingest.protocols.coap.limits import CoapLimits
from services.ingest.protocols.settings import CoapSettings
from services.ingest.store.store import IngestStore
from services.ingest.usecases.credentials import Secrets
from services.ingest.usecases.policies import Policies
from services.ingest.usecases.reception import Reception


class CoapDoor:
    """Where devices come in by CoAP."""

    def __init__(
        self,
        settings: CoapSettings,
        reception: Reception,
        transactions: Transactions[IngestStore],
        policies: Policies,
        secrets: Secrets,
    ) -> None:
        self._settings = settings
        self._reception = reception
        self._transactions = transactions
        self._policies = policies
        self._secrets = secrets
        self._stack = AsyncExitStack()

    async def open(self, state: State) -> None:
        """Listen, if there is to be CoAP; for DTLS too, if there is to be any."""
        settings = self._settings
        if settings.coap_port is None:
            return
        from services.ingest.protocols.coap.endpoint import Endpoint
        from services.ingest.protocols.coap.journal import open_journal
        from services.ingest.protocols.coap.secured import Secured

        endpoint = Endpoint(
            self._reception,
            self._policies,
            Secured(self._reception, self._transactions, self._secrets, settings.coap_devices),
            CoapLimits(
                message_bytes=settings.coap_message_bytes,
                answer_within_s=settings.coap_answer_within.total_seconds(),
                remembered=settings.coap_remembered,
                devices=settings.coap_devices,
                observers=settings.coap_observers,
                strangers_per_minute=settings.coap_strangers_per_minute,
            ),
            open_journal(settings.state_dir, settings.coap_remembered),
        )
        self._stack.push_async_callback(endpoint.stop)
        state.coap = endpoint
        state.coap_port = await endpoint.listen(settings.coap_host, settings.coap_port)
        if settings.coap_dtls_port is None:
            return
        try:
            from services.ingest.protocols.coap.dtls import Dtls
        except ModuleNotFoundError as error:
            if error.name != "OpenSSL":
                raise
            message = "INGEST_COAP_DTLS_PORT needs the extra `dtls`: pip install 'pyopenssl>=26.4'"
            raise RuntimeError(message) from error
        dtls = Dtls(endpoint, self._secrets, settings.coap_dtls_sessions)
        self._stack.push_async_callback(dtls.stop)
        state.dtls = dtls
        state.coap_dtls_port = await dtls.listen(settings.coap_host, settings.coap_dtls_port)

    async def stop(self) -> None:
        """Close the ports, that of DTLS first."""
        await self._stack.aclose()
