"""What a tenant can set of a connection out to an OPC UA server. No library of the protocol's here:
a process without such connections does not load it.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from cryptography import x509
from pydantic import AfterValidator, Field, model_validator

from services.ingest.protocols.connectors import (
    ConnectorSettings,
    DeviceName,
    MetricSettings,
    each_metric_once,
)
from services.ingest.usecases.connectors import Connector, Kind, Report
from services.ingest.usecases.reception import Reception

MOST_ITEMS = 10_000

_NODE_ID = re.compile(r"(ns=\d{1,5};)?(i=\d{1,10}|[sgb]=.+)", re.DOTALL)


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "opc.tcp" or not parts.hostname:
        raise ValueError("write opc.tcp://host:4840 or opc.tcp://host:4840/path")
    if "@" in parts.netloc:
        raise ValueError("name the user in `username`, and give the password as a secret")
    _ = parts.port  # raises ValueError if it is none
    return text


def _node_id(text: str) -> str:
    if _NODE_ID.fullmatch(text) is None:
        raise ValueError("a node id is written ns=2;s=Line1.Temp or i=2258")
    return text


def _certificate(text: str) -> str:
    try:
        x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise ValueError("this is no certificate in PEM") from error
    return text


SourceName = Annotated[str, Field(min_length=1, max_length=256)]
NodeIdText = Annotated[str, Field(max_length=512), AfterValidator(_node_id)]


class Deadband(ConnectorSettings):
    """By how much a value must change to be sent; percent is of the node's EURange."""

    kind: Literal["absolute", "percent"]
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ItemSettings(MetricSettings):
    """A node, and the metric that its values are."""

    node_id: NodeIdText | None = None
    browse_path: Annotated[str, Field(min_length=1, max_length=1_024)] | None = None
    """From the Objects folder: `2:Line1/2:Press/2:Temperature`, each with its namespace."""
    sampling_ms: Annotated[float, Field(ge=0, le=3_600_000)] | None = None
    """Absent: as often as is published."""
    deadband: Deadband | None = None
    queue_size: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Values that wait on the server; what is beyond is dropped there, and shows as a gap."""
    is_writable: bool = False
    """Whether the command `write` may set it."""

    @model_validator(mode="after")
    def _has_one_address(self) -> "ItemSettings":
        if (self.node_id is None) == (self.browse_path is None):
            raise ValueError("give either node_id or browse_path")
        return self


class MethodSettings(ConnectorSettings):
    """A method that the command `call` may call for a device."""

    device: DeviceName
    object: NodeIdText
    method: NodeIdText


class OpcUaSettings(ConnectorSettings):
    """Which server, how it is trusted, and what of it is wanted."""

    endpoint: Annotated[str, Field(max_length=512), AfterValidator(_endpoint)]
    security: Literal["none", "sign", "sign_and_encrypt"] = "sign_and_encrypt"
    policy: Literal["Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"] = (
        "Basic256Sha256"
    )
    server_certificate: Annotated[str, Field(max_length=65_536), AfterValidator(_certificate)] | None = None  # fmt: skip
    """The server's own, in PEM; or its SHA-256 in `server_fingerprint`."""
    server_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-fA-F:]{64,95}$")] | None = None
    allow_insecure: bool = False
    """Must be true for security `none`, where anybody between may read and forge."""
    username: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    publishing_ms: Annotated[float, Field(ge=10, le=3_600_000)] = 250
    history: bool = False
    """Whether what was missed while not connected is read from the server's history."""
    history_overlap_s: Annotated[float, Field(ge=0, le=3_600)] = 10
    events: bool = False
    """Whether its events are alarms of the devices that their sources are named after."""
    event_sources: Annotated[dict[SourceName, DeviceName], Field(max_length=1_000)] = Field(
        default_factory=dict
    )
    """The devices of sources, by name, that are called otherwise than these."""
    items: Annotated[
        list[ItemSettings], Field(max_length=MOST_ITEMS), AfterValidator(each_metric_once)
    ] = Field(default_factory=list)
    methods: Annotated[list[MethodSettings], Field(max_length=1_000)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_safe_or_says_so(self) -> "OpcUaSettings":
        if self.security == "none":
            if not self.allow_insecure:
                raise ValueError("security `none` needs allow_insecure: true")
        elif self.server_certificate is None and self.server_fingerprint is None:
            raise ValueError("give server_certificate or server_fingerprint: whom to trust")
        return self


def opcua_kind(certificate: Path | None, key: Path | None) -> Kind:
    """Return the kind of connector; the files are our application's certificate."""

    async def run(connector: Connector, reception: Reception, report: Report) -> None:
        from services.ingest.protocols.opcua.client import Reader

        await Reader(connector, reception, report, certificate, key).run()

    async def browse(connector: Connector, node: str | None) -> list[dict[str, Any]]:
        from services.ingest.protocols.opcua.browse import browse

        return await browse(connector, node, certificate, key)

    return Kind("opcua", OpcUaSettings, run, frozenset({"password"}), browse)
