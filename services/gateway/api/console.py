"""The console: a built web application, served as files; and what stands in where there is none."""

import os
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from libs.common.http.access import public

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NOT_OURS = ("api/", "internal/", "health/", ".well-known/")

no_console = APIRouter(include_in_schema=False)
"""Where the console's addresses lead in an installation without one: to the page of the API."""


@no_console.get("/")
@public("an address")
async def find_page() -> Response:
    """Lead to the page that shows the API."""
    return RedirectResponse("/api/v1/docs")


@no_console.get("/alerts/{alert_id}")
@public("an address; the alert is not looked up")
async def find_alert(alert_id: str) -> Response:
    """Lead to where one asks for an alert: mails and webhooks link here."""
    return RedirectResponse("/api/v1/docs#/alerts/get_alert")


@no_console.get("/claim")
@public("an address; the token on the label stays with the browser, behind the `#`")
async def find_claim() -> Response:
    """Lead to where one claims a device: labels link here, with the claim token behind the `#`."""
    return RedirectResponse("/api/v1/docs")


class Console(StaticFiles):
    """The console's files. An address that is no file is one of its views: the front page answers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file. Raises 404 for addresses of the API."""
        if path.startswith(_NOT_OURS):
            raise HTTPException(404)
        try:
            answer = await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code != 404 or "." in path.rpartition("/")[2]:
                raise
            answer = await super().get_response("index.html", scope)
        answer.headers["content-security-policy"] = _CSP
        answer.headers["cache-control"] = _how_long(path, answer)
        return answer


def console(directory: Path) -> Console:
    """Return the app that serves a built console. Raises RuntimeError if there is no such folder."""
    return public("files, the same for everyone")(
        Console(directory=os.fspath(directory), html=True)
    )


def _how_long(path: str, answer: Response) -> str:
    # Built files carry a hash in their name; the page that names them is looked at each time.
    is_named_by_content = path.startswith("assets/") and isinstance(answer, FileResponse)
    return "public, max-age=31536000, immutable" if is_named_by_content else "no-cache"
