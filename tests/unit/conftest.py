"""Unit tests are pure: whoever connects somewhere is in the wrong folder."""

import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_connections() -> Iterator[None]:
    """Refuse outgoing connections of Python sockets (socket pairs work: they connect nowhere)."""

    def refuse(_socket: socket.socket, address: object) -> NoReturn:
        message = f"a unit test connects to {address}: it belongs to tests/service or tests/system"
        raise RuntimeError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        yield
