"""An operation that will go says so in every answer and in the API's description."""

from datetime import date

import httpx2
import pytest
from fastapi import APIRouter

from libs.common.errors import NotFound
from libs.common.http.access import public
from libs.common.http.app import create_app
from libs.common.http.deprecation import deprecated

router = APIRouter(prefix="/api/v1")


@router.get("/presses/{number}")
@public("a test")
@deprecated(since=date(2026, 11, 1), sunset=date(2027, 5, 1), instead="/api/v2/presses")
async def get_press(number: int) -> int:
    """Return a press."""
    if number == 0:
        raise NotFound("no press 0")
    return number


@router.get("/pumps")
@public("a test")
async def get_pumps() -> int:
    """Return the pumps."""
    return 0


async def test_clients_are_told_since_when_until_when_and_what_instead() -> None:
    app = create_app("press-shop", version="1", routers=[router])
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as http:
        for path in ("/api/v1/presses/7", "/api/v1/presses/0", "/api/v1/presses/x"):
            told = (await http.get(path)).headers
            # 2026-11-01T00:00:00Z, as RFC 9745 writes it, and RFC 8594's date of HTTP.
            assert told["deprecation"] == "@1793491200"
            assert told["sunset"] == "Sat, 01 May 2027 00:00:00 GMT"
            assert told["link"] == '</api/v2/presses>; rel="successor-version"'
        staying = (await http.get("/api/v1/pumps")).headers
        assert not {"deprecation", "sunset", "link"} & staying.keys()
    paths = app.openapi()["paths"]
    assert paths["/api/v1/presses/{number}"]["get"]["deprecated"] is True
    assert "goes on 2027-05-01" in paths["/api/v1/presses/{number}"]["get"]["description"]
    assert "deprecated" not in paths["/api/v1/pumps"]["get"]


def test_nothing_goes_before_clients_could_follow() -> None:
    with pytest.raises(ValueError, match="180 days"):
        deprecated(since=date(2026, 11, 1), sunset=date(2027, 4, 1))
