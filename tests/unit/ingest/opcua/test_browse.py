"""Looking around in a server that means harm has an end too."""

import asyncio
from typing import Any

import pytest
from asyncua import ua

from services.ingest.protocols.opcua.browse import MOST_REFERENCES, below
from tests.unit.ingest.opcua.server import Server


@pytest.mark.parametrize("page", [1_000, 0])
async def test_a_node_with_ever_more_below_it_is_shown_as_far_as_a_person_looks(page: int) -> None:
    def ever_more(_: Any) -> ua.BrowseResult:
        return ua.BrowseResult(
            ContinuationPoint=b"more", References=[ua.ReferenceDescription()] * page
        )

    async with asyncio.timeout(30):
        found = await below(Server(ever_more).session, ua.NodeId(85))
    assert len(found) == (MOST_REFERENCES if page else 0)
