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
<header id="bar">
  <h1>INSA IIoT Platform <span>API</span></h1>
  <form id="login" autocomplete="on">
    <label>Email <input name="email" type="email" autocomplete="username" required></label>
    <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
    <button>Log in</button>
  </form>
  <p id="who" hidden><span></span> <button type="button" id="logout">Log out</button></p>
  <p id="said" role="alert" hidden></p>
</header>
<main id="api"></main>
<script src="/api/v1/docs/swagger-ui-bundle.js"></script>
<script src="/api/v1/docs/start.js"></script>
</body>
</html>
"""
# The token stays in the page's memory: a reload asks again, and no script of another page finds it.
_START = b"""const ui = SwaggerUIBundle({
  url: "/api/v1/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: 0,
  filter: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
  validatorUrl: null,
});

const login = document.getElementById("login");
const who = document.getElementById("who");
const said = document.getElementById("said");
let token = null;

function show(email, fault) {
  login.hidden = email !== null;
  who.hidden = email === null;
  who.firstElementChild.textContent = email === null ? "" : `Logged in as ${email}`;
  said.hidden = !fault;
  said.textContent = fault || "";
}

async function ask(path, body) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const told = answer.status === 204 ? {} : await answer.json();
  if (!answer.ok) throw new Error(told.detail || answer.statusText);
  return told;
}

login.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password } = Object.fromEntries(new FormData(login));
  try {
    const tokens = await ask("/api/v1/auth/login", { email, password });
    if (!tokens.access_token) throw new Error("This account needs a second factor: log in by the operations of auth.");
    token = tokens.access_token;
    ui.preauthorizeApiKey("bearer", token);
    login.reset();
    show(email);
  } catch (fault) {
    show(null, fault.message);
  }
});

document.getElementById("logout").addEventListener("click", async () => {
  try {
    await ask("/api/v1/auth/logout", {});
  } catch {
    // It had ended already.
  }
  token = null;
  ui.authActions.logout(["bearer"]);
  show(null);
});
"""
# There is one server, and it is this one: nothing to choose.
_STYLE = b""":root { --ink: #14212b; --deep: #0f2f3d; --accent: #0b7285; --line: #d5dee3; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: #f6f8f9; color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
#bar { position: sticky; top: 0; z-index: 10; display: flex; flex-wrap: wrap; align-items: center; gap: 8px 20px;
  padding: 10px max(20px, calc((100% - 1160px) / 2)); background: var(--deep); color: #fff; }
#bar h1 { margin: 0 auto 0 0; font-size: 17px; font-weight: 600; }
#bar h1 span { margin-left: 6px; padding: 1px 8px; border-radius: 10px; background: #ffffff24; font-size: 12px; }
#bar form, #who { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 12px; margin: 0; }
#bar label { display: flex; align-items: center; gap: 6px; font-size: 13px; }
#bar input { width: 190px; padding: 6px 9px; border: 1px solid #ffffff40; border-radius: 6px; background: #ffffff14; color: #fff; font: inherit; }
#bar button { padding: 6px 16px; border: 0; border-radius: 6px; background: #fff; color: var(--deep); font: inherit; font-weight: 600; cursor: pointer; }
#bar input:focus-visible, #bar button:focus-visible { outline: 2px solid #66d9e8; outline-offset: 1px; }
#said { flex-basis: 100%; margin: 0; text-align: right; color: #ffc9c9; font-size: 13px; }
.swagger-ui .wrapper { max-width: 1200px; }
.swagger-ui .info { margin: 28px 0 16px; }
.swagger-ui .info .title { font-size: 28px; }
.swagger-ui .scheme-container { margin-bottom: 12px; padding: 8px 0; background: none; box-shadow: none; }
.swagger-ui .servers-title, .swagger-ui .servers { display: none; }
.swagger-ui .opblock-tag { font-size: 18px; border-color: var(--line); }
@media (max-width: 640px) {
  #bar { position: static; padding: 12px 16px; }
  #bar h1, #bar form, #bar label, #who { width: 100%; }
  #bar label { justify-content: space-between; }
  #bar input { width: 70%; font-size: 16px; }
  #bar form button { width: 100%; padding: 9px; }
  .swagger-ui .wrapper { padding: 0 12px; }
  .swagger-ui .info hgroup.main { overflow-wrap: anywhere; }
  .swagger-ui .opblock-tag { flex-wrap: wrap; }
  .swagger-ui .opblock-tag { justify-content: space-between; }
  .swagger-ui .opblock-tag small { order: 3; flex-basis: 100%; padding: 0; }
  .swagger-ui .opblock .opblock-summary { flex-wrap: wrap; }
  .swagger-ui .response-col_links { display: none; }
  .swagger-ui .opblock .opblock-summary-description { flex-basis: 100%; padding: 4px 0; }
}
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
