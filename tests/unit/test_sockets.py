import asyncio
import socket

import pytest


def test_a_unit_test_that_connects_is_told_where_it_belongs() -> None:
    with (
        socket.socket() as client,
        pytest.raises(RuntimeError, match="belongs to tests/service"),
    ):
        client.connect(("127.0.0.1", 9))


async def test_so_is_one_that_connects_through_asyncio() -> None:
    with pytest.raises(RuntimeError, match="belongs to tests/service"):
        await asyncio.open_connection("127.0.0.1", 9)
