"""What RabbitMQ's management API answers, and what it ought not to."""

import httpx2
import pytest

from libs.common.errors import Unavailable
from services.ingest.adapters.rabbit_management import Management


def answering(status: int, body: bytes) -> Management:
    management = Management("http://user:secret@broker:15672")
    management._http = httpx2.AsyncClient(
        base_url="http://broker:15672/api/",
        transport=httpx2.MockTransport(lambda _: httpx2.Response(status, content=body)),
    )
    return management


async def test_queues_are_read_by_the_page() -> None:
    management = answering(200, b'{"items": [{"name": "commands.a"}], "page_count": 3, "page": 1}')
    assert await management.queues("devices", "commands.", 1) == (["commands.a"], 3)
    assert await answering(200, b'[{"name": "1"}, {"name": "2"}]').connections_of("press") == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>a proxy's page</html>"),
        (200, b""),
        (200, b"null"),
        (200, b'{"items": null}'),
        (200, b'[{"pid": 1}]'),
        (400, b'{"error": "page_out_of_range"}'),
        (500, b""),
    ],
)
async def test_an_answer_that_cannot_be_read_is_as_good_as_none(status: int, body: bytes) -> None:
    management = answering(status, body)
    with pytest.raises(Unavailable):
        await management.queues("devices", "commands.", 1)
    with pytest.raises(Unavailable):
        await management.connections_of("press")
