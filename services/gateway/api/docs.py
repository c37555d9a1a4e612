"""The API's description, for programs and for people; and the keys that tokens are verified with."""

from importlib.resources import files
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from libs.common.errors import NotFound
from libs.common.http.access import public
from services.gateway.usecases.description import Description

router = APIRouter(include_in_schema=False)

_KEPT = {"cache-control": "public, max-age=86400"}
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
    "start.js": "text/javascript",
    "page.css": "text/css",
}
# The page runs scripts of our own alone. Swagger UI sets styles as it draws, and draws its icons
# from data: addresses.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>INSA IIoT Platform: API</title>
<link rel="icon" href="/api/v1/docs/favicon.png">
<link rel="stylesheet" href="/api/v1/docs/swagger-ui.css">
<link rel="stylesheet" href="/api/v1/docs/page.css">
</head>
<body>
<div id="api"></div>
<script src="/api/v1/docs/swagger-ui-bundle.js"></script>
<script src="/api/v1/docs/start.js"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({
  url: "/api/v1/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  docExpansion: "list",
  persistAuthorization: false,
  tagsSorter: "alpha",
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""
# There is one server, and it is this one: nothing to choose.
_STYLE = b"""body { margin: 0; background: #fafafa; }
.swagger-ui .wrapper { max-width: 1120px; }
.swagger-ui .info { margin: 32px 0 20px; }
.swagger-ui .scheme-container { margin-bottom: 16px; padding: 12px 0; }
.swagger-ui .servers-title, .swagger-ui .servers { display: none; }
"""
_OWN = {"start.js": _START, "page.css": _STYLE}


@router.get("/.well-known/jwks.json")
@public("public halves of keys")
async def get_keys(request: Request) -> Response:
    """Return the keys that access tokens and principals are verified with (RFC 7517)."""
    return JSONResponse(
        request.app.state.keyring.jwks(), headers={"cache-control": "public, max-age=60"}
    )


@router.get("/api/v1/openapi.json")
@public("it describes the API and holds no tenant's data")
async def get_description(request: Request) -> Response:
    """Return the OpenAPI 3.1 document of all services."""
    description: Description = request.app.state.description
    return Response(await description.document(), media_type="application/json")


@router.get("/api/v1/docs")
@public("it describes the API and holds no tenant's data")
async def get_docs() -> Response:
    """Return the page that shows the API."""
    return HTMLResponse(_PAGE, headers={"content-security-policy": _CSP})


@router.get("/api/docs")
@router.get("/docs")
@public("an address")
async def find_docs() -> Response:
    """Lead to the page that shows the API."""
    return RedirectResponse("/api/v1/docs")


@router.get("/api/v1/docs/{asset}")
@public("files of the page, the same for everyone")
async def get_docs_asset(
    asset: Annotated[
        Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png", "start.js", "page.css"],
        Path(),
    ],
) -> Response:
    """Return a file of the page. Swagger UI's own come from a package that carries it whole."""
    if asset in _OWN:
        return Response(_OWN[asset], media_type=_ASSETS[asset], headers=_KEPT)
    try:
        content = (files("fastapi_offline") / "static" / asset).read_bytes()
    except ModuleNotFoundError:
        raise NotFound("this installation carries no documentation page") from None
    return Response(content, media_type=_ASSETS[asset], headers=_KEPT)
