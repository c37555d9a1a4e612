"""The OPC UA server: devices and SCADA systems come in, each to one device's own address space.

A session proves who it is by a device's id and token, over a channel that is signed and encrypted;
it sees that device and nothing else of the plant. A Write is answered when its points are durable on
the bus, never before. The library (asyncua) speaks the protocol; what it does not check, or bound,
is checked and bounded here.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from asyncua import Node, ua
from asyncua import Server as Application
from asyncua.common.connection import TransportLimits
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.crypto.security_policies import SecurityPolicyFactory, SecurityPolicyNone
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_session import InternalSession
from asyncua.server.uaprocessor import UaProcessor
from asyncua.ua.ua_binary import struct_from_binary, uatcp_to_binary

from libs.common.addresses import origin_of
from libs.common.errors import AppError, Unauthenticated
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Point
from services.ingest.domain.protocol import Protocol
from services.ingest.protocols.opcua.bounds import CHUNK_BYTES
from services.ingest.protocols.opcua.certificates import (
    APPLICATION_URI,
    TrustList,
    Verdict,
    fingerprint,
    first_of,
    identity_at,
    names_application,
)
from services.ingest.protocols.opcua.session import MOST_IN_A_CALL, DeviceSession
from services.ingest.protocols.opcua.space import (
    MOST_COMMANDS,
    NAMESPACE_URI,
)
from services.ingest.protocols.opcua.standard import fill
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

MESSAGE_BYTES = 262_144
"""The largest message taken; the library's own limit is 100 MiB."""
LEAST_BUFFER_BYTES = 8_192
"""What the standard asks of each side. Answers in pieces of a few bytes, each of them signed and
encrypted, would cost us much more than the question costs who asks."""
RENEWED_EVERY_S = 10.0
"""How often a connection may open its channel anew, which takes a private key's work."""
MOST_UNACKNOWLEDGED = 20
MOST_PENDING = 20
"""Requests of one connection that wait."""
LEAST_SESSION_MS = 5_000.0
LONGEST_SESSION_MS = 120_000.0
STRANGER_S = 10.0
"""How long a connection may take to activate its session."""
SESSIONS_PER_DEVICE = 4
STRANGERS_PER_ADDRESS = 50

_ENCRYPTED = (
    ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
    ua.SecurityPolicyType.Aes128Sha256RsaOaep_SignAndEncrypt,
    ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
)
_TOKEN_ENCRYPTIONS = (
    None,
    "",
    "http://www.w3.org/2001/04/xmlenc#rsa-oaep",
    "http://opcfoundation.org/UA/security/rsa-oaep-sha2-256",
)
"""How a token may be encrypted within the channel. PKCS #1 v1.5 is not: its padding tells tales."""
_REFUSALS = {
    Verdict.UNTRUSTED: ua.StatusCodes.BadCertificateUntrusted,
    Verdict.NOT_VALID_NOW: ua.StatusCodes.BadCertificateTimeInvalid,
}
_ACTIVATE = ua.NodeId(ua.ObjectIds.ActivateSessionRequest_Encoding_DefaultBinary)
_CREATE = ua.NodeId(ua.ObjectIds.CreateSessionRequest_Encoding_DefaultBinary)


@dataclass(frozen=True, slots=True)
class Doors:
    """How the server is met, and by whom it may be."""

    host: str
    port: int
    certificate: Path | None
    key: Path | None
    trusted: Path | None
    """A folder with the certificates that may open a channel; None: any may, and the token decides."""
    sessions: int
    metrics: int
    """How many metrics a device may have."""


class OpcUaServer:
    """Listens for OPC UA clients."""

    def __init__(self, reception: Reception, doors: Doors) -> None:
        self.reception = reception
        self.doors = doors
        self.trust = None if doors.trusted is None else TrustList(doors.trusted)
        self.by_device: dict[UUID, list[DeviceSession]] = {}
        self.strangers: Counter[str] = Counter()
        self.metrics = doors.metrics
        self.space_numbers = 0
        self._application: Application | None = None
        self._binary: _Binary | None = None
        reception.sources.on_revoked.append(self.cut)
        reception.on_tick.append(self._tick)

    async def listen(self) -> int:
        """Open the port and return its number (for port 0, the one that was free)."""
        # It writes each request to the log, and a stack trace for each one of a stranger that fails.
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        doors, inner = self.doors, _Inner(self)
        application = Application(iserver=inner)
        application.product_uri = APPLICATION_URI
        application.name = "INSA IIoT ingest"
        application.manufacturer_name = "INSA"
        await application.init()
        await application.set_application_uri(APPLICATION_URI)
        await application.register_namespace(NAMESPACE_URI)
        application.set_endpoint(f"opc.tcp://{doors.host}:{doors.port}/")
        application.set_security_policy(list(_ENCRYPTED))
        application.set_identity_tokens([ua.UserNameIdentityToken])
        identity = identity_at(doors.certificate, doors.key, self.reception.clock.now())
        await application.load_certificate(identity.certificate, "der")
        await application.load_private_key(identity.key, None, "pem")
        await application._setup_server_nodes()
        # Without security one may ask for the endpoints, and no more.
        open_to_all = SecurityPolicyFactory(SecurityPolicyNone, ua.MessageSecurityMode.None_)
        await inner.start()
        limits = _Limits(
            CHUNK_BYTES, CHUNK_BYTES, math.ceil(MESSAGE_BYTES / CHUNK_BYTES), MESSAGE_BYTES
        )
        binary = _Binary(inner, doors.host, doors.port, limits)
        binary.set_policies([*application._policies, open_to_all])
        self._application, self._binary = application, binary
        await binary.start()
        port: int = binary.port
        log.info("opc ua listens", host=doors.host, port=port, trust_list=doors.trusted is not None)
        return port

    async def stop(self) -> None:
        """Take no new connections, close those there are, end."""
        if self._application is None or self._binary is None:
            return
        for sessions in list(self.by_device.values()):
            for session in list(sessions):
                session.end("the server is going down")
        await self._binary.stop()
        await self._application.iserver.stop()
        self._application = self._binary = None

    def cut(self, device_id: UUID, reason: str) -> None:
        """Close a device's connections."""
        for session in list(self.by_device.get(device_id, [])):
            session.end(reason)

    def came(self, session: DeviceSession, source: Source) -> None:
        """Note that a session has its device; the oldest of too many must go."""
        sessions = self.by_device.setdefault(source.device_id, [])
        if not sessions:
            source.watch = self._watcher(source.device_id)
        while len(sessions) >= SESSIONS_PER_DEVICE:
            sessions[0].end("the device has connected too often")
        # What ended above may have been the last of them all.
        self.by_device.setdefault(source.device_id, sessions).append(session)
        self.reception.met(source, Protocol.OPCUA)
        self.reception.presence.came(source, self, "connected by OPC UA")

    def went(self, session: DeviceSession, source: Source, reason: str) -> None:
        """Note that a session is over."""
        sessions = self.by_device.get(source.device_id, [])
        if session not in sessions:
            return
        sessions.remove(session)
        if not sessions:
            del self.by_device[source.device_id]
            source.watch = None
            self.reception.presence.went(source, self, reason)

    def _watcher(self, device_id: UUID) -> Callable[[Sequence[Point]], None]:
        def watch(points: Sequence[Point]) -> None:
            for session in self.by_device.get(device_id, []):
                session.note(points)

        return watch

    def _tick(self) -> None:
        if self._binary is None:
            return
        now = asyncio.get_running_loop().time()
        for connection in list(self._binary.clients):
            connection.end_if_idle(now)


class _Inner(InternalServer):
    """The library's server, less what it lets anybody do."""

    def __init__(self, server: OpcUaServer) -> None:
        self._server = server
        super().__init__(user_manager=_Admitted())
        self.max_connections = server.doors.sessions
        self.max_pending_activation_seconds = STRANGER_S
        self.max_pending_messages_per_connection = MOST_PENDING
        self.max_session_timeout_ms = LONGEST_SESSION_MS
        self.min_session_timeout_ms = LEAST_SESSION_MS
        self.max_monitored_item_queue_size = MOST_COMMANDS
        self.max_unacked_messages_per_subscription = MOST_UNACKNOWLEDGED
        InternalSession.max_connections = max(
            InternalSession.max_connections, server.doors.sessions
        )

    @property
    def server(self) -> OpcUaServer:
        """Whose it is."""
        return self._server

    def create_session(
        self, name: Any, user: User | None = None, external: bool = False
    ) -> InternalSession:
        return DeviceSession(self._server, self, name)

    async def load_standard_address_space(self, shelf_file: Path | None = None) -> None:
        fill(self.node_mgt_service)

    async def setup_nodes(self) -> None:
        await super().setup_nodes()
        # What the library writes there it does not keep, and we do not either.
        prefix = "Server_ServerCapabilities_OperationLimits_"
        told = {name: 0 for name in vars(ua.ObjectIds) if name.startswith(prefix)}
        told |= {
            prefix + f"MaxNodesPer{service}": MOST_IN_A_CALL
            for service in (
                "Read",
                "Write",
                "MethodCall",
                "Browse",
                "RegisterNodes",
                "TranslateBrowsePathsToNodeIds",
            )
        }
        told[f"{prefix}MaxMonitoredItemsPerCall"] = MOST_IN_A_CALL
        for name, most in told.items():
            node = Node(self.isession, ua.NodeId(getattr(ua.ObjectIds, name)))
            await node.write_value(ua.Variant(most, ua.VariantType.UInt32))

    def lookup_external_session(self, auth_token: ua.NodeId) -> InternalSession | None:
        """Nobody takes a session over: its token is a small number, and known to be the next."""
        return None

    def register_external_session(self, session: InternalSession) -> None:
        pass

    def register_server(self, server: Any, conf: Any = None) -> None:
        """We are no discovery server: what one client says of others is not told to a third."""
        raise ServiceError(ua.StatusCodes.BadServiceUnsupported)

    def register_server2(self, params: Any) -> None:
        raise ServiceError(ua.StatusCodes.BadServiceUnsupported)


class _Limits(TransportLimits):
    """How long messages may be, and their parts."""

    def create_acknowledge_and_set_limits(self, msg: ua.Hello) -> ua.Acknowledge:
        if min(msg.ReceiveBufferSize, msg.SendBufferSize) < LEAST_BUFFER_BYTES:
            raise ServiceError(ua.StatusCodes.BadConnectionRejected)
        return super().create_acknowledge_and_set_limits(msg)


class _Admitted:
    """The library's question who a user is, which is answered before it asks."""

    def get_user(
        self,
        iserver: InternalServer,
        username: str | None = None,
        password: str | None = None,
        certificate: Any = None,
    ) -> User:
        return User(UserRole.User, name=username)


class _Processor(UaProcessor):
    """One connection's requests."""

    def __init__(
        self, inner: _Inner, transport: asyncio.Transport, limits: TransportLimits
    ) -> None:
        super().__init__(inner, transport, limits)
        self._server = inner.server
        self.last_heard = asyncio.get_running_loop().time()
        self._opened: float | None = None

    async def process(self, header: Any, body: Any) -> bool:
        self.last_heard = asyncio.get_running_loop().time()
        try:
            goes_on = await super().process(header, body)
        except (ServiceError, ua.UaError) as error:
            # Before there is a channel, and when it is broken, there is no other answer than this.
            code = getattr(error, "code", ua.StatusCodes.BadSecurityChecksFailed)
            told = ua.ErrorMessage(ua.StatusCode(code), "")
            self._transport.write(uatcp_to_binary(ua.MessageType.Error, told))
            return False
        except Exception as error:  # noqa: BLE001 - a stranger's bytes may break the library anywhere
            log.info("an OPC UA connection is given up", error=repr(error)[:200])
            return False
        # The library answers nothing, and would close, where it refuses a request without a session.
        return goes_on is not False

    def open_secure_channel(self, algohdr: Any, seqhdr: Any, body: Any) -> None:
        now = asyncio.get_running_loop().time()
        if self._opened is not None and now - self._opened < RENEWED_EVERY_S:
            raise ServiceError(ua.StatusCodes.BadTcpNotEnoughResources)
        self._opened = now
        if algohdr.SecurityPolicyURI != SecurityPolicyNone.URI:
            der = first_of(algohdr.SenderCertificate or b"")
            trust, today = self._server.trust, self._server.reception.clock.now()
            verdict = Verdict.TRUSTED if trust is None else trust.judge(der, today)
            if verdict is not Verdict.TRUSTED:
                shown = fingerprint(der)
                log.info("an OPC UA client is refused", certificate=verdict.name, sha256=shown)
                raise ServiceError(_REFUSALS[verdict])
        super().open_secure_channel(algohdr, seqhdr, body)

    async def _process_message(self, typeid: Any, requesthdr: Any, seqhdr: Any, body: Any) -> Any:
        if typeid == _CREATE:
            if self._connection.security_policy.Mode != ua.MessageSecurityMode.SignAndEncrypt:
                raise ServiceError(ua.StatusCodes.BadSecurityModeInsufficient)
            if self.session is not None:
                raise ServiceError(ua.StatusCodes.BadTooManySessions)
            said = struct_from_binary(ua.CreateSessionParameters, body.copy())
            shown = first_of(self._connection.security_policy.peer_certificate or b"")
            if not names_application(shown, said.ClientDescription.ApplicationUri):
                raise ServiceError(ua.StatusCodes.BadCertificateUriInvalid)
        source = await self._login(body) if typeid == _ACTIVATE else None
        answer = await super()._process_message(typeid, requesthdr, seqhdr, body)
        if source is not None and isinstance(self.session, DeviceSession):
            if source.is_revoked or self._transport.is_closing():
                self._transport.abort()
                return False
            self.session.abort = self._transport.abort
            self.session.admit(source)
        return answer

    async def _login(self, body: Any) -> Source:
        """Return whose session it shall be. The library asks for a user where it cannot wait."""
        session = self.session
        if not isinstance(session, DeviceSession):
            raise ServiceError(ua.StatusCodes.BadSessionIdInvalid)
        params = struct_from_binary(ua.ActivateSessionParameters, body.copy())
        token = params.UserIdentityToken
        if not isinstance(token, ua.UserNameIdentityToken):
            raise ServiceError(ua.StatusCodes.BadIdentityTokenRejected)
        if token.EncryptionAlgorithm not in _TOKEN_ENCRYPTIONS:
            raise ServiceError(ua.StatusCodes.BadIdentityTokenInvalid)
        try:
            name, password = self.iserver.decrypt_user_token(session, token)
            device_id = UUID(name)
        except Exception as error:
            # Whatever is wrong with it: it is nobody's.
            raise ServiceError(ua.StatusCodes.BadIdentityTokenInvalid) from error
        origin = origin_of(self.name[0])
        try:
            source = await self._server.reception.login(password, origin)
            if source.device_id != device_id:
                raise Unauthenticated("the token is another device's")
        except Unauthenticated as error:
            log.info("opc ua login refused", device=str(device_id), reason=error.detail)
            raise ServiceError(ua.StatusCodes.BadUserAccessDenied) from error
        except AppError as error:
            log.warning("opc ua login not possible", device=str(device_id), reason=error.detail)
            raise ServiceError(ua.StatusCodes.BadResourceUnavailable) from error
        if session.source is not None and session.source is not source:
            raise ServiceError(ua.StatusCodes.BadUserAccessDenied)
        return source


class _Connection(OPCUAProtocol):
    """One client's socket."""

    iserver: _Inner
    processor: _Processor | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._origin = origin_of(transport.get_extra_info("peername")[0])
        strangers = self.iserver.server.strangers
        if strangers[self._origin] >= STRANGERS_PER_ADDRESS:
            transport.abort()  # type: ignore[attr-defined]  # a transport of a socket has it
            return
        super().connection_made(transport)
        if self.transport is None:
            return  # one too many
        strangers[self._origin] += 1
        self._is_stranger = True
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self.processor = _Processor(self.iserver, self.transport, self.limits)
        self.processor.set_policies(self.policies)

    def pause_writing(self) -> None:
        """Take no further request up: its answer would only wait here for who reads none."""
        self._may_answer.clear()

    def resume_writing(self) -> None:
        """Go on with what was asked."""
        self._may_answer.set()

    async def _process_one_msg(self, header: Any, buf: Any) -> bool:
        await self._may_answer.wait()
        return bool(await super()._process_one_msg(header, buf))

    def connection_lost(self, ex: BaseException | None) -> None:
        if self.transport is not None:
            self.acquaint()
        super().connection_lost(ex)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A whole chunk would have been taken: this one says that it is longer than any may be.
        if len(self._buffer) > CHUNK_BYTES and self.transport is not None:
            self.transport.abort()

    def acquaint(self) -> None:
        """Note that it has logged in, or has ended: it is no stranger any more."""
        if self._is_stranger:
            self._is_stranger = False
            strangers = self.iserver.server.strangers
            strangers[self._origin] -= 1
            if strangers[self._origin] <= 0:
                del strangers[self._origin]

    def end_if_idle(self, now: float) -> None:
        """Close the connection of a session that has been silent for longer than it may."""
        if self.processor is None or self.transport is None:
            return
        session = self.processor.session
        if session is None or not session.is_activated():
            return
        self.acquaint()
        if now - self.processor.last_heard > (session.session_timeout or 0):
            self.transport.abort()


class _Binary(BinaryServer):
    """The listening socket."""

    clients: list[_Connection]

    def _make_protocol(self) -> _Connection:
        return _Connection(
            self.iserver, self._policies, self.clients, self.closing_tasks, self.limits
        )
