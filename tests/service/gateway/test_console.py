"""The console, served beside the API."""

from pathlib import Path

from libs.common.bus.local import LocalBus
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import World, running


async def test_the_console_is_served_and_the_api_stays_the_api(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "app-1a2b.js").write_text("start()")
    (tmp_path / "index.html").write_text("<title>Console</title>")
    with_console = settings.model_copy(update={"console_dir": tmp_path})
    async with running(with_console, bus, database_urls) as world:
        for path in ("/", "/alerts/7"):
            page = await world.http.get(path)
            assert (page.status_code, page.text) == (200, "<title>Console</title>")
            assert page.headers["cache-control"] == "no-cache"
            assert "script-src 'self'" in page.headers["content-security-policy"]
        script = await world.http.get("/assets/app-1a2b.js")
        assert "immutable" in script.headers["cache-control"]
        for path in ("/api/v1/nothing", "/internal/v1/users", "/missing.js"):
            missing = await world.http.get(path)
            assert missing.status_code == 404
            assert missing.headers["content-type"] == "application/problem+json"
        assert (await world.http.get("/health/live")).status_code == 200
        assert (await world.http.get("/api/v1/openapi.json")).status_code == 200


async def test_without_a_console_its_addresses_lead_to_the_page_of_the_api(world: World) -> None:
    front = await world.http.get("/")
    assert (front.status_code, front.headers["location"]) == (307, "/api/v1/docs")
    # What a mail about an alert links to.
    alert = await world.http.get("/alerts/0e7a3f0c-6f1e-4a55-9a55-000000000002")
    assert alert.headers["location"] == "/api/v1/docs#/alerts/get_alert"
    # What a label links to. No fragment: the browser keeps the claim token that stands there.
    assert (await world.http.get("/claim")).headers["location"] == "/api/v1/docs"
    assert (await world.http.get("/missing.js")).status_code == 404
