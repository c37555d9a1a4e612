"""`iiot tenants`: customers, from the first call to the last, over the platform's API."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import httpx2

Api = Annotated[str, typer.Option(envvar="IIOT_API", help="URL of the platform.")]
WithToken = Annotated[
    str,
    typer.Option(
        envvar="IIOT_TOKEN", help="An access token; absent: log in by email and password."
    ),
]
Email = Annotated[str, typer.Option(envvar="IIOT_EMAIL", help="A platform admin's address.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Named = Annotated[str, typer.Argument(metavar="TENANT", help="Its slug, or its id.")]

API_DEFAULT = "http://127.0.0.1:8000"

tenants = typer.Typer(
    help="Open, see, suspend and close tenants.\n\nYou are a platform admin: by IIOT_TOKEN, or by"
    " IIOT_EMAIL and the password in IIOT_PASSWORD (asked for if it is not there). Logins are limited to"
    " a few a minute: for more commands than that, `export IIOT_TOKEN=$(iiot tenants login)`.",
    no_args_is_help=True,
)


class Platform:
    """The platform's API, as a platform admin calls it."""

    def __init__(self, http: "httpx2.Client") -> None:
        self._http = http

    def log_in(self, email: str) -> str:
        """Return an access token, by IIOT_PASSWORD or what is typed. Exits with 1 if refused."""
        body = {
            "email": email or typer.prompt("Email"),
            "password": os.environ.get("IIOT_PASSWORD")
            or typer.prompt("Password", hide_input=True),
        }
        answer = self.ask("POST", "/auth/login", json=body)
        if "access_token" not in answer:
            raise _failed(
                "this login asks for a second factor: log in elsewhere, and set IIOT_TOKEN"
            )
        token: str = answer["access_token"]
        return token

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """Return the answer's document. Says what is wrong and exits with 1 if there is none."""
        import httpx2

        try:
            answer = self._http.request(method, path, **more)
        except httpx2.HTTPError as error:
            raise _failed(f"the platform cannot be reached: {error}") from None
        if answer.is_success:
            return answer.json() if answer.content else {}
        try:
            problem = answer.json()
            detail = problem["detail"]
        except (ValueError, KeyError):
            detail = f"the platform answered {answer.status_code}"
        raise _failed(detail)

    def tenants(self) -> list[dict[str, Any]]:
        """Return all tenants, oldest first."""
        found: list[dict[str, Any]] = []
        query: dict[str, str] = {"limit": "100"}
        while True:
            page = self.ask("GET", "/tenants", params=query)
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]

    def tenant(self, named: str) -> dict[str, Any]:
        """Return the tenant with this slug or id. Exits with 1 if there is none."""
        for tenant in self.tenants():
            if named in (tenant["slug"], tenant["id"]):
                return tenant
        raise _failed(f"there is no tenant {named}")


def _http(api: str) -> "httpx2.Client":
    import httpx2

    return httpx2.Client(base_url=f"{api.rstrip('/')}/api/v1", timeout=30, trust_env=False)


@contextmanager
def _logged_in(api: str, token: str, email: str) -> Iterator[Platform]:
    """Give the API with a credential. Who logs in for it is logged out afterwards.

    Exits with 1 if the login is refused.
    """
    import httpx2

    with _http(api) as http:
        platform = Platform(http)
        http.headers["authorization"] = f"Bearer {token or platform.log_in(email)}"
        try:
            yield platform
        finally:
            if not token:
                with suppress(httpx2.HTTPError):
                    http.post("/auth/logout")


def _failed(why: str) -> typer.Exit:
    """Say what is wrong, and return what ends the command."""
    typer.echo(f"error: {why}", err=True)
    return typer.Exit(1)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    cells = [list(columns)] + [
        ["" if row[column] is None else str(row[column]) for column in columns] for row in rows
    ]
    widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _show(document: Any, as_json: bool, text: Callable[[], str]) -> None:
    typer.echo(json.dumps(document, indent=2) if as_json else text())


def _lines(document: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{name}: {value}" for name, value in document.items() if value not in (None, "")
    )


@tenants.command()
def login(*, api: Api = API_DEFAULT, email: Email = "") -> None:
    """Log in once for several commands: print an access token, for IIOT_TOKEN."""
    with _http(api) as http:
        typer.echo(Platform(http).log_in(email))


@tenants.command()
def create(
    slug: Annotated[str, typer.Argument(help="Its name in addresses: a-z, 0-9 and -.")],
    *,
    name: Annotated[str, typer.Option(help="Its name for people; absent: the slug.")] = "",
    plan: Annotated[str, typer.Option(help="Absent: the installation's default.")] = "",
    admin: Annotated[str, typer.Option(help="Address of who is invited to administer it.")] = "",
    admin_name: Annotated[str, typer.Option(help="Their name.")] = "Administrator",
    api: Api = API_DEFAULT,
    token: WithToken = "",
    email: Email = "",
    as_json: AsJson = False,
) -> None:
    """Open a tenant, with its plan, and invite its first admin.

    Prints the invitation's token, which is shown this once: pass it on to the admin.
    """
    body: dict[str, Any] = {"slug": slug, "name": name or slug}
    if plan:
        body["plan"] = plan
    if admin:
        body["admin"] = {"email": admin, "name": admin_name}
    with _logged_in(api, token, email) as platform:
        made = platform.ask("POST", "/tenants", json=body)
    invited = made.pop("admin", None)
    shown = made | ({"invitation": invited["invitation"]["token"]} if invited else {})
    _show(shown, as_json, lambda: _lines(shown))


@tenants.command("list")
def list_(
    *, api: Api = API_DEFAULT, token: WithToken = "", email: Email = "", as_json: AsJson = False
) -> None:
    """List all tenants, oldest first."""
    with _logged_in(api, token, email) as platform:
        found = platform.tenants()
    columns = ("slug", "name", "plan", "status", "id")
    _show(found, as_json, lambda: _table(found, columns))


@tenants.command()
def show(
    tenant: Named,
    *,
    api: Api = API_DEFAULT,
    token: WithToken = "",
    email: Email = "",
    as_json: AsJson = False,
) -> None:
    """Show a tenant."""
    with _logged_in(api, token, email) as platform:
        found = platform.tenant(tenant)
    _show(found, as_json, lambda: _lines(found))


@tenants.command()
def usage(
    tenant: Named,
    *,
    api: Api = API_DEFAULT,
    token: WithToken = "",
    email: Email = "",
    as_json: AsJson = False,
) -> None:
    """Show where a tenant stands against its quotas."""
    with _logged_in(api, token, email) as platform:
        found = platform.ask("GET", f"/tenants/{platform.tenant(tenant)['id']}/usage")
    columns = ("resource", "used", "most", "level")
    _show(found, as_json, lambda: _table(found["standing"], columns))


@tenants.command()
def suspend(
    tenant: Named,
    *,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at it later.")] = "",
    api: Api = API_DEFAULT,
    token: WithToken = "",
    email: Email = "",
) -> None:
    """Let nobody and no device of a tenant in any more; all it has stays."""
    with _logged_in(api, token, email) as platform:
        path = f"/tenants/{platform.tenant(tenant)['id']}/suspend"
        typer.echo(_lines(platform.ask("POST", path, json={"reason": reason})))


@tenants.command()
def resume(
    tenant: Named, *, api: Api = API_DEFAULT, token: WithToken = "", email: Email = ""
) -> None:
    """Let a tenant in again that was suspended, or is closing and not erased yet."""
    with _logged_in(api, token, email) as platform:
        path = f"/tenants/{platform.tenant(tenant)['id']}/resume"
        typer.echo(_lines(platform.ask("POST", path)))


@tenants.command()
def delete(
    tenant: Named,
    *,
    grace: Annotated[
        str, typer.Option(help="How long it can be taken back, such as P30D; PT0S: not at all.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at it later.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    api: Api = API_DEFAULT,
    token: WithToken = "",
    email: Email = "",
) -> None:
    """Close a tenant: nobody enters, and when the grace is over it is erased."""
    with _logged_in(api, token, email) as platform:
        found = platform.tenant(tenant)
        if not yes:
            typer.confirm(f"Close {found['name']} ({found['slug']})?", abort=True)
        query = {"reason": reason} | ({"grace": grace} if grace else {})
        platform.ask("DELETE", f"/tenants/{found['id']}", params=query)
    typer.echo(f"{found['slug']} is closed")
